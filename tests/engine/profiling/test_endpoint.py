"""Profiles from outside, of an engine whose step times and limits are known (see helpers_endpoint.EngineApp)."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from engine.batch import SchedulerConfig
from engine.errors import InputError
from engine.profile.profile import Profile
from engine.profile.step_time import RooflineStepTime
from engine.profiling.endpoint import survey_endpoint
from engine.profiling.endpoint_options import Known, SurveyOptions
from engine.profiling.endpoint_steps import as_budget, chunk_of
from sim.capacity.goals import Objective
from sim.capacity.surface import capacity_surface
from tests.helpers.endpoint import EngineApp, endpoint, models, run, serving, stream_of, token
from tests.helpers.profile import synthetic_profile

LIMITS = SchedulerConfig(
    max_running_requests=24, max_step_tokens=256, block_tokens=16, num_blocks=3072, prefix_caching=False
)
TRUE = RooflineStepTime(
    constant_s=0.02,
    token_knots=(0, 16, 64),
    token_slopes_s=(0.0005, 0.0006, 0.0007),
    request_knots=(0,),
    request_slopes_s=(0.0003,),
    decode_context_s=2e-6,
    chunk_s=0.001,
    prefill_pair_s=1e-7,
    prefill_context_s=1e-6,
)


def surveyed(engine: EngineApp, known: Known, budget_s: float = 45.0) -> Profile:
    async def work() -> Profile:
        async with serving(engine.app) as url:
            return await survey_endpoint(endpoint(url), known, SurveyOptions(budget_s))

    return run(work())


@pytest.fixture(scope="module")
def found() -> Profile:
    engine = EngineApp(TRUE, LIMITS, http_s=0.004, longest=2048)
    return surveyed(engine, Known(price_usd_per_hour=2.0, accelerators=3, parameters=10**9))


@pytest.mark.parametrize(
    ("prefill", "contexts"),
    [
        ([], [16]),
        ([], [20] * 8),
        ([], [300] * 24),
        ([], [30, 100, 900, 40]),  # mixed ages were never measured
        ([(200, 0)], []),
        ([(64, 0)], [50] * 4),
        ([(232, 0)], [100] * 23),
        ([(128, 0), (100, 0)], [60] * 12),
    ],
)
def test_step_times_are_the_engines(found: Profile, prefill: Any, contexts: Any) -> None:
    assert found.step_time(prefill, contexts) == pytest.approx(TRUE.step_time(prefill, contexts), rel=0.03)


def test_limits_are_the_engines_and_say_where_they_come_from(found: Profile) -> None:
    limits, sources = found.scheduler_config(), found.method["sources"]
    assert limits.max_running_requests == 24
    assert "24 of 32 ran at once" in sources["max_running_requests"]
    assert limits.max_step_tokens == 256
    assert sources["max_step_tokens"].startswith("measured")
    assert limits.prefix_caching is False
    assert sources["num_blocks"].startswith("assumed")
    assert limits.cache_tokens == 24 * 2048
    assert found.model.max_context_tokens == 2048  # the server said so
    # A request on its way takes 4 ms, and a first token a chunk's overhead more than a decode.
    assert found.method["request_overhead_s"] == pytest.approx(0.004, abs=0.0015)
    assert found.kind == "measured"
    assert "outside" in found.method["vantage"]


def test_every_step_that_was_told_apart_took_what_the_engine_took(found: Profile) -> None:
    errors = [
        point.time_s / TRUE.step_time(point.prefill, point.decode_contexts) - 1
        for point in found.measurements
        if point.kind != "prefill"  # of these the way is subtracted, which is known to a millisecond
    ]
    assert len(errors) > 30
    assert max(map(abs, errors)) < 0.02


@pytest.mark.slow
def test_the_company_gets_the_capacity_that_it_has(found: Profile, tmp_path: Path) -> None:
    objective = Objective(5.0, 0.25)
    truth = replace(found, coefficients=TRUE)
    truth = replace(truth, scheduler={**truth.scheduler, "num_blocks": LIMITS.num_blocks})
    rates = [
        capacity_surface(profile, {"chat": 1.0}, objective, cache_dir=tmp_path).capacity_rps
        for profile in (found, truth)
    ]
    assert rates[0] == pytest.approx(rates[1], rel=0.05)


def test_the_profile_is_a_file_like_any_other(found: Profile, tmp_path: Path) -> None:
    found.save(tmp_path / "p.json")
    again = Profile.load(tmp_path / "p.json")
    assert again.content_hash == found.content_hash
    assert again.hardware.price_usd_per_hour == 6.0
    assert again.hardware.price_source.startswith("3 × 2")


def test_a_price_by_the_token_is_the_same_bill_at_the_typical_load() -> None:
    engine = EngineApp(TRUE, LIMITS, longest=2048)
    known = Known(usd_per_mtok_prompt=0.5, usd_per_mtok_output=2.0, parameters=10**9, max_step_tokens=256)
    found = surveyed(engine, known, budget_s=8.0)
    cost, usd_per_s = found.cost, found.hardware.price_usd_per_hour / 3600
    assert (cost.usd_per_mtok_prompt_full, cost.usd_per_mtok_output_typical) == (0.5, 2.0)
    assert found.method["usd_per_mtok_output"] == 2.0
    assert "equivalent, not a price" in found.hardware.price_source
    # Machine time of one reference request at full load, by hand: its prompt in full steps, its answer in shared ones.
    prompt, answer = 1024, 256
    chunks = [found.step_time([(256, 256 * i)]) for i in range(4)]
    context, batch = cost.reference_context_tokens, cost.efficient_batch
    request_s = sum(chunks) + answer * found.step_time([], [context] * batch) / batch
    at_typical_load = usd_per_s * request_s / cost.typical_load
    assert at_typical_load == pytest.approx((prompt * 0.5 + answer * 2.0) / 1e6, rel=1e-6)


def test_what_the_operator_or_the_server_says_is_taken() -> None:
    engine = EngineApp(TRUE, LIMITS, longest=2048)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text='vllm:cache_config_info{block_size="16",num_gpu_blocks="777"} 1.0\n')

    async def version(_: web.Request) -> web.Response:
        return web.json_response({"version": "0.19.1"})

    engine.app.router.add_get("/metrics", metrics)
    engine.app.router.add_get("/version", version)
    known = Known(
        1.0, parameters=10**9, max_running_requests=10, max_step_tokens=128, max_context_tokens=1024
    )
    found = surveyed(engine, known, budget_s=6.0)
    limits, sources = found.scheduler_config(), found.method["sources"]
    assert (limits.max_running_requests, limits.max_step_tokens) == (10, 128)
    assert sources["max_running_requests"] == sources["max_step_tokens"] == "given by the user"
    assert limits.cache_tokens == 777 * 16
    assert "cache_config_info" in sources["num_blocks"]
    assert found.software["server_version"] == "0.19.1"
    assert found.model.max_context_tokens == 1024


@pytest.mark.slow
def test_a_small_cache_shows_in_long_contexts() -> None:
    engine = EngineApp(TRUE, replace(LIMITS, num_blocks=400), longest=2048)
    found = surveyed(engine, Known(1.0, parameters=10**9), budget_s=120.0)
    assert found.scheduler["max_running_requests"] == 24  # short ones all fit
    assert found.method["sources"]["num_blocks"].startswith("measured roughly")
    assert found.scheduler_config().cache_tokens == pytest.approx(400 * 16, rel=0.25)


def test_a_server_that_refuses_many_at_once_is_measured_up_to_there() -> None:
    engine = EngineApp(TRUE, LIMITS, longest=2048)

    going = 0

    @web.middleware
    async def at_most_six(request: web.Request, handler: Any) -> web.StreamResponse:
        nonlocal going
        if going >= 6 and request.method == "POST":
            return web.json_response({"error": {"message": "rate limit"}}, status=429)
        going += 1
        try:
            return await handler(request)
        finally:
            going -= 1

    engine.app.middlewares.append(at_most_six)
    found = surveyed(engine, Known(1.0, parameters=10**9), budget_s=30.0)
    assert found.scheduler["max_running_requests"] == 6
    assert "refused" in found.method["sources"]["max_running_requests"]
    assert any("rate limit" in note for note in found.method["notes"])


def test_streams_that_share_no_steps_are_told() -> None:
    """A replica for each request: a prompt stretches nobody's gap."""

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        await asyncio.sleep(0.01 + 0.001 * len(body["prompt"]))
        response = await stream_of(request)
        for i in range(body["max_tokens"]):
            await asyncio.sleep(0.01)
            usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": i + 1}
            await response.write(token(ended=i + 1 == body["max_tokens"], usage=usage))
        return response

    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    app.router.add_get("/v1/models", models("m", longest=2048))

    async def work() -> Profile:
        async with serving(app) as url:
            known = Known(1.0, parameters=10**9)
            return await survey_endpoint(endpoint(url), known, SurveyOptions(20.0, max_concurrency=8))

    found = run(work())
    assert not [point for point in found.measurements if point.kind == "mixed"]
    assert any("several replicas" in note for note in found.method["notes"])
    assert "more were not tried" in found.method["sources"]["max_running_requests"]
    decodes = [point.time_s for point in found.measurements if point.kind == "decode"]
    assert decodes == pytest.approx([0.01] * len(decodes), rel=0.01)


