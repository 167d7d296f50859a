"""Tables beside the monthly one: segments, plans, cohorts, cost of goods by cause, ageing of bills and invoices.

Models what a finance lead asks next. Money is read from the ledger by account and party; quantities are what
the stages recorded. Cost of goods that no plan caused alone (the fleet, incidents) is spread over the plans by
the tokens that each used, so that the plans add up to the income statement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sim.accounting import saas_metrics
from sim.accounting.ledger import HOURS_PER_MONTH, MICRO_PER_USD
from sim.accounting.parties import PLAN_ACCOUNTS, advertising_party, read_party
from sim.accounting.saas_metrics import FloatArray
from sim.scenario.plans import is_paying, plan_key, segments_of

if TYPE_CHECKING:
    from sim.accounting.ledger import Kind, Ledger
    from sim.scenario.schema import Market
    from sim.stages.world import ClosedRound, OpenItem

AGES = ("not_due_usd", "overdue_1_to_30_days_usd", "overdue_31_to_60_days_usd", "overdue_61_to_90_days_usd")
_LAST_AGE = "overdue_over_90_days_usd"
_TOKENS_PER_MTOK = 1e6


@dataclass(frozen=True)
class Facts:
    """Data of a run for the tables: the ledger, and the records of the stages by plan, bill and round."""

    market: Market
    ledger: Ledger
    labels: list[str]  # of the months
    billed: dict[str, FloatArray]  # customers by plan [month of joining, month]
    plan_records: dict[tuple[str, str], FloatArray]  # by plan and quantity [months]
    open_items: list[OpenItem]
    rounds: list[ClosedRound]

    @property
    def months(self) -> int:
        """Length of the run."""
        return len(self.labels)

    def plans(self) -> dict[str, str]:
        """Segment of each plan, by the plan's name in the books."""
        found = segments_of(self.market).items()
        return {plan_key(segment, plan): segment for segment, settings in found for plan in settings.plans}

    def recorded(self, plan: str, what: str) -> FloatArray:
        """A recorded quantity of a plan by month [months]; zeros where there is none."""
        return self.plan_records.get((plan, what), np.zeros(self.months))


def cohort_table(facts: Facts) -> pd.DataFrame:
    """One row per plan, month of joining and month: customers kept and their revenue.

    Columns: segment, plan, cohort and month (labels), age_months, customers (billed), mrr_usd, customers_kept
    and mrr_kept (fractions of the cohort's first month).
    """
    mrr = facts.ledger.monthly_by_party(saas_metrics.MRR_ACCOUNTS, facts.months)
    segment_of = facts.plans()
    labels = np.array(facts.labels, dtype=object)
    parts = []
    billed = (
        (plan, cohort) for plan, seen in facts.billed.items() for cohort in np.flatnonzero(seen.any(axis=1))
    )
    for plan, cohort in billed:
        customers = facts.billed[plan][cohort]
        months = np.arange(cohort, facts.months)
        paid = mrr.get(f"{plan}/{cohort:03d}", np.zeros(facts.months, dtype=np.int64)) / MICRO_PER_USD
        paid, left = paid[cohort:], customers[cohort:]
        part = {
            "segment": segment_of[plan],
            "plan": plan,
            "cohort": labels[cohort],
            "month": labels[months],
            "age_months": months - cohort,
            "customers": left.astype(np.int64),
            "mrr_usd": paid,
            "customers_kept": left / left[0] if left[0] else math.nan,
            "mrr_kept": paid / paid[0] if paid[0] else math.nan,
        }
        parts.append(pd.DataFrame(part))
    columns = ["segment", "plan", "cohort", "month", "age_months", "customers", "mrr_usd"]
    if not parts:
        return pd.DataFrame(columns=[*columns, "customers_kept", "mrr_kept"])
    return pd.concat(parts, ignore_index=True)


