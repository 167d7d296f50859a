"""Legal events of training text: sources that their owners withdraw, and claims for damages.

Both arrive as Poisson processes per source; what a claim costs is exponential around its mean (most are small,
a few large). Every month draws the same number of uniforms, for `MOST_SOURCES` sources, however many there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sim.scenario.schema.data import MOST_SOURCES, DataSource
from sim.stages.payments import buy
from sim.stages.world import FloatArray, World
from sim.utils.randomness import poisson

UNIFORMS_PER_SOURCE = 3  # withdrawn or not, how many claims, how large


@dataclass(frozen=True)
class LegalMonth:
    """Withdrawal and claims of one source in one month."""

    withdrawn: bool
    claims: int
    claims_usd: float


def draw(world: World) -> FloatArray:
    """Uniform random numbers of this month, shape [MOST_SOURCES, UNIFORMS_PER_SOURCE]."""
    return world.random["legal"].random((MOST_SOURCES, UNIFORMS_PER_SOURCE))


def happened(source: DataSource, uniforms: FloatArray) -> LegalMonth:
    """Withdrawal and claims of a source in a month, from its three uniforms and its yearly rates."""
    withdrawn = float(uniforms[0]) < -math.expm1(-source.withdrawals_per_year / 12)
    claims = poisson(float(uniforms[1]), source.claims_per_year / 12)
    each_usd = -source.claim_usd * math.log1p(-float(uniforms[2]))
    return LegalMonth(withdrawn, claims, claims * each_usd)


def settle(world: World, name: str, source: DataSource, uniforms: FloatArray) -> bool:
    """Pay a source's claims of the month; returns whether the source is withdrawn from now on."""
    month = happened(source, uniforms)
    if month.claims:
        buy(world, "legal", month.claims_usd, "claim over training text", name)
        world.record("legal_claims", month.claims)
        world.note("data", "legal_claims", claims=month.claims, source=name, usd=month.claims_usd)
    if month.withdrawn:
        removed = world.pool.drop(name) if source.withdrawal_deletes else 0.0
        world.record("sources_withdrawn", 1)
        world.note("data", "source_withdrawn", source=name, tokens=removed)
    return month.withdrawn
