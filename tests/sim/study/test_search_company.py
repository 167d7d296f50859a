"""Sensitivity, goal seek, optimisation and comparison of whole companies, against what can be worked out by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from engine.errors import InputError
from sim.cli import study_search
from sim.company.simulate import simulate
from sim.scenario.scenario import Scenario
from sim.study.compare import compare
from sim.study.differences import ABSENT, differences, grouped, hybrid, overrides_between, plain
from sim.study.explain import explain_by_account, explain_by_assumption
from sim.study.goal_seek import goal_seek
from sim.study.inputs import inputs_of
from sim.study.levers import key_facts, numeric_keys, parse_lever
from sim.study.optimise import optimise
from sim.study.runs.options import RunOptions
from sim.study.sensitivity import sensitivity
from sim.study.shares import with_shares_kept
from sim.study.wording import in_words
from tests.helpers.places import ROOT
from tests.helpers.stages import QUIET

HERE = RunOptions(workers=0)
SUPPORT_USD = 8.0


@pytest.fixture(scope="module")
def seats() -> Scenario:
    """Customers come with (fee / 20)^-2 and cost 8 USD of support each: the best fee is 8 · 2 / (2 − 1) = 16."""
    values = json.loads(json.dumps(QUIET))
    values["market"]["plans"] = {
        "seat": {
            "monthly_fee_usd": 12.0,
            "reference_fee_usd": 20.0,
            "support_usd_per_month": SUPPORT_USD,
            "churn_per_month": 0.0,
            "on_premise": True,
        }
    }
    values["market"] |= {
        "signup_elasticity": 2.0,
        "organic_signups_per_month": 20_000.0,
        "addressable_customers": 1e12,
    }
    values["finance"] = {"payment_fee_share": 0.0, "payment_fee_usd": 0.0, "initial_cash_usd": 1e6}
    return Scenario.parse(values)


@pytest.fixture(scope="module")
def startup() -> Scenario:
    """A shipped company in its first months."""
    return Scenario.load("api_startup").override({"horizon_months": 5})


def fixed_cost(scenario: Scenario) -> float:
    """What the quiet company spends in any case: fleet, office."""
    nobody = scenario.override({"market.organic_signups_per_month": 0.0})
    return -float(simulate(nobody).monthly["net_income_usd"].sum())


def test_the_best_price_is_the_one_of_the_textbook(seats: Scenario) -> None:
    found = optimise(
        seats,
        ["market.plans.seat.monthly_fee_usd=9..40"],
        ["max profit_usd_total"],
        trials=24,
        seeds=1,
        fresh_seeds=3,
        options=HERE,
    )
    best = found.chosen.iloc[0]
    assert best["market.plans.seat.monthly_fee_usd"] == pytest.approx(16.0, abs=1.5)
    # Profit in closed form: customers of each month stay, so months to pay add up to 1 + 2 + … + 6 or one less each.
    margin = 16.0 - SUPPORT_USD
    most = 20_000 * (16 / 20) ** -2 * margin
    months = (best["max profit_usd_total"] + fixed_cost(seats)) / most
    assert months == pytest.approx(round(months), abs=0.25)
    assert round(months) in (15, 21)
    # Demand at the best price hardly changes with it: 24 candidates come within 2 % of the top.
    assert months > 0.98 * round(months)
    assert (
        best["max profit_usd_total low"] <= best["max profit_usd_total"] <= best["max profit_usd_total high"]
    )
    today = found.today.iloc[0]
    gain = best["max profit_usd_total"] - today["max profit_usd_total"]
    assert best["max profit_usd_total gain"] == pytest.approx(gain)
    assert today["max profit_usd_total gain high"] == 0
    # Under the same luck the gain is surer than the level.
    paired, level = (
        best[f"max profit_usd_total{of} high"] - best[f"max profit_usd_total{of} low"] for of in (" gain", "")
    )
    assert 0 < paired < level
    assert today["max profit_usd_total"] < best["max profit_usd_total"]
    assert found.trials["market.plans.seat.monthly_fee_usd"].iloc[0] == 12.0  # what is comes first
    assert found.runs == 24 + 2 * 3


def test_no_candidate_may_break_a_condition(seats: Scenario) -> None:
    found = optimise(
        seats,
        ["market.plans.seat.monthly_fee_usd=9..40", "training.accelerators=4,8"],
        ["max profit_usd_total"],
        ["customers_end >= 1e9"],
        trials=8,
        seeds=1,
        fresh_seeds=2,
        options=HERE,
    )
    assert found.chosen.empty
    assert len(found.nearest) == 1
    assert not found.trials["feasible"].any()
    assert found.nearest["violation"].iloc[0] == found.trials["violation"].min()


class Stopped(Exception):
    """A user's cancel."""


