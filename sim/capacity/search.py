"""The cheapest way to serve a load at a rate, and what lower latency would cost.

Models a purchase: so many replicas of one configuration, paid by the hour. The search

1. refuses what can never serve (`sim.capacity.configurations`), with the reason;
2. simulates one replica of each of the others with few requests, cheapest bound first, and skips those that can
   neither be cheaper nor faster than one that is known already (branch and bound: the bounds are the roofline's);
3. simulates whole fleets of those that might be cheapest, to find the least number of replicas that keeps the goal:
   a router evens out bursts, so a fleet may do with fewer than rate / capacity;
4. simulates again, with many requests, what is cheapest or on the Pareto curve.

A configuration is on the curve if no other costs no more and is as fast. More replicas than needed are points of it
too: they buy latency with money. Predicted step times carry an interval; what it means for capacity, replicas and
cost is `CapacitySurface.capacity_at`, and stands beside each of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from engine.errors import InputError
from engine.utils.message import Message
from engine.utils.progress import Progress, no_progress
from sim.capacity.configurations import Bounds, Configuration, Refused, bounds, can_never_serve
from sim.capacity.goals import Goal, check_goal, judge
from sim.capacity.load_test import replay_at
from sim.capacity.offered_load import OfferedLoad
from sim.capacity.surface import REQUESTS_PER_RATE, CapacitySurface, fleet_capacity, replica_fleet

Latency = Literal["ttft_p95_s", "tpot_p95_s", "e2e_p95_s"]
LATENCIES: tuple[Latency, ...] = ("ttft_p95_s", "tpot_p95_s", "e2e_p95_s")
FEW_REQUESTS = 4000
MORE_REPLICAS = (1.0, 1.25, 1.5, 2.0, 3.0)  # of the fewest that will do: points of the curve
_BUSIEST = (
    0.97  # of the saturation rate, as estimated from few requests: beyond, no replay is long enough to judge
)
_NOISE = 1.05  # what few requests may be off by


@dataclass(frozen=True)
class SearchResult:
    """Configurations that serve the load, by cost, and those that don't."""

    rate_rps: float
    table: pd.DataFrame  # one row per configuration at its fewest replicas, cheapest first
    curve: pd.DataFrame  # Pareto points of cost and latency: rows of the table, some with more replicas
    refused: list[Refused]  # can never serve, or was out of reach in simulation
    skipped: list[Refused]  # can be neither cheapest nor fastest: not simulated

    @property
    def cheapest(self) -> dict[str, Any]:
        """The first row of the table.

        Raises:
            InputError: nothing serves the load; says why of the first.
        """
        if self.table.empty:
            why = f"; {self.refused[0].name}: {self.refused[0].reason}" if self.refused else ""
            raise InputError(f"no configuration can serve this ({len(self.refused)} refused){why}")
        return dict(self.table.iloc[0])


@dataclass
class _Known:
    configuration: Configuration
    surface: CapacitySurface
    replicas: int
    simulated: bool = False  # as a whole fleet

    @property
    def usd_per_hour(self) -> float:
        return self.replicas * self.configuration.price_usd_per_hour

    def least_usd_per_hour(self, rate_rps: float) -> float:
        fewest = _ceil(rate_rps / (_BUSIEST * self.surface.saturation_rps))
        return min(fewest, self.replicas) * self.configuration.price_usd_per_hour


