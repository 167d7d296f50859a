"""What arrives at a serving fleet: when, with prompts and answers of how many tokens; drawn or read from a trace.

Models the users' side of the door. Arrivals are a Poisson process, steady or following an hourly shape (time change
by the integral of the rate: Lewis & Shedler 1979). Token lengths are lognormal by class of traffic, given by median
and mean: mean / median = exp(σ²/2), so σ = sqrt(2·ln(mean / median)). Prompt and output are drawn independently (the
Azure conversation trace correlates them at −0.11, the code trace at 0.00). What the lognormal gets wrong of these
traces: their longest prompts are more frequent (p95 of the conversation trace 4,083 tokens, drawn 2,317) and their
longest answers less so (451 against 660).

Random numbers come from named streams, so the same seed gives the same requests at another rate, only denser: two
rates are compared on common random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError
from sim.trace import read_trace

__all__ = [
    "TRAFFIC_CLASSES",
    "TrafficClass",
    "arrival_times",
    "generate",
    "hourly_shape",
    "lognormal_sigma",
    "read_trace",
    "traffic_mix",
]

FloatArray = NDArray[np.float64]

STREAMS = ("arrivals", "classes", "prompt_tokens", "output_tokens")  # the order is part of what a seed means

_AZURE = "Azure LLM inference trace 2023, {} (CC-BY 4.0), median and mean of {} requests"
_NORMAL = NormalDist()


@dataclass(frozen=True)
class TrafficClass:
    """One kind of request: lognormal token lengths by median and mean, and a beginning that all of them share.

    Raises:
        InputError: a length below 1 token, a mean below its median, a negative shared prefix.
    """

    name: str
    prompt_tokens_median: float
    prompt_tokens_mean: float
    output_tokens_median: float
    output_tokens_mean: float
    shared_prefix_tokens: int = (
        0  # first tokens of every prompt (system prompt, tools): the prefix cache finds them
    )
    source: str = "assumed"

    def __post_init__(self) -> None:
        for what in ("prompt", "output"):
            median, mean = getattr(self, f"{what}_tokens_median"), getattr(self, f"{what}_tokens_mean")
            if not (1 <= median <= mean < math.inf):
                raise InputError(
                    f"traffic class {self.name}: {what}_tokens: found median {median} and mean {mean}, "
                    "allowed is 1 ≤ median ≤ mean"
                )
        if self.shared_prefix_tokens < 0:
            raise InputError(
                f"traffic class {self.name}: shared_prefix_tokens: found {self.shared_prefix_tokens}, allowed is ≥ 0"
            )


TRAFFIC_CLASSES: dict[str, TrafficClass] = {
    kind.name: kind
    for kind in (
        TrafficClass("chat", 1020, 1155, 129, 211, source=_AZURE.format("conversation", "19,366")),
        TrafficClass("code", 1469, 2048, 13, 28, source=_AZURE.format("code", "8,819")),
        TrafficClass("rag", 1800, 2200, 180, 240, source="assumed: a question and some retrieved passages"),
        TrafficClass(
            "agent",
            2400,
            3600,
            120,
            200,
            shared_prefix_tokens=1024,
            source="assumed: tools described first, then a growing history",
        ),
    )
}


def lognormal_sigma(median: float, mean: float) -> float:
    """σ of the lognormal distribution with this median and mean; 0 when they are equal."""
    return math.sqrt(2 * math.log(mean / median))


def traffic_mix(traffic: Mapping[str, float]) -> list[tuple[TrafficClass, float]]:
    """Classes and their shares of requests, scaled to add up to 1, in the order of their names.

    Raises:
        InputError: an unknown class, a share that is no number ≥ 0, or nothing but zeros.
    """
    for name, share in traffic.items():
        if name not in TRAFFIC_CLASSES:
            raise InputError(f"traffic.{name}: unknown class, allowed: {', '.join(sorted(TRAFFIC_CLASSES))}")
        if not (isinstance(share, (int, float)) and 0 <= share < math.inf):
            raise InputError(f"traffic.{name}: found {share!r}, allowed is a share ≥ 0")
    total = math.fsum(traffic.values())
    if total <= 0:
        raise InputError("traffic: no class has a share above 0")
    return [(TRAFFIC_CLASSES[name], traffic[name] / total) for name in sorted(traffic) if traffic[name] > 0]


def hourly_shape() -> FloatArray:
    """Demand by day of the week (Monday first) and hour of the day [7, 24], as a multiple of the mean; mean 1.

    Assumed, not measured (the Azure traces last one hour): one hump that peaks at 14:30, lowest at 02:30, a second
    harmonic that makes the night longer than the noon, and weekends at 60 % of weekdays.
    """
    hour = np.arange(24) + 0.5
    day = 1 + 0.55 * np.cos(2 * np.pi * (hour - 14.5) / 24) + 0.10 * np.cos(4 * np.pi * (hour - 14.5) / 24)
    shape = np.outer([1, 1, 1, 1, 1, 0.6, 0.6], day)
    return np.asarray(shape / shape.mean(), dtype=np.float64)


def arrival_times(
    rate_rps: float,
    *,
    requests: int | None = None,
    duration_s: float | None = None,
    rng: np.random.Generator | int = 0,
    shape: FloatArray | None = None,
) -> FloatArray:
    """Arrivals of a Poisson process [s], sorted, from 0 on; either so many of them or for so long.

    Args:
        rate_rps: mean rate.
        requests: how many arrivals.
        duration_s: length of the window.
        rng: generator or seed.
        shape: multiples of the rate, one per hour (any array, read in order and repeated); its mean counts as 1.
    """
    if not 0 < rate_rps < math.inf:
        raise InputError(f"rate_rps: found {rate_rps}, allowed is a number above 0")
    if (requests is None) == (duration_s is None):
        raise InputError("give either requests or duration_s")
    rng = np.random.default_rng(rng)
    if requests is not None:
        if requests < 0:
            raise InputError(f"requests: found {requests}, allowed is ≥ 0")
        return _in_shape(rng.standard_exponential(requests).cumsum() / rate_rps, shape)
    assert duration_s is not None
    if not 0 <= duration_s < math.inf:
        raise InputError(f"duration_s: found {duration_s}, allowed is a number ≥ 0")
    flat = np.empty(0)
    # Drawn in pieces, not as a count and then times: a longer window then begins with the same arrivals.
    while not flat.size or _in_shape(flat[-1:], shape)[0] <= duration_s:
        more = rng.standard_exponential(int(rate_rps * duration_s * 0.1) + 64).cumsum() / rate_rps
        flat = np.concatenate([flat, more + (flat[-1] if flat.size else 0.0)])
    times = _in_shape(flat, shape)
    return times[times < duration_s]


def generate(
    traffic: Mapping[str, float],
    rate_rps: float,
    *,
    requests: int | None = None,
    duration_s: float | None = None,
    rng: np.random.Generator | int = 0,
    max_context_tokens: int | None = None,
    block_tokens: int = 16,
    shape: FloatArray | None = None,
    stratified: bool = False,
) -> pd.DataFrame:
    """Draw requests: Poisson arrivals, classes by share, lengths by class.

    Args:
        traffic: share of requests by class name.
        rate_rps, requests, duration_s, shape: see `arrival_times`.
        rng: generator or seed; each column draws from its own child stream.
        max_context_tokens: prompt and output together are cut to this (the output to half of it, then the prompt).
        block_tokens: tokens per KV block, for the hashes of shared prefixes.
        stratified: draw each class's lengths from equal slices of their distribution, in random order: the sample's
            mean and percentiles then hardly differ from the distribution's (less variance, same expectation).

    Returns:
        Frame arrived_s, prompt_tokens, output_tokens, traffic_class, and prefix_hashes when a class shares a prefix.

    Raises:
        InputError: bad traffic, rate, count or limits.
    """
    mix = traffic_mix(traffic)
    if max_context_tokens is not None and max_context_tokens < 2:
        raise InputError(f"max_context_tokens: found {max_context_tokens}, allowed is ≥ 2")
    streams = dict(zip(STREAMS, np.random.default_rng(rng).spawn(len(STREAMS)), strict=True))
    arrived_s = arrival_times(
        rate_rps, requests=requests, duration_s=duration_s, rng=streams["arrivals"], shape=shape
    )
    count = len(arrived_s)
    edges = np.cumsum([share for _, share in mix])[:-1]
    kind = np.searchsorted(edges, _uniform(streams["classes"], count, stratified), side="right")
    prompt_tokens = np.empty(count, dtype=np.int64)
    output_tokens = np.empty(count, dtype=np.int64)
    for index, (traffic_class, _) in enumerate(mix):
        chosen = kind == index
        for what, column in (("prompt", prompt_tokens), ("output", output_tokens)):
            median = getattr(traffic_class, f"{what}_tokens_median")
            mean = getattr(traffic_class, f"{what}_tokens_mean")
            z = _standard_normal(streams[f"{what}_tokens"], int(chosen.sum()), stratified)
            lengths = median * np.exp(lognormal_sigma(median, mean) * z)
            column[chosen] = np.maximum(1, np.rint(np.minimum(lengths, 2**40))).astype(np.int64)
    if max_context_tokens is not None:
        output_tokens = np.minimum(output_tokens, max_context_tokens // 2)
        prompt_tokens = np.minimum(prompt_tokens, max_context_tokens - output_tokens)
    names = np.array([traffic_class.name for traffic_class, _ in mix], dtype=object)
    columns: dict[str, object] = {
        "arrived_s": arrived_s,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "traffic_class": names[kind],
    }
    if any(traffic_class.shared_prefix_tokens for traffic_class, _ in mix):
        shared = [
            [(each.name, block) for block in range(each.shared_prefix_tokens // block_tokens)]
            for each, _ in mix
        ]
        columns["prefix_hashes"] = [
            shared[index][: prompt // block_tokens]
            for index, prompt in zip(kind.tolist(), prompt_tokens.tolist(), strict=True)
        ]
    return pd.DataFrame(columns)


def _in_shape(flat_s: FloatArray, shape: FloatArray | None) -> FloatArray:
    """Times of a steady process, moved so that their rate follows the shape."""
    if shape is None:
        return flat_s
    hours = np.asarray(shape, dtype=np.float64).reshape(-1)
    if not (hours.size and np.isfinite(hours).all() and (hours >= 0).all() and hours.sum() > 0):
        raise InputError("shape: allowed are numbers ≥ 0 of which one is above 0")
    period_s = 3600.0 * hours.size
    # The integral of the rate over one period is piecewise linear; arrivals are found where it reaches the flat time.
    passed_s = np.concatenate([[0.0], np.cumsum(hours / hours.mean() * 3600.0)])
    periods, rest_s = np.divmod(flat_s, period_s)
    return periods * period_s + np.interp(rest_s, passed_s, 3600.0 * np.arange(hours.size + 1))


def _uniform(rng: np.random.Generator, count: int, stratified: bool) -> FloatArray:
    if stratified:
        return np.asarray((rng.permutation(count) + rng.random(count)) / max(count, 1), dtype=np.float64)
    return rng.random(count)


def _standard_normal(rng: np.random.Generator, count: int, stratified: bool) -> FloatArray:
    if not stratified:
        return rng.standard_normal(count)
    uniform = np.clip(_uniform(rng, count, True), 1e-12, 1 - 1e-12)
    # The standard library's inverse: loading scipy would take longer than these few hundred numbers.
    return np.array([_NORMAL.inv_cdf(u) for u in uniform.tolist()], dtype=np.float64)
