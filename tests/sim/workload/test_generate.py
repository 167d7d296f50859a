"""Traffic: lengths that match the published statistics, Poisson arrivals, traces read or refused by line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from sim.traces.read import read_trace
from sim.workload.arrivals import arrival_times, hourly_shape
from sim.workload.generate import generate
from sim.workload.requests import check_requests
from sim.workload.traffic_classes import TRAFFIC_CLASSES, TrafficClass, audio_tokens, image_tokens

HEADER = "arrived_s,prompt_tokens,output_tokens\n"
AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
PINNED_ARRIVALS = pytest.approx([0.5986705199589979, 0.6327695883773055, 1035.0164751799769], rel=1e-12)
PINNED_PROMPTS = [1686, 2487, 1295, 860, 6509]
PINNED_OUTPUTS = 343921
PINNED_STRATIFIED = 325593


@pytest.mark.parametrize("name", sorted(TRAFFIC_CLASSES))
def test_lengths_have_the_median_and_mean_of_their_class(name: str) -> None:
    kind = TRAFFIC_CLASSES[name]
    frame = generate({name: 1.0}, 1.0, requests=40_000, rng=1)
    if kind.media_tokens_median:
        assert frame["media_tokens"].median() == pytest.approx(kind.media_tokens_median, rel=0.05)
        assert frame["media_tokens"].mean() == pytest.approx(kind.media_tokens_mean, rel=0.05)
        frame["prompt_tokens"] -= frame["media_tokens"]
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


def test_a_seed_means_the_same_requests_as_ever() -> None:
    """Cached surfaces and companies' results hang on these numbers."""
    frame = generate({"chat": 0.7, "code": 0.2, "agent": 0.1}, 2.0, requests=2000, rng=7)
    assert frame["arrived_s"].iloc[[0, 1, -1]].tolist() == PINNED_ARRIVALS
    assert frame["prompt_tokens"].iloc[:5].tolist() == PINNED_PROMPTS
    assert int(frame["output_tokens"].sum()) == PINNED_OUTPUTS
    drawn = generate({"chat": 1.0}, 2.0, requests=300, rng=7, stratified=True, max_context_tokens=2048)
    assert int(drawn["prompt_tokens"].sum()) == PINNED_STRATIFIED


@pytest.mark.parametrize("wanted", [-0.6, 0.3, 0.9])
@pytest.mark.parametrize("stratified", [False, True])
def test_prompt_and_output_are_correlated_as_asked(wanted: float, stratified: bool) -> None:
    kind = TrafficClass("pair", 500, 900, 100, 250, rank_correlation=wanted)
    frame = generate(
        {"pair": 1.0}, 1.0, requests=20_000, rng=8, classes={"pair": kind}, stratified=stratified
    )
    assert frame["prompt_tokens"].rank().corr(frame["output_tokens"].rank()) == pytest.approx(
        wanted, abs=0.02
    )
    assert frame["output_tokens"].mean() == pytest.approx(250, rel=0.005 if stratified else 0.05)


def test_lengths_follow_a_quantile_table() -> None:
    table = ((0.0, 10.0), (0.5, 20.0), (0.9, 100.0), (1.0, 1000.0))
    kind = TrafficClass(
        "table", 20, 20, 5, 5, prompt_quantiles=table, output_quantiles=((0.0, 7.0), (1.0, 7.0))
    )
    frame = generate({"table": 1.0}, 1.0, requests=50_000, rng=9, classes={"table": kind})
    shares = [0.25, 0.5, 0.8, 0.95]
    assert frame["prompt_tokens"].quantile(shares).tolist() == pytest.approx([15, 20, 80, 550], rel=0.05)
    assert set(frame["output_tokens"]) == {7}
    assert frame["prompt_tokens"].between(10, 1000).all()