def test_an_optimisation_goes_on_where_it_was_broken_off(startup: Scenario, tmp_path: Path) -> None:
    asked = {
        "levers": ["market.price_usd_per_mtok_output=0.2..3 log", "market.plans.trial.signup_share=0.3..0.9"],
        "goals": ["max cash_usd_end", "max customers_end"],
        "conditions": ["p(ruined) <= 50%"],
    }
    sizes = {"trials": 9, "seeds": 2, "fresh_seeds": 2}
    whole = optimise(startup, *asked.values(), **sizes, options=HERE)

    def stop(fraction: float, what: str) -> None:
        if fraction > 0.5:
            raise Stopped

    with pytest.raises(Stopped):
        optimise(startup, *asked.values(), **sizes, options=replace(HERE, folder=tmp_path, progress=stop))
    assert list(tmp_path.glob("search-0001/parts/*.parquet"))
    resumed = optimise(startup, *asked.values(), **sizes, options=replace(HERE, folder=tmp_path))
    for name in ("trials", "chosen", "today"):
        pd.testing.assert_frame_equal(getattr(resumed, name), getattr(whole, name))
    with pytest.raises(InputError, match="allowed"):  # the folder holds another study
        optimise(
            startup,
            ["deployment.headroom=0..1"],
            ["max cash_usd_end"],
            **sizes,
            options=replace(HERE, folder=tmp_path),
        )


@pytest.mark.slow
def test_a_killed_optimisation_goes_on(tmp_path: Path) -> None:
    words = [
        "--vary",
        "market.price_usd_per_mtok_output=0.2..3 log",
        "--trials",
        "24",
        "--set",
        "horizon_months=12",
    ]
    code = "import typer; from sim.cli import study_search as c; typer.run(c.optimise)"

    def command(out: Path) -> list[str]:
        return [sys.executable, "-c", code, "api_startup", *words, "--out", str(out), "--workers", "1"]

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.Popen(command(tmp_path / "killed"), env=environment, start_new_session=True)
    until = time.monotonic() + 60
    while not list((tmp_path / "killed").glob("runs/search-0002/parts/*.parquet")):
        assert killed.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "result.json").exists()
    for out in ("killed", "whole"):
        subprocess.run(command(tmp_path / out), env=environment, check=True, capture_output=True)
    results = [(tmp_path / out / "result.json").read_text() for out in ("killed", "whole")]
    assert results[0] == results[1]


def test_goal_seek_in_closed_form(seats: Scenario) -> None:
    end = simulate(seats).headline["cash_usd_end"]
    # Cash at the start adds to cash at the end, dollar for dollar.
    found = goal_seek(
        seats,
        "finance.initial_cash_usd",
        f"cash_usd_end = {end + 250_000}",
        0,
        4e6,
        seeds=2,
        points=5,
        options=HERE,
    )
    first = goal_seek(
        seats,
        "finance.initial_cash_usd",
        f"cash_usd_end = {end + 250_000}",
        0,
        4e6,
        seeds=1,
        points=5,
        options=HERE,
    )
    assert first.value == pytest.approx(1_250_000, abs=4e6 * 1e-3)
    assert first.crossings["kind"].tolist() == ["reached"]
    assert len(found.crossings) == 1
    assert found.crossings["low"].iloc[0] < found.value < found.crossings["high"].iloc[0]
    # A customer brings fee − support each month, so gross profit over revenue is 60 % at a fee of 8 / 0.4 = 20.
    margin = goal_seek(
        seats.override({"deployment.replica_price_usd_per_hour": 0.0}),
        "market.plans.seat.monthly_fee_usd",
        "gross_margin_total = 60%",
        9,
        60,
        seeds=2,
        points=7,
        options=HERE,
    )
    assert margin.value == pytest.approx(20.0, abs=0.1)


