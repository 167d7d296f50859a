"""Predict a profile for hardware that was not measured: from a data sheet, and from something that was measured.

Two sources of efficiency:

- production engines (`engine="vllm"` …): the coefficients that engine.prediction.engine_efficiency fitted on published
  benchmarks, applied to the target's roofline;
- a measured profile: its step time is taken apart into terms, each divided by its roofline on the machine it was
  measured on and multiplied by that of the target. Attention's terms scale with bytes of keys and values over
  bandwidth, or with operations over peak. Weights and dense operations form one curve over the packed tokens; the
  machine is taken to be as efficient at the same distance from its ridge (the tokens at which reading the weights
  and multiplying them take equally long; Williams et al. 2009). Overheads are kept, by layer.

Either way the profile is marked predicted and carries an interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from engine.batch import SchedulerConfig
from engine.errors import DoesNotFitError, InputError
from engine.models.catalog import find_model
from engine.prediction.engine_efficiency import (
    PRECISIONS,
    STEP_TOKENS,
    EngineDeployment,
    fitted,
    peak_flops,
    work,
)
from engine.prediction.engine_efficiency import step_time as engine_step_time
from engine.profile.cost import cost_table
from engine.profile.hardware import HardwareInfo, hourly_price, lookup
from engine.profile.profile import SCHEMA_VERSION, FitReport, Profile
from engine.profile.step_time import RooflineStepTime, StepTimeUncertainty

BLOCK_TOKENS = 16
MAX_RUNNING_REQUESTS = 256
# Share of the bandwidth at which weights are taken to be read: what a step's constant holds beyond is overhead.
WEIGHT_READ_SHARE = 0.85
# Standard deviation of log(measured / transferred) between two machines of like peak; more, the further they lie
# apart. Met where both were measured, twice apart: 0.13 and 0.14 (one thread, two threads), 0.29 and 0.33 (RTX 4090
# with 8B, two A100 with 34B); see tests/engine/prediction/test_roofline.py.
TRANSFER_LOG_SD = 0.2
# Latency of an all-reduce between accelerators of one machine, as measured by the fit's engines.
_REDUCE_S = 10e-6
_LINK_SHARE = 0.5  # of the link's bandwidth that an all-reduce reaches


@dataclass(frozen=True)
class Roofline:
    """Work of a step of a model, and the peak speeds of its machine; one tensor-parallel rank."""

    layers: int
    weight_bytes: float  # read by every step
    token_flops: float  # of a packed token, attention left out
    vocabulary_flops: float  # of a sampled token
    pair_flops: float  # of a query-key pair of prefill
    kv_bytes: float  # per cached token
    peak_flops: float  # FLOP/s
    bandwidth: float  # bytes/s
    expert_bytes: float = 0.0  # of all routed experts
    experts: int = 0
    active_experts: int = 0
    reduce_bytes: float = 0.0  # through the link, per packed token
    link: float = math.inf  # bytes/s

    @property
    def ridge_tokens(self) -> float:
        """Packed tokens at which reading the weights takes as long as multiplying them."""
        return (self.weight_bytes + self.expert_bytes) / self.bandwidth * self.peak_flops / self.token_flops

    def dense_s(self, tokens: float) -> float:
        """Seconds at data-sheet speed to read the weights that `tokens` touch and to multiply them."""
        touched = 1 - (1 - self.active_experts / self.experts) ** tokens if self.experts else 0.0
        read = self.weight_bytes + touched * self.expert_bytes
        return read / self.bandwidth + tokens * self.token_flops / self.peak_flops


def roofline_of(profile: Profile) -> Roofline:
    """The roofline of what a profile was measured with.

    Raises:
        InputError: the profile doesn't say its machine's peak or bandwidth.
    """
    shape, hardware = profile.model, profile.hardware
    if not hardware.peak_flops or not hardware.memory_bandwidth_bytes_per_s:
        raise InputError(
            f"profile of {shape.name} on {hardware.name}: found no peak_flops or memory_bandwidth_bytes_per_s; "
            "both are needed to carry it over to another machine"
        )
    vocabulary = shape.vocab_size * shape.hidden_size
    return Roofline(
        layers=shape.layers,
        weight_bytes=shape.weight_bytes,
        token_flops=2.0 * (shape.parameters - vocabulary),
        vocabulary_flops=2.0 * vocabulary,
        pair_flops=4.0 * shape.layers * shape.attention_heads * shape.head_dim,
        kv_bytes=shape.kv_bytes_per_token,
        peak_flops=hardware.peak_flops,
        bandwidth=hardware.memory_bandwidth_bytes_per_s,
    )


def roofline_for(deployment: EngineDeployment) -> Roofline:
    """The roofline of one rank of a deployment."""
    model, row, n = deployment.model, deployment.accelerator, deployment.accelerators
    work(deployment, 1, 1, 1)  # refuses a data sheet with gaps
    narrow = deployment.precision
    routed = model.moe_layers * model.experts * model.expert_bytes(narrow)
    vocabulary = 0 if model.tied_embeddings else 2 * model.head_parameters
    active = model.active_parameters - model.head_parameters
    return Roofline(
        layers=model.layers,
        weight_bytes=(model.weight_bytes(narrow) - routed - vocabulary) / n,
        token_flops=2.0 * active / n,
        vocabulary_flops=2.0 * model.head_parameters / n,
        pair_flops=model.pair_flops / n,
        kv_bytes=model.kv_bytes_per_token(narrow) / deployment.kv_shards,
        peak_flops=peak_flops(row, narrow),
        bandwidth=float(row.memory_bandwidth_bytes_per_s or math.nan),
        expert_bytes=routed / n,
        experts=model.experts,
        active_experts=model.active_experts,
        reduce_bytes=4.0 * model.layers * 2 * model.hidden_size * (n - 1) / n,
        link=float(row.link_bytes_per_s or math.inf),
    )


def transfer(times: RooflineStepTime, source: Roofline, target: Roofline) -> RooflineStepTime:
    """The step-time model of `target`, from that measured on `source` (see the module)."""
    times = _first_in_constant(times)
    layers = target.layers / source.layers
    read_s = min(times.constant_s, source.weight_bytes / source.bandwidth / WEIGHT_READ_SHARE)
    overhead_s = (times.constant_s - read_s) * layers
    scale = target.ridge_tokens / source.ridge_tokens

    def dense_s(tokens: float) -> float:
        then = tokens / scale
        measured = read_s + _ramp_s(times, then)
        return measured / source.dense_s(then) * target.dense_s(tokens)

    knots = _scaled_knots(times.token_knots, scale, several=bool(target.experts))
    ends = [*knots[1:], 4 * knots[-1] + 4]
    reduce_s = target.reduce_bytes / target.link / _LINK_SHARE
    slopes = tuple(
        max(0.0, (dense_s(end) - dense_s(start)) / (end - start)) + reduce_s
        for start, end in zip(knots, ends, strict=True)
    )
    kv = target.kv_bytes / target.bandwidth / (source.kv_bytes / source.bandwidth)
    pair = target.pair_flops / target.peak_flops / (source.pair_flops / source.peak_flops)
    vocabulary_s = source.vocabulary_flops / source.peak_flops / WEIGHT_READ_SHARE
    faster = target.vocabulary_flops / target.peak_flops / (source.vocabulary_flops / source.peak_flops)
    requests = tuple(
        max(0.0, slope - vocabulary_s) + min(slope, vocabulary_s) * faster for slope in times.request_slopes_s
    )
    moved = replace(
        times,
        constant_s=overhead_s + dense_s(0) + (2 * target.layers * _REDUCE_S if target.reduce_bytes else 0.0),
        token_knots=knots,
        token_slopes_s=slopes,
        request_slopes_s=requests,
        decode_context_s=times.decode_context_s * kv,
        chunk_s=times.chunk_s * layers,
        prefill_pair_s=times.prefill_pair_s * pair,
        prefill_context_s=times.prefill_context_s * kv,
        uncertainty=None,
    )
    log_sd = TRANSFER_LOG_SD * (1 + abs(math.log10(target.peak_flops / source.peak_flops)))
    return replace(moved, uncertainty=_moved_uncertainty(times, moved, log_sd))


def predict_profile(
    source: Profile | None,
    accelerator: str,
    model: str,
    precision: str = "bf16",
    tensor_parallel: int = 1,
    engine: str | None = None,
    price_usd_per_hour: float | None = None,
) -> Profile:
    """Predict the profile of `model` on accelerators that were not measured.

    Args:
        source: a measured profile to carry over; None takes the efficiencies of `engine`.
        accelerator: its name in engine.profile.hardware's catalog.
        model: its name (or hub id) in engine/models/catalog.json.
        precision: "bf16", "fp8", "fp4" or "int4" weights.
        tensor_parallel: accelerators of one replica, within one machine.
        engine: "vllm", "sglang" or "trtllm"; exactly one of `source` and `engine`.
        price_usd_per_hour: of one accelerator; None takes the catalog's.

    Raises:
        InputError: an unknown name, or a number missing in the catalog.
        DoesNotFitError: no room for the model's KV cache (says by how much).
    """
    if (source is None) == (engine is None):
        raise InputError(
            "a prediction needs either an engine's efficiencies or a measured profile, one of both"
        )
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}: allowed are {', '.join(PRECISIONS)}")
    if tensor_parallel not in (1, 2, 4, 8):
        raise InputError(f"tensor_parallel {tensor_parallel}: allowed are 1, 2, 4, 8 (one machine)")
    if price_usd_per_hour is not None and not 0 <= price_usd_per_hour < math.inf:
        raise InputError(f"price_usd_per_hour {price_usd_per_hour}: a finite number ≥ 0 is allowed")
    deployment = EngineDeployment(find_model(model), lookup(accelerator), precision, tensor_parallel)
    blocks = deployment.cache_bytes() // (deployment.kv_bytes_per_token() * BLOCK_TOKENS)
    if blocks < 1:
        raise DoesNotFitError(
            f"{deployment.model.name}: {deployment.cache_bytes() / 1e6:,.0f} MB left for keys and values, "
            f"one block of {BLOCK_TOKENS} tokens needs {deployment.kv_bytes_per_token() * BLOCK_TOKENS / 1e6:,.1f} MB"
        )
    if engine is not None:
        times, fit, method = engine_step_time(engine, deployment), _engine_fit(engine), _engine_method(engine)
        scheduler: dict[str, Any] = {}
    else:
        assert source is not None
        times = transfer(source.coefficients, roofline_of(source), roofline_for(deployment))
        fit = _transfer_fit(times)
        method = {
            "prediction": "carried over from a measured profile by roofline terms (engine/prediction/roofline.py)",
            "source_profile": source.content_hash,
            "source_machine": source.hardware.name,
            "source_model": source.model.name,
        }
        scheduler = dict(source.scheduler)
    scheduler = {
        **scheduler,
        "max_running_requests": MAX_RUNNING_REQUESTS,
        "max_step_tokens": STEP_TOKENS,
        "block_tokens": BLOCK_TOKENS,
        "num_blocks": blocks,
        "prefix_caching": True,
    }
    hardware = _hardware(deployment, price_usd_per_hour)
    return Profile(
        schema_version=SCHEMA_VERSION,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        kind="predicted",
        model=deployment.model.shape(
            deployment.precision, deployment.weight_bytes(), deployment.kv_bytes_per_token()
        ),
        hardware=hardware,
        software={"engine": engine} if engine else dict(source.software) if source else {},
        method=method | {"precision": precision, "tensor_parallel": tensor_parallel},
        scheduler=scheduler,
        coefficients=times,
        fit=fit,
        cost=cost_table(
            times,
            hardware.price_usd_per_hour,
            SchedulerConfig(MAX_RUNNING_REQUESTS, STEP_TOKENS, BLOCK_TOKENS, blocks),
            deployment.model.max_context_tokens,
        ),
        memory={
            "weight_bytes": deployment.weight_bytes(),
            "kv_bytes_per_token": deployment.kv_bytes_per_token(),
            "kv_cache_bytes": blocks * BLOCK_TOKENS * deployment.kv_bytes_per_token(),
        },
        power={"mean_w": None, "reason": "predicted, not measured"},
    )


def _hardware(deployment: EngineDeployment, price_usd_per_hour: float | None) -> HardwareInfo:
    row, n = deployment.accelerator, deployment.accelerators
    price, source, date = hourly_price(row, row.name, price_usd_per_hour)
    return HardwareInfo(
        name=row.name if n == 1 else f"{n} × {row.name}",
        device="cuda",
        cores=n,
        threads=n,
        memory_bytes=row.memory_bytes * n,
        price_usd_per_hour=price * n,
        price_source=source if n == 1 else f"{n} × {price:.4g}: {source}",
        price_date=date,
        peak_flops=peak_flops(row, deployment.precision) * n,
        memory_bandwidth_bytes_per_s=float(row.memory_bandwidth_bytes_per_s or math.nan) * n,
        peak_source=f"{row.data_source}, {deployment.precision}",
    )


def _engine_fit(engine: str) -> FitReport:
    """The engine's error on models left out of the fit, in the place of an error on steps held out."""
    error = fitted()["left_out_error"]
    own = error["by_engine"][engine]
    return FitReport(
        train_points=0,  # every model was left out in turn
        held_out_points=own["rows"],
        median_relative_error=own["tpot"]["median"],
        p95_relative_error=own["tpot"]["p95"],
        max_relative_error=own["tpot"]["max"],
        train_median_relative_error=error["all"]["tpot_in_fit"]["median"],
        repeat_spread=0.0,
    )


