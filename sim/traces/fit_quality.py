"""How well a generator fits its trace: the same measures of both, side by side.

Distributions are compared by the Kolmogorov-Smirnov distance (the largest difference of their distribution functions)
and by percentiles; bursts by the index of dispersion of counts over windows of several lengths; and the effect on a
queue by the waiting times in one queue with one server (Lindley 1952), which sees the order of arrivals and of lengths
and not only how often each occurs. There a request's work is its output tokens and a tenth of its prompt tokens
(assumed), at a speed that keeps the server busy for a given share of the time.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from sim.workload.arrivals import index_of_dispersion

PERCENTILES = (50, 95, 99)
LOADS = (0.5, 0.7, 0.85)
_WINDOWS_S = (1.0, 10.0, 60.0, 600.0, 3600.0)
_LEAST_WINDOWS = 20  # in the trace, for an index of dispersion that is not noise
_PROMPT_WORK = 0.1  # output tokens that a prompt token is as much work as

FloatArray = NDArray[np.float64]


class FitComparison(BaseModel):
    """One measure of the trace and of what is generated; `ks` is the largest difference of their distributions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    ks: float
    trace: dict[str, float]  # mean, p50, p95, p99
    generated: dict[str, float]


class Pair(BaseModel):
    """A number of the trace and of what is generated; `at` is the window [s], 0 where there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: float
    trace: float
    generated: float


class Waits(BaseModel):
    """Waiting in a queue, in mean service times.

    `shuffled` is of the trace's arrivals with its lengths in random order: what a generator can reach at best that
    draws lengths without looking at the hour.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    load: float
    trace_mean: float
    shuffled_mean: float
    generated_mean: float
    trace_p95: float
    shuffled_p95: float
    generated_p95: float


class FitQuality(BaseModel):
    """How well a generator fits its trace."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    distributions: tuple[FitComparison, ...]  # gap_s, prompt_tokens, output_tokens
    dispersion: tuple[Pair, ...]  # of counts, by window
    waits: tuple[Waits, ...]  # by load
    rank_correlation: Pair  # of prompt and output


def compare(trace: pd.DataFrame, generated: list[pd.DataFrame]) -> FitQuality:
    """Measures of a trace and of frames generated to be like it, each as long as the trace or shorter.

    Distributions are pooled over the frames; of dispersions the mean is taken, of waiting times the median.
    """
    gaps = np.concatenate([np.diff(frame["arrived_s"]) for frame in generated])
    distributions = [_comparison("gap_s", np.diff(trace["arrived_s"]), gaps)]
    distributions += [
        _comparison(name, trace[name], np.concatenate([frame[name] for frame in generated]))
        for name in ("prompt_tokens", "output_tokens")
    ]
    arrived_s = trace["arrived_s"].to_numpy(dtype=np.float64) - trace["arrived_s"].iloc[0]
    windows = [window_s for window_s in _WINDOWS_S if arrived_s[-1] >= _LEAST_WINDOWS * window_s]
    dispersion = [
        Pair(
            at=window_s,
            trace=index_of_dispersion(arrived_s, window_s),
            generated=float(
                np.nanmean([index_of_dispersion(frame["arrived_s"], window_s) for frame in generated])
            ),
        )
        for window_s in windows
    ]
    return FitQuality(
        distributions=tuple(distributions),
        dispersion=tuple(dispersion),
        waits=tuple(_felt(trace, generated, load) for load in LOADS),
        rank_correlation=Pair(
            at=0.0,
            trace=rank_correlation(trace),
            generated=float(np.mean([rank_correlation(frame) for frame in generated])),
        ),
    )


def ks_distance(one: ArrayLike, other: ArrayLike) -> float:
    """Largest difference between the distribution functions of two samples (Kolmogorov-Smirnov)."""
    a, b = np.sort(np.asarray(one, dtype=np.float64)), np.sort(np.asarray(other, dtype=np.float64))
    both = np.concatenate([a, b])
    below = (np.searchsorted(sample, both, side="right") / sample.size for sample in (a, b))
    return float(np.abs(next(below) - next(below)).max())


def rank_correlation(requests: pd.DataFrame) -> float:
    """Spearman's rank correlation of prompt and output tokens; 0 where one of them never varies."""
    found = requests["prompt_tokens"].rank().corr(requests["output_tokens"].rank())
    return 0.0 if math.isnan(found) else float(found)


def _comparison(what: str, trace: ArrayLike, generated: ArrayLike) -> FitComparison:
    return FitComparison(
        what=what,
        ks=ks_distance(trace, generated),
        trace=_summary(np.asarray(trace, dtype=np.float64)),
        generated=_summary(np.asarray(generated, dtype=np.float64)),
    )


def _summary(sample: FloatArray) -> dict[str, float]:
    percentiles = np.percentile(sample, PERCENTILES)
    named = {f"p{percent}": float(value) for percent, value in zip(PERCENTILES, percentiles, strict=True)}
    return {"mean": float(sample.mean()), **named}


def _felt(trace: pd.DataFrame, generated: list[pd.DataFrame], load: float) -> Waits:
    """Medians over the frames: one that happens to begin with a long burst would rule a mean."""
    orders = [np.random.default_rng(seed).permutation(len(trace)) for seed in range(len(generated))]
    lengths = ["prompt_tokens", "output_tokens"]
    shuffled = [
        trace[["arrived_s"]].assign(**dict(zip(lengths, trace[lengths].to_numpy()[order].T, strict=True)))
        for order in orders
    ]
    trace_mean, trace_p95 = _waits(trace, load)
    shuffled_mean, shuffled_p95 = np.median([_waits(frame, load) for frame in shuffled], axis=0)
    generated_mean, generated_p95 = np.median([_waits(frame, load) for frame in generated], axis=0)
    return Waits(
        load=load,
        trace_mean=trace_mean,
        shuffled_mean=float(shuffled_mean),
        generated_mean=float(generated_mean),
        trace_p95=trace_p95,
        shuffled_p95=float(shuffled_p95),
        generated_p95=float(generated_p95),
    )


def _waits(requests: pd.DataFrame, load: float) -> tuple[float, float]:
    """Mean and 95th percentile of the waiting times, in mean service times.

    Lindley: a request waits as long as the one before, plus that one's service, less the gap, but never below 0;
    that is the running sum less its lowest value so far.
    """
    arrived_s = requests["arrived_s"].to_numpy(dtype=np.float64)
    work = requests["output_tokens"].to_numpy() + _PROMPT_WORK * requests["prompt_tokens"].to_numpy()
    service_s = work / work.mean() * load * (arrived_s[-1] - arrived_s[0]) / (arrived_s.size - 1)
    passed = np.concatenate([[0.0], np.cumsum(service_s[:-1] - np.diff(arrived_s))])
    waits = (passed - np.minimum.accumulate(passed)) / service_s.mean()
    return float(waits.mean()), float(np.percentile(waits, 95))