def segment_table(facts: Facts) -> pd.DataFrame:
    """One row per segment and month.

    Columns: segment, month, customers and customers_free (at the end), trials, new_customers,
    churned_customers, churn_rate, revenue_usd, mrr_usd, arpu_usd, tokens, marketing_usd,
    marketing_usd_per_new_customer.
    """
    revenue = _by_plan(facts, _accounts(facts, "revenue"))[0]
    mrr = _by_plan(facts, saas_metrics.MRR_ACCOUNTS)[0]
    marketing = facts.ledger.monthly_by_party(("marketing",), facts.months)
    parts = []
    for name, segment in segments_of(facts.market).items():
        keys = {plan_key(name, plan): is_paying(settings) for plan, settings in segment.plans.items()}
        paying = [key for key, pays in keys.items() if pays]
        free = [key for key, pays in keys.items() if not pays]
        billed, lost, new = (_sum(facts, paying, what) for what in ("billed", "lost", "new"))
        mrr_usd = np.sum([mrr[key] for key in keys], axis=0)
        spend = (
            -marketing.get(advertising_party(name), np.zeros(facts.months, dtype=np.int64)) / MICRO_PER_USD
        )
        part = {
            "segment": name,
            "month": facts.labels,
            "customers": _sum(facts, paying, "customers").astype(np.int64),
            "customers_free": _sum(facts, free, "customers").astype(np.int64),
            "trials": _sum(facts, list(keys), "trials").astype(np.int64),
            "new_customers": new.astype(np.int64),
            "churned_customers": lost.astype(np.int64),
            "churn_rate": saas_metrics.divide(lost, billed),
            "revenue_usd": np.sum([revenue[key] for key in keys], axis=0),
            "mrr_usd": mrr_usd,
            "arpu_usd": saas_metrics.divide(mrr_usd, billed),
            "tokens": _sum(facts, list(keys), "tokens"),
            "marketing_usd": spend,
            "marketing_usd_per_new_customer": saas_metrics.divide(spend, new),
        }
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def unit_economics(facts: Facts, last_months: int = 12) -> pd.DataFrame:
    """One row per plan over the last months of the run: revenue and cost per customer and million tokens.

    Columns: segment, plan, customers_mean (free users and trials included), tokens_mtok, revenue_usd,
    cogs_own_usd (caused by the plan alone), cogs_shared_usd (its part by tokens), cogs_usd, gross_profit_usd,
    gross_margin, then per customer and month (`_per_customer`), per million tokens (`_per_mtok`),
    churn_per_month, ltv_usd.
    """
    span = slice(max(0, facts.months - last_months), facts.months)
    revenue = _spread(*_by_plan(facts, _accounts(facts, "revenue")), span=span, weights=None)
    cogs = _accounts(facts, "cogs")
    own, shared = _by_plan(facts, cogs)
    tokens = {plan: float(facts.recorded(plan, "tokens")[span].sum()) for plan in own}
    users = {plan: _users(facts, plan)[span] for plan in own}
    weights = (
        tokens if sum(tokens.values()) > 0 else {plan: float(seen.sum()) for plan, seen in users.items()}
    )
    own_usd = {plan: -float(values[span].sum()) for plan, values in own.items()}
    all_usd = {plan: -value for plan, value in _spread(own, shared, span=span, weights=weights).items()}
    rows = []
    for plan, segment in facts.plans().items():
        months = len(users[plan])
        customer_months = float(users[plan].sum())
        billed = float(facts.recorded(plan, "billed")[span].sum())
        churn = saas_metrics.ratio(float(facts.recorded(plan, "lost")[span].sum()), billed)
        profit, mtok = revenue[plan] - all_usd[plan], tokens[plan] / _TOKENS_PER_MTOK
        margin = saas_metrics.ratio(profit, revenue[plan])
        arpu = saas_metrics.ratio(revenue[plan], customer_months)
        rows.append(
            {
                "segment": segment,
                "plan": plan,
                "customers_mean": customer_months / months,
                "tokens_mtok": mtok,
                "revenue_usd": revenue[plan],
                "cogs_own_usd": own_usd[plan],
                "cogs_shared_usd": all_usd[plan] - own_usd[plan],
                "cogs_usd": all_usd[plan],
                "gross_profit_usd": profit,
                "gross_margin": margin,
                "revenue_usd_per_customer": arpu,
                "cogs_usd_per_customer": saas_metrics.ratio(all_usd[plan], customer_months),
                "gross_profit_usd_per_customer": saas_metrics.ratio(profit, customer_months),
                "revenue_usd_per_mtok": saas_metrics.ratio(revenue[plan], mtok),
                "cogs_usd_per_mtok": saas_metrics.ratio(all_usd[plan], mtok),
                "gross_profit_usd_per_mtok": saas_metrics.ratio(profit, mtok),
                "churn_per_month": churn,
                "ltv_usd": saas_metrics.ltv_usd(arpu, margin, churn),
            }
        )
    return pd.DataFrame(rows)


