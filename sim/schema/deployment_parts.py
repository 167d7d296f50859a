"""The optional parts of stage 3 of a scenario: regions, spot, new hardware, formats, canaries, outages, shortages."""

from __future__ import annotations

from pydantic import Field

from sim.schema.base import NEBIUS, Section, fraction, quantity

MOST_REGIONS = 16  # each month draws luck for so many, so that one more region changes no other's


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


class Generation(Section):
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
    """Times in which a region serves nobody."""

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
