"""The request level: requests on a fleet of replicas, on a simulated clock.

Each replica runs the engine's own scheduler (`engine.scheduler`) and takes as long for a step as a step-time model
says. Between two changes of the running batch nothing needs an event: the scheduler tells how many decode steps
follow unchanged, the clock jumps over all of them at once, and an arrival that falls inside a jump cuts it at the
next step boundary, exactly where stepping one by one would have seen it. SimPy is the
clock of the fleet: arrivals, routing, replicas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import simpy
from numpy.typing import NDArray
from simpy.events import ProcessGenerator

from engine.errors import InputError
from engine.scheduler import Request, Scheduler, SchedulerConfig, State, Step
from engine.step_time import StepTimeModel
from sim.workload import check_requests

Router = Literal["least_outstanding", "round_robin"]
FloatArray = NDArray[np.float64]
PERCENTILES = (50, 95, 99)


@dataclass
class ReplayStats:
    """What a replay counted beside the times of each request."""

    prompt_tokens: NDArray[np.int64]  # of each request
    output_tokens: NDArray[np.int64]
    replicas: int
    busy_s: float = 0.0  # summed over replicas
    batch_time_s: float = 0.0  # requests running × seconds, summed over replicas
    request_time_s: float = 0.0  # requests in the system × seconds: the integral that Little's law speaks of
    steps: int = 0
    events: int = 0  # rounds of schedule and complete that they took
    ended_s: float = 0.0  # when the last request finished

    @property
    def busy_fraction(self) -> float:
        """Part of the replicas' time, from 0 to the last finish, in which they ran steps."""
        return self.busy_s / (self.replicas * self.ended_s)

    @property
    def batch_mean(self) -> float:
        """Requests running together, averaged over the time in which any ran."""
        return self.batch_time_s / self.busy_s


def replay(
    requests: pd.DataFrame,
    step_time: StepTimeModel,
    scheduler: SchedulerConfig | None = None,
    replicas: int = 1,
    router: Router = "least_outstanding",
) -> pd.DataFrame:
    """Run requests through a fleet of equal replicas.

    Args:
        requests: arrived_s (in order), prompt_tokens, output_tokens; optionally prefix_hashes (a list for each
            request: the content hash of each full block of its prompt) and request_id.
        step_time: seconds per step (see `engine.step_time.StepTimeModel`); its `decode_run` is used if it has one.
        scheduler: limits of a replica.
        replicas: how many.
        router: which replica a request goes to when it arrives: the one with the fewest tokens outstanding, or
            the next in turn.

    Returns:
        One row per request, in the order given: request_id, arrived_s, scheduled_s (first time in a batch),
        first_token_s, finished_s, preemptions, cached_tokens, replica.

    Raises:
        InputError: a column is missing, a row is bad, or a request could never fit in the KV cache.
    """
    return replay_with_stats(requests, step_time, scheduler, replicas, router)[0]


def replay_with_stats(
    requests: pd.DataFrame,
    step_time: StepTimeModel,
    scheduler: SchedulerConfig | None = None,
    replicas: int = 1,
    router: Router = "least_outstanding",
) -> tuple[pd.DataFrame, ReplayStats]:
    """`replay`, and what it counted."""
    config = scheduler or SchedulerConfig()
    if replicas < 1:
        raise InputError(f"replicas: found {replicas}, allowed is a whole number ≥ 1")
    if router not in ("least_outstanding", "round_robin"):
        raise InputError(f"router: found {router!r}, allowed are 'least_outstanding' and 'round_robin'")
    checked = check_requests(requests)
    _check_fit(checked, config)
    run = _Run(checked, step_time, config, replicas)
    run.env.process(_arrivals(run, router))
    run.env.run()
    return run.frame(), run.stats


