"""The search for the cheapest configuration: against brute force, with everything it refuses accounted for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from engine.errors import InputError
from sim.capacity.configurations import (
    Configuration,
    bounds,
    can_never_serve,
    measured_configurations,
    predicted_configurations,
)
from sim.capacity.goals import Limit, MetShare, Objective, goal_of, judge
from sim.capacity.load_test import replay_at
from sim.capacity.offered_load import trace_load, traffic_load
from sim.capacity.search import LATENCIES, SearchResult, search
from sim.capacity.surface import replica_fleet
from sim.cli import app, capacity, load_options
from sim.serving.metrics import latencies
from tests.helpers.profile import synthetic_profile

LOAD = traffic_load({"chat": 0.7, "code": 0.3})
GOAL = goal_of(Objective(1.0, 0.03))
RATE_RPS = 25.0
REQUESTS = 4000


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def configurations() -> list[Configuration]:
    found, refused = predicted_configurations(
        "llama-3.1-8b",
        ["H100 SXM", "L40S"],
        precisions=["bf16", "fp8"],
        tensor_parallel=[1, 2],
        max_running_requests=[32, 128],
        max_step_tokens=[4096],
    )
    assert len(found) == 16
    assert not refused
    return found


@pytest.fixture(scope="module")
def result(configurations: list[Configuration], cache: Path) -> SearchResult:
    return search(LOAD, GOAL, RATE_RPS, configurations, requests=REQUESTS, cache_dir=cache)


def _fewest_by_force(each: Configuration) -> int:
    """The least number of replicas whose whole fleet keeps the goal, tried one by one."""
    for replicas in range(1, 60):
        steady, _, _ = replay_at(
            replica_fleet(each.profile, each.scheduler, replicas), LOAD, RATE_RPS, REQUESTS, 0
        )
        if max(part.strain for part in judge(steady, GOAL)) <= 1:
            return replicas
    raise AssertionError(each.name)


def test_the_cheapest_is_what_brute_force_finds(
    result: SearchResult, configurations: list[Configuration]
) -> None:
    costs = {}
    for each in configurations:
        if can_never_serve(each, LOAD.at(RATE_RPS, REQUESTS), GOAL) or each.name not in set(
            result.table["configuration"]
        ):
            continue
        costs[each.name] = _fewest_by_force(each) * each.price_usd_per_hour
    cheapest = result.cheapest
    assert cheapest["fleet_simulated"]
    assert cheapest["usd_per_hour"] == pytest.approx(min(costs.values()))
    assert cheapest["usd_per_hour"] == pytest.approx(costs[cheapest["configuration"]])
    # What was skipped would not have been cheaper.
    skipped = {each.name for each in result.skipped}
    for each in configurations:
        if each.name in skipped:
            assert _fewest_by_force(each) * each.price_usd_per_hour >= cheapest["usd_per_hour"]


def test_every_configuration_is_accounted_for_and_labelled(
    result: SearchResult, configurations: list[Configuration]
) -> None:
    names = [*result.table["configuration"], *(each.name for each in [*result.refused, *result.skipped])]
    assert sorted(names) == sorted(each.name for each in configurations)
    assert (result.table["kind"] == "predicted").all()
    table = result.table
    assert table["usd_per_hour"].is_monotonic_increasing
    assert (table["usd_per_hour_low"] <= table["usd_per_hour"]).all()
    assert (table["usd_per_hour"] <= table["usd_per_hour_high"]).all()
    assert (table["capacity_low_rps"] < table["capacity_rps"]).all()
    assert (table["capacity_rps"] < table["capacity_high_rps"]).all()
    sample = LOAD.at(1.0, REQUESTS)
    tokens = sample["prompt_tokens"].mean() + sample["output_tokens"].mean()
    tokens_per_hour = RATE_RPS * 3600 * tokens
    np.testing.assert_allclose(
        table["usd_per_mtok"], table["usd_per_hour"] / tokens_per_hour * 1e6, rtol=0.02
    )


def test_no_point_of_the_curve_beats_another(result: SearchResult) -> None:
    curve = result.curve
    assert len(curve) > 1
    assert curve["usd_per_hour"].is_monotonic_increasing
    assert curve["e2e_p95_s"].is_monotonic_decreasing
    assert curve["usd_per_hour"].iloc[0] == result.cheapest["usd_per_hour"]
    for row in result.table.itertuples():
        better = curve[(curve["usd_per_hour"] <= row.usd_per_hour) & (curve["e2e_p95_s"] <= row.e2e_p95_s)]
        assert len(better) > 0, row.configuration


def test_the_same_question_has_the_same_answer(
    result: SearchResult, configurations: list[Configuration], tmp_path: Path, cache: Path
) -> None:
    files = sorted(path.name for path in cache.rglob("*.json"))
    heard: list[float] = []
    again = search(
        LOAD,
        GOAL,
        RATE_RPS,
        configurations,
        requests=REQUESTS,
        cache_dir=cache,
        progress=lambda part, _what: heard.append(part),
    )
    assert sorted(path.name for path in cache.rglob("*.json")) == files  # nothing was simulated twice
    pd.testing.assert_frame_equal(again.table, result.table)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    fresh = search(LOAD, GOAL, RATE_RPS, configurations[:4], requests=REQUESTS, cache_dir=tmp_path)
    known = dict(zip(result.table["configuration"], result.table["capacity_rps"], strict=True))
    for name, rate_rps in zip(fresh.table["configuration"], fresh.table["capacity_rps"], strict=True):
        assert rate_rps == known[name]


def test_bounds_hold_in_simulation(configurations: list[Configuration]) -> None:
    for each in configurations[::3]:
        requests = LOAD.at(RATE_RPS, 2000)
        bound = bounds(each, requests)
        assert len(bound.latencies["ttft"]) == 2000
        _, frame, stats = replay_at(replica_fleet(each.profile, each.scheduler), LOAD, RATE_RPS, 2000, 0)
        times = latencies(frame)
        for name in ("ttft", "tpot", "e2e"):
            seen, least = times[f"{name}_s"].to_numpy(), bound.latencies[name]
            known = np.isfinite(seen)
            assert (seen[known] >= least[known] * (1 - 1e-9)).all(), name
        _, backlog, _ = replay_at(replica_fleet(each.profile, each.scheduler), LOAD, 1000.0, 2000, 0)
        assert len(frame) / stats.busy_s.sum() < bound.rate_rps
        assert len(backlog) / (backlog["finished_s"].max() - backlog["arrived_s"].min()) < bound.rate_rps


def test_refusals_name_their_reason_before_any_run(tmp_path: Path) -> None:
    found, refused = predicted_configurations(
        "llama-3.1-70b", ["L40S", "H100 SXM", "A100 SXM"], precisions=["bf16", "fp8"], tensor_parallel=[1, 4]
    )
    reasons = {each.name: each.reason for each in refused}
    assert "GB too little" in reasons["L40S 48 GB, bf16"]
    assert "GB too little" in reasons["H100 SXM 80 GB, bf16"]
    assert "no list price" in reasons["A100 SXM 80 GB, fp8"]
    assert any(each.name.startswith("4 × H100 SXM 80 GB, bf16") for each in found)
    priced, _ = predicted_configurations("llama-3.1-8b", ["A100 SXM"], prices_usd_per_hour={"A100 SXM": 1.5})
    assert priced[0].price_usd_per_hour == 1.5

    profile = synthetic_profile()  # a context of 8,192, a cache of 65,536 tokens
    small = replace(profile.scheduler_config(), num_blocks=64)
    (normal,) = measured_configurations([profile])
    cases = [
        (normal, traffic_load({"chat": 1.0}), "context has 8,192"),
        (
            replace(normal, scheduler=small),
            traffic_load({"chat": 1.0}, max_context_tokens=8192),
            "KV cache has room for 1,024",
        ),
    ]
    for configuration, load, said in cases:
        assert said in can_never_serve(configuration, load.at(1.0, 4000), GOAL)
        result = search(load, GOAL, 1.0, [configuration], requests=4000, cache_dir=tmp_path)
        assert said in result.refused[0].reason
        with pytest.raises(InputError, match=r"no configuration can serve this \(1 refused\)"):
            _ = result.cheapest
    assert not list(tmp_path.rglob("*.json"))
    requests = traffic_load({"chat": 0.5, "code": 0.5}, max_context_tokens=8192).at(1.0, 4000)
    assert can_never_serve(normal, requests, [Limit("ttft", 95, 60.0)]) == ""
    assert "ttft_p95_s of lone requests" in can_never_serve(normal, requests, [Limit("ttft", 95, 1.0)])
    assert "chat tpot_mean_s" in can_never_serve(normal, requests, [Limit("tpot", "mean", 0.01, "chat")])
    assert "are late" in can_never_serve(normal, requests, [MetShare(0.95, Objective(1.0, 0.5))])


def test_a_measured_profile_competes_with_predictions(tmp_path: Path) -> None:
    slow = synthetic_profile(price_usd_per_hour=0.05)
    fast = synthetic_profile(price_usd_per_hour=0.06, speed=2.0)
    fast = replace(fast, hardware=replace(fast.hardware, name="a faster machine"))
    load = traffic_load({"chat": 1.0}, max_context_tokens=8192)
    found = search(
        load,
        goal_of(Objective(20.0, 1.0)),
        2.1,
        measured_configurations([slow, fast]),
        requests=4000,
        cache_dir=tmp_path,
    )
    assert found.cheapest["hardware"] == "a faster machine"
    assert len(found.table) == 2 or found.skipped
    assert found.cheapest["replicas"] == 3  # two would be busy all the time
    assert np.isnan(found.cheapest["capacity_low_rps"])  # that profile doesn't know its interval


def test_a_recorded_trace_with_conversations_can_be_searched(tmp_path: Path) -> None:
    load = trace_load(LOAD.at(3.0, 1000).assign(tenant="a"))
    configurations, _ = predicted_configurations("llama-3.1-8b", ["L40S"], precisions=["fp8"])
    found = search(load, GOAL, 12.0, configurations, cache_dir=tmp_path, against="ttft_p95_s")
    assert found.cheapest["replicas"] >= 2
    assert set(LATENCIES) <= set(found.table)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rate_rps": 0.0}, "rate: found 0.0"),
        ({"rate_rps": float("nan")}, "rate: found nan"),
        ({"against": "p95"}, "'p95'.*ttft_p95_s"),
        ({"configurations": []}, "at least one"),
        ({"goal": ()}, "at least one limit"),
    ],
)
def test_bad_questions_are_refused(
    change: dict[str, object], said: str, configurations: list[Configuration]
) -> None:
    asked = {"load": LOAD, "goal": GOAL, "rate_rps": 1.0, "configurations": configurations, **change}
    with pytest.raises(InputError, match=said) as refusal:
        search(**asked)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)


def test_bad_names_are_mistakes_not_refusals() -> None:
    for change, said in (
        ({"model": "llama-9"}, "llama-9"),
        ({"accelerators": ["H1000"]}, "H1000"),
        ({"precisions": ["fp7"]}, "fp7.*bf16"),
        ({"tensor_parallel": [3]}, "3.*1, 2, 4, 8"),
        ({"engines": ["orca"]}, "orca.*vllm"),
        ({"max_running_requests": [0]}, "max_running_requests"),
    ):
        with pytest.raises(InputError, match=said):
            predicted_configurations(**{"model": "llama-3.1-8b", "accelerators": ["H100 SXM"], **change})  # type: ignore[arg-type]


def _run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of `flywheel` with these words."""
    for name, command in (("capacity", capacity.capacity), ("configure", capacity.configure)):
        if not any(
            (each.name or getattr(each.callback, "__name__", "")) == name
            for each in app.app.registered_commands
        ):
            app.app.command(name)(command)
    monkeypatch.setattr("sys.argv", ["flywheel", *words])
    with pytest.raises(SystemExit) as left:
        app.main()
    return int(left.value.code or 0)


