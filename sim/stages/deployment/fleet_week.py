"""One week of serving, hour by hour: how many machines, of which kind, and how demand was served.

Each hour the autoscaler orders ceil(demand × (1 + headroom) / capacity of one replica), capacity being what the
measured model sustains under the latency objective (`sim.capacity.surface`). Machines serve `provisioning_delay_h`
after their order, so a rising demand finds a smaller fleet for a while: replicas then run above their capacity,
slower, up to the overload limit where requests are refused. The fleet is reserved + on demand + spot; the cloud takes
spot machines back now and then (a Poisson process per machine), and each is missing until another one serves in its
place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sim.stages.world import FloatArray
from sim.utils.randomness import poisson

if TYPE_CHECKING:
    from sim.capacity.surface import CapacitySurface
    from sim.scenario.schema import Deployment
    from sim.scenario.schema.deployment import Spot

HOURS_PER_WEEK = 168
OVERLOAD = 0.95  # of the saturation rate: beyond it a queue only grows, so the front door refuses requests
_NO_FLEET = 1e-9  # replicas, where the cloud took all: keeps rates finite


@dataclass(frozen=True)
class Week:
    """One week of serving, by hour [168] unless a scalar is named."""

    ordered: FloatArray  # replicas: reserved + on demand + spot
    reserved: float  # of these, paid always
    on_demand: FloatArray
    spot: FloatArray
    missing: FloatArray  # spot replicas taken back, mean over the hour; not paid
    idle: FloatArray  # reserved replicas that the autoscaler didn't ask for
    demand_rps: FloatArray
    served_rps: FloatArray
    busy_fraction: FloatArray  # of the paid replicas' time
    capacity_rps: float  # of one replica, within the objective
    interruptions: float  # of spot replicas, in the week
    in_flight: float  # requests in a replica, mean over replicas and hours
    ttft_p95_s: float  # mean over requests served
    tpot_p95_s: float

    @property
    def utilisation(self) -> FloatArray:
        """Served rate over what the ordered replicas can carry within the objective."""
        return self.served_rps / (self.ordered * self.capacity_rps)

    @property
    def short(self) -> FloatArray:
        """1 in hours that refused requests."""
        return (self.served_rps < self.demand_rps * (1 - 1e-9)).astype(np.float64)

    @property
    def served_fraction(self) -> float:
        """Requests served over requests asked."""
        asked = float(self.demand_rps.sum())
        return min(1.0, float(self.served_rps.sum()) / asked) if asked > 0 else 1.0

    def without(self, lost_fraction: float) -> Week:
        """This week with a fraction of the served requests lost to outages."""
        return self if lost_fraction == 0 else replace(self, served_rps=self.served_rps * (1 - lost_fraction))


@dataclass(frozen=True)
class SpotMarket:
    """The spot market in a week: uniform random numbers by hour [168], and interruptions per machine and hour."""

    spot: Spot
    uniforms: FloatArray
    interruptions_per_h: float


def serve_week(
    deployment: Deployment,
    surface: CapacitySurface,
    demand_rps: FloatArray,
    reserved: float,
    *,
    min_replicas: int | None = None,
    provisioning_factor: float = 1.0,
    market: SpotMarket | None = None,
) -> Week:
    """Follow demand with a fleet on a reserved base.

    Args:
        deployment: headroom, delays, smallest fleet.
        surface: of one replica.
        demand_rps: requests per second by hour of the week [168].
        reserved: replicas that are there in any case.
        min_replicas: smallest fleet, where it isn't the section's.
        provisioning_factor: of the time from an order to serving.
        market: of spot machines; None: nothing is spot.
    """
    smallest = deployment.min_replicas if min_replicas is None else min_replicas
    wanted = np.ceil(demand_rps * (1 + deployment.headroom) / surface.capacity_rps - 1e-9)
    wanted = np.maximum(wanted, float(smallest))
    ordered = np.maximum(wanted, reserved)
    beyond = ordered - reserved
    spot = np.zeros(HOURS_PER_WEEK) if market is None else np.floor(beyond * market.spot.share)
    delay_h = min(deployment.provisioning_delay_h * provisioning_factor, float(HOURS_PER_WEEK))
    whole_h = math.floor(delay_h)
    part_h = delay_h - whole_h
    # Each hour in two parts: until `part_h` the orders of one hour more ago serve. Released ones go at once.
    early = np.maximum(np.minimum(wanted, np.roll(wanted, whole_h + 1)), reserved)
    late = np.maximum(np.minimum(wanted, np.roll(wanted, whole_h)), reserved)
    replicas = np.stack([early, late])
    missing, interruptions = np.zeros(HOURS_PER_WEEK), 0.0
    if market is not None:
        taken = interrupted(spot, market)
        missing = np.minimum(spot, taken * market.spot.recovery_h)
        interruptions = float(taken.sum())
        replicas = np.maximum(replicas - missing, _NO_FLEET)
    weight = np.array([[part_h], [1 - part_h]])
    limit_rps = max(surface.capacity_rps, OVERLOAD * surface.saturation_rps)
    served = np.minimum(demand_rps, replicas * limit_rps)
    at_load = surface.at(served / replicas)
    requests = served * weight
    total = float(requests.sum())

    def served_mean(column: str) -> float:
        values = np.asarray(at_load[column])
        return float((values * requests).sum() / total) if total > 0 else float(values.min())

    return Week(
        ordered=ordered,
        reserved=reserved,
        on_demand=beyond - spot,
        spot=spot,
        missing=missing,
        idle=ordered - wanted,
        demand_rps=demand_rps,
        served_rps=requests.sum(axis=0),
        busy_fraction=(at_load["busy_fraction"] * replicas * weight).sum(axis=0) / ordered,
        capacity_rps=surface.capacity_rps,
        interruptions=interruptions,
        in_flight=float((at_load["batch_mean"] * replicas * weight).sum() / (replicas * weight).sum()),
        ttft_p95_s=served_mean("ttft_p95_s"),
        tpot_p95_s=served_mean("tpot_p95_s"),
    )


def interrupted(spot: FloatArray, market: SpotMarket) -> FloatArray:
    """Spot replicas taken back in each hour [168]; no more than there are."""
    means = (spot * market.interruptions_per_h).tolist()
    counts = [
        poisson(u, mean) if mean > 0 else 0 for u, mean in zip(market.uniforms.tolist(), means, strict=True)
    ]
    return np.minimum(np.array(counts, dtype=np.float64), spot)


def together(weeks: list[Week]) -> Week:
    """Sum of the fleets of all regions; latencies are means over the requests served."""
    if len(weeks) == 1:
        return weeks[0]
    ordered = np.sum([week.ordered for week in weeks], axis=0)
    busy = np.sum([week.ordered * week.busy_fraction for week in weeks], axis=0) / ordered
    served = [float(week.served_rps.sum()) for week in weeks]
    weights = served if sum(served) > 0 else [1.0] * len(weeks)
    return Week(
        ordered=ordered,
        reserved=sum(week.reserved for week in weeks),
        on_demand=np.sum([week.on_demand for week in weeks], axis=0),
        spot=np.sum([week.spot for week in weeks], axis=0),
        missing=np.sum([week.missing for week in weeks], axis=0),
        idle=np.sum([week.idle for week in weeks], axis=0),
        demand_rps=np.sum([week.demand_rps for week in weeks], axis=0),
        served_rps=np.sum([week.served_rps for week in weeks], axis=0),
        busy_fraction=busy,
        capacity_rps=weeks[0].capacity_rps,
        interruptions=sum(week.interruptions for week in weeks),
        in_flight=float(
            np.average([week.in_flight for week in weeks], weights=[w.ordered.sum() for w in weeks])
        ),
        ttft_p95_s=float(np.average([week.ttft_p95_s for week in weeks], weights=weights)),
        tpot_p95_s=float(np.average([week.tpot_p95_s for week in weeks], weights=weights)),
    )
