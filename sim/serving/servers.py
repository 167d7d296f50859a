"""The servers of a fleet: ordered, opened, closed, drained, released; which of them serve now, and what is paid.

A server is paid for from its order to its release, but not while the cloud has taken it back. A server that is
drained takes no more requests and is released when the last one leaves it. Its replica's number then goes to the next
order, so that arrays by replica stay short however often a fleet grows and shrinks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import InputError
from sim.serving.fleet_config import Fleet, ReplicaSpec
from sim.serving.replica import ReferenceReplicas
from sim.serving.replica_native import NativeReplicas

ROLES = ("serve", "prefill", "decode")


@dataclass(eq=False)
class Server:
    """One server of the fleet, from its order to its release."""

    replica: int  # its number among the replicas; a server that comes back after a failure keeps it
    kind: ReplicaSpec
    kind_index: int
    nth: int  # of its kind
    ordered_s: float
    ready_s: float  # doesn't serve before: it is provisioned, repaired or loads the model
    serves: bool = False
    drained_s: float = math.nan  # takes no more requests from then on
    released_s: float = math.nan
    away_s: float = math.nan  # since when the cloud has it back
    unpaid_s: float = 0.0  # between a server that was taken back and the next
    left_s: float = -math.inf  # when a request last left it without an answer
    failures: int = 0


class Servers:
    """All servers of a fleet, and which serve now.

    Attributes:
        servers: every server that was ever ordered.
        serving: replicas that take requests, by role.
        weights: of each replica, for routers.
    """

    def __init__(self, core: NativeReplicas | ReferenceReplicas, fleet: Fleet, most: int) -> None:
        """`most`: replicas that `core` has room for."""
        self.core, self.fleet, self.most = core, fleet, most
        self.servers: list[Server] = []
        self.weights: np.ndarray[Any, Any] = np.ones(max(most, 1))
        self.serving = {role: np.empty(0, np.intp) for role in ROLES}
        self._present: list[list[Server]] = [[] for _ in fleet.kinds]  # ordered, not drained; by kind
        self._emptying: list[list[Server]] = [[] for _ in fleet.kinds]
        self._server_of: dict[int, Server] = {}  # the last one by replica
        self._orders = [0] * len(fleet.kinds)
        self._replicas = 0

    def of_kind(self, kind_index: int) -> list[Server]:
        """Servers of a kind that serve, or will: not drained."""
        return list(self._present[kind_index])

    def order(self, kind_index: int, now_s: float, ready_s: float) -> Server | None:
        """Order a server; None while `most` are there, those included that are still emptying."""
        kind = self.fleet.kinds[kind_index]
        replica = self._free_replica(kind_index, now_s)
        if replica is None:
            return None
        self.weights[replica] = kind.weight
        server = Server(replica, kind, kind_index, self._orders[kind_index], now_s, ready_s)
        self._orders[kind_index] += 1
        self.servers.append(server)
        self._server_of[replica] = server
        self._present[kind_index].append(server)
        return server

    def set_serving(self, server: Server, serves: bool) -> None:
        """Let a server take requests from now on, or none."""
        server.serves = serves
        role = server.kind.role
        self.serving[role] = np.array(
            [
                each.replica
                for kind, present in zip(self.fleet.kinds, self._present, strict=True)
                if kind.role == role
                for each in present
                if each.serves
            ],
            np.intp,
        )

    def drain(self, server: Server, now_s: float) -> None:
        """Let a server take no further requests; it is released when it is empty."""
        server.drained_s = now_s
        self.set_serving(server, False)
        self._present[server.kind_index].remove(server)
        self._emptying[server.kind_index].append(server)

    def computes(self, server: Server) -> bool:
        """Whether a failure of the server has an effect: it serves, or requests are left on it."""
        return server.serves or bool(self.core.outstanding[server.replica])

    def is_done_with(self, server: Server) -> bool:
        """Whether a server was drained and is empty: released, or about to be."""
        if math.isnan(server.drained_s):
            return False
        return not math.isnan(server.released_s) or not self.core.outstanding[server.replica]

    def note_leaving(self, replica: int, left_s: float) -> None:
        """Note that a request leaves a replica at `left_s` without an answer."""
        server = self._server_of[replica]
        server.left_s = max(server.left_s, left_s)

    def settle(self, ended_s: float) -> None:
        """End the run: servers that are still there are paid for up to its end."""
        for server in self.servers:
            if math.isnan(server.released_s):
                if math.isnan(server.drained_s):
                    self._release(server, max(ended_s, server.ordered_s))
                else:
                    self._release(server, self._empty_s(server))

    def paid_s(self) -> np.ndarray[Any, Any]:
        """Seconds paid for, by replica [replicas]; after `settle`."""
        paid_s = np.zeros(self._replicas)
        for server in self.servers:
            paid_s[server.replica] += max(0.0, server.released_s - server.ordered_s - server.unpaid_s)
        return paid_s

    def _free_replica(self, kind_index: int, now_s: float) -> int | None:
        kind = self.fleet.kinds[kind_index]
        for server in self._emptying[kind_index]:
            if not self.core.outstanding[server.replica]:
                self._release(server, self._empty_s(server))
                self._emptying[kind_index].remove(server)
                self.core.clear(server.replica, now_s)
                return server.replica
        if self._replicas < self.most:
            self._replicas += 1
            return self.core.add_replica(kind, now_s)
        return None

    def _empty_s(self, server: Server) -> float:
        """When a drained server's last request left."""
        last_finish_s = float(self.core.counts["last_finish_s"][server.replica])
        return max(server.drained_s, last_finish_s, server.left_s)

    def _release(self, server: Server, at_s: float) -> None:
        server.released_s = at_s
        if not math.isnan(server.away_s):
            server.unpaid_s += max(0.0, at_s - server.away_s)
            server.away_s = math.nan


def most_servers(fleet: Fleet, most_replicas: int = 0) -> int:
    """Servers that may exist at once, those included that are still emptying.

    Raises:
        InputError: the fleet starts with more than `most_replicas` (0: no other limit than the autoscalers').
    """
    first = sum(kind.replicas for kind in fleet.kinds)
    if not most_replicas:
        return sum(
            kind.replicas + (4 * kind.autoscaler.max_replicas if kind.autoscaler else 0)
            for kind in fleet.kinds
        )
    if first > most_replicas:
        raise InputError(f"fleet: starts with {first} replicas, allowed are at most {most_replicas}")
    return most_replicas
