"""The metrics of LLM serving, from the times of requests on the simulated clock.

- TTFT, time to first token: first token − arrival. E2E: last token − arrival. Queue: first time in a batch − arrival.
- TPOT, time per output token after the first: (last − first token) / (output tokens − 1).
- ITL, inter-token latency: the gap between two tokens of a request. A replay jumps over many steps at once and keeps
  no time per token, so the mean gap of a request is its TPOT; the distribution of single gaps comes from the record
  of steps, where a step is a gap for each request that decodes in it. Within a jump steps count as equally long, and
  a gap that holds a preemption or a step without decodes is not seen as one.
- Goodput: requests per second that finish and meet every limit of their objective (Zhong et al. 2024, DistServe).
  A request that didn't finish never counts.
- KV occupancy: blocks held / blocks there, averaged over the time in steps.
- Little's law, L = λW (Little 1961), as a check of the books.

Percentiles interpolate linearly. Intervals are in `sim.serving.batch_means`, what the hardware gave in
`sim.serving.hardware_use`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from engine.errors import InputError
from engine.profile.profile import Profile
from sim.serving.batch_means import BATCHES, batch_means
from sim.serving.hardware_use import hardware_use
from sim.serving.replica_tables import STATUSES
from sim.serving.stats import ReplayStats

PERCENTILES = (50, 95, 99)
MEASURES = ("ttft", "tpot", "e2e", "queue")


class LatencyObjective(Protocol):
    """Latency limits that a request must meet to count as goodput (see `sim.capacity.goals.Objective`)."""

    @property
    def ttft_p95_s(self) -> float:
        """Time to the first token."""

    @property
    def tpot_p95_s(self) -> float:
        """Time per output token after the first."""


Objectives = LatencyObjective | Mapping[str, LatencyObjective]  # one for all, or one per traffic class


def summary(
    frame: pd.DataFrame,
    stats: ReplayStats,
    objective: Objectives | None = None,
    *,
    steps: pd.DataFrame | None = None,
    num_blocks: ArrayLike | None = None,
    profiles: Profile | Sequence[Profile] | None = None,
) -> dict[str, float]:
    """The field's metrics of a replay: mean and percentiles in seconds, rates per second of its duration.

    ttft, tpot (of requests with two output tokens or more), e2e and queue, each as _mean_s, _p50_s, _p95_s, _p99_s,
    over the requests that got that far; NaN where there was nothing to measure. Rates of requests and tokens count
    finished requests. With a `status` column also the number of each status.

    Args:
        frame: what `sim.serving.replay.replay_fleet` returned.
        stats: the same.
        objective: adds goodput_rps, objective_met (share of all requests), ttft_met and tpot_met; one for all
            requests, or {traffic class: objective}.
        steps: the record of steps; adds itl_mean_s and its percentiles.
        num_blocks: KV blocks of a replica, or of each; adds kv_occupancy.
        profiles: of all replicas, or one of each; adds mfu, mbu, energy and money (see `sim.serving.hardware_use`;
        what is
            NaN there has its reason in `hardware_use(...).missing`).

    Raises:
        InputError: a traffic class without objective, or another number of profiles or num_blocks than replicas.
    """
    times = latencies(frame)
    result: dict[str, float] = {}
    for name in MEASURES:
        result.update(_statistics(name, times[f"{name}_s"].to_numpy()))
    done = finished(frame)
    duration_s = stats.duration_s
    result["requests"] = float(len(frame))
    result["duration_s"] = duration_s
    result["requests_per_s"] = float(done.sum()) / duration_s
    for name in ("prompt_tokens", "output_tokens"):
        result[f"{name}_per_s"] = float(frame[name].to_numpy()[done].sum()) / duration_s
    result["busy_fraction"] = stats.busy_fraction
    result["batch_mean"] = stats.batch_mean
    result["preemptions"] = float(frame["preemptions"].sum())
    result["cache_hit_rate"] = float(frame["cached_tokens"].sum() / frame["prompt_tokens"].sum())
    if "status" in frame:
        counts = frame["status"].value_counts()
        result.update({status: float(counts.get(status, 0)) for status in STATUSES})
    if "attempts" in frame:
        result["attempts_mean"] = float(frame["attempts"].mean())
    if objective is not None:
        met = meets(frame, objective)
        result["goodput_rps"] = float(met["objective_met"].sum()) / duration_s
        result.update({str(name): float(met[name].mean()) for name in met})
    if steps is not None:
        result.update(inter_token_latency(steps))
    if num_blocks is not None:
        result["kv_occupancy"] = kv_occupancy(stats, num_blocks)
    if profiles is not None:
        result.update(hardware_use(frame, stats, profiles).figures())
    return result


def latencies(frame: pd.DataFrame) -> pd.DataFrame:
    """ttft_s, tpot_s (NaN for one output token), e2e_s and queue_s of each request of a replay.

    NaN where a request didn't get that far. Its TPOT is also its mean inter-token latency.
    """
    arrived_s, first_s, finished_s = (
        frame[name].to_numpy(dtype=np.float64) for name in ("arrived_s", "first_token_s", "finished_s")
    )
    more = frame["output_tokens"].to_numpy(dtype=np.float64) - 1
    return pd.DataFrame(
        {
            "ttft_s": first_s - arrived_s,
            "tpot_s": (finished_s - first_s) / np.where(more > 0, more, math.nan),
            "e2e_s": finished_s - arrived_s,
            "queue_s": frame["scheduled_s"].to_numpy(dtype=np.float64) - arrived_s,
        },
        index=frame.index,
    )


def finished(frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Which requests got their whole answer [requests]."""
    done = frame["finished_s"].notna().to_numpy()
    return done & (frame["status"] == "finished").to_numpy() if "status" in frame else done