def cogs_by_cause(facts: Facts) -> pd.DataFrame:
    """One row per month and cause (account) of cost of goods that ever occurred.

    Columns: month, cause, cost_usd, share_of_revenue, cost_usd_per_mtok.
    """
    totals = facts.ledger.monthly_micro(facts.months) / MICRO_PER_USD
    rows = dict(zip(facts.ledger.accounts, totals, strict=True))
    revenue = -np.sum([rows[account] for account in _accounts(facts, "revenue")], axis=0)
    mtok = _sum(facts, list(facts.plans()), "tokens") / _TOKENS_PER_MTOK
    parts = [
        pd.DataFrame(
            {
                "month": facts.labels,
                "cause": account,
                "cost_usd": rows[account],
                "share_of_revenue": saas_metrics.divide(rows[account], revenue),
                "cost_usd_per_mtok": saas_metrics.divide(rows[account], mtok),
            }
        )
        for account in _accounts(facts, "cogs")
        if rows[account].any()
    ]
    columns = ["month", "cause", "cost_usd", "share_of_revenue", "cost_usd_per_mtok"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def ageing(facts: Facts, *, exact: bool = False) -> pd.DataFrame:
    """One row per month and account (payable, receivable): open amounts at its end, by time overdue.

    The buckets of a row add up to the account's balance in the ledger, to the micro-dollar (`exact`: integers of
    micro-dollars instead of USD).
    """
    ends = np.arange(1, facts.months + 1) * float(HOURS_PER_MONTH)
    parts = []
    for account in ("payable", "receivable"):
        items = [item for item in facts.open_items if item.account == account]
        booked, due, settled = (
            np.array([getattr(item, name) for item in items], dtype=np.float64)
            for name in ("booked_h", "due_h", "settled_h")
        )
        amounts = np.array([item.amount_micro for item in items], dtype=np.int64)
        table = np.zeros((facts.months, len(AGES) + 1), dtype=np.int64)
        for month, end in enumerate(ends):
            is_open = (booked < end) & (settled >= end)
            days = (end - due[is_open]) / 24
            bucket = np.clip(np.ceil(days / 30), 0, len(AGES)).astype(np.int64)
            np.add.at(table[month], bucket, amounts[is_open])
        part = pd.DataFrame(table, columns=[*AGES, _LAST_AGE])
        part["total_usd"] = table.sum(axis=1)
        if not exact:
            part = part / MICRO_PER_USD
        part.insert(0, "account", account)
        part.insert(0, "month", facts.labels)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _accounts(facts: Facts, kind: Kind) -> list[str]:
    return [account for account, its_kind in facts.ledger.chart.items() if its_kind == kind]


def _by_plan(facts: Facts, accounts: list[str] | tuple[str, ...]) -> tuple[dict[str, FloatArray], FloatArray]:
    """Credits less debits in USD [months]: by plan (over its cohorts), and of all other accounts together."""
    found = {plan: np.zeros(facts.months) for plan in facts.plans()}
    rest = np.zeros(facts.months)
    for of_plans in (True, False):
        chosen = [account for account in accounts if (account in PLAN_ACCOUNTS) == of_plans]
        for party, amounts in facts.ledger.monthly_by_party(chosen, facts.months).items():
            plan = read_party(party)[0] if of_plans else None
            total = rest if plan is None else found[plan]
            total += amounts / MICRO_PER_USD
    return found, rest


def _spread(
    own: dict[str, FloatArray], shared: FloatArray, *, span: slice, weights: dict[str, float] | None
) -> dict[str, float]:
    """Totals over a span by plan, each with its part of the shared amount (by weight; by its own total if None)."""
    totals = {plan: float(values[span].sum()) for plan, values in own.items()}
    weights = totals if weights is None else weights
    weight = sum(weights.values())
    rest = float(shared[span].sum())
    return {
        plan: total + (rest * weights[plan] / weight if weight else rest / len(totals))
        for plan, total in totals.items()
    }


def _users(facts: Facts, plan: str) -> FloatArray:
    return np.maximum(facts.recorded(plan, "billed"), facts.recorded(plan, "customers")) + facts.recorded(
        plan, "trials"
    )


def _sum(facts: Facts, plans: list[str], what: str) -> FloatArray:
    return np.asarray(sum((facts.recorded(plan, what) for plan in plans), np.zeros(facts.months)))
