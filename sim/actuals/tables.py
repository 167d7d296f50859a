"""The comparison in tables: plan, actual and forecast by month, and what lies between plan and actual.

Both sides give the same tables: revenue by plan from the cohorts in their ledgers, tokens and customers from
what was simulated and what was metered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sim.accounting.parties import read_party
from sim.accounting.saas_metrics import MRR_ACCOUNTS
from sim.actuals.books import METERED_ACCOUNTS
from sim.actuals.variance import PlanUsage, Sold, account_variance, revenue_variance, usage_variance
from sim.billing.charges import plans_of
from sim.company.monthly_table import SERVING_ACCOUNTS
from sim.scenario.plans import is_paying

if TYPE_CHECKING:
    from sim.accounting.ledger import Ledger
    from sim.actuals.measured import Measured
    from sim.company.simulate import Result
    from sim.study.monte_carlo import MonteCarlo

BAND = ("p5", "p95")
# Measures by month: column of the monthly table.
MEASURES = (
    "revenue_usd",
    "compute_serving_usd",
    "cogs_usd",
    "opex_usd",
    "net_income_usd",
    "cash_usd",
    "customers",
    "requests",
    "tokens",
)
_NEED_BANK = ("cogs_usd", "opex_usd", "net_income_usd", "cash_usd")
_TAKEN = {"tokens": ("prompt_tokens", "output_tokens")}


def by_month(measured: Measured, forecast: Result, study: MonteCarlo | None) -> pd.DataFrame:
    """Plan, actual and forecast by month and measure (see `sim.actuals.compare.Actuals`)."""
    actual = _actual(measured)
    rows = []
    planned_months, last = list(measured.plan.monthly["month"]), measured.metered.months[-1]
    labels = [
        *planned_months[measured.first :],
        *(m for m in forecast.monthly["month"] if m not in planned_months),
    ]
    for measure in MEASURES:
        planned = dict(zip(planned_months, _column(measured.plan, measure), strict=True))
        ahead = dict(zip(forecast.monthly["month"], _column(forecast, measure), strict=True))
        low, high = _band(study, measure)
        done = dict(zip(measured.metered.months, actual[measure], strict=True))
        for month in labels:
            if month > last and month not in ahead and month not in planned:
                continue
            values = (planned, done, ahead, low, high)
            rows.append((month, measure, *(float(each.get(month, math.nan)) for each in values)))
    columns = ["month", "measure", "planned", "actual", "forecast", "forecast_low", "forecast_high"]
    return pd.DataFrame(rows, columns=columns)


def _column(result: Result, measure: str) -> Sequence[float]:
    names = _TAKEN.get(measure, (measure,))
    return [float(value) for value in result.monthly[list(names)].sum(axis=1)]


def fan_columns() -> list[str]:
    """Monthly columns that a study of the forecast has to keep."""
    return [name for measure in MEASURES for name in _TAKEN.get(measure, (measure,))]


def _band(study: MonteCarlo | None, measure: str) -> tuple[dict[str, float], dict[str, float]]:
    """5 and 95 % by month; of tokens those of the runs' sums."""
    if study is None:
        return {}, {}
    from sim.study.monte_carlo import fan

    runs = study.runs[study.runs["error"] == ""]
    names = _TAKEN.get(measure, (measure,))
    sums = [np.sum([row[f"month.{name}"] for name in names], axis=0) for _, row in runs.iterrows()]
    start = str(study.fans[names[0]]["month"].iloc[0])
    table = fan(pd.DataFrame({f"month.{measure}": sums}), measure, start)
    low, high = (dict(zip(table["month"], table[level], strict=True)) for level in BAND)
    return low, high


def _actual(measured: Measured) -> dict[str, Sequence[float]]:
    """Each measure by month; NaN without the bank rows that it takes."""
    income = measured.books.statements.income()
    cash = measured.books.statements.balance_sheet()["cash"]
    paying = [name for name, (_, plan) in plans_of(measured.plan.scenario).items() if is_paying(plan)]
    by_month = measured.metered.by_key.groupby("month_index")[
        ["requests", "prompt_tokens", "output_tokens"]
    ].sum()
    by_month = by_month.reindex(range(measured.months), fill_value=0)
    ended = [
        sum(
            one.is_there(month) and not (one.ended and one.last == month)
            for one in measured.subscriptions.all
            if one.plan in paying
        )
        for month in range(measured.months)
    ]
    found: dict[str, Any] = {
        "revenue_usd": income["total_revenue"],
        "compute_serving_usd": sum(income[account] for account in SERVING_ACCOUNTS),
        "cogs_usd": income["total_cogs"],
        "opex_usd": income["total_opex"],
        "net_income_usd": income["net_income"],
        "cash_usd": cash,
        "customers": ended,
        "requests": by_month["requests"],
        "tokens": by_month["prompt_tokens"] + by_month["output_tokens"],
    }
    if not measured.books.has_bank:
        found |= {measure: [math.nan] * measured.months for measure in _NEED_BANK}
    return {measure: [float(value) for value in values] for measure, values in found.items()}


