"""Small experiments with a serving fleet: try a load, watch a batch at work, compare what hardware gives for a dollar.

Each is one replay or one search of the request level (`sim.serving.replay`, `sim.capacity.search`) with what a person
wants to read off it. Tokens per dollar are those of the highest rate that keeps the latency objectives, prompt and
output tokens together, over the price of the machine for that time: requests/s · tokens · 3600 / (USD per hour).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from engine.batch import SchedulerConfig
from engine.errors import InputError
from engine.profile.profile import Profile
from engine.utils.message import Message
from engine.utils.progress import Progress, no_progress, part_of
from sim.capacity.configurations import Configuration, Refused
from sim.capacity.goals import Goal, Objective
from sim.capacity.offered_load import OfferedLoad, traffic_load
from sim.capacity.search import FEW_REQUESTS, Latency, SearchResult, capacity_interval, search
from sim.capacity.surface import fleet_capacity, replica_fleet
from sim.serving.fleet_config import Autoscaler, Fleet
from sim.serving.metrics import summary
from sim.serving.replay import replay_fleet
from sim.serving.stats import ReplayStats
from sim.serving.timeline import timeline

MAX_REQUESTS = 100_000


@dataclass(frozen=True)
class LoadTrial:
    """A load on a fleet: every request's times, what the replicas did, and the field's metrics of both."""

    rate_rps: float
    fleet: Fleet
    objective: Objective
    frame: pd.DataFrame  # as `sim.serving.replay.replay_fleet` gives it
    stats: ReplayStats
    figures: dict[str, float]  # as `sim.serving.metrics.summary` gives it


@dataclass(frozen=True)
class BatchWatch:
    """One replica step by step: its record of steps, the requests, and its limits."""

    rate_rps: float
    steps: pd.DataFrame
    frame: pd.DataFrame
    scheduler: SchedulerConfig

    @property
    def preemptions(self) -> int:
        """Preemptions: requests removed from the batch because the KV cache was full."""
        return int(self.frame["preemptions"].sum())

    def trace_json(self) -> bytes:
        """The time line as Chrome trace JSON, which ui.perfetto.dev opens."""
        events = timeline(self.steps, self.frame)
        return json.dumps({"displayTimeUnit": "ms", "traceEvents": events}, allow_nan=False).encode()


@dataclass(frozen=True)
class HardwareComparison:
    """Configurations for a load: capacity per dollar of one replica each, and the fleets that a search ranked."""

    per_dollar: pd.DataFrame  # best first; PER_DOLLAR columns
    found: SearchResult
    refused: list[Refused]


PER_DOLLAR = (
    *(
        "configuration",
        "kind",
        "hardware",
        "usd_per_hour",
        "capacity_rps",
        "capacity_low_rps",
        "capacity_high_rps",
    ),
    *("requests_per_usd", "tokens_per_usd", "tokens_per_usd_low", "tokens_per_usd_high"),
)


def profile_load(profile: Profile, traffic: dict[str, float], cache_tokens: int | None = None) -> OfferedLoad:
    """A traffic mix, its requests cut to what fits the profile's model and KV cache.

    Raises:
        InputError: unknown class, bad share.
    """
    scheduler = profile.scheduler_config()
    longest = min(profile.model.max_context_tokens, cache_tokens or scheduler.cache_tokens)
    return traffic_load(traffic, max_context_tokens=longest, block_tokens=scheduler.block_tokens)


def try_load(
    profile: Profile,
    traffic: dict[str, float],
    rate_rps: float,
    objective: Objective,
    *,
    replicas: int = 1,
    router: str = "least_outstanding",
    requests: int = 4000,
    most_replicas: int | None = None,
    outstanding_per_replica: float | None = None,
    price_usd_per_hour: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> LoadTrial:
    """Replay requests of a traffic mix on a fleet of equal replicas.

    Args:
        profile: step times and limits of a replica.
        traffic: {traffic class: share of requests}.
        rate_rps: mean arrival rate; Poisson.
        objective: what each request must meet to count as goodput.
        replicas: at the start, and at least.
        router: see `sim.serving.routing`.
        requests: how many.
        most_replicas: an autoscaler may go up to so many; None: the fleet stays.
        outstanding_per_replica: what the autoscaler aims at; None: half of what a batch may hold.
        price_usd_per_hour: of a replica; None takes the profile's.
        seed: of the requests.
        progress: called with (fraction done, what is being done).

    Raises:
        InputError: a value that is not allowed.
    """
    report = progress or no_progress
    if not 1 <= requests <= MAX_REQUESTS:
        raise InputError(f"requests: found {requests}, allowed is 1 to {MAX_REQUESTS:,}")
    report(0.0, Message("drawing requests"))
    asked = profile_load(profile, traffic).at(rate_rps, requests, seed)
    base = replica_fleet(profile, replicas=1)
    kind = base.kinds[0]
    try:
        scaler = None
        if most_replicas is not None:
            target = outstanding_per_replica or kind.scheduler.max_running_requests / 2
            scaler = Autoscaler(target=target, min_replicas=replicas, max_replicas=most_replicas)
        settings: dict[str, Any] = {"replicas": replicas, "autoscaler": scaler}
        if price_usd_per_hour is not None:
            settings["price_usd_per_hour"] = price_usd_per_hour
        # Built anew, not copied: only so are the values checked.
        kind = type(kind)(**{**dict(kind), **settings})
        fleet = Fleet(kinds=(kind,), router=router, seed=seed)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "fleet"
        raise InputError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
    report(0.2, Message("simulating the fleet"))
    frame, stats = replay_fleet(asked, fleet)
    report(0.9, Message("reading the times off"))
    profiles = [each.priced_profile for each in stats.kinds]
    figures = summary(
        frame,
        stats,
        objective,
        num_blocks=kind.scheduler.num_blocks,
        profiles=[each for each in profiles if each is not None],
    )
    return LoadTrial(rate_rps, fleet, objective, frame, stats, figures)


def watch_batch(
    profile: Profile,
    traffic: dict[str, float],
    rate_rps: float,
    *,
    requests: int = 300,
    cache_share: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> BatchWatch:
    """Replay a few hundred requests on one replica and keep every step.

    Args:
        profile: step times and limits of the replica.
        traffic: {traffic class: share of requests}.
        rate_rps: mean arrival rate; Poisson.
        requests: how many.
        cache_share: of the profile's KV cache that there is; with less, requests are preempted.
        seed: of the requests.
        progress: called with (fraction done, what is being done).

    Raises:
        InputError: a value that is not allowed.
    """
    report = progress or no_progress
    if not 0 < cache_share <= 1:
        raise InputError(f"cache_share: found {cache_share}, allowed is a share of the KV cache in (0, 1]")
    report(0.0, Message("simulating the replica"))
    config = profile.scheduler_config()
    config = replace(config, num_blocks=max(1, math.ceil(config.num_blocks * cache_share)))
    asked = profile_load(profile, traffic, config.cache_tokens).at(rate_rps, requests, seed)
    frame, stats = replay_fleet(asked, replica_fleet(profile, config), record_steps=True)
    assert stats.records is not None
    return BatchWatch(rate_rps, stats.records, frame, config)


def compare_hardware(
    load: OfferedLoad,
    goal: Goal,
    rate_rps: float,
    configurations: Sequence[Configuration],
    *,
    against: Latency = "e2e_p95_s",
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> HardwareComparison:
    """Capacity per dollar of each configuration, and the cheapest fleets for a rate.

    Args:
        load: requests at any rate.
        goal: latency limits that count.
        rate_rps: that the fleets must serve.
        configurations: measured or predicted.
        against: latency of the Pareto curve.
        cache_dir: of known capacities; None takes the user's.
        progress: called with (fraction done, what is being done); an exception from it ends the search.

    Raises:
        InputError: as `sim.capacity.search.search`.
    """
    report = progress or no_progress
    rows, refused = [], []
    for number, each in enumerate(configurations):
        report(0.5 * number / len(configurations), each.name)
        try:
            rows.append(_per_dollar(each, load, goal, cache_dir))
        except InputError as error:
            refused.append(Refused(each.name, str(error)))
    found = search(
        load,
        goal,
        rate_rps,
        configurations,
        against=against,
        requests=FEW_REQUESTS,
        cache_dir=cache_dir,
        progress=part_of(report, 0.5, 1.0),
    )
    table = pd.DataFrame(rows, columns=list(PER_DOLLAR))
    table = table.sort_values(["tokens_per_usd", "configuration"], ascending=[False, True], ignore_index=True)
    known = {each.name for each in found.refused}
    return HardwareComparison(
        table, found, [*found.refused, *(each for each in refused if each.name not in known)]
    )


def _per_dollar(each: Configuration, load: OfferedLoad, goal: Goal, cache_dir: Path | None) -> dict[str, Any]:
    fleet = replica_fleet(each.profile, each.scheduler)
    # As few requests as the search looks at first: the surface is then known to it.
    surface = fleet_capacity(fleet, load, goal, requests=FEW_REQUESTS, cache_dir=cache_dir)
    low_rps, high_rps = capacity_interval(each, surface)
    price = each.price_usd_per_hour
    per_usd = 3600 / price if price > 0 else math.inf
    tokens = surface.prompt_tokens_mean + surface.output_tokens_mean
    return {
        "configuration": each.name,
        "kind": each.profile.kind,
        "hardware": each.profile.hardware.name,
        "usd_per_hour": price,
        "capacity_rps": surface.capacity_rps,
        "capacity_low_rps": low_rps,
        "capacity_high_rps": high_rps,
        "requests_per_usd": surface.capacity_rps * per_usd,
        "tokens_per_usd": surface.capacity_rps * per_usd * tokens,
        "tokens_per_usd_low": low_rps * per_usd * tokens,
        "tokens_per_usd_high": high_rps * per_usd * tokens,
    }
