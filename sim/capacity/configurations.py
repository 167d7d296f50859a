"""What a model could be served on: accelerators × how many share a replica × number format × engine × batch limits.

Models the choice before a purchase. A configuration carries a profile, measured or predicted
(`engine.prediction.roofline`), and the limits of its batches. Whether it can serve at all needs no simulation:

- the weights must fit, and so must the longest request: in the model's context and in the KV cache that is left;
- every step takes at least what its work takes, and no step has less work than one request alone. So a lone request's
  times are lower bounds of every request's latency;
- a token costs at least τ = min over T of (constant + ramp(T)) / T, T packed tokens up to the step's budget, plus its
  attention. Machine time per request over these bounds the rate of a replica from above (roofline; Williams 2009).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.batch import SchedulerConfig
from engine.errors import InputError
from engine.models.catalog import find_model
from engine.prediction.engine_efficiency import ENGINES, PRECISIONS
from engine.prediction.roofline import predict_profile
from engine.profile.hardware import lookup
from engine.profile.profile import Profile
from sim.capacity.goals import Goal, MetShare

Floats = NDArray[np.float64]
_SAMPLE = 2000  # requests that the bounds are taken over
_TOLERANCE = 1.03  # such a sample's mean may be off by that


@dataclass(frozen=True)
class Configuration:
    """One replica: its profile and limits, and what to call it."""

    name: str
    profile: Profile
    scheduler: SchedulerConfig
    engine: str = ""

    @property
    def price_usd_per_hour(self) -> float:
        """Hourly price of one replica."""
        return self.profile.hardware.price_usd_per_hour


@dataclass(frozen=True)
class Refused:
    """A configuration that can't be used, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Bounds:
    """Lower bounds on latency and upper bounds on the rate of a configuration."""

    rate_rps: float  # of one replica, at most
    latencies: dict[str, Floats]  # ttft, tpot (NaN for one output token) and e2e of a lone request [requests]
    requests: pd.DataFrame

    def percentile(self, measure: str, percent: float = 95) -> float:
        """Percentile of the latency of a lone request; NaN if no request has it."""
        values = self.latencies[measure]
        return float(np.nanpercentile(values, percent)) if np.isfinite(values).any() else math.nan


def predicted_configurations(
    model: str,
    accelerators: Sequence[str],
    *,
    precisions: Sequence[str] = ("bf16",),
    tensor_parallel: Sequence[int] = (1,),
    engines: Sequence[str] = ("vllm",),
    source: Profile | None = None,
    max_running_requests: Sequence[int] = (256,),
    max_step_tokens: Sequence[int] = (8192,),
    prices_usd_per_hour: Mapping[str, float] | None = None,
) -> tuple[list[Configuration], list[Refused]]:
    """All combinations, predicted; those whose weights don't fit are refused with the reason.

    Args:
        model: name of a published model (`engine/models/catalog.json`).
        accelerators: names in the hardware catalog.
        precisions, tensor_parallel: see `engine.prediction.roofline.predict_profile`.
        engines: whose efficiencies; left out with a source.
        source: a measured profile to carry over instead.
        max_running_requests, max_step_tokens: limits of the batches.
        prices_usd_per_hour: of one accelerator, by its name; else the catalog's.

    Raises:
        InputError: an unknown name, or a limit that is none: a mistake in the question, not a refusal.
    """
    find_model(model)
    for accelerator in accelerators:
        lookup(accelerator)
    for name, given, allowed in (("precision", precisions, PRECISIONS), ("engine", engines, ENGINES)):
        for value in given:
            if value not in allowed:
                raise InputError(f"{name} {value!r}: allowed are {', '.join(allowed)}")
    for ranks in tensor_parallel:
        if ranks not in (1, 2, 4, 8):
            raise InputError(f"tensor_parallel {ranks}: allowed are 1, 2, 4, 8 (one machine)")
    given_usd = {lookup(name).name: usd for name, usd in (prices_usd_per_hour or {}).items()}
    found, refused = [], []
    presets: Sequence[str | None] = [None] if source is not None else engines
    for accelerator, n, precision, engine in product(accelerators, tensor_parallel, precisions, presets):
        what = f"{f'{n} × ' if n > 1 else ''}{lookup(accelerator).name}, {precision}"
        what += f", {engine}" if engine and len(engines) > 1 else ""
        price = given_usd.get(lookup(accelerator).name)
        if price is None and lookup(accelerator).price_usd_per_hour is None:
            refused.append(Refused(what, "no list price is known; give one (--price NAME=USD)"))
            continue
        try:
            profile = predict_profile(source, accelerator, model, precision, n, engine, price)
        except InputError as error:
            refused.append(Refused(what, str(error)))
            continue
        # vLLM admits prompts up to the last block, and preempts if need be.
        spare = 0 if engine == "vllm" else 1
        base = replace(profile.scheduler_config(), spare_blocks_per_request=spare)
        found += with_limits(what, profile, base, max_running_requests, max_step_tokens, engine or "")
    return found, refused


def measured_configurations(
    profiles: Sequence[Profile],
    max_running_requests: Sequence[int] = (),
    max_step_tokens: Sequence[int] = (),
) -> list[Configuration]:
    """Profiles as they are, with their own limits or with others."""
    found = []
    for profile in profiles:
        base = profile.scheduler_config()
        what = f"{profile.model.name} on {profile.hardware.name}, {profile.model.dtype}"
        found += with_limits(
            what,
            profile,
            base,
            max_running_requests or (base.max_running_requests,),
            max_step_tokens or (base.max_step_tokens,),
        )
    return found


