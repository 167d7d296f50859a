"""A training run as physics: closed forms, known tables, and chance that agrees with expectation."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.models.catalog import find_model
from engine.training.scaling_law import training_hours
from sim.training.checkpointing import (
    best_interval_s,
    best_stretches,
    expected_time_s,
    poisson_interval,
    poisson_quantile,
)
from sim.training.memory import (
    activation_bytes,
    checkpoint_bytes,
    checkpoint_write_s,
    least_accelerators,
    state_bytes_per_parameter,
    zero_bytes,
)
from sim.training.run import RunPlan, plan_run, realised, straggler_factor, training_compute

PAUSES_S = st.floats(0.1, 600)
MTBF_S = st.floats(1800, 1e7)


def run(**changes: float) -> RunPlan:
    """A run of about 100 days on 512 H100 with failures, changed by `changes`."""
    settings_ = {
        "accelerators": 512, "peak_flops": 989e12, "mfu": 0.4, "node_mtbf_h": 3000.0, "checkpoint_s": 30.0,
        "restart_s": 600.0, "price_usd_per_hour": 2.0, "board_w": 700.0, "pue": 1.1, "grid_g_per_kwh": 385.0,
    }  # fmt: skip
    return plan_run(1.7e24, **(settings_ | changes))  # type: ignore[arg-type]


def test_without_failures_a_run_is_operations_over_speed() -> None:
    plan = plan_run(1e24, accelerators=1024, peak_flops=312e12, mfu=0.4, price_usd_per_hour=1.5)
    assert plan.hours == training_hours(1e24, 1024, 312e12, 0.4)
    assert plan.cost_usd == plan.hours * 1024 * 1.5
    assert (plan.failures, plan.failures_low, plan.failures_high, plan.lost_hours) == (0, 0, 0, 0)
    assert plan.effective_fraction == 1


def test_attention_and_recomputation_add_what_they_should() -> None:
    model = find_model("llama-2-7b")
    plain = training_compute(6.74e9, 2e12)
    assert plain == 6 * 6.74e9 * 2e12
    full = training_compute(6.74e9, 2e12, pair_flop=model.pair_flops, sequence_tokens=4096, causal=False)
    assert full - plain == pytest.approx(12 * 32 * 4096 * 4096 * 2e12)  # PaLM, appendix B: 12·L·H·Q·T
    causal = training_compute(6.74e9, 2e12, pair_flop=model.pair_flops, sequence_tokens=4096)
    assert causal - plain == pytest.approx((full - plain) / 2)
    assert training_compute(
        6.74e9, 2e12, pair_flop=model.pair_flops, sequence_tokens=4096, recompute_activations=True
    ) == pytest.approx(causal * 4 / 3)


def young_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Seconds of work between checkpoints to first order (Young 1974, doi:10.1145/361147.361115)."""
    return math.sqrt(2 * checkpoint_s * mtbf_s)


