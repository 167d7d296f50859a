"""Stage 3 of a scenario: the fleet that serves; regions, spot, new hardware, formats, canaries, outages, shortages."""

from __future__ import annotations

from pydantic import Field

from sim.scenario.schema.base import NEBIUS, Section, fraction, option, quantity

MOST_REGIONS = 16  # each month draws for so many, so that one more region changes no other's draws


class Region(Section):
    """A place with its own fleet, serving the users near it."""

    share: float = quantity(1.0, "parts of the traffic", "against the other regions' parts", gt=0, le=1e6)
    hours_ahead: int = quantity(0, "h", "its clock, against that of the first region", ge=-12, le=14)
    price_factor: float = quantity(
        1.0, "factor", "of machines there, against the price of this section", ge=0
    )
    min_replicas: int = quantity(2, "replicas", "smallest fleet there", ge=1, le=1_000_000)


class Spot(Section):
    """Machines that are cheap because the cloud may take them back."""

    share: float = fraction(0.5, "of the replicas beyond the reserved that are spot")
    discount: float = quantity(
        0.576,
        "fraction",
        "off the on-demand price (H100: 1.25 against 2.95)",
        source=NEBIUS,
        date="2026",
        ge=0,
        le=1,
    )
    interruptions_per_h: float = quantity(
        0.01, "events per replica-hour", "taken back by the cloud", ge=0, le=10
    )
    recovery_h: float = quantity(
        0.25, "h", "until another machine serves in its place; not paid meanwhile", ge=0, le=1
    )


class HardwareGeneration(Section):
    """A kind of serving machine that comes to market during the run."""

    month: int = quantity(12, "month of the run, 0 is the first", "when it can be had", ge=0, le=600)
    speed: float = quantity(
        2.0, "factor", "requests per second of one replica, against the measured machine", gt=0, le=1000
    )
    price_usd_per_hour: float = quantity(0.10, "USD per replica-hour", "in its first month", ge=0)
    power_factor: float = quantity(1.0, "factor", "its watts, against the measured machine", ge=0, le=1000)


class Quantisation(Section):
    """A smaller number format than the model was trained in."""

    format: str = quantity("int8", "name", "as it is called in reports", max_length=40)
    loss_nats: float | None = quantity(
        None,
        "nats per token",
        "added to what users feel; null takes the profile's measured perplexity against float32",
        ge=0,
        le=5,
    )
    speed: float = quantity(
        1.0, "factor", "against the profile; 1 when the profile was measured in this format", gt=0, le=100
    )


class Canary(Section):
    """A new version serves a few users first; what the held-out set doesn't show may show there."""

    share: float = fraction(0.05, "of the traffic on the new version at first")
    days: float = quantity(2.0, "days", "before all get it", ge=0, le=365)
    bad_share: float = fraction(0.10, "of released versions that disappoint in use")
    bad_quality_drop: float = fraction(0.10, "quality index that a bad version lacks")
    found_share: float = fraction(0.8, "of bad versions that the canary finds")
    found_after_days: float = quantity(
        10.0, "days", "until a bad version that the canary missed is found and rolled back", ge=0, le=365
    )
    rollback_usd: float = quantity(2_000.0, "USD per roll-back", "people and apologies", ge=0)


class CreditTier(Section):
    """A step of the service level agreement."""

    below_uptime: float = fraction(0.999, "monthly uptime under which customers get the credit")
    credit_share: float = fraction(0.10, "of the month's invoices given back")


def _tiers() -> dict[str, CreditTier]:
    """The steps of the AWS Compute Service Level Agreement (region level, 2022)."""
    return {
        "first": CreditTier(below_uptime=0.9999, credit_share=0.10),
        "second": CreditTier(below_uptime=0.99, credit_share=0.30),
        "third": CreditTier(below_uptime=0.95, credit_share=1.00),
    }


class Outages(Section):
    """Times in which a region is down."""

    per_year: float = quantity(
        4.0, "events per year and region", "power, network, a bad change", ge=0, le=1000
    )
    mean_h: float = quantity(1.5, "h", "mean length (exponential)", gt=0, le=730)
    failover_share: float = fraction(0.0, "of a region's traffic that other regions serve meanwhile")
    credits: dict[str, CreditTier] = Field(
        default_factory=_tiers, description="credits by monthly uptime; the largest that applies counts"
    )


