"""A time line of replicas to look at: Chrome trace JSON, which ui.perfetto.dev and chrome://tracing open.

Each replica is a process. Its first track holds the engine's steps, one slice per jump (many equal decode steps are
one slice), with counters of running and waiting requests and of KV blocks held. Below, each request is a slice with
its phases nested in it: queue (arrival to first time in a batch), prefill (to the first token), decode (to the last).
A phase that took no time has no slice. A request that never finished ends where it was last seen; one that was
never served is an instant.

The format ("Trace Event Format", Google 2016): complete events "X" with `ts` and `dur` in microseconds, counters "C",
instants "i", names "M". Slices of one track must nest, a viewer drops those that overlap halfway; so requests that
overlap in time lie on different tracks, each on the first that is free. Times are rounded to whole microseconds from
their two ends, so that what touched still touches. Perfetto knows a track by its number alone: no number appears in
two processes.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError
from engine.utils.files import write_atomically

STEP_COLUMNS = (
    *("replica", "started_s", "ended_s", "steps", "decodes", "prefill_chunks", "prefill_tokens"),
    *("kv_blocks", "waiting", "running"),
)
REQUEST_COLUMNS = (
    *("replica", "arrived_s", "scheduled_s", "first_token_s", "finished_s"),
    *("preemptions", "cached_tokens"),
)
COUNTERS = {"running": "requests", "waiting": "requests", "kv_blocks": "blocks"}
_ARGUMENTS = (
    "prompt_tokens",
    "output_tokens",
    "cached_tokens",
    "preemptions",
    "traffic_class",
    "tenant",
    "status",
)
_MICRO = 1e6
_LATEST_S = 2**53 / _MICRO  # whole microseconds beyond are not exact in a viewer

Event = dict[str, Any]


def write_timeline(
    path: str | Path,
    steps: pd.DataFrame,
    frame: pd.DataFrame | None = None,
    *,
    replicas: Iterable[int] | None = None,
    from_s: float = 0.0,
    until_s: float = math.inf,
) -> int:
    """Write the time line as JSON, whole or not at all; returns how many events it holds.

    Arguments and errors as of `timeline`. About 150 bytes per event.
    """
    events = timeline(steps, frame, replicas=replicas, from_s=from_s, until_s=until_s)
    lines = ",\n".join(json.dumps(event, separators=(",", ":"), allow_nan=False) for event in events)
    write_atomically(path, f'{{"displayTimeUnit":"ms","traceEvents":[\n{lines}\n]}}\n')
    return len(events)


def timeline(
    steps: pd.DataFrame,
    frame: pd.DataFrame | None = None,
    *,
    replicas: Iterable[int] | None = None,
    from_s: float = 0.0,
    until_s: float = math.inf,
) -> list[Event]:
    """The trace events of replicas: names first, then all others in the order of time.

    Args:
        steps: record of steps, a row per jump: replica, started_s, ended_s, steps, decodes, prefill_chunks,
            prefill_tokens, kv_blocks, waiting, running.
        frame: the requests as the replay gave them; None leaves them out.
        replicas: which to draw; None draws all in `steps`.
        from_s: only steps and requests that touch the time from here …
        until_s: … to here.

    Raises:
        InputError: a column is missing, a row of steps has a bad time or a bad number, or there is nothing to draw.
    """
    _check_columns("steps", steps, STEP_COLUMNS)
    _check_steps(steps)
    known = sorted({int(replica) for replica in steps["replica"]})
    drawn = known if replicas is None else sorted({int(replica) for replica in replicas})
    for replica in drawn:
        if replica not in known:
            raise InputError(f"replicas: found {replica}, the record of steps has {_listed(known)}")
    steps = steps[
        steps["replica"].isin(drawn) & (steps["started_s"] <= until_s) & (steps["ended_s"] >= from_s)
    ]
    if steps.empty:
        raise InputError(f"steps: found none between {from_s:g} and {until_s:g} s, nothing to draw")
    if frame is not None:
        _check_columns("requests", frame, REQUEST_COLUMNS)
        seen = frame[["arrived_s", "scheduled_s", "first_token_s", "finished_s"]]
        ended_s = seen.max(axis=1)  # skips what never came
        frame = frame[(frame["arrived_s"] <= until_s) & (ended_s >= from_s) & frame["replica"].isin(drawn)]
    names: list[Event] = []
    events: list[Event] = []
    tracks = count(drawn[-1] + 2)  # above the processes, whose own number their steps' track takes
    for replica in drawn:
        pid = replica + 1  # process 0 means the idle task to viewers
        names += [
            _name("process_name", pid, pid, name=f"replica {replica}"),
            _name("process_sort_index", pid, pid, sort_index=replica),
            _name("thread_name", pid, pid, name="steps"),
            _name("thread_sort_index", pid, pid, sort_index=0),
        ]
        mine = steps[steps["replica"] == replica]
        events += _step_events(mine, pid)
        events += _counter_events(mine, pid)
        if frame is not None:
            _request_events(frame[frame["replica"] == replica], pid, tracks, names, events)
    # Stable: a request stays before the phases that begin with it.
    events.sort(key=lambda event: event["ts"])
    return names + events


def _step_events(steps: pd.DataFrame, pid: int) -> list[Event]:
    starts, ends = _spans(steps)
    shown = [*STEP_COLUMNS[3:], *(name for name in ("context_tokens",) if name in steps)]
    numbers = {name: steps[name].astype(np.int64).tolist() for name in shown}
    result = []
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        row = {name: values[i] for name, values in numbers.items()}
        step_ms = (end - start) / 1000 / max(1, row["steps"])
        kind = _kind(row["prefill_chunks"], row["decodes"])
        result.append(_slice(kind, "step", pid, pid, start, end, {**row, "step_ms": round(step_ms, 3)}))
    return result


def _kind(chunks: int, decodes: int) -> str:
    if chunks and decodes:
        return f"mixed: prefill ×{chunks}, decode ×{decodes}"
    return f"prefill ×{chunks}" if chunks else f"decode ×{decodes}"


def _counter_events(steps: pd.DataFrame, pid: int) -> list[Event]:
    """A value at each change; nothing is in a batch between two jumps that don't touch."""
    starts, ends = _spans(steps)
    idle = np.append(starts[1:] > ends[:-1], True)[: len(steps)]
    result = []
    for name, unit in COUNTERS.items():
        last = None
        values = steps[name].astype(np.int64).tolist()
        for value, start, end, pause in zip(
            values, starts.tolist(), ends.tolist(), idle.tolist(), strict=True
        ):
            if value != last:
                result.append(_counter(name, unit, pid, start, value))
            last = value
            if pause and value:
                result.append(_counter(name, unit, pid, end, 0))
                last = 0
    return result