def test_pictures_and_sound_become_tokens() -> None:
    assert image_tokens(1024, 768) == 37 * 27
    assert image_tokens(1, 1) == 1
    assert audio_tokens(60) == 1500
    with pytest.raises(InputError, match=r"width_px: found 0"):
        image_tokens(0, 10)
    with pytest.raises(InputError, match=r"seconds: found nan"):
        audio_tokens(math.nan)
    frame = generate({"image": 1.0, "chat": 1.0}, 1.0, requests=500, rng=1, max_context_tokens=900)
    assert (frame["media_tokens"] <= frame["prompt_tokens"]).all()
    assert (frame.loc[frame["traffic_class"] == "chat", "media_tokens"] == 0).all()


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"rank_correlation": 1.2}, ["rank_correlation", "1.2"]),
        ({"ttft_p95_s": 0.0}, ["ttft_p95_s", "found 0"]),
        ({"tpot_p95_s": math.nan}, ["tpot_p95_s", "nan"]),
        ({"media_tokens_median": 5.0}, ["media_tokens", "median 5.0 and mean 0.0"]),
        ({"shared_prefix_tokens": -1}, ["shared_prefix_tokens", "-1"]),
        ({"prompt_quantiles": ((0.0, 1.0), (0.9, 5.0))}, ["prompt_quantiles", "from 0 to 1"]),
        ({"prompt_quantiles": ((0.0, 5.0), (1.0, 1.0))}, ["prompt_quantiles", "never fall"]),
        ({"output_quantiles": ((0.0, 0.0), (1.0, 1.0))}, ["output_quantiles", "≥ 1"]),
    ],
)
def test_a_class_that_cannot_be_is_refused(fields: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(InputError) as refusal:
        TrafficClass("odd", 10, 20, 5, 10, **fields)
    assert all(part in str(refusal.value) for part in ["traffic class odd", *parts])


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
    with pytest.raises(InputError, match="is a folder"):
        read_trace(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="not a CSV file"):
        read_trace(tmp_path / "binary.csv")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"after": [-1, -1, 2]}, ["row 2: after", "found 2", "earlier row"]),
        ({"after": [-1, 0.5, 0]}, ["row 1: after", "0.5"]),
        ({"after": [-1, -2, 0]}, ["row 1: after", "-2"]),
        ({"after": [-1, -1, 0]}, ["row 2: arrived_s", "found 2", "NaN"]),
        ({"after": [-1, -1, 0], "arrived_s": [0, math.nan, math.nan]}, ["row 1: arrived_s", "finite"]),
        (
            {"after": [-1, -1, 0], "arrived_s": [0, 1, math.nan], "think_s": [0, 0, -1]},
            ["row 2: think_s", "found -1", "≥ 0"],
        ),
        (
            {"after": [-1, 0, -1], "arrived_s": [5, math.nan, 4]},
            ["row 2: arrived_s", "found 4", "not before"],
        ),
        ({"prompt_tokens": ["1", "x", "1"]}, ["row 1: prompt_tokens", "found x"]),
    ],
)
def test_rows_that_wait_for_others_are_checked(change: dict[str, Any], parts: list[str]) -> None:
    good = {"arrived_s": [0, 1, 2], "prompt_tokens": [1, 1, 1], "output_tokens": [1, 1, 1]}
    with pytest.raises(InputError) as refusal:
        check_requests(pd.DataFrame({**good, **change}))
    assert all(part in str(refusal.value) for part in parts)


def test_checked_rows_that_wait_have_whole_columns() -> None:
    checked = check_requests(
        pd.DataFrame(
            {
                "arrived_s": [3.0, math.nan, 4.0, math.nan],
                "prompt_tokens": [1, 1, 1, 1],
                "output_tokens": [1, 1, 1, 1],
                "after": [math.nan, 0, -1, 1],
                "think_s": [math.nan, 2.0, math.nan, 0.5],
            }
        )
    )
    assert checked["after"].tolist() == [-1, 0, -1, 1]
    assert checked["think_s"].tolist() == [0, 2.0, 0, 0.5]
    assert checked["after"].dtype == np.int64


def test_frames_are_refused_by_row() -> None:
    with pytest.raises(InputError, match=r"row 1: output_tokens: found 0"):
        check_requests(
            pd.DataFrame(
                {"arrived_s": [0, 1], "prompt_tokens": [1, 1], "output_tokens": [1, 0]}, index=[7, 8]
            )
        )