class Shortage(Section):
    """Months in which accelerators are hard to get."""

    start_month: int | None = quantity(
        None, "month of the run, 0 is the first", "a shortage begins; null: only by chance", ge=0, le=600
    )
    events_per_year: float = quantity(0.0, "events per year", "shortages by chance", ge=0, le=12)
    duration_months: int = quantity(6, "months", "that a shortage lasts", ge=1, le=600)
    price_factor: float = quantity(
        1.8, "factor", "of on-demand and spot prices, and of reservations made meanwhile", ge=0, le=100
    )
    provisioning_factor: float = quantity(
        4.0, "factor", "of the time from ordering a machine to serving", ge=0, le=100
    )
    interruption_factor: float = quantity(3.0, "factor", "of spot interruptions", ge=0, le=100)
    training_wait_days: float = quantity(
        21.0, "days", "until a rented training cluster is free", ge=0, le=730
    )


class Support(Section):
    """People who answer customers, by what goes through the fleet."""

    tickets_per_million_requests: float = quantity(
        5.0, "tickets per million requests served", "questions", ge=0
    )
    tickets_per_thousand_refused: float = quantity(
        0.5, "tickets per thousand requests refused", "complaints", ge=0
    )
    usd_per_ticket: float = quantity(12.0, "USD per ticket", "people's time", ge=0)


class Deployment(Section):
    """Stage 3: the fleet that serves, sized hour by hour from the capacity surface of the measured model."""

    model: str = quantity("smollm2-135m", "name", "served model; its profile gives speed, size and price")
    ttft_p95_s: float = quantity(
        10.0, "s", "objective: 95th percentile of the time to first token", gt=0, le=3600
    )
    tpot_p95_s: float = quantity(
        0.5, "s", "objective: 95th percentile of the time per output token", gt=0, le=600
    )
    replica_price_usd_per_hour: float | None = quantity(
        None, "USD per replica-hour", "price of one serving machine; null takes the profile's", ge=0
    )
    price_decline_per_year: float = quantity(
        0.10, "fraction per year", "how fast serving machines get cheaper", ge=0, lt=1
    )
    headroom: float = quantity(
        0.20, "fraction", "capacity ordered above the demand that is seen", ge=0, le=10
    )
    min_replicas: int = quantity(2, "replicas", "smallest fleet, for availability", ge=1, le=1_000_000)
    provisioning_delay_h: float = quantity(
        0.1, "h", "from ordering a machine to serving; demand may outgrow the fleet meanwhile", ge=0, le=24
    )
    reserved_share: float = quantity(
        0.6, "fraction of the mean fleet", "replicas reserved (paid always), rest on demand", ge=0, le=3
    )
    reserved_discount: float = fraction(0.30, "discount on reserved replicas")
    reserved_term_months: int = quantity(6, "months", "how long a reservation binds", ge=1, le=60)
    rollout_days: float = quantity(
        7.0, "days", "from a passed gate to all users on the new version", ge=0, le=365
    )
    support_usd_per_incident_hour: float = quantity(
        50.0, "USD per hour with unserved requests", "people handling the incident", ge=0
    )
    regions: dict[str, Region] = Field(
        default_factory=dict,
        description="places with a fleet each, by name; the first tells the time; empty: one place",
        max_length=MOST_REGIONS,
        json_schema_extra={"optional": True},
    )
    spot: Spot | None = option(None, "section", "cheap machines that may be taken back; null: none")
    generations: dict[str, HardwareGeneration] = Field(
        default_factory=dict,
        description="machines that come to market, by name; the cheapest per request is taken at each renewal",
        json_schema_extra={"optional": True},
    )
    quantisation: Quantisation | None = option(
        None, "section", "number format that is served; null: the profile's, without quality loss"
    )
    canary: Canary | None = option(
        None, "section", "few users first, and roll-backs; null: every version is good"
    )
    outages: Outages | None = option(None, "section", "times without service, and credits; null: none")
    shortage: Shortage | None = option(None, "section", "accelerators hard to get; null: never")
    support: Support | None = option(None, "section", "tickets by requests; null: not counted")
