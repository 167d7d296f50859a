"""How a fleet changes while it serves: an autoscaler, failures and repairs, spot machines that are taken back.

SimPy processes over `sim.fleet.FleetRun`. Each machine draws its failures from a stream of its own, so that a change
elsewhere in the fleet leaves them where they were.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from simpy.events import ProcessGenerator

from engine.errors import InputError
from sim.fleet_config import Autoscaler, Failures, Fleet, ReplicaKind, Spot
from sim.machines import Server

if TYPE_CHECKING:
    from sim.fleet import FleetRun

_MOST_CHANGES = 50_000_000  # that a run may play by itself: minutes


def autoscale(run: FleetRun, kind_index: int, scaler: Autoscaler) -> ProcessGenerator:
    """Every interval: order what is missing for the target load, or drain what is too much."""
    kind = run.fleet.kinds[kind_index]
    outstanding = run.core.outstanding
    changed_s = -math.inf
    busy_s = {server.replica: 0.0 for server in run.machines.of_kind(kind_index)}
    while True:
        yield run.env.timeout(scaler.interval_s)
        now = run.env.now
        servers = run.machines.of_kind(kind_index)
        serving = [server.replica for server in servers if server.serves]
        busy_before_s = busy_s
        busy_s = {server.replica: run.core.busy_s(server.replica, now) for server in servers}
        if scaler.metric == "outstanding_requests":
            load = float(outstanding[serving].sum())
        elif scaler.metric == "waiting_requests":
            load = float(sum(run.core.waiting(replica) for replica in serving))
        else:
            load = sum(busy_s[r] - busy_before_s.get(r, busy_s[r]) for r in serving) / scaler.interval_s
        pending = run.pending(kind.role)
        load += pending
        wanted = math.ceil(load / scaler.target - 1e-9)
        if serving and abs(load / len(serving) / scaler.target - 1) <= scaler.tolerance:
            wanted = len(serving)
        # Somebody who waits is served, however high the target.
        least = max(scaler.min_replicas, _scheduled(scaler, now), 1 if pending else 0)
        wanted = min(max(wanted, least), scaler.max_replicas)
        if wanted > len(servers):
            for _ in range(wanted - len(servers)):
                if run.order(kind_index, scaler.provisioning_s, kind.load_s):
                    changed_s = now
        elif wanted < len(servers) and now - changed_s >= scaler.cool_down_s:
            # First those that don't serve yet, then the emptiest.
            servers.sort(key=lambda server: (server.serves, outstanding[server.replica], -server.replica))
            for server in servers[: len(servers) - wanted]:
                run.machines.drain(server, now)
            changed_s = now


def break_down(run: FleetRun, server: Server, failures: Failures) -> ProcessGenerator:
    """A machine fails, and with it whatever it computes; after its repair it loads the model and serves again."""
    random = _stream(run, server, 0)
    while True:
        yield run.env.timeout(random.exponential(failures.mtbf_s))
        if run.machines.is_done_with(server):
            return
        if not run.machines.computes(server):
            continue  # what doesn't run doesn't break; the time until the next failure has no memory
        run.die(server)
        if not math.isnan(server.drained_s):
            return
        repaired_s = run.env.now + random.exponential(failures.repair_s)
        server.ready_s = max(server.ready_s, repaired_s + server.kind.load_s)
        run.open_when_ready(server)
        yield run.env.timeout(server.ready_s - run.env.now)


def be_taken_back(run: FleetRun, server: Server, spot: Spot, there_s: float) -> ProcessGenerator:
    """The cloud takes a machine back, after a notice; another one replaces it."""
    random = _stream(run, server, 1)
    yield run.env.timeout(there_s - run.env.now)
    while True:
        yield run.env.timeout(random.exponential(spot.mean_life_s))
        if run.machines.is_done_with(server):
            return
        run.machines.set_serving(server, False)
        there_s = run.env.now + spot.notice_s + spot.replacement_s
        server.ready_s = there_s + server.kind.load_s  # whatever is under repair: another machine comes
        yield run.env.timeout(spot.notice_s)
        if run.machines.is_done_with(server):
            return
        run.die(server)
        if not math.isnan(server.drained_s):
            return
        server.away_s = run.env.now
        yield run.env.timeout(spot.replacement_s)
        if not math.isnan(server.drained_s):
            return
        server.unpaid_s += run.env.now - server.away_s
        server.away_s = math.nan
        run.open_when_ready(server)


def check_span(fleet: Fleet, span_s: float) -> None:
    """Refuse a run in which what happens by itself would take hours to play.

    Raises:
        InputError: names the kind of replicas, the setting and the least that is allowed.
    """
    for kind in fleet.kinds:
        most = max(kind.replicas, kind.autoscaler.max_replicas if kind.autoscaler else 0)
        for key, seconds, machines in _periods(kind, most):
            least_s = span_s / _MOST_CHANGES * machines
            if seconds < least_s:
                raise InputError(
                    f"fleet: {kind.name}.{key}: found {seconds:g} s in a run of {span_s:g} s, allowed is at least "
                    f"{least_s:.3g} s"
                )


def _periods(kind: ReplicaKind, most: int) -> Iterator[tuple[str, float, int]]:
    """What happens again and again to a kind: its key, seconds between two times, and to how many machines."""
    if kind.autoscaler is not None:
        yield "autoscaler.interval_s", kind.autoscaler.interval_s, 1
    if kind.failures is not None:
        yield "failures.mtbf_s", kind.failures.mtbf_s, most
    if kind.spot is not None:
        yield "spot.mean_life_s", kind.spot.mean_life_s, most


def _scheduled(scaler: Autoscaler, now_s: float) -> int:
    """The least size that the schedule asks for at this time; before the first entry that of the last one."""
    if not scaler.schedule:
        return 0
    entries = sorted(scaler.schedule, key=lambda entry: entry.at_s)
    passed = [entry for entry in entries if entry.at_s <= now_s % scaler.period_s]
    return (passed or entries)[-1].replicas


def _stream(run: FleetRun, server: Server, what: int) -> np.random.Generator:
    key = (1, server.kind_index, server.nth, what)
    return np.random.default_rng(np.random.SeedSequence(run.fleet.seed, spawn_key=key))
