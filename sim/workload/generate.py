"""What arrives at a serving fleet: when, with prompts and answers of how many tokens, drawn from traffic classes.

Arrivals are drawn in `sim.workload.arrivals` (Poisson, bursts, shape of the week), token lengths by class in
`sim.workload.traffic_classes`.

Random numbers come from named streams, so the same seed gives the same requests at another rate, only denser: two
rates are compared on common random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from engine.errors import InputError
from sim.workload.arrivals import (
    FloatArray,
    Process,
    arrival_times,
)
from sim.workload.traffic_classes import (
    TrafficClass,
    correlated,
    standard_normal,
    token_lengths,
    traffic_mix,
    uniform,
)

# The order is part of what a seed means: append only.
STREAMS = ("arrivals", "classes", "prompt_tokens", "output_tokens", "media_tokens")


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
    process: Process | None = None,
    classes: Mapping[str, TrafficClass] | None = None,
) -> pd.DataFrame:
    """Draw requests: when they arrive, classes by share, lengths by class.

    Args:
        traffic: share of requests by class name.
        rate_rps, requests, duration_s, shape, process: see `arrival_times`.
        rng: generator or seed; each column draws from its own child stream.
        max_context_tokens: prompt and output together are cut to this (the output to half of it, then the prompt).
        block_tokens: tokens per KV block, for the hashes of shared prefixes.
        stratified: draw each class's lengths from equal slices of their distribution, in random order: the sample's
            mean and percentiles then hardly differ from the distribution's (less variance, same expectation).
        classes: what the names in `traffic` stand for; None takes TRAFFIC_CLASSES.

    Returns:
        Frame arrived_s, prompt_tokens, output_tokens, traffic_class; media_tokens (the part of the prompt that is
        pictures or sound) when a class has any, and prefix_hashes when a class shares a prefix.

    Raises:
        InputError: bad traffic, rate, count or limits.
    """
    mix = traffic_mix(traffic, classes)
    streams = _streams(rng, max_context_tokens)
    arrived_s = arrival_times(
        rate_rps,
        requests=requests,
        duration_s=duration_s,
        rng=streams["arrivals"],
        shape=shape,
        process=process,
    )
    drawn = _draw(mix, len(arrived_s), streams, max_context_tokens, block_tokens, stratified)
    drawn.insert(0, "arrived_s", arrived_s)
    return drawn


def draw_requests(
    traffic: Mapping[str, float],
    count: int,
    *,
    rng: np.random.Generator | int = 0,
    max_context_tokens: int | None = None,
    block_tokens: int = 16,
    stratified: bool = False,
    classes: Mapping[str, TrafficClass] | None = None,
) -> pd.DataFrame:
    """The frame of `generate` without arrivals: `count` requests of the same lengths that it draws for this seed."""
    mix = traffic_mix(traffic, classes)
    streams = _streams(rng, max_context_tokens)
    return _draw(mix, count, streams, max_context_tokens, block_tokens, stratified)


def _streams(
    rng: np.random.Generator | int, max_context_tokens: int | None
) -> dict[str, np.random.Generator]:
    if max_context_tokens is not None and max_context_tokens < 2:
        raise InputError(f"max_context_tokens: found {max_context_tokens}, allowed is ≥ 2")
    return dict(zip(STREAMS, np.random.default_rng(rng).spawn(len(STREAMS)), strict=True))


def _draw(
    mix: list[tuple[TrafficClass, float]],
    count: int,
    streams: Mapping[str, np.random.Generator],
    max_context_tokens: int | None,
    block_tokens: int,
    stratified: bool,
) -> pd.DataFrame:
    edges = np.cumsum([share for _, share in mix])[:-1]
    kind = np.searchsorted(edges, uniform(streams["classes"], count, stratified), side="right")
    prompt_tokens = np.empty(count, dtype=np.int64)
    output_tokens = np.empty(count, dtype=np.int64)
    media_tokens = np.zeros(count, dtype=np.int64)
    for index, (each, _) in enumerate(mix):
        chosen = kind == index
        size = int(chosen.sum())
        z = standard_normal(streams["prompt_tokens"], size, stratified)
        prompt_tokens[chosen] = token_lengths(
            each.prompt_tokens_median, each.prompt_tokens_mean, each.prompt_quantiles, z
        )
        own = standard_normal(streams["output_tokens"], size, stratified)
        output_tokens[chosen] = token_lengths(
            each.output_tokens_median,
            each.output_tokens_mean,
            each.output_quantiles,
            correlated(z, own, each.rank_correlation, stratified),
        )
        if each.media_tokens_median:
            media = standard_normal(streams["media_tokens"], size, stratified)
            media_tokens[chosen] = token_lengths(
                each.media_tokens_median, each.media_tokens_mean, None, media
            )
    prompt_tokens += media_tokens
    if max_context_tokens is not None:
        output_tokens = np.minimum(output_tokens, max_context_tokens // 2)
        prompt_tokens = np.minimum(prompt_tokens, max_context_tokens - output_tokens)
    names = np.array([each.name for each, _ in mix], dtype=object)
    columns: dict[str, object] = {
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "traffic_class": names[kind],
    }
    if any(each.media_tokens_median for each, _ in mix):
        columns["media_tokens"] = np.minimum(media_tokens, prompt_tokens)
    if any(each.shared_prefix_tokens for each, _ in mix):
        shared = [
            [(each.name, block) for block in range(each.shared_prefix_tokens // block_tokens)]
            for each, _ in mix
        ]
        columns["prefix_hashes"] = [
            shared[index][: prompt // block_tokens]
            for index, prompt in zip(kind.tolist(), prompt_tokens.tolist(), strict=True)
        ]
    return pd.DataFrame(columns)