def search(
    load: OfferedLoad,
    goal: Goal,
    rate_rps: float,
    configurations: Sequence[Configuration],
    *,
    against: Latency = "e2e_p95_s",
    requests: int = REQUESTS_PER_RATE,
    seed: int = 0,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Find the cheapest configuration, and the Pareto curve of cost against latency.

    Args:
        load: requests at any rate (see `sim.capacity.offered_load`).
        goal: what must be kept (see `sim.capacity.goals`).
        rate_rps: of all requests.
        configurations: see `sim.capacity.configurations`.
        against: the latency of the curve.
        requests: of a replay that decides.
        seed: of the requests.
        cache_dir: folder of the cache of single replicas; None takes the user's.
        progress: called with (fraction done, what is being done).

    Raises:
        InputError: a bad rate, a goal for a class that doesn't come, or no configuration at all.
    """
    if not 0 < rate_rps < math.inf:
        raise InputError(f"rate: found {rate_rps}, allowed is a number of requests per second above 0")
    if against not in LATENCIES:
        raise InputError(f"latency: found {against!r}, allowed are {', '.join(LATENCIES)}")
    if not configurations:
        raise InputError("configurations: found none, allowed is at least one")
    report = progress or no_progress
    sample = load.at(rate_rps, load.rows or requests, seed)
    check_goal(goal, sample)
    refused, able = [], []
    for number, each in enumerate(configurations):
        report(0.05 * number / len(configurations), each.name)
        reason = can_never_serve(each, sample, goal)
        if reason:
            refused.append(Refused(each.name, reason))
        else:
            able.append((each, bounds(each, sample)))

    def surface(each: Configuration, count: int) -> CapacitySurface:
        fleet = replica_fleet(each.profile, each.scheduler)
        return fleet_capacity(fleet, load, goal, requests=count, seed=seed, cache_dir=cache_dir)

    known: list[_Known] = []
    skipped: list[Refused] = []
    # What is cheap and fast comes first: it spares the simulation of the others.
    able.sort(key=lambda pair: _least_usd_per_hour(pair[0], pair[1], rate_rps) * pair[1].percentile("e2e"))
    for number, (each, bound) in enumerate(able):
        report(0.05 + 0.5 * number / len(able), each.name)
        if why := _beaten(each, bound, known, rate_rps):
            skipped.append(Refused(each.name, why))
            continue
        try:
            found = surface(each, min(FEW_REQUESTS, requests))
        except InputError as error:
            refused.append(Refused(each.name, str(error)))
            continue
        known.append(_Known(each, found, _ceil(rate_rps / found.capacity_rps)))

    _fewest_replicas(known, load, goal, rate_rps, requests, seed, report)
    for number, one in enumerate(chosen := _worth_a_look(known, rate_rps, against)):
        report(0.8 + 0.2 * number / len(chosen), one.configuration.name)
        if requests > FEW_REQUESTS:
            one.surface = surface(one.configuration, requests)
            if not one.simulated:
                one.replicas = _ceil(rate_rps / one.surface.capacity_rps)
    rows = pd.DataFrame([_row(one, one.replicas, rate_rps) for one in known])
    table = rows.sort_values(["usd_per_hour", against], ignore_index=True) if len(rows) else rows
    report(1.0, Message("done"))
    return SearchResult(rate_rps, table, _curve(chosen, rate_rps, against), refused, skipped)


def _beaten(each: Configuration, bound: Bounds, known: list[_Known], rate_rps: float) -> str:
    """The fleet that costs less than this configuration can and is faster than it can be; empty if there is none."""
    least_usd = _least_usd_per_hour(each, bound, rate_rps)
    fastest = {name: bound.percentile(name.split("_")[0]) for name in LATENCIES}
    for other in known:
        if other.usd_per_hour * _NOISE > least_usd:
            continue
        price = other.configuration.price_usd_per_hour
        replicas = max(other.replicas, math.floor(least_usd / price)) if price else other.replicas
        seen = other.surface.at(rate_rps / replicas)
        if not any(float(seen[name]) * _NOISE > fastest[name] for name in LATENCIES):
            return (
                f"costs {least_usd:,.2f} USD per hour or more; {replicas} × ({other.configuration.name}) cost "
                f"{replicas * price:,.2f} and are faster"
            )
    return ""


def _least_usd_per_hour(each: Configuration, bound: Bounds, rate_rps: float) -> float:
    return _ceil(rate_rps / bound.rate_rps) * each.price_usd_per_hour


def _fewest_replicas(
    known: list[_Known],
    load: OfferedLoad,
    goal: Goal,
    rate_rps: float,
    requests: int,
    seed: int,
    report: Progress,
) -> None:
    """Simulate whole fleets until it is clear which is cheapest; sets `replicas` of those that were simulated."""

    def keeps(one: _Known, replicas: int) -> bool:
        fleet = replica_fleet(one.configuration.profile, one.configuration.scheduler, replicas)
        steady, _, _ = replay_at(fleet, load, rate_rps, requests, seed)
        return max(each.strain for each in judge(steady, goal)) <= 1

    best = math.inf
    by_cost = sorted(known, key=lambda one: (one.usd_per_hour, one.configuration.name))
    for number, one in enumerate(by_cost):
        text = Message("fleet of {configuration}", configuration=one.configuration.name)
        report(0.55 + 0.25 * number / len(by_cost), text)
        if one.least_usd_per_hour(rate_rps) > best:
            continue
        price = one.configuration.price_usd_per_hour
        fewest = max(1, _ceil(rate_rps / (_BUSIEST * one.surface.saturation_rps)))
        enough = one.replicas
        if price > 0:  # more than that would not be cheapest
            enough = min(enough, max(fewest, math.floor(best / price + 1e-9))) if best < math.inf else enough
        if not keeps(one, enough):
            if enough < one.replicas:
                continue  # as many as are needed cost more than the best
            while not keeps(one, enough := enough + max(1, enough // 50)):
                pass
        low = fewest - 1
        while enough - low > 1:
            middle = (low + enough) // 2
            if keeps(one, middle):
                enough = middle
            else:
                low = middle
        one.replicas, one.simulated = enough, True
        best = min(best, one.usd_per_hour)


def _worth_a_look(known: list[_Known], rate_rps: float, against: Latency) -> list[_Known]:
    """Configurations on the Pareto curve (the cheapest is), as estimated from few requests."""
    points = _curve(known, rate_rps, against)
    names = set(points["configuration"]) if len(points) else set()
    return [one for one in known if one.configuration.name in names]


def _curve(known: Sequence[_Known], rate_rps: float, against: Latency) -> pd.DataFrame:
    """Points that none beats in both cost and latency, by cost."""
    rows = [
        _row(one, replicas, rate_rps)
        for one in known
        for replicas in sorted({_ceil(one.replicas * more) for more in MORE_REPLICAS})
    ]
    if not rows:
        return pd.DataFrame()
    ordered = pd.DataFrame(rows).sort_values(["usd_per_hour", against], ignore_index=True)
    best_so_far = ordered[against].cummin().shift(fill_value=math.inf)
    return ordered[ordered[against] < best_so_far].reset_index(drop=True)


def _row(one: _Known, replicas: int, rate_rps: float) -> dict[str, Any]:
    each, surface = one.configuration, one.surface
    profile, price = each.profile, each.price_usd_per_hour
    seen = surface.at(rate_rps / replicas)
    low_rps, high_rps = capacity_interval(each, surface)
    usd_per_hour = replicas * price
    tokens_per_s = rate_rps * (surface.prompt_tokens_mean + surface.output_tokens_mean)
    # More replicas than the fewest are a choice, whatever a replica does.
    more = replicas / _ceil(rate_rps / surface.capacity_rps)
    fewest, most = (
        price * max(1, _ceil(more * rate_rps / rate)) if rate > 0 else math.inf
        for rate in (high_rps, low_rps)
    )
    return {
        "configuration": each.name,
        "kind": profile.kind,
        "hardware": profile.hardware.name,
        "accelerators": profile.method.get("tensor_parallel", 1),
        "precision": profile.method.get("precision", profile.model.dtype),
        "engine": each.engine,
        "max_running_requests": each.scheduler.max_running_requests,
        "max_step_tokens": each.scheduler.max_step_tokens,
        "kv_cache_tokens": each.scheduler.cache_tokens,
        "replicas": replicas,
        "usd_per_hour": usd_per_hour,
        "usd_per_hour_low": min(fewest, usd_per_hour),
        "usd_per_hour_high": max(most, usd_per_hour),
        "usd_per_mtok": usd_per_hour / 3600 / tokens_per_s * 1e6,
        "usd_per_mtok_output": usd_per_hour / 3600 / (rate_rps * surface.output_tokens_mean) * 1e6,
        **{name: float(seen[name]) for name in LATENCIES},
        "busy_fraction": float(seen["busy_fraction"]),
        "capacity_used": rate_rps / replicas / surface.capacity_rps,
        "capacity_rps": surface.capacity_rps,
        "capacity_low_rps": low_rps,
        "capacity_high_rps": high_rps,
        "saturation_rps": surface.saturation_rps,
        "requests_per_rate": surface.provenance["requests_per_rate"],
        "fleet_simulated": one.simulated and replicas == one.replicas,
    }


def capacity_interval(
    configuration: Configuration, surface: CapacitySurface, level: float = 0.9
) -> tuple[float, float]:
    """(low, high) capacity between which the interval of the profile's step times, and chance, leave it.

    The step is a decode step of the batch that runs at the capacity. NaN for a profile without an interval.
    """
    profile = configuration.profile
    batch = float(np.interp(surface.capacity_rps, surface.table["rate_rps"], surface.table["batch_mean"]))
    context = round(surface.prompt_tokens_mean + surface.output_tokens_mean / 2)
    contexts = [context] * max(1, round(batch))
    low_s, high_s = profile.step_time_interval(decode_contexts=contexts, level=level)
    if not math.isfinite(high_s):
        return math.nan, math.nan
    time_s = profile.step_time(decode_contexts=contexts)
    # Two independent causes: their relative widths add in squares.
    chance_low = 1 - surface.capacity_low_rps / surface.capacity_rps
    chance_high = surface.capacity_high_rps / surface.capacity_rps - 1
    slow = 1 - surface.capacity_at(high_s / time_s) / surface.capacity_rps
    fast = surface.capacity_at(low_s / time_s) / surface.capacity_rps - 1
    return (
        surface.capacity_rps * max(0.0, 1 - math.hypot(slow, chance_low)),
        surface.capacity_rps * (1 + math.hypot(fast, chance_high)),
    )


def _ceil(value: float) -> int:
    """Rounded up, at least 1; a hair above a whole number counts as it."""
    return max(1, math.ceil(value - 1e-9))