def test_goal_seek_says_what_is_reached_when_the_goal_is_not(seats: Scenario) -> None:
    fee, never = "market.plans.seat.monthly_fee_usd", "gross_margin_total = 99.9%"
    found = goal_seek(seats, fee, never, 9, 60, seeds=1, points=4, options=HERE)
    assert found.value is None
    assert found.crossings.empty
    assert found.outcome_most == found.scan["outcome"].max() < 0.999
    assert len(found.scan) == 4


def test_goal_seek_of_whole_numbers_and_inequalities(seats: Scenario) -> None:
    found = goal_seek(
        seats,
        "market.plans.seat.initial_customers",
        "customers_end >= 500000",
        0,
        10**6,
        seeds=1,
        points=3,
        options=HERE,
    )
    crossing = found.crossings.iloc[0]
    assert crossing["kind"] == "reached" or crossing["outcome_above"] >= 500_000
    assert found.value == int(found.value)
    at = simulate(seats.override({"market.plans.seat.initial_customers": int(found.value)}))
    assert at.headline["customers_end"] >= 500_000
    before = simulate(seats.override({"market.plans.seat.initial_customers": int(found.value) - 1}))
    assert before.headline["customers_end"] < 500_000


def test_goal_seek_refuses(seats: Scenario) -> None:
    with pytest.raises(InputError, match="nearest"):
        goal_seek(seats, "market.plans.seat.monthly_fee", "cash_usd_end = 0", 1, 2, options=HERE)
    with pytest.raises(InputError, match="allowed"):
        goal_seek(seats, "market.plans.seat.monthly_fee_usd", "cash_usd_end = 0", 2, 1, options=HERE)
    with pytest.raises(InputError, match="outcome cash_end: unknown, nearest is cash_usd_end"):
        goal_seek(seats, "market.plans.seat.monthly_fee_usd", "cash_end = 0", 1, 2, options=HERE)


def test_a_tornado_of_known_effects(seats: Scenario) -> None:
    keys = [
        "finance.initial_cash_usd",
        "finance.other_opex_usd_per_month",
        "market.churn_per_incident",
        "data.feedback_yield",
    ]
    found = sensitivity(seats, "cash_usd_end", keys=keys, seeds=2, options=HERE)
    table = found.table.set_index("key")
    assert found.table["key"].tolist()[:2] == ["finance.initial_cash_usd", "finance.other_opex_usd_per_month"]
    assert table.loc["finance.initial_cash_usd", "effect"] == pytest.approx(0.4 * 1e6, abs=1e-3)
    assert table.loc["finance.initial_cash_usd", "outcome_low"] == pytest.approx(
        found.base.value - 2e5, abs=1e-3
    )
    paid = 6 - seats.finance.supplier_payment_days / 30.4
    assert table.loc["finance.other_opex_usd_per_month", "effect"] == pytest.approx(
        0.4 * seats.finance.other_opex_usd_per_month * paid, rel=0.25
    )
    # The same seeds: where nothing changes, nothing is measured, to the cent.
    assert table.loc["data.feedback_yield", "effect"] == 0
    assert table.loc["data.feedback_yield", "in_noise"]
    assert not table.loc["finance.initial_cash_usd", "in_noise"]
    assert found.skipped["key"].tolist() == ["market.churn_per_incident"]  # zero
    first, *_, last = in_words(found)
    assert first.startswith("1. ")
    assert "$800k" in first
    assert "$1.2M" in first
    assert "finance.initial_cash_usd" in first
    assert last.endswith("within what chance does.")


def test_distributions_give_the_range(seats: Scenario) -> None:
    uncertain = seats.override({"market.plans.seat.support_usd_per_month": "~ uniform(5, 15)"})
    inputs, _ = inputs_of(uncertain, ["market.plans.seat.support_usd_per_month"])
    assert (inputs[0].low, inputs[0].base, inputs[0].high) == (6.0, 10.0, 14.0)
    whole, _ = inputs_of(seats, ["training.accelerators"])
    assert all(isinstance(whole[0].at(share), int) for share in (0.1, 0.5, 0.9))
    # Morris over the distribution: profit falls by the customers' months for each dollar of support.
    found = sensitivity(uncertain, "profit_usd_total", method="morris", samples=2, options=HERE)
    assert found.table["key"].tolist() == ["market.plans.seat.support_usd_per_month"]
    more = uncertain.override({"market.plans.seat.support_usd_per_month": 11.0})
    slope = (
        simulate(more).monthly["net_income_usd"].sum() - simulate(uncertain).monthly["net_income_usd"].sum()
    )
    assert found.table["mu"].iloc[0] == pytest.approx(9 * slope, rel=1e-6)


