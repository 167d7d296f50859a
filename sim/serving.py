"""The request level: requests on a fleet of replicas, on a simulated clock.

Each replica runs the engine's own scheduler (`engine.scheduler`) and takes as long for a step as a step-time model
says. Between two changes of the running batch nothing needs an event: the scheduler tells how many decode steps
follow unchanged, the clock jumps over all of them at once, and an arrival that falls inside a jump cuts it at the
next step boundary, exactly where stepping one by one would have seen it. SimPy is the clock of the fleet:
arrivals, routing, replicas.

TTFT is first token − arrival; TPOT (last − first token) / (output tokens − 1); E2E last token − arrival; queue
first time in a batch − arrival.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import simpy
from simpy.events import ProcessGenerator

from engine.errors import InputError
from engine.scheduler import Request, Scheduler, SchedulerConfig, State, Step
from engine.step_time import StepTimeModel
from sim.trace import check_requests

ROUTERS = ("least_outstanding", "round_robin")
PERCENTILES = (50, 95, 99)
LONGEST_SUMMED_JUMP = 32  # steps; summing more would be wasted when an arrival cuts the jump


class LatencyObjective(Protocol):
    """What each request must meet to count as goodput (see `sim.capacity.Objective`)."""

    @property
    def ttft_p95_s(self) -> float:
        """Time to the first token."""

    @property
    def tpot_p95_s(self) -> float:
        """Time per output token after the first."""


@dataclass
class ReplayStats:
    """What a replay counted beside the times of each request."""

    busy_s: list[float]  # of each replica: in steps
    started_s: float  # first arrival
    ended_s: float = 0.0  # when the last request finished
    batch_time_s: float = 0.0  # requests in steps × seconds, summed over replicas
    request_time_s: float = 0.0  # requests in the system × seconds: the integral that Little's law speaks of
    steps: int = 0
    events: int = 0  # rounds of schedule and complete that they took

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last finish; NaN if no time passed."""
        return self.ended_s - self.started_s or math.nan

    @property
    def busy_fraction(self) -> float:
        """Part of the replicas' time, from the first arrival to the last finish, in which they ran steps."""
        return sum(self.busy_s) / (len(self.busy_s) * self.duration_s)

    @property
    def batch_mean(self) -> float:
        """Requests in a step, averaged over the time in which any ran; NaN if steps took no time."""
        return self.batch_time_s / (sum(self.busy_s) or math.nan)


def replay(
    requests: pd.DataFrame,
    step_time: StepTimeModel,
    scheduler: SchedulerConfig | None = None,
    replicas: int = 1,
    router: str = "least_outstanding",
) -> pd.DataFrame:
    """Run requests through a fleet of equal replicas.

    Args:
        requests: arrived_s (in order), prompt_tokens, output_tokens; optionally prefix_hashes (a list for each
            request: the content hash of each full block of its prompt) and request_id.
        step_time: seconds per step (see `engine.step_time.StepTimeModel`); its `decode_run` is used if it has one.
        scheduler: limits of a replica.
        replicas: how many.
        router: which replica a request goes to when it arrives: least_outstanding, the one with the fewest
            requests unfinished (nobody knows yet how long answers get), or round_robin, the next in turn.

    Returns:
        One row per request, in the order given: request_id, arrived_s, scheduled_s (first time in a batch),
        first_token_s, finished_s, preemptions, cached_tokens, replica.

    Raises:
        InputError: a column is missing, a row is bad, a request could never fit in the KV cache, an unknown
            router, no replica, or a step-time model that gives a negative or infinite time.
    """
    return replay_with_stats(requests, step_time, scheduler, replicas, router)[0].drop(
        columns=["prompt_tokens", "output_tokens"]
    )


