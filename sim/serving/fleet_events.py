"""How a fleet changes while it serves: an autoscaler, failures and repairs, spot servers that are taken back.

SimPy processes; `sim.serving.fleet_run` starts them and decides what becomes of requests. Each server draws its
failures from a stream of its own, so that a change elsewhere in the fleet leaves them where they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import simpy
from simpy.events import ProcessGenerator

from sim.serving.fleet_config import Autoscaler, Failures, SpotInterruptions
from sim.serving.servers import Server, Servers


def autoscale(
    env: simpy.Environment,
    servers: Servers,
    kind_index: int,
    scaler: Autoscaler,
    *,
    pending: Callable[[str], int],
    order: Callable[[int, float, float], bool],
) -> ProcessGenerator:
    """Every interval, order the servers missing for the target load, or drain those beyond it.

    Args:
        env: the fleet's clock.
        servers: those of the fleet.
        kind_index: which kind of replicas to scale.
        scaler: its settings.
        pending: role → requests that no replica of that role could take yet.
        order: (kind index, provisioning_s, load_s) → whether a server could be ordered.
    """
    kind, core = servers.fleet.kinds[kind_index], servers.core
    outstanding = core.outstanding
    changed_s = -math.inf
    busy_s = {server.replica: 0.0 for server in servers.of_kind(kind_index)}
    while True:
        yield env.timeout(scaler.interval_s)
        now = env.now
        present = servers.of_kind(kind_index)
        serving = [server.replica for server in present if server.serves]
        busy_before_s = busy_s
        busy_s = {server.replica: core.busy_s(server.replica, now) for server in present}
        if scaler.metric == "outstanding_requests":
            load = float(outstanding[serving].sum())
        elif scaler.metric == "waiting_requests":
            load = float(sum(core.waiting(replica) for replica in serving))
        else:
            load = sum(busy_s[r] - busy_before_s.get(r, busy_s[r]) for r in serving) / scaler.interval_s
        unserved = pending(kind.role)
        load += unserved
        wanted = math.ceil(load / scaler.target - 1e-9)
        if serving and abs(load / len(serving) / scaler.target - 1) <= scaler.tolerance:
            wanted = len(serving)
        # A waiting request is served, however high the target.
        least = max(scaler.min_replicas, _scheduled(scaler, now), 1 if unserved else 0)
        wanted = min(max(wanted, least), scaler.max_replicas)
        if wanted > len(present):
            for _ in range(wanted - len(present)):
                if order(kind_index, scaler.provisioning_s, kind.load_s):
                    changed_s = now
        elif wanted < len(present) and now - changed_s >= scaler.cool_down_s:
            # First those that don't serve yet, then the emptiest.
            present.sort(key=lambda server: (server.serves, outstanding[server.replica], -server.replica))
            for server in present[: len(present) - wanted]:
                servers.drain(server, now)
            changed_s = now


def break_down(
    env: simpy.Environment,
    servers: Servers,
    server: Server,
    failures: Failures,
    *,
    die: Callable[[Server], None],
    open_when_ready: Callable[[Server], None],
) -> ProcessGenerator:
    """Fail a server again and again; its requests are lost. After its repair it loads the model and serves."""
    random = _stream(servers.fleet.seed, server, 0)
    while True:
        yield env.timeout(random.exponential(failures.mtbf_s))
        if servers.is_done_with(server):
            return
        if not servers.computes(server):
            continue  # what doesn't run doesn't break; the time until the next failure has no memory
        die(server)
        if not math.isnan(server.drained_s):
            return
        repaired_s = env.now + random.exponential(failures.repair_s)
        server.ready_s = max(server.ready_s, repaired_s + server.kind.load_s)
        open_when_ready(server)
        yield env.timeout(server.ready_s - env.now)


def be_taken_back(
    env: simpy.Environment,
    servers: Servers,
    server: Server,
    spot: SpotInterruptions,
    there_s: float,
    *,
    die: Callable[[Server], None],
    open_when_ready: Callable[[Server], None],
) -> ProcessGenerator:
    """Take a spot server back after a notice, again and again; another one replaces it."""
    random = _stream(servers.fleet.seed, server, 1)
    yield env.timeout(there_s - env.now)
    while True:
        yield env.timeout(random.exponential(spot.mean_life_s))
        if servers.is_done_with(server):
            return
        servers.set_serving(server, False)
        there_s = env.now + spot.notice_s + spot.replacement_s
        server.ready_s = there_s + server.kind.load_s  # even if it is under repair: another server comes
        yield env.timeout(spot.notice_s)
        if servers.is_done_with(server):
            return
        die(server)
        if not math.isnan(server.drained_s):
            return
        server.away_s = env.now
        yield env.timeout(spot.replacement_s)
        if not math.isnan(server.drained_s):
            return
        server.unpaid_s += env.now - server.away_s
        server.away_s = math.nan
        open_when_ready(server)


def _scheduled(scaler: Autoscaler, now_s: float) -> int:
    """The least size that the schedule sets at this time; before its first entry, that of the last one."""
    if not scaler.schedule:
        return 0
    entries = sorted(scaler.schedule, key=lambda entry: entry.at_s)
    passed = [entry for entry in entries if entry.at_s <= now_s % scaler.period_s]
    return (passed or entries)[-1].replicas


def _stream(seed: int, server: Server, what: int) -> np.random.Generator:
    key = (1, server.kind_index, server.nth, what)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