def test_sobol_divides_the_variance_of_a_sum(seats: Scenario) -> None:
    """Cost is paid for certain here: its variance is that of two uniform numbers, each times its months."""
    nobody = seats.override(
        {
            "horizon_months": 2,
            "market.organic_signups_per_month": 0.0,
            "market.plans.seat.initial_customers": 100,
            "market.plans.seat.support_usd_per_month": "~ uniform(0, 20)",
            "finance.other_opex_usd_per_month": "~ uniform(10000, 13000)",
        }
    )
    found = sensitivity(nobody, "profit_usd_total", method="sobol", samples=32, options=HERE)
    spread = {
        "market.plans.seat.support_usd_per_month": 100 * 20.0,
        "finance.other_opex_usd_per_month": 3000.0,
    }
    variance = sum(value**2 for value in spread.values())
    assert found.table["key"].tolist() == [
        "finance.other_opex_usd_per_month",
        "market.plans.seat.support_usd_per_month",
    ]
    for row in found.table.itertuples():
        for value in (row.s1, row.st):
            assert value == pytest.approx(spread[row.key] ** 2 / variance, abs=0.15)
    assert found.runs == 32 * 4 + 1
    first = in_words(found)[0]
    assert first.startswith(
        "1. Office, software, legal, insurance (finance.other_opex_usd_per_month): it decides "
    )
    assert any("one seed" in note for note in found.notes)


@pytest.mark.slow
def test_sobol_without_distributions_takes_the_ten_largest(startup: Scenario) -> None:
    certain = startup.override({key: value.median for key, value in startup.uncertain.items()})
    found = sensitivity(certain, "cash_usd_end", method="sobol", samples=4)
    assert len(found.table) == 10
    assert (found.skipped["why"] == "not among the ten largest of a tornado at one seed").sum() > 50
    largest = sensitivity(certain, "cash_usd_end", seeds=1).table["key"].head(10)
    assert set(largest) == set(found.table["key"])


def test_a_share_takes_from_its_neighbours(startup: Scenario) -> None:
    changed = with_shares_kept(startup, {"market.plans.trial.signup_share": 0.5})
    assert changed["market.plans.developers.signup_share"] == pytest.approx(0.5)
    startup.override(changed)
    with pytest.raises(InputError, match="shares come to 1"):
        with_shares_kept(startup, {"market.plans.trial.signup_share": 1.2})


def test_keys_know_their_bounds(startup: Scenario) -> None:
    facts = key_facts(startup, "training.accelerators")
    assert facts.whole
    assert facts.low == 1
    share = key_facts(startup, "data.feedback_opt_in")
    assert (share.low, share.high) == (0, 1)
    keys = numeric_keys(startup)
    assert "market.price_usd_per_mtok_output" in keys
    assert not {"seed", "name", "deployment.model"} & set(keys)
    for wrong in ("market.price=1..2", "data.feedback_opt_in=0..2", "training.accelerators=1.5..3", "x"):
        with pytest.raises(InputError):
            parse_lever(wrong, startup)
    assert str(parse_lever("training.accelerators=1..16 log", startup)) == "training.accelerators=1..16 log"


def changed(startup: Scenario) -> Scenario:
    return startup.override(
        {
            "market.price_usd_per_mtok_output": 1.2,
            "market.plans.trial.signup_share": 0.6,
            "market.plans.developers.signup_share": 0.3,
            "market.plans.team": {"signup_share": 0.1, "monthly_fee_usd": 50.0},
            "finance.initial_cash_usd": 800_000.0,
        }
    )


def test_differences_name_plans_and_lead_from_one_to_the_other(startup: Scenario) -> None:
    other = changed(startup)
    found = {one.key: one for one in differences(startup, other)}
    assert set(found) == {
        "market.price_usd_per_mtok_output",
        "market.plans.trial.signup_share",
        "market.plans.developers.signup_share",
        "market.plans.team",
        "finance.initial_cash_usd",
    }
    assert found["market.plans.team"].before == ABSENT
    assert (found["finance.initial_cash_usd"].before, found["finance.initial_cash_usd"].after) == (7e5, 8e5)
    assert plain(startup.override(hybrid(startup, other, found.values()))) == plain(other)
    assert plain(other.override(hybrid(other, startup, differences(other, startup)))) == plain(startup)
    assert hybrid(startup, other, []) == {}
    assert [len(group) for group in grouped(list(found.values()), 2).values()] == [4, 1]
    assert len(grouped(list(found.values()), 8)) == 5