def _planned_income(measured: Measured) -> pd.DataFrame:
    income = measured.plan.statements.income(exact=True)
    return income.iloc[measured.first : measured.first + measured.months]


def account_table(measured: Measured) -> pd.DataFrame:
    """As `account_variance`; without bank rows of the metered accounts alone."""
    kinds = measured.books.ledger.chart
    compared = [name for name, kind in kinds.items() if kind not in ("asset", "liability", "equity")]
    planned, actual = _planned_income(measured), measured.books.statements.income(exact=True)
    if not measured.books.has_bank:
        # The meter's cost is all that is known of serving: it stands against all that the plan has for machines.
        planned = planned.copy()
        planned["serving_on_demand"] += planned["serving_reserved"]
        compared = list(METERED_ACCOUNTS)
    return account_variance(planned, actual, compared)


def _sold(
    revenue: dict[str, np.ndarray[Any, Any]], tokens: Mapping[str, Sequence[float]], month: int
) -> dict[str, Sold]:
    names = {*revenue, *tokens}
    return {
        name: Sold(
            int(revenue[name][month]) if name in revenue else 0,
            round(float(tokens[name][month])) if name in tokens else 0,
        )
        for name in names
    }


def revenue_by_plan(ledger: Ledger, months: int) -> dict[str, np.ndarray[Any, Any]]:
    """{plan: recurring revenue in micro-dollars [months]}, from the cohorts in a ledger."""
    totals: dict[str, np.ndarray[Any, Any]] = {}
    for name, amounts in ledger.monthly_by_party(MRR_ACCOUNTS, months).items():
        plan, cohort = read_party(name)
        if plan is not None and cohort is not None:
            totals[plan] = totals.get(plan, np.zeros(months, dtype=np.int64)) + amounts
    return totals


def revenue_table(measured: Measured) -> pd.DataFrame:
    """One row per month: planned and actual recurring revenue and the causes between them, micro-dollars."""
    facts, total = measured.plan.facts, measured.plan.scenario.horizon_months
    paying = {name for name, (_, plan) in plans_of(measured.plan.scenario).items() if is_paying(plan)}
    planned_revenue = revenue_by_plan(measured.plan.ledger, total)
    planned_tokens: dict[str, Sequence[float]] = {
        name: facts.plan_records[name, "tokens"].tolist()
        for name in paying
        if (name, "tokens") in facts.plan_records
    }
    actual_revenue = revenue_by_plan(measured.books.ledger, measured.months)
    actual_tokens = {
        name: [
            sum(use[1] + use[3] for one in measured.subscriptions.of(name) if (use := one.use.get(month)))
            for month in range(measured.months)
        ]
        for name in paying
    }
    rows = []
    for month, label in enumerate(measured.metered.months):
        before = _sold(planned_revenue, planned_tokens, measured.first + month)
        after = _sold(actual_revenue, actual_tokens, month)
        sums = [sum(one.revenue_micro for one in side.values()) for side in (before, after)]
        rows.append(
            {
                "month": label,
                "planned_micro_usd": sums[0],
                "actual_micro_usd": sums[1],
                **revenue_variance(before, after),
            }
        )
    return pd.DataFrame(rows)


def usage_table(measured: Measured) -> pd.DataFrame:
    """One row per month: planned and actual tokens, and the causes between them, in tokens.

    Customers are those of the month's usage: before the churn at its end.
    """
    facts = measured.plan.facts
    rows = []
    per_request = _planned_request_tokens(measured)
    for month, label in enumerate(measured.metered.months):
        before, after = {}, {}
        for name in plans_of(measured.plan.scenario):
            record = {
                what: float(facts.plan_records[name, what][measured.first + month])
                if (name, what) in facts.plan_records
                else 0.0
                for what in ("tokens", "customers", "lost", "trials")
            }
            tokens = round(record["tokens"])
            customers = round(record["customers"] + record["lost"] + record["trials"])
            before[name] = PlanUsage(customers, round(record["tokens"] / per_request[name]), tokens)
            there = [
                subscription for subscription in measured.subscriptions.of(name) if month in subscription.use
            ]
            uses = [subscription.use[month] for subscription in there]
            after[name] = PlanUsage(
                len(there), sum(use[0] for use in uses), sum(use[1] + use[3] for use in uses)
            )
        sums = [sum(one.tokens for one in side.values()) for side in (before, after)]
        rows.append(
            {
                "month": label,
                "planned_tokens": sums[0],
                "actual_tokens": sums[1],
                **usage_variance(before, after),
            }
        )
    return pd.DataFrame(rows)


def _planned_request_tokens(measured: Measured) -> dict[str, float]:
    surface = measured.plan.surface
    mean = surface.prompt_tokens_mean + surface.output_tokens_mean
    return {
        name: mean * segment.request_size for name, (segment, _) in plans_of(measured.plan.scenario).items()
    }
