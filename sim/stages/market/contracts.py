"""Contracts: terms that bind, minimums, payment in advance; signed, renewed and lost as events.

Models committed business. No customer leaves within a term; at its end each contract is renewed or lost, with the
hazard of a lost renewal moved by quality, latency and price as churn is. Fees and minimum may be invoiced
ahead: that money is a liability (deferred revenue) until it is earned, a month at a time (ASC 606).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.accounting.ledger import MICRO_PER_USD, whole_micro
from sim.stages.market.plan_book import Cohorts, FloatArray, PlanBook, seats

if TYPE_CHECKING:
    from sim.scenario.schema import Contract, Plan
    from sim.stages.world import World


def churn_at_par(plan: Plan) -> float:
    """Probability of leaving when it is possible: each month, or at the end of a contract's term."""
    return plan.churn_per_month if plan.contract is None else 1 - plan.contract.renewal_share


def term_ends(contract: Contract, month: int, cohorts: Cohorts) -> NDArray[np.bool_]:
    """Which cohorts (by month of joining) reach the end of a term at the end of this month."""
    return np.asarray((month - cohorts + 1) % contract.months == 0)


def committed_micro(plan: Plan, month: int, cohorts: Cohorts, count: Cohorts) -> Cohorts:
    """Commitment of this month of cohorts of `count` customers, whatever their usage, in micro-dollars."""
    return least_micro(plan, plan.monthly_fee_usd * seats(plan, month, cohorts), count)


def least_micro(plan: Plan, fee_usd: FloatArray, count: Cohorts) -> Cohorts:
    """Commitment of a month of cohorts of `count` customers with a fee of `fee_usd` each, in micro-dollars."""
    assert plan.contract is not None
    return whole_micro(count * np.maximum(fee_usd, plan.contract.minimum_usd_per_month))


def commitment_micro(least: Cohorts, ahead: Cohorts, used: Cohorts) -> Cohorts:
    """Amount owed beyond fees and usage, up to the larger of the minimum and the month's advance payment."""
    return np.maximum(0, np.maximum(least, ahead) - used)


def to_invoice_ahead(book: PlanBook, month: int) -> Cohorts:
    """Cohorts whose next prepaid time begins this month."""
    contract = book.plan.contract
    if contract is None or contract.prepaid_months == 0:
        return np.zeros(0, dtype=np.int64)
    cohorts = np.flatnonzero(book.customers[: month + 1])
    return cohorts[(month - cohorts) % contract.prepaid_months == 0]


def commission_usd(plan: Plan, customers: int) -> float:
    """Sales commission in USD on contracts signed this month: a share of the first year's commitment."""
    contract = plan.contract
    if contract is None or contract.commission_share == 0:
        return 0.0
    signing = np.zeros(1, dtype=np.int64)
    first = committed_micro(plan, 0, signing, np.array([customers], dtype=np.int64))
    return float(first[0]) / MICRO_PER_USD * min(12, contract.months) * contract.commission_share


def backlog_usd(book: PlanBook, month: int) -> float:
    """Commitment of the running terms that is not yet earned at the month's end."""
    plan = book.plan
    if plan.contract is None:
        return 0.0
    cohorts = np.flatnonzero(book.customers[: month + 1])
    left_months = plan.contract.months - (month - cohorts) % plan.contract.months - 1
    each = committed_micro(plan, month, cohorts, book.customers[cohorts])
    return float((each * left_months).sum()) / MICRO_PER_USD


def record(world: World, book: PlanBook, renewed: int, lost: int) -> None:
    """Record how many contracts of a plan were signed, renewed and lost this month, and note the event."""
    counts = {"signed": book.joined, "renewed": renewed, "lost": lost}
    for what, count in counts.items():
        world.record(f"contracts_{what}", count)
    if any(counts.values()):
        world.note("market", "contracts", plan=book.key, **counts)
