"""The funnel of one segment: signups, trials, conversions and churn.

Models sales and customers. Signups follow Bass 1969 ("A new product growth for model consumer durables"):
organic, marketed and sold adopters, plus word of mouth per customer, slowed by the part of the market already
won. Marketing saturates: signups = S·spend / (spend + S·cost), slope 1/cost at first and never more than S.
Price, quality and latency against what customers compare with act as `sim.stages.market.competition` says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.scenario.plans import is_paying, plan_key
from sim.scenario.schema.market import MAIN_SEGMENT
from sim.stages.market import contracts
from sim.stages.market.competition import (
    Offer,
    churn_probability,
    price_effect,
    price_ratio,
    quality_effect,
    reference_fee,
)
from sim.stages.market.plan_book import (
    Cohorts,
    PlanBook,
    blended_price,
    open_book,
    price_factor,
    requests_asked,
)
from sim.utils.randomness import binomial, poisson, substream

if TYPE_CHECKING:
    from sim.scenario.schema import Segment
    from sim.stages.world import World


@dataclass
class Customers:
    """The customers of one segment by plan, and the quality advantage that they perceive."""

    name: str
    segment: Segment
    books: dict[str, PlanBook]  # by the plan's name within the segment
    random: np.random.Generator
    trial_random: np.random.Generator
    revenue_usd: float = 0.0  # of last month
    advantage: float | None = (
        None  # perceived quality less that of the rival offer; None before the first month
    )

    @property
    def count(self) -> int:
        """Users of all plans, trials and free plans included."""
        return sum(int(book.customers.sum()) + int(book.trials.sum()) for book in self.books.values())


def open_segment(world: World, name: str, segment: Segment) -> Customers:
    """Create a segment with its initial customers; its random streams depend on the seed and its name alone."""
    main = name == MAIN_SEGMENT
    return Customers(
        name,
        segment,
        {
            plan: open_book(plan_key(name, plan), settings, world.months)
            for plan, settings in segment.plans.items()
        },
        random=world.random["market"] if main else substream(world.seed, f"market {name}"),
        trial_random=substream(world.seed, f"trials {name}"),
    )


def marketed_signups(segment: Segment, spend_usd: float) -> float:
    """Signups per month of a marketing budget: S·spend / (spend + S·cost)."""
    most = segment.saturation_signups_per_month
    return most * spend_usd / (spend_usd + most * segment.signup_cost_usd)


def perceived_advantage(customers: Customers, quality: float, offer: Offer) -> float:
    """Update and return the perceived quality advantage, an exponential average over `quality_memory_months`."""
    now = quality - offer.quality
    memory = customers.segment.quality_memory_months
    if customers.advantage is None or memory == 0:
        customers.advantage = now
    else:
        customers.advantage += (now - customers.advantage) * -math.expm1(-1 / memory)
    return customers.advantage


def sign_up(world: World, customers: Customers, month: int, spend_usd: float, offer: Offer) -> None:
    """Draw this month's new customers into their cohort; trials end, free users convert."""
    segment, books = customers.segment, customers.books
    advantage = customers.advantage or 0.0
    uniforms = customers.random.random((len(books), 2))
    trial_uniforms = customers.trial_random.random(len(books))
    mean = _signups_wanted(world, customers, month, spend_usd)
    pull = quality_effect(segment.signup_per_quality, advantage)
    if segment.signup_per_latency > 0:
        mean *= price_effect(world.service.slowness, 1.0, segment.signup_per_latency)
    price = token_price(world, segment, offer)
    for book in books.values():
        book.joined = 0
    for book, (u_signup, u_convert), u_trial in zip(books.values(), uniforms, trial_uniforms, strict=True):
        plan = book.plan
        effect = (
            price_effect(price, offer.price_usd_per_mtok, segment.signup_elasticity)
            if plan.pays_per_token
            else 1.0
        )
        if plan.monthly_fee_usd > 0 and plan.reference_fee_usd > 0:
            fee = reference_fee(segment, plan, month / 12)
            effect *= price_effect(plan.monthly_fee_usd, fee, segment.signup_elasticity)
        signups = poisson(float(u_signup), mean * plan.signup_share * pull * effect)
        world.record("signups", signups)
        if plan.trial is None:
            _join(book, month, signups)
        else:
            _end_trials(world, book, month, float(u_trial), min(1.0, plan.trial.conversion * pull))
            book.trials[month] += signups
            world.record_plan(book.key, "trials_started", signups)
        if plan.converts_to is not None:
            share = min(1.0, plan.conversion_per_month * pull)
            converted = binomial(float(u_convert), int(book.customers.sum()), share)
            _take(book.customers, converted)
            _join(books[plan.converts_to], month, converted)
            world.record("converted_customers", converted)
            world.record_plan(book.key, "converted", converted)
    world.record("new_customers", sum(book.joined for book in books.values() if is_paying(book.plan)))
    for book in books.values():
        world.record_plan(book.key, "new", book.joined)


