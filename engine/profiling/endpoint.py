"""A profile of a serving engine that is only seen from outside: any OpenAI-compatible address.

`engine.profiling.endpoint_survey` measures steps and limits, `engine.profiling.fit` fits the same step-time model as
`flywheel profile` does inside, so that a company which runs another engine gets the same scenario results. What no
client can see is named in `method`: `sources` says of each limit whether it was measured, told by the server, given
by the user or assumed.

An address that is rented by the token has no hourly price. Its profile still gives latencies and throughput; its price
per hour is then the bill of the tokens that it would do at the typical load (`engine.profile.cost.TYPICAL_LOAD`) of
what was measured, so that at that load both bills are the same, and at no other: a rented API bills tokens, not
hours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from engine.batch import SchedulerConfig
from engine.errors import InputError
from engine.loadtest.client import Client, Endpoint
from engine.models.catalog import find_model
from engine.prediction.roofline import catalog_shape
from engine.profile.cost import CostTable, cost_table
from engine.profile.hardware import HardwareInfo, hourly_price, lookup
from engine.profile.model_shape import ModelShape
from engine.profile.profile import SCHEMA_VERSION, Profile
from engine.profiling.endpoint_survey import Findings, Survey, measurements
from engine.profiling.profiler import fit_and_judge
from engine.utils.progress import Progress, no_progress

BLOCK_TOKENS = 16
_CONTEXT = 4096  # tokens, where nobody says
_NOT_SEEN = "not visible from outside"


@dataclass(frozen=True)
class Known:
    """What the operator says of an endpoint; None: to be found out, or assumed."""

    price_usd_per_hour: float | None = None  # of one accelerator
    accelerators: int = 1  # behind the address
    accelerator: str | None = None  # its name in engine.profile.hardware's catalog
    usd_per_mtok_prompt: float | None = None  # of a rented API
    usd_per_mtok_output: float | None = None
    precision: str | None = None  # of the weights: "bf16", "fp8", "fp4", "int4"
    parameters: int | None = None  # of a model that isn't in the catalog
    max_context_tokens: int | None = None
    max_running_requests: int | None = None
    max_step_tokens: int | None = None
    kv_cache_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("price_usd_per_hour", 0),
            ("usd_per_mtok_prompt", 0),
            ("usd_per_mtok_output", 0),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise InputError(f"{name} {value}: a finite number ≥ {least} is allowed")
        if self.accelerators < 1:
            raise InputError(f"accelerators {self.accelerators}: allowed is at least 1")
        for name in (
            "parameters",
            "max_context_tokens",
            "max_running_requests",
            "max_step_tokens",
            "kv_cache_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} {value}: allowed is at least 1")
        if (self.usd_per_mtok_prompt is None) != (self.usd_per_mtok_output is None):
            raise InputError("a price per token needs both, that of prompt and that of output tokens")
        if self.by_token and self.price_usd_per_hour is not None:
            raise InputError("found a price per hour and one per token, allowed is one of them")

    @property
    def by_token(self) -> bool:
        """Rented by the token."""
        return self.usd_per_mtok_output is not None


def measure_endpoint(
    endpoint: Endpoint,
    known: Known,
    *,
    budget_s: float = 120.0,
    max_concurrency: int = 256,
    timeout_s: float = 600.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Profile:
    """Measure an endpoint for about `budget_s` seconds and fit its step-time model. Nobody else should use it then.

    Args:
        endpoint: the address, taken as one replica.
        known: what its operator says; at least a price.
        budget_s: seconds; exceeded by the burst under way.
        max_concurrency: most streams at once.
        timeout_s: after which a request is given up.
        seed: of prompts and order.
        progress: called with (fraction done, what is being done).

    Raises:
        InputError: no price, an unknown model without a number of parameters, a server that can't be used or measured.
    """
    return asyncio.run(
        survey_endpoint(
            endpoint,
            known,
            budget_s=budget_s,
            max_concurrency=max_concurrency,
            timeout_s=timeout_s,
            seed=seed,
            progress=progress,
        )
    )


async def survey_endpoint(
    endpoint: Endpoint,
    known: Known,
    *,
    budget_s: float = 120.0,
    max_concurrency: int = 256,
    timeout_s: float = 600.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Profile:
    """`measure_endpoint` in an event loop that runs already."""
    if not 0 < budget_s < math.inf:
        raise InputError(f"budget_s {budget_s}: a positive number of seconds is allowed")
    if max_concurrency < 1:
        raise InputError(f"max_concurrency {max_concurrency}: allowed is at least 1")
    price = None if known.by_token else _price(known)
    async with Client(endpoint, timeout_s) as client:
        dialect = await client.greet(continuous_usage=True)
        shape, shape_source = _shape(dialect.model, known, dialect.max_context_tokens)
        told = await _told(client)
        survey = Survey(
            client,
            shape.max_context_tokens,
            budget_s=budget_s,
            max_concurrency=max_concurrency,
            max_running=known.max_running_requests,
            step_tokens=known.max_step_tokens,
            seed=seed,
            progress=progress or no_progress,
        )
        found = await survey.run()
        if "ignore_eos" not in dialect.fields:
            found.notes.append(
                "the server doesn't take ignore_eos: answers may end early, and bursts with them"
            )
    points = measurements(found)
    coefficients, fit = fit_and_judge(points)
    repeated = [point.spread for point in points if point.repeats > 1]  # a single time shows no noise
    fit = replace(fit, repeat_spread=float(np.median(repeated)) if repeated else 0.0)
    cache_tokens, cache_source = _cache(known, told, found, shape)
    config = SchedulerConfig(
        max_running_requests=found.max_running,
        max_step_tokens=max(found.step_tokens, found.max_running),
        block_tokens=BLOCK_TOKENS,
        num_blocks=-(-cache_tokens // BLOCK_TOKENS),
        prefix_caching=found.prefix_caching is not False,
    )
    sources = {
        "step_times": "measured",
        "max_running_requests": found.max_running_source,
        "max_step_tokens": found.step_tokens_source,
        "num_blocks": cache_source,
        "prefix_caching": "assumed: on"
        if found.prefix_caching is None
        else "measured: the same prompt twice",
        "admission_and_preemption": f"assumed: as this project's scheduler; {_NOT_SEEN}",
        "model_shape": shape_source,
        "power": _NOT_SEEN,
        "quality": _NOT_SEEN,
    }
    limits = {
        "max_step_tokens": config.max_step_tokens,
        "max_running_requests": config.max_running_requests,
        "max_context_tokens": shape.max_context_tokens,
        "cache_tokens": config.cache_tokens,
    }
    if price is None:
        cost, price = _cost_by_token(known, cost_table(coefficients, 1.0, **limits))
    else:
        cost = cost_table(coefficients, price[0], **limits)
    return Profile(
        schema_version=SCHEMA_VERSION,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        kind="measured",
        model=shape,
        hardware=_hardware(endpoint, known, price),
        software=_software(told, dialect.server),
        method={
            "vantage": "measured from outside, over HTTP: gaps between streamed tokens "
            "(engine/profiling/endpoint_steps.py)",
            "endpoint": urlsplit(endpoint.url)._replace(query="", fragment="").geturl(),
            "requests": found.requests,
            "request_form": dialect.describe(),
            "budget_s": budget_s,
            "seed": seed,
            "grid_points": len(points),
            "repeats_median": int(np.median([point.repeats for point in points])),
            "statistic": "median over streams and repeats, bursts in random order",
            "held_out": "every fourth point, on the diagonal of the grid",
            "fit": "non-negative least squares on relative errors, Huber weights",
            "request_overhead_s": round(found.overhead_s, 6),
            "round_trip_s": round(found.round_trip_s, 6),
            "sources": sources,
            "notes": found.notes,
            "training": "an endpoint only serves",
            **(
                {
                    "usd_per_mtok_prompt": known.usd_per_mtok_prompt,
                    "usd_per_mtok_output": known.usd_per_mtok_output,
                }
                if known.by_token
                else {}
            ),
        },
        scheduler=asdict(config),
        coefficients=coefficients,
        fit=fit,
        cost=cost,
        memory={
            "weight_bytes": shape.weight_bytes,
            "kv_bytes_per_token": shape.kv_bytes_per_token,
            "kv_cache_bytes": shape.kv_bytes_per_token * config.cache_tokens,
        },
        power={"mean_w": None, "reason": _NOT_SEEN},
        measurements=tuple(points),
    )


def _price(known: Known) -> tuple[float, str, str]:
    """(USD per hour of all accelerators, source, date)."""
    row = lookup(known.accelerator) if known.accelerator is not None else None
    if known.price_usd_per_hour is None and row is None:
        raise InputError(
            "the price of an endpoint can't be seen from outside: give --price-usd-per-hour (and --accelerators), "
            "or --usd-per-mtok-prompt and --usd-per-mtok-output for one that is paid by the token"
        )
    price, source, date = hourly_price(row, known.accelerator or "endpoint", known.price_usd_per_hour)
    many = known.accelerators
    return price * many, source if many == 1 else f"{many} × {price:.4g}: {source}", date


def _cost_by_token(known: Known, of_a_dollar: CostTable) -> tuple[CostTable, tuple[float, str, str]]:
    """The table and the hourly price of an API that is paid by the token; see the module.

    `of_a_dollar`: the table of the same step times at a price of 1 USD per hour.
    """
    prompt_usd, output_usd = float(known.usd_per_mtok_prompt or 0), float(known.usd_per_mtok_output or 0)
    # In an hour at full load the time of prompts and outputs is shared as their costs are.
    prompts, outputs = (
        of_a_dollar.reference_prompt_tokens,
        2 * (of_a_dollar.reference_context_tokens - of_a_dollar.reference_prompt_tokens),
    )
    request_hours = (
        prompts * of_a_dollar.usd_per_mtok_prompt_full + outputs * of_a_dollar.usd_per_mtok_output_full
    ) / 1e6
    request_usd = (prompts * prompt_usd + outputs * output_usd) / 1e6
    hourly = of_a_dollar.typical_load * request_usd / request_hours
    table = replace(
        of_a_dollar,
        usd_per_mtok_prompt_full=prompt_usd,
        usd_per_mtok_output_full=output_usd,
        usd_per_mtok_prompt_typical=prompt_usd,
        usd_per_mtok_output_typical=output_usd,
        price_usd_per_hour=hourly,
        basis=f"paid by the token: the same at every load; {of_a_dollar.basis}",
    )
    source = (
        f"equivalent, not a price: {prompt_usd:g} and {output_usd:g} USD per million prompt and output tokens, at "
        f"{of_a_dollar.typical_load:.0%} of the measured throughput with {prompts} prompt and {outputs} output tokens"
    )
    return table, (hourly, source, datetime.now(UTC).date().isoformat())


def _shape(name: str, known: Known, told_context: int | None) -> tuple[ModelShape, str]:
    """The model's size, and where it comes from."""
    longest = known.max_context_tokens or told_context
    try:
        model = find_model(name)
    except InputError:
        if known.parameters is None:
            raise InputError(
                f"model {name!r} is not in the catalog (engine/models/catalog.json): give its number of --parameters"
            ) from None
        longest = longest or _CONTEXT
        said = "of the server or the user" if known.max_context_tokens or told_context else "assumed"
        return (
            ModelShape(
                name=name, architecture="unknown", parameters=known.parameters, layers=0, hidden_size=0,
                intermediate_size=0, attention_heads=0, kv_heads=0, head_dim=0, vocab_size=0,
                max_context_tokens=longest, dtype=known.precision or "unknown", weight_bytes=0, kv_bytes_per_token=0,
            ),
            f"parameters given by the user, context {said}; 0 and unknown: {_NOT_SEEN}",
        )  # fmt: skip
    precision = known.precision or "bf16"
    return (
        replace(
            catalog_shape(
                model,
                known.precision or "unknown",
                model.weight_bytes(precision),
                model.kv_bytes_per_token(precision),
                longest,
            ),
            name=name,
        ),
        f"the catalog's {model.name}, bytes as in {precision}" + ("" if known.precision else " (assumed)"),
    )


