"""The compiled replicas against the readable ones: equal to the bit, whatever happens to the fleet."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import SchedulerConfig
from engine.errors import InputError
from engine.profile.step_time import StepTimeModel
from sim.serving import replica_native
from sim.serving.fleet_config import (
    Autoscaler,
    Failures,
    Fleet,
    RateLimit,
    ReplicaSpec,
    Retries,
    SpotInterruptions,
)
from sim.serving.replay import equal_replicas, replay_fleet
from tests.helpers.profile import synthetic_profile

needs_compiler = pytest.mark.skipif(not replica_native.is_available(), reason="no C compiler here")
TIMES = synthetic_profile().step_time_model()
BLOCK = 4


@dataclasses.dataclass(frozen=True)
class OnlySteps:
    """A model in Python without its closed form."""

    def step_time(self, prefill: Any, decode_contexts: Any) -> float:
        return TIMES.step_time(prefill, decode_contexts)


@dataclasses.dataclass(frozen=True)
class WithRuns(OnlySteps):
    """A model in Python with it."""

    def decode_run(self, decode_contexts: Any, steps: int) -> float:
        return TIMES.decode_run(decode_contexts, steps)


@st.composite
def requests(draw: st.DrawFn) -> pd.DataFrame:
    rows = draw(
        st.lists(
            st.tuples(
                st.floats(0, 2), st.integers(1, 60), st.integers(1, 60), st.integers(0, 2), st.integers(-1, 1),
                st.sampled_from("ab"),
            ),
            min_size=1,
            max_size=25,
        )
    )  # fmt: skip
    gaps, prompts, outputs, families, priorities, tenants = zip(*rows, strict=True)
    frame = pd.DataFrame(
        {
            "arrived_s": np.cumsum(gaps) / math.pi,
            "prompt_tokens": prompts,
            "output_tokens": outputs,
            "prefix_hashes": [
                tuple((f, i) for i in range(p // BLOCK)) for p, f in zip(prompts, families, strict=True)
            ],
            "priority": priorities,
            "tenant": tenants,
        }
    )
    if draw(st.booleans()):
        frame = frame.drop(columns="prefix_hashes")
    if draw(st.booleans()):  # some wait for an earlier one
        after = [draw(st.integers(-1, row - 1)) for row in range(len(frame))]
        frame["after"], frame["think_s"] = after, 0.37
        frame.loc[frame["after"] >= 0, "arrived_s"] = math.nan
    return frame


@st.composite
def kinds(draw: st.DrawFn, role: str = "serve") -> ReplicaSpec:
    config = SchedulerConfig(
        max_running_requests=draw(st.integers(1, 6)),
        max_step_tokens=draw(st.integers(6, 40)),
        block_tokens=BLOCK,
        num_blocks=draw(st.integers(30, 60)),  # tight: requests are preempted
        prefix_caching=draw(st.booleans()),
        max_waiting_requests=draw(st.sampled_from([None, None, 2])),
        spare_blocks_per_request=draw(st.integers(0, 1)),
    )
    changes: dict[str, Any] = {}
    if draw(st.booleans()):
        changes["failures"] = Failures(mtbf_s=draw(st.floats(1, 20)), repair_s=1.0)
    if draw(st.booleans()):
        changes["spot"] = SpotInterruptions(
            mean_life_s=draw(st.floats(1, 20)), notice_s=0.4, replacement_s=1.0
        )
    if draw(st.booleans()):
        changes["autoscaler"] = Autoscaler(
            target=2.0, max_replicas=4, interval_s=0.7, provisioning_s=0.5, cool_down_s=1.0
        )
    if draw(st.booleans()):
        changes |= {"draft_tokens": draw(st.integers(1, 5)), "acceptance_rate": 0.6}
    times: StepTimeModel = draw(st.sampled_from([TIMES, TIMES, OnlySteps(), WithRuns()]))
    return ReplicaSpec(
        name=role, step_time=times, scheduler=config, replicas=draw(st.integers(1, 3)), role=role, load_s=0.3,
        weight=draw(st.sampled_from([1.0, 2.0])), **changes,
    )  # fmt: skip


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    if draw(st.booleans()):
        members = [draw(kinds("prefill")), draw(kinds("decode"))]
    else:
        members = draw(st.lists(kinds(), min_size=1, max_size=2))
    return Fleet(
        kinds=tuple(members),
        router=draw(
            st.sampled_from(
                [
                    "least_outstanding", "least_outstanding_tokens", "round_robin", "power_of_two", "prefix_aware",
                ]
            )
        ),
        timeout_s=draw(st.sampled_from([None, 0.5, 3.0])),
        max_outstanding=draw(st.sampled_from([None, 3])),
        retries=Retries(attempts=draw(st.integers(1, 3)), delay_s=0.2),
        rate_limits=draw(
            st.sampled_from([{}, {"a": RateLimit(requests_per_minute=4), "default": RateLimit(tokens_per_minute=99)}])
        ),
        kv_transfer_s=0.01,
        kv_transfer_s_per_token=1e-4,
        seed=draw(st.integers(0, 5)),
    )  # fmt: skip


@needs_compiler
@settings(max_examples=80, deadline=None)
@given(requests(), fleets())
def test_compiled_equals_readable(frame: pd.DataFrame, fleet: Fleet) -> None:
    fast, fast_stats = replay_fleet(frame, fleet, record_steps=True)
    plain, plain_stats = replay_fleet(frame, fleet, record_steps=True, reference=True)
    pd.testing.assert_frame_equal(fast, plain, check_exact=True)
    for name, value in vars(plain_stats).items():
        found = getattr(fast_stats, name)
        if isinstance(value, pd.DataFrame):
            columns = list(value.columns)
            in_order = [part.sort_values(columns, ignore_index=True) for part in (found, value)]
            pd.testing.assert_frame_equal(*in_order, check_exact=True)
        elif name != "kinds":
            np.testing.assert_array_equal(found, value, err_msg=name)


@needs_compiler
def test_an_error_of_a_model_in_python_comes_through() -> None:
    class Broken:
        def step_time(self, prefill: Any, decode_contexts: Any) -> float:
            raise ZeroDivisionError("broken on purpose")

    frame = pd.DataFrame({"arrived_s": [0.0, 1.0], "prompt_tokens": 5, "output_tokens": 5})
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        replay_fleet(frame, equal_replicas(Broken()))


@needs_compiler
def test_without_a_compiler_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"arrived_s": np.arange(50.0), "prompt_tokens": 50, "output_tokens": 20})
    fast, _ = replay_fleet(frame, equal_replicas(TIMES))
    monkeypatch.setattr(replica_native, "is_available", lambda: False)
    plain, _ = replay_fleet(frame, equal_replicas(TIMES))
    pd.testing.assert_frame_equal(fast, plain, check_exact=True)


def test_a_negative_time_is_refused_by_both() -> None:
    class Backwards:
        def step_time(self, prefill: Any, decode_contexts: Any) -> float:
            return -1.0

    frame = pd.DataFrame({"arrived_s": [0.0], "prompt_tokens": 5, "output_tokens": 5})
    for reference in (False, True):
        with pytest.raises(InputError, match=r"-1\.0 s"):
            replay_fleet(frame, equal_replicas(Backwards()), reference=reference)


def test_an_error_ends_a_fleet_that_would_change_for_ever() -> None:
    class Backwards:
        def step_time(self, prefill: Any, decode_contexts: Any) -> float:
            return -1.0

    frame = pd.DataFrame({"arrived_s": [0.0], "prompt_tokens": 5, "output_tokens": 5})
    fleet = Fleet(kinds=(ReplicaSpec(step_time=Backwards(), autoscaler=Autoscaler(target=1)),))
    for reference in (False, True):
        with pytest.raises(InputError, match=r"-1\.0 s"):
            replay_fleet(frame, fleet, reference=reference)


def test_the_step_under_way_counts_as_busy() -> None:
    # One decode run of 40 s: the autoscaler sees a busy replica while it lasts.
    class Slow:
        def step_time(self, prefill: Any, decode_contexts: Any) -> float:
            return 1.0

        def decode_run(self, decode_contexts: Any, steps: int) -> float:
            return float(steps)

    frame = pd.DataFrame({"arrived_s": [0.0], "prompt_tokens": 5, "output_tokens": 40})
    scaler = Autoscaler(metric="busy_fraction", target=0.5, interval_s=10, provisioning_s=1, max_replicas=2)
    fleet = Fleet(kinds=(ReplicaSpec(step_time=Slow(), autoscaler=scaler),))
    for reference in (False, True):
        _, stats = replay_fleet(frame, fleet, reference=reference)
        assert len(stats.up_s) == 2  # ordered at the first look, long before the run ends
        assert stats.up_s[1] == pytest.approx(30.0)
