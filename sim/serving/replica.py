"""The replicas of a fleet on a simulated clock, in plain Python: the readable reference of `sim/serving/c/`.

Each replica runs the engine's own scheduler (`engine.scheduler`) and takes as long for a step as its step-time model
says. Between two changes of the running batch nothing needs an event: the scheduler returns how many decode steps
follow unchanged, and the replica jumps over all of them at once. What comes from outside in the middle of such a run
(an arrival, a cancellation) cuts it at the end of the step then under way, exactly where stepping one by one would
have seen it. Results equal those of the C code to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.batch import Request, Step
from engine.errors import InputError
from engine.scheduler import QueueFullError, Scheduler
from sim.serving.replica_tables import COUNTS, STEP_RECORD

if TYPE_CHECKING:
    from sim.serving.fleet_config import ReplicaSpec

LONGEST_SUMMED_JUMP = 32  # steps; summing more would be wasted when an arrival cuts the jump
_MASK = 2**64 - 1


class ReferenceReplicas:
    """Replicas that run by themselves up to a time; deliveries and cancellations come between two `advance`s.

    Attributes:
        counts: what each replica counted (dtype `sim.serving.replica_tables.COUNTS`).
        outstanding, outstanding_tokens: of each replica, requests delivered and not finished; their prompts' tokens.
    """

    def __init__(
        self,
        requests: np.ndarray[Any, Any],
        prefixes: Sequence[Sequence[Hashable]],
        most_replicas: int,
        seed: int = 0,
        recording: bool = False,
    ) -> None:
        """`requests`: dtype `replica_tables.REQUEST`; times are written into it. `prefixes`: hashes by request."""
        self.requests, self.prefixes, self.seed = requests, prefixes, seed
        self.counts = np.zeros(most_replicas, COUNTS)
        self.outstanding = np.zeros(most_replicas, np.int64)
        self.outstanding_tokens = np.zeros(most_replicas, np.int64)
        self.finished: list[int] = []
        self._replicas: list[Replica] = []
        self._records: list[tuple[Any, ...]] | None = [] if recording else None

    def add_replica(self, kind: ReplicaSpec, now_s: float) -> int:
        """Add an empty replica; returns its number."""
        self._replicas.append(Replica(self, len(self._replicas), kind, now_s))
        return len(self._replicas) - 1

    def deliver(self, replica: int, row: int, now_s: float) -> bool:
        """Deliver a request to a replica, which sees it when its next step begins; False if its queue is full."""
        return self._replicas[replica].deliver(row, now_s)

    def cancel(self, row: int, now_s: float) -> float:
        """Cancel a request; returns when it leaves the replica: a step under way still computes it to its end."""
        if not self._replicas:
            return now_s
        return self._replicas[self.requests["replica"][row]].cancel(row, now_s)

    def clear(self, replica: int, now_s: float) -> list[int]:
        """Fail a replica; returns the requests that are lost."""
        return self._replicas[replica].clear(now_s)

    def waiting(self, replica: int) -> int:
        """Number of requests in a replica's queue."""
        return len(self._replicas[replica].scheduler.waiting)

    def busy_s(self, replica: int, now_s: float) -> float:
        """Seconds that a replica has spent in steps, the one under way included."""
        return float(self.counts["busy_s"][replica]) + self._replicas[replica].under_way_s(now_s)

    def advance(self, until_s: float, watching: bool) -> float:
        """Run all replicas up to a time; steps that would begin then are left.

        With `watching` only up to the first time at which a watched request finishes, which is returned (its row is
        in `finished`); else infinity.

        Raises:
            InputError: the step-time model gives no finite time ≥ 0.
        """
        self.finished.clear()
        if not watching:
            for replica in self._replicas:
                while replica.is_due(until_s):
                    replica.turn()
            return math.inf
        while due := [replica for replica in self._replicas if replica.is_due(until_s)]:
            first = min(due, key=lambda replica: replica.next_s)
            next_s = first.next_s
            first.turn()
            if self.finished:
                until_s = next_s  # others that finish at the same time still count
        return until_s if self.finished else math.inf

    def records(self) -> np.ndarray[Any, Any]:
        """Every run of steps, if recorded (dtype `sim.serving.replica_tables.STEP_RECORD`)."""
        return np.array(self._records or [], STEP_RECORD)

    def note_step(self, *record: Any) -> None:
        """Keep a run of steps."""
        if self._records is not None:
            self._records.append(record)


