"""Draws of a study: the values of the uncertain assumptions and the seed of each run.

Three designs over the unit cube, each column uniform:

- `lhs`, Latin hypercube (McKay, Beckman, Conover 1979): every assumption falls once into each of n equal slices. The
  variance of a mean is never above n/(n−1) times that of plain random numbers (Owen 1997), so intervals that take
  the runs as independent cover at least at their stated rate, and are mostly too wide.
- `sobol`, a Sobol' sequence with Owen's scrambling (in scipy: a linear matrix scramble and a digital shift), for
  smooth outcomes of few assumptions; its balance needs 2^m points, so their number is rounded up to that.
- `random`, independent numbers.

Common random numbers: draws come from named streams, so run i of every scenario has the same seed and the same share
for a key of the same name. With `lhs` and `random` each key has a stream of its own, and one more
uncertain assumption moves no other's shares. The dimensions of a Sobol' point are assigned in the keys' alphabetical
order, so scenarios share them when they are given the same `keys`. A correlation moves only the later
(in that order) of the keys it names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError
from sim.scenario.correlation import correlate, normal_correlation
from sim.scenario.uncertainty import pairs
from sim.study.runs.run_points import Point
from sim.utils.randomness import substream

if TYPE_CHECKING:
    from sim.scenario.scenario import Scenario

FloatArray = NDArray[np.float64]
Sampling = Literal["lhs", "sobol", "random"]
_SEEDS = 2**53  # of worlds: what every reader of JSON keeps exactly


def draw(
    scenario: Scenario,
    runs: int,
    *,
    sampling: Sampling = "lhs",
    seed: int = 0,
    batch: int = 0,
    keys: Iterable[str] = (),
    vary_world: bool = True,
) -> list[Point]:
    """Points of a study: a value for every uncertain assumption, and the seed of the run's own noise.

    Args:
        scenario: whose distributions and correlations are drawn from.
        runs: number of points; for "sobol" the next power of two is drawn (`rounded`).
        sampling: the design.
        seed: of the study; equal seeds give equal draws.
        batch: designs of different batches are independent of each other.
        keys: further dimensions of a Sobol' sequence: keys that another scenario draws.
        vary_world: false gives every run the scenario's own seed: only the assumptions vary.

    Raises:
        InputError: fewer than one run, a negative seed, or an unknown design.
    """
    uncertain = scenario.uncertain
    names = sorted(uncertain)
    drawn = correlate(
        shares(names, runs, sampling=sampling, seed=seed, batch=batch, keys=keys),
        normal_correlation(names, pairs(scenario.uncertainty, scenario.uncertain)),
    )
    values = {}
    for name, column in zip(names, drawn.T, strict=True):
        numbers = uncertain[name].quantile(column)
        values[name] = (numbers.astype(np.int64) if uncertain[name].whole else numbers).tolist()
    count = len(drawn)
    worlds = (
        substream(seed, f"study/worlds/{batch}").integers(0, _SEEDS, size=count).tolist()
        if vary_world
        else [scenario.seed] * count
    )
    return [Point({name: values[name][run] for name in names}, worlds[run]) for run in range(count)]


def shares(
    names: Sequence[str],
    runs: int,
    *,
    sampling: Sampling = "lhs",
    seed: int = 0,
    batch: int = 0,
    keys: Iterable[str] = (),
) -> FloatArray:
    """Shares of (0, 1) before any correlation [runs, names]; arguments and errors as of `draw`."""
    count = rounded(runs, sampling)
    if seed < 0:
        raise InputError(f"seed: found {seed}, allowed: 0 or more")
    if not names:
        return np.zeros((count, 0))
    if sampling == "sobol":
        return _sobol(names, count, seed, batch, keys)
    columns = []
    for name in names:
        stream = substream(seed, f"study/{sampling}/{batch}/{name}")
        numbers = stream.random(count)
        if sampling == "lhs":
            # One in each slice, in random order: columns ordered independently make a Latin hypercube.
            numbers = (stream.permutation(count) + numbers) / count
        columns.append(numbers)
    return np.stack(columns, axis=1)


def rounded(runs: int, sampling: Sampling) -> int:
    """Number of runs of a design: `runs`, or the next power of two for "sobol".

    Raises:
        InputError: fewer than one run or too many, or an unknown design.
    """
    if sampling not in get_args(Sampling):
        raise InputError(f"sampling: found {sampling!r}, allowed: {', '.join(get_args(Sampling))}")
    if not 1 <= runs <= 10_000_000:
        raise InputError(f"runs: found {runs:,}, allowed: 1 to 10,000,000")
    return 1 << (runs - 1).bit_length() if sampling == "sobol" else runs


def _sobol(names: Sequence[str], count: int, seed: int, batch: int, keys: Iterable[str]) -> FloatArray:
    from scipy.stats import qmc

    dimensions = sorted({*names, *keys})
    engine = qmc.Sobol(len(dimensions), scramble=True, rng=substream(seed, f"study/sobol/{batch}"))
    points = engine.random_base2(count.bit_length() - 1)
    return np.asarray(points[:, [dimensions.index(name) for name in names]])
