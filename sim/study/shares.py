"""Shares that add up to one: when a study changes one, its neighbours share the rest in proportion.

Signups are divided among the plans of a segment, requests among the classes of traffic; a scenario in which such
shares don't add up is refused, so no study could change one alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from engine.errors import InputError
from sim.scenario.plans import segments_of
from sim.scenario.scenario import Scenario
from sim.scenario.schema.market import MAIN_SEGMENT


def with_shares_kept(scenario: Scenario, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes, completed by the shares that must change with them so that each set adds up to 1.

    Raises:
        InputError: changed shares above 1 together, or below 1 with no other share left.
    """
    completed = dict(changes)
    for family in share_families(scenario):
        asked = {key: float(changes[key]) for key in family if key in changes and _is_number(changes[key])}
        if not asked or any(key not in asked and key in changes for key in family):
            continue
        rest = {key: value for key, value in family.items() if key not in asked}
        left = 1.0 - math.fsum(asked.values())
        name = next(iter(asked))
        if left < -1e-9 or (not rest and abs(left) > 1e-6):
            raise InputError(f"{name}: shares come to {1 - left:g}, allowed: 1 together with its neighbours")
        held = math.fsum(rest.values())
        for key, value in rest.items():
            completed[key] = max(0.0, left) * (value / held if held > 0 else 1 / len(rest))
    return completed


def share_families(scenario: Scenario) -> list[dict[str, float]]:
    """{dotted key: share} of each set of shares that must add up to 1."""
    market = scenario.market
    families = [{f"market.traffic.{name}": share for name, share in market.traffic.items()}]
    for name, segment in segments_of(market).items():
        where = "market" if name == MAIN_SEGMENT else f"market.segments.{name}"
        families.append(
            {f"{where}.plans.{plan}.signup_share": sold.signup_share for plan, sold in segment.plans.items()}
        )
    return families


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
