"""The finance tables as shown: complete, in human units, and in the report."""

from __future__ import annotations

import pytest

from sim import Scenario, simulate
from sim.i18n import numbers
from sim.report.finance_tables import shown_tables
from sim.report.html import report_html


@pytest.fixture(scope="module")
def result():
    return simulate(Scenario.load("platform").override({"horizon_months": 18}))


def test_plans_add_up_to_the_income_statement(result) -> None:
    shown = shown_tables(result)["Unit economics by plan, last 12 months"]
    assert list(shown.columns) == result.unit_economics["plan"].tolist()
    assert shown.loc["Revenue"].tolist() == [numbers.usd(v) for v in result.unit_economics["revenue_usd"]]
    year = result.monthly.tail(12)
    assert result.unit_economics["revenue_usd"].sum() == pytest.approx(year["revenue_usd"].sum())


def test_causes_add_up_to_the_cost_of_goods(result) -> None:
    shown = shown_tables(result)["Cost of goods by cause"]
    assert list(shown.columns) == sorted({label[:4] for label in result.monthly["month"]})
    assert result.cogs_by_cause["cost_usd"].sum() == pytest.approx(result.monthly["cogs_usd"].sum())


def test_the_report_shows_them_and_rounds_only_where_there_are_some(result) -> None:
    text = report_html(result)
    assert all(title in text for title in shown_tables(result))
    alone = simulate(Scenario.load("platform").override({"horizon_months": 2, "finance.funding": {}}))
    assert "Funding rounds and ownership" not in shown_tables(alone)
