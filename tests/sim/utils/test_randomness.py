"""Draws by inverse transform: right means, right bounds, one uniform each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sim.utils.randomness import STREAMS, binomial, poisson, streams

UNIFORM = st.floats(0, 1, exclude_max=True)


def test_streams_are_named_and_independent() -> None:
    first, again = streams(7), streams(7)
    assert tuple(first) == STREAMS
    draws = {name: first[name].random() for name in STREAMS}
    assert len(set(draws.values())) == len(STREAMS)
    assert draws == {name: again[name].random() for name in STREAMS}


@pytest.mark.parametrize("mean", [0.3, 5.0, 59.0])
def test_poisson_is_the_quantile_function(mean: float) -> None:
    for uniform in np.linspace(0.001, 0.999, 97):
        assert poisson(float(uniform), mean) == stats.poisson.ppf(uniform, mean)


@pytest.mark.parametrize(("trials", "probability"), [(10, 0.3), (200, 0.05), (50, 0.9), (2000, 0.01)])
def test_binomial_has_the_right_distribution(trials: int, probability: float) -> None:
    uniforms = (np.arange(4000) + 0.5) / 4000
    drawn = np.array([binomial(float(u), trials, probability) for u in uniforms])
    assert drawn.mean() == pytest.approx(trials * probability, rel=0.01)
    assert drawn.var() == pytest.approx(trials * probability * (1 - probability), rel=0.03)


def test_large_counts_use_the_normal_law() -> None:
    uniforms = (np.arange(2000) + 0.5) / 2000
    many = np.array([poisson(float(u), 1e6) for u in uniforms])
    assert many.mean() == pytest.approx(1e6, rel=1e-4)
    assert many.std() == pytest.approx(1e3, rel=0.02)
    lost = np.array([binomial(float(u), 100_000, 0.03) for u in uniforms])
    assert lost.mean() == pytest.approx(3000, rel=1e-3)


@given(UNIFORM, st.integers(0, 10**7), st.floats(0, 1))
def test_binomial_stays_within_its_trials(uniform: float, trials: int, probability: float) -> None:
    assert 0 <= binomial(uniform, trials, probability) <= trials


@given(UNIFORM, st.floats(0, 1e9))
def test_poisson_is_never_negative(uniform: float, mean: float) -> None:
    assert poisson(uniform, mean) >= 0
