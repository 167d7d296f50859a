"""95 % confidence intervals of a measure over runs, by the method that fits the statistic.

Means: Student's t. Probabilities: Wilson's score interval (E. B. Wilson 1927), which keeps its coverage near
0 and 1. Percentiles: order statistics, by the binomial distribution of the number of runs below. Extremes have none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.scenario.conditions import Measure

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A measure and its 95 % interval; NaN where there are too few runs for one."""

    value: float
    low: float
    high: float


def estimate(measure: Measure, runs: pd.DataFrame) -> Estimate:
    """A measure over runs with its 95 % interval.

    Raises:
        InputError: an outcome that the runs don't have.
    """
    values, value = measure.each(runs), measure.of(runs)
    if not np.isfinite(values).all() or len(values) < 2 or measure.statistic in ("min", "max"):
        return Estimate(value, math.nan, math.nan)
    if measure.statistic == "probability":
        low, high = wilson(int(values.sum()), len(values))
    elif measure.statistic == "percentile":
        low, high = _order_statistics(values, measure.level / 100)
    else:
        half = half_width(values)
        low, high = value - half, value + half
    return Estimate(value, low, high)


def half_width(values: NDArray[np.float64]) -> float:
    """Half the width of the 95 % interval of the mean (Student's t); NaN with one value."""
    from scipy.stats import t

    if len(values) < 2:
        return math.nan
    return float(t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * standard_error(values))


def standard_error(values: NDArray[np.float64]) -> float:
    """Standard error of the mean; NaN with one value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def wilson(yes: int, runs: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a probability, after `yes` successes in `runs` trials."""
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + CONFIDENCE / 2))
    share, spread = yes / runs, z * z / runs
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / runs + spread / (4 * runs))
    return max(0.0, middle - half), min(1.0, middle + half)


def _order_statistics(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    """The order statistics that bound the percentile; NaN on a side with too few runs."""
    from scipy.stats import binom

    ordered, n = np.sort(values), len(values)
    below = int(binom.ppf((1 - CONFIDENCE) / 2, n, level))
    above = int(binom.ppf(0.5 + CONFIDENCE / 2, n, level)) + 1
    low = float(ordered[below - 1]) if below >= 1 else math.nan
    high = float(ordered[above - 1]) if above <= n else math.nan
    return low, high
