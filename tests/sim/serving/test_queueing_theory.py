"""The simulator against closed forms of queueing theory: each within a 99.9 % confidence interval by batch means.

A replica whose steps all take δ and that runs c requests at once is c servers: a request needs as many steps as it has
output tokens. A geometric number of them is an exponential service but for δ, which is a thousandth of the mean here.
A replica whose steps take δ per running request shares one processor.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from engine.batch import SchedulerConfig
from sim.serving.batch_means import batch_means
from sim.serving.fleet_config import Failures, Fleet, RateLimit, ReplicaSpec, SpotInterruptions
from sim.serving.fleet_run import FleetRun
from sim.serving.metrics import littles_law_error
from sim.serving.replay import equal_replicas, replay, replay_fleet
from sim.workload.conversations import closed_loop
from sim.workload.requests import check_requests
from tests.helpers.fleet import times

STEP_S = 0.001


def servers(count: int) -> SchedulerConfig:
    """So many at once, and room for all of them."""
    return SchedulerConfig(max_running_requests=count, max_step_tokens=2 * count, num_blocks=1_000_000)


def poisson(rate: float, service_steps: NDArray[np.int64], seed: int) -> pd.DataFrame:
    gaps_s = np.random.default_rng(seed).exponential(1 / rate, len(service_steps))
    return pd.DataFrame(
        {"arrived_s": gaps_s.cumsum(), "prompt_tokens": 1, "output_tokens": np.maximum(service_steps, 1)}
    )


def exponential(count: int, seed: int, mean_s: float = 1.0) -> NDArray[np.int64]:
    return np.random.default_rng(1000 + seed).geometric(STEP_S / mean_s, count)


def assert_mean(values: pd.Series | NDArray[Any], expected: float, precision: float) -> None:
    """The mean is as expected, within an interval no wider than ± `precision` of it."""
    (interval,) = batch_means(np.asarray(values, np.float64), level=0.999)
    assert interval.half_width < precision * expected, "the test sees too little"
    assert interval.low <= expected <= interval.high


def waits(frame: pd.DataFrame) -> pd.Series:
    return frame["scheduled_s"] - frame["arrived_s"]


def sojourns(frame: pd.DataFrame) -> pd.Series:
    return frame["finished_s"] - frame["arrived_s"]


def erlang_b(count: int, load: float) -> float:
    blocked = 1.0
    for n in range(1, count + 1):
        blocked = load * blocked / (n + load * blocked)
    return blocked


def erlang_c(count: int, load: float) -> float:
    blocked = erlang_b(count, load)
    return blocked / (1 - load / count * (1 - blocked))


@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
def test_m_d_1(load: float) -> None:
    frame = replay(poisson(load / 0.1, np.ones(150_000, np.int64), 11), times(0.1), servers(1))
    assert_mean(waits(frame), load * 0.1 / (2 * (1 - load)), 0.2)
    assert (frame["finished_s"] - frame["scheduled_s"]).to_numpy() == pytest.approx(0.1)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_m_m_1(load: float) -> None:
    frame, stats = replay_fleet(
        poisson(load, exponential(80_000, 12), 12), equal_replicas(times(STEP_S), servers(1))
    )
    assert_mean(sojourns(frame), 1 / (1 - load), 0.15)
    assert stats.busy_fraction == pytest.approx(load, rel=0.03)
    assert littles_law_error(frame, stats) < 1e-9
    # The time in system is exponential, so its percentiles are known too.
    (_, p95) = batch_means(sojourns(frame).to_numpy(), [95], level=0.999)
    assert p95.low <= -math.log(0.05) / (1 - load) <= p95.high


@pytest.mark.parametrize(("count", "load"), [(2, 1.4), (8, 6.4), (16, 14.0)])
def test_m_m_c(count: int, load: float) -> None:
    frame = replay(poisson(load, exponential(200_000, 13), 13), times(STEP_S), servers(count))
    wait_s = waits(frame).to_numpy()
    # Whoever meets a free server still waits for the end of the step under way.
    step_s = STEP_S / 2
    assert_mean(wait_s - step_s, erlang_c(count, load) / (count - load), 0.25)
    assert_mean(wait_s > STEP_S, erlang_c(count, load), 0.2)


@pytest.mark.parametrize("exponential_service", [True, False])
def test_erlang_loss(exponential_service: bool) -> None:
    # Blocked calls are as many whatever the distribution of the service (Erlang 1917, Sevastyanov 1957).
    count, load = 6, 4.0
    steps = exponential(100_000, 14) if exponential_service else np.full(100_000, 1000)
    kind = ReplicaSpec(step_time=times(STEP_S), scheduler=servers(count))
    frame, stats = replay_fleet(poisson(load, steps, 14), Fleet(kinds=(kind,), max_outstanding=count))
    assert_mean(frame["status"] == "rejected", erlang_b(count, load), 0.15)
    assert littles_law_error(frame, stats) < 1e-9


@pytest.mark.parametrize("load", [0.4, 0.8])
def test_m_m_1_processor_sharing(load: float) -> None:
    frame = replay(poisson(load, exponential(60_000, 15), 15), times(0.0, STEP_S), servers(2000))
    assert_mean(sojourns(frame), 1 / (1 - load), 0.2)


def test_processor_sharing_is_fair_and_insensitive() -> None:
    # Mean sojourn of a job of size x: x / (1 - rho), whatever the other jobs (Kleinrock 1967).
    load = 0.6
    steps = np.random.default_rng(16).choice([200, 3000], 60_000, p=[5 / 7, 2 / 7])
    rate = load / (steps.mean() * STEP_S)
    frame = replay(poisson(rate, steps, 16), times(0.0, STEP_S), servers(2000))
    for size in (200, 3000):
        assert_mean(sojourns(frame)[steps == size], size * STEP_S / (1 - load), 0.15)


def test_m_g_1() -> None:
    # Pollaczek-Khinchine: W = lambda E[S^2] / (2 (1 - rho)), here with a coefficient of variation of about 2.
    load = 0.6
    rng = np.random.default_rng(17)
    short = rng.random(150_000) < 0.9
    steps = np.where(short, rng.geometric(1 / 500, 150_000), rng.geometric(1 / 5500, 150_000))
    service_s = steps * STEP_S
    rate = load / service_s.mean()
    expected = rate * (service_s**2).mean() / (2 * (1 - load))
    assert_mean(waits(replay(poisson(rate, steps, 17), times(STEP_S), servers(1))), expected, 0.25)


def test_round_robin_is_an_erlang_renewal_queue() -> None:
    # Every fourth Poisson arrival: E4/M/1. sigma solves sigma = (4 lambda / (4 lambda + mu (1 - sigma)))^4.
    load = 0.8
    sigma = 0.5
    for _ in range(500):
        sigma = (4 * load / (4 * load + 1 - sigma)) ** 4
    frame = replay(
        poisson(4 * load, exponential(120_000, 18), 18), times(STEP_S), servers(1), 4, "round_robin"
    )
    assert_mean(waits(frame), sigma / (1 - sigma), 0.25)


def test_better_informed_routers_wait_less() -> None:
    # M/M/c < join the shortest queue < power of two choices < round robin < random splitting, which is M/M/1.
    count, load = 8, 0.85
    requests = poisson(count * load, exponential(60_000, 19), 19)
    informed = ("least_outstanding", "power_of_two", "round_robin")
    found = [
        waits(replay(requests, times(STEP_S), servers(count))).mean(),
        *(waits(replay(requests, times(STEP_S), servers(1), count, name)).mean() for name in informed),
    ]
    assert found == sorted(found)
    assert found[-1] < load / (1 - load)


def test_power_of_two_choices() -> None:
    # Of many servers: time in system = sum over i >= 1 of rho^(2^i - 2) (Mitzenmacher 2001; Vvedenskaya et al. 1996).
    load, count = 0.8, 60
    expected = sum(load ** (2**i - 2) for i in range(1, 12))
    frame = replay(
        poisson(count * load, exponential(150_000, 23), 23), times(STEP_S), servers(1), count, "power_of_two"
    )
    assert_mean(sojourns(frame), expected, 0.06)


@pytest.mark.parametrize("users", [3, 12])
def test_machine_repairman(users: int) -> None:
    # N users who think for Z, one server: mean value analysis, R(n) = S (1 + Q(n-1)) (Reiser & Lavenberg 1980).
    think_s, queue, response_s, rate = 8.0, 0.0, 1.0, 0.0
    for n in range(1, users + 1):
        response_s = 1.0 + queue
        rate = n / (think_s + response_s)
        queue = rate * response_s
    frame = closed_loop(users, {"chat": 1.0}, requests=60_000, think_s_mean=think_s, rng=20)
    frame = frame.drop(columns="prefix_hashes", errors="ignore")
    frame = frame.assign(prompt_tokens=1, output_tokens=exponential(60_000, 20))
    found, stats = replay_fleet(frame, equal_replicas(times(STEP_S), servers(1)))
    in_time = found.sort_values("arrived_s").iloc[:-1000]
    assert_mean(sojourns(in_time), response_s, 0.1)
    assert len(found) / stats.duration_s == pytest.approx(rate, rel=0.03)
    # The interactive response time law, N = X (R + Z), holds for what was measured.
    measured = len(found) / stats.duration_s * (sojourns(found).mean() + frame["think_s"].mean())
    assert measured == pytest.approx(users, rel=0.03)  # the last users think alone
    assert littles_law_error(found, stats) < 1e-9


@pytest.mark.parametrize(
    ("limit", "tokens_each"),
    [(RateLimit(requests_per_minute=60), 1), (RateLimit(tokens_per_minute=600), 10)],
)
def test_token_bucket(limit: RateLimit, tokens_each: int) -> None:
    # A full minute's worth at once, one a second from then on.
    count = 1201
    frame = pd.DataFrame(
        {"arrived_s": np.arange(count) / 4, "prompt_tokens": max(1, tokens_each - 1), "output_tokens": 1}
    )
    kind = ReplicaSpec(step_time=times(1e-6))
    found, _ = replay_fleet(frame, Fleet(kinds=(kind,), rate_limits={"default": limit}))
    passed = (found["status"] == "finished").to_numpy()
    assert passed.sum() == 60 + 300
    assert passed[: 4 * 20 - 1].all()  # four a second against one that comes back: 60 last 20 s
    assert passed[-400:].sum() == 100


def test_a_steady_stream_at_the_limit_is_never_refused() -> None:
    arrived_s = np.cumsum(np.full(5000, 60 / 7))
    frame = pd.DataFrame({"arrived_s": arrived_s, "prompt_tokens": 5, "output_tokens": 5})
    kind = ReplicaSpec(step_time=times(1e-6))
    limits = {"default": RateLimit(requests_per_minute=7, tokens_per_minute=70)}
    found, _ = replay_fleet(frame, Fleet(kinds=(kind,), rate_limits=limits))
    assert (found["status"] == "finished").all()


def test_availability() -> None:
    # Poisson arrivals see time averages: they find the replica down for 1 - MTBF / (MTBF + MTTR + load).
    failures = Failures(mtbf_s=900.0, repair_s=80.0)
    kind = ReplicaSpec(step_time=times(1e-6), failures=failures, load_s=20.0)
    frame = poisson(0.1, np.ones(100_000, np.int64), 21)
    run = FleetRun(check_requests(frame), Fleet(kinds=(kind,), seed=21))
    run.run()
    duration_s = run.ended_s - run.started_s
    cycles = duration_s / 1000.0
    # Renewals: variance of a count is about cycles x (cv of a cycle)^2.
    spread = math.sqrt(cycles * (900.0**2 + 80.0**2) / 1000.0**2)
    assert abs(run.servers.servers[0].failures - cycles) < 3.3 * spread
    assert_mean(run.rows["scheduled_s"] - run.arrived_s > 1.0, 0.1, 0.2)


def test_spot_lives() -> None:
    machines, life_s = 20, 500.0
    spot = SpotInterruptions(mean_life_s=life_s, notice_s=30.0, replacement_s=70.0)
    kind = ReplicaSpec(step_time=times(1e-6), spot=spot, replicas=machines, load_s=15.0)
    frame = poisson(0.1, np.ones(20_000, np.int64), 22)
    run = FleetRun(check_requests(frame), Fleet(kinds=(kind,), seed=22))
    run.run()
    duration_s = run.ended_s - run.started_s
    cycle_s = life_s + 100.0  # loading is part of a machine's life
    cycles = machines * duration_s / cycle_s
    spread = math.sqrt(cycles) * life_s / cycle_s
    assert abs(sum(server.failures for server in run.servers.servers) - cycles) < 3.3 * spread
    paid = run.servers.paid_s().sum() / (machines * duration_s)
    assert paid == pytest.approx(1 - 70.0 / cycle_s, rel=0.01)
