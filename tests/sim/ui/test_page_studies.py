"""The pages Compare, Uncertainty and Decide: every control does what it says; their figures against the frames."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from sim.accounting.ledger import MICRO_PER_USD
from sim.figures.compare import COLUMNS, difference, meanings, sentence, shortened, side_by_side, sum_in_words
from sim.figures.decide import answer, candidates, curve
from sim.figures.study import fan, indices, ruin, spread, tornado
from sim.figures.theme import PALETTES, Theme, without_title
from sim.scenario.metrics import OUTCOMES
from sim.scenario.scenario import Scenario
from sim.study.compare import Comparison, compare
from sim.study.explain import Explanation, explain_by_account, explain_by_assumption
from sim.study.goal_seek import GoalSeek, goal_seek
from sim.study.monte_carlo import MonteCarlo, monte_carlo
from sim.study.optimise import Optimum, optimise
from sim.study.runs.options import RunOptions
from sim.study.sensitivity import Sensitivity, sensitivity
from sim.study.waterfall import Term, waterfall
from tests.helpers import app
from tests.helpers.places import APP

HERE: dict[str, Any] = {"options": RunOptions(workers=0)}
drawn = partial(app.drawn, patience_s=240.0)  # on a machine that does much else
PRICE = "market.price_usd_per_mtok_output"
MARKETING = "market.marketing_usd_per_month"


@pytest.fixture(scope="module")
def company() -> Scenario:
    return Scenario.load("api_startup").override({"horizon_months": 4})


@pytest.fixture(scope="module")
def study(company: Scenario) -> MonteCarlo:
    return monte_carlo(company, runs=24, fans=("cash_usd", "revenue_usd", "gross_margin"), **HERE)


@pytest.fixture(scope="module")
def tornado_study(company: Scenario) -> Sensitivity:
    keys = [PRICE, MARKETING, "market.signup_cost_usd"]
    return sensitivity(company, "cash_usd_end", keys=keys, seeds=2, **HERE)


@pytest.fixture(scope="module")
def sought(company: Scenario) -> GoalSeek:
    return goal_seek(company, PRICE, "revenue_usd_total = 40000", 0.2, 3.0, seeds=2, points=5, **HERE)


@pytest.fixture(scope="module")
def two(company: Scenario) -> tuple[Scenario, Scenario]:
    return company, company.override({PRICE: 1.6, MARKETING: 20_000.0})


@pytest.fixture(scope="module")
def compared(two: tuple[Scenario, Scenario]) -> Comparison:
    return compare({"now": two[0], "dearer": two[1]}, seeds=2, monthly=tuple(COLUMNS), **HERE)


@pytest.fixture(scope="module", params=["account", "assumption"])
def explained(two: tuple[Scenario, Scenario], request: pytest.FixtureRequest) -> Explanation:
    if request.param == "account":
        return explain_by_account(*two, "cash_usd_end", names=("now", "dearer"), seeds=2)
    return explain_by_assumption(*two, "cash_usd_end", names=("now", "dearer"), seeds=2, **HERE)


# --- figures ---


def presentable(figure: go.Figure, theme: Theme) -> bool:
    """A finding and what is drawn as words, titled axes, colours of the palette, something to hover over."""
    title, subtitle, _ = without_title(figure)
    assert title
    assert subtitle
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        assert axis.visible is False or axis.title.text
    assert any(trace.hovertemplate for trace in figure.data)
    ours = {value.lower() for value in vars(PALETTES[theme]).values()}
    said = re.findall(r"#[0-9a-fA-F]{6}", str(figure.to_plotly_json()))
    assert {colour.lower() for colour in said} <= ours
    triples = {tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5)) for colour in ours}
    through = re.findall(r"rgba\((\d+),(\d+),(\d+),", str(figure.to_plotly_json()))
    assert {tuple(map(int, found)) for found in through} <= triples
    return True


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_figure_is_presentable(
    theme: Theme,
    study: MonteCarlo,
    tornado_study: Sensitivity,
    sought: GoalSeek,
    compared: Comparison,
    explained: Explanation,
) -> None:
    assert presentable(ruin(study, theme), theme)
    for column in study.fans:
        assert presentable(fan(study, column, theme), theme)
    assert presentable(spread(study, "cash_usd_end", theme), theme)
    assert presentable(tornado(tornado_study, theme), theme)
    assert presentable(curve(sought, theme), theme)
    for column in COLUMNS:
        assert presentable(side_by_side(compared, column, theme), theme)
    assert presentable(difference(explained, theme), theme)


def test_a_fan_and_the_ruin_are_those_of_the_runs(study: MonteCarlo) -> None:
    runs = np.stack(study.runs["month.cash_usd"].to_numpy())
    lines = {trace.name: trace for trace in fan(study, "cash_usd").data}
    np.testing.assert_allclose(lines["median"].y, np.median(runs, axis=0))
    np.testing.assert_allclose(lines["90% of runs"].y, np.percentile(runs, 95, axis=0))
    broke = np.maximum.accumulate(runs < 0, axis=1).mean(axis=0)
    np.testing.assert_allclose(ruin(study).data[-1].y, broke)


def test_a_histogram_holds_every_run_once(study: MonteCarlo) -> None:
    figure = spread(study, "customers_end")
    assert sum(figure.data[0].y) == len(study.runs)
    bars = figure.data[0]
    values = study.runs["out.customers_end"]
    assert min(bars.x) - max(bars.width) / 2 <= values.min() + 1e-6
    assert max(bars.x) + max(bars.width) / 2 >= values.max() - 1e-6


def test_a_tornado_ends_at_the_outcomes(tornado_study: Sensitivity) -> None:
    low, high = tornado(tornado_study).data
    table = tornado_study.table
    np.testing.assert_allclose(np.asarray(low.x) + low.base, table["outcome_low"])
    np.testing.assert_allclose(np.asarray(high.x) + high.base, table["outcome_high"])
    assert table["effect"].is_monotonic_decreasing


@pytest.mark.parametrize("method", ["morris", "sobol"])
def test_indices_are_drawn_with_their_intervals(
    company: Scenario, method: Literal["morris", "sobol"]
) -> None:
    short = company.override({"horizon_months": 2})
    found = sensitivity(short, "cash_usd_end", method=method, keys=[PRICE, MARKETING], samples=4, **HERE)
    figure = indices(found)
    assert presentable(figure, "light")
    column = {"morris": "mu_star", "sobol": "st"}[method]
    bar = figure.data[0]
    np.testing.assert_allclose(bar.x, found.table[column])
    np.testing.assert_allclose(np.asarray(bar.x) + bar.error_x.array, found.table[f"{column}_high"])
    np.testing.assert_allclose(np.asarray(bar.x) - bar.error_x.arrayminus, found.table[f"{column}_low"])


def test_the_curve_meets_the_target_where_it_says(sought: GoalSeek) -> None:
    figure = curve(sought)
    marked = next(trace for trace in figure.data if trace.name == "target reached")
    line = next(trace for trace in figure.data if trace.mode == "lines+markers")
    assert marked.x[0] == sought.value
    assert np.interp(marked.x[0], line.x, line.y) == pytest.approx(40_000, rel=0.02)
    assert "comes to $40k" in answer(sought)


def test_a_target_out_of_reach_is_said(company: Scenario) -> None:
    found = goal_seek(company, PRICE, "revenue_usd_total = 1e15", 0.5, 1.0, seeds=2, points=2, **HERE)
    assert "never comes to" in answer(found)
    assert presentable(curve(found, "dark"), "dark")


def test_the_waterfall_goes_from_one_to_the_other_without_a_gap(
    explained: Explanation, compared: Comparison
) -> None:
    figure = difference(explained)
    bar, ends = figure.data
    tips = np.asarray(bar.base, float) + np.asarray(bar.x, float)
    assert bar.base[0] == pytest.approx(ends.x[0], abs=1e-6)
    np.testing.assert_allclose(np.asarray(bar.base, float)[1:], tips[:-1], atol=1e-6)
    assert tips[-1] == pytest.approx(ends.x[1], abs=1e-6)
    # The same two numbers stand in the table above it.
    cash = compared.headline.query("outcome == 'cash_usd_end'").set_index("scenario")["value"]
    np.testing.assert_allclose(np.asarray(ends.x, float), [cash["now"], cash["dearer"]], atol=0.01)
    words = sentence(explained)
    assert words.startswith("Cash at the end: dearer has $")
    assert ("more than now" in words) == (ends.x[1] > ends.x[0])
    assert sum_in_words(explained).count("=") == 1


@given(
    start=st.integers(-(10**12), 10**12),
    changes=st.lists(st.integers(-(10**10), 10**10), min_size=1, max_size=25),
    most=st.integers(2, 8),
)
@settings(max_examples=50, deadline=None)
def test_small_terms_together_still_add_up(start: int, changes: list[int], most: int) -> None:
    terms = [Term(str(i), Fraction(change, MICRO_PER_USD), float("nan")) for i, change in enumerate(changes)]
    first = Fraction(start, MICRO_PER_USD)
    last = first + sum((term.change for term in terms), Fraction(0))
    bars = shortened(waterfall(first, last, terms, ("a", "b"), money=True), most)
    assert len(bars) - 2 <= max(most, 1)
    assert bars["change_micro_usd"].iloc[1:-1].sum() == sum(changes)
    assert bars["running"].iloc[-2] == pytest.approx(float(last), abs=1e-5)


def test_assumptions_of_one_meaning_are_told_apart() -> None:
    found = meanings(["market.plans.pro.churn_per_month", "market.plans.free.churn_per_month", PRICE])
    assert len(set(found)) == 3
    assert found[0].endswith("(pro)")


@pytest.fixture(scope="module", params=[1, 2])
def optimum(company: Scenario, request: pytest.FixtureRequest) -> Optimum:
    goals = ["max revenue_usd_total", "max cash_usd_end"][: request.param]
    return optimise(
        company.override({"horizon_months": 2}),
        [f"{PRICE}=0.4..2", f"{MARKETING}=0..40000"],
        goals,
        ["cash_usd_min >= 0"],
        trials=10,
        seeds=1,
        fresh_seeds=2,
        **HERE,
    )


def test_candidates_are_all_drawn_and_the_best_stand_out(optimum: Optimum) -> None:
    figure = candidates(optimum)
    assert presentable(figure, "light")
    dots = [trace for trace in figure.data if trace.mode == "markers" and trace.name != "as it is"]
    assert sum(len(trace.x) for trace in dots) == len(optimum.trials)
    if len(optimum.goals) == 2:
        front = next(trace for trace in figure.data if "Pareto" in trace.name)
        assert sorted(front.x) == sorted(optimum.trials[optimum.trials["chosen"]][optimum.goals[0]])
        # Along a front what is won on one side is lost on the other.
        assert np.all(np.diff(front.x) > 0)
        assert np.all(np.diff(front.y) < 0)
    else:
        best = next(trace for trace in figure.data if trace.name == "best so far")
        able = optimum.trials[optimum.trials["feasible"]][optimum.goals[0]]
        np.testing.assert_allclose(best.y, np.maximum.accumulate(able.to_numpy()))


# --- pages ---


def opened(page: str, **query: str | list[str]) -> AppTest:
    app = AppTest.from_file(str(APP), default_timeout=120)
    app.query_params["months"] = "3"
    for key, value in query.items():
        app.query_params[key] = value
    drawn(app)
    for key, value in query.items():  # a page change clears what no widget has bound
        app.query_params[key] = value
    return drawn(app.switch_page(f"sim/ui/pages/{page}.py"))


def text_of(app: AppTest) -> str:
    text = " ".join(str(entry.value) for entry in (*app.markdown, *app.caption, *app.info, *app.success))
    return re.sub(r"\\(.)", r"\1", text)


def press(app: AppTest, label: str) -> AppTest:
    next(button for button in app.button if button.label == label).click()
    return drawn(app)


def charts(app: AppTest) -> int:
    return len(app.get("plotly_chart"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where "out/scenarios" lies


def test_compare_shows_a_change_against_the_file_and_explains_it() -> None:
    app = opened("compare", price_out="1.6", seeds="1")
    # The horizon and the price were changed: the file comes first, what is on show second.
    assert list(app.multiselect(key="compared").value) == ["api_startup", "on_show"]
    head = app.dataframe[0].value
    assert list(head.columns) == ["api_startup", "api_startup (changed)", "difference"]
    assert set(app.dataframe[-1].value["key"]) == {"horizon_months", PRICE}
    assert charts(app) == 3  # lines, by assumption, by account
    assert "api_startup (changed) has" in text_of(app)
    assert text_of(app).count("It adds up: ") == 2
    few = len(head)
    app.toggle(key="all_outcomes").set_value(True)
    drawn(app)
    assert len(app.dataframe[0].value) == len(OUTCOMES) > few
    app.button_group(key="metric").set_value("customers")
    app.selectbox(key="explain").set_value("customers_end")
    drawn(app)
    assert "Paying customers in the last month" in text_of(app)
    assert "Only cash, profit and revenue are sums of accounts" in text_of(app)
    assert app.query_params["metric"] == "customers"
    assert app.query_params["explain"] == "customers_end"
    app.button_group(key="seeds").set_value("4")
    drawn(app)
    assert "means of 4 common seeds" in text_of(app)


def test_a_link_opens_the_same_comparison_of_three() -> None:
    names = ["on_show", "price_war", "chat_subscription"]
    app = opened("compare", seeds="1", **{"with": names})
    assert list(app.multiselect(key="compared").value) == names
    assert list(app.dataframe[0].value.columns) == [
        "api_startup (changed)",
        "price_war",
        "price_war − first",
        "chat_subscription",
        "chat_subscription − first",
    ]
    # Two companies that differ in everything are explained when that is asked for.
    assert "By changed assumption" in text_of(app)
    app.multiselect(key="compared").set_value(["on_show"])
    drawn(app)
    assert "Choose two scenarios or more" in text_of(app)
    assert app.query_params["with"] == "on_show"


def test_uncertainty_shows_fans_ruin_targets_and_what_decides() -> None:
    app = opened("uncertainty", runs="50", targets="customers_end >= 1")
    assert charts(app) == 6  # ruin, three fans, the histogram, the tornado
    shown = {entry.label: str(entry.value) for entry in app.metric}
    assert shown["Out of cash by the end"].endswith("%")
    assert "`customers_end >= 1`" in str(app.table[0].value)
    assert "50 simulated runs, 12 unsure assumptions (Latin hypercube)" in text_of(app)
    assert "The 10 assumptions that decide it" in text_of(app)
    table = next(frame.value for frame in app.dataframe if "Distribution" in frame.value)
    assert set(table["Key"]) == set(Scenario.load("api_startup").uncertain)
    app.selectbox(key="outcome").set_value("arr_usd_end")
    app.selectbox(key="sampling").set_value("random")
    drawn(app)
    assert "ARR at the end: half of the runs" in text_of(app)
    assert "(random)" in text_of(app)
    assert app.query_params["outcome"] == "arr_usd_end"
    app.text_input(key="targets").set_value("nothing >= 1")
    drawn(app)
    assert "unknown" in app.error[0].value.replace("\\", "")


@pytest.mark.slow
def test_a_company_without_distributions_is_offered_assumed_ones() -> None:
    app = opened("uncertainty", scenario="price_war", runs="50")
    assert "No assumption of this scenario has a distribution" in text_of(app)
    table = next(frame.value for frame in app.dataframe if "Distribution" in frame.value)
    assert (table["Origin"] == "assumed here: ±20%").all()
    assert table["Distribution"].str.startswith("triangular(").all()
    app.toggle(key="assume").set_value(False)
    drawn(app)
    assert "0 unsure assumptions" in text_of(app)
    assert "press Analyse" in text_of(app)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["morris", "sobol"])
def test_global_indices_are_made_when_asked_for(method: str) -> None:
    app = opened("uncertainty", runs="50")
    app.selectbox(key="method").set_value(method)
    app.selectbox(key="samples").set_value("16")
    app.selectbox(key="decides").set_value("revenue_usd_total" if method == "sobol" else "cash_usd_end")
    press(app, "Analyse")
    assert {"morris": "Morris: mean absolute effect", "sobol": "Sobol' indices with 95%"}[method] in text_of(
        app
    )


@pytest.mark.slow
def test_a_study_stops_when_it_knows_enough() -> None:
    app = opened("uncertainty", runs="1000", until="p(ruined) ± 2%")
    assert "p(ruined) ± 2%: reached" in text_of(app)
    assert "256 simulated runs" in text_of(app)


def test_a_target_is_sought_and_set_in_the_scenario() -> None:
    app = opened("decide")
    assert "Press Seek" in text_of(app)
    app.selectbox(key="seek_outcome").set_value("customers_end")
    app.selectbox(key="seek_key").set_value(MARKETING)
    app.number_input(key="seek_seeds").set_value(2)
    app.text_input(key="seek_target").set_value("120")
    press(app, "Seek")
    assert charts(app) == 1
    assert "Paying customers at the end comes to 120 where" in text_of(app)
    assert app.query_params["change"] == MARKETING
    assert app.query_params["until"] == "customers_end = 120"
    before = app.number_input(key="marketing").value
    press(app, "Apply to the scenario")
    assert "it has been changed since" in text_of(app)
    assert app.success[0].value.replace("\\", "") == MARKETING
    after = app.number_input(key="marketing").value
    assert after != before
    assert float(app.query_params["marketing"]) == pytest.approx(after)


def test_a_link_asks_again_and_a_wrong_target_is_said() -> None:
    app = opened(
        "decide", change=PRICE, until="revenue_usd_total = 25000", between="0.2..4 log", seek_seeds="2"
    )
    assert "Revenue, whole run comes to $25k" in text_of(app)
    app.text_input(key="seek_target").set_value("much")
    press(app, "Seek")
    assert "for the number" in app.error[0].value.replace("\\", "")


def test_the_best_setting_is_searched_and_set() -> None:
    app = opened("decide", decide="optimise")
    assert "Press Search" in text_of(app)
    assert list(app.multiselect(key="levers_turned").value) == [PRICE, MARKETING]
    app.selectbox(key="goal_1").set_value("max arr_usd_end")
    app.selectbox(key="goal_2").set_value("max cash_usd_end")
    app.select_slider(key="trials").set_value(16)
    app.select_slider(key="trial_seeds").set_value(1)
    app.text_input(key="more_conditions").set_value("customers_end >= 1")
    app.text_input(key="more_levers").set_value("training.cadence_months=2..6")
    press(app, "Search")
    assert charts(app) == 1
    table = app.dataframe[0].value
    assert table["Candidate"].iloc[-1] == "as it is"
    assert set(table["Conditions"]) <= {"hold", "broken"}
    assert app.query_params["goal"] == ["max arr_usd_end", "max cash_usd_end"]
    assert app.query_params["subject-to"] == ["p(ruined) <= 5%", "customers_end >= 1"]
    price = float(table[PRICE].iloc[0])
    press(app, "Apply to the scenario")
    assert app.number_input(key="price_out").value == pytest.approx(price, rel=1e-3)
    assert app.number_input(key="cadence").value == pytest.approx(
        float(table["training.cadence_months"].iloc[0]), rel=1e-3
    )
    app.text_input(key="more_levers").set_value("nonsense")
    press(app, "Search")
    assert "lever" in app.error[0].value


@pytest.mark.slow
def test_a_study_can_be_cancelled_and_begun_again() -> None:
    app = opened("uncertainty", runs="50")
    app.selectbox(key="runs").set_value("5000")
    app.run()
    next(button for button in app.button if button.label == "Cancel").click()
    drawn(app)
    assert "Monte Carlo was cancelled" in text_of(app)
    assert any(button.label == "Start again" for button in app.button)
