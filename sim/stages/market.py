"""Stage 4, market: who comes, what they use and pay, who leaves.

Models sales and customers, by plan and by cohort (month of joining), in whole customers.
- Signups follow Bass 1969 ("A new product growth for model consumer durables"): organic and marketed
  adopters, plus word of mouth per customer, slowed by the part of the market already won. Marketing
  saturates: signups = S·spend / (spend + S·cost), slope 1/cost at first and never more than S.
- Price: demand × (price / reference)^−elasticity, the constant-elasticity demand curve; competitors cut
  prices and improve every year.
- Churn: proportional hazards (Cox 1972): base hazard × exp(−c·quality advantage) × slowness^c, plus a term
  for requests refused.
Every cohort of every paying plan gets its own invoice posting, so that NRR and GRR are queries over the
ledger.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from simpy.events import ProcessGenerator

from sim.ledger import micro
from sim.randomness import binomial, poisson
from sim.schema import Market, Plan
from sim.stages.deployment import SECONDS_PER_MONTH
from sim.stages.finance import buy, collect
from sim.world import CLOSING_HOUR, OPENING_HOUR, World

_TOKENS_PER_MTOK = 1e6
_MOST_EFFECT = 20.0  # bounds the effect of an absurd price or quality, so that counts stay finite

Cohorts = NDArray[np.int64]


def is_paying(plan: Plan) -> bool:
    """Whether customers of the plan pay anything that recurs."""
    return plan.monthly_fee_usd > 0 or plan.pays_per_token


def party(plan: str, cohort: int) -> str:
    """The name under which the ledger knows the customers of a plan who joined in one month."""
    return f"{plan}/{cohort:03d}"


def run(world: World) -> ProcessGenerator:
    """Month by month: win customers, ask for their usage, invoice what was served, lose some."""
    market = world.scenario.market
    customers = {name: np.zeros(world.months, dtype=np.int64) for name in market.plans}
    for name, plan in market.plans.items():
        customers[name][0] = plan.initial_customers
    revenue_usd = 0.0
    for month in range(world.months):
        yield world.until(month, OPENING_HOUR)
        advantage = world.live.quality - competitor_quality(market, world.years)
        world.record("competitor_quality", competitor_quality(market, world.years))
        spend_usd = market.marketing_usd_per_month + market.marketing_share_of_revenue * revenue_usd
        buy(world, "marketing", spend_usd, "marketing", "advertising")
        joined = _sign_up(world, customers, month, spend_usd, advantage)
        prompt, output = world.surface.prompt_tokens_mean, world.surface.output_tokens_mean
        usage = {
            name: _requests(market, plan, customers[name], month, world.years, prompt, output)
            for name, plan in market.plans.items()
        }
        world.demand_rps = float(sum(cohorts.sum() for cohorts in usage.values())) / SECONDS_PER_MONTH

        yield world.until(month, CLOSING_HOUR)
        # The fleet served the demand with its noise: everybody's usage scales alike.
        asked = world.demand_rps * SECONDS_PER_MONTH
        scale = float(world.records["requests"][month]) / asked if asked > 0 else 0.0
        revenue_usd = 0.0
        for name, plan in market.plans.items():
            if is_paying(plan):
                revenue_usd += _invoice(world, name, plan, customers[name], usage[name] * scale, joined[name])
            buy(world, "support", float(customers[name].sum()) * plan.support_usd_per_month, "support", name)
        world.record(
            "billed_customers", sum(int(customers[n].sum()) for n, p in market.plans.items() if is_paying(p))
        )
        _lose(world, customers, month, advantage)
        for name, plan in market.plans.items():
            world.record("customers" if is_paying(plan) else "customers_free", int(customers[name].sum()))


def competitor_quality(market: Market, years: float) -> float:
    """Quality index of the best competitor: closes a constant part of its distance to 1 each year."""
    return 1 - (1 - market.competitor_quality) * (1 - market.competitor_gap_closed_per_year) ** years


def blended_price(market: Market, prompt_tokens: float, output_tokens: float) -> float:
    """USD per million tokens of the mean request, prompt and output together."""
    cost = market.price_usd_per_mtok_prompt * prompt_tokens + market.price_usd_per_mtok_output * output_tokens
    return cost / (prompt_tokens + output_tokens)


def price_effect(price: float, reference: float, elasticity: float) -> float:
    """Demand relative to that at the reference price: (price / reference)^−elasticity, bounded."""
    if elasticity == 0:
        return 1.0
    if price <= 0:
        return _MOST_EFFECT
    return min(_MOST_EFFECT, max(1 / _MOST_EFFECT, (price / reference) ** -elasticity))


def quality_effect(strength: float, advantage: float) -> float:
    """exp(strength × quality advantage), bounded."""
    limit = math.log(_MOST_EFFECT)
    return math.exp(min(limit, max(-limit, strength * advantage)))


def marketed_signups(market: Market, spend_usd: float) -> float:
    """Signups per month that a marketing budget brings, saturating."""
    most = market.saturation_signups_per_month
    return most * spend_usd / (spend_usd + most * market.signup_cost_usd)


def churn_probability(
    market: Market, base: float, advantage: float, slowness: float, refused: float
) -> float:
    """Probability that a customer leaves this month (proportional hazards)."""
    if base >= 1:
        return 1.0
    hazard = -math.log1p(-base) * quality_effect(-market.churn_per_quality, advantage)
    hazard *= min(_MOST_EFFECT, slowness**market.churn_per_latency)
    return -math.expm1(-hazard - market.churn_per_unserved * refused)


def _sign_up(
    world: World, customers: dict[str, Cohorts], month: int, spend_usd: float, advantage: float
) -> dict[str, int]:
    """Draw this month's new customers into their cohort; gives new paying customers by plan."""
    market, random = world.scenario.market, world.random["market"]
    surface = world.surface
    uniforms = random.random((len(market.plans), 2))
    everybody = float(sum(int(cohorts.sum()) for cohorts in customers.values()))
    room = max(0.0, 1 - everybody / market.addressable_customers)
    mean = market.organic_signups_per_month + marketed_signups(market, spend_usd)
    mean = (mean + market.word_of_mouth_per_month * everybody) * room
    pull = quality_effect(market.signup_per_quality, advantage)
    price = blended_price(market, surface.prompt_tokens_mean, surface.output_tokens_mean)
    reference = _reference_price(market, world.years)
    joined = dict.fromkeys(market.plans, 0)
    for (name, plan), (u_signup, u_convert) in zip(market.plans.items(), uniforms, strict=True):
        effect = price_effect(price, reference, market.signup_elasticity) if plan.pays_per_token else 1.0
        if plan.monthly_fee_usd > 0 and plan.reference_fee_usd > 0:
            effect *= price_effect(plan.monthly_fee_usd, plan.reference_fee_usd, market.signup_elasticity)
        signups = poisson(float(u_signup), mean * plan.signup_share * pull * effect)
        customers[name][month] += signups
        joined[name] += signups
        if plan.converts_to is not None:
            free = customers[name]
            share = min(1.0, plan.conversion_per_month * pull)
            converted = binomial(float(u_convert), int(free.sum()), share)
            _take(free, converted)
            customers[plan.converts_to][month] += converted
            joined[plan.converts_to] += converted
            world.record("converted_customers", converted)
        world.record("signups", signups)
    world.record("new_customers", sum(joined[name] for name, plan in market.plans.items() if is_paying(plan)))
    return joined