def summary(
    frame: pd.DataFrame,
    stats: ReplayStats,
    ttft_objective_s: float | None = None,
    tpot_objective_s: float | None = None,
) -> dict[str, float]:
    """The field's metrics of a replay: mean and percentiles in seconds, rates per second.

    TTFT from arrival to first token, TPOT per output token after the first, E2E from arrival to finish, queue
    from arrival to the first batch. With objectives, goodput counts the requests per second that met both.
    """
    result = latencies(frame, stats.output_tokens)
    result["requests_per_s"] = len(frame) / stats.ended_s
    result["prompt_tokens_per_s"] = float(stats.prompt_tokens.sum()) / stats.ended_s
    result["output_tokens_per_s"] = float(stats.output_tokens.sum()) / stats.ended_s
    result["busy_fraction"] = stats.busy_fraction
    result["batch_mean"] = stats.batch_mean
    result["preemptions"] = float(frame["preemptions"].sum())
    result["cache_hit_rate"] = float(frame["cached_tokens"].sum() / stats.prompt_tokens.sum())
    if ttft_objective_s is not None and tpot_objective_s is not None:
        ttft, tpot = _ttft_s(frame), _tpot_s(frame, stats.output_tokens)
        # A request of one token has no time per further token: NaN, which breaks no objective.
        good = (ttft <= ttft_objective_s) & ~(tpot > tpot_objective_s)
        result["goodput_requests_per_s"] = float(good.sum()) / stats.ended_s
    return result


def latencies(frame: pd.DataFrame, output_tokens: NDArray[np.int64]) -> dict[str, float]:
    """Mean and percentiles of TTFT, TPOT, E2E and queue time of a replay's rows, in seconds."""
    tpot = _tpot_s(frame, output_tokens)
    times = {
        "ttft": _ttft_s(frame),
        "tpot": tpot[~np.isnan(tpot)],
        "e2e": (frame["finished_s"] - frame["arrived_s"]).to_numpy(),
        "queue": (frame["scheduled_s"] - frame["arrived_s"]).to_numpy(),
    }
    result: dict[str, float] = {}
    for name, values in times.items():
        if len(values):
            result[f"{name}_mean_s"] = float(values.mean())
            for percent, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True):
                result[f"{name}_p{percent}_s"] = float(value)
    return result


def _ttft_s(frame: pd.DataFrame) -> FloatArray:
    return (frame["first_token_s"] - frame["arrived_s"]).to_numpy()


def _tpot_s(frame: pd.DataFrame, output_tokens: NDArray[np.int64]) -> FloatArray:
    """Seconds per output token after the first; NaN for a request of one token."""
    decoding = (frame["finished_s"] - frame["first_token_s"]).to_numpy()
    return np.where(output_tokens > 1, decoding / np.maximum(output_tokens - 1, 1), np.nan)


class _Run:
    """One replay under way: the clock, the replicas, and the times of each request by its position."""

    def __init__(
        self, requests: pd.DataFrame, times: StepTimeModel, config: SchedulerConfig, replicas: int
    ) -> None:
        self.env = simpy.Environment()
        self.requests = requests
        self.arrived_s = requests["arrived_s"].to_numpy(dtype=np.float64)
        count = len(requests)
        self.scheduled_s = np.full(count, math.nan)
        self.first_token_s = np.full(count, math.nan)
        self.finished_s = np.full(count, math.nan)
        self.preemptions = np.zeros(count, dtype=np.int64)
        self.cached_tokens = np.zeros(count, dtype=np.int64)
        self.replica = np.zeros(count, dtype=np.int64)
        self.stats = ReplayStats(
            requests["prompt_tokens"].to_numpy(), requests["output_tokens"].to_numpy(), replicas
        )
        self._in_system = 0
        self._counted_s = 0.0
        self.replicas = [_Replica(self, Scheduler(config), times) for _ in range(replicas)]

    def count(self, change: int) -> None:
        """A request enters (+1) or leaves (-1) the system now."""
        now = self.env.now
        self.stats.request_time_s += self._in_system * (now - self._counted_s)
        self._in_system += change
        self._counted_s = now

    def frame(self) -> pd.DataFrame:
        """The times of each request, in the order given."""
        ids = self.requests["request_id"] if "request_id" in self.requests else np.arange(len(self.requests))
        return pd.DataFrame(
            {
                "request_id": np.asarray(ids),
                "arrived_s": self.arrived_s,
                "scheduled_s": self.scheduled_s,
                "first_token_s": self.first_token_s,
                "finished_s": self.finished_s,
                "preemptions": self.preemptions,
                "cached_tokens": self.cached_tokens,
                "replica": self.replica,
            }
        )