def request_usage(world: World, customers: Customers, month: int, offer: Offer) -> float:
    """Set the usage that each plan asks for this month; returns it as a number of mean requests."""
    segment = customers.segment
    price = token_price(world, segment, offer)
    asked = 0.0
    for book in customers.books.values():
        plan = book.plan
        book.requests = requests_asked(segment, plan, book.customers, month, price, offer.price_usd_per_mtok)
        book.trial_requests = float(book.trials.sum()) * plan.requests_per_month
        if plan.on_premise:
            book.requests, book.trial_requests = np.zeros_like(book.requests), 0.0
        load = (float(book.requests.sum()) + book.trial_requests) * segment.request_size
        world.requests_by_plan[book.key] = load
        asked += load
    return asked


def token_price(world: World, segment: Segment, offer: Offer) -> float:
    """Price of a segment this month in USD per million tokens, prompt and output together."""
    surface = world.surface
    own = blended_price(segment, surface.prompt_tokens_mean, surface.output_tokens_mean)
    return own * price_factor(segment, offer.price_usd_per_mtok)


def churn(world: World, customers: Customers, month: int, offer: Offer) -> None:
    """Draw the customers who leave at the month's end, by cohort; a contract can only end with its term."""
    segment, service = customers.segment, world.service
    advantage = customers.advantage or 0.0
    uniforms = customers.random.random((len(customers.books), month + 1))
    price = token_price(world, segment, offer)
    incidents = _incidents_before(world, month)
    lost_paying = 0
    for book, row in zip(customers.books.values(), uniforms, strict=True):
        plan = book.plan
        probability = churn_probability(
            segment,
            contracts.churn_at_par(plan),
            advantage,
            service.slowness,
            1 - service.served_fraction,
            price_ratio(segment, plan, price, offer.price_usd_per_mtok, month / 12),
            incidents,
        )
        cohorts = np.flatnonzero(book.customers[: month + 1])
        if plan.contract is not None:
            cohorts = cohorts[contracts.term_ends(plan.contract, month, cohorts)]
        lost = 0
        before = int(book.customers[cohorts].sum())
        for cohort in cohorts.tolist():
            leavers = binomial(float(row[cohort]), int(book.customers[cohort]), probability)
            book.customers[cohort] -= leavers
            lost += leavers
        if plan.contract is not None:
            contracts.record(world, book, renewed=before - lost, lost=lost)
        world.record_plan(book.key, "lost", lost)
        if is_paying(plan):
            lost_paying += lost
    world.record("churned_customers", lost_paying)


def _signups_wanted(world: World, customers: Customers, month: int, spend_usd: float) -> float:
    """Mean signups of the month at par quality and the reference price, over all plans."""
    segment, users = customers.segment, float(customers.count)
    reachable = segment.addressable_customers * (1 + segment.addressable_growth_per_year) ** (month / 12)
    room = max(0.0, 1 - users / (reachable * segment.reach_share))
    mean = segment.organic_signups_per_month + marketed_signups(segment, spend_usd)
    mean += segment.wins_per_salesperson_per_month * world.sales_people.get(customers.name, 0.0)
    return (mean + segment.word_of_mouth_per_month * users) * room


def _incidents_before(world: World, month: int) -> float:
    """Safety incidents of last month: people hear of them, then leave."""
    if month == 0 or "safety_incidents" not in world.records:
        return 0.0
    return float(world.records["safety_incidents"][month - 1])


def _join(book: PlanBook, month: int, count: int) -> None:
    book.customers[month] += count
    book.joined += count


def _end_trials(world: World, book: PlanBook, month: int, uniform: float, share: float) -> None:
    """Convert or end the trials whose time is over."""
    assert book.plan.trial is not None
    started = month - book.plan.trial.months
    trying = int(book.trials[started]) if started >= 0 else 0
    converted = binomial(uniform, trying, share)
    if started >= 0:
        book.trials[started] = 0
    _join(book, month, converted)
    world.record_plan(book.key, "trials_converted", converted)
    world.record_plan(book.key, "trials_ended", trying)


def _take(cohorts: Cohorts, count: int) -> None:
    """Remove `count` customers, the newest first: free users who convert do so early."""
    for cohort in range(len(cohorts) - 1, -1, -1):
        taken = min(count, int(cohorts[cohort]))
        cohorts[cohort] -= taken
        count -= taken
        if count == 0:
            return
