"""The film of the wheel, the money of a month, movements of MRR, cohorts, training: they add up to the books."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from engine.training.scaling_law import BESIROGLU_2024, ScalingConstants, loss
from sim import Result, Scenario, simulate
from sim.accounting.ledger import MICRO_PER_USD
from sim.figures.finance import cohort_map, cohorts_kept, money_by_month, mrr_by_cause, mrr_movements
from sim.figures.flywheel import loop_by_month, loop_film
from sim.figures.training import loss_curve, planned_loss, scaling_law
from tests.helpers.company import closed_form_surface

NAMES = ("api_startup", "chat_subscription", "three_segments", "enterprise_finetune")


@pytest.fixture(scope="module", params=NAMES)
def result(request: pytest.FixtureRequest) -> Result:
    return simulate(Scenario.load(request.param), seed=3, surface=closed_form_surface())


def test_the_money_of_a_month_comes_in_and_goes_out_to_the_micro_dollar(result: Result) -> None:
    money = money_by_month(result)
    assert (money.sum(axis=1) == 0).all()
    income = result.statements.income(exact=True)
    assert (money[["tokens", "seats", "licences, shares", "services"]].sum(axis=1) > 0).any()
    assert (money["serving"] == -income[["serving_reserved", "serving_on_demand"]].sum(axis=1)).any()
    # "other" is what no group names; it must not hide the fleet or the people.
    assert money["other"].abs().sum() < 0.3 * money.abs().sum().sum()


def test_the_film_has_a_frame_for_each_month_and_its_bands_balance(result: Result) -> None:
    film = loop_film(result)
    assert [frame.name for frame in film.frames] == list(result.monthly["month"])
    assert [step.label for step in film.layout.sliders[0].steps] == list(result.monthly["month"])
    for frame, revenue in zip(film.frames, result.monthly["revenue_usd"], strict=True):
        wheel, money = frame.data
        assert all(0 < width <= 1 for width in wheel.link.value)
        middle = max(set(money.link.source), key=list(money.link.source).count)
        incoming = sum(v for v, t in zip(money.link.value, money.link.target, strict=True) if t == middle)
        outgoing = sum(v for v, s in zip(money.link.value, money.link.source, strict=True) if s == middle)
        assert incoming == pytest.approx(outgoing, abs=1e-5)
        assert incoming >= revenue - 1e-6


def test_each_band_is_full_in_its_own_busiest_month(result: Result) -> None:
    flows = loop_by_month(result)
    film = loop_film(result)
    busiest = int(flows["served_tokens"].to_numpy().argmax())
    assert max(film.frames[busiest].data[0].link.value) == pytest.approx(1.0)


def test_movements_of_mrr_add_up_to_its_change(result: Result) -> None:
    moves = mrr_by_cause(result)
    change = result.monthly["mrr_usd"].diff().fillna(0.0)
    got = moves[["new_usd", "expansion_usd", "contraction_usd", "churn_usd"]].sum(axis=1)
    np.testing.assert_allclose(got, change, atol=1 / MICRO_PER_USD)
    assert (moves[["new_usd", "expansion_usd"]] >= 0).all(axis=None)
    assert (moves[["contraction_usd", "churn_usd"]] <= 0).all(axis=None)
    assert len(mrr_movements(result).data) == 4


def test_cohorts_start_whole_and_only_lose_customers(result: Result) -> None:
    kept = cohorts_kept(result)
    assert (kept[0].dropna() == 1).all()
    by_hand = result.cohorts[result.cohorts["cohort"].str.startswith("2026-0")]
    first_quarter = by_hand[by_hand["cohort"] <= "2026-03"]
    if len(first_quarter) and "2026 Q1" in kept.index and 6 in kept:
        total = first_quarter.groupby("age_months")["customers"].sum()
        assert kept.loc["2026 Q1", 6] == pytest.approx(total[6] / total[0])
    assert cohort_map(result, measure="mrr").data[0].type == "heatmap"


def test_the_loss_curve_shows_each_measurement() -> None:
    steps = pd.DataFrame(
        {"step": [0, 1, 2], "loss": [np.nan, 6.0, 5.0], "validation_loss": [6.2, np.nan, 5.1]}
    )
    figure = loss_curve(steps, 10)
    assert list(figure.data[0].y) == [6.0, 5.0]
    assert list(figure.data[1].y) == [6.0, 5.5]
    assert list(figure.data[2].y) == [6.2, 5.1]
    assert "6.20 → 5.10" in figure.layout.title.text
    assert loss_curve(steps.iloc[:0], 10).layout.title.text


def test_the_lines_of_the_scaling_law_are_the_law() -> None:
    figure = scaling_law(BESIROGLU_2024, np.array([1e9]))
    line = figure.data[0]
    assert line.y[0] == pytest.approx(1.8172 + 482.01 / 1e9**0.3478 + 2085.43 / line.x[0] ** 0.3658)
    draws = tuple((1.8, 480.0 * f, 2080.0, 0.35, 0.36) for f in (0.9, 1.0, 1.1))
    measured = ScalingConstants(E=1.8, A=480.0, B=2080.0, alpha=0.35, beta=0.36, source="test", draws=draws)
    points = pd.DataFrame({"parameters": [1e6], "tokens": [1e7], "loss": [9.0]})
    band = scaling_law(measured, np.array([1e6]), points)
    assert [trace.mode for trace in band.data] == [None, "lines", "markers"]


def test_the_planned_run_lies_on_the_curve_of_its_compute() -> None:
    figure = planned_loss(7e9, 140e9, BESIROGLU_2024)
    marks = {trace.name: trace for trace in figure.data if trace.mode == "markers"}
    assert marks["this run"].y[0] == pytest.approx(loss(7e9, 140e9))
    assert marks["compute-optimal"].y[0] <= marks["this run"].y[0]
    curve = next(trace for trace in figure.data if trace.line.dash == "solid")
    assert min(curve.y) == pytest.approx(marks["compute-optimal"].y[0], rel=1e-3)
