"""The request level: requests on a fleet of replicas, on a simulated clock.

Each replica runs the engine's own scheduling policy and takes as long for a step as a step-time model says; it jumps
from change to change of its batch (`sim.serving.replica` explains how, `sim/serving/c/` does it fast). SimPy is the
clock of the fleet around them (`sim.serving.fleet_run`). What the numbers mean is in `sim.serving.metrics`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from engine.batch import SchedulerConfig
from engine.errors import InputError
from engine.profile.step_time import StepTimeModel
from sim.serving.fleet_config import ROUTERS, Fleet, ReplicaSpec
from sim.serving.fleet_run import FleetRun
from sim.serving.replica_tables import STATUSES
from sim.serving.stats import ReplayStats
from sim.workload.requests import check_requests


def replay(
    requests: pd.DataFrame,
    step_time: StepTimeModel,
    scheduler: SchedulerConfig | None = None,
    replicas: int = 1,
    router: str = "least_outstanding",
) -> pd.DataFrame:
    """Run requests through a fleet of equal replicas.

    Args:
        requests: arrived_s (in order), prompt_tokens, output_tokens; optionally request_id, priority (lower first),
            prefix_hashes (a list for each request: the content hash of each full block of its prompt), tenant,
            traffic_class, and after with think_s (the row that must finish first, −1 for none, and the seconds
            between that finish and this arrival; its own arrived_s is NaN).
        step_time: seconds per step (see `engine.profile.step_time.StepTimeModel`); its `decode_run` is used if it has
            one.
        scheduler: limits of a replica.
        replicas: how many.
        router: which replica a request goes to when it arrives (see `sim.serving.routing`).

    Returns:
        One row per request, in the order given: request_id, arrived_s, scheduled_s (first time in a batch),
        first_token_s, finished_s, preemptions, cached_tokens, replica.

    Raises:
        InputError: a column is missing, a row is bad, a request could never fit in the KV cache, an unknown
            router, no replica, or a step-time model that gives a negative or infinite time.
    """
    frame, _ = replay_fleet(requests, equal_replicas(step_time, scheduler, replicas, router))
    return frame[
        [
            "request_id", "arrived_s", "scheduled_s", "first_token_s", "finished_s", "preemptions",
            "cached_tokens", "replica",
        ]
    ]  # fmt: skip


def equal_replicas(
    step_time: StepTimeModel,
    scheduler: SchedulerConfig | None = None,
    replicas: int = 1,
    router: str = "least_outstanding",
) -> Fleet:
    """A fleet of equal replicas that always serve.

    Raises:
        InputError: an unknown router, no replica, or no step-time model.
    """
    if isinstance(replicas, bool) or replicas != int(replicas) or replicas < 1:
        raise InputError(f"replicas: found {replicas}, allowed is a whole number ≥ 1")
    if router not in ROUTERS:
        raise InputError(f"router: found {router!r}, allowed are {', '.join(ROUTERS)}")
    try:
        kind = ReplicaSpec(
            step_time=step_time, scheduler=scheduler or SchedulerConfig(), replicas=int(replicas)
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return Fleet(kinds=(kind,), router=router)  # type: ignore[arg-type]


def replay_fleet(
    requests: pd.DataFrame, fleet: Fleet, *, record_steps: bool = False, reference: bool = False
) -> tuple[pd.DataFrame, ReplayStats]:
    """Run requests through any fleet (see `sim.serving.fleet_config`).

    Args:
        requests: as `replay`.
        fleet: replicas of any kinds, router, limits, retries and time-outs.
        record_steps: keep every run of steps in `ReplayStats.records`.
        reference: run the plain Python replicas.

    Returns:
        The frame that `replay` returns, with prompt_tokens and output_tokens, status ("finished", "timed_out",
        "rejected" or "lost"), attempts and left_s of each request, and what the replay counted. Times that never came
        are NaN; arrived_s is that of the first attempt. left_s: when the request was out of the fleet, answered or
        given up (a step under way then still computes it).

    Raises:
        InputError: as `replay`.
    """
    checked = check_requests(requests)
    for kind in fleet.kinds:
        _check_fit(checked, kind.scheduler, kind.role)
    run = FleetRun(checked, fleet, record_steps, reference)
    run.run()
    return _frame(run), _stats(run)


def _frame(run: FleetRun) -> pd.DataFrame:
    given, first = run.requests, run.rows[: run.count]
    halves = [first] if len(run.rows) == run.count else [first, run.rows[run.count :]]
    replica = first["replica"]
    if len(halves) > 1:  # who wrote the answer, if it had more than the first token
        replica = np.where(halves[1]["replica"] >= 0, halves[1]["replica"], replica)
    columns: dict[str, Any] = {
        "request_id": given["request_id"].to_numpy() if "request_id" in given else np.arange(run.count),
        "arrived_s": run.arrived_s,
        "scheduled_s": first["scheduled_s"].copy(),
        "first_token_s": first["first_token_s"].copy(),
        "finished_s": run.finished_s,
        "left_s": run.left_s,
        "preemptions": sum(half["preemptions"].astype(np.int64) for half in halves),
        "cached_tokens": first["cached"].astype(np.int64),
        "replica": replica.astype(np.int64),
        "prompt_tokens": given["prompt_tokens"].to_numpy(),
        "output_tokens": given["output_tokens"].to_numpy(),
        "status": pd.Categorical.from_codes(run.status, categories=pd.Index(STATUSES)),
        "attempts": run.attempts,
    }
    for name in ("traffic_class", "tenant", "priority"):
        if name in given:
            columns[name] = given[name].to_numpy()
    return pd.DataFrame(columns)


def _stats(run: FleetRun) -> ReplayStats:
    up_s = run.servers.paid_s()
    replicas = len(up_s)
    counts = run.core.counts[:replicas]
    names = (
        "busy_s", "batch_time_s", "kv_block_time_s", "prefill_tokens", "decode_tokens", "attention_pairs",
        "context_tokens", "steps", "events",
    )  # fmt: skip
    kinds = {server.replica: server.kind for server in run.servers.servers}
    return ReplayStats(
        started_s=run.started_s,
        ended_s=run.ended_s,
        request_time_s=float(counts["request_time_s"].sum()) + run.waited_s,
        **{name: counts[name].astype(np.float64) for name in names},
        up_s=up_s,
        records=pd.DataFrame(run.core.records()) if run.record_steps else None,
        kinds=tuple(kinds[index] for index in range(replicas)),
    )


def _check_fit(requests: pd.DataFrame, config: SchedulerConfig, role: str) -> None:
    """Refuse what could never run on a replica of this kind."""
    # The last token is produced but never cached; a prefill replica gives one token only.
    outputs = 1 if role == "prefill" else requests["output_tokens"].to_numpy()
    needed = requests["prompt_tokens"].to_numpy() + outputs - 1
    too_long = -(-needed // config.block_tokens) > config.num_blocks
    if too_long.any():
        row = int(np.argmax(too_long))
        raise InputError(
            f"requests: row {row}: prompt_tokens and output_tokens need {needed[row]} tokens of KV cache, allowed "
            f"are the {config.cache_tokens} that a replica has"
        )
