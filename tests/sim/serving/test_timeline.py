"""The time line keeps the rules of the trace format, and shows what the replay did."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from sim.serving.timeline import timeline, write_timeline

NAN = math.nan


def steps_by_hand() -> pd.DataFrame:
    """Replica 0: prefill, mixed, a jump of 10 decodes, idle, prefill. Replica 2: one prefill."""
    rows = [
        (0, 0.0, 0.1, 1, 0, 1, 100, 7, 1, 1),
        (0, 0.1, 0.3, 1, 1, 1, 50, 11, 0, 2),
        (0, 0.3, 0.8, 10, 2, 0, 0, 11, 0, 2),
        (0, 2.0, 2.5, 1, 0, 1, 30, 2, 0, 1),
        (2, 0.2, 0.4, 1, 0, 1, 20, 2, 0, 1),
    ]
    names = ["replica", "started_s", "ended_s", "steps", "decodes", "prefill_chunks", "prefill_tokens"]
    return pd.DataFrame(rows, columns=[*names, "kv_blocks", "waiting", "running"])


def requests_by_hand() -> pd.DataFrame:
    """Two that overlap, a third after both, one elsewhere, one rejected, one that timed out after its first token."""
    return pd.DataFrame(
        {
            "request_id": ["a", "b", "c", "d", "e", "f"],
            "replica": [0, 0, 0, 2, 0, 0],
            "arrived_s": [0.0, 0.05, 2.0, 0.2, 0.06, 0.07],
            "scheduled_s": [0.0, 0.1, 2.0, 0.2, NAN, 0.1],
            "first_token_s": [0.1, 0.3, 2.5, 0.4, NAN, 0.3],
            "finished_s": [0.8, 0.8, 2.5, 0.4, NAN, NAN],
            "prompt_tokens": [100, 50, 30, 20, 10, 10],
            "output_tokens": [12, 11, 1, 1, 5, 5],
            "preemptions": 0,
            "cached_tokens": 0,
            "tenant": ["x", None, "x", "x", "y", "y"],
            "status": ["finished"] * 4 + ["rejected", "timed_out"],
        }
    )


def check_rules(events: list[dict[str, Any]]) -> None:
    """What the format, and Perfetto beyond it, ask of every event."""
    process_of: dict[int, int] = {}
    named, open_until, latest = set(), defaultdict(list), 0
    for event in events:
        assert {"name", "ph", "pid", "tid"} <= set(event)
        assert isinstance(event["name"], str)
        assert event["name"]
        assert all(type(event[key]) is int and event[key] > 0 for key in ("pid", "tid"))
        # Perfetto knows tracks by their number alone.
        assert process_of.setdefault(event["tid"], event["pid"]) == event["pid"]
        if event["ph"] == "M":
            assert event["name"] in (
                "process_name",
                "process_sort_index",
                "thread_name",
                "thread_sort_index",
            )
            assert ("name" if event["name"].endswith("_name") else "sort_index") in event["args"]
            named.add((event["name"], event["pid"], event["tid"]))
            continue
        assert type(event["ts"]) is int
        assert event["ts"] >= latest  # in order
        latest = event["ts"]
        assert ("thread_name", event["pid"], event["tid"]) in named
        assert ("process_name", event["pid"], event["pid"]) in named
        if event["ph"] == "C":
            assert all(type(value) is int and value >= 0 for value in event["args"].values())
        elif event["ph"] == "i":
            assert event["s"] == "t"
        else:
            assert event["ph"] == "X"
            assert type(event["dur"]) is int
            assert event["dur"] >= 0
            stack = open_until[event["tid"]]
            while stack and stack[-1] <= event["ts"]:
                stack.pop()
            end = event["ts"] + event["dur"]
            assert not stack or end <= stack[-1]  # nested, never overlapping halfway
            stack.append(end)


def slices(events: list[dict[str, Any]], category: str, pid: int = 1) -> list[tuple[str, int, int]]:
    return [
        (e["name"], e["ts"], e["dur"])
        for e in events
        if e["ph"] == "X" and e["cat"] == category and e["pid"] == pid
    ]


def test_steps_by_hand() -> None:
    events = timeline(steps_by_hand())
    check_rules(events)
    assert slices(events, "step") == [
        ("prefill ×1", 0, 100_000),
        ("mixed: prefill ×1, decode ×1", 100_000, 200_000),
        ("decode ×2", 300_000, 500_000),
        ("prefill ×1", 2_000_000, 500_000),
    ]
    assert slices(events, "step", pid=3) == [("prefill ×1", 200_000, 200_000)]
    jump = next(e for e in events if e["name"] == "decode ×2")
    assert jump["args"] == {
        "steps": 10,
        "decodes": 2,
        "prefill_chunks": 0,
        "prefill_tokens": 0,
        "kv_blocks": 11,
        "waiting": 0,
        "running": 2,
        "step_ms": 50.0,
    }
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {1: "replica 0", 3: "replica 2"}


def test_counters_by_hand() -> None:
    events = timeline(steps_by_hand(), replicas=[0])

    def values(name: str) -> list[tuple[int, int]]:
        found = [e for e in events if e["ph"] == "C" and e["name"] == name]
        return [(e["ts"], *e["args"].values()) for e in found]

    # Nothing is held while the replica is idle.
    assert values("running") == [(0, 1), (100_000, 2), (800_000, 0), (2_000_000, 1), (2_500_000, 0)]
    assert values("waiting") == [(0, 1), (100_000, 0)]
    assert values("kv_blocks") == [(0, 7), (100_000, 11), (800_000, 0), (2_000_000, 2), (2_500_000, 0)]


def test_requests_by_hand() -> None:
    events = timeline(steps_by_hand(), requests_by_hand())
    check_rules(events)
    assert slices(events, "request") == [
        ("request a", 0, 800_000),
        ("request b", 50_000, 750_000),
        ("request f", 70_000, 230_000),  # to where it was last seen
        ("request c", 2_000_000, 500_000),
    ]
    track = {e["name"]: e["tid"] for e in events if e.get("cat") == "request" and e["pid"] == 1}
    assert len({track[name] for name in ("request a", "request b", "request f")}) == 3
    assert track["request c"] == track["request a"]  # free again
    of_b = [
        (e["name"], e["ts"], e["dur"])
        for e in events
        if e.get("cat") == "phase" and e["tid"] == track["request b"]
    ]
    assert of_b == [("queue", 50_000, 50_000), ("prefill", 100_000, 200_000), ("decode", 300_000, 500_000)]
    instants = [(e["name"], e["ts"]) for e in events if e["ph"] == "i"]
    assert instants == [("request e: rejected", 60_000)]
    arguments = {e["name"]: e["args"] for e in events if e.get("cat") == "request"}
    assert arguments["request a"]["tenant"] == "x"
    assert "tenant" not in arguments["request b"]
    assert arguments["request c"]["prompt_tokens"] == 30


def test_a_window_and_chosen_replicas() -> None:
    events = timeline(steps_by_hand(), requests_by_hand(), replicas=[0], from_s=1.0)
    check_rules(events)
    assert [name for name, *_ in slices(events, "step")] == ["prefill ×1"]
    assert [name for name, *_ in slices(events, "request")] == ["request c"]
    assert {e["pid"] for e in events} == {1}
    early = timeline(steps_by_hand(), requests_by_hand(), until_s=0.15)
    assert len(slices(early, "step")) == 2


def test_the_file_is_json_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    frame = requests_by_hand().assign(tenant='"é\n')
    count = write_timeline(path, steps_by_hand(), frame)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["displayTimeUnit"] == "ms"
    assert content["traceEvents"] == timeline(steps_by_hand(), frame)
    assert len(content["traceEvents"]) == count
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]
    with pytest.raises(InputError):
        write_timeline(tmp_path / "bad.json", steps_by_hand().iloc[:0])
    assert not (tmp_path / "bad.json").exists()


@pytest.mark.parametrize(
    ("column", "row", "value", "parts"),
    [
        ("started_s", 1, NAN, ["row 1", "started_s", "nan"]),
        ("ended_s", 2, math.inf, ["row 2", "ended_s", "inf"]),
        ("ended_s", 2, 0.2, ["row 2", "ended_s", "0.2", "not before started_s"]),
        ("started_s", 1, 0.05, ["row 1", "started_s", "0.05", "not before the end"]),
        ("started_s", 0, -1.0, ["row 0", "started_s", "-1"]),
        ("ended_s", 3, 1e12, ["row 3", "ended_s"]),
        ("kv_blocks", 3, -1, ["row 3", "kv_blocks", "-1"]),
    ],
)
def test_bad_steps_are_refused_by_row(column: str, row: int, value: float, parts: list[str]) -> None:
    steps = steps_by_hand()
    steps[column] = [value if i == row else old for i, old in enumerate(steps[column])]
    with pytest.raises(InputError) as refusal:
        timeline(steps)
    assert all(part in str(refusal.value) for part in parts)


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"steps: found no column decodes.*needed are replica"):
        timeline(steps_by_hand().drop(columns="decodes"))
    with pytest.raises(InputError, match="requests: found no column finished_s"):
        timeline(steps_by_hand(), requests_by_hand().drop(columns="finished_s"))
    with pytest.raises(InputError, match=r"replicas: found 1, .*has 0, 2"):
        timeline(steps_by_hand(), replicas=[1])
    with pytest.raises(InputError, match="nothing to draw"):
        timeline(steps_by_hand(), from_s=99.0)


TIMES = st.one_of(st.integers(0, 40).map(lambda tenth: tenth / 10), st.floats(0, 4), st.floats(0, 1e-5))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), TIMES, st.integers(0, 2)), min_size=1, max_size=12),
    st.lists(
        st.tuples(st.integers(-1, 2), st.tuples(TIMES, TIMES, TIMES, TIMES), st.integers(0, 3)), max_size=12
    ),
)
def test_any_record_keeps_the_rules(
    jumps: list[tuple[int, float, int]],
    requests: list[tuple[int, tuple[float, float, float, float], int]],
) -> None:
    rows, now = [], defaultdict(float)
    for replica, seconds, pause in jumps:
        start = now[replica] + pause / 3
        now[replica] = start + seconds
        rows.append(
            (replica, start, now[replica], 1 + pause, replica, 1 if not replica else pause, 5, 3, 1, 2)
        )
    steps = pd.DataFrame(rows, columns=steps_by_hand().columns)
    drawn = set(steps["replica"])
    known = []
    for replica, moments, missing in requests:
        times = [*sorted(moments)[: 4 - missing], *[NAN] * missing]
        known.append((replica, *times, 0, 0))
    columns = ["replica", "arrived_s", "scheduled_s", "first_token_s", "finished_s"]
    frame = pd.DataFrame(known, columns=[*columns, "preemptions", "cached_tokens"])
    events = timeline(steps, frame)
    check_rules(events)
    assert sum(e.get("cat") == "step" for e in events) == len(steps)
    # Every request of a drawn replica is there once, as a slice or as an instant.
    assert sum(e.get("cat") == "request" for e in events) == frame["replica"].isin(drawn).sum()