NAMES = st.sampled_from(["a", "b.c", "d"])
TREES = st.recursive(st.integers(0, 3), lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=8)


@given(st.dictionaries(NAMES, TREES), st.dictionaries(NAMES, TREES))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_overrides_lead_from_any_tree_to_any_other(before: dict, after: dict) -> None:
    """Where the top has the same names, as in scenarios."""
    before, after = {"x": before}, {"x": after}
    for key, value in overrides_between(before, after).items():
        names, tree = key.split("."), before
        for name in names[:-1]:
            tree = tree[name]
        tree[names[-1]] = value
    assert before == after
    assert json.dumps(before) == json.dumps(after)  # in the same order too


def test_scenarios_side_by_side(startup: Scenario) -> None:
    other = changed(startup)
    found = compare({"now": startup, "plan": other}, seeds=2, monthly=["cash_usd"], options=HERE)
    assert found.names == ("now", "plan")
    cash = found.headline[found.headline["outcome"] == "cash_usd_end"].set_index("scenario")
    ends = {
        name: [simulate(scenario, startup.seed + n).headline["cash_usd_end"] for n in range(2)]
        for name, scenario in (("now", startup), ("plan", other))
    }
    for name, values in ends.items():
        assert cash.loc[name, "value"] == pytest.approx(np.mean(values), abs=0.01)
    apart = np.subtract(ends["plan"], ends["now"])
    assert cash.loc["plan", "difference"] == pytest.approx(apart.mean(), abs=0.01)
    assert cash.loc["now", "difference"] == 0
    last = found.monthly[found.monthly["month_index"] == 4].set_index("scenario")
    assert last.loc["plan", "value"] == pytest.approx(cash.loc["plan", "value"])
    assert len(found.monthly) == 10
    assert found.changes.set_index("key").loc["market.plans.team", "now"] == ABSENT
    with pytest.raises(InputError, match="two or more"):
        compare({"now": startup}, options=HERE)


def test_accounts_explain_cash_to_the_micro_dollar(startup: Scenario) -> None:
    other = changed(startup)
    a, b = simulate(startup), simulate(other)
    for outcome, line in (("cash_usd_end", "closing_cash"), ("profit_usd_total", "net_income")):
        bars = explain_by_account(startup, other, outcome).bars
        if line == "closing_cash":
            ends = [int(run.statements.cash_flow(exact=True)[line].iloc[-1]) for run in (a, b)]
        else:
            ends = [int(run.statements.income(exact=True)[line].sum()) for run in (a, b)]
        micro = bars["change_micro_usd"].tolist()
        assert [micro[0], micro[-1]] == ends
        assert sum(micro[1:-1]) == ends[1] - ends[0]
        terms = bars.set_index("term")["change_micro_usd"]
        for account, sign in (("revenue_tokens", 1), ("marketing", -1)):
            incomes = [int(run.statements.income(exact=True)[account].sum()) for run in (a, b)]
            assert terms[account] == sign * (incomes[1] - incomes[0])
    assert explain_by_account(startup, other, "cash_usd_end").bars.set_index("term").loc[
        "paid_in_capital", "change"
    ] == pytest.approx(100_000)
    with pytest.raises(InputError, match="not a sum of accounts"):
        explain_by_account(startup, other, "customers_end")


