"""A serving fleet on a simulated clock: requests come in at the door, go to replicas, and replicas come and go.

SimPy holds the fleet's clock: arrivals, retries, time-outs, transfers, scaling, failures. Between two of its events the
replicas run by themselves (`sim.replica`, or the same as machine code), so a request costs a handful of events, not
one per token. Where somebody waits for a finish (the next turn of a conversation, the decode half of a request), the
replicas stop at that time and SimPy goes on from there.

A row is a request as its client sees it; with prefill and decode replicas its decode half has a row of its own in the
table, `requests` rows further on.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import simpy
from simpy.events import ProcessGenerator

from engine.errors import InputError
from sim import native_replicas
from sim.fleet_changes import autoscale, be_taken_back, break_down
from sim.fleet_config import Fleet, RateLimit, ReplicaKind
from sim.native_replicas import NativeReplicas
from sim.replica import ReferenceReplicas
from sim.replica_tables import REQUEST
from sim.routing import router

STATUSES = ("finished", "timed_out", "rejected", "lost")
_FINISHED, _TIMED_OUT, _REJECTED, _LOST, _OPEN = range(5)
STREAMS = ("routing", "failures")  # the order is part of what a seed means: append only


@dataclass
class Server:
    """One machine of the fleet, from its order to its release."""

    replica: int  # its number among the replicas; a machine that comes back after a failure keeps it
    kind: ReplicaKind
    ordered_s: float
    serves: bool = False
    drained_s: float = math.nan  # takes no more requests from then on; released when it is empty
    released_s: float = math.nan
    unpaid_s: float = 0.0  # between a machine that was taken back and the next
    failures: int = 0


@dataclass
class FleetRun:
    """One replay of requests through a fleet.

    Raises:
        InputError: a step-time model gives no finite time ≥ 0, or the fleet grows beyond `most_replicas`.
    """

    requests: pd.DataFrame  # checked (`sim.trace.check_requests`)
    fleet: Fleet
    recording: bool = False
    reference: bool = False  # plain Python even where the C code could be compiled
    most_replicas: int = 0  # that may ever be ordered; 0: those of the fleet and its autoscalers
    env: simpy.Environment = field(default_factory=simpy.Environment)

    def __post_init__(self) -> None:
        frame, fleet = self.requests, self.fleet
        self.count = len(frame)
        self.prefixes: Sequence[Sequence[Hashable]] = (
            frame["prefix_hashes"].tolist() if "prefix_hashes" in frame else ()
        )
        self.rows = self._table()
        self.status = np.full(self.count, _OPEN, np.int8)
        self.attempts = np.zeros(self.count, np.int32)
        self._lives = np.zeros(self.count, bool)  # an attempt is under way
        self.arrived_s = frame["arrived_s"].to_numpy(np.float64, copy=True)
        most = self.most_replicas or sum(_most(kind) for kind in fleet.kinds)
        native = native_replicas.is_available() and not self.reference
        replicas = NativeReplicas if native else ReferenceReplicas
        prefixes = [*self.prefixes, *([()] * (len(self.rows) - self.count))] if self.prefixes else ()
        self.core = replicas(self.rows, prefixes, max(most, 1), fleet.seed, self.recording)
        self.servers: list[Server] = []
        self.started_s = float(np.nanmin(self.arrived_s)) if self.count else 0.0
        self._weights = np.ones(max(most, 1))
        equal = len({kind.weight for kind in fleet.kinds}) == 1
        spawned = np.random.SeedSequence(fleet.seed).spawn(len(STREAMS))
        self.random = {
            name: np.random.default_rng(child) for name, child in zip(STREAMS, spawned, strict=True)
        }
        loads = self.core.outstanding, self.core.outstanding_tokens
        self._choose = {
            role: router(
                fleet.router, *loads, None if equal else self._weights, self.prefixes, self.random["routing"]
            )
            for role in ("serve", "prefill", "decode")
        }
        self._serving: dict[str, np.ndarray[Any, Any]] = {}  # replicas by role
        self._pending: dict[str, list[tuple[int, float]]] = defaultdict(
            list
        )  # nobody serves: rows, since when
        self._expected = self.count  # requests not yet handed in, or between two attempts or halves
        self.waited_s = 0.0  # outside replicas, between arrival and finish
        self._buckets: dict[Hashable, _Bucket] = {}  # by tenant
        self._tenants = frame["tenant"].tolist() if "tenant" in frame else ["default"] * self.count
        self._output_tokens = frame["output_tokens"].tolist()
        self._after: dict[int, list[int]] = defaultdict(list)
        self._watching = fleet.is_disaggregated
        self._ordered = 0
        if "after" in frame:
            self._watch_dependents(frame)
        for kind in fleet.kinds:
            for _ in range(kind.replicas):
                self.order(kind, self.started_s, ready_after_s=0.0)

    # ---- the clock ----

    def run(self) -> None:
        """Play until every request is finished or given up."""
        env, core, watching = self.env, self.core, self._watching
        env.process(self._arrivals())
        for kind in self.fleet.kinds:
            if kind.autoscaler is not None:
                env.process(autoscale(self, kind, kind.autoscaler))
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
        """Do something at a time to come."""
        event = self.env.timeout(max(0.0, time_s - self.env.now))
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
                self.attempts[row] = self._lives[row] = 1
                self._hand_over(row, "serve")
            else:
                self.arrive(row)

    def _is_simple(self) -> bool:
        """No door: every request goes straight to a replica and stays there."""
        fleet = self.fleet
        return not (fleet.timeout_s or fleet.max_outstanding or fleet.rate_limits or fleet.is_disaggregated)

    # ---- a request's way ----

    def arrive(self, row: int) -> None:
        """A client sends a request, for the first time or again."""
        fleet, now = self.fleet, self.env.now
        if not self.attempts[row] and math.isnan(self.arrived_s[row]):
            self.arrived_s[row] = now
        if self.attempts[row]:
            self._forget_times(row)
        self.attempts[row] += 1
        self._lives[row] = True
        self._expected -= 1
        full = fleet.max_outstanding is not None and int(self.core.outstanding.sum()) >= fleet.max_outstanding
        if full or not self._within_limit(row, now):
            self._failed(row, _REJECTED)
            return
        if fleet.timeout_s is not None:
            self.at(now + fleet.timeout_s, self._time_out, row, int(self.attempts[row]))
        self._hand_over(row, "prefill" if fleet.is_disaggregated else "serve")

    def pending(self, role: str) -> list[tuple[int, float]]:
        """Requests that no replica of this role could take yet, since when."""
        return self._pending[role]

    def _hand_over(self, row: int, role: str) -> None:
        """To a replica of a role; to nobody yet if none serves."""
        among = self._serving.get(role)
        now = self.env.now
        if among is None or not len(among):
            self._pending[role].append((row, now))
            self._expected += 1
        elif not self.core.deliver(self._choose[role](row % self.count, among), row, now):
            self._failed(row % self.count, _REJECTED)

    def _within_limit(self, row: int, now: float) -> bool:
        limits, tenant = self.fleet.rate_limits, self._tenants[row]
        limit = limits.get(str(tenant)) or limits.get("default")
        if limit is None:
            return True
        if tenant not in self._buckets:
            self._buckets[tenant] = _Bucket(limit, now)
        prompt = int(self.requests["prompt_tokens"].iloc[row])
        return self._buckets[tenant].take(now, prompt + self._output_tokens[row])

    def _time_out(self, row: int, attempt: int) -> None:
        now, last = self.env.now, self._last_row(row)
        if not self._lives[row] or self.attempts[row] != attempt or not math.isnan(self.rows["finished_s"][last]):
            return
        self._take_from_pending(row)
        # Steps under way still compute it: the client's next attempt waits for their end.
        left_s = max(self.core.cancel(part, now) for part in {row, last})
        self._failed(row, _TIMED_OUT, left_s)

    def _last_row(self, row: int) -> int:
        """The table's row whose finish is the request's."""
        has_decode_half = len(self.rows) > self.count and self._output_tokens[row] > 1
        return row + self.count if has_decode_half else row

    def _take_from_pending(self, row: int) -> None:
        for waiting in self._pending.values():
            before = len(waiting)
            waiting[:] = [entry for entry in waiting if entry[0] % self.count != row]
            self._expected -= before - len(waiting)

    def _failed(self, row: int, status: int, left_s: float = 0.0) -> None:
        """An attempt came to nothing: the client tries again, not before `left_s`, or gives up."""
        self._lives[row] = False
        retries = self.fleet.retries
        attempt = int(self.attempts[row])
        if attempt < retries.attempts:
            self._expected += 1
            delay_s = retries.delay_s * retries.backoff ** (attempt - 1)
            self.at(max(self.env.now + delay_s, left_s), self.arrive, row)
            return
        self.status[row] = status
        self._release_dependents(row, self.env.now)

    def _forget_times(self, row: int) -> None:
        for part in {row, self._last_row(row)}:
            for name in ("scheduled_s", "first_token_s", "finished_s"):
                self.rows[name][part] = math.nan

    def lost(self, rows: Sequence[int]) -> None:
        """A replica died with these requests: their answers break off."""
        for row in rows:
            self._failed(row % self.count, _LOST)

    def _finished(self, row: int, time_s: float) -> None:
        """A watched row is done: its decode half follows, or who waited for it."""
        if not self._lives[row % self.count]:
            return
        if row < self.count and self._last_row(row) != row:
            prompt = int(self.rows["prompt"][row])
            delay_s = self.fleet.kv_transfer_s + self.fleet.kv_transfer_s_per_token * prompt
            self._expected += 1
            self.waited_s += delay_s
            self.at(time_s + delay_s, self._decode_half, row, int(self.attempts[row]))
        else:
            self._lives[row % self.count] = False
            self._release_dependents(row % self.count, time_s)

    def _decode_half(self, row: int, attempt: int) -> None:
        self._expected -= 1
        if self._lives[row] and self.attempts[row] == attempt:
            self._hand_over(row + self.count, "decode")

    def _release_dependents(self, row: int, time_s: float) -> None:
        for dependent in self._after.get(row, ()):
            self.at(time_s + float(self.requests["think_s"].iloc[dependent]), self.arrive, dependent)

    # ---- replicas come and go ----

    def order(self, kind: ReplicaKind, now_s: float, ready_after_s: float) -> Server:
        """Order a machine; it serves after a while."""
        replica = self._replica_for(kind, now_s)
        self._weights[replica] = kind.weight
        server = Server(replica, kind, now_s)
        self.servers.append(server)
        if kind.failures is not None:
            self.env.process(break_down(self, server, kind.failures))
        if kind.spot is not None:
            self.env.process(be_taken_back(self, server, kind.spot))
        if ready_after_s > 0:
            self.at(now_s + ready_after_s, self.open, server)
        else:
            self.open(server)
        return server

    def open(self, server: Server) -> None:
        """A machine begins to serve, unless it was released meanwhile."""
        if not math.isnan(server.drained_s):
            return
        server.serves = True
        self._list_serving()
        role = server.kind.role
        pending, self._pending[role] = self._pending[role], []
        for row, since_s in pending:
            self._expected -= 1
            self.waited_s += self.env.now - since_s
            self._hand_over(row, role)

    def close(self, server: Server) -> None:
        """A machine takes no requests for now."""
        server.serves = False
        self._list_serving()

    def drain(self, server: Server) -> None:
        """A machine takes no further requests, and is released when it is empty."""
        server.drained_s = self.env.now
        self.close(server)

    def _replica_for(self, kind: ReplicaKind, now_s: float) -> int:
        """A new replica, or one that was released, emptied."""
        if self._ordered < len(self._weights):
            self._ordered += 1
            return self.core.add_replica(kind, now_s)
        for server in self.servers:
            empty = not self.core.outstanding[server.replica]
            if (
                server.kind is kind
                and not math.isnan(server.drained_s)
                and math.isnan(server.released_s)
                and empty
            ):
                self._release(server)
                self.core.clear(server.replica, now_s)
                return server.replica
        raise InputError(
            f"fleet: more than {len(self._weights)} replicas at once, those that still empty included"
        )

    def _release(self, server: Server) -> None:
        last_finish_s = float(self.core.counts["last_finish_s"][server.replica])
        server.released_s = max(server.drained_s, last_finish_s)

    def _list_serving(self) -> None:
        for role in ("serve", "prefill", "decode"):
            self._serving[role] = np.array(
                [server.replica for server in self.servers if server.serves and server.kind.role == role],
                np.intp,
            )

    # ---- tables ----

    def _table(self) -> np.ndarray[Any, Any]:
        frame, count = self.requests, self.count
        rows = np.zeros(count * (2 if self.fleet.is_disaggregated else 1), REQUEST)
        for name in ("scheduled_s", "first_token_s", "finished_s"):
            rows[name] = math.nan
        first = rows[:count]
        first["prompt"], first["output"] = frame["prompt_tokens"], frame["output_tokens"]
        if "priority" in frame:
            first["priority"] = frame["priority"]
        if self.fleet.is_disaggregated:
            second = rows[count:]
            # The first token comes from the prefill replica, with the keys and values of the whole prompt.
            second["received"], second["prompt"] = first["prompt"], first["prompt"] + 1
            second["output"] = np.maximum(first["output"] - 1, 1)
            second["priority"], second["watched"] = first["priority"], 1
            first["output"], first["watched"] = 1, 1
        return rows

    def _watch_dependents(self, frame: pd.DataFrame) -> None:
        after = frame["after"].to_numpy()
        for row in np.flatnonzero(after >= 0).tolist():
            self._after[int(after[row])].append(row)
            self.rows["watched"][int(after[row])] = 1
        self._watching = self._watching or bool(self._after)

    def _close(self) -> None:
        """Who is still open has finished; what is still paid for was, up to the end."""
        last = np.arange(self.count)
        if len(self.rows) > self.count:
            last = np.where(self.requests["output_tokens"].to_numpy() > 1, last + self.count, last)
        self.finished_s = np.where(self.status == _OPEN, self.rows["finished_s"][last], math.nan)
        done = ~np.isnan(self.finished_s)
        self.status[self.status == _OPEN] = np.where(done, _FINISHED, _LOST)[self.status == _OPEN]
        for name in ("scheduled_s", "first_token_s"):
            self.rows[name][: self.count][~done] = math.nan
        self.ended_s = float(self.finished_s[done].max()) if done.any() else self.env.now
        for server in self.servers:
            if math.isnan(server.released_s):
                if math.isnan(server.drained_s):
                    server.released_s = max(self.ended_s, server.ordered_s)
                else:
                    self._release(server)


def _most(kind: ReplicaKind) -> int:
    """Machines of a kind that may exist at once, those included that are still emptying."""
    return kind.replicas if kind.autoscaler is None else kind.replicas + 4 * kind.autoscaler.max_replicas


class _Bucket:
    """A tenant's rate limit: tokens of two sorts that refill steadily, a minute's worth at most."""

    def __init__(self, limit: RateLimit, now_s: float) -> None:
        self._most = [
            math.inf if most is None else most
            for most in (limit.requests_per_minute, limit.tokens_per_minute)
        ]
        self._left = list(self._most)
        self._at_s = now_s

    def take(self, now_s: float, tokens: int) -> bool:
        """Whether a request with so many tokens is within the limit now; if so it counts."""
        minutes = (now_s - self._at_s) / 60
        self._at_s = now_s
        refilled = [
            most if most == math.inf else min(most, left + most * minutes)
            for left, most in zip(self._left, self._most, strict=True)
        ]
        # One larger than a whole minute's worth passes when the bucket is full.
        wanted = [min(want, most) for want, most in zip((1, tokens), self._most, strict=True)]
        passes = all(left >= want for left, want in zip(refilled, wanted, strict=True))
        self._left = [
            left - (want if passes and left < math.inf else 0)
            for left, want in zip(refilled, wanted, strict=True)
        ]
        return passes
