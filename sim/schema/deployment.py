"""Stage 3 of a scenario: the fleet that serves."""

from __future__ import annotations

from pydantic import Field

from sim.schema.base import Section, fraction, option, quantity
from sim.schema.deployment_parts import (
    MOST_REGIONS,
    Canary,
    Generation,
    Outages,
    Quantisation,
    Region,
    Shortage,
    Spot,
    Support,
)


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
    generations: dict[str, Generation] = Field(
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