def replay_with_stats(
    requests: pd.DataFrame,
    step_time: StepTimeModel,
    scheduler: SchedulerConfig | None = None,
    replicas: int = 1,
    router: str = "least_outstanding",
) -> tuple[pd.DataFrame, ReplayStats]:
    """`replay` with the tokens of each request beside its times (what `summary` needs), and what it counted."""
    config = scheduler or SchedulerConfig()
    if isinstance(replicas, bool) or replicas != int(replicas) or replicas < 1:
        raise InputError(f"replicas: found {replicas}, allowed is a whole number ≥ 1")
    if router not in ROUTERS:
        raise InputError(f"router: found {router!r}, allowed are {' and '.join(ROUTERS)}")
    checked = check_requests(requests)
    _check_fit(checked, config)
    run = _Run(checked, step_time, config, int(replicas), router)
    run.env.process(run.arrivals())
    run.env.run()
    return run.frame(), run.stats


def summary(
    frame: pd.DataFrame, stats: ReplayStats, objective: LatencyObjective | None = None
) -> dict[str, float]:
    """The field's metrics of a replay: mean and percentiles in seconds, rates per second of its duration.

    ttft, tpot (of requests with two output tokens or more), e2e and queue, each as _mean_s, _p50_s, _p95_s, _p99_s;
    NaN where there was nothing to measure. With an objective, goodput_rps counts the requests per second that met
    both of its limits.
    """
    times = latencies(frame)
    result: dict[str, float] = {}
    for name in ("ttft", "tpot", "e2e", "queue"):
        values = times[f"{name}_s"].dropna().to_numpy()
        result[f"{name}_mean_s"] = float(values.mean()) if len(values) else math.nan
        percentiles = np.percentile(values, PERCENTILES) if len(values) else [math.nan] * len(PERCENTILES)
        for percent, value in zip(PERCENTILES, percentiles, strict=True):
            result[f"{name}_p{percent}_s"] = float(value)
    result["requests"] = float(len(frame))
    result["duration_s"] = stats.duration_s
    result["requests_per_s"] = len(frame) / stats.duration_s
    result["prompt_tokens_per_s"] = float(frame["prompt_tokens"].sum()) / stats.duration_s
    result["output_tokens_per_s"] = float(frame["output_tokens"].sum()) / stats.duration_s
    result["busy_fraction"] = stats.busy_fraction
    result["batch_mean"] = stats.batch_mean
    result["preemptions"] = float(frame["preemptions"].sum())
    result["cache_hit_rate"] = float(frame["cached_tokens"].sum() / frame["prompt_tokens"].sum())
    if objective is not None:
        # Who has one output token only has no time per output token to miss.
        good = (times["ttft_s"] <= objective.ttft_p95_s) & ~(times["tpot_s"] > objective.tpot_p95_s)
        result["goodput_rps"] = float(good.sum()) / stats.duration_s
    return result


def latencies(frame: pd.DataFrame) -> pd.DataFrame:
    """ttft_s, tpot_s (NaN for one output token), e2e_s and queue_s of each request of a replay."""
    more = frame["output_tokens"] - 1.0
    return pd.DataFrame(
        {
            "ttft_s": frame["first_token_s"] - frame["arrived_s"],
            "tpot_s": (frame["finished_s"] - frame["first_token_s"]) / more.where(more > 0),
            "e2e_s": frame["finished_s"] - frame["arrived_s"],
            "queue_s": frame["scheduled_s"] - frame["arrived_s"],
        }
    )


def littles_law_error(frame: pd.DataFrame, stats: ReplayStats) -> float:
    """|L − λW| / λW (Little 1961): L from the integral kept on the simulated clock, λ and W from the frame.

    A replay begins and ends empty, so anything but rounding means that a request was lost or booked wrongly.
    """
    length = stats.request_time_s / stats.duration_s
    expected = len(frame) / stats.duration_s * float((frame["finished_s"] - frame["arrived_s"]).mean())
    return abs(length - expected) / expected


