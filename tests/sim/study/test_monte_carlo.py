"""Draws and what is counted over them: designs, common random numbers, and intervals that hold at their stated rate."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.stats import qmc
from typer.testing import CliRunner

from engine.errors import InputError
from sim.cli.study import app
from sim.company.simulate import simulate
from sim.scenario.metrics import OUTCOMES
from sim.scenario.scenario import Scenario
from sim.study.monte_carlo import (
    BATCH,
    fan,
    monte_carlo,
    outcome_table,
    parse_precision,
    ruin_by_month,
)
from sim.study.runs.options import RunOptions
from sim.study.sampling import draw, rounded, shares
from sim.utils.serialise import json_ready
from tests.helpers.places import ROOT

HERE = RunOptions(workers=0)
CASH, SIGNUP = "finance.initial_cash_usd", "market.signup_cost_usd"


def company(**changes: Any) -> Scenario:
    """Three months, and nothing uncertain but what is asked for."""
    certain = Scenario.load("api_startup")
    medians = {key: distribution.median for key, distribution in certain.uncertain.items()}
    return certain.override({**medians, "horizon_months": 3, "uncertainty.targets": {}, **changes})


def runs_of(outcome: str, values: np.ndarray[Any, Any]) -> pd.DataFrame:
    """A frame of runs in which only one outcome is known."""
    columns = {f"out.{name}": np.full(len(values), math.nan) for name in OUTCOMES}
    return pd.DataFrame(
        {"run": np.arange(len(values)), "error": "", **columns, f"out.{outcome}": values.astype(float)}
    )


@pytest.mark.parametrize("count", [1, 7, 64])
def test_a_latin_hypercube_falls_once_into_each_slice(count: int) -> None:
    drawn = shares(["a", "b", "c"], count, seed=4)
    for column in drawn.T:
        assert sorted(np.floor(column * count).astype(int)) == list(range(count))
    if count == 64:
        assert abs(stats.spearmanr(drawn[:, 0], drawn[:, 1]).statistic) < 0.4


def test_a_sobol_sequence_is_balanced_in_every_box() -> None:
    drawn = shares(["a", "b"], 60, sampling="sobol", seed=4)
    assert len(drawn) == rounded(60, "sobol") == 64
    for wide in (1, 2, 4, 8, 16, 32, 64):
        boxes = np.floor(drawn[:, 0] * wide) * 64 + np.floor(drawn[:, 1] * (64 // wide))
        assert len(set(boxes)) == 64, "one point in each elementary box of 1/64"
    spread = {
        kind: qmc.discrepancy(shares(["a", "b"], 64, sampling=kind)) for kind in ("lhs", "sobol", "random")
    }
    assert spread["sobol"] < spread["lhs"] < spread["random"]


@pytest.mark.parametrize("sampling", ["lhs", "sobol", "random"])
def test_draws_are_uniform_and_batches_independent(sampling: Any) -> None:
    one, other = (shares(["a"], 512, sampling=sampling, batch=batch)[:, 0] for batch in (0, 1))
    assert stats.kstest(one, "uniform").pvalue > 0.001
    if sampling != "sobol":  # two scrambles of one sequence keep its order: only their means are independent
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.2
    np.testing.assert_array_equal(one, shares(["a"], 512, sampling=sampling)[:, 0])
    assert not np.array_equal(one, shares(["a"], 512, sampling=sampling, seed=1)[:, 0])


def test_one_more_uncertain_assumption_moves_no_other_draw() -> None:
    few = company(**{CASH: "~ uniform(3e5, 5e5)"})
    more = few.override(
        {SIGNUP: "~ lognormal(median=120, sigma=0.3)", "data.feedback_opt_in": "~ uniform(0, 1)"}
    )
    for sampling in ("lhs", "random", "sobol"):
        one = draw(few, 16, sampling=sampling, keys=more.uncertain)  # type: ignore[arg-type]
        other = draw(more, 16, sampling=sampling)  # type: ignore[arg-type]
        assert [point.overrides[CASH] for point in one] == [point.overrides[CASH] for point in other]
        assert [point.seed for point in one] == [point.seed for point in other]


def test_draws_follow_their_distributions_and_correlations() -> None:
    scenario = company(
        **{
            CASH: "~ triangular(3e5, 4e5, 9e5)",
            SIGNUP: "~ lognormal(median=120, sigma=0.3)",
            "deployment.min_replicas": "~ discrete([1, 3])",
            "uncertainty.correlations": [{"between": [CASH, SIGNUP], "rank": -0.7}],
        }
    )
    drawn = pd.DataFrame([point.overrides for point in draw(scenario, 4096)])
    assert stats.kstest(drawn[CASH], stats.triang(1 / 6, 3e5, 6e5).cdf).pvalue > 0.01
    assert stats.kstest(drawn[SIGNUP], stats.lognorm(0.3, scale=120).cdf).pvalue > 0.01
    assert stats.spearmanr(drawn[CASH], drawn[SIGNUP]).statistic == pytest.approx(-0.7, abs=0.03)
    assert drawn["deployment.min_replicas"].value_counts().to_dict() == {1: 2048, 3: 2048}
    assert all(type(point.overrides["deployment.min_replicas"]) is int for point in draw(scenario, 4))
    assert len({point.seed for point in draw(scenario, 4096)}) == 4096
    assert {point.seed for point in draw(scenario, 8, vary_world=False)} == {scenario.seed}


def test_intervals_hold_at_their_stated_rate() -> None:
    """95 % intervals of a skewed outcome with known truth, over 200 studies of 100 runs each."""
    rng = np.random.default_rng(11)
    truth = {"mean": 3.0, "p50": 3 * math.log(2), "ruin": 0.08}
    hit = dict.fromkeys(truth, 0)
    studies = 200
    for _ in range(studies):
        values = rng.exponential(3.0, 100)
        table = outcome_table(runs_of("cash_usd_end", values)).set_index("outcome").loc["cash_usd_end"]
        hit["mean"] += table["mean_low"] <= truth["mean"] <= table["mean_high"]
        hit["p50"] += table["p50_low"] <= truth["p50"] <= table["p50_high"]
        out = np.where(rng.random(100) < truth["ruin"], 1.0, math.nan)
        last = ruin_by_month(runs_of("cash_out_month_index", out), "2026-01", 3).iloc[-1]
        hit["ruin"] += last["low"] <= truth["ruin"] <= last["high"]
    for name, count in hit.items():
        # Three standard errors of the rate itself; the mean of a skewed outcome is known to fall a little short.
        assert 0.90 <= count / studies <= 0.99, name


def test_stopping_by_itself_keeps_the_rate() -> None:
    """The stopping rule on a skewed outcome (Chow and Robbins 1965): the last interval still covers the mean."""
    asked = parse_precision("cash_usd_end ± 8%")
    rng = np.random.default_rng(5)
    hits, looks = 0, []
    for _ in range(200):
        values = np.zeros(0)
        while True:
            values = np.concatenate([values, rng.exponential(3.0, BATCH)])
            runs = runs_of("cash_usd_end", values)
            if asked.met(runs):
                break
        looks.append(len(values) // BATCH)
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        assert half <= 0.08 * values.mean() * (1 + 1e-9)
        hits += abs(values.mean() - 3.0) <= half
    assert len(set(looks)) > 1, "the rule had a choice"
    # (1.96 / 0.08)² = 600 runs are needed for a coefficient of variation of 1.
    assert 2 <= np.mean(looks) <= 3.2
    assert hits / len(looks) >= 0.90


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cash_usd_end ± 5%", "mean(cash_usd_end) ± 5%"),
        ("p10(cash_usd_end) +- 20000", "p10(cash_usd_end) ± 20000"),
        ("p(ruined) +/- 1%", "p(ruined) ± 0.01"),
        ("ruined ± 0.01", "p(ruined) ± 0.01"),
        ("p(cash_usd_min >= 0) ± 2%", "p(cash_usd_min >= 0) ± 0.02"),
    ],
)
def test_precisions_are_read(text: str, shown: str) -> None:
    assert str(parse_precision(text)) == shown


@pytest.mark.parametrize(
    "text", ["cash_usd_end", "cash_usd_end ± 0%", "cash ± 5%", "max(cash_usd_end) ± 5", "± 5%"]
)
def test_wrong_precisions_are_one_line(text: str) -> None:
    with pytest.raises(InputError) as error:
        parse_precision(text)
    assert "\n" not in str(error.value)


def test_a_month_that_never_came_counts_as_late() -> None:
    values = np.array([1.0, 2.0, 3.0, math.nan, math.nan])
    table = outcome_table(runs_of("breakeven_month_index", values)).set_index("outcome")
    row = table.loc["breakeven_month_index"]
    assert (row["p25"], row["p50"], row["p75"], row["runs"]) == (2.0, 3.0, math.inf, 5)
    assert math.isnan(row["mean"])


def test_ruin_is_what_brute_force_finds() -> None:
    """Initial cash alone is uncertain, so a company is ruined when it starts with less than it burns."""
    scenario = company(**{CASH: "~ uniform(2e4, 2e5)"})
    found = monte_carlo(scenario, runs=64, options=HERE, vary_world=False, targets=["cash_usd_min >= 30k"])
    rich = simulate(scenario.override({CASH: 1e6})).monthly["cash_usd"].to_numpy()
    burnt = 1e6 - rich  # after each month; money doesn't change what happens
    starts = found.runs[f"in.{CASH}"].to_numpy()
    for month, row in found.ruin.iterrows():
        broke = (starts[:, None] - burnt[None, : int(month) + 1] < 0).any(axis=1)  # type: ignore[call-overload]
        assert row["probability"] == broke.mean()
        assert row["low"] < row["probability"] < row["high"] or broke.mean() in (0, 1)
    exact = (burnt.max() - 2e4) / 1.8e5
    assert found.ruin["probability"].iloc[-1] == pytest.approx(exact, abs=1 / 64), (
        "one slice of the hypercube"
    )
    target = found.targets.iloc[0]
    assert target["target"] == "cash_usd_min >= 30000"
    assert target["probability"] == pytest.approx(1 - (burnt.max() + 3e4 - 2e4) / 1.8e5, abs=1 / 64)
    cash = found.fans["cash_usd"]
    everything = np.stack(found.runs["month.cash_usd"].tolist())
    np.testing.assert_allclose(cash["p10"], np.percentile(everything, 10, axis=0))
    np.testing.assert_allclose(cash["mean"], everything.mean(axis=0))
    assert cash["month"].tolist() == ["2026-01", "2026-02", "2026-03"]
    text = json.dumps(json_ready(found.summary()), allow_nan=False)
    assert json.loads(text)["runs"] == 64


def test_a_study_is_determined_by_its_seed() -> None:
    scenario = company(**{SIGNUP: "~ uniform(60, 240)"})
    one, again, other = (monte_carlo(scenario, runs=8, options=HERE, seed=seed).runs for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, again, check_exact=True)
    assert not one["out.cash_usd_end"].equals(other["out.cash_usd_end"])


def test_common_random_numbers_take_the_noise_out_of_a_difference() -> None:
    before = company(**{SIGNUP: "~ uniform(60, 240)"})
    after = before.override({"finance.other_opex_usd_per_month": 7000.0})
    one, other, stranger = (
        monte_carlo(scenario, runs=24, seed=seed, options=HERE).runs["out.cash_usd_end"]
        for scenario, seed in ((before, 0), (after, 0), (after, 9))
    )
    independent = math.sqrt(one.var() + other.var())  # standard deviation without common random numbers
    # A thousand dollars more in each of three months, the last bill not paid yet.
    assert (other - one).mean() == pytest.approx(-2000, abs=1)
    assert (other - one).std() < 0.01 * independent
    assert (stranger - one).std() > 0.5 * independent


def test_failed_runs_are_left_out_and_counted() -> None:
    changes = {CASH: "~ uniform(3e5, 5e5)", "horizon_months": "~ discrete([2, 3])"}
    scenario = company(**changes)
    found = monte_carlo(scenario, runs=8, options=HERE)
    assert found.failed == 0
    assert len(found.fans["cash_usd"]) == 3
    assert fan(found.runs, "cash_usd", "2026-01")["mean"].notna().all()
    with pytest.raises(InputError, match=r"none of 4 runs could be made: .*ttft_p95_s"):
        monte_carlo(company(**{"deployment.ttft_p95_s": 1e-4}), runs=4, options=HERE)


CLI = "from sim.cli import main; main()"


def test_the_command_runs_resumes_and_refuses(tmp_path: Path) -> None:
    words = ["monte-carlo", "api_startup", "--workers", "0", "--set", "horizon_months=3"]
    words += ["--set", f"{SIGNUP}=~ uniform(100, 140)", "--out", str(tmp_path / "study"), "--runs", "16"]
    first = CliRunner().invoke(app, [*words, "--target", "cash_usd_min >= 500k"])
    assert first.exit_code == 0, first.output
    assert "16 runs, 12 uncertain assumptions (lhs)" in " ".join(first.output.split())
    assert "cash_usd_min >= 500000" in first.output
    again = CliRunner().invoke(app, [*words, "--json"])
    content = json.loads(again.stdout)
    assert content["uncertain"][SIGNUP] == "uniform(low=100.0, high=140.0)"
    assert len(pd.read_parquet(tmp_path / "study" / "runs.parquet")) == 16
    assert json.loads((tmp_path / "study" / "summary.json").read_text())["outcomes"] == content["outcomes"]
    other = CliRunner().invoke(app, [*words, "--seed", "3"])
    assert isinstance(other.exception, InputError)
    assert "holds another study" in str(other.exception)


def test_ctrl_c_leaves_a_folder_that_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    words = [
        "study",
        "monte-carlo",
        "api_startup",
        "--workers",
        "1",
        "--set",
        "horizon_months=3",
        "--runs",
        "200",
    ]
    child = subprocess.Popen(
        [sys.executable, "-c", CLI, *words, "--out", str(folder)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(folder.glob("parts/0*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "Traceback" not in errors
    done = len(list(folder.glob("parts/0*")))
    assert 1 <= done < 25
