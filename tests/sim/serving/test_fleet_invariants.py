"""What holds for every fleet and every stream of requests, whatever fails, scales, waits or is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.serving.fleet_config import (
    Autoscaler,
    Failures,
    Fleet,
    RateLimit,
    ReplicaSpec,
    Retries,
    SpotInterruptions,
)
from sim.serving.fleet_run import FleetRun
from sim.serving.metrics import littles_law_error
from sim.serving.replay import replay_fleet
from sim.serving.replica_tables import STATUSES
from sim.workload.requests import check_requests
from tests.sim.serving.test_replicas import TIMES, fleets, requests

TIME_COLUMNS = ["scheduled_s", "first_token_s", "finished_s"]


@settings(max_examples=25, deadline=None)
@given(requests(), fleets())
def test_everybody_ends_in_one_way_and_time_runs_forward(frame: pd.DataFrame, fleet: Fleet) -> None:
    found, stats = replay_fleet(frame, fleet)
    assert found["status"].isin(STATUSES).all()
    done = (found["status"] == "finished").to_numpy()
    times = found[["arrived_s", *TIME_COLUMNS]]
    assert times[done].notna().all().all()
    assert (times[done].diff(axis=1).iloc[:, 1:] >= 0).all().all()
    assert (found["first_token_s"] > found["scheduled_s"])[done].all()
    assert times.loc[~done, TIME_COLUMNS].isna().all().all()
    assert found["attempts"].between(1, fleet.retries.attempts).all()
    assert (found["left_s"] >= found["arrived_s"]).all()
    assert (found["left_s"] == found["finished_s"])[done].all()
    if "after" in frame:
        after = frame["after"].to_numpy()
        # A client that gives up is gone before the step under way is over.
        waits = (after >= 0) & done[after]
        gap_s = found["arrived_s"].to_numpy() - found["left_s"].to_numpy()[after]
        assert gap_s[waits] == pytest.approx(0.37)
    assert stats.started_s == found["arrived_s"].min()
    assert stats.ended_s == found["left_s"].max()


@settings(max_examples=25, deadline=None)
@given(requests(), fleets())
def test_littles_law_holds_on_every_run(frame: pd.DataFrame, fleet: Fleet) -> None:
    found, stats = replay_fleet(frame, fleet)
    spent_s = (found["left_s"] - found["arrived_s"]).sum()
    assert stats.request_time_s == pytest.approx(spent_s, rel=1e-9, abs=1e-9)
    if spent_s and stats.duration_s:
        assert littles_law_error(found, stats) < 1e-9


@settings(max_examples=25, deadline=None)
@given(requests(), fleets())
def test_machines_are_paid_while_they_work_and_work_only_while_they_are_there(
    frame: pd.DataFrame, fleet: Fleet
) -> None:
    run = FleetRun(check_requests(frame), fleet, record_steps=True)
    outages: list[tuple[int, float, float]] = []
    die, opened = run.die, run._open

    def note_death(server):  # type: ignore[no-untyped-def]
        outages.append((server.replica, run.env.now, math.inf))
        die(server)

    def note_opening(server):  # type: ignore[no-untyped-def]
        opened(server)
        if server.serves:
            for index, (replica, since_s, until_s) in enumerate(outages):
                if replica == server.replica and until_s == math.inf:
                    outages[index] = (replica, since_s, run.env.now)

    run.die, run._open = note_death, note_opening  # type: ignore[method-assign]
    run.run()
    paid_s = run.servers.paid_s()
    assert (paid_s >= run.core.counts["busy_s"][: len(paid_s)] - 1e-9).all()
    for server in run.servers.servers:
        assert server.released_s <= max(run.ended_s, server.ordered_s) + 1e-9
        assert server.unpaid_s <= server.released_s - server.ordered_s + 1e-9
    steps = run.core.records()
    for replica, down_s, up_s in outages:
        overlap = (steps["replica"] == replica) & (steps["ended_s"] > down_s) & (steps["started_s"] < up_s)
        assert not overlap.any()


@settings(max_examples=20, deadline=None)
@given(requests(), fleets())
def test_tokens_are_conserved(frame: pd.DataFrame, fleet: Fleet) -> None:
    found, stats = replay_fleet(frame, fleet)
    done = found["status"] == "finished"
    # Each output token but the first is decoded (or recomputed as a prompt after a preemption).
    decoded = (found["output_tokens"] - 1)[done].sum()
    computed = stats.decode_tokens.sum() + stats.prefill_tokens.sum()
    needed = decoded + (found["prompt_tokens"] - found["cached_tokens"])[done].sum()
    assert computed >= needed
    if done.all() and (found["attempts"] == 1).all() and not found["preemptions"].any():
        # The second token of an answer comes from its decode half's prefill, of one token.
        by_prefill = (found["output_tokens"] > 1).sum() if fleet.is_disaggregated else 0
        assert stats.decode_tokens.sum() == decoded - by_prefill


@settings(max_examples=10, deadline=None)
@given(requests(), fleets())
def test_the_same_seed_gives_the_same_frame(frame: pd.DataFrame, fleet: Fleet) -> None:
    first, first_stats = replay_fleet(frame, fleet)
    second, second_stats = replay_fleet(frame, fleet)
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    np.testing.assert_array_equal(first_stats.up_s, second_stats.up_s)


NEUTRAL = [
    {"timeout_s": 1e9},
    {"max_outstanding": 10**9},
    {"rate_limits": {"default": RateLimit(requests_per_minute=1e12, tokens_per_minute=1e15)}},
    {"retries": Retries(attempts=5)},
]


@settings(max_examples=15, deadline=None)
@given(requests(), fleets(), st.sampled_from(NEUTRAL))
def test_a_door_that_lets_everybody_in_changes_nothing(
    frame: pd.DataFrame, fleet: Fleet, neutral: dict[str, object]
) -> None:
    open_door: dict[str, object] = {
        "timeout_s": None,
        "max_outstanding": None,
        "rate_limits": {},
        "retries": Retries(),
    }
    kinds = tuple(
        kind.model_copy(
            update={
                "failures": None,
                "spot": None,
                "scheduler": replace(kind.scheduler, max_waiting_requests=None),
            }
        )
        for kind in fleet.kinds
    )
    plain = fleet.model_copy(update={**open_door, "kinds": kinds})
    before, before_stats = replay_fleet(frame, plain)
    after, after_stats = replay_fleet(frame, plain.model_copy(update=neutral))
    pd.testing.assert_frame_equal(before, after, check_exact=True)
    np.testing.assert_array_equal(before_stats.busy_s, after_stats.busy_s)
    assert before_stats.request_time_s == after_stats.request_time_s


@settings(max_examples=15, deadline=None)
@given(requests(), fleets())
def test_machines_that_never_change_are_like_machines_that_cannot(frame: pd.DataFrame, fleet: Fleet) -> None:
    kinds = tuple(
        kind.model_copy(update={"failures": None, "spot": None, "autoscaler": None}) for kind in fleet.kinds
    )
    steady = fleet.model_copy(update={"kinds": kinds})
    changed = tuple(
        kind.model_copy(
            update={
                "failures": Failures(mtbf_s=1e9),
                "spot": SpotInterruptions(mean_life_s=1e9),
                "autoscaler": Autoscaler(target=1e9, min_replicas=kind.replicas, max_replicas=kind.replicas),
            }
        )
        for kind in kinds
    )
    before, before_stats = replay_fleet(frame, steady)
    after, after_stats = replay_fleet(frame, steady.model_copy(update={"kinds": changed}))
    pd.testing.assert_frame_equal(before, after, check_exact=True)
    np.testing.assert_array_equal(before_stats.up_s, after_stats.up_s)


@settings(max_examples=15, deadline=None)
@given(requests(), fleets(), st.floats(0, 1))
def test_the_future_does_not_change_the_past(frame: pd.DataFrame, fleet: Fleet, share: float) -> None:
    # Without classes that wait for each other, whoever left before the cut knows nothing of who comes after it.
    frame = frame.drop(columns=["after", "think_s"], errors="ignore")
    frame = frame[frame["arrived_s"].notna()]
    if fleet.is_disaggregated:  # guesses are drawn by row, and decode halves are numbered after all requests
        kinds = tuple(kind.model_copy(update={"draft_tokens": 0}) for kind in fleet.kinds)
        fleet = fleet.model_copy(update={"kinds": kinds})
    whole, _ = replay_fleet(frame, fleet)
    kept = frame.iloc[: max(1, int(len(frame) * share))]
    part, _ = replay_fleet(kept, fleet)
    cut_s = frame["arrived_s"].iloc[len(kept)] if len(kept) < len(frame) else math.inf
    early = (part["left_s"] < cut_s).to_numpy()
    pd.testing.assert_frame_equal(
        part[early], whole.iloc[: len(kept)][early], check_exact=True, check_dtype=False
    )


@settings(max_examples=10, deadline=None)
@given(
    st.floats(0.01, 1e4),
    st.integers(0, 3),
    st.floats(1e-6, 1e12),
    st.sampled_from(["outstanding_requests", "waiting_requests", "busy_fraction"]),
    st.floats(0, 1e5),
    st.floats(0, 1e4),
    st.integers(1, 20),
)
def test_whatever_the_autoscaler_every_run_ends(
    gap_s: float,
    replicas: int,
    target: float,
    metric: Any,
    provisioning_s: float,
    cool_down_s: float,
    attempts: int,
) -> None:
    scaler = Autoscaler(
        metric=metric, target=target, min_replicas=0, max_replicas=3, provisioning_s=provisioning_s,
        cool_down_s=cool_down_s,
    )  # fmt: skip
    kind = ReplicaSpec(
        step_time=TIMES, replicas=replicas, autoscaler=scaler, failures=Failures(mtbf_s=gap_s + 0.1, repair_s=1),
        spot=SpotInterruptions(mean_life_s=10 * gap_s + 0.1, notice_s=1, replacement_s=1),
    )  # fmt: skip
    fleet = Fleet(kinds=(kind,), retries=Retries(attempts=attempts, backoff=100, max_delay_s=100))
    frame = pd.DataFrame({"arrived_s": np.arange(8) * gap_s, "prompt_tokens": 50, "output_tokens": 20})
    found, stats = replay_fleet(frame, fleet)
    assert found["status"].isin(["finished", "lost"]).all()
    assert littles_law_error(found, stats) < 1e-9
