"""Outages: times in which a region serves no requests, what is lost, and the credits that customers get.

Outages of a region are a Poisson process; each begins at any hour of the month and lasts an exponential time. What
would have been served meanwhile is lost, but for the part that other regions take over. The month's uptime, weighted
by the regions' traffic, decides the credit, as in the service level agreements of clouds. A month draws the same
number of uniforms whatever happens: up to eight outages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sim.accounting.ledger import HOURS_PER_MONTH
from sim.scenario.schema.deployment import Outages
from sim.stages.deployment.fleet_week import HOURS_PER_WEEK, Week
from sim.stages.world import FloatArray
from sim.utils.randomness import poisson

MOST_IN_A_MONTH = 8
UNIFORMS = 1 + 3 * MOST_IN_A_MONTH  # how many; and of each: where, when, how long
_HOURS = np.arange(HOURS_PER_MONTH)


@dataclass(frozen=True)
class OutageMonth:
    """The outages of one month."""

    count: int
    hours: float  # regions without service × hours
    uptime: float  # weighted by traffic
    lost_fraction: float  # of what the fleet would have served
    credit_share: float  # of the month's invoices
    machines_lost: float  # replicas that stopped with work in them


NONE = OutageMonth(0, 0.0, 1.0, 0.0, 0.0, 0.0)


def happened(outages: Outages, uniforms: FloatArray, shares: list[float], weeks: list[Week]) -> OutageMonth:
    """Outages of a month, from its uniforms [UNIFORMS].

    Args:
        outages: rates and terms.
        uniforms: uniform numbers in [0, 1).
        shares: of the traffic, by region; they add up to 1.
        weeks: what each region would have served.
    """
    count = min(MOST_IN_A_MONTH, poisson(float(uniforms[0]), outages.per_year / 12 * len(weeks)))
    if count == 0:
        return NONE
    machines = 0.0
    down = np.zeros((len(weeks), HOURS_PER_MONTH))  # part of each hour without service
    for where, when, how_long in uniforms[1 : 1 + 3 * count].reshape(count, 3).tolist():
        start = when * HOURS_PER_MONTH
        end = start - outages.mean_h * math.log1p(-how_long)
        region = int(where * len(weeks))
        down[region] += overlap(start, end)
        machines += float(weeks[region].ordered[int(start) % HOURS_PER_WEEK])
    down = np.minimum(down, 1.0)
    served = np.stack([week.served_rps[_HOURS % HOURS_PER_WEEK] for week in weeks])
    # The month's requests are those of its mean week; a lost hour weighs what its hour of the week serves.
    total = sum(float(week.served_rps.mean()) for week in weeks) * HOURS_PER_MONTH
    lost = float((down * served).sum()) * (1 - outages.failover_share)
    uptime = 1 - float((down.sum(axis=1) * np.array(shares)).sum()) / HOURS_PER_MONTH
    return OutageMonth(
        count=count,
        hours=float(down.sum()),
        uptime=uptime,
        lost_fraction=min(1.0, lost / total) if total > 0 else 0.0,
        credit_share=credit(outages, uptime),
        machines_lost=machines,
    )


def overlap(start_h: float, end_h: float) -> FloatArray:
    """Part of each hour of the month [730] that lies between two times; what goes on next month is not counted."""
    return np.clip(np.minimum(_HOURS + 1, end_h) - np.maximum(_HOURS, start_h), 0.0, 1.0)


def credit(outages: Outages, uptime: float) -> float:
    """Share of the month's invoices that customers get back at this uptime."""
    return max(
        (tier.credit_share for tier in outages.credits.values() if uptime < tier.below_uptime), default=0.0
    )
