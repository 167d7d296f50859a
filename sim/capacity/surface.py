"""The bridge between requests and the company: what a replica, or a fleet, sustains, and at which latency.

The company level thinks in hours and never simulates single requests. It asks for a capacity surface: a ladder of
arrival rates (`sim.capacity.load_test`), each replayed on one replica with the same requests, gives latency
percentiles by rate; the capacity is the highest rate at which the objective is kept. A fleet behind a router that
balances load is taken as so many replicas at an even share of the rate, which is slightly pessimistic: pooling evens
out bursts. `fleet_capacity` asks the same of a whole fleet, for any load and any goal, without that step.

The capacity's interval: batch means give the relative error h of a percentile near the capacity; its ends are the
rates at which the percentile, taken as wrong by that much, would reach the objective. Seeds differ by about 1 %.
Beside chance stands the step-time model's own error. If all steps took f times as long, the same fleet would live
f times as slowly: latency f·L at rate λ/f. So `capacity_at` reads off the same curve what a slower fleet sustains.

A surface depends only on the fleet, the load and the goal, so it is kept in the user's cache under the hash of these.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from engine.batch import SchedulerConfig
from engine.profile.profile import Profile
from engine.utils.files import cache_dir as default_cache_dir
from engine.utils.files import write_atomically
from engine.utils.message import Message
from engine.utils.progress import Progress, no_progress
from sim.capacity.goals import Goal, Limit, MetShare, Objective, check_goal, goal_content, goal_of
from sim.capacity.load_test import COLUMNS, LoadTest, run_load_test
from sim.capacity.offered_load import OfferedLoad, traffic_load
from sim.serving.fleet_config import Fleet, ReplicaSpec
from sim.workload.traffic_classes import traffic_mix

__all__ = [
    "CapacitySurface",
    "Limit",
    "MetShare",
    "Objective",
    "capacity_surface",
    "fleet_capacity",
    "goal_of",
    "replica_fleet",
]

METHOD_VERSION = 4  # a change of the method makes every cached surface stale
REQUESTS_PER_RATE = 40_000  # near saturation: fewer make the capacity random
FEW_REQUESTS = 4_000  # at low load
_WAITING = ("ttft_p50_s", "ttft_p95_s", "e2e_p95_s")  # what a queue in front of the replica adds to
_WORK = ("busy_fraction", "output_tokens_per_s")  # nothing at rate 0


@dataclass
class CapacitySurface:
    """What one replica (or fleet) sustains of a load; `table` has one row per rate that was simulated."""

    capacity_rps: float  # highest rate that keeps the objective
    saturation_rps: float  # what comes out when the queue never empties
    prompt_tokens_mean: float
    output_tokens_mean: float
    table: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)
    capacity_low_rps: float = math.nan  # 95 % interval of the capacity: chance of the simulation alone
    capacity_high_rps: float = math.nan
    strains: dict[str, list[float]] = field(
        default_factory=dict
    )  # of each part of the goal, by row of the table

    def at(self, rate_rps: ArrayLike) -> dict[str, NDArray[np.float64]]:
        """Columns of the table at any arrival rates (array of any shape), interpolated linearly.

        Below the lowest simulated rate latency is that at the lowest, and work shrinks to 0 at rate 0. Above the
        highest one throughput, batch and time per output token stay, the replica's busy fraction grows to 1, and
        the times that hold waiting (TTFT, E2E) grow with 1/(1 − load), the law of a queue near saturation, up to
        100 times: beyond saturation a queue grows without end, so the caller must refuse requests there.
        """
        rates = np.asarray(rate_rps, dtype=np.float64)
        known = self._columns["rate_rps"]
        from_zero = np.concatenate([[0.0], known])
        result = {
            name: np.interp(rates, from_zero, np.concatenate([[0.0], column]))
            if name in _WORK
            else np.interp(rates, known, column)
            for name, column in self._columns.items()
            if name not in ("rate_rps", "load")
        }
        highest = min(known[-1] / self.saturation_rps, 0.99)
        slack = np.maximum(1 - rates / self.saturation_rps, 0.01 * (1 - highest))
        beyond = np.maximum(np.where(rates > known[-1], (1 - highest) / slack, 1.0), 1.0)
        for name in _WAITING:
            result[name] = result[name] * beyond
        result["busy_fraction"] = np.where(
            rates > known[-1],
            np.minimum(np.maximum(result["busy_fraction"], rates / self.saturation_rps), 1.0),
            result["busy_fraction"],
        )
        return {"rate_rps": rates, "load": rates / self.saturation_rps, **result}

    @cached_property
    def _columns(self) -> dict[str, NDArray[np.float64]]:
        """The table's columns as arrays: months ask for them by the hundred."""
        return {str(name): self.table[name].to_numpy() for name in self.table.columns}

    def capacity_at(self, slowdown: float) -> float:
        """The highest rate if every step took `slowdown` times as long; 0 if not even an idle fleet keeps the goal.

        Exact where arrivals have no time scale of their own (Poisson, or gamma gaps); bursts and think times have one.
        """
        return _crossing(
            self.table["rate_rps"].to_numpy(), self.strains, dict.fromkeys(self.strains, 1 / slowdown)
        ) / (slowdown)


