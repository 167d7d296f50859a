"""What customers compare with: rivals' prices and quality, and how strongly a difference acts.

Models the rest of the market. Each rival gets cheaper and better every year; it closes a constant part of its
distance to a perfect model (quality 1). Several rivals are weighed by the multinomial logit of choice
(McFadden 1974), with weight price^−elasticity × exp(c·quality); what customers compare with is the weighted
geometric mean price and the weighted mean quality.
- Price: demand × (price / reference)^−elasticity, the constant-elasticity demand curve.
- Churn: proportional hazards (Cox 1972): base hazard × exp(−c·quality advantage) × slowness^c, plus a term
  for requests refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sim.scenario.schema import Competitor, Plan, Segment

MOST_EFFECT = 20.0  # bounds the effect of an absurd price or quality, so that counts stay finite


@dataclass(frozen=True)
class Offer:
    """The best rival offer: USD per million tokens (prompt and output together), quality index."""

    price_usd_per_mtok: float
    quality: float


def elsewhere(segment: Segment, month: int) -> Offer:
    """The offer that customers of a segment compare with in a month of the run."""
    rivals = [rival for rival in segment.competitors.values() if rival.enters_month <= month]
    if not rivals:
        return Offer(reference_price(segment, month / 12), competitor_quality(segment, month / 12))
    offers = [_offer(rival, month) for rival in rivals]
    log_price = np.log([offer.price_usd_per_mtok for offer in offers])
    quality = np.array([offer.quality for offer in offers])
    appeal = segment.signup_per_quality * quality - segment.signup_elasticity * log_price
    weight = np.exp(appeal - appeal.max())
    weight /= weight.sum()
    return Offer(math.exp(float(weight @ log_price)), float(weight @ quality))


def reference_price(segment: Segment, years: float) -> float:
    """USD per million tokens of comparable offers, when no rival is named."""
    return segment.reference_price_usd_per_mtok * (1 - segment.reference_price_decline_per_year) ** years


def competitor_quality(segment: Segment, years: float) -> float:
    """Quality index of the best competitor, when none is named."""
    return 1 - (1 - segment.competitor_quality) * (1 - segment.competitor_gap_closed_per_year) ** years


def price_ratio(segment: Segment, plan: Plan, price: float, reference: float, years: float) -> float:
    """Price over reference of a plan: of its tokens when it bills them, of its fee when that can be compared."""
    ratio = price / reference if plan.pays_per_token else 1.0
    if plan.monthly_fee_usd > 0 and plan.reference_fee_usd > 0:
        ratio *= plan.monthly_fee_usd / reference_fee(segment, plan, years)
    return ratio


def reference_fee(segment: Segment, plan: Plan, years: float) -> float:
    """USD per month of comparable offers with a fee."""
    return plan.reference_fee_usd * (1 - segment.reference_fee_decline_per_year) ** years


def price_effect(price: float, reference: float, elasticity: float) -> float:
    """Demand relative to that at the reference price: (price / reference)^−elasticity, bounded."""
    if elasticity == 0:
        return 1.0
    if price <= 0:
        return MOST_EFFECT
    return min(MOST_EFFECT, max(1 / MOST_EFFECT, (price / reference) ** -elasticity))


def quality_effect(strength: float, advantage: float) -> float:
    """exp(strength × quality advantage), bounded."""
    limit = math.log(MOST_EFFECT)
    return math.exp(min(limit, max(-limit, strength * advantage)))


def churn_probability(
    segment: Segment,
    base: float,
    advantage: float,
    slowness: float,
    refused: float,
    price: float = 1.0,
    incidents: float = 0.0,
) -> float:
    """Probability that a customer leaves (proportional hazards).

    Args:
        segment: strengths of the effects.
        base: probability at par quality, objective latency and reference price.
        advantage: quality less that of the offer elsewhere.
        slowness: latency over the objective, at least 1.
        refused: fraction of requests not served.
        price: over the reference.
        incidents: safety incidents of last month.
    """
    if base >= 1:
        return 1.0
    hazard = -math.log1p(-base) * quality_effect(-segment.churn_per_quality, advantage)
    hazard *= min(MOST_EFFECT, slowness**segment.churn_per_latency)
    if segment.churn_per_price > 0:
        hazard /= price_effect(price, 1.0, segment.churn_per_price)
    hazard += segment.churn_per_unserved * refused + segment.churn_per_incident * incidents
    return -math.expm1(-hazard)


def _offer(rival: Competitor, month: int) -> Offer:
    years = month / 12
    price = rival.price_usd_per_mtok * (1 - rival.price_decline_per_year) ** years
    if rival.price_cut_month is not None and month >= rival.price_cut_month:
        price *= 1 - rival.price_cut_share
    return Offer(price, 1 - (1 - rival.quality) * (1 - rival.gap_closed_per_year) ** years)
