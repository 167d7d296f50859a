"""The finance tables as people read them, in the report and the app: plans, causes of cost, who owns what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from sim.accounting.labels import line_label
from sim.i18n import numbers
from sim.i18n.translate import mark, tr

if TYPE_CHECKING:
    from sim.company.simulate import Result

_UNIT_ECONOMICS = {
    "customers_mean": (mark("Customers, mean"), numbers.count),
    "tokens_mtok": (mark("Million tokens"), numbers.count),
    "revenue_usd": (mark("Revenue"), numbers.usd),
    "cogs_own_usd": (mark("Cost of goods: its own"), numbers.usd),
    "cogs_shared_usd": (mark("Cost of goods: its share of the fleet"), numbers.usd),
    "gross_profit_usd": (mark("Gross profit"), numbers.usd),
    "gross_margin": (mark("Gross margin"), numbers.percent),
    "revenue_usd_per_customer": (mark("Revenue per customer and month"), numbers.usd),
    "gross_profit_usd_per_customer": (mark("Gross profit per customer and month"), numbers.usd),
    "revenue_usd_per_mtok": (mark("Revenue per million tokens"), numbers.usd),
    "cogs_usd_per_mtok": (mark("Cost of goods per million tokens"), numbers.usd),
    "churn_per_month": (mark("Churn per month"), lambda value: numbers.percent(value, 1)),
    "ltv_usd": (mark("LTV"), numbers.usd),
}
_CAP_TABLE = {
    "month": (mark("Month"), str),
    "amount_usd": (mark("Paid in"), numbers.usd),
    "post_money_usd": (mark("Post-money"), numbers.usd),
    "investor_share": (mark("This round's investors"), lambda value: numbers.percent(value, 1)),
    "founders_share": (mark("Founders after it"), lambda value: numbers.percent(value, 1)),
}


def shown_tables(result: Result) -> dict[str, pd.DataFrame]:
    """Title to a table of texts: lines down, plans, years or rounds across; empty ones are left out.

    All words are in the language of the moment.
    """
    plans = result.unit_economics
    causes = result.cogs_by_cause
    by_year = causes.assign(year=causes["month"].str[:4]).pivot_table(
        index="cause", columns="year", values="cost_usd", aggfunc="sum", sort=False
    )
    by_year.index = pd.Index([line_label(str(cause)) for cause in by_year.index])
    rounds = result.cap_table.dropna(subset=["post_money_usd"])  # without a price nobody knows the shares
    tables = {
        tr("Unit economics by plan, last 12 months"): _lines(plans, plans["plan"], _UNIT_ECONOMICS),
        tr("Cost of goods by cause"): by_year.map(numbers.usd),
        tr("Funding rounds and ownership"): _lines(rounds, rounds["round"], _CAP_TABLE),
    }
    return {title: table for title, table in tables.items() if table.size}


def _lines(frame: pd.DataFrame, names: pd.Series, lines: dict[str, tuple[str, Any]]) -> pd.DataFrame:
    """One column per row of the frame, one line per quantity, as text."""
    shown = {tr(label): [form(value) for value in frame[key]] for key, (label, form) in lines.items()}
    return pd.DataFrame.from_dict(shown, orient="index", columns=pd.Index(names.astype(str)))
