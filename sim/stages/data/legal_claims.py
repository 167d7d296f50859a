"""The law of training text, as luck: owners take their text back, and somebody claims damages.

Both arrive as Poisson processes per source; what a claim costs is exponential around its mean (most are small,
a few hurt). Every month draws the same amount of luck, for a hundred sources whether there are so many or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sim.scenario.schema.data import MOST_SOURCES, DataSource
from sim.stages.payments import buy
from sim.stages.world import FloatArray, World
from sim.utils.randomness import poisson

LUCK_PER_SOURCE = 3  # withdrawn or not, how many claims, how large


@dataclass(frozen=True)
class LegalMonth:
    """What happened to one source in one month."""

    withdrawn: bool
    claims: int
    claims_usd: float


def draw(world: World) -> FloatArray:
    """This month's luck, [sources, 3] uniforms."""
    return world.random["legal"].random((MOST_SOURCES, LUCK_PER_SOURCE))


def happened(source: DataSource, luck: FloatArray) -> LegalMonth:
    """Turn a source's luck (three uniforms) into events at its yearly rates."""
    withdrawn = float(luck[0]) < -math.expm1(-source.withdrawals_per_year / 12)
    claims = poisson(float(luck[1]), source.claims_per_year / 12)
    each_usd = -source.claim_usd * math.log1p(-float(luck[2]))
    return LegalMonth(withdrawn, claims, claims * each_usd)


def settle(world: World, name: str, source: DataSource, luck: FloatArray) -> bool:
    """Pay a source's claims of the month; gives whether the source is withdrawn from now on."""
    month = happened(source, luck)
    if month.claims:
        buy(world, "legal", month.claims_usd, "claim over training text", name)
        world.record("legal_claims", month.claims)
        world.note("data", "legal_claims", claims=month.claims, source=name, usd=month.claims_usd)
    if month.withdrawn:
        removed = world.pool.drop(name) if source.withdrawal_deletes else 0.0
        world.record("sources_withdrawn", 1)
        world.note("data", "source_withdrawn", source=name, tokens=removed)
    return month.withdrawn
