"""The production engines' fitted efficiencies: catalog, physics, shipped error, and agreement with the measurements."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.models.catalog import catalog, find_model
from engine.prediction.engine_efficiency import (
    ENGINES,
    PRECISIONS,
    EngineDeployment,
    closed_loop,
    coefficients,
    fitted,
    peak_flops,
    step_time,
    work,
)
from engine.profile.hardware import lookup
from tests.helpers.places import SHARED

CSV = SHARED / "measured" / "serving_h100_b200_agg.csv"
needs_csv = pytest.mark.skipif(not CSV.is_file(), reason=f"{CSV} is not here")

# Parameters in billions, all and active, as the publishers state them.
PUBLISHED = {
    "llama-3.1-8b": (8.03, None),
    "llama-3.1-70b": (70.6, None),
    "qwen3-32b": (32.8, None),
    "mixtral-8x7b": (46.7, 12.9),
    "qwen3-235b-a22b": (235, 22),
    "gpt-oss-120b": (117, 5.1),
    "minimax-m2.5": (230, 10),
    "deepseek-v3": (671, 37),
    "kimi-k2.5": (1026, 32),
    "glm-5": (744, 40),
    "bloom-7b1": (7.07, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_catalog_counts_the_published_parameters(name: str) -> None:
    total, active = PUBLISHED[name]
    model = find_model(name)
    assert model.parameters / 1e9 == pytest.approx(total, rel=0.01)
    if active:
        assert model.active_parameters / 1e9 == pytest.approx(active, rel=0.06)


def test_models_are_found_by_hub_id_and_alias() -> None:
    assert find_model("deepseek-ai/DeepSeek-R1") is find_model("deepseek-v3")
    assert find_model("Qwen/Qwen3-32B").name == "qwen3-32b"
    with pytest.raises(InputError, match=r"llama-9.*nearest"):
        find_model("llama-9")


def test_every_model_names_its_source() -> None:
    for model in catalog().values():
        assert model.source
        assert model.weight_bytes("bf16") == pytest.approx(2 * model.parameters, rel=1e-9)


def test_a_batch_touches_every_expert_at_last_and_one_token_only_its_own() -> None:
    model = find_model("deepseek-v3")
    assert model.touched_experts(1) == pytest.approx(model.active_experts)
    assert model.touched_experts(10**4) == pytest.approx(model.experts)


def test_latent_attention_is_not_cut_by_tensor_parallelism() -> None:
    h100 = lookup("H100 SXM")
    dense = EngineDeployment(find_model("llama-3.1-70b"), h100, "fp8", 4)
    latent = EngineDeployment(find_model("deepseek-v3"), lookup("B200"), "fp8", 8)
    assert dense.kv_bytes_per_token() == dense.model.kv_bytes_per_token("fp8")
    assert latent.kv_bytes_per_token() == 8 * latent.model.kv_bytes_per_token("fp8")


def test_formats_that_an_accelerator_lacks_run_at_the_wider_peak() -> None:
    assert peak_flops(lookup("H100 SXM"), "fp4") == 989e12
    assert peak_flops(lookup("A100 SXM"), "fp8") == 312e12
    assert peak_flops(lookup("B200"), "fp4") == 9000e12


def test_a_model_that_does_not_fit_says_by_how_much() -> None:
    with pytest.raises(InputError, match=r"671|672.*GB.*too little|GB too little"):
        EngineDeployment(find_model("deepseek-v3"), lookup("H100 SXM"), "fp8").cache_bytes()
    with pytest.raises(InputError, match=r"engine 'vlm'.*vllm"):
        coefficients("vlm")


def test_no_time_is_below_the_data_sheet() -> None:
    """Decoding alone can't beat reading the weights once at full bandwidth, nor prefill its operations at peak."""
    for name in ("llama-3.1-70b", "qwen3-32b"):
        model, row = find_model(name), lookup("H100 SXM")
        deployment = EngineDeployment(model, row, "fp8", 4)
        times = step_time("vllm", deployment)
        assert times.step_time([], [1]) > model.weight_bytes("fp8") / 4 / 3.35e12
        assert times.step_time([(8192, 0)], []) > 2 * 8192 * model.always_parameters / 4 / 1979e12


