from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InputError
from engine.training.scaling_law import (
    BESIROGLU_2024,
    HOFFMANN_2022,
    ScalingConstants,
    compute_optimal,
    fit,
    loss,
    training_flop,
    training_hours,
)

sizes = st.floats(1e6, 1e13)
budgets = st.floats(1e15, 1e26)
laws = st.builds(
    ScalingConstants,
    E=st.floats(0.5, 3),
    A=st.floats(10, 5000),
    B=st.floats(10, 5000),
    alpha=st.floats(0.1, 0.8),
    beta=st.floats(0.1, 0.8),
)


def test_chinchilla_is_near_its_published_loss() -> None:
    # Chinchilla, 70e9 parameters and 1.4e12 tokens: L = 1.69 + 0.083 + 0.163 with the published constants.
    assert loss(70e9, 1.4e12, HOFFMANN_2022) == pytest.approx(1.936, abs=0.002)
    assert loss(70e9, 1.4e12) == pytest.approx(1.97, abs=0.02)


@given(law=laws, n=sizes, d=sizes, growth=st.floats(1.01, 100))
def test_more_parameters_or_tokens_never_hurt(
    law: ScalingConstants, n: float, d: float, growth: float
) -> None:
    here = loss(n, d, law)
    assert here > law.E
    assert loss(n * growth, d, law) < here
    assert loss(n, d * growth, law) < here


@given(law=laws, budget=budgets, shift=st.floats(0.05, 20))
def test_no_other_split_of_the_budget_beats_the_optimum(
    law: ScalingConstants, budget: float, shift: float
) -> None:
    n, d = compute_optimal(budget, law)
    assert training_flop(n, d) == pytest.approx(budget, rel=1e-9)
    assert loss(n, d, law) <= loss(n * shift, d / shift, law) * (1 + 1e-12)


@given(law=laws, budget=budgets)
def test_a_larger_budget_buys_a_larger_model_more_tokens_and_a_lower_loss(
    law: ScalingConstants, budget: float
) -> None:
    small, large = compute_optimal(budget, law), compute_optimal(2 * budget, law)
    assert large[0] > small[0]
    assert large[1] > small[1]
    assert loss(*large, law) < loss(*small, law)


def test_about_twenty_tokens_per_parameter_are_optimal() -> None:
    # Besiroglu et al. 2024: the refitted law agrees with Chinchilla's own 20 tokens per parameter.
    n, d = compute_optimal(5.76e23)
    assert 15 < d / n < 30


@pytest.mark.parametrize("truth", [BESIROGLU_2024, HOFFMANN_2022])
def test_the_fit_recovers_the_constants_from_exact_points(truth: ScalingConstants) -> None:
    points = [
        (n, d, loss(n, d, truth)) for n in np.geomspace(5e7, 1.6e10, 6) for d in np.geomspace(1e9, 1e12, 6)
    ]
    found = fit(points).constants
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-3), name


def test_the_fit_withstands_noise_and_outliers() -> None:
    rng = np.random.default_rng(0)
    n = np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), 240))
    d = np.exp(rng.uniform(np.log(1e9), np.log(1e12), 240))
    measured = loss(n, d) * np.exp(rng.normal(0, 0.002, 240))
    measured[::40] *= 1.2  # runs that diverged
    found = fit(np.stack([n, d, measured], axis=1).tolist())
    for name, tolerance in (("E", 0.02), ("alpha", 0.05), ("beta", 0.05)):
        expected = getattr(BESIROGLU_2024, name)
        assert getattr(found.constants, name) == pytest.approx(expected, rel=tolerance), name
    assert found.median_relative_error < 0.003
    assert found.max_relative_error > 0.1
    # What matters to a user: it predicts the loss of a run ten times larger than any it saw.
    assert loss(1.6e11, 1e13, found.constants) == pytest.approx(loss(1.6e11, 1e13), rel=0.01)


def test_gpt3_compute() -> None:
    assert training_flop(174.6e9, 300e9) == pytest.approx(3.14e23, rel=0.002)


def test_bloom_gpu_hours() -> None:
    # The reported 150 TFLOP/s per GPU count recomputed activations. The published GPU-hours are those of the
    # whole job; what remains (about an eighth) are its restarts, checkpoints and evaluations.
    flop = training_flop(176.2e9, 366e9, recompute_activations=True)
    gpu_hours = 384 * training_hours(flop, 384, 312e12, 150 / 312)
    assert 0.85 < gpu_hours / 1_082_990 < 1
    model_flops = training_flop(176.2e9, 366e9) / (1_082_990 * 3600)
    assert model_flops / 312e12 == pytest.approx(0.318, abs=0.002)  # the MFU of the whole job


@pytest.mark.parametrize(
    ("parameters", "gpu_hours"), [(6.74e9, 184_320), (13.0e9, 368_640), (69.0e9, 1_720_320)]
)
def test_llama2_gpu_hours_at_forty_percent_utilisation(parameters: float, gpu_hours: float) -> None:
    hours = training_hours(training_flop(parameters, 2e12), 1024, 312e12, 0.40)
    assert hours * 1024 == pytest.approx(gpu_hours, rel=0.08)


def test_deepseek_v3_gpu_hours_count_active_parameters() -> None:
    hours = training_hours(training_flop(37e9, 14.8e12), 2048, 989e12, 0.35)
    assert hours * 2048 == pytest.approx(2.664e6, rel=0.03)


def test_bad_numbers_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="tokens is 0"):
        loss(1e9, 0)
    with pytest.raises(InputError, match="parameters is nan"):
        training_flop(float("nan"), 1)
    with pytest.raises(InputError, match="mfu is 40"):
        training_hours(1e20, 8, 1e15, 40)
    with pytest.raises(InputError, match="at least 5"):
        fit([(1e9, 1e9, 2.0)] * 4)
    with pytest.raises(InputError, match="1 different parameters"):
        fit([(1e9, 1e9 * k, 2.0) for k in range(1, 8)])
    with pytest.raises(InputError, match="beta is -1"):
        ScalingConstants(E=1, A=1, B=1, alpha=1, beta=-1)