def test_the_commands_answer_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sim.capacity.surface.REQUESTS_PER_RATE", 2000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path, out = tmp_path / "p.json", tmp_path / "table.csv"
    synthetic_profile().save(path)
    assert not _run(
        monkeypatch, "capacity", "--profile", str(path), "--traffic", "chat", "--ttft", "10", "--tpot", "0.5",
        "--out", str(out), "--json",
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["capacity_low_rps"] < found["capacity_rps"] < found["capacity_high_rps"]
    assert found["at_capacity"]["usd_per_mtok_output"] > 0
    assert len(pd.read_csv(out)) == len(found["table"])
    assert not _run(
        monkeypatch, "configure", "llama-3.1-8b", "--on", "H100 SXM,A100 SXM", "--precision", "fp8,bf16",
        "--rate", "30", "--objective", "chat:ttft=1,tpot=0.05", "--out", str(out),
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "PREDICTED" in printed
    assert "no list price" in " ".join(printed.split())
    assert len(pd.read_csv(out)) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["capacity"], "objectives: found none"),
        (["capacity", "--ttft", "0"], "ttft_p95_s: found 0"),
        (["capacity", "--ttft", "0.001", "--traffic", "code"], "best achievable"),
        (["capacity", "--ttft", "1", "--percentile", "p95"], "--percentile"),
        (["capacity", "--ttft", "1", "--traffic", "chats"], "chats"),
        (["capacity", "--ttft", "1", "--traffic", "chat=x"], "'x'"),
        (["capacity", "--ttft", "1", "--traffic", "chat", "--conversations", "chat"], "one of them"),
        (["capacity", "--ttft", "1", "--trace", "nowhere.csv"], "nowhere.csv"),
        (["capacity", "--ttft", "1", "--workload", "nowhere.yaml"], "nowhere.yaml"),
        (["capacity", "--objective", "chat"], "CLASS:ttft"),
        (["capacity", "--objective", "rag:ttft=1"], "no requests of this class"),
        (["capacity", "--met", "0.9"], "--met"),
        (["configure"], "neither a model nor --profile"),
        (["configure", "llama-3.1-8b", "--ttft", "1"], "--on"),
        (["configure", "llama-3.1-8b", "--on", "H100 SXM", "--ttft", "1", "--batch", "many"], "--batch many"),
        (["configure", "llama-3.1-8b", "--on", "H100 SXM", "--ttft", "1", "--rate", "-1"], "rate: found -1"),
        (["configure", "llama-3.1-8b", "--on", "H100 SXM", "--ttft", "1", "--price", "H100 SXM"], "NAME=USD"),
        (["configure", "llama-3.1-8b", "--on", "H100 SXM", "--ttft", "1", "--against", "p95"], "--against"),
        (["configure", "llama-3.1-405b", "--on", "L40S", "--ttft", "1"], "GB too little"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _run(monkeypatch, *words) == 2
    errors = capsys.readouterr().err.strip()
    assert said in errors
    assert "\n" not in errors
    assert errors.startswith("flywheel: ")


def test_words_of_the_command_line() -> None:
    goal = load_options.OfferedLoadOptions(
        ttft=1.0, objectives=["chat:ttft=2,tpot=0.1"], percentile="99"
    ).goal(LOAD)
    assert [(each.label, each.limit_s) for each in goal if isinstance(each, Limit)] == [
        ("ttft_p99_s", 1.0),
        ("chat ttft_p99_s", 2.0),
        ("chat tpot_p99_s", 0.1),
    ]
    (share,) = load_options.OfferedLoadOptions(ttft=1.0, tpot=0.1, met=0.9).goal(LOAD)
    assert share == MetShare(0.9, Objective(1.0, 0.1))
    assert load_options.shares_of("chat=0.7,code=0.3") == {"chat": 0.7, "code": 0.3}
    assert load_options.prices_of(["H100 SXM=2.5"]) == {"H100 SXM": 2.5}
    assert load_options.numbers_of("1,2,2", "--x") == [1, 2]
