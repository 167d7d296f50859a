"""How many new customers came against how many were expected, and on which plans they begin.

Signups are one factor on all of a segment's sources (organic, word of mouth, marketing, sales): the count of new
customers can't separate them. The distribution is put at the largest source, wide enough for all of them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from sim.accounting.saas_metrics import FloatArray
from sim.actuals.estimates import rate
from sim.actuals.market_conditions import MarketConditions
from sim.actuals.measured import FACTOR, Measured, MeasuredAssumption
from sim.actuals.rebase import segment_key
from sim.i18n.translate import mark
from sim.scenario.plans import plan_key, segments_of

SIGNUPS = mark("Signups against those expected")
_LEAST = 0.01  # of its middle: no source can have brought less than nothing


def signups(measured: Measured, name: str) -> list[MeasuredAssumption]:
    """Signups of a segment against those that the plan's assumptions expect."""
    segment, at = segments_of(measured.plan.scenario.market)[name], segment_key(name)
    world = MarketConditions(measured.plan, name, measured.first, measured.months)
    came = sum(
        measured.subscriptions.joined(plan_key(name, plan), month)
        for plan in segment.plans
        for month in range(measured.months)
    )
    spend = world.spend_usd()
    if measured.books.has_bank:
        paid = measured.books.statements.income()["marketing"].to_numpy()
        planned = measured.plan.statements.income()["marketing"].to_numpy()[
            measured.first : measured.first + measured.months
        ]
        part = sum(spend) / planned.sum() if planned.sum() > 0 else 0.0
        spend = [max(0.0, float(usd)) * part for usd in paid]
    parts = world.signups(measured.subscriptions, spend)
    expected = sum(parts.values())
    if expected <= 0:
        return []
    factor = rate(came, expected)
    largest = max(parts, key=lambda source: parts[source])
    keys = {
        "organic": ("organic_signups_per_month", segment.organic_signups_per_month),
        "word_of_mouth": ("word_of_mouth_per_month", segment.word_of_mouth_per_month),
        "marketing": ("saturation_signups_per_month", segment.saturation_signups_per_month),
        "sales": ("wins_per_salesperson_per_month", segment.wins_per_salesperson_per_month),
    }
    middle, weight = factor.value, parts[largest] / expected
    low, high = factor.bounds

    def one(key: str, written: Any, usual: float) -> MeasuredAssumption:
        return MeasuredAssumption(
            SIGNUPS, name, FACTOR, middle, low, high, came, f"{at}.{key}", written, usual
        )

    found = []
    for source, (key, usual) in keys.items():
        if not usual:
            continue
        part = factor.through(partial(_widened, middle=middle, weight=weight, usual=usual))
        found.append(one(key, part.text() if source == largest else middle * usual, usual))
    # S and c scale together, so that marketing brings `middle` times as many at every budget.
    found.append(one("signup_cost_usd", segment.signup_cost_usd / middle, segment.signup_cost_usd))
    return found


def _widened(factor: FloatArray, middle: float, weight: float, usual: float) -> FloatArray:
    """A source that makes up `weight` of all, as uncertain as it takes for all of them."""
    return np.maximum(middle + (factor - middle) / weight, _LEAST * middle) * usual


def signup_shares(measured: Measured) -> dict[str, float]:
    """Shares of new customers by plan, with half a signup for each plan that the scenario sells (Jeffreys)."""
    changes = {}
    for name, segment in segments_of(measured.plan.scenario.market).items():
        counts = {
            plan: sum(
                measured.subscriptions.joined(plan_key(name, plan), month) for month in range(measured.months)
            )
            for plan in segment.plans
        }
        if not sum(counts.values()):
            continue
        weights = {
            plan: count + 0.5 * (segment.plans[plan].signup_share > 0) for plan, count in counts.items()
        }
        total = sum(weights.values())
        for plan, weight in weights.items():
            changes[f"{segment_key(name)}.plans.{plan}.signup_share"] = weight / total
    return changes
