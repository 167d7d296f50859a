"""Predicted beside measured: the measures, the loads, intervals that cover at their rate, and the commands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from engine.batch import SchedulerConfig
from engine.errors import InputError
from engine.profile.profile import Profile
from sim.cli import validate
from sim.serving.replay import replay
from sim.validation.compare import Lengths, capacity, compare, draw_requests, measures, parse_loads, predict
from sim.validation.posterior import posterior_of
from sim.validation.recorded_run import read_recorded
from tests.helpers.observed import drawn_requests, fake_observation
from tests.helpers.profile import synthetic_profile
from tests.sim.validation.test_calibration import uncertain_profile

CONFIG = SchedulerConfig(num_blocks=2048)
LENGTHS = Lengths(96.0, 24.0)


@pytest.mark.parametrize("load", ["0.5", "burst"])
def test_intervals_cover_at_their_stated_rate(load: str) -> None:
    """A simulation study: machines drawn from what the profile says, with steps that scatter besides."""
    known = posterior_of(uncertain_profile())
    rate = capacity(known.times, CONFIG, LENGTHS, 4096)
    requests = draw_requests(load, rate, 80, LENGTHS, CONFIG, 4096, seed=3)
    prediction = predict(known, requests, CONFIG, level=0.8, draws=150)
    covered = []
    for seed, truth in enumerate(known.draw(80, 12345)):
        found = pd.Series(measures(fake_observation(requests, truth, CONFIG, 0.05, seed).requests))
        covered.append((found >= prediction["low"]) & (found <= prediction["high"]))
    rate_covered = pd.DataFrame(covered).mean()
    # The binomial's standard deviation is 4.5 %, that of the ends of an interval from 150 draws about as much.
    assert rate_covered.between(0.62, 0.96).all(), rate_covered
    assert 0.70 < rate_covered.mean() < 0.90


def test_the_measures_are_those_of_their_definitions() -> None:
    frame = pd.DataFrame(
        {
            "arrived_s": [1.0, 2.0], "scheduled_s": [1.0, 2.0], "first_token_s": [1.5, 4.0],
            "finished_s": [3.5, 4.0], "output_tokens": [5, 1],
        }
    )  # fmt: skip
    found = measures(frame)
    assert found["throughput_rps"] == pytest.approx(2 / 3)
    assert found["ttft_mean_s"] == pytest.approx(1.25)
    assert found["tpot_mean_s"] == pytest.approx(0.5)
    assert found["e2e_p50_s"] == pytest.approx(2.25)


def test_capacity_is_what_a_replica_sustains() -> None:
    times = synthetic_profile().step_time_model()
    rate = capacity(times, CONFIG, LENGTHS, 4096)
    waits = {}
    for share in ("0.7", "1.5"):
        requests = draw_requests(share, rate, 600, LENGTHS, CONFIG, 4096, seed=1)
        frame = replay(requests, times, CONFIG)
        waits[share] = float((frame["first_token_s"] - frame["arrived_s"]).tail(100).mean())
    assert waits["1.5"] > 10 * waits["0.7"]


def test_a_burst_is_a_wave_between_two_quiet_times() -> None:
    arrived_s = draw_requests("burst", 10.0, 400, LENGTHS, CONFIG, 4096, seed=0)["arrived_s"].to_numpy()
    gaps = np.diff(arrived_s)
    assert gaps[110:290].mean() == pytest.approx(1 / 30, rel=0.25)
    assert gaps[:90].mean() == pytest.approx(1 / 3, rel=0.3)


def test_lengths_have_their_means() -> None:
    drawn = Lengths(200.0, 50.0).draw(20_000, np.random.default_rng(0), 8192)
    assert drawn["prompt_tokens"].mean() == pytest.approx(200, rel=0.03)
    assert drawn["output_tokens"].mean() == pytest.approx(50, rel=0.05)
    assert drawn["output_tokens"].min() >= 1


@pytest.mark.parametrize("text", ["", "0", "-0.3", "3", "0.3,busy", "nan"])
def test_a_bad_load(text: str) -> None:
    with pytest.raises(InputError, match="--loads"):
        parse_loads(text)


def test_a_comparison_has_errors_spread_and_goals() -> None:
    times = synthetic_profile().step_time_model()
    requests = drawn_requests(50, 2.0)
    runs = [fake_observation(requests, times, CONFIG, 0.02, seed).requests for seed in range(3)]
    table = compare(runs, predict(posterior_of(uncertain_profile()), requests, CONFIG, draws=20))
    assert len(table) == 10
    assert table["error"].abs().max() < 0.1
    assert table["error"].abs().median() < 0.02
    assert (table["spread"] > 0).all()
    assert table.loc[0, "goal"] == 0.015
    assert (table["met"] == (table["error"].abs() <= table["goal"])).all()


GOOD = "arrived_s,prompt_tokens,output_tokens,first_token_s,finished_s\n0.0,10,5,0.1,0.5\n0.2,20,1,0.4,0.4\n"


def test_a_recorded_run_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    path.write_text(GOOD)
    frame = read_recorded(path)
    assert frame["finished_s"].tolist() == [0.5, 0.4]
    assert frame["scheduled_s"].isna().all()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("0.1,0.5", "x,0.5", ["line 2", "first_token_s", "'x'"]),
        ("0.1,0.5", ",0.5", ["line 2", "first_token_s"]),
        ("0.4,0.4", "0.1,0.4", ["line 3", "first_token_s", "before arrived_s"]),
        ("0.4,0.4", "0.4,0.3", ["line 3", "finished_s", "before first_token_s"]),
        ("0.4,0.4", "0.4,inf", ["line 3", "finished_s"]),
        ("0.1,0.5", "0.1,0.1", ["line 2", "finished_s", "more than one output token"]),
        ("0.1,0.5", "0.0,0.5", ["line 2", "first_token_s", "after arrived_s"]),
        ("0.2,20,1", "0.2,20,0", ["line 3", "output_tokens"]),
        ("finished_s\n", "done\n", ["line 1", "finished_s"]),
    ],
)
def test_a_bad_recorded_run_is_named_by_its_line(
    old: str, new: str, words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "run.csv"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        read_recorded(path)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in [str(path), *words]), str(error.value)


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(validate.app, [str(part) for part in arguments])


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, Path]:
    """A profile, and the requests of a server that is 1.4 times as slow."""
    profile = uncertain_profile()
    slow = replace(synthetic_profile(speed=1 / 1.4).coefficients, uncertainty=None)
    run = fake_observation(drawn_requests(120, 1.0), slow, profile.scheduler_config(), 0.03)
    run.requests.to_csv(tmp_path / "run.csv", index=False)
    profile.save(tmp_path / "profile.json")
    return tmp_path / "run.csv", tmp_path / "profile.json"


def test_a_recorded_run_calibrates_a_profile(recorded: tuple[Path, Path], tmp_path: Path) -> None:
    run, profile = recorded
    out = tmp_path / "calibrated.json"
    done = invoke("run", run, "--profile", profile, "--calibrate", "--out", out, "--json")
    assert done.exit_code == 0, done.output
    rows = {row["measure"]: row for row in json.loads(done.stdout)["comparison"]}
    for name in ("tpot_mean_s", "e2e_mean_s", "ttft_mean_s"):
        assert rows[name]["error"] < -0.2
        assert abs(rows[name]["calibrated_error"]) < 0.06
        assert rows[name]["calibrated_covered"] == 1
    assert Profile.load(out).method["calibration"]["requests"] == 60, "the second half judges"
    shown = invoke("run", run, "--profile", profile, "--max-running-requests", 32, "--kv-cache-tokens", 40000)
    assert shown.exit_code == 0
    assert "TPOT p95" in shown.stdout


def test_serving_is_validated_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from engine.profiling.profiler import measure_profile

    profile = tmp_path / "tiny.json"
    measure_profile("llama-tiny@dummy", budget_s=2.0, training=False).save(profile)
    out = tmp_path / "validation"
    done = invoke(
        "serving", "--model", "llama-tiny@dummy", "--profile", profile, "--loads", "0.3,burst", "--requests", 20,
        "--runs", 2, "--prompt-tokens", 40, "--output-tokens", 10, "--calibrate", "--out", out, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    result = json.loads(done.stdout)
    assert len(result["comparison"]) == 20
    table = pd.read_csv(out / "comparison.csv")
    assert set(table["load"]) == {"0.3", "burst"}
    columns = ["measured", "predicted", "spread", "scheduler_error", "calibrated_error"]
    assert np.isfinite(table[columns].to_numpy()).all()
    assert (out / "measured" / "burst-2" / "steps.parquet").is_file()
    stored = json.loads((out / "validation.json").read_text())
    assert stored["provenance"]["profile"] == Profile.load(profile).content_hash
    assert Profile.load(out / "calibrated.json").method["calibration"]["on"] == "steps"


@pytest.mark.slow
def test_the_real_model_is_predicted(tmp_path: Path) -> None:
    """The scheduler is exact on any machine, and a calibrated profile is about right on one that does nothing else."""
    pytest.importorskip("torch")
    from engine.profiling.profiler import measure_profile
    from sim.validation.serving import ValidationOptions, validate_serving

    profile = measure_profile(budget_s=20.0, training=False)
    found = validate_serving(profile, ["0.3"], ValidationOptions(requests=40, runs=1, calibrate=True))
    assert found.table["scheduler_error"].abs().max() < 0.02
    if found.steps["0.3"]["stalled_share"] > 0.02:
        pytest.skip("something else kept this machine's cores busy")
    assert found.table["calibrated_error"].abs().median() < 0.1
