"""The bridge between requests and the company: what one replica sustains, at which latency.

The company level thinks in hours and never simulates single requests. It asks for a capacity surface: a ladder of
arrival rates, each replayed on one replica (`sim.serving`) with the same requests (common random numbers), gives
latency percentiles by rate. More load cannot mean less latency, so what noise is left in the percentiles is taken
out by isotonic regression; the capacity is the highest rate at which the 95th percentiles keep the objective. A fleet
behind a router that balances load is taken as so many replicas at an even share of the rate, which is slightly
pessimistic: pooling evens out bursts.

A surface depends only on the profile, the traffic, the objective and the scheduler, so it is kept in the user's
cache under the hash of these inputs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from engine.errors import InputError
from engine.files import cache_dir as default_cache_dir
from engine.files import write_atomically
from engine.profile import Profile
from engine.scheduler import SchedulerConfig
from sim.serving import latencies, replay, replay_with_stats
from sim.workload import generate, traffic_mix

METHOD_VERSION = 3  # a change of the method makes every cached surface stale
REQUESTS_PER_RATE = (
    5000  # near saturation waiting times are correlated: fewer make the capacity a matter of luck
)
LOADS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.88, 0.95)  # of the saturation rate
_REFINEMENTS = 4  # bisections between the last rate that keeps the objective and the first that doesn't
_LATENCIES = ("ttft_p50_s", "ttft_p95_s", "tpot_p50_s", "tpot_p95_s", "e2e_p95_s")
_WAITING = ("ttft_p50_s", "ttft_p95_s", "e2e_p95_s")  # what a queue in front of the replica adds to
_WORK = ("busy_fraction", "output_tokens_per_s")  # nothing at rate 0
_COLUMNS = ("rate_rps", "load", *_LATENCIES, "busy_fraction", "output_tokens_per_s", "batch_mean")

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Objective:
    """Latency that customers are promised: 95th percentiles of the time to first token and per output token."""

    ttft_p95_s: float
    tpot_p95_s: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < math.inf:
                raise InputError(f"objective.{name}: found {value}, allowed is a time above 0 s")


@dataclass
class CapacitySurface:
    """What one replica sustains of a traffic mix; `table` has one row per rate that was simulated."""

    capacity_rps: float  # highest rate that keeps the objective
    saturation_rps: float  # what comes out when the queue never empties
    prompt_tokens_mean: float
    output_tokens_mean: float
    table: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)

    def at(self, rate_rps: ArrayLike) -> dict[str, NDArray[np.float64]]:
        """Columns of the table at any arrival rates (array of any shape), interpolated linearly.

        Below the lowest simulated rate latency is that at the lowest, and work shrinks to 0 at rate 0. Above the
        highest one throughput, batch and time per output token stay, the replica's busy fraction grows to 1, and
        the times that hold waiting (TTFT, E2E) grow with 1/(1 − load), the law of a queue near saturation, up to
        100 times: beyond saturation a queue grows without end, so whoever asks there must refuse requests.
        """
        rates = np.asarray(rate_rps, dtype=np.float64)
        known = self.table["rate_rps"].to_numpy()
        from_zero = np.concatenate([[0.0], known])
        result = {
            name: np.interp(rates, from_zero, np.concatenate([[0.0], self.table[name].to_numpy()]))
            if name in _WORK
            else np.interp(rates, known, self.table[name].to_numpy())
            for name in self.table.columns
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
    """The capacity surface of one replica, from the cache or simulated in a few seconds.

    Args:
        profile: step times and scheduler settings of the replica.
        traffic: {traffic class: share of requests} (see `sim.workload`).
        objective: latency that a sustained rate must keep.
        scheduler: other limits than those that the profile was measured with.
        seed: of the requests.
        cache_dir: folder of the cache; None takes the user's.
        progress: called with (fraction done, what is being done).

    Raises:
        InputError: unknown traffic class, or an objective that not even a single request keeps.
    """
    report = progress or (lambda _fraction, _what: None)
    config = scheduler or profile.scheduler_config()
    inputs = {
        "method": METHOD_VERSION,
        "profile": profile.content_hash,
        "traffic": [{"share": share, **asdict(kind)} for kind, share in traffic_mix(traffic)],
        "objective": asdict(objective),
        "scheduler": asdict(config),
        "seed": seed,
    }
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    path = (cache_dir or default_cache_dir()) / "surfaces" / f"{key[:32]}.json"
    surface = _read(path, inputs)
    if surface is None:
        surface = _simulate(profile, inputs, objective, config, seed, report)
        with contextlib.suppress(
            OSError
        ):  # a cache that can't be written costs seconds next time, nothing else
            write_atomically(path, _as_json(surface))
    report(1.0, "capacity known")
    return surface


def _simulate(
    profile: Profile,
    inputs: dict[str, Any],
    objective: Objective,
    config: SchedulerConfig,
    seed: int,
    report: Progress,
) -> CapacitySurface:
    times = profile.step_time_model()
    longest = min(profile.model.max_context_tokens, config.cache_tokens)

    def requests(rate_rps: float) -> pd.DataFrame:
        return generate(
            {entry["name"]: entry["share"] for entry in inputs["traffic"]},
            rate_rps,
            requests=REQUESTS_PER_RATE,
            rng=seed,
            max_context_tokens=longest,
            block_tokens=config.block_tokens,
            stratified=True,
        )

    report(0.0, "simulating a replica at its limit")
    backlog = requests(1.0).assign(arrived_s=0.0)
    saturation_rps = _middle_rate(replay(backlog, times, config)["finished_s"].to_numpy())
    output_mean = float(backlog["output_tokens"].mean())

    def measure(rate_rps: float) -> dict[str, float]:
        frame, stats = replay_with_stats(requests(rate_rps), times, config)
        # The first tenth finds an empty replica, the last leaves one: neither is the steady state.
        edge = REQUESTS_PER_RATE // 10
        times_s = latencies(frame[edge:-edge])
        return {
            "rate_rps": rate_rps,
            "load": rate_rps / saturation_rps,
            **{name: _percentile(times_s, name) for name in _LATENCIES},
            "busy_fraction": stats.busy_fraction,
            "output_tokens_per_s": rate_rps * output_mean,
            "batch_mean": stats.batch_mean,
        }

    rows = []
    for number, load in enumerate(LOADS):
        report(0.1 + 0.65 * number / len(LOADS), f"simulating a replica at {load:.0%} load")
        rows.append(measure(load * saturation_rps))
    report(0.75, "finding the capacity")
    table = _monotone(_refine(rows, objective, measure))
    return CapacitySurface(
        capacity_rps=_capacity(table, objective),
        saturation_rps=saturation_rps,
        prompt_tokens_mean=float(backlog["prompt_tokens"].mean()),
        output_tokens_mean=output_mean,
        table=table,
        provenance={**inputs, "requests_per_rate": REQUESTS_PER_RATE},
    )


def _percentile(times_s: pd.DataFrame, name: str) -> float:
    """The percentile that a column's name asks for: ttft_p95_s is the 95th of ttft_s."""
    measure, percent, unit = name.split("_")
    return float(times_s[f"{measure}_{unit}"].quantile(int(percent[1:]) / 100))


