"""Variance analysis: differences from the plan by account, and of revenue and usage by cause, to the last unit.

Revenue, plan by plan (the "products" of price-volume-mix analysis, as in any book of cost accounting; Horngren et al.,
Cost Accounting, ch. 14). v: tokens, V their sum, R revenue, p = R/v, P = ΣR/V; 0 is planned, 1 actual:

    volume  (V1 − V0)·P0            as many more tokens at the planned mean price
    mix     Σ v1·p0 − V1·P0         they went to dearer or cheaper plans
    price   Σ v1·(p1 − p0)          each plan's tokens brought more or less

A plan that only one side has used has no price on the other and takes its own; revenue without any token (fees of those
who ask nothing) is a cause of its own. Usage, plan by plan: tokens = customers × requests per customer × tokens per
request, divided by Shapley's value (`sim.study.shapley`).

All is exact: fractions, then whole micro-dollars and whole tokens by largest remainder, so causes add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import pandas as pd

from sim.accounting.ledger import MICRO_PER_USD
from sim.study.shapley import shapley, whole_parts
from sim.study.waterfall import Term, waterfall

REVENUE_CAUSES = ("volume", "price", "mix", "without_usage")
USAGE_CAUSES = ("customers", "requests_per_customer", "tokens_per_request")


@dataclass(frozen=True)
class Sold:
    """What a plan brought in a month: micro-dollars and tokens."""

    revenue_micro: int
    tokens: int


@dataclass(frozen=True)
class PlanUsage:
    """Usage of a plan's customers in a month."""

    customers: int
    requests: int
    tokens: int


def revenue_variance(planned: Mapping[str, Sold], actual: Mapping[str, Sold]) -> dict[str, int]:
    """{cause: micro-dollars} of one month, by the plans' names; they add up to actual less planned revenue."""
    none = Sold(0, 0)
    plans = sorted({*planned, *actual})
    pairs = [(planned.get(name, none), actual.get(name, none)) for name in plans]
    idle = sum(after.revenue_micro for _, after in pairs if not after.tokens)
    idle -= sum(before.revenue_micro for before, _ in pairs if not before.tokens)
    volumes = [Fraction(sum(side.tokens for side in sides)) for sides in zip(*pairs, strict=True)] or [
        Fraction(0)
    ] * 2
    with_tokens = [
        sum((Fraction(side.revenue_micro) for side in sides if side.tokens), Fraction(0))
        for sides in zip(*pairs, strict=True)
    ] or [Fraction(0)] * 2
    at_planned_prices = Fraction(0)
    for before, after in pairs:
        if after.tokens:
            known = before if before.tokens else after
            at_planned_prices += Fraction(after.tokens * known.revenue_micro, known.tokens)
    if volumes[0]:
        mean_price = with_tokens[0] / volumes[0]
    else:
        mean_price = with_tokens[1] / volumes[1] if volumes[1] else Fraction(0)
    exact = [
        (volumes[1] - volumes[0]) * mean_price,
        with_tokens[1] - at_planned_prices,
        at_planned_prices - volumes[1] * mean_price,
        Fraction(idle),
    ]
    return dict(zip(REVENUE_CAUSES, whole_parts(exact), strict=True))


def usage_variance(planned: Mapping[str, PlanUsage], actual: Mapping[str, PlanUsage]) -> dict[str, int]:
    """{cause: tokens} of one month; they add up to actual less planned tokens."""
    none = PlanUsage(0, 0, 0)
    totals = [Fraction(0)] * len(USAGE_CAUSES)
    for name in sorted({*planned, *actual}):
        parts = _usage(planned.get(name, none), actual.get(name, none))
        totals = [total + part for total, part in zip(totals, parts, strict=True)]
    return dict(zip(USAGE_CAUSES, whole_parts(totals), strict=True))


def _usage(planned: PlanUsage, actual: PlanUsage) -> list[Fraction]:
    before, after = _factors(planned, actual), _factors(actual, planned)

    def tokens(changed: frozenset[int]) -> Fraction:
        product = Fraction(1)
        for factor in range(3):
            product *= (after if factor in changed else before)[factor]
        return product

    return shapley(3, tokens)


def _factors(own: PlanUsage, other: PlanUsage) -> tuple[Fraction, Fraction, Fraction]:
    """(customers, requests per customer, tokens per request); where there is nothing to divide by, the other side's.

    Requests of nobody (a customer who came and left between two counts) count as one customer's.
    """
    customers = own.customers or (1 if own.requests else 0)
    others = other.customers or (1 if other.requests else 0)
    each = Fraction(own.requests, customers) if customers else Fraction(other.requests, others or 1)
    if own.requests:
        size = Fraction(own.tokens, own.requests)
    else:
        size = Fraction(other.tokens, other.requests) if other.requests else Fraction(0)
    return Fraction(customers), each, size


def account_variance(planned: pd.DataFrame, actual: pd.DataFrame, accounts: Sequence[str]) -> pd.DataFrame:
    """One row for each month and account that either side used: planned, actual and difference in micro-dollars.

    Args:
        planned, actual: exact income statements of the same months.
        accounts: to compare; the caller leaves out accounts without actual books.
    """
    rows = []
    for month in actual.index:
        for account in accounts:
            before, after = int(planned.loc[month, account]), int(actual.loc[month, account])
            if before or after:
                rows.append((month, account, before, after, after - before))
    columns = ["month", "account", "planned_micro_usd", "actual_micro_usd", "variance_micro_usd"]
    return pd.DataFrame(rows, columns=columns)


def revenue_waterfall(table: pd.DataFrame, names: tuple[str, str]) -> pd.DataFrame:
    """The bars from planned to actual revenue over all months (see `sim.study.waterfall`).

    Args:
        table: one row per month: planned_micro_usd, actual_micro_usd and one column for each of `REVENUE_CAUSES`.
        names: what planned and actual revenue are called.
    """
    start, end = (
        Fraction(int(table[column].sum()), MICRO_PER_USD)
        for column in ("planned_micro_usd", "actual_micro_usd")
    )
    terms = [
        Term(cause, Fraction(int(table[cause].sum()), MICRO_PER_USD), float("nan"))
        for cause in REVENUE_CAUSES
    ]
    return waterfall(
        start, end, [term for term in terms if term.change or term.name != "without_usage"], names, money=True
    )