@pytest.mark.parametrize("engine", ENGINES)
def test_no_coefficient_beats_the_data_sheet(engine: str) -> None:
    theta = coefficients(engine)
    for read in ("fp8_read", "fp4_read", "int4_read"):
        assert theta["weights"] * theta[read] >= 1
    for name in ("weights", "experts", "flops", "latent", "reduce", "prefill_flops", "prefill_pairs"):
        assert theta[name] >= 1
    assert theta["kv"] >= 0.9  # the cache's number format is assumed, not stated in the data


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*PUBLISHED]),
    st.sampled_from(ENGINES),
    st.sampled_from(PRECISIONS),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 256),
    st.integers(1, 8192),
)
def test_more_work_never_takes_less_time(
    name: str, engine: str, precision: str, accelerators: int, batch: int, context: int
) -> None:
    times = step_time(engine, EngineDeployment(find_model(name), lookup("B200"), precision, accelerators))
    alone = times.step_time([], [context] * batch)
    assert 0 < alone < times.step_time([], [context] * (batch + 1))
    assert alone <= times.step_time([], [context + 100] * batch)
    assert alone < times.step_time([(512, 0)], [context] * batch)
    low, high = times.interval([], [context] * batch)
    assert 0 < low < alone < high


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("name", "accelerator", "precision", "accelerators"),
    [
        ("llama-3.1-70b", "B200", "fp8", 2),
        ("qwen3-32b", "H100 SXM", "bf16", 4),
        ("minimax-m2.5", "B200", "fp8", 4),
        ("deepseek-v3", "B200", "fp4", 8),
        ("gpt-oss-120b", "H100 SXM", "fp4", 4),
    ],
)
@pytest.mark.parametrize("batch", [4, 32, 128])
def test_the_simulators_step_time_is_that_of_the_benchmark(
    engine: str, name: str, accelerator: str, precision: str, accelerators: int, batch: int
) -> None:
    """Two ways from the coefficients to a decode step: the closed-loop formula without prefill, and the ramp."""
    deployment = EngineDeployment(find_model(name), lookup(accelerator), precision, accelerators)
    context = 2048
    ramp = step_time(engine, deployment).step_time([], [context] * batch)
    q = work(deployment, batch, context, 0) | {"output_tokens": math.inf}  # so long that no prompt is met
    formula, _ = closed_loop(coefficients(engine), q, 0.0)
    assert ramp == pytest.approx(formula, rel=0.12)  # the ramp also pads the experts' tiles


def test_the_shipped_fit_says_how_wrong_it_is() -> None:
    error = fitted()["left_out_error"]
    assert error["rows"] > 2000
    assert error["all"]["tpot"]["median"] < 0.12
    assert error["all"]["ttft"]["median"] < 0.35
    for engine in ENGINES:  # the interval is wider than the median error
        assert error["by_engine"][engine]["tpot_log_sd"] > error["by_engine"][engine]["tpot"]["median"]
    assert error["by_engine"]["vllm"]["tpot"]["median"] < 0.11
    assert error["by_engine"]["vllm"]["ttft"]["median"] < 0.23


@needs_csv
def test_shipped_coefficients_reproduce_the_measured_points() -> None:
    from tests.bench import fit_engine_efficiency as bench

    rows, terms = bench.read_rows(CSV)
    off, inside = [], []
    for engine in ENGINES:
        own = ((rows.backend == engine) & ~rows.private & ~rows.speculative).to_numpy()
        tpot, _ = closed_loop(
            coefficients(engine), {key: value[own] for key, value in terms.items()}, fitted()["burst"][engine]
        )
        error = np.abs(np.log(tpot / rows.tpot_s[own]))
        off.append(error)
        inside.append(error < 1.645 * fitted()["left_out_error"]["by_engine"][engine]["tpot_log_sd"])
    assert np.median(np.concatenate(off)) < 0.11
    # The interval, made from models left out, holds nine in ten points of models seen.
    assert np.mean(np.concatenate(inside)) > 0.9


@needs_csv
@pytest.mark.slow
def test_models_left_out_are_predicted_as_stated() -> None:
    from tests.bench import fit_engine_efficiency as bench

    rows, terms = bench.read_rows(CSV)
    own = (rows.model == "minimax-m2.5").to_numpy()
    fit = bench.Fit(rows, terms, ~own & ~rows.speculative.to_numpy())
    tpot, ttft = fit.predict(own)
    assert bench.error_row(tpot, rows.tpot_s[own], np.ones(own.sum(), bool))["median"] < 0.1
    assert bench.error_row(ttft, rows.ttft_s[own], np.ones(own.sum(), bool))["median"] < 0.25
