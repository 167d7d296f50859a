"""Finance tables of the report and the app: unit economics by plan, causes of cost, ownership."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from sim.accounting.labels import line_label
from sim.i18n import numbers
from sim.i18n.translate import mark, tr
from sim.scenario.metrics import PER_PLAN
from sim.scenario.units import in_unit

if TYPE_CHECKING:
    from sim.company.simulate import Result

_LINES = (
    "customers_mean",
    "tokens_mtok",
    "revenue_usd",
    "cogs_own_usd",
    "cogs_shared_usd",
    "gross_profit_usd",
    "gross_margin",
    "revenue_usd_per_customer",
    "gross_profit_usd_per_customer",
    "revenue_usd_per_mtok",
    "cogs_usd_per_mtok",
    "churn_per_month",
    "ltv_usd",
)
_DECIMALS = {"churn_per_month": 1}  # of percents; others are whole
_CAP_TABLE: dict[str, tuple[str, Callable[[Any], str]]] = {
    "month": (mark("Month"), str),
    "amount_usd": (mark("Paid in"), numbers.usd),
    "post_money_usd": (mark("Post-money"), numbers.usd),
    "investor_share": (mark("This round's investors"), lambda value: numbers.percent(value, 1)),
    "founders_share": (mark("Founders after it"), lambda value: numbers.percent(value, 1)),
}


def shown_tables(result: Result) -> dict[str, pd.DataFrame]:
    """Title to a table of texts: lines down, plans, years or rounds across; empty ones are left out.

    Texts are in the current language.
    """
    plans = result.unit_economics
    causes = result.cogs_by_cause
    by_year = causes.assign(year=causes["month"].str[:4]).pivot_table(
        index="cause", columns="year", values="cost_usd", aggfunc="sum", sort=False
    )
    by_year.index = pd.Index([line_label(str(cause)) for cause in by_year.index])
    rounds = result.cap_table.dropna(subset=["post_money_usd"])  # without a price there are no shares
    tables = {
        tr("Unit economics by plan, last 12 months"): _plan_table(plans),
        tr("Cost of goods by cause"): by_year.map(numbers.usd),
        tr("Funding rounds and ownership"): _rounds_table(rounds),
    }
    return {title: table for title, table in tables.items() if table.size}


def _plan_table(plans: pd.DataFrame) -> pd.DataFrame:
    """One column per plan, one line per metric, as text."""
    lines = {
        tr(PER_PLAN[name].title): [
            in_unit(value, PER_PLAN[name].unit, _DECIMALS.get(name, 0)) for value in plans[name]
        ]
        for name in _LINES
    }
    return _across(lines, plans["plan"])


def _rounds_table(rounds: pd.DataFrame) -> pd.DataFrame:
    """One column per funding round, one line per quantity, as text."""
    lines = {tr(label): [form(value) for value in rounds[key]] for key, (label, form) in _CAP_TABLE.items()}
    return _across(lines, rounds["round"])


def _across(lines: dict[str, list[str]], names: pd.Series) -> pd.DataFrame:
    return pd.DataFrame.from_dict(lines, orient="index", columns=pd.Index(names.astype(str)))