class _Run:
    """One replay under way: the clock, the replicas, and the times of each request by its position."""

    def __init__(
        self,
        requests: pd.DataFrame,
        times: StepTimeModel,
        config: SchedulerConfig,
        replicas: int,
        router: str,
    ) -> None:
        self.env = simpy.Environment()
        self.frame_in = requests
        count = len(requests)
        prefixes = requests["prefix_hashes"] if "prefix_hashes" in requests else [()] * count
        columns = [requests[name].tolist() for name in ("prompt_tokens", "output_tokens", "arrived_s")]
        self.requests = [
            Request(index, *numbers) for index, numbers in enumerate(zip(*columns, prefixes, strict=True))
        ]
        self.scheduled_s = [math.nan] * count
        self.first_token_s = [math.nan] * count
        self.finished_s = [math.nan] * count
        self.replica = [0] * count
        self.stats = ReplayStats([0.0] * replicas, started_s=self.requests[0].arrived_s)
        self.replicas = [_Replica(self, index, Scheduler(config), times) for index in range(replicas)]
        self._round_robin = router == "round_robin"
        self._routed = 0  # requests handed to a replica so far
        self._in_system = 0
        self._counted_s = 0.0

    def arrivals(self) -> ProcessGenerator:
        """Hand each request to a replica when it arrives."""
        while self._routed < len(self.requests):
            awaited = self._routed
            yield self.env.timeout(max(0.0, self.requests[awaited].arrived_s - self.env.now))
            # now + (arrival − now) may round to just before the arrival.
            if self._routed == awaited:
                self._route(self.requests[awaited])
            self.route_arrived()

    def route_arrived(self) -> None:
        """Hand out everybody who is there by now.

        Replicas ask at each step boundary: who arrives at that very moment joins the step that begins, whichever
        of the two events SimPy runs first.
        """
        now = self.env.now
        while self._routed < len(self.requests) and self.requests[self._routed].arrived_s <= now:
            self._route(self.requests[self._routed])

    def _route(self, request: Request) -> None:
        if self._round_robin:
            chosen = self.replicas[self._routed % len(self.replicas)]
        else:
            chosen = min(self.replicas, key=lambda replica: replica.outstanding)
        self.replica[self._routed] = chosen.index
        self._routed += 1
        self.count(+1)
        chosen.deliver(request)

    def count(self, change: int) -> None:
        """A request enters (+1) or leaves (-1) the system now."""
        now = self.env.now
        self.stats.request_time_s += self._in_system * (now - self._counted_s)
        self._in_system += change
        self._counted_s = now

    def frame(self) -> pd.DataFrame:
        """The times of each request, in the order given."""
        given, requests = self.frame_in, self.requests
        return pd.DataFrame(
            {
                "request_id": given["request_id"].to_numpy() if "request_id" in given else range(len(given)),
                "arrived_s": given["arrived_s"].to_numpy(),
                "scheduled_s": self.scheduled_s,
                "first_token_s": self.first_token_s,
                "finished_s": self.finished_s,
                "preemptions": [request.preemptions for request in requests],
                "cached_tokens": [request.cached_tokens for request in requests],
                "replica": self.replica,
                "prompt_tokens": given["prompt_tokens"].to_numpy(),
                "output_tokens": given["output_tokens"].to_numpy(),
            }
        )


