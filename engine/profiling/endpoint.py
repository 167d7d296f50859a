"""A profile of a serving engine that is only seen from outside: any OpenAI-compatible address.

`engine.profiling.endpoint_survey` measures steps and limits, `engine.profiling.fit` fits the same step-time model as
`flywheel profile` does inside, so that a company which runs another engine gets the same scenario results. What no
client can see is named in `method`: `sources` says of each limit whether it was measured, reported by the server,
given by the user or assumed.

An address that is rented by the token has no hourly price. Its profile still gives latencies and throughput; its price
per hour is then the bill of the tokens that it would do at the typical load (`engine.profile.cost.TYPICAL_LOAD`) of
what was measured, so that at that load both bills are the same, and at no other: a rented API bills tokens, not
hours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from engine.batch import SchedulerConfig
from engine.errors import InputError
from engine.loadtest.client import Client, Endpoint
from engine.models.catalog import find_model
from engine.profile.cost import CostTable, cost_table
from engine.profile.hardware import HardwareInfo, hourly_price, lookup
from engine.profile.model_shape import ModelShape
from engine.profile.profile import SCHEMA_VERSION, Measurement, Profile
from engine.profiling.endpoint_options import Known, SurveyOptions
from engine.profiling.endpoint_survey import Findings, Survey, measurements
from engine.profiling.fit import FIT_METHOD, fit_and_judge
from engine.utils.progress import Progress, no_progress

BLOCK_TOKENS = 16
_CONTEXT = 4096  # tokens, where neither server nor operator gives it
_NOT_SEEN = "not visible from outside"


def measure_endpoint(
    endpoint: Endpoint,
    known: Known,
    options: SurveyOptions,
    progress: Progress = no_progress,
) -> Profile:
    """Measure an endpoint and fit its step-time model. It must serve no other requests meanwhile.

    Args:
        endpoint: the address, taken as one replica.
        known: what its operator knows; at least a price.
        options: time, concurrency and seed of the measurements.
        progress: called with (fraction done, what is being done).

    Raises:
        InputError: no price, an unknown model without a number of parameters, a server that can't be used or measured.
    """
    return asyncio.run(survey_endpoint(endpoint, known, options, progress))


async def survey_endpoint(
    endpoint: Endpoint,
    known: Known,
    options: SurveyOptions,
    progress: Progress = no_progress,
) -> Profile:
    """`measure_endpoint` in an event loop that runs already."""
    price = None if known.by_token else _price(known)
    async with Client(endpoint, options.timeout_s) as client:
        dialect = await client.greet(continuous_usage=True)
        shape, shape_source = _shape(dialect.model, known, dialect.max_context_tokens)
        reported = await _reported(client)
        found = await Survey(client, shape.max_context_tokens, known, options, progress).run()
    if "ignore_eos" not in dialect.fields:
        found.notes.append("the server doesn't take ignore_eos: answers may end early, and bursts with them")
    points = measurements(found)
    coefficients, fit = fit_and_judge(points)
    repeated = [point.spread for point in points if point.repeats > 1]  # a single time shows no noise
    fit = replace(fit, repeat_spread=float(np.median(repeated)) if repeated else 0.0)
    cache_tokens, cache_source = _cache(known, reported, found, shape)
    config = SchedulerConfig(
        max_running_requests=found.max_running,
        max_step_tokens=max(found.step_tokens, found.max_running),
        block_tokens=BLOCK_TOKENS,
        num_blocks=-(-cache_tokens // BLOCK_TOKENS),
        prefix_caching=found.prefix_caching is not False,
    )
    cost = cost_table(coefficients, 1.0 if price is None else price[0], config, shape.max_context_tokens)
    if price is None:
        cost, price = _cost_by_token(known, cost)
    return Profile(
        schema_version=SCHEMA_VERSION,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        kind="measured",
        model=shape,
        hardware=_hardware(endpoint, known, price),
        software=_software(reported, dialect.server),
        method=_method(endpoint, known, options, found, points, _sources(found, cache_source, shape_source)),
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


def _method(
    endpoint: Endpoint,
    known: Known,
    options: SurveyOptions,
    found: Findings,
    points: Sequence[Measurement],
    sources: dict[str, str],
) -> dict[str, Any]:
    """How the profile was measured."""
    method: dict[str, Any] = {
        "vantage": "measured from outside, over HTTP: gaps between streamed tokens "
        "(engine/profiling/endpoint_steps.py)",
        "endpoint": urlsplit(endpoint.url)._replace(query="", fragment="").geturl(),
        "requests": found.requests,
        "request_form": found.request_form,
        "budget_s": options.budget_s,
        "seed": options.seed,
        "grid_points": len(points),
        "repeats_median": int(np.median([point.repeats for point in points])),
        "statistic": "median over streams and repeats, bursts in random order",
        **FIT_METHOD,
        "request_overhead_s": round(found.overhead_s, 6),
        "round_trip_s": round(found.round_trip_s, 6),
        "sources": sources,
        "notes": found.notes,
        "training": "an endpoint only serves",
    }
    if known.by_token:
        method["usd_per_mtok_prompt"] = known.usd_per_mtok_prompt
        method["usd_per_mtok_output"] = known.usd_per_mtok_output
    return method


def _sources(found: Findings, cache: str, shape: str) -> dict[str, str]:
    """Where each part of the profile comes from."""
    repeated = "measured: the same prompt twice"
    return {
        "step_times": "measured",
        "max_running_requests": found.max_running_source,
        "max_step_tokens": found.step_tokens_source,
        "num_blocks": cache,
        "prefix_caching": "assumed: on" if found.prefix_caching is None else repeated,
        "admission_and_preemption": f"assumed: as this project's scheduler; {_NOT_SEEN}",
        "model_shape": shape,
        "power": _NOT_SEEN,
        "quality": _NOT_SEEN,
    }


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


def _shape(name: str, known: Known, reported_context: int | None) -> tuple[ModelShape, str]:
    """The model's size, and where it comes from."""
    longest = known.max_context_tokens or reported_context
    try:
        model = find_model(name)
    except InputError:
        if known.parameters is None:
            raise InputError(
                f"model {name!r} is not in the catalog (engine/models/catalog.json): give its number of --parameters"
            ) from None
        longest = longest or _CONTEXT
        said = "of the server or the user" if known.max_context_tokens or reported_context else "assumed"
        return (
            ModelShape(
                name=name, architecture="unknown", parameters=known.parameters, layers=0, hidden_size=0,
                intermediate_size=0, attention_heads=0, kv_heads=0, head_dim=0, vocab_size=0,
                max_context_tokens=longest, dtype=known.precision or "unknown", weight_bytes=0, kv_bytes_per_token=0,
            ),
            f"parameters given by the user, context {said}; 0 and unknown: {_NOT_SEEN}",
        )  # fmt: skip
    precision = known.precision or "bf16"
    shape = model.shape(
        known.precision or "unknown",
        model.weight_bytes(precision),
        model.kv_bytes_per_token(precision),
        longest,
    )
    assumed = "" if known.precision else " (assumed)"
    return replace(shape, name=name), f"the catalog's {model.name}, bytes as in {precision}{assumed}"


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


