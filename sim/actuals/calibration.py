"""The assumptions of a scenario as they were measured: what the meter and the bank say, and how surely.

Every estimate stands as it was seen (a share of customers lost per month, say) and, where a key of the scenario holds
it, as it is written there: with the world's part taken out (`sim.actuals.market_conditions`) and as a distribution
(`sim.actuals.estimates`). Where there is too little to tell (one customer, no case at all) the plan's value stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sim.actuals.estimates import Posterior, mean, ratio, share
from sim.actuals.market_conditions import World, in_segment
from sim.actuals.measured import Estimate, Seen, estimated
from sim.actuals.rebase import segment_key
from sim.actuals.signups import signup_shares, signups
from sim.actuals.traffic import mean_tokens, usage_growth
from sim.billing.charges import plans_of
from sim.i18n.translate import mark
from sim.scenario.plans import segments_of
from sim.stages.market.competition import elsewhere, price_effect
from sim.stages.market.plan_book import blended_price

if TYPE_CHECKING:
    from sim.actuals.subscriptions import Life
    from sim.scenario.schema import Plan


RECENT_MONTHS = 3  # whose usage is that of now
_LEAST_MONTHS = 3  # of one customer, to tell how his usage grows
_FULL = 0.999  # of a month: part months say little about growth

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

    estimates: tuple[Estimate, ...]
    changes: dict[str, Any]

    def table(self) -> pd.DataFrame:
        """One row for each estimate, columns as in `Estimate`."""
        return pd.DataFrame([vars(one) for one in self.estimates], columns=list(Estimate.__annotations__))


def calibrate(seen: Seen) -> Calibration:
    """All estimates of a comparison."""
    found = [*_traffic(seen)]
    for segment in segments_of(seen.plan.scenario.market):
        found += _segment(seen, segment)
    for name, (_, settings) in plans_of(seen.plan.scenario).items():
        found += _plan(seen, name, settings)
    found += serving_cost(seen) + other_cost(seen)
    changes = {one.key: one.written for one in found if one.key and one.written is not None}
    changes |= {f"market.traffic.{name}": part for name, part in seen.traffic.shares.items()}
    changes |= {
        f"market.traffic.{name}": 0.0
        for name in seen.plan.scenario.market.traffic
        if name not in seen.traffic.shares
    }
    changes |= signup_shares(seen)
    return Calibration(tuple(found), changes)


def _traffic(seen: Seen) -> list[Estimate]:
    traffic, market = seen.traffic, seen.plan.scenario.market
    requests = int(seen.metered.by_hour.sum())
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
            Estimate(
                CLASS,
                name,
                "fraction of requests",
                part,
                low,
                high,
                len(seen.metered.sample),
                key,
                None,
                planned,
            )
        )
    return found


def _segment(seen: Seen, name: str) -> list[Estimate]:
    segment, at = segments_of(seen.plan.scenario.market)[name], segment_key(name)
    lives = [life for life in seen.lives.lives if in_segment(life.plan)[0] == name]
    requests, prompt, cached, output = _sums(lives)
    mixed = sum(mean_tokens(seen.traffic.shares))
    tokens = ratio(prompt + output, requests)
    size = None if tokens is None else tokens.through(lambda value: value / mixed)
    found = estimated(
        TOKENS, name, "tokens", tokens, float(requests.sum()), f"{at}.request_size",
        segment.request_size * sum(mean_tokens(dict(seen.plan.scenario.market.traffic))), size, 1000.0,
    )  # fmt: skip
    key = f"{at}.cache_discount.cached_prompt_share" if segment.cache_discount is not None else ""
    planned = segment.cache_discount.cached_prompt_share if segment.cache_discount is not None else math.nan
    found += estimated(
        CACHED, name, "fraction", ratio(cached, prompt), float(prompt.sum()), key, planned, most=1.0
    )
    return found + signups(seen, name)


def _plan(seen: Seen, name: str, settings: Plan) -> list[Estimate]:
    segment_name, short = in_segment(name)
    at = f"{segment_key(segment_name)}.plans.{short}"
    world = World(seen.plan, segment_name, seen.first, seen.months)
    found: list[Estimate] = []
    left, cases = seen.lives.churn(name, settings)
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
            kept = Posterior(lambda where: 1 - at_par.quantile(1 - where))
            found += [
                replace(one, written=kept.text(0.0, 1.0))
                for one in estimated(RENEWAL, name, "fraction", lost, cases, key, planned)
            ]
    if settings.converts_to is not None:
        converted, cases = seen.lives.conversions(name)
        if cases:
            pull = world.pull()
            paying = share(converted, cases)
            at_par = paying.through(lambda value: np.minimum(value / pull, 1.0))
            key = f"{at}.conversion_per_month"
            found += estimated(
                CONVERSION, name, "fraction", paying, cases, key, settings.conversion_per_month, at_par, 1.0
            )
    if settings.trial is not None:
        began, ended = seen.lives.trials(name, settings.trial.months)
        if ended:
            pull = world.pull()
            kept = share(began, ended)
            at_par = kept.through(lambda value: np.minimum(value / pull, 1.0))
            key = f"{at}.trial.conversion"
            found += estimated(
                TRIAL, name, "fraction", kept, ended, key, settings.trial.conversion, at_par, 1.0
            )
    return found + _usage(seen, name, settings, at) + realised_price(seen, name)


def _usage(seen: Seen, name: str, settings: Plan, at: str) -> list[Estimate]:
    lives, months = seen.lives.of(name), seen.months
    logs = []
    for life in lives:
        full = [
            math.log(life.use[month][0])
            for month, part in sorted(life.exposure.items())
            if part >= _FULL and month in life.use and life.use[month][0] > 0
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
        sum(use[0] for month, use in life.use.items() if month in life.exposure and month >= since)
        for life in lives
    ]
    there = [sum(part for month, part in life.exposure.items() if month >= since) for life in lives]
    each = ratio(asked, there)
    if each is None:
        return found
    # From the middle of those months to the first one after them.
    later = (1 + found[0].value) ** ((months - since + 1) / 2) if grows else 1.0
    effect = _price_effect(seen, name, settings)
    at_par = each.through(lambda value: value * later / effect)
    key = f"{at}.requests_per_month"
    return found + estimated(
        REQUESTS, name, "requests", each, float(sum(there)), key, settings.requests_per_month, at_par
    )


def _growth(found: Posterior | None) -> Any:
    """As a scenario writes it: growth may be below 0, which no lognormal is."""
    assert found is not None
    low, high = found.bounds
    sd = (high - low) / (2 * 1.959964)
    return f"~ normal(mean={found.value:.5g}, sd={max(sd, 1e-6):.5g}) within [-0.5, 0.5]"


def _price_effect(seen: Seen, name: str, settings: Plan) -> float:
    """What the price does to usage in the first month after the comparison."""
    if not settings.pays_per_token:
        return 1.0
    segment_name, _ = in_segment(name)
    segment = segments_of(seen.plan.scenario.market)[segment_name]
    own = World(seen.plan, segment_name, seen.first, seen.months)
    mixed = blended_price(segment, *mean_tokens(seen.traffic.shares))
    surface = seen.plan.surface
    planned = blended_price(segment, surface.prompt_tokens_mean, surface.output_tokens_mean)
    month = seen.first + seen.months
    price = own.price(month) * (mixed / planned if planned > 0 else 1.0)
    return price_effect(price, elsewhere(segment, month).price_usd_per_mtok, segment.usage_elasticity)


def _sums(lives: list[Life]) -> tuple[np.ndarray[Any, Any], ...]:
    """Requests, prompt, cached and output tokens of each customer."""
    by_customer: dict[str, np.ndarray[Any, Any]] = {}
    for life in lives:
        total = np.sum(list(life.use.values()), axis=0) if life.use else np.zeros(4)
        by_customer[life.customer] = by_customer.get(life.customer, np.zeros(4)) + total
    table = np.array(list(by_customer.values())).reshape(-1, 4)
    return tuple(table.T)


PRICE = mark("Price realised per million tokens")
COST = mark("Measured serving cost per million tokens")
OPEX = mark("Other operating expense per month")
PERSON = mark("Cost of a person per year")


def realised_price(seen: Seen, name: str) -> list[Estimate]:
    """Revenue without onboarding over tokens, customer by customer."""
    revenue: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for bill in seen.books.bills:
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


def serving_cost(seen: Seen) -> list[Estimate]:
    """What the meter says that a token costs, day by day."""
    days = seen.metered.by_day
    return estimated(
        COST, "", "USD per million tokens", ratio(days["cost_micro_usd"], days["tokens"]), len(days)
    )


def other_cost(seen: Seen) -> list[Estimate]:
    """What the bank says of other cost: months are the groups."""
    if not seen.books.has_bank:
        return []
    finance = seen.plan.scenario.finance
    paid, planned = seen.books.statements.income(), seen.plan.statements.income()
    planned = planned.iloc[seen.first : seen.first + seen.months]
    found = estimated(
        OPEX, "", "USD per month", mean(paid["other_opex"]), seen.months,
        "finance.other_opex_usd_per_month", finance.other_opex_usd_per_month,
    )  # fmt: skip
    for name, role in finance.people.items():
        account = f"people_{role.function}"
        factor = ratio(paid[account], planned[account])
        if factor is not None:
            cost = factor.through(lambda value, usd=role.cost_usd_per_year: value * usd)  # type: ignore[misc]
            found += estimated(
                PERSON, name, "USD per person and year", cost, seen.months,
                f"finance.people.{name}.cost_usd_per_year", role.cost_usd_per_year,
            )  # fmt: skip
    return found