def daly_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Seconds of work between checkpoints to higher order (Daly 2006, doi:10.1016/j.future.2004.11.016)."""
    if math.isinf(mtbf_s):
        return math.inf
    if checkpoint_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = checkpoint_s / (2 * mtbf_s)
    return math.sqrt(2 * checkpoint_s * mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - checkpoint_s


@pytest.mark.parametrize(("mtbf_min", "published_min"), [(1440, 117), (360, 57), (15, 9.1)])
def test_dalys_interval_is_the_one_in_his_figures(mtbf_min: float, published_min: float) -> None:
    """Daly 2006, captions of figures 3 to 5: a dump of 5 minutes."""
    assert daly_interval_s(300, mtbf_min * 60) / 60 == pytest.approx(published_min, rel=0.006)
    assert best_interval_s(300, mtbf_min * 60) / 60 == pytest.approx(published_min, rel=0.01)


@settings(deadline=None)
@given(PAUSES_S, MTBF_S)
def test_intervals_are_near_the_numerical_optimum(pause_s: float, mtbf_s: float) -> None:
    assume(pause_s < mtbf_s / 10)
    best_s = best_interval_s(pause_s, mtbf_s)

    def per_work(interval_s: float) -> float:
        return expected_time_s(interval_s, interval_s, pause_s, mtbf_s, 0.0) / interval_s

    grid = np.exp(np.linspace(math.log(best_s / 5), math.log(min(best_s * 5, 20 * mtbf_s)), 400))
    least = min(per_work(float(interval)) for interval in grid)
    assert per_work(best_s) <= least * (1 + 1e-9)
    assert per_work(daly_interval_s(pause_s, mtbf_s)) <= least * 1.001
    assert daly_interval_s(pause_s, mtbf_s) == pytest.approx(best_s, rel=0.02)
    assert best_s <= young_interval_s(pause_s, mtbf_s)


@settings(deadline=None)
@given(st.floats(3600, 1e6), PAUSES_S, MTBF_S)
def test_no_other_number_of_stretches_is_faster(work_s: float, pause_s: float, mtbf_s: float) -> None:
    chosen = best_stretches(work_s, pause_s, mtbf_s)

    def taken(stretches: int) -> float:
        return stretches * mtbf_s * math.expm1((work_s / stretches + pause_s) / mtbf_s)

    around = [max(1, chosen + step) for step in (-50, -5, -2, -1, 1, 2, 5, 50)]
    assume(all((work_s / n + pause_s) / mtbf_s < 600 for n in around))
    assert all(taken(chosen) <= taken(n) * (1 + 1e-12) for n in around)


@pytest.mark.parametrize(
    ("interval_s", "pause_s", "mtbf_s", "restart_s"),
    [(3600, 40, 7200, 600), (600, 5, 20_000, 60), (10_000, 300, 9000, 1800)],
)
def test_chance_agrees_with_expectation(
    interval_s: float, pause_s: float, mtbf_s: float, restart_s: float
) -> None:
    """Whole runs simulated failure by failure: the mean lies within three standard errors of the closed form."""
    work_s, runs, random = 10.5 * interval_s, 3000, np.random.default_rng(5)
    stretches = [interval_s] * 10 + [interval_s / 2]
    times, failures = np.zeros(runs), np.zeros(runs)
    for number in range(runs):
        for stretch in stretches:
            while (lasts := random.exponential(mtbf_s)) < stretch + pause_s:
                times[number] += lasts
                failures[number] += 1
                while (lasts := random.exponential(mtbf_s)) < restart_s:
                    times[number] += lasts
                    failures[number] += 1
                times[number] += restart_s
            times[number] += stretch + pause_s
    expected_s = expected_time_s(work_s, interval_s, pause_s, mtbf_s, restart_s)
    assert abs(times.mean() - expected_s) < 3 * times.std() / math.sqrt(runs)
    assert abs(failures.mean() - expected_s / mtbf_s) < 3 * failures.std() / math.sqrt(runs)


@settings(deadline=None)
@given(
    st.sampled_from(["node_mtbf_h", "checkpoint_s", "restart_s", "planned_stops_per_day", "step_time_cv"]),
    st.floats(1.01, 4),
)
def test_whatever_disturbs_more_takes_longer(name: str, factor: float) -> None:
    given_ = {
        "node_mtbf_h": 3000.0, "checkpoint_s": 30.0, "restart_s": 600.0,
        "planned_stops_per_day": 0.5, "step_time_cv": 0.02,
    }[name]  # fmt: skip
    worse = given_ / factor if name == "node_mtbf_h" else given_ * factor
    calm, disturbed = run(**{name: given_}), run(**{name: worse})
    assert disturbed.hours > calm.hours
    assert disturbed.cost_usd > calm.cost_usd
    if name != "step_time_cv":
        assert disturbed.effective_fraction < calm.effective_fraction
    assert disturbed.work_hours >= calm.work_hours


@settings(deadline=None)
@given(st.floats(0.01, 100))
def test_scales_by_price_and_by_watts(factor: float) -> None:
    plain = run()
    dear = run(price_usd_per_hour=2.0 * factor)
    hot = run(board_w=700.0 * factor)
    assert dear.cost_usd == pytest.approx(plain.cost_usd * factor)
    assert (dear.hours, dear.energy_kwh) == (plain.hours, plain.energy_kwh)
    assert hot.energy_kwh == pytest.approx(plain.energy_kwh * factor)
    assert hot.co2_kg == pytest.approx(hot.energy_kwh * 0.385)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20_000), st.floats(1e21, 1e26))
def test_the_parts_of_a_run_add_up(accelerators: int, flop: float) -> None:
    plan = plan_run(
        flop, accelerators=accelerators, peak_flops=989e12, mfu=0.4, node_mtbf_h=6334, checkpoint_s=5, restart_s=600
    )  # fmt: skip
    assert plan.work_hours + plan.checkpoint_hours + plan.lost_hours == pytest.approx(plan.hours)
    assert plan.hours >= plan.work_hours + plan.checkpoint_hours
    assert 0 < plan.effective_fraction <= 1
    assert plan.failures_low <= plan.failures <= plan.failures_high + 1
    assert plan.accelerator_hours == pytest.approx(plan.hours * accelerators)


def test_an_interval_that_is_given_is_kept_and_costs_time() -> None:
    best = run()
    for factor in (0.2, 0.7, 1.6, 6.0):
        other = run(interval_s=best.checkpoint_interval_s * factor)
        assert other.checkpoint_interval_s == pytest.approx(best.checkpoint_interval_s * factor)
        assert other.hours > best.hours


def test_realised_runs_scatter_around_the_plan() -> None:
    plan = run()
    runs = [realised(plan, (number + 0.5) / 2000) for number in range(2000)]
    assert np.mean([each.hours for each in runs]) == pytest.approx(plan.hours, rel=1e-3)
    assert np.mean([each.failures for each in runs]) == pytest.approx(plan.failures, rel=2e-3)
    assert np.std([each.failures for each in runs]) == pytest.approx(math.sqrt(plan.failures), rel=0.02)
    assert all(a.hours <= b.hours and a.cost_usd <= b.cost_usd for a, b in pairwise(runs))
    calm = plan_run(1e22, accelerators=8, peak_flops=989e12, mfu=0.4)
    assert realised(calm, 0.999).hours == calm.hours
    with pytest.raises(ValueError, match="probability"):
        realised(plan, 1.0)


@settings(deadline=None)
@given(st.floats(0, 1e4), st.floats(0, 0.9999))
def test_poisson_quantiles_are_scipys(mean: float, probability: float) -> None:
    from scipy.special import pdtr

    count = poisson_quantile(mean, probability)
    if mean > 0:
        assert pdtr(count, mean) >= probability - 1e-9
        assert count == 0 or pdtr(count - 1, mean) <= probability + 1e-9
    else:
        assert count == 0


def test_poisson_intervals_hold_what_they_promise() -> None:
    assert poisson_interval(419) == (379, 460)
    random = np.random.default_rng(1)
    low, high = poisson_interval(12.5)
    drawn = random.poisson(12.5, 20_000)
    assert 0.95 <= np.mean((drawn >= low) & (drawn <= high)) < 0.98
    assert poisson_quantile(4e6, 0.5) == pytest.approx(4e6, abs=2)


def test_the_slowest_of_many_nodes_sets_the_pace() -> None:
    drawn = np.random.default_rng(3).normal(1, 0.05, (20_000, 64)).max(axis=1)
    assert straggler_factor(64, 0.05) == pytest.approx(drawn.mean(), rel=0.003)
    assert straggler_factor(1, 0.05) == straggler_factor(64, 0.0) == 1
    assert straggler_factor(2048, 0.05) > straggler_factor(64, 0.05)


@pytest.mark.parametrize(("stage", "published_gb"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_zero_shards_as_its_paper_says(stage: int, published_gb: float) -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5 billion parameters on 64 accelerators."""
    assert zero_bytes(7.5e9, 64, stage) / 1e9 == pytest.approx(published_gb, rel=0.005)


