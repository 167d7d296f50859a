"""A serving fleet on a simulated clock: requests arrive, are admitted and go to replicas, and replicas come and go.

SimPy holds the fleet's clock: arrivals, retries, time-outs, transfers, scaling, failures. Between two of its events the
replicas run by themselves (`sim.serving.replica`, or the same as machine code), so a request costs a handful of
events, not one per token. Where something waits for a finish (the next turn of a conversation, the decode half of a
request), the replicas stop at that time and SimPy continues from there.

A row is a request as its client sees it; with prefill and decode replicas its decode half has a row of its own in the
table, `requests` rows further on. A request is in the system from its first arrival until it is answered or given up,
the waits between its attempts included.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import simpy
from simpy.events import ProcessGenerator

from sim.serving import replica_native
from sim.serving.fleet_config import Fleet, check_span
from sim.serving.fleet_events import autoscale, be_taken_back, break_down
from sim.serving.rate_limit import Bucket
from sim.serving.replica import ReferenceReplicas
from sim.serving.replica_native import NativeReplicas
from sim.serving.replica_tables import request_table
from sim.serving.routing import router
from sim.serving.servers import ROLES, Server, Servers, most_servers

_FINISHED, _TIMED_OUT, _REJECTED, _LOST, _OPEN = range(5)
STREAMS = ("routing", "failures")  # the order is part of what a seed means: append only


@dataclass(eq=False)
class FleetRun:
    """One replay of requests through a fleet.

    Raises:
        InputError: a step-time model gives no finite time ≥ 0, the fleet starts with more than `most_replicas`, or
            what happens to it by itself happens too often for so long a run.
    """

    requests: pd.DataFrame  # checked (`sim.workload.requests.check_requests`)
    fleet: Fleet
    record_steps: bool = False
    reference: bool = False  # plain Python even where the C code could be compiled
    most_replicas: int = 0  # that may be there at once; 0: those of the fleet and its autoscalers

    def __post_init__(self) -> None:
        frame, fleet = self.requests, self.fleet
        self.count = len(frame)
        self.prefixes: Sequence[Sequence[Hashable]] = (
            frame["prefix_hashes"].tolist() if "prefix_hashes" in frame else ()
        )
        self.rows = request_table(frame, fleet.is_disaggregated)
        self._finished_s = self.rows["finished_s"]
        self.status = np.full(self.count, _OPEN, np.int8)
        self.attempts = [0] * self.count
        self._lives = [False] * self.count  # an attempt is under way
        self.arrived_s = frame["arrived_s"].to_numpy(np.float64, copy=True)
        # Answered, or out of its replica after an attempt that failed.
        self.left_s = np.full(self.count, math.nan)
        self.started_s = float(np.nanmin(self.arrived_s)) if self.count else 0.0
        check_span(fleet, float(np.nanmax(self.arrived_s)) - self.started_s if self.count else 0.0)
        self.env = simpy.Environment(self.started_s)
        most = max(most_servers(fleet, self.most_replicas), 1)
        native = replica_native.is_available() and not self.reference
        replicas = NativeReplicas if native else ReferenceReplicas
        prefixes = [*self.prefixes, *([()] * (len(self.rows) - self.count))] if self.prefixes else ()
        self.core = replicas(self.rows, prefixes, most, fleet.seed, self.record_steps)
        self.servers = Servers(self.core, fleet, most)
        equal = len({kind.weight for kind in fleet.kinds}) == 1
        spawned = np.random.SeedSequence(fleet.seed).spawn(len(STREAMS))
        self.random = {
            name: np.random.default_rng(child) for name, child in zip(STREAMS, spawned, strict=True)
        }
        loads = self.core.outstanding, self.core.outstanding_tokens
        weights = None if equal else self.servers.weights
        self._choose = {
            role: router(fleet.router, *loads, weights, self.prefixes, self.random["routing"])
            for role in ROLES
        }
        # Rows that are in no replica, since when: no replica serves, or keys and values are being transferred.
        self._pending: dict[str, dict[int, float]] = {role: {} for role in ROLES}
        self._in_transfer: dict[int, float] = {}
        self._expected = (
            self.count
        )  # requests not yet handed in, pending, in transfer, or between two attempts
        self.waited_s = 0.0  # outside replicas, between arrival and end
        self._deadlines: deque[tuple[float, int, int]] = deque()  # of attempts: s, row, number
        self._awaits_deadline = False
        self._buckets: dict[Hashable, Bucket] = {}  # by tenant
        self._tenants = frame["tenant"].tolist() if "tenant" in frame else ["default"] * self.count
        self._prompt_tokens = frame["prompt_tokens"].tolist()
        self._output_tokens = frame["output_tokens"].tolist()
        self._after: dict[int, list[int]] = defaultdict(list)
        self._think_s = frame["think_s"].tolist() if "after" in frame else []
        self._watching = fleet.is_disaggregated
        if "after" in frame:
            self._watch_dependents(frame)
        for index, kind in enumerate(fleet.kinds):
            for _ in range(kind.replicas):
                self.order(index, provisioning_s=0.0, load_s=0.0)

    # ---- the clock ----

    def run(self) -> None:
        """Run until every request is finished or given up."""
        env, core, watching = self.env, self.core, self._watching
        env.process(self._arrivals())
        for index, kind in enumerate(self.fleet.kinds):
            if kind.autoscaler is not None:
                env.process(
                    autoscale(
                        env,
                        self.servers,
                        index,
                        kind.autoscaler,
                        pending=self.pending,
                        order=self.order,
                    )
                )
        while True:
            next_s = env.peek()
            reached_s = core.advance(next_s, watching)
            if reached_s < math.inf:
                for row in core.finished:
                    self._finished(row, reached_s)
            elif next_s == math.inf or (not self._expected and not core.outstanding.any()):
                break
            else:
                env.step()
        self._close()

    def at(self, time_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """Schedule an action: at `time_s` or by a rounding later, never before."""
        now_s = self.env.now
        delay_s = max(0.0, time_s - now_s)
        while now_s + delay_s < time_s:
            delay_s = math.nextafter(delay_s, math.inf)
        event = self.env.timeout(delay_s)
        event.callbacks.append(lambda _: action(*arguments))

    def _arrivals(self) -> ProcessGenerator:
        env, arrived_s = self.env, self.arrived_s
        independent = np.flatnonzero(~np.isnan(arrived_s))
        simple = self._is_simple()
        for row, time_s in zip(independent.tolist(), arrived_s[independent].tolist(), strict=True):
            # A time-out ends at now + delay, rounded: never beyond the arrival, and the next one hits it.
            while (delay_s := time_s - env.now) > 0:
                if env.now + delay_s > time_s:
                    delay_s = math.nextafter(delay_s, 0)
                yield env.timeout(delay_s)
            if simple:
                self._expected -= 1
                self.attempts[row] = 1
                self._lives[row] = True
                self._hand_over(row, "serve")
            else:
                self.arrive(row)

    def _is_simple(self) -> bool:
        """No admission checks: every request goes straight to a replica and stays there."""
        fleet = self.fleet
        return not (fleet.timeout_s or fleet.max_outstanding or fleet.rate_limits or fleet.is_disaggregated)

    # ---- the path of a request ----

    def arrive(self, row: int) -> None:
        """A client sends a request, for the first time or again."""
        fleet, now = self.fleet, self.env.now
        if self.attempts[row]:
            self._forget_times(row)
        elif math.isnan(self.arrived_s[row]):
            self.arrived_s[row] = now
        self.attempts[row] += 1
        self._lives[row] = True
        self._expected -= 1
        if self._is_full() or not self._within_limit(row, now):
            self._failed(row, _REJECTED, now)
            return
        if fleet.timeout_s is not None:
            self._deadlines.append((now + fleet.timeout_s, row, self.attempts[row]))
            if not self._awaits_deadline:
                self._await_deadline()
        self._hand_over(row, "prefill" if fleet.is_disaggregated else "serve")

    def pending(self, role: str) -> int:
        """Requests that no replica of this role could take yet, because none serves."""
        return len(self._pending[role])

    def _hand_over(self, row: int, role: str) -> None:
        """Deliver a row to a replica of a role, or keep it pending while none serves."""
        among = self.servers.serving[role]
        now = self.env.now
        if not len(among):
            self._pending[role][row] = now
            self._expected += 1
        elif not self.core.deliver(self._choose[role](row % self.count, among), row, now):
            self._failed(row % self.count, _REJECTED, now)

    def _is_full(self) -> bool:
        most = self.fleet.max_outstanding
        if most is None:
            return False
        outside = len(self._in_transfer) + sum(map(len, self._pending.values()))
        return outside + int(self.core.outstanding.sum()) >= most

    def _within_limit(self, row: int, now: float) -> bool:
        limits = self.fleet.rate_limits
        if not limits:
            return True
        tenant = self._tenants[row]
        bucket = self._buckets.get(tenant)
        if bucket is None:
            limit = limits.get(str(tenant)) or limits.get("default")
            if limit is None:
                return True
            bucket = self._buckets[tenant] = Bucket(limit, now)
        return bucket.take(now, self._prompt_tokens[row] + self._output_tokens[row])

    def _await_deadline(self) -> None:
        """The next deadline that matters: all clients wait as long, so they come in the order of the attempts."""
        deadlines = self._deadlines
        while deadlines and not self._is_open(*deadlines[0][1:]):
            deadlines.popleft()
        self._awaits_deadline = bool(deadlines)
        if deadlines:
            self.at(deadlines[0][0], self._time_out)

    def _is_open(self, row: int, attempt: int) -> bool:
        """Whether an attempt is still under way."""
        if not self._lives[row] or self.attempts[row] != attempt:
            return False
        return math.isnan(self._finished_s[self._last_row(row)])

    def _time_out(self) -> None:
        _, row, attempt = self._deadlines.popleft()
        if self._is_open(row, attempt):
            now, last = self.env.now, self._last_row(row)
            left_s = now
            for part in {row, last}:
                self._take_aside(part)
                # Steps under way still compute it: the client's next attempt waits for their end.
                part_left_s = self.core.cancel(part, now)
                if part_left_s > now:
                    self.servers.note_leaving(int(self.rows["replica"][part]), part_left_s)
                    left_s = part_left_s
            self._failed(row, _TIMED_OUT, left_s)
        self._await_deadline()

    def _last_row(self, row: int) -> int:
        """The table's row whose finish is the request's."""
        has_decode_half = len(self.rows) > self.count and self._output_tokens[row] > 1
        return row + self.count if has_decode_half else row

    def _take_aside(self, row: int) -> bool:
        """End a row's wait outside the replicas; False if it did not wait there."""
        for waiting in (*self._pending.values(), self._in_transfer):
            since_s = waiting.pop(row, None)
            if since_s is not None:
                self._expected -= 1
                self.waited_s += self.env.now - since_s
                return True
        return False

    def _failed(self, row: int, status: int, left_s: float) -> None:
        """An attempt failed and is out of its replica at `left_s`; the client tries again or gives up."""
        self._lives[row] = False
        self.left_s[row] = left_s
        retries = self.fleet.retries
        attempt = self.attempts[row]
        if attempt < retries.attempts:
            self._expected += 1
            again_s = max(self.env.now + retries.wait_s(attempt), left_s)
            self.waited_s += again_s - left_s
            self.at(again_s, self.arrive, row)
            return
        self.status[row] = status
        self._release_dependents(row, self.env.now)

    def _forget_times(self, row: int) -> None:
        for part in {row, self._last_row(row)}:
            for name in ("scheduled_s", "first_token_s", "finished_s"):
                self.rows[name][part] = math.nan

    def _finished(self, row: int, time_s: float) -> None:
        """A watched row is done: its decode half follows, or the requests that waited for it."""
        if not self._lives[row % self.count]:
            return
        if row < self.count and self._last_row(row) != row:
            fleet = self.fleet
            delay_s = fleet.kv_transfer_s + fleet.kv_transfer_s_per_token * self._prompt_tokens[row]
            self._expected += 1
            self._in_transfer[row] = time_s
            self.at(time_s + delay_s, self._decode_half, row, self.attempts[row])
        else:
            self._lives[row % self.count] = False
            self._release_dependents(row % self.count, time_s)

    def _decode_half(self, row: int, attempt: int) -> None:
        if self._lives[row] and self.attempts[row] == attempt and self._take_aside(row):
            self._hand_over(row + self.count, "decode")

    def _release_dependents(self, row: int, time_s: float) -> None:
        for dependent in self._after.get(row, ()):
            self.at(time_s + self._think_s[dependent], self.arrive, dependent)

    # ---- replicas come and go ----

    def order(self, kind_index: int, provisioning_s: float, load_s: float) -> bool:
        """Order a server, which serves when it is there and has loaded the model; False if there is no room."""
        now = self.env.now
        there_s = now + provisioning_s
        server = self.servers.order(kind_index, now, there_s + load_s)
        if server is None:
            return False
        changes: Any = {"die": self.die, "open_when_ready": self.open_when_ready}
        if server.kind.failures is not None:
            self.env.process(break_down(self.env, self.servers, server, server.kind.failures, **changes))
        if server.kind.spot is not None:
            self.env.process(
                be_taken_back(self.env, self.servers, server, server.kind.spot, there_s, **changes)
            )
        self.open_when_ready(server)
        return True

    def open_when_ready(self, server: Server) -> None:
        """Let a server serve as soon as it is ready."""
        if server.ready_s > self.env.now:
            self.at(server.ready_s, self._open, server)
        else:
            self._open(server)

    def _open(self, server: Server) -> None:
        """Let a server serve, unless it was released, failed or was taken back meanwhile."""
        if server.serves or not math.isnan(server.drained_s) or self.env.now < server.ready_s:
            return
        self.servers.set_serving(server, True)
        role = server.kind.role
        for row in list(self._pending[role]):
            self._take_aside(row)
            self._hand_over(row, role)

    def die(self, server: Server) -> None:
        """Fail a replica; its requests are lost."""
        server.failures += 1
        now = self.env.now
        self.servers.set_serving(server, False)
        server.left_s = now
        for part in self.core.clear(server.replica, now):
            row = part % self.count
            if self._lives[row]:
                self._failed(row, _LOST, now)
                continue
            # Its client gave it up before; the step that still computed it breaks off.
            if self.status[row] == _OPEN:
                self.waited_s += self.left_s[row] - now
            self.left_s[row] = now

    # ---- tables ----

    def _watch_dependents(self, frame: pd.DataFrame) -> None:
        after = frame["after"].to_numpy()
        for row in np.flatnonzero(after >= 0).tolist():
            self._after[int(after[row])].append(row)
            # Dependents wait for the end of the answer.
            self.rows["watched"][self._last_row(int(after[row]))] = 1
        self._watching = self._watching or bool(self._after)

    def _close(self) -> None:
        """Mark open requests as finished, and settle what the servers cost up to the end."""
        last = np.arange(self.count)
        if len(self.rows) > self.count:
            last = np.where(self.requests["output_tokens"].to_numpy() > 1, last + self.count, last)
        is_open = self.status == _OPEN
        self.finished_s = np.where(is_open, self._finished_s[last], math.nan)
        done = ~np.isnan(self.finished_s)
        self.status[is_open] = _FINISHED
        self.left_s[done] = self.finished_s[done]
        for name in ("scheduled_s", "first_token_s"):
            self.rows[name][: self.count][~done] = math.nan
        self.ended_s = float(self.left_s.max()) if self.count else self.started_s
        self.servers.settle(self.ended_s)
