"""What the plan's world was like in a month: what churn, conversion, signups and usage are multiplied with.

A scenario states these at par: equal quality, latency within the objective, the reference price. What is measured is
what came of it in the world as it was; to write it into a scenario, the world's part is taken out by the equations of
`sim.stages.market.competition`. Quality, latency and rivals' prices are the plan's, because no meter sees them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.accounting.ledger import MICRO_PER_USD
from sim.accounting.parties import advertising_party
from sim.actuals.subscriptions import Subscriptions
from sim.scenario.plans import plan_key, segments_of
from sim.stages.finance.people import at_full_strength, headcounts
from sim.stages.market.competition import (
    churn_probability,
    elsewhere,
    price_effect,
    price_ratio,
    quality_effect,
    reference_fee,
)
from sim.stages.market.plan_book import blended_price, price_factor
from sim.stages.market.segments import marketed_signups

if TYPE_CHECKING:
    from sim.company.simulate import Result
    from sim.scenario.schema import Plan, Segment

_PAR = 0.01  # any small churn: what multiplies its hazard is the same for all


@dataclass(frozen=True)
class MarketConditions:
    """The world of a plan's months `first`, `first` + 1, …, as the conditions of one segment's market."""

    plan: Result
    segment_name: str
    first: int
    months: int

    @property
    def segment(self) -> Segment:
        """Settings of the segment."""
        return segments_of(self.plan.scenario.market)[self.segment_name]

    def hazard(self, settings: Plan) -> tuple[float, float]:
        """(factor on the hazard of leaving at par, hazard added to it), means over the months."""
        segment, factors, added = self.segment, [], []
        for month in range(self.first, self.first + self.months):
            row = self.plan.monthly.iloc[month]
            deployment = self.plan.scenario.deployment
            slowness = max(
                row["ttft_p95_s"] / deployment.ttft_p95_s, row["tpot_p95_s"] / deployment.tpot_p95_s, 1.0
            )
            offer, price = elsewhere(segment, month), self.price(month)
            ratio = price_ratio(segment, settings, price, offer.price_usd_per_mtok, month / 12)
            refused = 1 - float(row["served_fraction"])
            found = churn_probability(segment, _PAR, self.advantage(month), slowness, refused, ratio, 0.0)
            more = segment.churn_per_unserved * refused
            added.append(more)
            factors.append((-math.log1p(-found) - more) / -math.log1p(-_PAR))
        return float(np.mean(factors)), float(np.mean(added))

    def pull(self) -> float:
        """Factor on conversions, mean over the months."""
        months = range(self.first, self.first + self.months)
        return float(np.mean([self._pull(month) for month in months]))

    def advantage(self, month: int) -> float:
        """Quality less that of the offer elsewhere."""
        own = float(self.plan.monthly["model_quality"].iloc[month])
        return own - elsewhere(self.segment, month).quality

    def price(self, month: int) -> float:
        """Price in USD per million tokens, prompt and output together."""
        surface = self.plan.surface
        own = blended_price(self.segment, surface.prompt_tokens_mean, surface.output_tokens_mean)
        return own * price_factor(self.segment, elsewhere(self.segment, month).price_usd_per_mtok)

    def signups(self, subscriptions: Subscriptions, spend_usd: list[float]) -> dict[str, float]:
        """Signups that the plan's assumptions expect over the months, given who was there and what was spent.

        By source: organic, word_of_mouth, marketing, sales.
        """
        segment, parts = self.segment, dict.fromkeys(("organic", "word_of_mouth", "marketing", "sales"), 0.0)
        for index in range(self.months):
            month = self.first + index
            customers = sum(
                subscriptions.count(plan_key(self.segment_name, name), index - 1) for name in segment.plans
            )
            reachable = segment.addressable_customers * (1 + segment.addressable_growth_per_year) ** (
                month / 12
            )
            room = max(0.0, 1 - customers / (reachable * segment.reach_share))
            effect = self._pull(month) * room * self._asked(month)
            parts["organic"] += segment.organic_signups_per_month * effect
            parts["word_of_mouth"] += segment.word_of_mouth_per_month * customers * effect
            parts["marketing"] += marketed_signups(segment, spend_usd[index]) * effect
            parts["sales"] += segment.wins_per_salesperson_per_month * self._salespeople(month) * effect
        return parts

    def spend_usd(self) -> list[float]:
        """What the plan spends on marketing to the segment, by month."""
        spent = self.plan.ledger.monthly_by_party(["marketing"], self.plan.scenario.horizon_months)
        amounts = spent.get(advertising_party(self.segment_name))
        if amounts is None:
            return [0.0] * self.months
        return [
            -float(amounts[month]) / MICRO_PER_USD for month in range(self.first, self.first + self.months)
        ]

    def _pull(self, month: int) -> float:
        return quality_effect(self.segment.signup_per_quality, self.advantage(month))

    def _asked(self, month: int) -> float:
        """What prices do to signups, over all plans by their share."""
        segment, offer = self.segment, elsewhere(self.segment, month)
        total = 0.0
        for settings in segment.plans.values():
            effect = 1.0
            if settings.pays_per_token:
                effect = price_effect(self.price(month), offer.price_usd_per_mtok, segment.signup_elasticity)
            if settings.monthly_fee_usd > 0 and settings.reference_fee_usd > 0:
                fee = reference_fee(segment, settings, month / 12)
                effect *= price_effect(settings.monthly_fee_usd, fee, segment.signup_elasticity)
            total += settings.signup_share * effect
        return total

    def _salespeople(self, month: int) -> float:
        names = list(segments_of(self.plan.scenario.market))
        total = 0.0
        for role in self.plan.scenario.finance.people.values():
            if role.function == "sales" and role.sells_to in (None, self.segment_name):
                strength = at_full_strength(headcounts(role, month + 1), role.ramp_months)[month]
                total += float(strength) / (len(names) if role.sells_to is None else 1)
        return total
