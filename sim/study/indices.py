"""Global sensitivity indices: the influence of a function's inputs over their whole ranges.

- Morris (1991, Technometrics 33; μ* by Campolongo et al. 2007): paths on a grid, one input moved at a time. μ* is the
  mean absolute effect of moving an input over its range, σ the effect's spread (interaction, or nonlinearity).
- Sobol' indices (Saltelli et al. 2010, Comput. Phys. Commun. 181): S1 is the share of the variance that an input
  causes alone, ST its share with all interactions. Both by SALib, with 95 % intervals by bootstrap.

Inputs are shares (quantiles) of independent distributions, evenly spread over (0, 1); correlations are left out, as
the indices of correlated inputs would not divide the variance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError

FloatArray = NDArray[np.float64]
Function = Callable[[FloatArray], FloatArray]  # shares [points, inputs] -> values [points]
LEVELS = 4
# An unbounded distribution has no ends: Morris moves within its central 90 %.
GRID_LOW, GRID_HIGH = 0.05, 0.95
_RESAMPLES = 200


def morris(function: Function, names: list[str], trajectories: int, seed: int) -> pd.DataFrame:
    """Morris screening: trajectories × (inputs + 1) points.

    Returns:
        One row per input: key, mu (mean effect, with its sign), mu_star, mu_star_low, mu_star_high (95 %), sigma; all
        in the unit of the function, for a move over the range from the 5 % to the 95 % quantile.

    Raises:
        InputError: fewer than 2 trajectories, or a value that is not finite.
    """
    from SALib.analyze import morris as analysis
    from SALib.sample import morris as sampling

    if trajectories < 2:
        raise InputError(f"trajectories: found {trajectories}, allowed: 2 or more")
    problem = {"num_vars": len(names), "names": names, "bounds": [[GRID_LOW, GRID_HIGH]] * len(names)}
    points = sampling.sample(problem, trajectories, num_levels=LEVELS, seed=seed)
    values = _numbers(function(points))
    found = analysis.analyze(problem, points, values, num_levels=LEVELS, num_resamples=_RESAMPLES, seed=seed)
    mu_star, half = np.asarray(found["mu_star"], float), np.asarray(found["mu_star_conf"], float)
    table = pd.DataFrame(
        {
            "key": names,
            "mu": np.asarray(found["mu"], float),
            "mu_star": mu_star,
            "mu_star_low": np.maximum(0.0, mu_star - half),
            "mu_star_high": mu_star + half,
            "sigma": np.asarray(found["sigma"], float),
        }
    )
    return table.sort_values("mu_star", ascending=False, kind="stable").reset_index(drop=True)


def sobol(function: Function, names: list[str], samples: int, seed: int) -> pd.DataFrame:
    """Sobol' indices: samples × (inputs + 2) points.

    Args:
        function: values [points] of shares [points, inputs].
        names: of the inputs.
        samples: size of the base sample; a power of two keeps the Sobol' sequence balanced.
        seed: of the scrambling and the bootstrap.

    Returns:
        One row per input: key, s1, s1_low, s1_high, st, st_low, st_high (95 %). NaN where the function never changes.

    Raises:
        InputError: samples that are no power of two, or a value that is not finite.
    """
    from SALib.analyze import sobol as analysis
    from SALib.sample import sobol as sampling

    if samples < 4 or samples & (samples - 1):
        raise InputError(f"samples: found {samples}, allowed: a power of two, 4 or more")
    problem = {"num_vars": len(names), "names": names, "bounds": [[0.0, 1.0]] * len(names)}
    points = sampling.sample(problem, samples, calc_second_order=False, seed=seed)
    values = _numbers(function(points))
    table = pd.DataFrame({"key": names})
    if np.ptp(values) == 0:
        return table.assign(**dict.fromkeys(("s1", "s1_low", "s1_high", "st", "st_low", "st_high"), np.nan))
    found = analysis.analyze(
        problem,
        values,
        calc_second_order=False,
        num_resamples=_RESAMPLES,
        seed=seed + 1,  # 0 would mean no seed
    )
    for ours, theirs in (("s1", "S1"), ("st", "ST")):
        value, half = np.asarray(found[theirs], float), np.asarray(found[f"{theirs}_conf"], float)
        table[ours], table[f"{ours}_low"], table[f"{ours}_high"] = value, value - half, value + half
    return table.sort_values("st", ascending=False, kind="stable").reset_index(drop=True)


def _numbers(values: FloatArray) -> FloatArray:
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        share = float(np.mean(~np.isfinite(values)))
        raise InputError(
            f"the outcome is not a number at {share:.0%} of the points (undefined, never reached or endless), "
            "allowed: an outcome that every run has, such as cash_usd_end"
        )
    return values
