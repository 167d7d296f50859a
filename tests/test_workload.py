"""Traffic: lengths that match the published statistics, Poisson arrivals, traces read or refused by line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from sim.trace import check_requests
from sim.workload import TRAFFIC_CLASSES, TrafficClass, arrival_times, generate, hourly_shape, read_trace

HEADER = "arrived_s,prompt_tokens,output_tokens\n"
AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.mark.parametrize("name", sorted(TRAFFIC_CLASSES))
def test_lengths_have_the_median_and_mean_of_their_class(name: str) -> None:
    kind = TRAFFIC_CLASSES[name]
    frame = generate({name: 1.0}, 1.0, requests=40_000, rng=1)
    for what in ("prompt_tokens", "output_tokens"):
        median, mean = getattr(kind, f"{what}_median"), getattr(kind, f"{what}_mean")
        assert frame[what].median() == pytest.approx(median, rel=0.05, abs=1)
        assert frame[what].mean() == pytest.approx(mean, rel=0.05)


def test_classes_fit_the_real_traces(shared: Path) -> None:
    for name, file in (("chat", "azure_2023_conv.csv"), ("code", "azure_2023_code.csv")):
        kind, trace = TRAFFIC_CLASSES[name], read_trace(shared / "traces" / file)
        for what in ("prompt_tokens", "output_tokens"):
            assert trace[what].median() == pytest.approx(getattr(kind, f"{what}_median"), rel=0.01, abs=0.5)
            assert trace[what].mean() == pytest.approx(getattr(kind, f"{what}_mean"), rel=0.01)


def test_every_class_says_where_its_numbers_come_from() -> None:
    assert all("Azure" in kind.source or "assumed" in kind.source for kind in TRAFFIC_CLASSES.values())


def test_arrivals_are_poisson() -> None:
    arrived_s = generate({"chat": 1.0}, 5.0, requests=50_000, rng=2)["arrived_s"].to_numpy()
    gaps = np.diff(arrived_s)
    assert gaps.mean() == pytest.approx(0.2, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.02)
    counts = np.bincount((arrived_s // 10).astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.1)  # index of dispersion


def test_same_seed_same_requests_at_any_rate() -> None:
    mix = {"chat": 0.7, "code": 0.3}
    slow, fast = (generate(mix, rate, requests=500, rng=3) for rate in (1.0, 4.0))
    pd.testing.assert_frame_equal(slow.drop(columns="arrived_s"), fast.drop(columns="arrived_s"))
    np.testing.assert_allclose(slow["arrived_s"], 4 * fast["arrived_s"])
    assert not slow["prompt_tokens"].equals(generate(mix, 1.0, requests=500, rng=4)["prompt_tokens"])


def test_a_longer_window_begins_with_the_same_arrivals() -> None:
    short, long = (arrival_times(2.0, duration_s=seconds, rng=5) for seconds in (500, 1000))
    assert (short < 500).all()
    assert len(long) == pytest.approx(2000, rel=0.1)
    np.testing.assert_allclose(short, long[: len(short)])


def test_arrivals_follow_the_hours() -> None:
    shape = np.array([3.0, 1.0])
    arrived_s = arrival_times(1.0, duration_s=200 * 3600, rng=6, shape=shape)
    by_parity = np.bincount((arrived_s // 3600).astype(int) % 2) / (100 * 3600)
    assert by_parity == pytest.approx([1.5, 0.5], rel=0.02)


def test_strata_pin_down_mix_and_mean() -> None:
    mix = {"chat": 1.0, "code": 3.0}
    means, loose = (
        [
            generate(mix, 1.0, requests=2_000, rng=seed, stratified=kind)["output_tokens"].mean()
            for seed in range(8)
        ]
        for kind in (True, False)
    )
    assert np.mean(means) == pytest.approx((211 + 3 * 28) / 4, rel=0.02)
    assert np.std(means) < np.std(loose) / 2


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 4_000), st.integers(0, 100), st.booleans())
def test_requests_fit_in_the_context(longest: int, seed: int, stratified: bool) -> None:
    frame = generate(
        {"rag": 1, "agent": 1},
        1.0,
        requests=50,
        rng=seed,
        max_context_tokens=longest,
        stratified=stratified,
    )
    assert ((frame["prompt_tokens"] + frame["output_tokens"]) <= longest).all()
    assert (frame[["prompt_tokens", "output_tokens"]] >= 1).all().all()


def test_shared_prefixes_are_full_blocks_within_the_prompt() -> None:
    frame = generate({"agent": 1.0, "chat": 1.0}, 1.0, requests=400, rng=5, block_tokens=64)
    blocks = frame["prefix_hashes"].map(len)
    assert set(blocks) >= {0, TRAFFIC_CLASSES["agent"].shared_prefix_tokens // 64}
    assert (blocks * 64 <= frame["prompt_tokens"]).all()
    assert (blocks[frame["traffic_class"] == "chat"] == 0).all()


@pytest.mark.parametrize(
    ("traffic", "rate_rps", "requests", "parts"),
    [
        ({"chatt": 1.0}, 1.0, 5, ["traffic.chatt", "chat", "agent"]),
        ({"chat": -1.0, "code": 2.0}, 1.0, 5, ["traffic.chat", "-1"]),
        ({"chat": math.nan}, 1.0, 5, ["traffic.chat", "nan"]),
        ({"chat": 0.0}, 1.0, 5, ["no class has a share above 0"]),
        ({}, 1.0, 5, ["no class has a share above 0"]),
        ({"chat": 1.0}, 0.0, 5, ["rate_rps", "0"]),
        ({"chat": 1.0}, math.nan, 5, ["rate_rps", "nan"]),
        ({"chat": 1.0}, 1.0, -1, ["requests", "-1"]),
        ({"chat": 1.0}, 1.0, None, ["requests or duration_s"]),
    ],
)
def test_impossible_traffic_is_refused(
    traffic: dict[str, float], rate_rps: float, requests: int | None, parts: list[str]
) -> None:
    with pytest.raises(InputError) as refusal:
        generate(traffic, rate_rps, requests=requests, rng=0)
    assert all(part in str(refusal.value) for part in parts)


def test_a_class_with_mean_below_median_is_refused() -> None:
    with pytest.raises(InputError, match=r"odd: output_tokens.*mean 5"):
        TrafficClass("odd", 10, 20, 10, 5)


def test_the_week_has_168_hours_and_mean_1() -> None:
    shape = hourly_shape()
    assert shape.shape == (7, 24)
    assert shape.mean() == pytest.approx(1.0)
    assert (shape > 0).all()
    days = shape.mean(axis=1)
    assert days[5:].max() < days[:5].min()


def test_own_trace_keeps_its_times(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(HEADER.strip() + ",user\n2.5,10,3,a\n2.5,20,1,b\n7,30,2,c\n\n\n")
    frame = read_trace(path)
    assert frame.to_dict(orient="list") == {
        "arrived_s": [2.5, 2.5, 7.0],
        "prompt_tokens": [10, 20, 30],
        "output_tokens": [3, 1, 2],
    }


def test_azure_trace_starts_at_0(shared: Path) -> None:
    frame = read_trace(shared / "traces" / "azure_2023_conv.csv")
    assert len(frame) == 19_366
    assert frame["arrived_s"].iloc[0] == 0
    assert frame["arrived_s"].is_monotonic_increasing
    assert frame["arrived_s"].iloc[1] == pytest.approx(4.314579)
    assert frame["prompt_tokens"].max() == 14_050


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (HEADER + "0,1,1\n1,0,2\n", ["line 3", "prompt_tokens", "'0'", "≥ 1"]),
        (HEADER + "0,1,1\n\n1,5,2\n", ["line 3", "arrived_s", "found ''"]),
        (HEADER + "0,1,1\n1,,2\n", ["line 3", "prompt_tokens", "found ''"]),
        (HEADER + "0,1.5,1\n", ["line 2", "prompt_tokens", "1.5", "whole"]),
        (HEADER + "0,many,1\n", ["line 2", "prompt_tokens", "many"]),
        (HEADER + "-1,1,1\n", ["line 2", "arrived_s", "-1"]),
        (HEADER + "nan,1,1\n", ["line 2", "arrived_s", "nan"]),
        (HEADER + "5,1,1\n4,1,1\n", ["line 3", "arrived_s", "4", "before"]),
        (HEADER + "0,1,1,7\n", ["more cells"]),
        (HEADER + "0,1,1\n1,1\n", ["line 3", "output_tokens"]),
        (HEADER, ["no requests"]),
        ("", ["not a CSV"]),
        ("when,prompt\n1,2\n", ["line 1", "when", "arrived_s", "TIMESTAMP"]),
        (AZURE_HEADER + "yesterday,1,1\n", ["line 2", "TIMESTAMP", "yesterday"]),
        (AZURE_HEADER + "2023-11-16 18:15:46.68,1,0\n", ["line 2", "GeneratedTokens", "'0'"]),
        (
            AZURE_HEADER + "2023-11-16 18:15:46.68,1,1\n2023-11-16 18:15:45,1,1\n",
            ["line 3", "TIMESTAMP", "18:15:45"],
        ),
    ],
)
def test_a_bad_trace_is_refused_by_file_and_line(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(InputError) as refusal:
        read_trace(path)
    message = str(refusal.value)
    assert all(part in message for part in ["trace.csv", *parts])
    assert "\n" not in message


def test_a_missing_folder_or_binary_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv"):
        read_trace(tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match="no such file"):
        read_trace(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="not a CSV file"):
        read_trace(tmp_path / "binary.csv")


def test_frames_are_refused_by_row() -> None:
    with pytest.raises(InputError, match=r"row 1: output_tokens: found 0"):
        check_requests(
            pd.DataFrame(
                {"arrived_s": [0, 1], "prompt_tokens": [1, 1], "output_tokens": [1, 0]}, index=[7, 8]
            )
        )