def _transfer_fit(times: RooflineStepTime) -> FitReport:
    """What the interval says, in the place of an error on steps held out: nothing was measured there."""
    relative_sd = times.uncertainty.relative_sd if times.uncertainty else math.inf
    median, p95, p99 = (math.expm1(quantile * relative_sd) for quantile in (0.6745, 1.96, 2.576))
    return FitReport(0, 0, median, p95, p99, median, 0.0)


def _engine_method(engine: str) -> dict[str, Any]:
    return {
        "prediction": f"roofline terms with {engine}'s fitted efficiencies (engine/prediction/engine_efficiency.py)",
        "source": fitted()["source"],
        "error": "of benchmarks' TPOT, on models left out of the fit",
    }


def _first_in_constant(times: RooflineStepTime) -> RooflineStepTime:
    """The same times of every step, which has a token and a request at least: a fit can't separate the cost
    of the first from the constant.
    """
    first_s = 0.0
    token_slopes, request_slopes = times.token_slopes_s, times.request_slopes_s
    if times.token_knots[1:2] == (1,):
        first_s, token_slopes = first_s + token_slopes[0], (0.0, *token_slopes[1:])
    if times.request_knots[1:2] == (1,):
        first_s, request_slopes = first_s + request_slopes[0], (0.0, *request_slopes[1:])
    return replace(
        times,
        constant_s=times.constant_s + first_s,
        token_slopes_s=token_slopes,
        request_slopes_s=request_slopes,
    )