def capacity_surface(
    profile: Profile,
    traffic: Mapping[str, float],
    objective: Objective,
    scheduler: SchedulerConfig | None = None,
    *,
    seed: int = 0,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> CapacitySurface:
    """The capacity surface of one replica, from the cache or simulated in about two seconds.

    Args:
        profile: step times and scheduler settings of the replica.
        traffic: {traffic class: share of requests} (see `sim.workload.generate`).
        objective: latency that a sustained rate must keep.
        scheduler: other limits than those that the profile was measured with.
        seed: of the requests.
        cache_dir: folder of the cache; None takes the user's.
        progress: called with (fraction done, what is being done).

    Raises:
        InputError: unknown traffic class, or an objective that not even a single request keeps.
    """
    config = scheduler or profile.scheduler_config()
    load = traffic_load(
        traffic,
        max_context_tokens=min(profile.model.max_context_tokens, config.cache_tokens),
        block_tokens=config.block_tokens,
    )
    inputs = {
        "profile": profile.content_hash,
        "traffic": [{"share": share, **asdict(kind)} for kind, share in traffic_mix(traffic)],
        "objective": asdict(objective),
        "scheduler": asdict(config),
    }
    fleet = replica_fleet(profile, config)
    return _known_or_simulated(
        inputs, fleet, load, goal_of(objective), REQUESTS_PER_RATE, seed, cache_dir, progress
    )


def fleet_capacity(
    fleet: Fleet,
    load: OfferedLoad,
    goal: Goal,
    *,
    requests: int | None = None,
    seed: int = 0,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> CapacitySurface:
    """The highest rate that any fleet sustains of any load, and its latencies by rate.

    A fleet that scales is measured up to its largest size; its time-outs and limits are part of it, and a refused
    request is infinitely late. The search ends at 95 % of the saturation rate. Step times that are no
    dataclass of plain numbers can't be told apart by content: such a fleet is simulated anew each time.

    Args:
        fleet: replicas of any kinds and roles (see `sim.serving.fleet_config`).
        load: requests at any rate (see `sim.capacity.offered_load`).
        goal: limits on latency, or a share of requests that meet all (see `sim.capacity.goals`).
        requests: of each replay that decides; None takes 40,000. Fewer are faster, and noisier by 1/√requests.
        seed: of the requests.
        cache_dir: folder of the cache; None takes the user's.
        progress: called with (fraction done, what is being done).

    Raises:
        InputError: a goal for a class that doesn't come, a request that can never fit, or a goal out of reach.
    """
    chosen = tuple(goal)
    check_goal(chosen, load.at(1.0, load.rows or 2000, seed))
    kinds = [_kind_content(kind) for kind in fleet.kinds]
    inputs: dict[str, Any] | None = {
        "fleet": fleet.model_dump(mode="json", exclude={"kinds"}),
        "kinds": kinds,
        "load": load.content,
        "goal": goal_content(chosen),
    }
    if None in kinds:
        inputs = None
    return _known_or_simulated(
        inputs, fleet, load, chosen, requests or REQUESTS_PER_RATE, seed, cache_dir, progress
    )


def replica_fleet(profile: Profile, scheduler: SchedulerConfig | None = None, replicas: int = 1) -> Fleet:
    """A fleet of equal replicas of a profile behind the default router."""
    kind = ReplicaSpec(
        name=profile.model.name,
        step_time=profile.step_time_model(),
        scheduler=scheduler or profile.scheduler_config(),
        replicas=replicas,
        price_usd_per_hour=profile.hardware.price_usd_per_hour,
        profile=profile,
    )
    return Fleet(kinds=(kind,))


def _known_or_simulated(
    inputs: dict[str, Any] | None,
    fleet: Fleet,
    load: OfferedLoad,
    goal: Goal,
    requests: int,
    seed: int,
    cache_dir: Path | None,
    progress: Progress | None,
) -> CapacitySurface:
    report = progress or no_progress
    path = None
    provenance: dict[str, Any] = {"method": METHOD_VERSION, "seed": seed, "requests_per_rate": requests}
    if inputs is not None:
        # As JSON reads it back: tuples are lists there.
        provenance = json.loads(
            json.dumps({**provenance, "few_requests": FEW_REQUESTS, **inputs}, sort_keys=True)
        )
        key = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()
        path = (cache_dir or default_cache_dir()) / "surfaces" / f"{key[:32]}.json"
        if (known := _read(path, provenance)) is not None:
            report(1.0, Message("capacity known"))
            return known
    test = run_load_test(fleet, load, goal, requests, min(FEW_REQUESTS, requests), seed, report)
    surface = _surface(test, provenance)
    if path is not None:
        with contextlib.suppress(
            OSError
        ):  # a cache that can't be written costs seconds next time, nothing else
            write_atomically(path, _as_json(surface))
    report(1.0, Message("capacity known"))
    return surface


def _surface(test: LoadTest, provenance: dict[str, Any]) -> CapacitySurface:
    table, strains, noise = test.table(), test.strains(), test.noise()
    rates = table["rate_rps"].to_numpy()

    def rate(sign: int) -> float:
        return _crossing(rates, strains, {label: 1 / (1 + sign * noise[label]) for label in strains})

    capacity_rps = rate(0)
    return CapacitySurface(
        # Only after smoothing can the lowest rate miss the goal: as it was measured it kept it.
        capacity_rps=capacity_rps or float(rates[0]),
        saturation_rps=test.saturation_rps,
        prompt_tokens_mean=float(test.backlog["prompt_tokens"].mean()),
        output_tokens_mean=float(test.backlog["output_tokens"].mean()),
        table=table,
        provenance=provenance,
        capacity_low_rps=min(rate(1), capacity_rps),
        capacity_high_rps=max(rate(-1), capacity_rps),
        strains=strains,
    )


def _crossing(
    rates: NDArray[np.float64], strains: Mapping[str, list[float]], levels: Mapping[str, float]
) -> float:
    """Where the first strain, interpolated over the rates, exceeds its level; 0 if it does at the lowest."""
    found = float(rates[-1])
    for label, level in levels.items():
        values = np.asarray(strains[label])
        above = int(np.searchsorted(values, level, side="right"))  # the first row beyond
        if above == 0:
            return 0.0
        if above < len(rates):
            part = (level - values[above - 1]) / (values[above] - values[above - 1])
            found = min(found, float(rates[above - 1] + part * (rates[above] - rates[above - 1])))
    return found


def _kind_content(kind: ReplicaSpec) -> dict[str, Any] | None:
    """A kind of replicas as JSON values; None if its step times are not plain data."""
    if not is_dataclass(kind.step_time) or isinstance(kind.step_time, type):
        return None
    content = {
        **kind.model_dump(
            mode="json", exclude={"step_time", "scheduler", "profile", "name", "price_usd_per_hour"}
        ),
        "scheduler": asdict(kind.scheduler),
        "step_time": {"kind": type(kind.step_time).__qualname__, **asdict(kind.step_time)},
    }
    try:
        json.dumps(content, allow_nan=False)
    except (TypeError, ValueError):
        return None
    return content


def _as_json(surface: CapacitySurface) -> str:
    content = {part.name: getattr(surface, part.name) for part in fields(surface)}
    content["table"] = surface.table.to_dict(orient="list")
    return json.dumps(content, indent=1, allow_nan=False)


def _read(path: Path, inputs: dict[str, Any]) -> CapacitySurface | None:
    """A cached surface of the same inputs; None if there is none, or the file is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["provenance"] != inputs:
            return None
        table = pd.DataFrame(content.pop("table"))[list(COLUMNS)].astype(np.float64)
        return CapacitySurface(table=table, **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
