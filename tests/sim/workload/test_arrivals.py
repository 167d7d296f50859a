"""Arrival processes: their burstiness against closed forms, and what a seed, a rate and a window change."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from engine.errors import InputError
from sim.workload.arrivals import (
    GammaRenewal,
    GapTable,
    MarkovModulated,
    Process,
    arrival_times,
    hourly_shape,
    in_shape,
    index_of_dispersion,
    out_of_shape,
)

BURSTY = MarkovModulated((1.0, 10.0), (30.0, 6.0))
LADDER = MarkovModulated((0.0, 2.0, 5.0), (20.0, 10.0, 4.0), ((0, 1, 0), (0.5, 0, 0.5), (0, 1, 0)))
TABLE = GapTable(((0.0, 0.01), (0.6, 0.1), (0.99, 2.0), (1.0, 50.0)))
PROCESSES: list[Process | None] = [None, GammaRenewal(0.5), GammaRenewal(3.0), TABLE, BURSTY, LADDER]


@pytest.mark.parametrize("cv", [0.4, 1.0, 2.5])
def test_gamma_gaps_have_their_variation_and_dispersion(cv: float) -> None:
    times_s = arrival_times(4.0, requests=200_000, rng=1, process=GammaRenewal(cv))
    gaps = np.diff(times_s)
    assert gaps.mean() == pytest.approx(0.25, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.02)
    assert np.corrcoef(gaps[1:], gaps[:-1])[0, 1] == pytest.approx(0, abs=0.02)
    assert index_of_dispersion(times_s, 50.0) == pytest.approx(cv**2, rel=0.15)


def test_gaps_follow_a_table() -> None:
    gaps = np.diff(arrival_times(2.0, requests=200_000, rng=1, process=TABLE))
    assert gaps.mean() == pytest.approx(0.5, rel=0.03)
    scale = 0.5 / TABLE.mean
    assert np.quantile(gaps, [0.3, 0.6, 0.99]) == pytest.approx(
        scale * np.array([math.sqrt(0.01 * 0.1), 0.1, 2.0]), rel=0.05
    )


def modulated_dispersion(process: MarkovModulated, rate_rps: float, window_s: float) -> float:
    """Index of dispersion of counts of a stationary Markov-modulated process, in closed form.

    With generator Q, rates λ = diag(Λ), time shares π and the deviation matrix D = (1π − Q)⁻¹ − 1π:
    1 + 2/(λ̄ t) · πΛ [D t − D² (I − e^{Qt})] λ (Fischer & Meier-Hellstern 1993, eq. 23 in another notation).
    """
    generator, shares = process.generator, process.shares
    rates = rate_rps * process.relative_rates
    limit = np.tile(shares, (shares.size, 1))
    deviation = np.linalg.inv(limit - generator) - limit
    unit = np.eye(shares.size)
    between = deviation * window_s - deviation @ deviation @ (unit - expm(generator * window_s))
    return float(1 + 2 / (rate_rps * window_s) * (shares * rates) @ between @ rates)


@pytest.mark.parametrize("window_s", [0.5, 5.0, 50.0, 500.0])
def test_two_states_disperse_as_the_textbook_says(window_s: float) -> None:
    """Fischer & Meier-Hellstern 1993, the closed form for two states."""
    process, rate_rps = BURSTY, 3.0
    fast, slow = rate_rps * process.relative_rates[::-1]
    leave_fast, leave_slow = 1 / process.dwell_s[1], 1 / process.dwell_s[0]
    both = leave_fast + leave_slow
    limit = (
        2 * (fast - slow) ** 2 * leave_fast * leave_slow / (both**2 * (fast * leave_slow + slow * leave_fast))
    )
    expected = 1 + limit * (1 - (1 - math.exp(-both * window_s)) / (both * window_s))
    assert modulated_dispersion(process, rate_rps, window_s) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("process", [BURSTY, LADDER, MarkovModulated((0, 1, 6), (40, 8, 3))])
def test_modulated_arrivals_disperse_as_computed(process: MarkovModulated) -> None:
    times_s = arrival_times(5.0, requests=400_000, rng=2, process=process)
    assert 400_000 / times_s[-1] == pytest.approx(5.0, rel=0.03)
    for window_s in (0.2, 2.0, 20.0, 100.0):
        expected = modulated_dispersion(process, 5.0, window_s)
        assert index_of_dispersion(times_s, window_s) == pytest.approx(expected, rel=0.12)


def test_time_in_states_follows_dwell_and_jumps() -> None:
    assert BURSTY.shares == pytest.approx([30 / 36, 6 / 36])
    assert LADDER.shares == pytest.approx(np.array([20 * 0.25, 10 * 0.5, 4 * 0.25]) / 11)
    assert LADDER.shares @ LADDER.relative_rates == pytest.approx(1)
    assert LADDER.generator.sum(axis=1) == pytest.approx(0)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("shape", [None, np.array([1.0, 0.2, 3.0])])
def test_a_longer_window_begins_with_the_same_arrivals(process: Process | None, shape: Any) -> None:
    short, long = (
        arrival_times(0.5, duration_s=seconds, rng=5, process=process, shape=shape)
        for seconds in (4000, 30_000)
    )
    assert len(long) > len(short)
    assert (short < 4000).all()
    np.testing.assert_allclose(short, long[: len(short)], rtol=1e-12)
    assert long[len(short)] >= 4000


@pytest.mark.parametrize("process", PROCESSES)
def test_the_same_seed_gives_the_same_arrivals(process: Process | None) -> None:
    one, two, other = (arrival_times(2.0, requests=300, rng=seed, process=process) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
    assert (np.diff(one) >= 0).all()


def test_bursts_come_at_the_same_time_at_another_rate() -> None:
    slow, fast = (
        arrival_times(rate, duration_s=2000, rng=6, process=MarkovModulated((0, 1), (60, 20)))
        for rate in (2.0, 20.0)
    )
    quiet = np.histogram(fast, bins=200, range=(0, 2000))[0] == 0
    assert quiet.any()
    assert np.histogram(slow, bins=200, range=(0, 2000))[0][quiet].sum() == 0


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0.01, 50), min_size=1, max_size=30),
    st.lists(st.floats(0, 1e7), min_size=1, max_size=20),
)
def test_shape_and_its_inverse_undo_each_other(hours: list[float], times: list[float]) -> None:
    shape, times_s = np.array(hours), np.sort(times)
    np.testing.assert_allclose(out_of_shape(in_shape(times_s, shape), shape), times_s, rtol=1e-9, atol=1e-5)


def test_a_week_has_its_shape_with_bursts_too() -> None:
    shape = hourly_shape()
    weeks = 40
    times_s = arrival_times(0.05, duration_s=weeks * 7 * 86_400, rng=7, shape=shape, process=GammaRenewal(2))
    days = np.bincount((times_s // 86_400).astype(int) % 7, minlength=7)
    assert days / days.mean() == pytest.approx(shape.mean(axis=1), rel=0.06)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: GammaRenewal(0.0), ["cv", "found 0.0"]),
        (lambda: GammaRenewal(math.nan), ["cv", "nan"]),
        (lambda: GapTable(()), ["quantiles"]),
        (lambda: GapTable(((0, 1), (0.9, 2))), ["quantiles"]),
        (lambda: GapTable(((0, 0), (1, 2))), ["quantiles"]),
        (lambda: GapTable(((0, 1), (1, 1))), ["quantiles"]),
        (lambda: MarkovModulated((1.0,), (1.0,)), ["1 rates"]),
        (lambda: MarkovModulated((1.0, 2.0), (1.0,)), ["2 rates and 1 dwell_s"]),
        (lambda: MarkovModulated((0.0, 0.0), (1.0, 1.0)), ["rates", "above 0"]),
        (lambda: MarkovModulated((1.0, -1.0), (1.0, 1.0)), ["rates", "-1.0"]),
        (lambda: MarkovModulated((1.0, 2.0), (1.0, 0.0)), ["dwell_s", "above 0 s"]),
        (lambda: MarkovModulated((1, 2), (1, 1), ((0.5, 0.5), (1, 0))), ["jumps"]),
        (lambda: MarkovModulated((1, 2), (1, 1), ((0, 2), (1, 0))), ["jumps"]),
        (lambda: MarkovModulated((1, 2, 3), (1, 1, 1), ((0, 1, 0), (1, 0, 0), (1, 0, 0))), ["never come"]),
        (lambda: arrival_times(1.0, requests=3, shape=np.array([0.0])), ["shape"]),
        (lambda: arrival_times(1.0, duration_s=-1), ["duration_s", "-1"]),
        (lambda: arrival_times(1.0, requests=3, duration_s=3), ["either"]),
    ],
)
def test_impossible_processes_are_refused(make: Any, parts: list[str]) -> None:
    with pytest.raises(InputError) as refusal:
        make()
    assert all(part in str(refusal.value) for part in parts)


def test_dispersion_needs_two_windows() -> None:
    assert math.isnan(index_of_dispersion([1.0, 2.0], 5.0))
    assert math.isnan(index_of_dispersion([], 5.0))