def test_activations_of_gpt_3_are_those_of_the_paper() -> None:
    """Korthikanti et al. 2022, section 4.1: for GPT-3 (96 heads, width 12,288, length 2,048) 5·a·s/h is 80."""
    shape: dict[str, Any] = {
        "layers": 96,
        "hidden_size": 12288,
        "attention_heads": 96,
        "sequence_tokens": 2048,
    }
    kept = activation_bytes(2048, **shape, recompute="none")
    lean = activation_bytes(2048, **shape)
    assert kept / lean == pytest.approx((34 + 80) / 34)
    assert activation_bytes(2048, **shape, recompute="full") < lean / 10


@settings(deadline=None)
@given(st.floats(1e8, 1e12), st.floats(16e9, 200e9), st.sampled_from([1, 2, 3]), st.sampled_from([2.0, 4.0]))
def test_the_fewest_accelerators_hold_it_and_one_less_does_not(
    parameters: float, memory: float, stage: int, gradient: float
) -> None:
    count = least_accelerators(parameters, memory, 1e9, stage=stage, gradient_bytes=gradient)
    if count is None:
        assert zero_bytes(parameters, 1e9, stage, gradient) + 1e9 >= 0.9 * memory * (1 - 1e-9)
        return
    assert zero_bytes(parameters, count, stage, gradient) + 1e9 <= 0.9 * memory * (1 + 1e-9)
    if count > 1:
        assert zero_bytes(parameters, count - 1, stage, gradient) + 1e9 > 0.9 * memory * (1 - 1e-9)


def test_bytes_of_states_and_files() -> None:
    assert (state_bytes_per_parameter(), state_bytes_per_parameter(4)) == (16, 18)
    assert checkpoint_write_s(checkpoint_bytes(1e9), 2e9) == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mfu": 40.0}, "mfu is 40"),
        ({"accelerators": 0}, "accelerators is 0"),
        ({"node_mtbf_h": 0.0}, "node_mtbf_h"),
        ({"node_mtbf_h": math.nan}, "node_mtbf_h"),
        ({"checkpoint_s": -1.0}, "checkpoint_s"),
        ({"pue": 0.5}, "pue is 0.5"),
        ({"interval_s": 0.0}, "interval_s"),
        ({"planned_stops_per_day": 200.0}, "no time to work"),
        ({"node_mtbf_h": 0.05}, "would not end"),
    ],
)
def test_nonsense_is_refused_in_one_line(changes: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        run(**changes)
    assert "\n" not in str(error.value)


def test_bad_memory_questions_are_refused() -> None:
    with pytest.raises(InputError, match="stage 4"):
        zero_bytes(1e9, 8, 4)
    with pytest.raises(InputError, match="accelerators is 0"):
        zero_bytes(1e9, 0)
    with pytest.raises(InputError, match="storage_bytes_per_s"):
        checkpoint_write_s(1e9, 0)
