"""Plans: what customers of one use, what a request costs them, and how they are counted.

Models the price list. Customers of a plan are kept by cohort (month of joining), in whole customers: usage and
seats grow with a customer's age, and the ledger knows each cohort by name, so that retention is a query.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.accounting.parties import cohort_party, plan_party
from sim.stages.market.competition import elsewhere, price_effect

if TYPE_CHECKING:
    from sim.scenario.schema import Plan, Segment

Cohorts = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_REQUESTS = 1e6


@dataclass
class PlanBook:
    """The customers of one plan, by month of joining [months]."""

    key: str  # how the ledger and the tables call the plan
    plan: Plan
    customers: Cohorts  # who pay, or who use a free plan
    trials: Cohorts  # who try a paying plan, by month of signing up
    advance_micro: Cohorts  # of prepaid fees: what is earned each month
    parties: list[str]  # the ledger's names of the cohorts
    joined: int = 0  # new this month, without trials
    requests: FloatArray = field(default_factory=lambda: np.zeros(0))  # asked this month, by cohort
    trial_requests: float = 0.0

    @property
    def party(self) -> str:
        """The ledger's name of the plan as a whole."""
        return plan_party(self.key)


def open_book(key: str, plan: Plan, months: int) -> PlanBook:
    """Create the book of a plan with its initial customers."""
    customers = np.zeros(months, dtype=np.int64)
    customers[0] = plan.initial_customers
    return PlanBook(
        key,
        plan,
        customers,
        trials=np.zeros(months, dtype=np.int64),
        advance_micro=np.zeros(months, dtype=np.int64),
        parties=[cohort_party(key, cohort) for cohort in range(months)],
    )


def usd_per_request(segment: Segment, prompt_tokens: float, output_tokens: float) -> float:
    """List price of the mean request at the start."""
    return _usd_per_million_requests(segment, prompt_tokens, output_tokens) / _REQUESTS


def blended_price(segment: Segment, prompt_tokens: float, output_tokens: float) -> float:
    """USD per million tokens of the mean request, prompt and output together, at the start."""
    cost = _usd_per_million_requests(segment, prompt_tokens, output_tokens)
    return cost / (prompt_tokens + output_tokens)


def prompt_price(segment: Segment, cached_share: float) -> float:
    """USD per million prompt tokens, of which the prefix cache held this share, at the start."""
    if segment.cache_discount is None:
        return segment.price_usd_per_mtok_prompt
    return segment.price_usd_per_mtok_prompt * (1 - cached_share * segment.cache_discount.discount)


def beyond_included(plan: Plan, count: Cohorts, used_tokens: FloatArray) -> FloatArray:
    """Part of the usage of each group of `count` customers that the fee doesn't cover."""
    if plan.included_tokens_per_month == 0:
        return np.ones(len(count))
    covered = count * plan.included_tokens_per_month
    return np.asarray(np.maximum(0.0, 1 - covered / np.maximum(used_tokens, 1e-300)))


def price_factor(segment: Segment, reference: float) -> float:
    """Token prices over those at the start, where they follow the reference price."""
    if segment.price_follows_reference == 0:
        return 1.0
    start = elsewhere(segment, 0).price_usd_per_mtok
    return (reference / start) ** segment.price_follows_reference


def requests_asked(
    segment: Segment, plan: Plan, cohorts: Cohorts, month: int, price: float, reference: float
) -> FloatArray:
    """Requests that each cohort of a plan asks for this month; prices in USD per million tokens."""
    age = np.clip(month - np.arange(len(cohorts)), 0, plan.usage_growth_months)
    each = plan.requests_per_month * (1 + plan.usage_growth_per_month) ** age
    if plan.pays_per_token:
        each = each * price_effect(price, reference, segment.usage_elasticity)
    return np.asarray(cohorts * each, dtype=np.float64)


def seats(plan: Plan, month: int, cohorts: Cohorts) -> FloatArray:
    """Seats per customer of each cohort given by its month of joining; 1 where the fee is per customer."""
    if plan.seats is None:
        return np.ones(len(cohorts))
    age = np.clip(month - cohorts, 0, plan.seats.growth_months)
    return np.asarray(plan.seats.per_customer * (1 + plan.seats.growth_per_month) ** age)


def _usd_per_million_requests(segment: Segment, prompt_tokens: float, output_tokens: float) -> float:
    cached_share = segment.cache_discount.cached_prompt_share if segment.cache_discount is not None else 0.0
    return (
        prompt_price(segment, cached_share) * prompt_tokens
        + segment.price_usd_per_mtok_output * output_tokens
    )
