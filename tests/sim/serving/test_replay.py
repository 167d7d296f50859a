"""The request level: jumping equals stepping, queueing theory holds, nobody is lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import Request, SchedulerConfig
from engine.errors import InputError
from engine.profile.step_time import StepTimeModel
from engine.scheduler import Scheduler
from sim.capacity.goals import Objective
from sim.serving.metrics import littles_law_error, summary
from sim.serving.replay import equal_replicas, replay, replay_fleet
from sim.traces.read import read_trace
from sim.workload.generate import generate
from tests.helpers.profile import synthetic_profile

TIMES = synthetic_profile().step_time_model()
TIME_COLUMNS = ["scheduled_s", "first_token_s", "finished_s"]


@dataclass
class ConstantStep:
    """Each step takes the same; no closed form for a run of steps."""

    seconds: float

    def step_time(self, prefill: Sequence[tuple[int, int]], decode_contexts: Sequence[int]) -> float:
        return self.seconds


@dataclass
class ConstantStepWithRuns(ConstantStep):
    """The same, with the closed form."""

    def decode_run(self, decode_contexts: Sequence[int], steps: int) -> float:
        return self.seconds * steps


@dataclass
class OnlySteps:
    """A model without its closed form."""

    model: StepTimeModel

    def step_time(self, prefill: Sequence[tuple[int, int]], decode_contexts: Sequence[int]) -> float:
        return self.model.step_time(prefill, decode_contexts)


def requests_of(
    arrived_s: Sequence[float] | np.ndarray, prompt_tokens: object = 1, output_tokens: object = 1
) -> pd.DataFrame:
    frame = pd.DataFrame({"arrived_s": np.asarray(arrived_s, dtype=float)})
    return frame.assign(prompt_tokens=prompt_tokens, output_tokens=output_tokens)


def step_by_step(requests: pd.DataFrame, times: StepTimeModel, config: SchedulerConfig) -> pd.DataFrame:
    """One replica without SimPy and without jumps: the plainest loop that can be right."""
    waiting = [
        Request(row, int(r.prompt_tokens), int(r.output_tokens), float(r.arrived_s), tuple(r.prefix_hashes))
        for row, r in enumerate(requests.itertuples(index=False))
    ]
    everybody = list(waiting)
    found = {name: [math.nan] * len(waiting) for name in TIME_COLUMNS}
    scheduler, now = Scheduler(config), 0.0
    while waiting or scheduler.has_work:
        if not scheduler.has_work:
            now = max(now, waiting[0].arrived_s)
        while waiting and waiting[0].arrived_s <= now:
            scheduler.add(waiting.pop(0))
        step = scheduler.schedule()
        assert step is not None
        for chunk in step.prefills:
            if math.isnan(found["scheduled_s"][chunk.request.request_id]):
                found["scheduled_s"][chunk.request.request_id] = now
        now += times.step_time(step.prefill, step.decode_contexts)
        for request in scheduler.complete(step):
            if request.output_tokens == 1:
                found["first_token_s"][request.request_id] = now
            if request.output_tokens == request.max_output_tokens:
                found["finished_s"][request.request_id] = now
    return pd.DataFrame(found).assign(
        preemptions=[request.preemptions for request in everybody],
        cached_tokens=[request.cached_tokens for request in everybody],
    )


WORKLOADS = st.lists(
    st.tuples(st.floats(0, 3), st.integers(1, 60), st.integers(1, 60), st.integers(0, 2)),
    min_size=1,
    max_size=15,
)
CONFIGS = st.builds(
    SchedulerConfig,
    max_running_requests=st.integers(1, 6),
    max_step_tokens=st.integers(6, 40),
    block_tokens=st.just(4),
    num_blocks=st.integers(30, 60),  # tight: requests are preempted
    prefix_caching=st.booleans(),
)


def frame_of(workload: list[tuple[float, int, int, int]], scale: float) -> pd.DataFrame:
    rows, now = [], 0.0
    for gap, prompt, output, family in workload:
        now += gap * scale
        hashes = tuple((family, block) for block in range(prompt // 4))
        rows.append((now, prompt, output, hashes))
    return pd.DataFrame(rows, columns=["arrived_s", "prompt_tokens", "output_tokens", "prefix_hashes"])


@settings(max_examples=100, deadline=None)
@given(WORKLOADS, CONFIGS, st.booleans())
def test_jumping_equals_stepping(
    workload: list[tuple[float, int, int, int]], config: SchedulerConfig, closed_form: bool
) -> None:
    # An irrational scale keeps arrivals off step ends, where rounding could decide either way.
    requests = frame_of(workload, 1 / math.pi)
    times = TIMES if closed_form else OnlySteps(TIMES)
    frame = replay(requests, times, config)
    expected = step_by_step(requests, TIMES, config)
    np.testing.assert_allclose(frame[TIME_COLUMNS], expected[TIME_COLUMNS], rtol=1e-9)
    counts = ["preemptions", "cached_tokens"]
    np.testing.assert_array_equal(frame[counts], expected[counts])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(1, 30), st.integers(1, 40), st.integers(0, 1)),
        min_size=1,
        max_size=12,
    ),
    CONFIGS,
)
def test_arrivals_at_a_step_end_join_the_next_step(
    workload: list[tuple[int, int, int, int]], config: SchedulerConfig
) -> None:
    # Steps of 1/4 s and arrivals at multiples of it are exact in binary: each arrival falls on a step's end.
    requests = frame_of([(float(gap), p, o, f) for gap, p, o, f in workload], 0.25)
    frame = replay(requests, ConstantStepWithRuns(0.25), config)
    expected = step_by_step(requests, ConstantStepWithRuns(0.25), config)
    np.testing.assert_array_equal(frame[TIME_COLUMNS], expected[TIME_COLUMNS])


@settings(max_examples=60, deadline=None)
@given(WORKLOADS, CONFIGS, st.integers(1, 4), st.sampled_from(["least_outstanding", "round_robin"]))
def test_nobody_is_lost_and_time_runs_forward(
    workload: list[tuple[float, int, int, int]], config: SchedulerConfig, replicas: int, router: str
) -> None:
    requests = frame_of(workload, 1 / math.pi)
    frame, stats = replay_fleet(requests, equal_replicas(TIMES, config, replicas, router))
    assert frame["request_id"].tolist() == list(range(len(requests)))
    assert (frame["arrived_s"] == requests["arrived_s"]).all()
    assert (frame["scheduled_s"] >= frame["arrived_s"] * (1 - 1e-12)).all()
    assert (frame["first_token_s"] > frame["scheduled_s"]).all()
    assert (frame["finished_s"] >= frame["first_token_s"]).all()
    assert frame["replica"].between(0, replicas - 1).all()
    assert littles_law_error(frame, stats) < 1e-9
    assert 0 < stats.busy_fraction <= 1 + 1e-9
    assert len(stats.busy_s) == replicas
    served = frame["output_tokens"].sum()
    assert summary(frame, stats)["output_tokens_per_s"] * stats.duration_s == pytest.approx(served)


def test_a_request_alone_takes_its_prefill_and_its_decodes() -> None:
    frame, stats = replay_fleet(requests_of([7.0], 1000, 5), equal_replicas(TIMES, SchedulerConfig()))
    prefill_s = TIMES.step_time([(512, 0)], []) + TIMES.step_time([(488, 512)], [])
    row = frame.iloc[0]
    assert row["scheduled_s"] == 7.0
    assert row["first_token_s"] == pytest.approx(7.0 + prefill_s)
    assert row["finished_s"] == pytest.approx(7.0 + prefill_s + TIMES.decode_run([1000], 4))
    assert stats.busy_fraction == pytest.approx(1.0)
    assert stats.batch_mean == pytest.approx(1.0)
    assert stats.steps == 6


def test_a_shared_prefix_is_computed_once() -> None:
    hashes = tuple(range(10))
    requests = requests_of([0.0, 100.0], 170, 3).assign(prefix_hashes=[hashes, hashes])
    frame = replay(requests, TIMES, SchedulerConfig())
    assert frame["cached_tokens"].tolist() == [0, 160]
    cold, warm = frame["first_token_s"] - frame["arrived_s"]
    assert warm < cold / 2
    off = replay(requests, TIMES, SchedulerConfig(prefix_caching=False))
    assert off["cached_tokens"].tolist() == [0, 0]


def test_routers() -> None:
    # The first request is long: least_outstanding keeps off its replica, round_robin does not.
    requests = requests_of([0.0, 0.1, 50.0, 100.0], 10, [5000, 1, 1, 1])
    assert replay(requests, TIMES, SchedulerConfig(), 2)["replica"].tolist() == [0, 1, 1, 1]
    turns = replay(requests, TIMES, SchedulerConfig(), 2, "round_robin")
    assert turns["replica"].tolist() == [0, 1, 0, 1]


def test_more_replicas_mean_less_waiting() -> None:
    requests = generate({"chat": 1.0}, 1.0, requests=400, rng=3)
    waits = []
    for replicas in (1, 2, 4, 8):
        frame, stats = replay_fleet(requests, equal_replicas(TIMES, SchedulerConfig(), replicas))
        waits.append(summary(frame, stats)["ttft_p95_s"])
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] < waits[0] / 10


def test_same_input_same_output() -> None:
    requests = generate({"chat": 0.5, "agent": 0.5}, 0.3, requests=100, rng=4)
    pd.testing.assert_frame_equal(
        replay(requests, TIMES, SchedulerConfig(), 3), replay(requests, TIMES, SchedulerConfig(), 3)
    )


def test_ids_are_kept_and_the_input_left_alone() -> None:
    requests = requests_of([0.0, 1.0], 5, 2).assign(request_id=["a", "b"])
    requests.index = pd.Index([5, 3])
    before = requests.copy()
    assert replay(requests, TIMES, SchedulerConfig())["request_id"].tolist() == ["a", "b"]
    pd.testing.assert_frame_equal(requests, before)


def test_summary_of_a_case_done_by_hand() -> None:
    # Steps of 1 s. A: prefill at 0, then two decodes; B arrives at 0.5, joins at 1: first token at 2, alone from 3.
    requests = requests_of([0.0, 0.5], 1, [3, 4])
    frame, stats = replay_fleet(requests, equal_replicas(ConstantStep(1.0), SchedulerConfig()))
    assert frame["finished_s"].tolist() == [3.0, 5.0]
    found = summary(frame, stats, Objective(ttft_p95_s=1.2, tpot_p95_s=1.0))
    assert found["ttft_mean_s"] == pytest.approx((1.0 + 1.5) / 2)
    assert found["tpot_p50_s"] == pytest.approx(1.0)
    assert found["e2e_p99_s"] == pytest.approx(np.percentile([3.0, 4.5], 99))
    assert found["queue_mean_s"] == pytest.approx(0.25)
    assert found["requests_per_s"] == pytest.approx(2 / 5)
    assert found["output_tokens_per_s"] == pytest.approx(7 / 5)
    assert found["busy_fraction"] == pytest.approx(1.0)
    assert found["batch_mean"] == pytest.approx(7 / 5)
    assert found["goodput_rps"] == pytest.approx(1 / 5)


def test_one_token_answers_have_no_tpot_and_still_are_goodput() -> None:
    frame, stats = replay_fleet(requests_of([0.0, 9.0]), equal_replicas(ConstantStep(1.0), SchedulerConfig()))
    found = summary(frame, stats, Objective(ttft_p95_s=1.5, tpot_p95_s=0.1))
    assert math.isnan(found["tpot_p95_s"])
    assert found["goodput_rps"] == pytest.approx(found["requests_per_s"])


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"arrived_s": [0.0, math.nan]}, ["row 1", "arrived_s", "nan"]),
        ({"arrived_s": [0.0, math.inf]}, ["row 1", "arrived_s", "inf"]),
        ({"arrived_s": [-1.0, 0.0]}, ["row 0", "arrived_s", "-1"]),
        ({"arrived_s": [2.0, 1.0]}, ["row 1", "arrived_s", "before"]),
        ({"prompt_tokens": [1, 0]}, ["row 1", "prompt_tokens", "found 0"]),
        ({"prompt_tokens": [1, "x"]}, ["row 1", "prompt_tokens", "found x"]),
        ({"output_tokens": [1.5, 2]}, ["row 0", "output_tokens", "1.5"]),
        ({"prompt_tokens": [1, 65_536], "output_tokens": [1, 2]}, ["row 1", "65536", "65537"]),
    ],
)
def test_bad_requests_are_refused_by_row(change: dict[str, list[float]], parts: list[str]) -> None:
    with pytest.raises(InputError) as refusal:
        replay(requests_of([0.0, 1.0]).assign(**change), TIMES, SchedulerConfig())
    assert all(part in str(refusal.value) for part in parts)


def test_what_just_fits_is_served() -> None:
    frame = replay(requests_of([0.0], 65_536, 1), TIMES, SchedulerConfig())
    assert frame["finished_s"].notna().all()


def test_other_bad_input_is_refused() -> None:
    requests = requests_of([0.0])
    with pytest.raises(InputError, match=r"output_tokens.*needed are arrived_s"):
        replay(requests.drop(columns="output_tokens"), TIMES, SchedulerConfig())
    with pytest.raises(InputError, match="no rows"):
        replay(requests.iloc[:0], TIMES, SchedulerConfig())
    for replicas in (0, -1, 1.5):
        with pytest.raises(InputError, match="replicas"):
            replay(requests, TIMES, SchedulerConfig(), replicas)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"router: found 'random'.*round_robin"):
        replay(requests, TIMES, SchedulerConfig(), 1, "random")
    for seconds in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="step_time"):
            replay(requests, ConstantStep(seconds), SchedulerConfig())
        with pytest.raises(InputError, match="step_time"):
            replay(requests_of([0.0], 1, 9), ConstantStepWithRuns(seconds), SchedulerConfig())


def test_steps_that_take_no_time_end() -> None:
    frame, stats = replay_fleet(
        requests_of([0.0, 0.0], 3, 4), equal_replicas(ConstantStep(0.0), SchedulerConfig())
    )
    assert (frame["finished_s"] == 0).all()
    assert math.isnan(summary(frame, stats)["requests_per_s"])


@pytest.mark.parametrize(("replicas", "speed"), [(1, 40.0), (48, 1.0)])
def test_the_real_conversation_trace(shared: Path, replicas: int, speed: float) -> None:
    requests = read_trace(shared / "traces" / "azure_2023_conv.csv")
    profile = synthetic_profile(speed=speed)
    frame, stats = replay_fleet(
        requests, equal_replicas(profile.step_time_model(), profile.scheduler_config(), replicas)
    )
    assert len(frame) == 19_366
    assert frame[TIME_COLUMNS].notna().all().all()
    assert (frame["first_token_s"] >= frame["arrived_s"]).all()
    assert frame["output_tokens"].sum() == requests["output_tokens"].sum()
    assert littles_law_error(frame, stats) < 0.01
    assert stats.events.sum() < 8 * len(frame)  # a handful per request, not one per token
