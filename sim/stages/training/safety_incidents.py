"""Harmful answers: incidents that make news, and the work that makes them rarer.

Incidents are a Poisson process whose rate halves with every so many dollars a month of interpretability work, and of
bias work; both halve it together. What one costs is exponential around its mean. Rates and halving amounts are
assumptions: no published curve ties spending to incidents.
"""

from __future__ import annotations

import math

from simpy.events import ProcessGenerator

from sim.scenario.schema.training import Safety
from sim.stages.payments import buy
from sim.stages.world import CLOSING_HOUR, World
from sim.utils.randomness import poisson


def incidents_per_year(safety: Safety) -> float:
    """Incidents per year that remain after the safety work."""
    halvings = safety.interpretability_usd_per_month / safety.interpretability_halving_usd
    halvings += safety.bias_usd_per_month / safety.bias_halving_usd
    return safety.incidents_per_year * 0.5**halvings


def run(world: World) -> ProcessGenerator:
    """Month by month: pay for the work, and for the incidents."""
    safety = world.scenario.training.safety
    assert safety is not None
    rate = incidents_per_year(safety)
    for month in range(world.months):
        yield world.until(month, CLOSING_HOUR)
        how_many, how_large = world.random["safety"].random(2).tolist()
        buy(world, "other_opex", safety.interpretability_usd_per_month, "interpretability work", "auditors")
        buy(world, "other_opex", safety.bias_usd_per_month, "bias work", "auditors")
        incidents = poisson(how_many, rate / 12)
        world.record("safety_incidents", incidents)
        if incidents:
            usd = incidents * safety.incident_usd * -math.log1p(-how_large)
            buy(world, "legal", usd, "harmful answers: response and claims", "counsel")
            world.note("training", "safety_incidents", incidents=incidents, usd=usd)
