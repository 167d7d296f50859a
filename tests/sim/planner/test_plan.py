"""How many accelerators: serving and training, what the answers must obey, and what a person sees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from engine.errors import InputError
from engine.models.catalog import find_model
from engine.prediction.roofline import predict_profile
from engine.profile.hardware import CATALOG, Accelerator, lookup
from sim.capacity import surface as capacity
from sim.capacity.goals import Objective
from sim.capacity.surface import capacity_surface
from sim.cli import plan as cli_plan
from sim.planner.plan import AcceleratorPlan, accelerators, plan
from sim.planner.serving import ServingNeed, capacity_if_slower, memory_accelerators, serve
from sim.planner.training import TrainingNeed, memory_to_train, published_mfu, train

T = TypeVar("T")
A100, H100 = lookup("A100 SXM"), lookup("H100 SXM")
OBJECTIVE = Objective(2.0, 0.1)
NEED = ServingNeed(5.0, "chat", OBJECTIVE)
MODELS = ("bloom-560m", "bloom-7b1", "llama-2-70b", "bloom-176b", "deepseek-v3")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this file's own, of surfaces from fewer requests than usual: quicker, and a little rougher."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capacity, "REQUESTS_PER_RATE", 1000)
        yield tmp_path_factory.mktemp("surfaces")


def known(value: T | None) -> T:
    assert value is not None
    return value


@pytest.fixture(scope="module")
def small(cache: Path) -> AcceleratorPlan:
    return plan("bloom-560m", ["A100 SXM"], serving=NEED, cache_dir=cache)


@pytest.fixture(scope="module")
def large(cache: Path) -> AcceleratorPlan:
    return plan("bigscience/bloom", ["A100 SXM"], serving=NEED, cache_dir=cache)


def test_the_articles_four_accelerators_for_bloom_560m(small: AcceleratorPlan) -> None:
    served, trained = small.serving[0], small.training[0]
    assert small.claim is not None
    assert small.claim.accelerators == 4
    assert served.accelerators == served.accelerators_low == served.accelerators_high == 1
    assert (trained.memory_accelerators, trained.accelerators) == (1, 2)
    assert small.claim.trains_in_days == pytest.approx(28, abs=1)
    assert small.claim.serves_rps is not None
    assert small.claim.serves_rps > 10 * NEED.rate_rps
    assert any("neither a purpose" in reason for reason in small.claim.reasons)
    assert small.tokens == 341e9


def test_the_articles_1024_accelerators_for_bloom_176b(large: AcceleratorPlan) -> None:
    served, trained = large.serving[0], large.training[0]
    assert large.claim is not None
    assert large.claim.accelerators == 1024
    assert served.width == 8
    assert served.accelerators is not None
    assert served.accelerators < 100
    assert 48 <= (trained.memory_accelerators or 0) <= 64  # one copy of BLOOM took 48 GPUs
    assert known(trained.accelerators_low) <= 384 <= known(trained.accelerators_high)
    assert large.published[0].accelerators == 384
    assert large.published[0].days == pytest.approx(117.5, abs=0.1)
    assert any("384" in reason and "2.7 times" in reason for reason in large.claim.reasons)


def test_blooms_own_days_take_about_its_own_accelerators() -> None:
    model = find_model("bloom-176b")
    answer = train(model, A100, TrainingNeed(366e9, 1_082_990 / 384 / 24, mfu=published_mfu()[0]), None)
    assert answer.accelerators == pytest.approx(384, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(MODELS), st.sampled_from([A100, H100]), st.floats(1e10, 2e12), st.floats(20, 400),
    st.floats(1.05, 3),
)  # fmt: skip
def test_training_takes_more_for_more_tokens_and_less_for_more_days(
    name: str, row: Accelerator, tokens: float, days: float, factor: float
) -> None:
    model = find_model(name)
    usual = train(model, row, TrainingNeed(tokens, days), 2.0)
    more = train(model, row, TrainingNeed(tokens * factor, days), 2.0)
    longer = train(model, row, TrainingNeed(tokens, days * factor), 2.0)
    count = known(usual.accelerators)
    assert known(longer.accelerators) <= count <= known(more.accelerators)
    assert known(usual.plan).hours <= days * 24
    assert known(usual.memory_accelerators) <= count
    assert known(usual.accelerators_low) <= count <= known(usual.accelerators_high)
    assert (usual.decided_by == "memory") == (usual.accelerators == usual.memory_accelerators)


@settings(deadline=None)
@given(st.floats(0.01, 50), st.sampled_from(MODELS))
def test_money_scales_with_the_price(factor: float, name: str) -> None:
    model, need = find_model(name), TrainingNeed(1e11, 60, budget_usd=1e5)
    one, other = train(model, H100, need, 2.0), train(model, H100, need, 2.0 * factor)
    usd, tokens = known(one.usd), known(one.tokens_in_budget)
    assert other.usd == pytest.approx(usd * factor)
    assert other.tokens_in_budget == pytest.approx(tokens / factor)
    assert usd * tokens / need.tokens == pytest.approx(1e5)


def test_memory_is_weighed_before_speed() -> None:
    gpt3 = find_model("gpt-3")
    assert memory_accelerators(gpt3, A100, "bf16") == 5
    assert memory_accelerators(gpt3, A100, "fp8") == 3
    assert memory_to_train(find_model("bloom-560m"), A100) == 1
    tiny = replace(A100, memory_bytes=2 * 10**9)
    assert memory_to_train(gpt3, tiny) is None
    assert "don't fit" in train(gpt3, tiny, TrainingNeed(3e11, 100), None).note


def test_more_load_never_takes_fewer(cache: Path) -> None:
    model = find_model("llama-2-7b")
    found = [
        serve(model, A100, replace(NEED, rate_rps=rate), 1.5, cache_dir=cache) for rate in (1, 10, 100, 1000)
    ]
    counts = [answer.accelerators or 0 for answer in found]
    assert counts == sorted(counts)
    assert counts[-1] > 1
    for answer in found:
        count = known(answer.accelerators)
        assert count == known(answer.replicas) * known(answer.width)
        assert known(answer.accelerators_low) <= count
        assert answer.accelerators_high is None or answer.accelerators_high >= count
        assert answer.usd_per_hour == count * 1.5
        assert known(answer.tpot_p95_s) <= OBJECTIVE.tpot_p95_s * 1.01


def test_a_slower_machine_needs_no_new_simulation(cache: Path) -> None:
    """Its capacity from the surface of the faster one, against a surface simulated with slower steps."""
    profile = predict_profile(None, "A100 SXM", "llama-2-7b", "bf16", 1, "vllm", 1.0)
    times, factor = profile.coefficients, 1.25
    slower = replace(
        profile,
        coefficients=replace(
            times,
            constant_s=times.constant_s * factor,
            token_slopes_s=tuple(slope * factor for slope in times.token_slopes_s),
            request_slopes_s=tuple(slope * factor for slope in times.request_slopes_s),
            decode_context_s=times.decode_context_s * factor,
            chunk_s=times.chunk_s * factor,
            prefill_pair_s=times.prefill_pair_s * factor,
            prefill_context_s=times.prefill_context_s * factor,
        ),
    )
    objective = Objective(2.0, 0.04)
    surface = capacity_surface(profile, {"chat": 1.0}, objective, cache_dir=cache)
    simulated = capacity_surface(slower, {"chat": 1.0}, objective, cache_dir=cache)
    assert capacity_if_slower(surface, objective, 1.0) == pytest.approx(surface.capacity_rps)
    assert capacity_if_slower(surface, objective, factor) == pytest.approx(simulated.capacity_rps, rel=0.05)
    assert capacity_if_slower(surface, objective, 100.0) is None


def test_what_cannot_be_said_says_why(cache: Path) -> None:
    unknown = serve(find_model("bloom-560m"), lookup("A6000"), NEED, None, cache_dir=cache)
    assert (unknown.accelerators, unknown.memory_accelerators) == (None, 1)
    assert "no data sheet" in unknown.note
    assert "no data sheet" in train(find_model("gpt-3"), lookup("A6000"), TrainingNeed(3e11, 100), None).note
    wide = serve(find_model("deepseek-v3"), A100, NEED, None, cache_dir=cache)
    assert wide.memory_accelerators > 8
    assert "more than one machine" in wide.note
    hasty = serve(
        find_model("bloom-560m"), A100, replace(NEED, objective=Objective(1e-5, 0.1)), 1.0, cache_dir=cache
    )
    assert hasty.accelerators is None
    assert "best achievable" in hasty.note
    fast = train(find_model("llama-3.1-405b"), A100, TrainingNeed(15.6e12, 0.01), None)
    assert fast.accelerators is None
    assert "failures come too fast" in fast.note


def test_accelerators_are_named_or_all() -> None:
    assert accelerators("all") == accelerators([" ALL "]) == list(CATALOG)
    assert accelerators(["H100", "h100 sxm", "A100 SXM"]) == [H100, A100]
    for bad in ([], [" "], ["H900"], ["A100"]):
        with pytest.raises(InputError):
            accelerators(bad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "llama-9"], "nearest"),
        (["--model", "gpt-3", "--on", "Q5"], "not in the catalog"),
        (["--model", "gpt-3", "--precision", "int9"], "precision 'int9'"),
        (["--model", "gpt-3", "--traffic", "mail"], "traffic.mail"),
        (["--model", "gpt-3", "--engine", "qllm"], "engine 'qllm'"),
        (["--model", "gpt-3", "--rate", "0"], "rate 0"),
        (["--model", "gpt-3", "--days", "nan"], "days nan"),
        (["--model", "gpt-3", "--mfu", "38"], "mfu 38"),
        (["--model", "gpt-3", "--budget-usd", "-1"], "budget_usd -1"),
        (["--model", "gpt-3", "--price-usd-per-hour", "-1"], "price_usd_per_hour"),
        (["--model", "gpt-3", "--ttft-p95", "0"], "ttft_p95_s"),
    ],
)
def test_bad_questions_are_refused_in_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(_app(), arguments)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_person_reads_a_table_and_a_script_json(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "160")
    arguments = ["--model", "bloom-560m", "--on", "H100 SXM,A6000", "--budget-usd", "100"]
    shown = CliRunner().invoke(_app(), arguments)
    assert shown.exit_code == 0, shown.exception
    for text in (
        "PREDICTED",
        "The article's claim: 4 A100 SXM 80 GB",
        "above the budget of $100",
        "Assumptions",
    ):
        assert text in shown.stdout
    answer = json.loads(CliRunner().invoke(_app(), [*arguments, "--json"]).stdout)
    assert answer["claim"]["accelerators"] == 4
    assert [row["accelerator"] for row in answer["training"]] == ["H100 SXM 80 GB", "A6000 48 GB"]
    assert answer["serving"][1]["accelerators"] is None
    assert answer["training"][0]["plan"]["effective_fraction"] > 0.99


def _app() -> typer.Typer:
    app = typer.Typer()
    app.command()(cli_plan.plan)
    return app