def with_limits(
    what: str,
    profile: Profile,
    base: SchedulerConfig,
    max_running_requests: Sequence[int],
    max_step_tokens: Sequence[int],
    engine: str = "",
) -> list[Configuration]:
    """A configuration for each pair of batch limits."""
    return [
        Configuration(
            f"{what}, batch {running}, {tokens:,} tokens",
            profile,
            replace(base, max_running_requests=running, max_step_tokens=tokens),
            engine,
        )
        for running, tokens in product(max_running_requests, max_step_tokens)
    ]


def can_never_serve(configuration: Configuration, requests: pd.DataFrame, goal: Goal) -> str:
    """Why a configuration can never serve these requests within the goal; empty if nothing says so."""
    profile, limits = configuration.profile, configuration.scheduler
    prompt, output = (requests[name].to_numpy(dtype=np.int64) for name in ("prompt_tokens", "output_tokens"))
    row = int(np.argmax(prompt + output))
    longest = f"the longest request has {prompt[row]:,} prompt and {output[row]:,} output tokens"
    if prompt[row] + output[row] > profile.model.max_context_tokens:
        return f"{longest}, {profile.model.name}'s context has {profile.model.max_context_tokens:,}"
    if -(-int(prompt[row] + output[row] - 1) // limits.block_tokens) > limits.num_blocks:
        return f"{longest}, the KV cache has room for {limits.cache_tokens:,}"
    return _out_of_reach(bounds(configuration, requests), goal)


def bounds(configuration: Configuration, requests: pd.DataFrame) -> Bounds:
    """What no simulation can beat; `requests` need prompt_tokens and output_tokens, a sample of them is taken."""
    times, budget = configuration.profile.step_time_model(), configuration.scheduler.max_step_tokens
    step = max(1, len(requests) // _SAMPLE)
    sample = requests[::step]
    output = sample["output_tokens"].to_numpy(dtype=np.float64)
    full = sample["prompt_tokens"].to_numpy(dtype=np.int64)
    # With a prefix cache only the last token of a prompt must be computed.
    cached = "prefix_hashes" in sample and configuration.scheduler.prefix_caching
    prompt = np.ones(len(full), dtype=np.int64) if cached else full
    lengths, place = np.unique(prompt, return_inverse=True)
    ttft = np.array([_prefill_s(configuration, int(tokens)) for tokens in lengths])[place]
    context = full + (output - 1) / 2
    alone_s = times.step_time([], [0])
    tpot = np.where(output > 1, alone_s + times.decode_context_s * context, np.nan)
    e2e = ttft + np.where(output > 1, (output - 1) * tpot, 0.0)

    knots = [knot for knot in (*times.token_knots[1:], budget) if knot <= budget]
    slope = min(times.request_slopes_s)
    # Ramps with a falling slope are lowest per token at the end, others at a knot.
    token_s = min(
        (times.step_time([(tokens, 0)], []) - _chunk_s(configuration, tokens)) / tokens for tokens in knots
    )
    machine_s = (
        token_s * (prompt + output - 1)
        + slope * output
        + times.prefill_pair_s * prompt * (prompt + 1) / 2
        + times.decode_context_s * (output - 1) * context
    )
    return Bounds(_TOLERANCE / float(machine_s.mean()), {"ttft": ttft, "tpot": tpot, "e2e": e2e}, sample)


def _chunk_s(configuration: Configuration, tokens: int) -> float:
    """Of the time of a step with one chunk, what is not its constant and its packed tokens."""
    times = configuration.profile.step_time_model()
    return times.chunk_s + times.prefill_pair_s * tokens * (tokens + 1) / 2 + times.request_slopes_s[0]


def _prefill_s(configuration: Configuration, tokens: int) -> float:
    times, budget = configuration.profile.step_time_model(), configuration.scheduler.max_step_tokens
    return sum(
        times.step_time([(min(budget, tokens - start), start)], []) for start in range(0, tokens, budget)
    )


def _out_of_reach(found: Bounds, goal: Goal) -> str:
    for part in goal:
        if isinstance(part, MetShare):
            limits = [
                part.objectives[name] if isinstance(part.objectives, dict) else part.objectives
                for name in found.requests.get("traffic_class", pd.Series([""] * len(found.requests)))
            ]
            ttft, tpot = (
                np.array([getattr(limit, f"{name}_p95_s") for limit in limits]) for name in ("ttft", "tpot")
            )
            late = (found.latencies["ttft"] > ttft) | (found.latencies["tpot"] > tpot)
            if late.mean() > 1 - part.share:
                return (
                    f"even alone {late.mean():.1%} of the requests are late, allowed are {1 - part.share:.1%}"
                )
            continue
        if part.measure == "queue":
            continue
        values = found.latencies[part.measure]
        if part.traffic_class is not None:
            values = values[(found.requests["traffic_class"] == part.traffic_class).to_numpy()]
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        best = values.mean() if isinstance(part.statistic, str) else np.percentile(values, part.statistic)
        if best > part.limit_s:
            return f"{part.label} of lone requests is {best:.3g}, allowed is {part.limit_s:g}"
    return ""