async def _reported(client: Client) -> dict[str, Any]:
    """What the server reports beyond OpenAI's interface: /version, and vLLM's cache in /metrics."""
    reported: dict[str, Any] = {}
    status, body, _ = await client.get("/version")
    if status == 200:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            reported["version"] = str(json.loads(body)["version"])
    status, body, _ = await client.get("/metrics")
    if status == 200:
        line = re.search(rb"^\w+:cache_config_info\{([^}]*)\}", body, re.MULTILINE)
        labels = dict(re.findall(rb'(\w+)="(\d+)"', line.group(1))) if line else {}
        if b"num_gpu_blocks" in labels and b"block_size" in labels:
            reported["cache_tokens"] = int(labels[b"num_gpu_blocks"]) * int(labels[b"block_size"])
    return reported


def _cache(known: Known, reported: dict[str, Any], found: Findings, shape: ModelShape) -> tuple[int, str]:
    """Tokens that the KV cache holds, and where the number comes from."""
    if known.kv_cache_tokens is not None:
        return known.kv_cache_tokens, "given by the user"
    if reported.get("cache_tokens"):
        return reported["cache_tokens"], "told by the server's /metrics (cache_config_info)"
    if found.cache_tokens is not None:
        return found.cache_tokens, "measured roughly: fewer long contexts ran at once than short ones"
    return (
        found.max_running * shape.max_context_tokens,
        f"assumed: room for {found.max_running} requests of the longest context; {_NOT_SEEN}",
    )


def _software(reported: dict[str, Any], server: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        client = version("model-flywheel")
    except PackageNotFoundError:
        client = "not installed"
    found = {"client": f"model-flywheel {client}", "server": server or "doesn't say"}
    if "version" in reported:
        found["server_version"] = reported["version"]
    return found
