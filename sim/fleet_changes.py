"""How a fleet changes while it serves: an autoscaler, failures and repairs, spot machines that are taken back.

SimPy processes over `sim.fleet.FleetRun`. Each machine draws its failures from a stream of its own, so that a change
elsewhere in the fleet leaves them where they were.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from simpy.events import ProcessGenerator

from sim.fleet_config import Autoscaler, Failures, ReplicaKind, Spot

if TYPE_CHECKING:
    from sim.fleet import FleetRun, Server


def autoscale(run: FleetRun, kind: ReplicaKind, scaler: Autoscaler) -> ProcessGenerator:
    """Every interval: order what is missing for the target load, or drain what is too much."""
    changed_s = -math.inf
    busy_s = 0.0
    while True:
        yield run.env.timeout(scaler.interval_s)
        now = run.env.now
        servers = [server for server in run.servers if server.kind is kind and math.isnan(server.drained_s)]
        serving = [server.replica for server in servers if server.serves]
        busy_before, busy_s = busy_s, float(run.core.counts["busy_s"][serving].sum())
        if scaler.metric == "outstanding_requests":
            load = float(run.core.outstanding[serving].sum())
        elif scaler.metric == "waiting_requests":
            load = float(sum(run.core.waiting(replica) for replica in serving))
        else:
            load = max(0.0, busy_s - busy_before) / scaler.interval_s
        load += len(run.pending(kind.role))
        wanted = math.ceil(load / scaler.target - 1e-9)
        if serving and abs(load / len(serving) / scaler.target - 1) <= scaler.tolerance:
            wanted = len(serving)
        least = max(scaler.min_replicas, _scheduled(scaler, now))
        wanted = min(max(wanted, least), scaler.max_replicas)
        if wanted > len(servers):
            for _ in range(wanted - len(servers)):
                run.order(kind, now, scaler.provisioning_s + kind.load_s)
            changed_s = now
        elif wanted < len(servers) and now - changed_s >= scaler.cool_down_s:
            # First those that don't serve yet, then the emptiest.
            servers.sort(
                key=lambda server: (server.serves, run.core.outstanding[server.replica], -server.replica)
            )
            for server in servers[: len(servers) - wanted]:
                run.drain(server)
            changed_s = now


def break_down(run: FleetRun, server: Server, failures: Failures) -> ProcessGenerator:
    """A machine fails, and with it whatever it computes; after its repair it loads the model and serves again."""
    random = _stream(run, server, 0)
    while True:
        yield run.env.timeout(random.exponential(failures.mtbf_s))
        if not math.isnan(server.drained_s):
            return
        if not server.serves:
            continue  # what doesn't run doesn't break
        server.failures += 1
        run.close(server)
        run.lost(run.core.clear(server.replica, run.env.now))
        yield run.env.timeout(random.exponential(failures.repair_s) + server.kind.load_s)
        run.open(server)


def be_taken_back(run: FleetRun, server: Server, spot: Spot) -> ProcessGenerator:
    """The cloud takes a machine back, after a notice; another one replaces it."""
    random = _stream(run, server, 1)
    while True:
        yield run.env.timeout(random.exponential(spot.mean_life_s))
        if not math.isnan(server.drained_s):
            return
        run.close(server)
        yield run.env.timeout(spot.notice_s)
        server.failures += 1
        run.lost(run.core.clear(server.replica, run.env.now))
        yield run.env.timeout(spot.replacement_s)
        server.unpaid_s += spot.replacement_s
        yield run.env.timeout(server.kind.load_s)
        run.open(server)


def _scheduled(scaler: Autoscaler, now_s: float) -> int:
    """The least size that the schedule asks for at this time; before the first entry that of the last one."""
    if not scaler.schedule:
        return 0
    entries = sorted(scaler.schedule, key=lambda entry: entry.at_s)
    passed = [entry for entry in entries if entry.at_s <= now_s % scaler.period_s]
    return (passed or entries)[-1].replicas


def _stream(run: FleetRun, server: Server, what: int) -> np.random.Generator:
    seed = np.random.SeedSequence(run.fleet.seed, spawn_key=(1, server.replica, what))
    return np.random.default_rng(seed)