@given(st.integers(2, 12), st.integers(64, 4096), st.floats(0.001, 0.1), st.floats(1e-5, 1e-3), st.data())
def test_a_chunk_is_found_in_the_gaps_it_stretches(
    chunks: int, chunk: int, plain_s: float, token_s: float, data: st.DataObject
) -> None:
    rest = data.draw(st.integers(0, chunk // 3))
    gaps = [plain_s] + [plain_s + chunk * token_s] * chunks + ([plain_s + rest * token_s] if rest else [])
    assert chunk_of(gaps, plain_s, chunks * chunk + rest) == pytest.approx(chunk, abs=1)
    assert chunk_of([plain_s, plain_s + chunk * token_s], plain_s, chunk) is None
    # Each chunk reads what the earlier ones left: here it takes a third of the first one longer than the one before.
    growing = [plain_s + chunk * token_s * (1 + i / 3) for i in range(chunks)]
    last = [plain_s + rest * token_s * (1 + chunks / 3)] if rest else []
    assert chunk_of([plain_s, *growing, *last], plain_s, chunks * chunk + rest) == pytest.approx(
        chunk, rel=0.02
    )


def test_budgets_are_the_powers_of_two_that_engines_set() -> None:
    assert [as_budget(x) for x in (255, 511.7, 2047, 2300, 8000, 3000)] == [256, 512, 2048, 2048, 8192, 3000]


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({}, "give --price-usd-per-hour"),
        ({"price_usd_per_hour": 1.0}, "give its number of --parameters"),
        ({"price_usd_per_hour": -1.0}, "price_usd_per_hour -1.0"),
        ({"price_usd_per_hour": math.nan}, "price_usd_per_hour nan"),
        ({"usd_per_mtok_prompt": 1.0}, "needs both"),
        ({"price_usd_per_hour": 1.0, "usd_per_mtok_prompt": 1.0, "usd_per_mtok_output": 1.0}, "one of them"),
        ({"price_usd_per_hour": 1.0, "accelerators": 0}, "accelerators 0"),
        ({"accelerator": "H900"}, "H900"),
    ],
)
def test_what_cannot_be_known_is_asked_for(known: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        surveyed(EngineApp(TRUE, LIMITS), Known(**known))


@pytest.mark.slow
def test_a_scenario_runs_on_it() -> None:
    """The same company on the same machine, its speed seen from outside: the same books to a few percent."""
    from sim.company.simulate import simulate
    from sim.scenario.scenario import Scenario

    inside = synthetic_profile()
    config = inside.scheduler_config()
    engine = EngineApp(inside.step_time_model(), config, longest=inside.model.max_context_tokens)
    known = Known(
        price_usd_per_hour=inside.hardware.price_usd_per_hour,
        parameters=inside.model.parameters,
        kv_cache_tokens=config.cache_tokens,
    )
    outside = surveyed(engine, known, budget_s=60.0)
    outside = replace(outside, model=inside.model)
    scenario = Scenario.load("api_startup").override({"horizon_months": 6})
    ours, theirs = (simulate(scenario, seed=1, profile=profile).headline for profile in (outside, inside))
    for name in ("revenue_usd_total", "cash_usd_end", "serving_cost_usd_per_mtok_last", "replicas_peak"):
        assert ours[name] == pytest.approx(theirs[name], rel=0.05)
