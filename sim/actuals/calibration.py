"""The assumptions of a scenario as measured from the meter and the bank, with bounds.

Every estimate stands as it was seen (a share of customers lost per month, say) and, where a key of the scenario holds
it, as it is written there: with the world's part taken out (`sim.actuals.market_conditions`) and as a distribution
(`sim.actuals.estimates`). Where there is too little data (one customer, no case at all) the plan's value stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sim.actuals.estimates import Belief, mean, ratio, share
from sim.actuals.market_conditions import MarketConditions
from sim.actuals.measured import Measured, MeasuredAssumption, estimated
from sim.actuals.rebase import segment_key
from sim.actuals.signups import signup_shares, signups
from sim.actuals.traffic import mean_tokens, usage_growth
from sim.billing.charges import plans_of
from sim.i18n.translate import mark
from sim.scenario.plans import plan_key, segments_of, split_key
from sim.stages.market.competition import elsewhere, price_effect
from sim.stages.market.plan_book import blended_price

if TYPE_CHECKING:
    from sim.actuals.subscriptions import Subscription
    from sim.scenario.schema import Plan


RECENT_MONTHS = 3  # whose usage is that of now
_LEAST_MONTHS = 3  # of one customer, to estimate the growth of usage
_FULL = 0.999  # of a month: part months carry little about growth

CHURN = mark("Churn per month")
RENEWAL = mark("Contracts lost at the end of a term")
CONVERSION = mark("Free users who begin to pay, per month")
TRIAL = mark("Trials that become customers")
REQUESTS = mark("Requests per customer and month")
GROWTH = mark("Growth of a customer's usage per month")
TOKENS = mark("Tokens per request")
CACHED = mark("Prompt tokens found in the cache")
NOISE = mark("Noise of demand from hour to hour")
TRAFFIC_GROWTH = mark("Growth of all requests per month")
CLASS = mark("Share of requests of a class")


@dataclass(frozen=True)
class Calibration:
    """All estimates, and the changes that they make to the scenario: {dotted key: number or distribution}."""

    estimates: tuple[MeasuredAssumption, ...]
    changes: dict[str, Any]

    def table(self) -> pd.DataFrame:
        """One row for each estimate, columns as in `MeasuredAssumption`."""
        return pd.DataFrame(
            [vars(one) for one in self.estimates], columns=list(MeasuredAssumption.__annotations__)
        )


def calibrate(measured: Measured) -> Calibration:
    """All estimates of a comparison."""
    found = [*_traffic(measured)]
    for segment in segments_of(measured.plan.scenario.market):
        found += _segment(measured, segment)
    for name, (_, settings) in plans_of(measured.plan.scenario).items():
        found += _plan(measured, name, settings)
    found += serving_cost(measured) + other_cost(measured)
    changes = {one.key: one.written for one in found if one.key and one.written is not None}
    changes |= {f"market.traffic.{name}": part for name, part in measured.traffic.shares.items()}
    changes |= {
        f"market.traffic.{name}": 0.0
        for name in measured.plan.scenario.market.traffic
        if name not in measured.traffic.shares
    }
    changes |= signup_shares(measured)
    return Calibration(tuple(found), changes)


def _traffic(measured: Measured) -> list[MeasuredAssumption]:
    traffic, market = measured.traffic, measured.plan.scenario.market
    requests = int(measured.metered.by_hour.sum())
    found = estimated(
        NOISE, "", "standard deviation of the logarithm", traffic.noise, requests,
        "market.demand_noise", market.demand_noise, most=2.0,
    )  # fmt: skip
    found += estimated(TRAFFIC_GROWTH, "", "fraction per month", traffic.growth_per_month, requests)
    for name, part in traffic.shares.items():
        low, high = traffic.share_bounds.get(name, (math.nan, math.nan))
        low, high = min(part, low), max(part, high)  # of whole percent
        planned = market.traffic.get(name, 0.0)
        key = f"market.traffic.{name}"
        found.append(
            MeasuredAssumption(
                CLASS,
                name,
                "fraction of requests",
                part,
                low,
                high,
                len(measured.metered.sample),
                key,
                None,
                planned,
            )
        )
    return found


def _segment(measured: Measured, name: str) -> list[MeasuredAssumption]:
    segment, at = segments_of(measured.plan.scenario.market)[name], segment_key(name)
    plans = {plan_key(name, plan) for plan in segment.plans}
    subscriptions = [one for one in measured.subscriptions.all if one.plan in plans]
    requests, prompt, cached, output = _sums(subscriptions)
    mixed = sum(mean_tokens(measured.traffic.shares))
    tokens = ratio(prompt + output, requests)
    size = None if tokens is None else tokens.through(lambda value: value / mixed)
    found = estimated(
        TOKENS, name, "tokens", tokens, float(requests.sum()), f"{at}.request_size",
        segment.request_size * sum(mean_tokens(dict(measured.plan.scenario.market.traffic))), size, 1000.0,
    )  # fmt: skip
    key = f"{at}.cache_discount.cached_prompt_share" if segment.cache_discount is not None else ""
    planned = segment.cache_discount.cached_prompt_share if segment.cache_discount is not None else math.nan
    found += estimated(
        CACHED, name, "fraction", ratio(cached, prompt), float(prompt.sum()), key, planned, most=1.0
    )
    return found + signups(measured, name)


def _plan(measured: Measured, name: str, settings: Plan) -> list[MeasuredAssumption]:
    segment_name, short = split_key(measured.plan.scenario.market, name)
    at = f"{segment_key(segment_name)}.plans.{short}"
    world = MarketConditions(measured.plan, segment_name, measured.first, measured.months)
    found: list[MeasuredAssumption] = []
    left, cases = measured.subscriptions.churn(name, settings)
    if cases:
        factor, added = world.hazard(settings)
        lost = share(left, cases)
        at_par = lost.through(lambda value: -np.expm1(-np.maximum(-np.log1p(-value) - added, 0.0) / factor))
        if settings.contract is None:
            key, planned = f"{at}.churn_per_month", settings.churn_per_month
            found += estimated(CHURN, name, "fraction", lost, cases, key, planned, at_par, 1.0)
        else:
            planned = 1 - settings.contract.renewal_share
            key = f"{at}.contract.renewal_share"
            # Renewed is one less lost: its quantiles run the other way.
            kept = Belief(lambda where: 1 - at_par.quantile(1 - where))
            found += [
                replace(one, written=kept.text(0.0, 1.0))
                for one in estimated(RENEWAL, name, "fraction", lost, cases, key, planned)
            ]
    if settings.converts_to is not None:
        converted, cases = measured.subscriptions.conversions(name)
        if cases:
            pull = world.pull()
            paying = share(converted, cases)
            at_par = paying.through(lambda value: np.minimum(value / pull, 1.0))
            key = f"{at}.conversion_per_month"
            found += estimated(
                CONVERSION, name, "fraction", paying, cases, key, settings.conversion_per_month, at_par, 1.0
            )
    if settings.trial is not None:
        began, ended = measured.subscriptions.trials(name, settings.trial.months)
        if ended:
            pull = world.pull()
            kept = share(began, ended)
            at_par = kept.through(lambda value: np.minimum(value / pull, 1.0))
            key = f"{at}.trial.conversion"
            found += estimated(
                TRIAL, name, "fraction", kept, ended, key, settings.trial.conversion, at_par, 1.0
            )
    return found + _usage(measured, name, settings, at) + realised_price(measured, name)


def _usage(measured: Measured, name: str, settings: Plan, at: str) -> list[MeasuredAssumption]:
    subscriptions, months = measured.subscriptions.of(name), measured.months
    logs = []
    for subscription in subscriptions:
        full = [
            math.log(subscription.use[month][0])
            for month, part in sorted(subscription.exposure.items())
            if part >= _FULL and month in subscription.use and subscription.use[month][0] > 0
        ]
        if len(full) >= _LEAST_MONTHS:
            logs.append(np.array(full))
    growth = usage_growth(logs)
    found = estimated(GROWTH, name, "fraction", growth, len(logs))
    grows = bool(found) and (found[0].low > 0 or found[0].high < 0)
    found = [replace(one, key=f"{at}.usage_growth_per_month", written=_growth(growth) if grows else 0.0,
                     planned=settings.usage_growth_per_month) for one in found]  # fmt: skip
    since = max(0, months - RECENT_MONTHS) if grows else 0
    asked = [
        sum(
            use[0]
            for month, use in subscription.use.items()
            if month in subscription.exposure and month >= since
        )
        for subscription in subscriptions
    ]
    there = [
        sum(part for month, part in subscription.exposure.items() if month >= since)
        for subscription in subscriptions
    ]
    each = ratio(asked, there)
    if each is None:
        return found
    # From the middle of those months to the first one after them.
    later = (1 + found[0].value) ** ((months - since + 1) / 2) if grows else 1.0
    effect = _price_effect(measured, name, settings)
    at_par = each.through(lambda value: value * later / effect)
    key = f"{at}.requests_per_month"
    return found + estimated(
        REQUESTS, name, "requests", each, float(sum(there)), key, settings.requests_per_month, at_par
    )


def _growth(found: Belief | None) -> Any:
    """As a scenario writes it: growth may be below 0, which no lognormal is."""
    assert found is not None
    low, high = found.bounds
    sd = (high - low) / (2 * 1.959964)
    return f"~ normal(mean={found.value:.5g}, sd={max(sd, 1e-6):.5g}) within [-0.5, 0.5]"


def _price_effect(measured: Measured, name: str, settings: Plan) -> float:
    """What the price does to usage in the first month after the comparison."""
    if not settings.pays_per_token:
        return 1.0
    segment_name, _ = split_key(measured.plan.scenario.market, name)
    segment = segments_of(measured.plan.scenario.market)[segment_name]
    own = MarketConditions(measured.plan, segment_name, measured.first, measured.months)
    mixed = blended_price(segment, *mean_tokens(measured.traffic.shares))
    surface = measured.plan.surface
    planned = blended_price(segment, surface.prompt_tokens_mean, surface.output_tokens_mean)
    month = measured.first + measured.months
    price = own.price(month) * (mixed / planned if planned > 0 else 1.0)
    return price_effect(price, elsewhere(segment, month).price_usd_per_mtok, segment.usage_elasticity)


def _sums(subscriptions: list[Subscription]) -> tuple[np.ndarray[Any, Any], ...]:
    """Requests, prompt, cached and output tokens of each customer."""
    by_customer: dict[str, np.ndarray[Any, Any]] = {}
    for subscription in subscriptions:
        total = np.sum(list(subscription.use.values()), axis=0) if subscription.use else np.zeros(4)
        by_customer[subscription.customer] = by_customer.get(subscription.customer, np.zeros(4)) + total
    table = np.array(list(by_customer.values())).reshape(-1, 4)
    return tuple(table.T)


PRICE = mark("Price realised per million tokens")
COST = mark("Measured serving cost per million tokens")
OPEX = mark("Other operating expense per month")
PERSON = mark("Cost of a person per year")


def realised_price(measured: Measured, name: str) -> list[MeasuredAssumption]:
    """Revenue without onboarding over tokens, customer by customer."""
    revenue: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for bill in measured.books.bills:
        for invoice in bill.invoices:
            lines = [
                line for line in invoice.lines if line.plan == name and line.kind not in ("onboarding", "tax")
            ]
            if any(line.kind == "trial" for line in lines):
                continue
            for line in lines:
                if line.kind not in ("advance", "drawn"):
                    revenue[invoice.customer] = revenue.get(invoice.customer, 0) + line.amount_micro_usd
                if line.kind in ("prompt", "cached", "output"):
                    tokens[invoice.customer] = tokens.get(invoice.customer, 0) + line.quantity
    customers = sorted(revenue)
    found = ratio([revenue[one] for one in customers], [tokens.get(one, 0) for one in customers])
    return estimated(PRICE, name, "USD per million tokens", found, len(customers))


def serving_cost(measured: Measured) -> list[MeasuredAssumption]:
    """Cost per token from the meter, by day."""
    days = measured.metered.by_day
    return estimated(
        COST, "", "USD per million tokens", ratio(days["cost_micro_usd"], days["tokens"]), len(days)
    )


def other_cost(measured: Measured) -> list[MeasuredAssumption]:
    """Other costs from the bank; months are the groups."""
    if not measured.books.has_bank:
        return []
    finance = measured.plan.scenario.finance
    paid, planned = measured.books.statements.income(), measured.plan.statements.income()
    planned = planned.iloc[measured.first : measured.first + measured.months]
    found = estimated(
        OPEX, "", "USD per month", mean(paid["other_opex"]), measured.months,
        "finance.other_opex_usd_per_month", finance.other_opex_usd_per_month,
    )  # fmt: skip
    for name, role in finance.people.items():
        account = f"people_{role.function}"
        factor = ratio(paid[account], planned[account])
        if factor is not None:
            cost = factor.through(lambda value, usd=role.cost_usd_per_year: value * usd)  # type: ignore[misc]
            found += estimated(
                PERSON, name, "USD per person and year", cost, measured.months,
                f"finance.people.{name}.cost_usd_per_year", role.cost_usd_per_year,
            )  # fmt: skip
    return found
