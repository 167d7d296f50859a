"""How far the mean or a percentile of one long simulation may be off: intervals by batch means.

Waiting times of neighbouring requests are alike, because they wait in the same queue. The usual interval, which takes
them for independent, is far too narrow. So the run is cut into a few long batches: the statistics of long batches are
nearly independent and nearly normal, and Student's t with batches − 1 degrees of freedom gives the interval:

    value ± t(1 − α/2, b − 1) · s / √b        s: standard deviation of the b batch values

Ten to thirty batches are best (Schmeiser 1982, "Batch size effects in the analysis of simulation output"); percentiles
are batched the same way (Seila 1982). The beginning, in which the system fills, is left out. Where batches are still
alike (lag-1 autocorrelation beyond what chance gives at 5 %, about N(−1/b, 1/b)) or too short for a percentile, the
interval is given with a note that says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError

BATCHES = 20
_CHANCE = 1.645  # standard deviations: one-sided 5 %
_BEYOND = 5  # values that a batch should hold beyond its percentile


@dataclass(frozen=True)
class Interval:
    """A statistic of a run, the interval around it, and why not to trust that (empty: no reason found)."""

    value: float
    low: float
    high: float
    half_width: float
    lag1: float  # autocorrelation of neighbouring batches
    note: str = ""


def check_share(name: str, value: float, lowest_allowed: bool = False) -> None:
    """Refuse a share outside (0, 1), or outside [0, 1) where 0 is allowed."""
    if not (0 < value < 1 or (lowest_allowed and value == 0)):
        allowed = "0 ≤ share < 1" if lowest_allowed else "0 < share < 1"
        raise InputError(f"{name}: found {value}, allowed is {allowed}")


def batch_means(
    values: NDArray[np.float64],
    percentiles: Sequence[float] = (),
    *,
    level: float = 0.95,
    warm_up: float = 0.1,
    batches: int = BATCHES,
) -> list[Interval]:
    """Intervals of the mean, then of each percentile, of a series in the order of time.

    Args:
        values: the series, without NaN.
        percentiles: in percent, each between 0 and 100.
        level: probability with which an interval should hold the true value.
        warm_up: share of the series that is left out at its beginning.
        batches: number of batches.

    Returns:
        1 + len(percentiles) intervals. With fewer than two values per batch the ends are NaN; without values all is.

    Raises:
        InputError: level or warm_up is no share, or fewer than two batches.
    """
    check_share("level", level)
    check_share("warm_up", warm_up, lowest_allowed=True)
    if batches < 2:
        raise InputError(f"batches: found {batches}, allowed is a whole number ≥ 2")
    steady = values[int(len(values) * warm_up) :]
    size = len(steady) // batches
    if not len(steady):
        return [_unknown(math.nan, "no values")] * (1 + len(percentiles))
    overall = [float(steady.mean()), *map(float, np.percentile(steady, percentiles))]
    if size < 2:
        note = f"{len(steady)} values: too few for {batches} batches"
        return [_unknown(value, note) for value in overall]

    from scipy.special import stdtrit  # slow to import

    cut = steady[len(steady) - size * batches :].reshape(batches, size)  # what is over counts as warm-up
    of_batches = [cut.mean(axis=1), *np.percentile(cut, percentiles, axis=1)]
    student = float(stdtrit(batches - 1, (1 + level) / 2))
    result = []
    for value, found, percent in zip(overall, of_batches, [None, *percentiles], strict=True):
        half = student * float(found.std(ddof=1)) / math.sqrt(batches)
        lag1 = _lag1(found)
        notes = []
        if lag1 > _CHANCE / math.sqrt(batches) - 1 / batches:
            notes.append(
                f"batches depend on each other (lag-1 autocorrelation {lag1:.2f}): a longer run is needed"
            )
        if percent is not None and size * min(percent, 100 - percent) / 100 < _BEYOND:
            notes.append(
                f"batches of {size} values are short for percentile {percent:g}: a longer run is needed"
            )
        result.append(Interval(value, value - half, value + half, half, lag1, "; ".join(notes)))
    return result


def _unknown(value: float, note: str) -> Interval:
    return Interval(value, math.nan, math.nan, math.nan, math.nan, note)


def _lag1(values: NDArray[np.float64]) -> float:
    """Autocorrelation of neighbours; 0 for a constant series."""
    centred = values - values.mean()
    spread = float(centred @ centred)
    return float(centred[1:] @ centred[:-1]) / spread if spread else 0.0