class Replica:
    """One serving process: between two steps (`ends_s` None), or in a run of unchanged ones."""

    def __init__(self, all_: ReferenceReplicas, index: int, kind: ReplicaSpec, now_s: float) -> None:
        self.all, self.index, self.kind, self.times = all_, index, kind, kind.step_time
        self.scheduler = Scheduler(kind.scheduler)
        self.requests: dict[int, Request] = {}
        self.now_s = self._counted_s = now_s
        self.ends_s: float | None = None
        self._started_s = now_s
        self._step: Step | None = None
        self._steps = 0
        self._passed_s = [0.0]  # seconds of the first n steps of the run, where the model has no closed form
        self._cancelled: list[int] = []

    @property
    def next_s(self) -> float:
        """The time of the replica's next event."""
        if self.ends_s is not None:
            return self.ends_s
        return self.now_s if self.scheduler.has_work else math.inf

    def is_due(self, until_s: float) -> bool:
        """Whether the next event is by `until_s` (a step that would begin just then is not)."""
        if self.ends_s is not None:
            return self.ends_s <= until_s
        return self.now_s < until_s and self.scheduler.has_work

    def under_way_s(self, now_s: float) -> float:
        """Seconds that the step under way has taken so far."""
        return now_s - self._started_s if self.ends_s is not None else 0.0

    def turn(self) -> None:
        """End the run under way, or begin the next."""
        if self.ends_s is None:
            self._begin()
        else:
            self._end()

    def deliver(self, row: int, now_s: float) -> bool:
        """See `ReferenceReplicas.deliver`."""
        given = self.all.requests[row]
        prefix = self.all.prefixes[row] if self.all.prefixes else ()
        request = Request(
            row, int(given["prompt"]), int(given["output"]), now_s, prefix, int(given["priority"]),
            int(given["received"]),
        )  # fmt: skip
        if self.ends_s is None and not self.scheduler.has_work:
            self.now_s = max(self.now_s, now_s)
        try:
            self.scheduler.add(request)
        except QueueFullError:
            return False
        self._cut(now_s)
        self.requests[row] = request
        given["replica"] = self.index
        self._count(+1, now_s)
        self.all.outstanding[self.index] += 1
        self.all.outstanding_tokens[self.index] += request.prompt_tokens
        return True

    def cancel(self, row: int, now_s: float) -> float:
        """See `ReferenceReplicas.cancel`."""
        request = self.requests.get(row)
        if request is None:
            return now_s
        if self.ends_s is not None and request in self.scheduler.running:
            self._cut(now_s)
            self._cancelled.append(row)
            return self.ends_s
        self.scheduler.finish(request)
        self._leave(request, now_s)
        return now_s

    def clear(self, now_s: float) -> list[int]:
        """See `ReferenceReplicas.clear`."""
        lost = [*self.scheduler.running, *sorted(self.scheduler.waiting, key=lambda request: request.rank)]
        if self.ends_s is not None:
            self.all.counts[self.index]["busy_s"] += now_s - self._started_s
        for request in lost:
            self._leave(request, now_s)
        self.scheduler, self.ends_s, self.now_s = Scheduler(self.kind.scheduler), None, now_s
        self._cancelled.clear()
        return [int(request.request_id) for request in lost]

    def _begin(self) -> None:
        scheduler = self.scheduler
        if self.kind.draft_tokens:
            for request in scheduler.running:
                decodes = request.output_tokens and request.computed_tokens + 1 == request.total_tokens
                request.draft_tokens = self.kind.draft_tokens if decodes else 0
        step = scheduler.schedule()
        if step is None:
            raise RuntimeError("the scheduler has work and schedules nothing")
        for chunk in step.prefills:
            given = self.all.requests[chunk.request.request_id]
            if math.isnan(given["scheduled_s"]):
                given["scheduled_s"] = self.now_s
        self._step, self._started_s, self._passed_s = step, self.now_s, [0.0]
        self._steps = scheduler.unchanged_steps(step) if step.is_pure_decode else 1
        if not hasattr(self.times, "decode_run"):
            self._steps = min(self._steps, LONGEST_SUMMED_JUMP)
        if self._steps == 1:
            duration_s = _valid(self.times.step_time(step.prefill, step.decode_contexts))
        else:
            duration_s = self._run_s(self._steps)
        self.ends_s = self._started_s + duration_s

    def _cut(self, at_s: float) -> None:
        """Something happens at `at_s`: the run is over at its first step's end from then on."""
        if self.ends_s is None or self._steps == 1 or at_s >= self.ends_s:
            return
        low, high = 1, self._steps
        while low < high:
            middle = (low + high) // 2
            if self._started_s + self._run_s(middle) >= at_s:
                high = middle
            else:
                low = middle + 1
        if low < self._steps:
            self._steps = low
            self.ends_s = self._started_s + self._run_s(low)

    def _run_s(self, steps: int) -> float:
        """Seconds of the first `steps` decode steps of the run."""
        assert self._step is not None
        contexts = self._step.decode_contexts
        decode_run = getattr(self.times, "decode_run", None)
        if decode_run is not None:
            return _valid(decode_run(contexts, steps))
        passed_s = self._passed_s
        while len(passed_s) <= steps:
            done = len(passed_s) - 1
            next_s = _valid(self.times.step_time([], [context + done for context in contexts]))
            passed_s.append(passed_s[-1] + next_s)
        return passed_s[steps]

    def _end(self) -> None:
        step, steps, scheduler, ends_s = self._step, self._steps, self.scheduler, self.ends_s
        assert step is not None
        assert ends_s is not None
        counts = self.all.counts[self.index]
        elapsed_s = ends_s - self._started_s
        held = self.kind.scheduler.num_blocks - scheduler.free_blocks
        contexts = steps * sum(r.computed_tokens for r in step.decodes) + len(step.decodes) * (
            steps * (steps - 1) // 2
        )
        prefill_tokens = sum(chunk.tokens for chunk in step.prefills)
        for chunk in step.prefills:
            counts["attention_pairs"] += chunk.tokens * (chunk.start + 0.5 * (chunk.tokens + 1))
        self.all.note_step(
            self._started_s, ends_s, self.index, steps, len(step.decodes), len(step.prefills), prefill_tokens,
            contexts, held, len(scheduler.waiting), len(scheduler.running),
        )  # fmt: skip
        counts["busy_s"] += elapsed_s
        counts["batch_time_s"] += elapsed_s * (len(step.decodes) + len(step.prefills))
        counts["prefill_tokens"] += prefill_tokens
        counts["context_tokens"] += contexts
        counts["steps"] += steps
        counts["events"] += 1
        before = {request: request.output_tokens for request in step.decodes}
        growth = scheduler.growth(step, steps) if steps > 1 else 0
        counts["kv_block_time_s"] += elapsed_s * (held + 0.5 * growth)
        self.ends_s, self.now_s = None, ends_s
        if steps > 1:
            produced = scheduler.complete_run(step, steps)
        else:
            produced = scheduler.complete(step, {r: self._kept(r) for r in step.decodes if r.draft_tokens})
        for request in produced:
            given = self.all.requests[request.request_id]
            if request in before:
                counts["decode_tokens"] += request.output_tokens - before[request]
            elif request.output_tokens == 1:
                given["first_token_s"] = ends_s
            if request.output_tokens >= request.max_output_tokens:
                given["finished_s"] = counts["last_finish_s"] = ends_s
                self._leave(request, ends_s)
                if given["watched"]:
                    self.all.finished.append(int(request.request_id))
        for row in self._cancelled:
            request_or_none = self.requests.get(row)
            if request_or_none is not None:
                scheduler.finish(request_or_none)
                self._leave(request_or_none, ends_s)
        self._cancelled.clear()

    def _kept(self, request: Request) -> int:
        """Accepted draft tokens of a decode: each with the acceptance rate, up to the first wrong one."""
        kept, client = 0, int(self.all.requests["client"][request.request_id])
        while kept < request.draft_tokens:
            if uniform(self.all.seed, client, request.output_tokens + kept) >= self.kind.acceptance_rate:
                break
            kept += 1
        return kept

    def _leave(self, request: Request, at_s: float) -> None:
        row = int(request.request_id)
        given = self.all.requests[row]
        given["preemptions"], given["cached"] = request.preemptions, request.cached_tokens
        del self.requests[row]
        self._count(-1, at_s)
        self.all.outstanding[self.index] -= 1
        self.all.outstanding_tokens[self.index] -= request.prompt_tokens

    def _count(self, change: int, at_s: float) -> None:
        """A request enters (+1) or leaves (-1) the replica."""
        inside = len(self.requests) - (1 if change > 0 else -1)
        self.all.counts[self.index]["request_time_s"] += inside * (at_s - self._counted_s)
        self._counted_s = at_s


def uniform(seed: int, request: int, token: int) -> float:
    """A random number in [0, 1) for each guessed token (SplitMix64: Steele, Lea & Flood 2014)."""
    x = (seed + 0x9E3779B97F4A7C15 * (request + 1) + 0xD1B54A32D192ED03 * (token + 1)) & _MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & _MASK
    return float((x ^ x >> 31) >> 11) * 2.0**-53


def _valid(seconds: float) -> float:
    if not 0 <= seconds < math.inf:
        raise InputError(f"step_time: the model gives {seconds} s for a step, allowed is a finite time ≥ 0")
    return float(seconds)
