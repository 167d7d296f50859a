"""How sure a fitted scaling law is: a bootstrap of its constants, and its error on sizes that it never saw.

The bootstrap resamples residuals (Efron and Tibshirani 1993, "An introduction to the bootstrap", section 9.5):
a ladder is a designed grid, and leaving points of it out at random would often leave the law undetermined.
Each draw adds residuals, drawn with replacement and widened for the five constants that were fitted, to the
fitted log loss, and fits again. It knows only the noise around the law, not whether the law holds elsewhere;
that is what the held-out error is for: the law is fitted without the largest size (and without the largest token
count) and asked for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.training.scaling_law import CONSTANTS, ScalingConstants, ScalingFit, fit, loss, minimise

DRAWS = 200
LEVEL = 0.9
_FITTED = len(CONSTANTS)
_TOLERANCE = 1e-8  # of a draw: far below what the draws differ by

Point = tuple[float, float, float]  # parameters, tokens, loss


@dataclass(frozen=True)
class HeldOut:
    """Relative errors of the loss on points that the fit did not see; None where too few sizes were left to fit."""

    largest_size_median_error: float | None
    largest_size_max_error: float | None
    most_tokens_median_error: float | None
    most_tokens_max_error: float | None


def with_draws(
    fitted: ScalingFit,
    points: Sequence[Point],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    huber_delta: float = 1e-3,
) -> ScalingConstants:
    """The constants of a fit with `draws` bootstrap draws, as `scaling_law.loss_interval` reads them."""
    n, d, measured = np.asarray(points, dtype=np.float64).T
    law = fitted.constants
    centre = np.log(loss(n, d, law))
    residuals = np.log(measured) - centre
    widened = (residuals - residuals.mean()) * math.sqrt(len(points) / max(len(points) - _FITTED, 1))
    rng = np.random.default_rng(seed)
    start = [math.log(max(law.E, 1e-8)), math.log(law.A), math.log(law.B), law.alpha, law.beta]
    rows = []
    for _ in range(draws):
        again = centre + rng.choice(widened, size=len(points))
        x = minimise(np.log(n), np.log(d), again, huber_delta, start, _TOLERANCE).x
        rows.append((*(float(np.exp(value)) for value in x[:3]), float(x[3]), float(x[4])))
    return replace(law, draws=tuple(rows))


def intervals(law: ScalingConstants, level: float = LEVEL) -> dict[str, tuple[float, float]]:
    """Between which values each constant lies with probability `level`; empty without draws."""
    if not law.draws:
        return {}
    low, high = np.quantile(np.asarray(law.draws), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(CONSTANTS)}


def undetermined(law: ScalingConstants) -> list[str]:
    """Which of E, alpha and beta the points leave open: their interval spans a factor of four or more.

    On few and small sizes E and A / N^alpha can stand in for each other. The law then still predicts where it was
    measured, but not what a far larger model would reach.
    """
    found = intervals(law)
    return [name for name in ("E", "alpha", "beta") if name in found and found[name][1] > 4 * found[name][0]]


def held_out(points: Sequence[Point]) -> HeldOut:
    """Errors on the largest size, and on the largest token count, of laws fitted without them."""
    by_size, by_tokens = (_without_largest(points, column) for column in (0, 1))
    return HeldOut(*by_size, *by_tokens)


def _without_largest(points: Sequence[Point], column: int) -> tuple[float | None, float | None]:
    largest = max(point[column] for point in points)
    seen = [point for point in points if point[column] < largest]
    if len(seen) <= _FITTED or any(len({point[each] for point in seen}) < 3 for each in (0, 1)):
        return None, None
    law = fit(seen).constants
    n, d, measured = np.asarray([point for point in points if point[column] == largest]).T
    errors = np.abs(loss(n, d, law) / measured - 1)
    return float(np.median(errors)), float(errors.max())
