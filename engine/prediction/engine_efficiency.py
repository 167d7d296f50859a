"""How fast vLLM, SGLang and TensorRT-LLM serve a published model: roofline terms times fitted efficiencies.

A step of a batch on some accelerators is split into the work it can't avoid, each at data-sheet speed:

    decode step = weights read / bandwidth   (of a mixture of experts: the experts a batch is expected to touch)
                + operations / peak          (active parameters; peak of the number format)
                + keys and values / bandwidth (or latent attention's operations / peak)
                + activations / bandwidth + all-reduce bytes / link
                + step, layer, all-reduce and request overheads
    prefill     = the same by prompt tokens, attention by query-key pairs, expert tiles padded to 64 rows

and each part is multiplied with a coefficient ≥ 0 (1 = data sheet reached) or is one itself (overheads). The
coefficients are common to all accelerators and engines, with small departures by engine where the data distinguish
them: a hierarchical fit with Gaussian priors on their logarithms (Gelman & Hill 2007, ch. 12), run by
tests/bench/fit_engine_efficiency.py and shipped in engine_efficiency.json.

What the engines' published benchmarks report follows from the step times. A closed loop keeps `concurrency`
requests going, each replaced when it ends, so in the time of one request every other one is prefilled once:
TPOT = decode step + (running - 1) / output tokens · prefill. TTFT = own prefill + steps waited + other prompts in
the way: those of the burst that starts the benchmark and those met at random (M/D/1). Where the cache has no room
for all, the rest waits: by Little's law (concurrency / running - 1) · time of a request.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine.errors import DoesNotFitError, InputError
from engine.models.catalog import KV_BYTES, CatalogModel
from engine.profile.hardware import Accelerator
from engine.profile.step_time import RooflineStepTime, StepTimeUncertainty

FITTED_FILE = Path(__file__).with_name("engine_efficiency.json")
ENGINES = ("vllm", "sglang", "trtllm")
PRECISIONS = ("bf16", "fp8", "fp4", "int4")
STEP_TOKENS = 8192  # token budget of a step, as the engines' recipes set it
_LONG_CONTEXT = 8192  # tokens
_TILE_ROWS = 64  # rows of a grouped product's tile
# The engines take 90 % or more of the memory, and a data sheet's 80 GB are 85e9 bytes.
_MEMORY_SHARE = 0.95
_STATE_BYTES = 2.0  # of a linear-attention layer's state
_KNOTS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)  # packed tokens


@dataclass(frozen=True)
class EngineDeployment:
    """One replica: a model in a precision on `accelerators` of one kind, split by tensor or, in attention, by data."""

    model: CatalogModel
    accelerator: Accelerator
    precision: str = "bf16"
    accelerators: int = 1
    data_parallel_attention: bool = False
    expert_parallel: bool = False

    @property
    def attention_shards(self) -> int:
        """Parts that attention and dense weights are cut into (data parallelism keeps them whole)."""
        return 1 if self.data_parallel_attention else self.accelerators

    @property
    def kv_shards(self) -> int:
        """Parts that the cache of all requests is cut into."""
        if self.data_parallel_attention:
            return self.accelerators
        return self.model.kv_shards(self.accelerators)

    def weight_bytes(self) -> int:
        """Bytes of weights on all accelerators together."""
        whole = self.model.weight_bytes(self.precision)
        copies = self.accelerators // self.attention_shards - 1
        return whole + round(copies * self.model.always_bytes(self.precision))

    def kv_bytes_per_token(self) -> int:
        """Bytes that a token of context takes on all accelerators together (heads that can't be cut are copied)."""
        return self.model.kv_bytes_per_token(self.precision) * self.accelerators // self.kv_shards

    def cache_bytes(self) -> int:
        """Memory left for keys and values.

        Raises:
            DoesNotFitError: the weights alone don't fit; says by how much.
        """
        memory = int(_MEMORY_SHARE * self.accelerator.memory_bytes * self.accelerators)
        left = memory - self.weight_bytes()
        if left <= 0:
            raise DoesNotFitError(
                f"{self.model.name} in {self.precision} needs {self.weight_bytes() / 1e9:,.1f} GB for its weights, "
                f"{self.accelerators} × {self.accelerator.name} offer {memory / 1e9:,.1f} GB: "
                f"{-left / 1e9:,.1f} GB too little"
            )
        return left


def peak_flops(accelerator: Accelerator, precision: str) -> float:
    """Dense peak in FLOP/s of products in `precision`; formats that the accelerator lacks are widened first."""
    peaks = {"fp4": accelerator.peak_fp4_flops, "fp8": accelerator.peak_fp8_flops}
    peak = peaks.get(precision) or accelerator.peak_bf16_flops
    return _known(peak, accelerator, "peak_bf16_flops")


def work(
    deployment: EngineDeployment, concurrency: float, prompt_tokens: float, output_tokens: float
) -> dict[str, float]:
    """The unavoidable work of a closed-loop benchmark at data-sheet speed, in seconds, and its counts.

    Keys are the terms of `closed_loop`; those of a decode step are for `running` requests at mean context, those of
    a prefill (`prefill_…`) for one prompt.
    """
    model, row, precision = deployment.model, deployment.accelerator, deployment.precision
    n, shards = deployment.accelerators, deployment.attention_shards
    bandwidth = _known(row.memory_bandwidth_bytes_per_s, row, "memory_bandwidth_bytes_per_s")
    peak = peak_flops(row, precision)
    wide_peak = peak_flops(row, "bf16")
    dense_peak = peak if precision == "fp8" or not model.experts else wide_peak
    link = _known(row.link_bytes_per_s, row, "link_bytes_per_s") if n > 1 else math.inf
    kv = model.kv_elements_per_layer * KV_BYTES[precision]
    context = prompt_tokens + output_tokens / 2
    fixed = model.sliding_layers * kv * model.window_tokens
    room = _MEMORY_SHARE * row.memory_bytes * n - deployment.weight_bytes()
    each = max(1.0, (model.full_layers * kv * context + fixed) * n / deployment.kv_shards)
    running = min(concurrency, max(1.0, room / each)) if room > 0 else concurrency
    state = 2 * _STATE_BYTES * model.linear_layers * model.linear_value_heads * model.linear_head_dim**2
    expert_s = model.moe_layers * model.expert_bytes(precision) / n / bandwidth
    routed_flops = 2.0 * model.moe_layers * model.expert_parameters / n / peak
    latent = model.full_layers * model.attention_heads * 2 * (2 * model.kv_lora_rank + model.qk_rope_head_dim)
    seen = min(context, model.sparse_tokens) if model.sparse_tokens else context
    token_expert_bytes = (
        model.moe_layers
        * model.active_experts
        * (6 * model.hidden_size + 6 * model.expert_size / (1 if deployment.expert_parallel else n))
    )
    return {
        "running": running,
        "waiting": concurrency / running - 1,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "layers": model.layers,
        "moe_layers": model.moe_layers,
        "reduced_layers": model.layers if n > 1 else 0,
        "weights": (model.always_bytes(precision) / shards + 2 * model.head_parameters / n) / bandwidth,
        "experts": model.touched_experts(running) * expert_s,
        "flops": running * 2 * (model.always_parameters + model.head_parameters) / n / dense_peak,
        "expert_flops": running * model.active_experts * routed_flops,
        "kv": running * (model.full_layers * kv * seen + fixed + state) / deployment.kv_shards / bandwidth,
        "latent": running * seen * latent / n / wide_peak if model.kv_lora_rank else 0.0,
        "reduce": running * _reduce_bytes(model, n) / link,
        "activation": 16.0 * model.layers * model.hidden_size / bandwidth / (n // shards),
        "expert_activation": token_expert_bytes / bandwidth / (n if deployment.expert_parallel else 1),
        "prefill_flops": prompt_tokens * 2 * model.always_parameters / n / dense_peak,
        "prefill_expert_flops": prompt_tokens * model.active_experts * routed_flops,
        "prefill_padding": model.touched_experts(prompt_tokens) * _TILE_ROWS * routed_flops,
        "prefill_experts": model.touched_experts(prompt_tokens) * expert_s,
        "prefill_pairs": model.pair_flops * prompt_tokens**2 / 2 / n / wide_peak,
        "prefill_reduce": prompt_tokens * _reduce_bytes(model, n) / link,
        "dense": 0.0 if model.experts else 1.0,
        **{precision_: float(precision == precision_) for precision_ in PRECISIONS},
    }


def closed_loop(theta: Mapping[str, Any], q: Mapping[str, Any], burst: Any) -> tuple[Any, Any]:
    """(TPOT, TTFT) in seconds from coefficients and `work`; every value a float or an array of one shape.

    Args:
        theta: coefficients, see engine_efficiency.json.
        q: what `work` returns.
        burst: share of the requests that arrive all at once, in [0, 1].
    """
    format_read = (
        theta["fp8_read"] ** q["fp8"] * theta["fp4_read"] ** q["fp4"] * theta["int4_read"] ** q["int4"]
    )
    format_flops = (
        theta["fp8_flops"] ** q["fp8"] * theta["fp4_flops"] ** q["fp4"] * theta["int4_flops"] ** q["int4"]
    )
    # Mixtures of experts in four bits keep their other matrices in bfloat16.
    narrow = q["dense"] + (1 - q["dense"]) * q["fp8"]
    dense_read, dense_flops = format_read**narrow, format_flops**narrow
    token = theta["activation"] * q["activation"] + theta["expert_activation"] * q["expert_activation"]
    overhead = (
        theta["step_s"]
        + theta["layer_s"] * q["layers"]
        + theta["moe_layer_s"] * q["moe_layers"]
        + theta["reduced_layer_s"] * q["reduced_layers"]
    )
    weights = theta["weights"] * dense_read * q["weights"] + theta["experts"] * format_read * q["experts"]
    decode = (
        overhead
        + weights
        + theta["flops"] * (dense_flops * q["flops"] + format_flops * q["expert_flops"])
        + theta["kv"] * q["kv"]
        + theta["latent"] * q["latent"]
        + theta["reduce"] * q["reduce"]
        + (theta["request_s"] + token) * q["running"]
    )
    prefill = (
        theta["prefill_flops"] * dense_flops * q["prefill_flops"]
        + theta["prefill_expert_flops"] * format_flops * q["prefill_expert_flops"]
        + theta["prefill_pairs"] * q["prefill_pairs"]
        + theta["prefill_reduce"] * q["prefill_reduce"]
        + token * q["prompt_tokens"]
    )
    more_experts = (q["prefill_experts"] - q["experts"] + abs(q["prefill_experts"] - q["experts"])) / 2
    per_step = (
        theta["eager_layer_s"] * q["layers"]
        + theta["experts"] * format_read * more_experts
        + theta["prefill_expert_flops"] * theta["padding"] * format_flops * q["prefill_padding"]
    )
    # Of the burst, half of the other prompts go before one's own and are not met again while decoding.
    met = (q["running"] - 1) / q["output_tokens"] * (1 - burst / 2)
    prompts_per_step = (STEP_TOKENS / q["prompt_tokens"] + 1 + abs(STEP_TOKENS / q["prompt_tokens"] - 1)) / 2
    tpot = decode + met * prefill + theta["mixed"] * per_step * (1 - math.e ** (-met))
    load = met * prefill / tpot
    queue = burst / 2 * (q["running"] - 1) + theta["queue"] * load / (1.01 - load)
    ttft = (
        theta["request_start_s"]
        + overhead
        + weights
        + theta["steps_waited"] * decode
        + prefill
        + per_step
        + (prefill + per_step / prompts_per_step) * queue
        + q["waiting"] * tpot * q["output_tokens"]
    )
    return tpot, ttft


@cache
def fitted() -> dict[str, Any]:
    """The shipped fit: coefficients, departures, error on models left out, provenance."""
    loaded: dict[str, Any] = json.loads(FITTED_FILE.read_text(encoding="utf-8"))
    return loaded


def coefficients(engine: str) -> dict[str, float]:
    """The fitted coefficients of an engine, the same on every accelerator.

    Raises:
        InputError: unknown engine.
    """
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r}: allowed are {', '.join(ENGINES)}")
    fit = fitted()
    theta = dict(fit["common"])
    for name, factor in fit["by_engine"][engine].items():
        theta[name] *= factor
    return theta


def step_time(engine: str, deployment: EngineDeployment) -> RooflineStepTime:
    """The engine's step-time model for the simulator, from the same terms as `closed_loop`.

    Up to 256 packed tokens cost what decoding costs, further ones what prefill costs. The interval is that of
    models left out of the fit.
    """
    theta = coefficients(engine)
    q = work(deployment, 1, 1, 1)
    narrow = deployment.precision == "fp8" or not deployment.model.experts
    read = theta.get(f"{deployment.precision}_read", 1.0)
    flops = theta.get(f"{deployment.precision}_flops", 1.0)
    dense_read, dense_flops = (read, flops) if narrow else (1.0, 1.0)
    token = theta["activation"] * q["activation"] + theta["expert_activation"] * q["expert_activation"]
    decode_token = (
        token
        + theta["flops"] * (dense_flops * q["flops"] + flops * q["expert_flops"])
        + theta["reduce"] * q["reduce"]
    )
    prefill_token = (
        token
        + theta["prefill_flops"] * dense_flops * q["prefill_flops"]
        + theta["prefill_expert_flops"] * flops * q["prefill_expert_flops"]
        + theta["prefill_reduce"] * q["prefill_reduce"]
    )
    model, one = deployment.model, deployment.model.touched_experts(1)
    # One expert of each layer: read once, and its tile filled up.
    expert_s = 0.0
    if one:
        padded = (
            theta["prefill_expert_flops"] * theta["padding"] * flops * q["prefill_padding"] * theta["mixed"]
        )
        expert_s = (theta["experts"] * read * q["experts"] + padded) / one

    def ramp_s(tokens: int) -> float:
        beyond = max(0, tokens - 256)
        return (
            expert_s * model.touched_experts(tokens)
            + decode_token * (tokens - beyond)
            + prefill_token * beyond
        )

    slopes = [(ramp_s(b) - ramp_s(a)) / (b - a) for a, b in pairwise(_KNOTS)]
    # Keys and values are linear in the context but for sparse attention, which reads so many and no more.
    short, long = (
        theta["kv"] * at["kv"] + theta["latent"] * at["latent"]
        for at in (work(deployment, 1, context, 0) for context in (0, _LONG_CONTEXT))
    )
    bandwidth = deployment.kv_shards * float(deployment.accelerator.memory_bandwidth_bytes_per_s or math.nan)
    cached = model.kv_bytes_per_token(deployment.precision) / bandwidth
    return RooflineStepTime(
        constant_s=theta["step_s"]
        + theta["layer_s"] * q["layers"]
        + theta["moe_layer_s"] * q["moe_layers"]
        + theta["reduced_layer_s"] * q["reduced_layers"]
        + theta["weights"] * dense_read * q["weights"],
        token_knots=_KNOTS,
        token_slopes_s=(*slopes, prefill_token),
        request_knots=(0,),
        request_slopes_s=(theta["request_s"] + short,),
        decode_context_s=(long - short) / _LONG_CONTEXT,
        chunk_s=theta["mixed"] * theta["eager_layer_s"] * q["layers"],
        prefill_pair_s=2 * theta["prefill_pairs"] * q["prefill_pairs"],
        prefill_context_s=theta["kv"] * cached,
        uncertainty=StepTimeUncertainty(
            relative_sd=fitted()["left_out_error"]["by_engine"][engine]["tpot_log_sd"]
        ),
    )


def _reduce_bytes(model: CatalogModel, accelerators: int) -> float:
    """Bytes that one token sends through each link: two ring all-reduces of a bfloat16 row per layer."""
    return 2 * model.layers * 2 * model.hidden_size * 2 * (accelerators - 1) / accelerators


def _known(value: float | None, row: Accelerator, name: str) -> float:
    if value is None:
        raise InputError(f"accelerator {row.name!r}: its data sheet's {name} is not in the catalog")
    return value
