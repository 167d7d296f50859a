"""The metrics an investor asks for, each a small formula, fed from the ledger.

Definitions (the usual SaaS ones; the fleet that serves is cost of goods, training is operating expense):
- MRR: recurring revenue of the month (subscriptions and metered usage, not one-off services); ARR = 12 × MRR.
- NRR: this month's MRR of those who were customers 12 months ago / their MRR then; GRR: the same without
  expansion.
- CAC: sales and marketing spend / new customers; LTV: ARPU × gross margin / churn rate.
- CAC payback: CAC / (ARPU × gross margin), months. Burn multiple: net burn / net new ARR.
- Rule of 40: growth % + free-cash-flow margin %. Runway: cash / mean net burn of the last three months.
- Gross margin: (revenue − COGS) / revenue.

Undefined values (nothing to divide by) are NaN. Amounts per month are arrays [months]; rates are fractions.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

MRR_ACCOUNTS = (
    "revenue_tokens",
    "revenue_seats",
    "revenue_commitments",
    "revenue_licences",
    "revenue_shared",
)
SALES_ACCOUNTS = ("marketing", "people_sales", "sales_commissions")
TRAILING_MONTHS = 3
RETENTION_MONTHS = 12


def ratio(above: float, below: float) -> float:
    """above / below, NaN where it is undefined."""
    return above / below if below else math.nan


def gross_margin(revenue_usd: float, cogs_usd: float) -> float:
    """(revenue − COGS) / revenue."""
    return ratio(revenue_usd - cogs_usd, revenue_usd)


def cac_usd(sales_and_marketing_usd: float, new_customers: float) -> float:
    """Customer acquisition cost in USD."""
    return ratio(sales_and_marketing_usd, new_customers)


def ltv_usd(arpu_usd: float, margin: float, churn_rate: float) -> float:
    """Lifetime gross profit of a customer in USD: ARPU × gross margin / churn rate (all per month)."""
    return ratio(arpu_usd * margin, churn_rate)


def cac_payback_months(cac: float, arpu_usd: float, margin: float) -> float:
    """Months of gross profit that pay back the acquisition cost; NaN when they never do."""
    monthly = arpu_usd * margin
    return cac / monthly if monthly > 0 else math.nan


def burn_multiple(net_burn_usd: float, net_new_arr_usd: float) -> float:
    """USD burnt per USD of ARR added; NaN when none was added."""
    return net_burn_usd / net_new_arr_usd if net_new_arr_usd > 0 else math.nan


def rule_of_40(growth: float, free_cash_flow_margin: float) -> float:
    """Growth plus free-cash-flow margin, as percentage points (40 is the rule)."""
    return 100 * (growth + free_cash_flow_margin)


def runway_months(cash_usd: float, net_burns_usd: FloatArray) -> float:
    """Cash over the mean net burn of the last three months given; inf when not burning, 0 without cash."""
    burn = float(np.mean(net_burns_usd[-TRAILING_MONTHS:]))
    if burn <= 0:
        return math.inf
    return max(0.0, cash_usd) / burn


def divide(above: FloatArray, below: FloatArray) -> FloatArray:
    """Elementwise above / below, NaN where that is undefined."""
    return np.divide(above, below, out=np.full(len(above), math.nan), where=below != 0)


def trailing(values: FloatArray, months: int = TRAILING_MONTHS) -> FloatArray:
    """Sum of the last `months` values at each month (fewer at the start)."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(1, len(values) + 1)
    return np.asarray(total[last] - total[np.maximum(0, last - months)])


def retention(
    joined: NDArray[np.int64], mrr: FloatArray, customers: FloatArray, span: int = RETENTION_MONTHS
) -> tuple[FloatArray, FloatArray]:
    """NRR and GRR by month [months], over the customers of `span` months before; NaN until then.

    Customers of one plan and cohort are alike here, so the cap of GRR (no customer counts for more than the revenue
    then) applies to the mean of each: survivors × the smaller of revenue per customer then and now.

    Args:
        joined: month of joining of each cohort.
        mrr: what each cohort pays [cohorts, months].
        customers: those billed [cohorts, months].
        span: months between then and now.
    """
    months = mrr.shape[1]
    net, gross = np.full(months, math.nan), np.full(months, math.nan)
    for month in range(span, months):
        start = month - span
        there = joined <= start
        then, now = mrr[there, start], mrr[there, month]
        were, are = customers[there, start], customers[there, month]
        survived = np.divide(are, were, out=np.zeros(len(were)), where=were > 0)
        kept = np.minimum(now, then * survived)[then > 0].sum()
        net[month] = ratio(float(now.sum()), float(then.sum()))
        gross[month] = ratio(float(kept), float(then.sum()))
    return net, gross