def _take(cohorts: Cohorts, count: int) -> None:
    """Remove `count` customers, the newest first: free users who convert do so early."""
    for cohort in range(len(cohorts) - 1, -1, -1):
        taken = min(count, int(cohorts[cohort]))
        cohorts[cohort] -= taken
        count -= taken
        if count == 0:
            return


def _requests(
    market: Market, plan: Plan, cohorts: Cohorts, month: int, years: float, prompt: float, output: float
) -> NDArray[np.float64]:
    """Requests that each cohort of a plan asks for this month."""
    age = np.clip(month - np.arange(len(cohorts)), 0, plan.usage_growth_months)
    each = plan.requests_per_month * (1 + plan.usage_growth_per_month) ** age
    if plan.pays_per_token:
        price, reference = blended_price(market, prompt, output), _reference_price(market, years)
        each = each * price_effect(price, reference, market.usage_elasticity)
    return np.asarray(cohorts * each, dtype=np.float64)


def _reference_price(market: Market, years: float) -> float:
    return market.reference_price_usd_per_mtok * (1 - market.reference_price_decline_per_year) ** years


def _invoice(
    world: World, name: str, plan: Plan, cohorts: Cohorts, requests: NDArray[np.float64], joined: int
) -> float:
    """Invoice a plan cohort by cohort for the month; gives the revenue in USD."""
    market, finance, surface = world.scenario.market, world.scenario.finance, world.surface
    usd_per_request = (
        market.price_usd_per_mtok_prompt * surface.prompt_tokens_mean
        + market.price_usd_per_mtok_output * surface.output_tokens_mean
    ) / _TOKENS_PER_MTOK
    revenue = to_collect = 0
    for cohort in np.flatnonzero(cohorts).tolist():
        count = int(cohorts[cohort])
        world.billed.setdefault((name, cohort), np.zeros(world.months))[world.month] = count
        lines = {
            "revenue_seats": micro(count * plan.monthly_fee_usd),
            "revenue_tokens": micro(float(requests[cohort]) * usd_per_request) if plan.pays_per_token else 0,
            "revenue_services": micro(count * plan.services_usd_per_month),
        }
        if cohort == world.month:
            lines["revenue_services"] += micro(joined * plan.onboarding_fee_usd)
        total = sum(lines.values())
        if total == 0:
            continue
        # The processor keeps its fee from what it passes on, so the rest is what will be collected.
        fee = min(total, micro(total / 1e6 * finance.payment_fee_share + count * finance.payment_fee_usd))
        entries = [("receivable", total - fee), ("payment_fees", fee)]
        entries += [(account, -amount) for account, amount in lines.items() if amount]
        world.ledger.post(world.env.now, "invoices", entries, party(name, cohort))
        revenue += total
        to_collect += total - fee
    collect(world, to_collect)
    return revenue / 1e6


def _lose(world: World, customers: dict[str, Cohorts], month: int, advantage: float) -> None:
    market, service = world.scenario.market, world.service
    refused = 1 - service.served_fraction
    uniforms = world.random["market"].random((len(market.plans), month + 1))
    lost_paying = 0
    for (name, plan), row in zip(market.plans.items(), uniforms.tolist(), strict=True):
        probability = churn_probability(market, plan.churn_per_month, advantage, service.slowness, refused)
        for cohort in range(month + 1):
            lost = binomial(row[cohort], int(customers[name][cohort]), probability)
            customers[name][cohort] -= lost
            if is_paying(plan):
                lost_paying += lost
    world.record("churned_customers", lost_paying)