class _Replica:
    """A serving process: takes what arrived at each step boundary, runs a step or jumps over several."""

    def __init__(self, run: _Run, index: int, scheduler: Scheduler, times: StepTimeModel) -> None:
        self.run, self.index, self.scheduler, self.times = run, index, scheduler, times
        self.outstanding = 0  # requests delivered and not finished
        self._wake: simpy.Event | None = None  # what an idle replica waits for
        self._jumping = False
        self._process = run.env.process(self._serve())

    def deliver(self, request: Request) -> None:
        """A request arrives; it is seen at the next step boundary."""
        self.outstanding += 1
        self.scheduler.add(request)
        if self._wake is not None:
            self._wake.succeed()
            self._wake = None
        elif self._jumping:
            self._jumping = False  # cut once: who comes later finds the cut where it is
            self._process.interrupt()

    def _serve(self) -> ProcessGenerator:
        run, env, scheduler, stats = self.run, self.run.env, self.scheduler, self.run.stats
        while True:
            run.route_arrived()
            if not scheduler.has_work:
                self._wake = env.event()
                yield self._wake
                continue
            step = scheduler.schedule()
            if step is None:
                raise RuntimeError("the scheduler has work and schedules nothing")
            started_s = env.now
            for chunk in step.prefills:
                index: Any = chunk.request.request_id
                if math.isnan(run.scheduled_s[index]):
                    run.scheduled_s[index] = started_s
            steps = scheduler.unchanged_steps(step) if step.is_pure_decode else 1
            if steps == 1:
                yield env.timeout(_valid(self.times.step_time(step.prefill, step.decode_contexts)))
                produced = scheduler.complete(step)
            else:
                steps = yield from self._jump(step, steps)
                produced = scheduler.complete_run(step, steps)
            elapsed_s = env.now - started_s
            stats.busy_s[self.index] += elapsed_s
            stats.batch_time_s += elapsed_s * (len(step.decodes) + len(step.prefills))
            stats.steps += steps
            stats.events += 1
            self._book(produced)

    def _jump(self, step: Step, steps: int) -> Generator[simpy.Event, Any, int]:
        """Wait until `steps` decode steps are over, or until the boundary after the next arrival; gives how many."""
        env = self.run.env
        started_s = env.now
        until = _run_time(self.times, step.decode_contexts)
        if not hasattr(self.times, "decode_run"):
            steps = min(steps, LONGEST_SUMMED_JUMP)
        whole_s = until(steps)
        self._jumping = True
        try:
            yield env.timeout(whole_s)
            self._jumping = False
        except simpy.Interrupt:
            passed_s = env.now - started_s
            low, high = 1, steps  # the first boundary at or after the arrival
            while low < high:
                middle = (low + high) // 2
                if until(middle) >= passed_s:
                    high = middle
                else:
                    low = middle + 1
            steps = low
            yield env.timeout(max(0.0, until(steps) - passed_s))
        return steps

    def _book(self, produced: Sequence[Request]) -> None:
        run, now = self.run, self.run.env.now
        for request in produced:
            index: Any = request.request_id
            if request.output_tokens == 1:
                run.first_token_s[index] = now
            if request.state is State.FINISHED:
                run.finished_s[index] = now
                self.outstanding -= 1
                run.count(-1)
                run.stats.ended_s = now


def _run_time(times: StepTimeModel, contexts: list[int]) -> Callable[[int], float]:
    """Seconds of the first n decode steps of a batch, as a function of n."""
    decode_run = getattr(times, "decode_run", None)
    if decode_run is not None:
        return lambda steps: _valid(decode_run(contexts, steps))
    passed_s = [0.0]

    def summed(steps: int) -> float:
        while len(passed_s) <= steps:
            done = len(passed_s) - 1
            passed_s.append(
                passed_s[-1] + _valid(times.step_time([], [context + done for context in contexts]))
            )
        return passed_s[steps]

    return summed


def _valid(seconds: float) -> float:
    if not 0 <= seconds < math.inf:
        raise InputError(f"step_time: the model gives {seconds} s for a step, allowed is a finite time ≥ 0")
    return float(seconds)


def _check_fit(requests: pd.DataFrame, config: SchedulerConfig) -> None:
    # The last token is produced but never cached.
    needed = (requests["prompt_tokens"] + requests["output_tokens"] - 1).to_numpy()
    too_long = -(-needed // config.block_tokens) > config.num_blocks
    if too_long.any():
        row = int(np.argmax(too_long))
        raise InputError(
            f"requests: row {row}: prompt_tokens and output_tokens need {needed[row]} tokens of KV cache, allowed "
            f"are the {config.cache_tokens} that a replica has"
        )