@dataclass
class _Replica:
    """A serving process: takes what arrived at each step boundary, runs a step or jumps over several."""

    run: _Run
    scheduler: Scheduler
    times: StepTimeModel
    outstanding_tokens: int = 0
    _inbox: list[Request] = field(default_factory=list)
    _wake: simpy.Event | None = None
    _jumping: bool = False

    def __post_init__(self) -> None:
        self._process = self.run.env.process(self._serve())

    def deliver(self, request: Request) -> None:
        """A request arrives; it is seen at the next step boundary."""
        self.outstanding_tokens += request.prompt_tokens + request.max_output_tokens
        self._inbox.append(request)
        if self._wake is not None:
            self._wake.succeed()
            self._wake = None
        elif self._jumping:
            self._jumping = False
            self._process.interrupt()

    def _serve(self) -> ProcessGenerator:
        env, scheduler, stats = self.run.env, self.scheduler, self.run.stats
        while True:
            if not self._inbox and not scheduler.has_work:
                self._wake = env.event()
                yield self._wake
            for request in self._inbox:
                scheduler.add(request)
            self._inbox.clear()
            step = scheduler.schedule()
            if step is None:
                raise RuntimeError("the scheduler has work and schedules nothing")
            started_s = env.now
            for chunk in step.prefills:
                if chunk.request.output_tokens == 0 and math.isnan(
                    self.run.scheduled_s[chunk.request.request_id]
                ):
                    self.run.scheduled_s[chunk.request.request_id] = started_s
            steps = scheduler.unchanged_steps(step) if step.is_pure_decode else 1
            if steps == 1:
                yield env.timeout(self.times.step_time(step.prefill, step.decode_contexts))
                produced = scheduler.complete(step)
            else:
                steps = yield from self._jump(step, steps)
                produced = scheduler.complete_run(step, steps)
            elapsed_s = env.now - started_s
            stats.busy_s += elapsed_s
            stats.batch_time_s += elapsed_s * (len(step.decodes) + len(step.prefills))
            stats.steps += steps
            stats.events += 1
            self._book(produced)

    def _jump(self, step: Step, steps: int) -> Generator[simpy.Event, Any, int]:
        """Wait until `steps` decode steps are over, or until the boundary after the next arrival; gives how many."""
        env = self.run.env
        started_s = env.now
        until = _run_time(self.times, step.decode_contexts)
        self._jumping = True
        try:
            yield env.timeout(until(steps))
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
            index = request.request_id
            if request.output_tokens == 1:
                run.first_token_s[index] = now
            if request.state is State.FINISHED:
                run.finished_s[index] = now
                run.preemptions[index] = request.preemptions
                run.cached_tokens[index] = request.cached_tokens
                self.outstanding_tokens -= request.prompt_tokens + request.max_output_tokens
                run.count(-1)
                run.stats.ended_s = now


def _arrivals(run: _Run, router: Router) -> ProcessGenerator:
    """Hand each request to a replica when it arrives."""
    env, replicas = run.env, run.replicas
    prompts, outputs = run.stats.prompt_tokens.tolist(), run.stats.output_tokens.tolist()
    hashes = run.requests["prefix_hashes"].tolist() if "prefix_hashes" in run.requests else None
    for index, arrived_s in enumerate(run.arrived_s.tolist()):
        if arrived_s > env.now:
            yield env.timeout(arrived_s - env.now)
        if router == "round_robin":
            chosen = index % len(replicas)
        else:
            chosen = min(range(len(replicas)), key=lambda i: replicas[i].outstanding_tokens)
        run.replica[index] = chosen
        run.count(+1)
        prefix = hashes[index] if hashes else ()
        replicas[chosen].deliver(Request(index, prompts[index], outputs[index], arrived_s, prefix))


def _run_time(times: StepTimeModel, contexts: list[int]) -> Callable[[int], float]:
    """Seconds of the first n decode steps of a batch, as a function of n."""
    if hasattr(times, "decode_run_from_sums"):
        batch, context_sum = len(contexts), sum(contexts)
        return lambda steps: float(times.decode_run_from_sums(batch, context_sum, steps))
    if hasattr(times, "decode_run"):
        return lambda steps: float(times.decode_run(contexts, steps))
    passed_s = [0.0]

    def summed(steps: int) -> float:
        while len(passed_s) <= steps:
            done = len(passed_s) - 1
            passed_s.append(passed_s[-1] + times.step_time([], [context + done for context in contexts]))
        return passed_s[steps]

    return summed


def _check_fit(requests: pd.DataFrame, config: SchedulerConfig) -> None:
    needed = requests["prompt_tokens"].to_numpy() + requests["output_tokens"].to_numpy() - 1
    too_long = needed > config.cache_tokens
    if too_long.any():
        row = int(np.argmax(too_long))
        raise InputError(
            f"requests: row {row}: prompt and output need {needed[row] - config.cache_tokens} tokens more than "
            f"the KV cache of a replica holds ({config.cache_tokens})"
        )