def _request_events(
    requests: pd.DataFrame, pid: int, tracks: count[int], names: list[Event], events: list[Event]
) -> None:
    """Put each request on the first track that is free when it arrives."""
    ids = requests["request_id"].tolist() if "request_id" in requests else requests.index.tolist()
    times = np.stack([requests[name].to_numpy(dtype=np.float64) for name in REQUEST_COLUMNS[1:5]], axis=1)
    # Each not before the one above, whatever rounding did; maximum.accumulate would carry NaN on.
    moments = np.where(np.isnan(times), math.nan, np.fmax.accumulate(np.rint(times * _MICRO), axis=1))
    known = {name: requests[name].tolist() for name in _ARGUMENTS if name in requests}
    free: list[int] = []  # positions of tracks without a request now, the topmost first
    taken: list[tuple[int, int]] = []  # (end, position)
    numbers: list[int] = []
    for i in np.argsort(times[:, 0], kind="stable").tolist():
        seen = [None if math.isnan(moment) else int(moment) for moment in moments[i].tolist()]
        arrived, scheduled, first, finished = seen
        if arrived is None:
            continue  # the request that it should have followed never finished
        end = max(moment for moment in seen if moment is not None)
        while taken and taken[0][0] <= arrived:
            heapq.heappush(free, heapq.heappop(taken)[1])
        if not free:
            numbers.append(next(tracks))
            heapq.heappush(free, len(numbers) - 1)
            names += [
                _name("thread_name", pid, numbers[-1], name=f"requests {len(numbers)}"),
                _name("thread_sort_index", pid, numbers[-1], sort_index=len(numbers)),
            ]
        row = heapq.heappop(free)
        heapq.heappush(taken, (end, row))
        arguments = {name: _plain(values[i]) for name, values in known.items() if not _missing(values[i])}
        label = f"request {ids[i]}"
        if end == arrived:
            status = arguments.get("status", "not served")
            events.append(_instant(f"{label}: {status}", pid, numbers[row], arrived, arguments))
            continue
        events.append(_slice(label, "request", pid, numbers[row], arrived, end, arguments))
        phases = (("queue", arrived, scheduled), ("prefill", scheduled, first), ("decode", first, finished))
        for phase, start, stop in phases:
            if start is not None and stop is not None and stop > start:
                events.append(_slice(phase, "phase", pid, numbers[row], start, stop, {}))