def test_assumptions_explain_the_difference(startup: Scenario) -> None:
    other = changed(startup)
    found = explain_by_assumption(startup, other, "cash_usd_end", seeds=2, options=HERE)
    assert found.method == "exact"
    micro = found.bars["change_micro_usd"].tolist()
    assert micro[0] + sum(micro[1:-1]) == micro[-1]
    ends = [
        simulate(one, startup.seed + n).headline["cash_usd_end"] for one in (startup, other) for n in (0, 1)
    ]
    assert micro[0] == pytest.approx(1e6 * np.mean(ends[:2]), abs=1)
    assert micro[-1] == pytest.approx(1e6 * np.mean(ends[2:]), abs=1)
    bars = found.bars.set_index("term")
    assert bars.loc["finance.initial_cash_usd", "change"] == pytest.approx(100_000, abs=1e-5)
    assert bars.loc["finance.initial_cash_usd", "standard_error"] == pytest.approx(0, abs=1e-6)
    # Signup shares add up to 1, so they and the new plan can only come together.
    together = found.groups[found.groups["key"].str.startswith("market.plans")]["term"].unique()
    assert len(together) == 1
    drawn = explain_by_assumption(
        startup, other, "customers_end", seeds=1, method="orders", options=HERE
    ).bars
    assert drawn["change"].iloc[0] + drawn["change"].iloc[1:-1].sum() == pytest.approx(
        drawn["change"].iloc[-1]
    )
    with pytest.raises(InputError, match="no assumption differs"):
        explain_by_assumption(startup, startup, "cash_usd_end", options=HERE)
    with pytest.raises(InputError, match="not a number in some run"):
        explain_by_assumption(startup, other, "cash_out_month_index", seeds=1, options=HERE)


def test_groups_are_what_is_asked(startup: Scenario) -> None:
    other = changed(startup)
    groups = {"plans and price": ["market"], "money": ["finance"]}
    found = explain_by_assumption(
        startup, other, "cash_usd_end", seeds=1, groups=groups, method="sequence", options=HERE
    )
    assert set(found.bars["term"]) == {"A", "B", "plans and price", "money"}
    assert found.runs == 3
    with pytest.raises(InputError, match="in plans and in all"):
        explain_by_assumption(
            startup,
            other,
            "cash_usd_end",
            groups={"plans": ["market.plans"], "all": ["market"]},
            options=HERE,
        )
    with pytest.raises(InputError, match="holds no assumption that differs"):
        explain_by_assumption(startup, other, "cash_usd_end", groups={"fleet": ["deployment"]}, options=HERE)


@pytest.fixture(scope="module")
def commands() -> typer.Typer:
    app = typer.Typer()
    for name, command in (
        ("sensitivity", study_search.sensitivity),
        ("optimise", study_search.optimise),
        ("goal-seek", study_search.goal_seek),
        ("compare", study_search.compare),
    ):
        app.command(name)(command)
    return app


SHORT = ["--set", "horizon_months=6", "--workers", "0"]


@pytest.mark.parametrize(
    ("words", "table", "key"),
    [
        (
            ["sensitivity", "api_startup", "--key", "finance.people", "--seeds", "1"],
            "finance.people",
            "table",
        ),
        (
            [
                "optimise",
                "--vary",
                "deployment.headroom=0..0.5",
                "--trials",
                "4",
                "--seeds",
                "1",
                "--fresh-seeds",
                "2",
            ],
            "today",
            "chosen",
        ),
        (
            [
                *("goal-seek", "--change", "finance.initial_cash_usd", "--until", "cash_usd_end = 1M"),
                *("--between", "1e5..3e6", "--seeds", "1", "--points", "3"),
            ],
            "finance.initial_cash_usd",
            "crossings",
        ),
        (["compare", "api_startup", "price_war", "--seeds", "1"], "Cash at the end", "headline"),
        (
            [
                "compare",
                "api_startup",
                "price_war",
                "--seeds",
                "1",
                "--explain",
                "profit_usd_total",
                "--by",
                "account",
            ],
            "marketing",
            "explanation",
        ),
    ],
)
def test_the_commands_answer(
    commands: typer.Typer, tmp_path: Path, words: list[str], table: str, key: str
) -> None:
    shown = CliRunner().invoke(commands, [*words, *SHORT, "--out", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert table in shown.stdout
    told = CliRunner().invoke(commands, [*words, *SHORT, "--out", str(tmp_path), "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)[key]
    assert json.loads((tmp_path / "result.json").read_text())[key]
    assert list(tmp_path.glob("*.csv"))


def test_the_commands_refuse(commands: typer.Typer) -> None:
    for words, why in (
        (["optimise", "--vary", "market.price=1..2"], "unknown key"),
        (["sensitivity", "--outcome", "cash"], "nearest"),
        (["sensitivity", "--method", "guess"], "tornado, morris, sobol"),
        (["goal-seek", "--between", "5..1"], "allowed"),
        (["compare", "api_startup"], "two or more"),
        (["compare", "api_startup", "price_war", "--by", "magic"], "assumption or account"),
    ):
        found = CliRunner().invoke(commands, [*words, *SHORT])
        assert isinstance(found.exception, InputError), words
        assert why in str(found.exception)
