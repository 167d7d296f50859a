"""Metrics of serving: cases done by hand, and intervals that hold the truth as often as they say."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.models.catalog import find_model
from engine.profile.profile import Profile
from sim.capacity.goals import Objective
from sim.serving.batch_means import batch_means
from sim.serving.hardware_use import bytes_moved, hardware_use, operations
from sim.serving.metrics import (
    by_group,
    inter_token_latency,
    intervals,
    kv_occupancy,
    latencies,
    littles_law_error,
    meets,
    summary,
)
from sim.serving.stats import ReplayStats
from tests.helpers.profile import synthetic_profile

NAN = math.nan


def totals(**changes: Any) -> ReplayStats:
    """Two replicas over 20 s: the first was busy for 10 s, the second for 5 s."""
    by_replica = {
        "busy_s": [10.0, 5.0],
        "up_s": [20.0, 20.0],
        "batch_time_s": [30.0, 5.0],
        "kv_block_time_s": [250.0, 50.0],
        "steps": [100.0, 50.0],
        "events": [100.0, 50.0],
        "prefill_tokens": [1000.0, 500.0],
        "decode_tokens": [300.0, 50.0],
        "attention_pairs": [5000.0, 2500.0],
        "context_tokens": [30_000.0, 5_000.0],
    }
    arrays = {name: np.array(values) for name, values in by_replica.items()}
    return ReplayStats(**{"started_s": 0.0, "ended_s": 20.0, "request_time_s": 40.0, **arrays, **changes})


def four_requests() -> pd.DataFrame:
    """a: fast; b: late first token; c: one output token; d: timed out after its first token."""
    return pd.DataFrame(
        {
            "arrived_s": [0.0, 1.0, 2.0, 3.0],
            "scheduled_s": [0.5, 3.0, 2.0, 4.0],
            "first_token_s": [1.0, 5.0, 3.0, 6.0],
            "finished_s": [3.0, 9.0, 3.0, NAN],
            "preemptions": [0, 2, 0, 1],
            "cached_tokens": [0, 10, 0, 20],
            "prompt_tokens": [10, 20, 30, 40],
            "output_tokens": [3, 5, 1, 9],
            "replica": [0, 1, 0, 0],
            "traffic_class": ["chat", "batch", "chat", "chat"],
            "tenant": ["x", "x", "y", "y"],
            "status": ["finished", "finished", "finished", "timed_out"],
        }
    )


def known_machine(**hardware: Any) -> Profile:
    """10 TFLOP/s, 100 GB/s, 100 to 300 W, 3.60 USD per hour."""
    profile = synthetic_profile(price_usd_per_hour=3.6)
    known = {"peak_flops": 1e13, "memory_bandwidth_bytes_per_s": 1e11, "idle_w": 100.0, "load_w": 300.0}
    return replace(profile, hardware=replace(profile.hardware, **{**known, **hardware}))


def test_times_of_each_request_by_hand() -> None:
    times = latencies(four_requests())
    expected = pd.DataFrame(
        {
            "ttft_s": [1.0, 4.0, 1.0, 3.0],
            "tpot_s": [1.0, 1.0, NAN, NAN],
            "e2e_s": [3.0, 8.0, 1.0, NAN],
            "queue_s": [0.5, 2.0, 0.0, 1.0],
        }
    )
    pd.testing.assert_frame_equal(times, expected)


def test_summary_by_hand() -> None:
    found = summary(four_requests(), totals(), Objective(2.0, 1.0))
    assert found["ttft_mean_s"] == pytest.approx(9 / 4)
    assert found["ttft_p95_s"] == pytest.approx(np.percentile([1, 4, 1, 3], 95))
    assert found["e2e_p50_s"] == pytest.approx(3.0)
    assert found["requests"] == 4
    assert found["requests_per_s"] == pytest.approx(3 / 20)
    assert found["prompt_tokens_per_s"] == pytest.approx(60 / 20)  # of finished requests
    assert found["output_tokens_per_s"] == pytest.approx(9 / 20)
    assert found["cache_hit_rate"] == pytest.approx(30 / 100)
    assert found["preemptions"] == 3
    assert found["batch_mean"] == pytest.approx(35 / 15)
    assert [found[name] for name in ("finished", "timed_out", "rejected", "lost")] == [3, 1, 0, 0]
    assert found["goodput_rps"] == pytest.approx(2 / 20)
    assert found["ttft_met"] == pytest.approx(2 / 4)
    assert found["tpot_met"] == pytest.approx(3 / 4)
    assert found["objective_met"] == pytest.approx(2 / 4)


def test_who_never_finished_is_no_goodput() -> None:
    frame, lenient = four_requests(), Objective(1e6, 1e6)
    assert meets(frame, lenient)["objective_met"].tolist() == [True, True, True, False]
    # Without a status the missing finish tells.
    assert not meets(frame.drop(columns="status"), lenient).loc[3].any()
    # A status alone tells too: a client that gave up just before the end.
    frame.loc[3, "finished_s"] = 9.0
    assert not meets(frame, lenient).loc[3].any()


def test_each_class_has_its_own_objective() -> None:
    frame = four_requests()
    objectives = {"chat": Objective(0.5, 1.0), "batch": Objective(10.0, 1.0)}
    assert meets(frame, objectives)["objective_met"].tolist() == [False, True, False, False]
    assert summary(frame, totals(), objectives)["goodput_rps"] == pytest.approx(1 / 20)
    with pytest.raises(InputError, match=r"'chat' has no objective; there are batch"):
        meets(frame, {"batch": Objective(1.0, 1.0)})
    with pytest.raises(InputError, match="no column traffic_class"):
        meets(frame.drop(columns="traffic_class"), objectives)


def test_groups_by_hand() -> None:
    objectives = {"chat": Objective(2.0, 1.0), "batch": Objective(2.0, 1.0)}
    table = by_group(four_requests(), totals(), "traffic_class", objectives)
    assert table.index.tolist() == ["batch", "chat"]
    chat = table.loc["chat"]
    assert (chat["requests"], chat["finished"]) == (3, 2)
    assert chat["ttft_mean_s"] == pytest.approx(5 / 3)
    assert chat["ttft_p95_s"] == pytest.approx(np.percentile([1, 1, 3], 95))
    assert chat["output_tokens_per_s"] == pytest.approx(4 / 20)
    assert chat["cache_hit_rate"] == pytest.approx(20 / 80)
    assert chat["goodput_rps"] == pytest.approx(2 / 20)
    assert chat["objective_met"] == pytest.approx(2 / 3)
    assert table.loc["batch", "goodput_rps"] == 0
    assert table.loc["batch", "tpot_p99_s"] == pytest.approx(1.0)

    replicas = by_group(four_requests(), totals(), "replica")
    assert replicas["busy_fraction"].tolist() == [0.5, 0.25]
    assert replicas["batch_mean"].tolist() == [3.0, 1.0]
    assert by_group(four_requests(), totals(), "tenant")["requests"].tolist() == [2, 2]
    with pytest.raises(InputError, match="no column colour"):
        by_group(four_requests(), totals(), "colour")


def test_groups_of_requests_that_no_replica_saw() -> None:
    frame = four_requests().assign(replica=[0, 1, 0, -1])
    table = by_group(frame, totals(), "replica")
    assert table.index.tolist() == [-1, 0, 1]
    assert math.isnan(table.loc[-1, "busy_fraction"])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 9), st.integers(1, 5)), min_size=1, max_size=30)
)
def test_groups_add_up_to_the_whole(rows: list[tuple[str, float, int]]) -> None:
    kinds, waits, tokens = zip(*rows, strict=True)
    frame = pd.DataFrame({"traffic_class": kinds, "arrived_s": np.arange(len(rows), dtype=float)})
    frame["scheduled_s"] = frame["arrived_s"] + np.array(waits)
    frame["first_token_s"] = frame["scheduled_s"] + 1
    frame["finished_s"] = frame["first_token_s"] + np.array(tokens) - 1
    frame = frame.assign(prompt_tokens=7, output_tokens=tokens, preemptions=1, cached_tokens=3, replica=0)
    objective = Objective(5.0, 1.0)
    whole, table = (
        summary(frame, totals(), objective),
        by_group(frame, totals(), "traffic_class", objective),
    )
    for name in ("requests", "requests_per_s", "output_tokens_per_s", "goodput_rps", "preemptions"):
        assert table[name].sum() == pytest.approx(whole[name])
    weighted = (table["ttft_mean_s"] * table["requests"]).sum() / len(frame)
    assert weighted == pytest.approx(whole["ttft_mean_s"])
    assert whole["ttft_p50_s"] <= whole["ttft_p95_s"] <= whole["ttft_p99_s"]


def test_nothing_to_measure_is_nan() -> None:
    frame = four_requests().assign(scheduled_s=NAN, first_token_s=NAN, finished_s=NAN, status="rejected")
    found = summary(frame, totals(), Objective(1.0, 1.0))
    assert math.isnan(found["ttft_p95_s"])
    assert math.isnan(found["queue_mean_s"])
    assert (found["goodput_rps"], found["requests_per_s"], found["rejected"]) == (0, 0, 4)


def test_gaps_between_tokens_by_hand() -> None:
    # 10 steps of 0.1 s with 2 decodes: 20 gaps; 1 step of 0.5 s with 5: 5 gaps; a prefill alone: none.
    steps = pd.DataFrame(
        {
            "started_s": [0.0, 1.0, 1.5],
            "ended_s": [1.0, 1.5, 9.0],
            "steps": [10, 1, 1],
            "decodes": [2, 5, 0],
        }
    )
    found = inter_token_latency(steps)
    assert found["itl_mean_s"] == pytest.approx((20 * 0.1 + 5 * 0.5) / 25)
    assert found["itl_p50_s"] == pytest.approx(0.1)
    assert found["itl_p95_s"] == pytest.approx(0.5)
    assert summary(four_requests(), totals(), steps=steps)["itl_p99_s"] == pytest.approx(0.5)
    assert math.isnan(inter_token_latency(steps[2:])["itl_mean_s"])


def test_kv_occupancy_by_hand() -> None:
    assert kv_occupancy(totals(), 100) == pytest.approx(300 / 1500)
    assert kv_occupancy(totals(), [50, 100]) == pytest.approx(300 / 1000)
    assert summary(four_requests(), totals(), num_blocks=100)["kv_occupancy"] == pytest.approx(0.2)
    with pytest.raises(InputError, match="num_blocks: found 3"):
        kv_occupancy(totals(), [1, 2, 3])


def test_utilisation_energy_and_money_by_hand() -> None:
    profile = known_machine()
    shape = (
        profile.model
    )  # 134,515,008 parameters, 30 layers of 9 heads of 64, 538,060,032 bytes, 46,080 per token
    flops = [
        2 * 134_515_008 * 1300 + 4 * 30 * 9 * 64 * (5000 + 30_000 + 300),
        2 * 134_515_008 * 550 + 4 * 30 * 9 * 64 * (2500 + 5_000 + 50),
    ]
    moved = [100 * 538_060_032 + 46_080 * (30_000 + 1300), 50 * 538_060_032 + 46_080 * (5_000 + 550)]
    assert operations(shape, totals()) == pytest.approx(flops)
    assert bytes_moved(shape, totals()) == pytest.approx(moved)
    use = hardware_use(four_requests(), totals(), profile)
    assert use.missing == {}
    assert use.mfu == pytest.approx(sum(flops) / (1e13 * 15))
    assert use.mbu == pytest.approx(sum(moved) / (1e11 * 15))
    assert use.energy_j == pytest.approx(100 * 40 + 200 * 15)
    assert use.cost_usd == pytest.approx(0.04)  # 40 s at a thousandth of a dollar
    assert use.joules_per_mtok_output == pytest.approx(7000 / 9 * 1e6)
    assert use.joules_per_mtok == pytest.approx(7000 / 69 * 1e6)
    assert use.usd_per_mtok_output == pytest.approx(0.04 / 9 * 1e6)
    assert use.usd_per_mtok == pytest.approx(0.04 / 69 * 1e6)
    assert summary(four_requests(), totals(), profiles=profile)["mfu"] == pytest.approx(use.mfu)


def test_replicas_of_two_kinds() -> None:
    big = known_machine(peak_flops=4e13, price_usd_per_hour=7.2)
    use = hardware_use(four_requests(), totals(), [known_machine(), big])
    flops = operations(big.model, totals())
    assert use.mfu == pytest.approx(flops.sum() / (1e13 * 10 + 4e13 * 5))
    assert use.cost_usd == pytest.approx(0.02 + 0.04)
    with pytest.raises(InputError, match="profiles: found 3"):
        hardware_use(four_requests(), totals(), [big] * 3)


def test_what_a_machine_does_not_tell_is_nan_with_its_reason() -> None:
    use = hardware_use(four_requests(), totals(), synthetic_profile())
    for name in ("mfu", "mbu", "energy_j", "joules_per_mtok_output", "joules_per_mtok"):
        assert math.isnan(use.figures()[name])
    assert "made up for tests" in use.missing["joules_per_mtok"]
    assert "peak_flops" in use.missing["mfu"]
    assert use.usd_per_mtok > 0
    nobody = four_requests().assign(finished_s=NAN)
    assert hardware_use(nobody, totals(), known_machine()).missing["usd_per_mtok"] == "no request finished"
    idle = totals(busy_s=np.zeros(2))
    assert hardware_use(four_requests(), idle, known_machine()).missing["mfu"] == "no step took any time"


def test_a_mixture_of_experts_counts_what_it_activates() -> None:
    model = find_model("Qwen3-30B-A3B")
    shape = replace(
        synthetic_profile().model,
        name=model.name,
        parameters=model.parameters,
        layers=model.layers,
        attention_heads=model.attention_heads,
        head_dim=model.head_dim,
        dtype="bf16",
        weight_bytes=model.weight_bytes("bf16"),
        kv_bytes_per_token=model.kv_bytes_per_token("bf16"),
    )
    one = totals(
        **{name: np.array([0.0]) for name in ("attention_pairs", "context_tokens", "prefill_tokens")},
        busy_s=np.array([1.0]),
        decode_tokens=np.array([10]),
        steps=np.array([10]),
    )
    pair = 4 * model.layers * model.attention_heads * model.head_dim
    assert operations(shape, one)[0] == pytest.approx(10 * (2 * model.active_parameters + pair))
    # One token per step: all but the experts that it doesn't choose.
    idle = model.moe_layers * (model.experts - model.active_experts) * model.expert_bytes("bf16")
    expected = 10 * (shape.weight_bytes - idle + shape.kv_bytes_per_token)
    assert bytes_moved(shape, one)[0] == pytest.approx(expected)
    # Only of the same name: its own number of parameters holds.
    other = replace(shape, parameters=10**9)
    assert operations(other, one)[0] == pytest.approx(10 * (2 * 10**9 + pair))


def test_littles_law_by_hand() -> None:
    frame = four_requests().drop(columns="status")
    frame.loc[3, "finished_s"] = 13.0
    exact = totals(request_time_s=3.0 + 8.0 + 1.0 + 10.0)
    assert littles_law_error(frame, exact) == pytest.approx(0, abs=1e-12)
    assert littles_law_error(frame, replace(exact, request_time_s=11.0)) == pytest.approx(0.5)
    assert math.isnan(littles_law_error(four_requests(), exact))
    rejected = four_requests().assign(status=["finished", "finished", "finished", "rejected"])
    assert littles_law_error(rejected, totals(request_time_s=12.0)) == pytest.approx(0, abs=1e-12)


def test_batch_means_by_hand() -> None:
    values = np.array([9.0, 9.0, 1.0, 3.0, 2.0, 4.0, 6.0, 8.0])  # a quarter is warm-up; batches 2, 3, 7
    mean, median = batch_means(values, [50], level=0.9, warm_up=0.25, batches=3)
    spread = math.sqrt((4 + 1 + 9) / 2)
    assert mean.value == pytest.approx(4.0)
    assert mean.half_width == pytest.approx(2.919986 * spread / math.sqrt(3))  # t of 2 degrees, 95 %
    assert mean.high - mean.low == pytest.approx(2 * mean.half_width)
    assert mean.lag1 == pytest.approx((-2 * -1 + -1 * 3) / 14)
    assert median.value == pytest.approx(3.5)
    assert "batches of 2 values are short for percentile 50" in median.note


def test_too_little_for_an_interval() -> None:
    short = batch_means(np.arange(25.0), [95])[0]
    assert (short.value, math.isnan(short.low)) == (pytest.approx(13.0), True)
    assert "too few for 20 batches" in short.note
    assert math.isnan(batch_means(np.array([]), [95])[1].value)
    assert batch_means(np.ones(100))[0].half_width == 0
    for bad in ({"level": 1.0}, {"level": 95}, {"warm_up": 1.0}, {"warm_up": -0.1}, {"batches": 1}):
        with pytest.raises(InputError, match=next(iter(bad))):
            batch_means(np.ones(100), **bad)  # type: ignore[arg-type]


def ar1(runs: int, length: int, coefficient: float, rng: np.random.Generator) -> np.ndarray:
    """Stationary series of mean 0 [runs, length]."""
    values = rng.standard_normal((length, runs))
    values[0] /= math.sqrt(1 - coefficient**2)
    for i in range(1, length):
        values[i] += coefficient * values[i - 1]
    return values.T


def waits_of_m_m_1(runs: int, length: int, load: float, rng: np.random.Generator) -> np.ndarray:
    """Waiting times of M/M/1 with mean service 1, from an empty queue (Lindley 1952) [runs, length]."""
    steps = rng.exponential(1.0, (length, runs)) - rng.exponential(1 / load, (length, runs))
    waits = np.zeros((length, runs))
    for i in range(1, length):
        waits[i] = np.maximum(waits[i - 1] + steps[i], 0.0)
    return waits.T


def test_intervals_of_an_autoregressive_process_hold_as_often_as_they_say() -> None:
    series = ar1(400, 5000, 0.8, np.random.default_rng(1))
    p95 = 1.6448536 / math.sqrt(1 - 0.8**2)
    found = [batch_means(values, [95], level=0.9) for values in series]
    assert np.mean([mean.low <= 0 <= mean.high for mean, _ in found]) == pytest.approx(0.9, abs=0.04)
    assert np.mean([tail.low <= p95 <= tail.high for _, tail in found]) == pytest.approx(0.9, abs=0.04)
    assert np.mean([mean.note == "" for mean, _ in found]) > 0.9
    # As if the values were independent, the interval would be far too narrow.
    naive = 1.645 * series.std(axis=1) / math.sqrt(5000)
    assert np.mean(np.abs(series.mean(axis=1)) < naive) < 0.6


def test_intervals_of_m_m_1_hold_as_often_as_they_say() -> None:
    waits = waits_of_m_m_1(300, 20_000, 0.5, np.random.default_rng(2))
    found = [batch_means(values, [95]) for values in waits]
    mean, p95 = 0.5 / (1 - 0.5), math.log(0.5 / 0.05) / (1 - 0.5)
    assert np.mean([one.low <= mean <= one.high for one, _ in found]) == pytest.approx(0.95, abs=0.035)
    assert np.mean([one.low <= p95 <= one.high for _, one in found]) == pytest.approx(0.95, abs=0.035)


def test_too_short_a_run_of_a_loaded_queue_says_so() -> None:
    waits = waits_of_m_m_1(50, 2000, 0.95, np.random.default_rng(3))
    told = ["lag-1" in batch_means(values)[0].note for values in waits]
    assert np.mean(told) > 0.75


def test_intervals_of_a_replay() -> None:
    rng = np.random.default_rng(4)
    waits = waits_of_m_m_1(1, 20_000, 0.5, rng)[0]
    arrived_s = np.cumsum(rng.exponential(2.0, len(waits)))
    frame = pd.DataFrame({"arrived_s": arrived_s, "scheduled_s": arrived_s + waits})
    frame["first_token_s"] = frame["scheduled_s"] + 1
    frame = frame.assign(finished_s=frame["first_token_s"] + 1, output_tokens=2)
    table = intervals(frame).set_index(["metric", "statistic"])
    assert len(table) == 16
    mean, ttft = table.loc[("queue_s", "mean")], table.loc[("ttft_s", "mean")]
    assert mean["low"] < 1 < mean["high"]
    assert ttft["value"] == pytest.approx(mean["value"] + 1)
    assert ttft["half_width"] == pytest.approx(mean["half_width"])
    assert mean["note"] == ""
    # The order of rows doesn't matter, that of arrival does.
    mixed = intervals(frame.sample(frac=1, random_state=1)).set_index(["metric", "statistic"])
    pd.testing.assert_frame_equal(mixed, table)
    wider = intervals(frame, level=0.99).set_index(["metric", "statistic"])
    assert (wider["half_width"] >= table["half_width"]).all()