def meets(frame: pd.DataFrame, objective: Objectives) -> pd.DataFrame:
    """Which requests kept their objective: columns ttft_met, tpot_met and objective_met (both), bool.

    A request with one output token has no time per output token to miss; one that did not finish misses all.

    Raises:
        InputError: objectives by class, and the frame has no column traffic_class or a class without objective.
    """
    times, done = latencies(frame), finished(frame)
    limits = {name: _limits(frame, objective, f"{name}_p95_s") for name in ("ttft", "tpot")}
    met = {f"{name}_met": done & ~(times[f"{name}_s"].to_numpy() > limits[name]) for name in limits}
    return pd.DataFrame({**met, "objective_met": met["ttft_met"] & met["tpot_met"]}, index=frame.index)


def inter_token_latency(steps: pd.DataFrame) -> dict[str, float]:
    """itl_mean_s and its percentiles, from a record of steps (started_s, ended_s, steps, decodes)."""
    count = steps["steps"].to_numpy(dtype=np.float64)
    gaps = count * steps["decodes"].to_numpy(dtype=np.float64)
    decoding = gaps > 0
    names = [f"itl_p{percent}_s" for percent in PERCENTILES]
    if not decoding.any():
        return dict.fromkeys(["itl_mean_s", *names], math.nan)
    seconds = (steps["ended_s"] - steps["started_s"]).to_numpy(dtype=np.float64)[decoding] / count[decoding]
    gaps = gaps[decoding]
    order = np.argsort(seconds)
    below = np.cumsum(gaps[order])
    # The shortest gap that at least this share of all gaps don't exceed.
    places = np.searchsorted(below, np.array(PERCENTILES) / 100 * below[-1] * (1 - 1e-12))
    return {
        "itl_mean_s": float(seconds @ gaps / below[-1]),
        **dict(zip(names, seconds[order][places].tolist(), strict=True)),
    }


def kv_occupancy(stats: ReplayStats, num_blocks: ArrayLike) -> float:
    """Share of the KV blocks that were held, over the time in steps; NaN if steps took no time.

    Raises:
        InputError: num_blocks is neither one number nor one per replica.
    """
    busy_s, blocks = stats.busy_s, np.asarray(num_blocks, dtype=np.float64)
    if blocks.ndim and blocks.shape != busy_s.shape:
        raise InputError(
            f"num_blocks: found {blocks.size} numbers, allowed is one, or one for each of {busy_s.size} replicas"
        )
    return float(stats.kv_block_time_s.sum()) / (float(np.sum(busy_s * blocks)) or math.nan)


