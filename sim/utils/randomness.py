"""Named random streams, and whole-number draws from a uniform number.

Each stage draws only from the stream with its own name, and a draw uses the same number of uniforms whatever
its parameters are (inverse transform sampling). Two scenarios with one seed therefore share their noise
(common random numbers): the difference between them is the effect of the assumption, not noise.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

# The order is part of what a seed means: append only.
STREAMS = (
    "data", "training", "deployment", "market",
    "legal", "failures", "safety", "spot", "outages", "canary", "shortage",
)  # fmt: skip

_NORMAL = NormalDist()
_EXACT_BELOW = 60.0  # mean from which the normal approximation (with continuity correction) is close enough


def streams(seed: int) -> dict[str, np.random.Generator]:
    """One independent generator per stage, by name."""
    children = np.random.SeedSequence(seed).spawn(len(STREAMS))
    return {name: np.random.default_rng(child) for name, child in zip(STREAMS, children, strict=True)}


def substream(seed: int, name: str) -> np.random.Generator:
    """An independent generator for a name, such as that of a segment; no other name changes its draws."""
    return np.random.default_rng(np.random.SeedSequence([seed, *name.encode()]))


def poisson(uniform: float, mean: float) -> int:
    """Poisson count with this mean at this uniform number in [0, 1)."""
    if mean <= 0:
        return 0
    if mean > _EXACT_BELOW:
        return max(0, round(mean + math.sqrt(mean) * _z(uniform)))
    count, mass = 0, math.exp(-mean)
    below = mass
    while uniform >= below and mass > 0:
        count += 1
        mass *= mean / count
        below += mass
    return count


def binomial(uniform: float, trials: int, probability: float) -> int:
    """Binomial count out of `trials` at this uniform number in [0, 1)."""
    if trials <= 0 or probability <= 0:
        return 0
    if probability >= 1:
        return trials
    mean = trials * probability
    if mean > _EXACT_BELOW and trials - mean > _EXACT_BELOW:
        return min(trials, max(0, round(mean + math.sqrt(mean * (1 - probability)) * _z(uniform))))
    if probability > 0.5:
        return trials - binomial(1 - uniform, trials, 1 - probability)
    odds = probability / (1 - probability)
    count, mass = 0, (1 - probability) ** trials
    below = mass
    while uniform >= below and count < trials:
        count += 1
        mass *= odds * (trials - count + 1) / count
        below += mass
        if mass < 1e-18 and count > mean:
            break
    return count


def _z(uniform: float) -> float:
    return _NORMAL.inv_cdf(min(max(uniform, 1e-12), 1 - 1e-12))