def _hardware(endpoint: Endpoint, known: Known, price: tuple[float, str, str]) -> HardwareInfo:
    row = lookup(known.accelerator) if known.accelerator is not None else None
    many, host = known.accelerators, urlsplit(endpoint.url).netloc.rpartition("@")[2]
    machine = "" if row is None else f" ({row.name if many == 1 else f'{many} × {row.name}'})"
    return HardwareInfo(
        name=f"endpoint {host}{machine}",
        device="endpoint",
        cores=many,
        threads=many,
        memory_bytes=0 if row is None else row.memory_bytes * many,
        price_usd_per_hour=price[0],
        price_source=price[1],
        price_date=price[2],
    )


async def _told(client: Client) -> dict[str, Any]:
    """What the server says of itself beyond OpenAI's interface: /version, and vLLM's cache in /metrics."""
    told: dict[str, Any] = {}
    status, body, _ = await client.get("/version")
    if status == 200:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told["version"] = str(json.loads(body)["version"])
    status, body, _ = await client.get("/metrics")
    if status == 200:
        line = re.search(rb"^\w+:cache_config_info\{([^}]*)\}", body, re.MULTILINE)
        labels = dict(re.findall(rb'(\w+)="(\d+)"', line.group(1))) if line else {}
        if b"num_gpu_blocks" in labels and b"block_size" in labels:
            told["cache_tokens"] = int(labels[b"num_gpu_blocks"]) * int(labels[b"block_size"])
    return told


def _cache(known: Known, told: dict[str, Any], found: Findings, shape: ModelShape) -> tuple[int, str]:
    """Tokens that the KV cache holds, and where the number comes from."""
    if known.kv_cache_tokens is not None:
        return known.kv_cache_tokens, "given by the user"
    if told.get("cache_tokens"):
        return told["cache_tokens"], "told by the server's /metrics (cache_config_info)"
    if found.cache_tokens is not None:
        return found.cache_tokens, "measured roughly: fewer long contexts ran at once than short ones"
    return (
        found.max_running * shape.max_context_tokens,
        f"assumed: room for {found.max_running} requests of the longest context; {_NOT_SEEN}",
    )


def _software(told: dict[str, Any], server: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        client = version("model-flywheel")
    except PackageNotFoundError:
        client = "not installed"
    found = {"client": f"model-flywheel {client}", "server": server or "doesn't say"}
    if "version" in told:
        found["server_version"] = told["version"]
    return found