def by_group(
    frame: pd.DataFrame, stats: ReplayStats, column: str, objectives: Objectives | None = None
) -> pd.DataFrame:
    """The metrics of each traffic class, tenant or replica.

    Args:
        frame: what `sim.serving.replay.replay_fleet` returned.
        stats: the same.
        column: traffic_class, tenant, replica, or any other column of the frame.
        objectives: adds goodput_rps and the shares met; one for all requests, or {traffic class: objective}.

    Returns:
        One row per value of the column, which is the index, in order: requests, finished, the latencies as in
        `summary`, rates, preemptions, cache_hit_rate. By replica also busy_fraction and batch_mean.

    Raises:
        InputError: no such column, or a traffic class without objective.
    """
    if column not in frame:
        raise InputError(
            f"requests: found no column {column}; there are {', '.join(map(str, frame.columns))}"
        )
    key, times, done = frame[column], latencies(frame), finished(frame)
    groups = times.groupby(key)
    table = pd.DataFrame({"requests": key.groupby(key).size()})
    table["finished"] = pd.Series(done, frame.index).groupby(key).sum()
    means, percentiles = groups.mean(), groups.quantile(np.array(PERCENTILES) / 100)
    for name in MEASURES:
        table[f"{name}_mean_s"] = means[f"{name}_s"]
        for percent in PERCENTILES:
            table[f"{name}_p{percent}_s"] = percentiles[f"{name}_s"].xs(percent / 100, level=-1)
    duration_s = stats.duration_s
    table["requests_per_s"] = table["finished"] / duration_s
    counts = ["prompt_tokens", "output_tokens", "preemptions", "cached_tokens"]
    sums = frame[counts].groupby(key).sum()
    served = frame[counts[:2]].where(pd.Series(done, frame.index), 0).groupby(key).sum()
    for name in counts[:2]:
        table[f"{name}_per_s"] = served[name] / duration_s
    table["preemptions"] = sums["preemptions"]
    table["cache_hit_rate"] = sums["cached_tokens"] / sums["prompt_tokens"]
    if objectives is not None:
        met = meets(frame, objectives).groupby(key)
        table["goodput_rps"] = met["objective_met"].sum() / duration_s
        table = table.join(met.mean())
    if column == "replica":
        busy_s = stats.busy_s
        replica = table.index.to_numpy(dtype=np.int64)
        there = (replica >= 0) & (replica < len(busy_s))  # rejected requests saw no replica
        for name, values in (
            ("busy_fraction", busy_s / duration_s),
            ("batch_mean", stats.batch_time_s / np.where(busy_s > 0, busy_s, math.nan)),
        ):
            table[name] = np.where(there, values[np.where(there, replica, 0)], math.nan)
    return table


def intervals(
    frame: pd.DataFrame, level: float = 0.95, warm_up: float = 0.1, batches: int = BATCHES
) -> pd.DataFrame:
    """Means and percentiles of the latencies with confidence intervals by batch means (see `sim.serving.batch_means`).

    Args:
        frame: what a replay gave; the order of time is that of arrival.
        level: of confidence.
        warm_up: share of the requests left out at the beginning.
        batches: number of batches.

    Returns:
        Rows by metric (ttft_s, tpot_s, e2e_s, queue_s) and statistic (mean, p50, p95, p99): value, low, high,
        half_width, lag1 (autocorrelation of neighbouring batches), note (why not to trust the interval, or "").

    Raises:
        InputError: level or warm_up is no share, or fewer than two batches.
    """
    times = latencies(frame)
    arrived_s = frame["arrived_s"].to_numpy(dtype=np.float64)
    if (np.diff(arrived_s) < 0).any():
        times = times.iloc[np.argsort(arrived_s, kind="stable")]
    rows = []
    for name in MEASURES:
        values = times[f"{name}_s"].to_numpy()
        found = batch_means(
            values[~np.isnan(values)], PERCENTILES, level=level, warm_up=warm_up, batches=batches
        )
        for statistic, interval in zip(["mean", *(f"p{p}" for p in PERCENTILES)], found, strict=True):
            rows.append({"metric": f"{name}_s", "statistic": statistic, **vars(interval)})
    return pd.DataFrame(rows)


def littles_law_error(frame: pd.DataFrame, stats: ReplayStats) -> float:
    """|L − λW| / λW (Little 1961): L from the integral kept on the simulated clock, λ and W from the frame.

    A replay begins and ends empty, so anything but rounding means that a request was lost or booked wrongly. From a
    frame without left_s a rejected request is taken to leave at once, and one that timed out or was lost gives NaN.
    """
    left = "left_s" if "left_s" in frame else "finished_s"
    spent_s = (frame[left] - frame["arrived_s"]).to_numpy(dtype=np.float64)
    if left == "finished_s" and "status" in frame:
        spent_s = np.where((frame["status"] == "rejected").to_numpy(), 0.0, spent_s)
    length = stats.request_time_s / stats.duration_s
    expected = len(frame) / stats.duration_s * float(spent_s.mean())
    return abs(length - expected) / expected


def _statistics(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    values = values[~np.isnan(values)]
    names = [f"{name}_mean_s", *(f"{name}_p{percent}_s" for percent in PERCENTILES)]
    if not len(values):
        return dict.fromkeys(names, math.nan)
    mean = float(values.mean())
    found = np.percentile(values, PERCENTILES, overwrite_input=True)  # `values` is a copy
    return dict(zip(names, [mean, *found.tolist()], strict=True))


def _limits(frame: pd.DataFrame, objective: Objectives, name: str) -> NDArray[np.float64] | float:
    """The limit of each request, or of all."""
    if not isinstance(objective, Mapping):
        return float(getattr(objective, name))
    if "traffic_class" not in frame:
        raise InputError("objectives by traffic class: the requests have no column traffic_class")
    limits = frame["traffic_class"].map({kind: getattr(one, name) for kind, one in objective.items()})
    if limits.isna().any():
        without = frame["traffic_class"][limits.isna()].iloc[0]
        raise InputError(
            f"traffic class {without!r} has no objective; there are {', '.join(map(str, objective))}"
        )
    return limits.to_numpy(dtype=np.float64)