def _ramp_s(times: RooflineStepTime, tokens: float) -> float:
    """Seconds of the token ramp alone, at a number of tokens that need not be whole."""
    total = 0.0
    ends = [*times.token_knots[1:], math.inf]
    for start, end, slope in zip(times.token_knots, ends, times.token_slopes_s, strict=True):
        total += slope * max(0.0, min(tokens, end) - start)
    return total


def _scaled_knots(knots: tuple[int, ...], scale: float, *, several: bool) -> tuple[int, ...]:
    """Whole, increasing knots at the same distances from the ridge; for experts also the powers of two below it."""
    scaled = [0]
    for knot in knots[1:]:
        scaled.append(max(scaled[-1] + 1, round(knot * scale)))
    extra = [2**power for power in range(14)] if several else []
    return tuple(sorted({*scaled, *extra}))


def _moved_uncertainty(
    source: RooflineStepTime, target: RooflineStepTime, log_sd: float
) -> StepTimeUncertainty:
    """The source's errors, each coefficient's scaled as the coefficient was, and that of carrying over."""
    known = source.uncertainty
    if known is None:
        return StepTimeUncertainty(relative_sd=log_sd)
    relative_sd = math.hypot(known.relative_sd, log_sd)
    before, after = _coefficients(source), _coefficients(target)
    if len(before) != len(
        after
    ):  # more knots: no coefficient has its like, their errors count as the steps' own
        return StepTimeUncertainty(relative_sd=relative_sd)
    errors = [
        error * (after[i] / before[i] if before[i] else 0.0)
        for i, error in zip(known.active, known.standard_errors, strict=True)
    ]
    return replace(known, relative_sd=relative_sd, standard_errors=tuple(errors))


def _coefficients(times: RooflineStepTime) -> list[float]:
    """In the order of `engine.profile.step_time.basis`."""
    return [
        times.constant_s,
        *times.token_slopes_s,
        *times.request_slopes_s,
        times.decode_context_s,
        times.chunk_s,
        times.prefill_pair_s,
        times.prefill_context_s,
    ]
