"""Shortages of accelerators: months in which machines cost more and come later.

A shortage is told (it begins in a given month) or falls by chance, as a Poisson process whose events last the same
time; overlapping ones don't add up. It is known for the whole run before anybody rents, so that training and
serving see the same market.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.randomness import poisson
from sim.schema.deployment_parts import Shortage


def scarce_months(shortage: Shortage, random: np.random.Generator, months: int) -> NDArray[np.float64]:
    """1 in months of a shortage, else 0; shape [months]. Draws one uniform per month."""
    scarce = np.zeros(months)
    starts = [
        month
        for month, uniform in enumerate(random.random(months).tolist())
        if poisson(uniform, shortage.events_per_year / 12) > 0
    ]
    if shortage.start_month is not None:
        starts.append(shortage.start_month)
    for start in starts:
        scarce[start : start + shortage.duration_months] = 1.0
    return scarce