def _slice(
    name: str, category: str, pid: int, tid: int, start: int, end: int, arguments: dict[str, Any]
) -> Event:
    event = {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": start,
        "dur": end - start,
        "pid": pid,
        "tid": tid,
    }
    return {**event, "args": arguments} if arguments else event


def _counter(name: str, unit: str, pid: int, at: int, value: int) -> Event:
    return {"name": name, "ph": "C", "ts": at, "pid": pid, "tid": pid, "args": {unit: value}}


def _instant(name: str, pid: int, tid: int, at: int, arguments: dict[str, Any]) -> Event:
    event = {"name": name, "cat": "request", "ph": "i", "s": "t", "ts": at, "pid": pid, "tid": tid}
    return {**event, "args": arguments}


def _name(kind: str, pid: int, tid: int, **arguments: Any) -> Event:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": arguments}


def _spans(steps: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whole microseconds in which jumps begin and end; none begins before the one above has ended."""
    starts, ends = (
        np.rint(steps[name].to_numpy(dtype=np.float64) * _MICRO).astype(np.int64)
        for name in ("started_s", "ended_s")
    )
    starts[1:] = np.maximum(starts[1:], ends[:-1])
    return starts, np.maximum(starts, ends)


def _plain(value: Any) -> Any:
    """A number or a text that JSON knows."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, (str, int, float, bool)) else str(value)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _check_columns(what: str, frame: pd.DataFrame, needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in frame]
    if missing:
        raise InputError(f"{what}: found no column {', '.join(missing)}; needed are {', '.join(needed)}")


def _check_steps(steps: pd.DataFrame) -> None:
    def refuse(name: str, bad: NDArray[np.bool_], allowed: str) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(f"steps: row {row}: {name}: found {steps[name].iloc[row]}, allowed is {allowed}")

    for name in STEP_COLUMNS:
        values = steps[name].to_numpy(dtype=np.float64)
        highest = _LATEST_S if name.endswith("_s") else 2**53
        refuse(name, ~((values >= 0) & (values <= highest)), f"a number from 0 to {highest:.4g}")
    started, ended = steps["started_s"].to_numpy(), steps["ended_s"].to_numpy()
    refuse("ended_s", ended < started, "a time not before started_s")
    replicas = steps["replica"].to_numpy()
    order = np.argsort(replicas, kind="stable")
    same = replicas[order][1:] == replicas[order][:-1]
    early = np.zeros(len(steps), dtype=np.bool_)
    early[order[1:]] = same & (started[order][1:] < ended[order][:-1] - 1 / _MICRO)
    refuse("started_s", early, "a time not before the end of its replica's jump above")


def _listed(replicas: Sequence[int]) -> str:
    if len(replicas) <= 10:
        return ", ".join(map(str, replicas))
    return f"{len(replicas)} from {replicas[0]} to {replicas[-1]}"
