"""Fleets done by hand: each feature in a case so small that the times can be told beforehand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.batch import SchedulerConfig
from engine.errors import InputError
from sim.serving.fleet_config import (
    Autoscaler,
    Failures,
    Fleet,
    RateLimit,
    ReplicaSpec,
    Retries,
    Router,
    ScheduledSize,
    SpotInterruptions,
)
from sim.serving.fleet_run import FleetRun
from sim.serving.metrics import summary
from sim.serving.replay import replay_fleet
from sim.serving.servers import Server
from sim.workload.conversations import conversations
from sim.workload.requests import check_requests
from tests.helpers.fleet import times
from tests.helpers.profile import synthetic_profile

SECOND = times(1.0)  # every step takes a second
ONE = SchedulerConfig(max_running_requests=1)


def requests(arrived_s: list[float], output_tokens: Any = 1, **columns: Any) -> pd.DataFrame:
    frame = pd.DataFrame({"arrived_s": arrived_s, "prompt_tokens": 1, "output_tokens": output_tokens})
    return frame.assign(**columns)


def kind(**changes: Any) -> ReplicaSpec:
    return ReplicaSpec(**{"step_time": SECOND, **changes})


def played(frame: pd.DataFrame, fleet: Fleet, **changes: Any) -> FleetRun:
    run = FleetRun(check_requests(frame), fleet, **changes)
    run.run()
    return run


# ---- machines come and go ----


def test_an_autoscaler_orders_what_is_missing_and_waits_for_it() -> None:
    scaler = Autoscaler(
        target=2, max_replicas=4, interval_s=10, provisioning_s=20, cool_down_s=1000, tolerance=0
    )
    fleet = Fleet(kinds=(kind(autoscaler=scaler, load_s=5),))
    run = played(requests([0.0] * 8 + [34.5, 35.5, 35.5], 50), fleet)
    # At 10 s eight requests stand against a target of two: three machines more, which serve at 10 + 20 + 5 s.
    assert [server.ordered_s for server in run.servers.servers] == [0, 10, 10, 10]
    assert [server.ready_s for server in run.servers.servers] == [0, 35, 35, 35]
    assert run.rows["replica"].tolist() == [0] * 9 + [1, 2]


def test_an_autoscaler_shrinks_after_its_cool_down_and_lets_requests_finish() -> None:
    scaler = Autoscaler(target=1, max_replicas=3, interval_s=10, cool_down_s=45, tolerance=0)
    fleet = Fleet(kinds=(kind(replicas=3, autoscaler=scaler),), router="round_robin")
    # At 10 s three requests: all stay. At 20 s there are two, so one goes: the empty one, replica 1.
    # At 30 s there is one; the cool-down ends at 65 s. At 70 s replica 0 still answers, and replica 2 goes.
    run = played(requests([0.0, 0.0, 0.0, 90.5], [100, 15, 25, 1]), fleet)
    first, second, third = run.servers.servers
    assert math.isnan(first.drained_s)
    assert (second.drained_s, second.released_s) == (20, 20)
    assert (third.drained_s, third.released_s) == (70, 70)
    assert run.rows["replica"].tolist() == [0, 1, 2, 0]
    np.testing.assert_array_equal(run.servers.paid_s(), [100, 20, 70])


def test_a_machine_that_drains_finishes_what_it_has() -> None:
    scaler = Autoscaler(target=9, max_replicas=2, interval_s=10, cool_down_s=0, tolerance=0, min_replicas=1)
    fleet = Fleet(kinds=(kind(replicas=2, autoscaler=scaler),), router="round_robin")
    run = played(requests([0.0, 0.0, 11.0, 12.0], [50, 40, 1, 1]), fleet)
    second = run.servers.servers[1]
    assert (second.drained_s, second.released_s) == (10, 40)
    assert run.rows["replica"].tolist() == [0, 1, 0, 0]
    assert (run.status == 0).all()


def test_a_schedule_has_machines_ready_before_the_load() -> None:
    schedule = (ScheduledSize(at_s=0, replicas=1), ScheduledSize(at_s=50, replicas=3))
    scaler = Autoscaler(
        target=5, max_replicas=4, interval_s=10, provisioning_s=0, cool_down_s=0, schedule=schedule, period_s=100,
    )  # fmt: skip
    run = played(requests([0.0, 205.0], 1), Fleet(kinds=(kind(autoscaler=scaler),)))
    assert [server.ordered_s for server in run.servers.servers] == [0, 50, 50, 150, 150]
    assert [server.drained_s for server in run.servers.servers[1:]] == [100, 100, 200, 200]
    assert len(run.servers.paid_s()) == 3  # numbers are used again


def test_a_busy_fleet_does_not_collapse_when_it_shrinks() -> None:
    # 1.2 machines' worth of work and a target of half: three of six stay, and no fourth is ordered or dropped.
    scaler = Autoscaler(metric="busy_fraction", target=0.5, max_replicas=6, interval_s=60, cool_down_s=60)
    fleet = Fleet(
        kinds=(kind(step_time=times(0.1), scheduler=ONE, replicas=6, autoscaler=scaler),),
        router="round_robin",
    )
    arrived_s = np.random.default_rng(3).exponential(1 / 12, 20_000).cumsum()
    run = played(requests(arrived_s.tolist()), fleet)
    assert len(run.servers.servers) == 6
    assert sum(math.isnan(server.drained_s) for server in run.servers.servers) == 3


def test_an_empty_fleet_wakes_up_for_one_request_however_high_the_target() -> None:
    scaler = Autoscaler(target=1e12, min_replicas=0, max_replicas=1, interval_s=10, provisioning_s=5)
    frame, stats = replay_fleet(
        requests([3.0]), Fleet(kinds=(kind(replicas=0, autoscaler=scaler, load_s=2),))
    )
    assert frame.iloc[0][["scheduled_s", "finished_s"]].tolist() == [13 + 5 + 2, 21]
    assert stats.up_s.tolist() == [21 - 13]
    assert stats.request_time_s == 18  # whoever waits while nobody serves is in the system


def test_more_replicas_than_allowed() -> None:
    with pytest.raises(InputError, match="starts with 3 replicas, allowed are at most 2"):
        FleetRun(check_requests(requests([0.0])), Fleet(kinds=(kind(replicas=3),)), most_replicas=2)
    scaler = Autoscaler(target=1, max_replicas=50, interval_s=1, provisioning_s=0)
    run = played(requests([0.0] * 60, 10), Fleet(kinds=(kind(autoscaler=scaler),)), most_replicas=4)
    assert len(run.servers.servers) == 4


# ---- failures ----


def outage(run: FleetRun, server: Server, from_s: float, until_s: float) -> None:
    """A machine is down for exactly that time."""

    def fail() -> None:
        run.die(server)
        server.ready_s = until_s
        run.open_when_ready(server)

    run.at(from_s, fail)


def test_a_failure_in_the_middle_of_an_answer() -> None:
    frame = requests([0.0], 10)
    fleet = Fleet(kinds=(kind(),), retries=Retries(attempts=2, delay_s=2))
    run = FleetRun(check_requests(frame), fleet)
    outage(run, run.servers.servers[0], 5.5, 12.0)
    run.run()
    assert run.attempts == [2]
    assert run.rows["scheduled_s"].tolist() == [12]
    assert run.rows["first_token_s"].tolist() == [13]
    assert run.finished_s.tolist() == [22]
    assert run.core.counts["busy_s"].tolist() == [5.5 + 10]
    assert run.waited_s == 12 - 5.5  # at the client's, then for the machine
    assert run.servers.paid_s().tolist() == [22]


def test_a_failure_without_retries_breaks_the_answer_off() -> None:
    run = FleetRun(check_requests(requests([0.0, 1.0], [10, 3])), Fleet(kinds=(kind(replicas=2),)))
    outage(run, run.servers.servers[0], 5.5, 12.0)
    run.run()
    assert run.status.tolist() == [3, 0]
    assert run.left_s.tolist() == [5.5, 4]


def test_a_client_who_left_before_the_machine_died_does_not_ask_twice() -> None:
    # It times out at 2 s, in a step until 4 s; the machine dies at 3 s. One retry, not two.
    fleet = Fleet(
        kinds=(kind(step_time=times(4.0), replicas=2),), timeout_s=2, retries=Retries(attempts=2, delay_s=5)
    )
    run = FleetRun(check_requests(requests([0.0])), fleet)
    outage(run, run.servers.servers[0], 3.0, 100.0)
    run.run()
    assert run.attempts == [2]
    assert run.status.tolist() == [1]
    assert run.left_s.tolist() == [11]  # asks at 7 s, gives up at 9 s, in a step until 11 s
    assert run.core.counts["request_time_s"].sum() + run.waited_s == 11
    once = fleet.model_copy(update={"retries": Retries()})
    run = FleetRun(check_requests(requests([0.0])), once)
    outage(run, run.servers.servers[0], 3.0, 100.0)
    run.run()
    assert run.status.tolist() == [1]
    assert run.left_s.tolist() == [3]  # the step that still computed it broke off
    assert run.core.counts["request_time_s"].sum() == 3


def test_a_notice_lets_short_answers_finish() -> None:
    spot = SpotInterruptions(mean_life_s=1000, notice_s=10, replacement_s=50)
    life_s = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(1, 0, 0, 1))).exponential(1000)
    start_s = math.floor(life_s) - 1.0
    frame = requests([0.0, start_s, start_s, life_s + 1], [1, 5, 100, 1])
    fleet = Fleet(kinds=(kind(spot=spot, load_s=7),), retries=Retries(attempts=2, delay_s=1))
    found, stats = replay_fleet(frame, fleet)
    assert found["attempts"].tolist() == [1, 1, 2, 1]
    assert found["finished_s"][1] == start_s + 5
    again_s = life_s + 10 + 50 + 7
    assert found["scheduled_s"].to_numpy()[2:] == pytest.approx(again_s)
    assert found["finished_s"][2] == pytest.approx(again_s + 100)
    assert stats.up_s[0] == pytest.approx(again_s + 100 - 50)  # the gap is not paid


def test_a_repair_does_not_bring_back_what_the_cloud_took() -> None:
    fleet = Fleet(kinds=(kind(spot=SpotInterruptions(mean_life_s=1e9, replacement_s=300)),))
    run = FleetRun(check_requests(requests([0.0, 10.0, 100.0, 500.0])), fleet)
    server = run.servers.servers[0]
    outage(run, server, 5.0, 50.0)
    run.at(20.0, lambda: setattr(server, "ready_s", 320.0))  # taken back while it is repaired
    run.at(320.0, run._open, server)
    run.run()
    assert run.rows["scheduled_s"].tolist() == [0, 320, 320, 500]


# ---- clients and the door ----


def test_a_time_out_frees_blocks_at_the_end_of_the_step() -> None:
    # Steps of 4 s, and room for one of them: the second waits for the first one's blocks, and its own time is over too.
    small = SchedulerConfig(num_blocks=2, block_tokens=16)
    fleet = Fleet(kinds=(kind(step_time=times(4.0), scheduler=small),), timeout_s=10)
    found, _ = replay_fleet(requests([0.0, 2.0, 7.0], [15, 15, 1]).assign(prompt_tokens=17), fleet)
    assert found["status"].tolist() == ["timed_out", "timed_out", "finished"]
    assert found["left_s"].tolist() == [12, 12, 16]  # the second in the queue until 12 s, the third from then
    assert found["scheduled_s"].tolist()[2] == 12
    assert found["first_token_s"].isna().tolist() == [True, True, False]


def test_retries_back_off() -> None:
    # The first holds the only place until 5 s; the second tries at 0.5, 1.5, 3.5 and 7.5 s.
    fleet = Fleet(kinds=(kind(),), max_outstanding=1, retries=Retries(attempts=4, delay_s=1, backoff=2))
    found, _ = replay_fleet(requests([0.0, 0.5], [5, 1]), fleet)
    assert found["attempts"].tolist() == [1, 4]
    assert found["scheduled_s"].tolist() == [0, 7.5]
    assert found["arrived_s"].tolist() == [0, 0.5]
    three = fleet.model_copy(update={"retries": Retries(attempts=3, delay_s=1, backoff=2)})
    found, stats = replay_fleet(requests([0.0, 0.5], [5, 1]), three)
    assert found["status"].tolist() == ["finished", "rejected"]
    assert found["left_s"].tolist() == [5, 3.5]
    assert stats.request_time_s == 5 + 3


def test_delays_have_a_limit() -> None:
    retries = Retries(attempts=100, delay_s=1, backoff=100, max_delay_s=30)
    assert [retries.wait_s(attempt) for attempt in (1, 2, 99)] == [1, 30, 30]


def test_the_door_counts_who_waits_for_a_machine() -> None:
    scaler = Autoscaler(target=1, min_replicas=0, max_replicas=1, interval_s=100, provisioning_s=0)
    fleet = Fleet(kinds=(kind(replicas=0, autoscaler=scaler),), max_outstanding=2)
    found, _ = replay_fleet(requests([0.0, 1.0, 2.0, 3.0]), fleet)
    assert found["status"].tolist() == ["finished", "finished", "rejected", "rejected"]


def test_who_times_out_while_nobody_serves_is_gone() -> None:
    scaler = Autoscaler(target=1, min_replicas=0, max_replicas=1, interval_s=100, provisioning_s=0)
    fleet = Fleet(kinds=(kind(replicas=0, autoscaler=scaler),), timeout_s=30)
    found, stats = replay_fleet(requests([0.0, 80.0]), fleet)
    assert found["status"].tolist() == ["timed_out", "finished"]
    assert found["replica"].tolist() == [-1, 0]
    assert stats.request_time_s == 30 + 21


def test_priorities_overtake() -> None:
    frame = requests([0.0, 0.1, 0.2, 0.3], 2, priority=[0, 0, 1, -1])
    found, _ = replay_fleet(frame, Fleet(kinds=(kind(scheduler=ONE),)))
    assert found["scheduled_s"].tolist() == [0, 4, 6, 2]


def test_a_tenant_is_limited_for_itself() -> None:
    limits = {"small": RateLimit(requests_per_minute=2), "default": RateLimit(tokens_per_minute=10)}
    frame = requests([float(time) for time in range(10)], 1, tenant=["small", "a"] * 5)
    found, _ = replay_fleet(frame, Fleet(kinds=(kind(),), rate_limits=limits))
    passed = (found["status"] == "finished").to_numpy()
    assert passed[::2].tolist() == [True, True, False, False, False]
    assert passed[1::2].all()  # five of two tokens each
    unlimited = Fleet(kinds=(kind(),), rate_limits={"small": limits["small"]})
    assert (replay_fleet(frame, unlimited)[0]["status"] == "finished").sum() == 7


# ---- kinds and routers ----


def test_weights_of_kinds() -> None:
    kinds = (kind(name="large", weight=3), kind(name="small", weight=1))
    turns = replay_fleet(requests([0.0] * 8), Fleet(kinds=kinds, router="round_robin"))[0]["replica"]
    assert turns.tolist() == [0, 0, 1, 0] * 2
    busy = replay_fleet(requests([0.0] * 40, 50), Fleet(kinds=kinds))[0]["replica"]
    assert (busy == 0).sum() == 30
    swapped = replay_fleet(requests([0.0]), Fleet(kinds=kinds[::-1]))[0]["replica"]
    assert swapped.tolist() == [1]  # of two idle ones the larger


def test_a_prefix_aware_router_finds_conversations_again() -> None:
    profile = synthetic_profile(speed=20)
    frame = conversations("agent", 0.3, sessions=200, rng=1)
    rates = {}
    names: tuple[Router, ...] = ("least_outstanding", "prefix_aware", "round_robin")
    for name in names:
        each = ReplicaSpec(
            step_time=profile.step_time_model(), scheduler=profile.scheduler_config(), replicas=6
        )
        found, stats = replay_fleet(frame, Fleet(kinds=(each,), router=name))
        rates[name] = summary(found, stats)["cache_hit_rate"]
    assert rates["prefix_aware"] > 1.5 * rates["least_outstanding"]
    assert rates["prefix_aware"] > 1.5 * rates["round_robin"]


def test_prompts_and_answers_on_different_machines() -> None:
    kinds = (
        kind(name="p", role="prefill", step_time=times(2.0)),
        kind(name="d", role="decode", step_time=times(0.5)),
    )
    fleet = Fleet(kinds=kinds, kv_transfer_s=0.25, kv_transfer_s_per_token=0.125)
    frame = requests([0.0, 0.0], [5, 1]).assign(prompt_tokens=10)
    found, stats = replay_fleet(frame, fleet, record_steps=True)
    # Prefilled by 2 s, there at 2 + 0.25 + 10 / 8 s, then four steps.
    assert found["first_token_s"].tolist() == [2, 2]
    assert found["finished_s"].tolist() == [3.5 + 4 * 0.5, 2]
    assert found["replica"].tolist() == [1, 0]
    assert stats.request_time_s == 5.5 + 2
    assert stats.prefill_tokens.tolist() == [20, 1]
    assert stats.decode_tokens.tolist() == [0, 3]
    records = stats.records
    assert records is not None
    assert (records.loc[records["replica"] == 0, "decodes"] == 0).all()
    # The first step at the decode machine computes the first token's keys and values, never the prompt's.
    assert records.loc[records["replica"] == 1, "prefill_tokens"].tolist() == [1, 0]


@pytest.mark.parametrize(("guesses", "rate"), [(1, 0.5), (4, 0.8), (3, 0.0), (2, 1.0)])
def test_speculation_makes_as_many_tokens_as_expected(guesses: int, rate: float) -> None:
    # (1 - a^(k+1)) / (1 - a) tokens per step (Leviathan et al. 2023); a token more where all guesses are right.
    expected = guesses + 1 if rate == 1 else (1 - rate ** (guesses + 1)) / (1 - rate)
    config = SchedulerConfig(num_blocks=10_000)
    each = kind(draft_tokens=guesses, acceptance_rate=rate, scheduler=config)
    _, stats = replay_fleet(requests([0.0], 30_001), Fleet(kinds=(each,)))
    assert stats.decode_tokens.sum() == 30_000
    assert 30_000 / (stats.steps.sum() - 1) == pytest.approx(expected, rel=0.02)


# ---- what is refused, and what must not hang ----


def test_a_fleet_that_never_serves_is_refused() -> None:
    with pytest.raises(ValidationError, match="0 replicas of role serve and no autoscaler"):
        Fleet(kinds=(kind(replicas=0),))
    with pytest.raises(ValidationError, match="0 replicas of role decode"):
        Fleet(kinds=(kind(role="prefill"), kind(role="decode", replicas=0)))
    small = kind(scheduler=SchedulerConfig(num_blocks=2))
    with pytest.raises(InputError, match="row 0"):
        replay_fleet(requests([0.0]).assign(prompt_tokens=100), Fleet(kinds=(kind(), small)))


def test_what_would_take_hours_is_refused() -> None:
    frame = requests([0.0, 1e10])
    too_often: dict[str, dict[str, Any]] = {
        "autoscaler.interval_s: found 15 s": {"autoscaler": Autoscaler(target=1)},
        "failures.mtbf_s: found 1 s": {"failures": Failures(mtbf_s=1)},
        "spot.mean_life_s: found 2 s": {"spot": SpotInterruptions(mean_life_s=2)},
    }
    for name, changes in too_often.items():
        with pytest.raises(InputError, match=f"replica.{name} in a run of 1e\\+10 s, allowed is at least"):
            replay_fleet(frame, Fleet(kinds=(kind(**changes),)))


def test_the_clock_starts_at_the_first_arrival() -> None:
    # Times as Unix seconds: no decisions since 1970.
    start_s = 1.75e9
    scaler = Autoscaler(target=1, interval_s=10, cool_down_s=0, max_replicas=2)
    run = played(requests([start_s, start_s + 25], 1), Fleet(kinds=(kind(replicas=2, autoscaler=scaler),)))
    assert [server.ordered_s for server in run.servers.servers] == [start_s, start_s]
    assert run.servers.servers[1].drained_s == start_s + 10
    assert run.servers.paid_s().tolist() == [26, 10]


@given(st.floats(0, 1e9), st.lists(st.floats(0, 1e9), min_size=1, max_size=20))
def test_nothing_happens_before_its_time(start_s: float, times_s: list[float]) -> None:
    run = FleetRun(check_requests(requests([start_s])), Fleet(kinds=(kind(),)))
    seen: list[tuple[float, float]] = []
    for time_s in times_s:
        run.at(start_s + time_s, lambda due_s: seen.append((due_s, run.env.now)), start_s + time_s)
    while run.env.peek() < math.inf:
        run.env.step()
    assert len(seen) == len(times_s)
    for due_s, now_s in seen:
        assert due_s <= now_s <= math.nextafter(math.nextafter(due_s, math.inf), math.inf)


def test_a_kind_costs_its_own_price() -> None:
    profile = synthetic_profile(price_usd_per_hour=2.0)
    spot = ReplicaSpec(step_time=profile.step_time_model(), profile=profile, price_usd_per_hour=0.5)
    assert spot.priced_profile is not None
    assert spot.priced_profile.hardware.price_usd_per_hour == 0.5
    listed = ReplicaSpec(step_time=profile.step_time_model(), profile=profile)
    assert listed.priced_profile is profile