def _refine(
    rows: list[dict[str, float]], objective: Objective, measure: Callable[[float], dict[str, float]]
) -> list[dict[str, float]]:
    """Add rates by bisection between the last that keeps the objective and the first that doesn't."""

    def keeps(row: dict[str, float]) -> bool:
        return row["ttft_p95_s"] <= objective.ttft_p95_s and row["tpot_p95_s"] <= objective.tpot_p95_s

    failing = next((number for number, row in enumerate(rows) if not keeps(row)), None)
    if failing == 0:
        raise InputError(
            f"latency objective ttft_p95_s {objective.ttft_p95_s:g}, tpot_p95_s {objective.tpot_p95_s:g}: the best "
            f"achievable, on an almost idle replica, is {rows[0]['ttft_p95_s']:.3g} and {rows[0]['tpot_p95_s']:.3g}; "
            "allowed are objectives above that"
        )
    if failing is None:
        return rows
    low, high = rows[failing - 1]["rate_rps"], rows[failing]["rate_rps"]
    for _ in range(_REFINEMENTS):
        row = measure((low + high) / 2)
        rows = [*rows, row]
        low, high = (row["rate_rps"], high) if keeps(row) else (low, row["rate_rps"])
    return rows


def _capacity(table: pd.DataFrame, objective: Objective) -> float:
    """Where the first of the two percentiles, interpolated over the rates, reaches its objective."""
    rates = table["rate_rps"].to_numpy()
    found = rates[-1]
    for name, limit in asdict(objective).items():
        values = table[name].to_numpy()
        above = int(np.searchsorted(values, limit, side="right"))  # the first row beyond the objective
        if above == 0:
            found = rates[0]  # only after smoothing: the lowest rate kept the objective as it was measured
        elif above < len(rates):
            part = (limit - values[above - 1]) / (values[above] - values[above - 1])
            found = min(found, rates[above - 1] + part * (rates[above] - rates[above - 1]))
    return float(found)


def _middle_rate(finished_s: NDArray[np.float64]) -> float:
    """Requests per second between the first and the last fifth of the finishes."""
    ordered = np.sort(finished_s)
    first, last = len(ordered) // 5, len(ordered) * 4 // 5
    return float((last - first) / (ordered[last] - ordered[first]))


def _monotone(rows: list[dict[str, float]]) -> pd.DataFrame:
    """Rows in order of rate; latencies made to never fall with the rate (least squares, pool adjacent violators)."""
    from scipy.optimize import isotonic_regression  # slow to import, and a cached surface doesn't need it

    ordered = pd.DataFrame(rows).sort_values("rate_rps", ignore_index=True)[list(_COLUMNS)]
    for name in _LATENCIES:
        ordered[name] = isotonic_regression(ordered[name].to_numpy()).x
    return ordered


def _as_json(surface: CapacitySurface) -> str:
    content = {**vars(surface), "table": surface.table.to_dict(orient="list")}
    return json.dumps(content, indent=1, allow_nan=False)


def _read(path: Path, inputs: dict[str, Any]) -> CapacitySurface | None:
    """A cached surface of the same inputs; None if there is none, or the file is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if any(content["provenance"][name] != value for name, value in inputs.items()):
            return None
        table = pd.DataFrame(content.pop("table"))[list(_COLUMNS)].astype(np.float64)
        return CapacitySurface(table=table, **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
