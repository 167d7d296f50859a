"""Trace files of every format: read, refused by line, or read without their bad lines; and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from sim.traces.checks import TraceReport, longest_sorted
from sim.traces.read import read_trace, read_trace_report, write_trace
from sim.workload.conversations import conversations
from sim.workload.generate import generate

OWN = "arrived_s,prompt_tokens,output_tokens\n"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def write(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def skipped_rows(report: TraceReport) -> int:
    return sum(each.count for each in report.skipped)


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_burstgpt(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        BURSTGPT
        + "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,10,0,10,API log\n118,GPT-4,417,276,693,API log\n",
    )
    with pytest.raises(InputError, match=r"line 3: Response tokens: found '0'.*failed request"):
        read_trace(path)
    frame, report = read_trace_report(path, skip_bad=True)
    assert frame.to_dict(orient="list") == {
        "arrived_s": [5.0, 118.0],
        "prompt_tokens": [472, 417],
        "output_tokens": [18, 276],
        "traffic_class": ["conversation", "api"],
    }
    assert (report.format, report.rows, skipped_rows(report)) == ("burstgpt", 2, 1)
    assert report.skipped[0].first_lines == (3,)


def test_mooncake_blocks_become_ours(tmp_path: Path) -> None:
    """The first lines of the published conversation trace, in short."""
    path = write(
        tmp_path,
        lines(
            {"timestamp": 0, "input_length": 1100, "output_length": 500, "hash_ids": [0, 1, 2]},
            {"timestamp": 0, "input_length": 1000, "output_length": 3, "hash_ids": [0, 7]},
            {"timestamp": 3052, "input_length": 600, "output_length": 9, "hash_ids": [0]},
        ),
        "mooncake.jsonl",
    )
    frame = read_trace(path)
    assert frame["arrived_s"].tolist() == [0, 0, 3.052]
    first, second, third = frame["prefix_hashes"]
    assert len(first) == 1100 // 16
    assert first[:32] == second[:32] == third  # 512 tokens are 32 blocks; behind them the third tells nothing
    assert len(second) == 1000 // 16
    assert not set(first[32:]) & set(second[32:])
    assert len(set(first)) == len(first)
    coarse = read_trace(path, block_tokens=100)["prefix_hashes"]
    assert [len(keys) for keys in coarse] == [11, 10, 5]
    assert coarse.iloc[0][:5] == coarse.iloc[1][:5]
    assert coarse.iloc[0][5] != coarse.iloc[1][5]  # block 5 ends in the second 512 tokens


def test_a_mooncake_trace_needs_no_hashes(tmp_path: Path) -> None:
    path = write(tmp_path, lines({"timestamp": 1500, "input_length": 5, "output_length": 2}), "plain.jsonl")
    assert read_trace(path).to_dict(orient="list") == {
        "arrived_s": [1.5],
        "prompt_tokens": [5],
        "output_tokens": [2],
    }


def test_vidur(shared: Path) -> None:
    frame = read_trace(shared / "measured" / "vidur_34b_tp2_a100" / "trace_conv_every4th_2000.csv")
    assert len(frame) == 2000
    assert frame.iloc[0].tolist() == [0.0, 374, 44]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_usage_log_keeps_what_the_fleet_needs(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"arrived_s": 0.5, "prompt_tokens": 3, "output_tokens": 2, "tenant": "a", "priority": 1, "usd": 0.1},
        {"arrived_s": 0.5, "prompt_tokens": 4, "output_tokens": 1, "tenant": "b", "priority": 0, "usd": 0.2},
    ]
    text = pd.DataFrame(rows).to_csv(index=False) if suffix == "csv" else lines(*rows)
    frame = read_trace(write(tmp_path, text, f"log.{suffix}"))
    assert frame.columns.tolist() == ["arrived_s", "prompt_tokens", "output_tokens", "tenant", "priority"]
    assert frame["tenant"].tolist() == ["a", "b"]
    assert frame["priority"].tolist() == [1, 0]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"requests.{suffix}"
    talk = conversations("chat", 1.0, sessions=20, rng=1)
    write_trace(talk, path)
    again = read_trace(path)
    for name in ("arrived_s", "prompt_tokens", "output_tokens", "traffic_class", "after", "think_s"):
        assert again[name].tolist() == pytest.approx(talk[name].tolist(), nan_ok=True), name
    assert again["prefix_hashes"].tolist() == talk["prefix_hashes"].tolist()
    mixed = generate({"agent": 1.0, "chat": 1.0}, 3.0, requests=50, rng=2)
    write_trace(mixed, path)
    again = read_trace(path)
    np.testing.assert_array_equal(again["arrived_s"], mixed["arrived_s"])  # to the last digit
    assert again["prefix_hashes"].map(len).tolist() == mixed["prefix_hashes"].map(len).tolist()
    assert len({tuple(keys[:10]) for keys in again["prefix_hashes"] if keys}) == 1


@pytest.mark.parametrize(
    ("text", "name", "parts"),
    [
        (OWN + "0,1,1\n1,1,1,9\n", "t.csv", ["line 3", "more cells"]),
        (OWN + '0,1,1\n1,"1,1\n2,1,1\n', "t.csv", ["line 3"]),
        (OWN + "0,9,1\n", "t.csv", ["line 2", "prompt_tokens", "'9'", "context of 8"]),
        (OWN + "0,5,4\n", "t.csv", ["line 2", "output_tokens", "'4'", "context of 8"]),
        (OWN + "0,1,1\nnan,1,1\n", "t.csv", ["line 3", "arrived_s", "nan"]),
        (OWN + "inf,1,1\n", "t.csv", ["line 2", "arrived_s", "inf"]),
        (OWN + "0,1,1e30\n", "t.csv", ["line 2", "output_tokens", "1e30"]),
        ("arrived_s,prompt_tokens,output_tokens,tenant,tenant\n0,1,1,a,b\n", "t.csv", ["tenant twice"]),
        (
            "arrived_s,prompt_tokens,output_tokens,priority\n0,1,1,low\n",
            "t.csv",
            ["line 2", "priority", "low"],
        ),
        ("arrived_s,prompt_tokens,output_tokens,priority\n0,1,1,1.5\n", "t.csv", ["priority", "whole"]),
        (
            "arrived_s,prompt_tokens,output_tokens,after\n0,1,1,-1\n,1,1,1\n",
            "t.csv",
            ["line 3", "after", "'1'"],
        ),
        (
            "arrived_s,prompt_tokens,output_tokens,after\n0,1,1,\n,1,1,\n",
            "t.csv",
            ["line 3", "arrived_s", "''"],
        ),
        (BURSTGPT + "5,G,1,1,2,API log\n4,G,1,1,2,API log\n", "t.csv", ["line 3", "Timestamp", "before"]),
        (BURSTGPT + "-5,G,1,1,2,API log\n", "t.csv", ["line 2", "Timestamp", "-5"]),
        ('{"timestamp": 0, "input_length": 4}\n', "t.jsonl", ["line 1", "timestamp", "output_length"]),
        ('{"a": 1\n', "t.jsonl", ["line 1", "no JSON object"]),
        (
            lines({"arrived_s": 0, "prompt_tokens": 1, "output_tokens": 1}) + "{\n",
            "t.jsonl",
            ["line 2", "JSON"],
        ),
        (
            lines({"arrived_s": 0, "prompt_tokens": 1, "output_tokens": 1}) + "[]\n",
            "t.jsonl",
            ["line 2", "object"],
        ),
        (
            lines(
                {"arrived_s": 0, "prompt_tokens": 1, "output_tokens": 1}, {"arrived_s": 1, "prompt_tokens": 1}
            ),
            "t.jsonl",
            ["line 2", "output_tokens", "None"],
        ),
        (
            lines({"arrived_s": True, "prompt_tokens": 1, "output_tokens": 1}),
            "t.jsonl",
            ["arrived_s", "True"],
        ),
        (lines({"arrived_s": 0, "prompt_tokens": 10**400, "output_tokens": 1}), "t.jsonl", ["prompt_tokens"]),
        (lines({"arrived_s": 0, "prompt_tokens": float("nan"), "output_tokens": 1}), "t.jsonl", ["nan"]),
        (
            lines({"timestamp": 0, "input_length": 4, "output_length": 1, "hash_ids": ["x"]}),
            "t.jsonl",
            ["hash_ids", "'x'"],
        ),
        (
            lines({"arrived_s": 0, "prompt_tokens": 1, "output_tokens": 1, "prefix_hashes": 5}),
            "t.jsonl",
            ["prefix_hashes", "list"],
        ),
        ("\n\n", "t.csv", ["not a CSV"]),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, name: str, parts: list[str]) -> None:
    path = write(tmp_path, text, name)
    with pytest.raises(InputError) as refusal:
        read_trace(path, max_context_tokens=8 if "context of 8" in parts else None)
    message = str(refusal.value)
    assert all(part in message for part in [name, *parts]), message
    assert "\n" not in message
    assert len(message.replace(str(tmp_path), "")) < 400


def test_the_first_bad_line_is_named_whatever_is_wrong_with_it(tmp_path: Path) -> None:
    path = write(tmp_path, OWN + "0,1,1\n1,1,0\n2,0,1\nx,1,1\n")
    with pytest.raises(InputError, match=r"line 3: output_tokens: found '0'"):
        read_trace(path)


def test_bad_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        OWN + "0,1,1\n1,0,1\n2,1,1,1\n3,1,\n4,0,0\n\n9,1,1\n5,1,1\n-6,1,1\n7,1,99\nnan,1,1\n8,1,1\n",
    )
    frame, report = read_trace_report(path, skip_bad=True, max_context_tokens=50)
    assert frame["arrived_s"].tolist() == [0, 5, 8]  # without 9 the others are in order
    reasons = {each.reason: (each.count, each.first_lines) for each in report.skipped}
    counts = {reason.split(":")[0]: 0 for reason in reasons}
    for reason, (count, _) in reasons.items():
        counts[reason.split(":")[0]] += count
    assert counts == {
        "more cells than the header names columns": 1,
        "arrived_s": 4,  # empty, negative, NaN, before the line above
        "prompt_tokens": 2,
        "output_tokens": 2,  # empty, beyond the context
    }
    assert reasons["more cells than the header names columns"] == (1, (4,))
    assert reasons["prompt_tokens: allowed is a whole number of tokens ≥ 1"] == (2, (3, 6))
    assert report.rows == 3
    assert skipped_rows(report) == 9
    shown = dict(report.describe())
    assert shown["Requests"] == "3 (own format)"
    assert shown["Left out: prompt_tokens: allowed is a whole number of tokens ≥ 1"] == "2 (lines 3, 6)"


def test_a_good_file_reports_nothing(tmp_path: Path) -> None:
    frame, report = read_trace_report(write(tmp_path, OWN + "0,1,1\n"), skip_bad=True)
    assert len(frame) == report.rows == 1
    assert report.skipped == ()


def test_without_any_good_line_skipping_does_not_help(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no line is good; line 2: prompt_tokens"):
        read_trace(write(tmp_path, OWN + "0,0,1\n1,0,1\n"), skip_bad=True)


def test_who_waits_for_a_skipped_line_is_skipped_too(tmp_path: Path) -> None:
    rows = [
        "0,1,1,-1,0",
        ",1,1,0,2",
        "1,0,1,-1,0",
        ",1,1,2,1",
        ",1,1,3,1",
        "2,1,1,-1,0",
        ",1,1,5,3",
        "3,1,1,-1,0,0",
    ]
    path = write(tmp_path, "arrived_s,prompt_tokens,output_tokens,after,think_s\n" + "\n".join(rows))
    frame, report = read_trace_report(path, skip_bad=True)
    assert frame["after"].tolist() == [-1, 0, -1, 2]
    assert frame["think_s"].tolist() == [0, 2, 0, 3]
    assert skipped_rows(report) == 4
    broken = ["0,1,1,-1,0,9", "1,1,1,-1,0", ",1,1,0,0", ",1,1,1,0"]
    path = write(tmp_path, "arrived_s,prompt_tokens,output_tokens,after,think_s\n" + "\n".join(broken))
    frame, report = read_trace_report(path, skip_bad=True)
    assert frame["after"].tolist() == [-1, 0]  # rows are counted by line, broken ones too


def test_one_bad_line_in_many_is_found(tmp_path: Path) -> None:
    rows = [f"{i},5,{i % 7 + 1}" for i in range(40_000)]
    good = write(tmp_path, OWN + "\n".join(rows))
    assert len(read_trace(good)) == 40_000
    for bad, what in (
        ("30000,five,1", "prompt_tokens"),
        ('30000,"5,1', "prompt_tokens"),
        ("1,5,1", "arrived_s"),
        ("1,2,3,4", "more cells"),
        ("30000,5", "output_tokens"),
    ):
        rows[30_000] = bad
        path = write(tmp_path, OWN + "\n".join(rows))
        with pytest.raises(InputError, match=rf"trace\.csv: line 30002: .*{what}"):
            read_trace(path)
        frame, report = read_trace_report(path, skip_bad=True)
        assert len(frame) == 39_999
        assert report.skipped[0].first_lines == (30_002,)


def test_bytes_that_are_no_text_spoil_their_line_only(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xef\xbb\xbf" + OWN.encode() + b"0,1,1\r\n1,\xff,1\r\n2,1,1\r\n")
    with pytest.raises(InputError, match=r"line 3: not UTF-8"):
        read_trace(path)
    assert read_trace(path, skip_bad=True)["arrived_s"].tolist() == [0, 2]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=12))
def test_as_few_lines_as_possible_are_left_out_of_order(times: list[int]) -> None:
    kept = longest_sorted(np.array(times, dtype=np.float64))
    chosen = [times[position] for position in kept]
    assert chosen == sorted(chosen)
    assert (np.diff(kept) > 0).all()
    best = [1] * len(times)
    for later in range(len(times)):
        best[later] = max([1] + [best[i] + 1 for i in range(later) if times[i] <= times[later]])
    assert len(kept) == max(best)
