"""Inputs of a sensitivity study: each assumption over its distribution, or over ±20 % where it has none.

The range is the 10 % to 90 % quantile of the distribution the scenario gives; an assumption without one
ranges from 20 % less to 20 % more, within the bounds of the schema (whole numbers: by at least one).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from engine.errors import InputError
from sim.scenario.fields import leaves, source_of
from sim.study.levers import KeyFacts, key_facts, numeric_keys
from sim.study.shares import share_families

if TYPE_CHECKING:
    from sim.scenario.distributions import Distribution
    from sim.scenario.scenario import Scenario

LOW_SHARE, HIGH_SHARE = 0.1, 0.9
SWING = 0.2


@dataclass(frozen=True)
class Input:
    """One assumption that a study varies: its value, its range, and its distribution if it has one."""

    key: str
    base: float
    low: float
    high: float
    meaning: str = ""
    unit: str = ""
    whole: bool = False
    distribution: Distribution | None = None
    source: str = ""  # where the value comes from, "" when it is assumed

    def at(self, share: float) -> float | int:
        """Quantile of the distribution, or of the uniform one from low to high; `share` lies in [0, 1]."""
        if self.distribution is not None:
            value = float(self.distribution.quantile(share))
        else:
            value = self.low + (self.high - self.low) * share
        return round(value) if self.whole else value

    @property
    def origin(self) -> str:
        """Where the range comes from: the distribution as written, or "±20 %"."""
        return f"±{SWING:.0%}" if self.distribution is None else str(self.distribution)


def inputs_of(
    scenario: Scenario, keys: Sequence[str] | None = None, *, swing: float = SWING
) -> tuple[list[Input], pd.DataFrame]:
    """The assumptions to vary, and a table (key, why) of those that can't be varied.

    Args:
        scenario: the company.
        keys: keys, or prefixes of keys ("market", "market.plans.pro"); by default every number of the scenario.
        swing: fraction by which an assumption without a distribution goes up and down.

    Raises:
        InputError: an unknown key.
    """
    if not 0 < swing < 1:
        raise InputError(f"swing: found {swing:g}, allowed: between 0 and 1")
    sources = {
        key: origin[0] for key, value, field in leaves(scenario) if (origin := source_of(field, value))
    }
    sources |= scenario.sources
    alone = {key for family in share_families(scenario) if len(family) == 1 for key in family}
    found: list[Input] = []
    left_out = []
    for key in _chosen(scenario, keys):
        facts = key_facts(scenario, key)
        distribution = scenario.uncertain.get(key)
        if key in alone:
            left_out.append((key, "a share without neighbours is 1"))
        elif facts.value is None:
            left_out.append((key, "not a number in this scenario"))
        elif distribution is None and facts.value == 0:
            left_out.append((key, "zero: a fraction of it is nothing; give it a distribution"))
        else:
            one = _input(facts, distribution, swing, sources.get(key, ""))
            if one.low < one.high:
                found.append(one)
            else:
                left_out.append((key, "the schema leaves it no room"))
    return found, pd.DataFrame(left_out, columns=["key", "why"])


def _input(facts: KeyFacts, distribution: Distribution | None, swing: float, source: str) -> Input:
    assert facts.value is not None
    if distribution is not None:
        low, high = (float(distribution.quantile(share)) for share in (LOW_SHARE, HIGH_SHARE))
    else:
        low, high = sorted((facts.value * (1 - swing), facts.value * (1 + swing)))
        if facts.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = facts.clipped(low), facts.clipped(high)
    return Input(
        facts.key, facts.value, low, high, facts.meaning, facts.unit, facts.whole, distribution, source
    )


def _chosen(scenario: Scenario, keys: Sequence[str] | None) -> list[str]:
    known = numeric_keys(scenario)
    if keys is None:
        return known
    chosen: list[str] = []
    for key in keys:
        matching = [one for one in known if one == key or one.startswith(f"{key}.")]
        if not matching:
            key_facts(scenario, key)  # raises the reason
            matching = [key]
        chosen += [one for one in matching if one not in chosen]
    return chosen
