"""When requests arrive: a steady Poisson process, bursts, and the shape of day and week.

Every process is one and the same rate-1 stream of points, moved in time:

- Poisson: gaps are exponential.
- Gamma renewal process: independent gaps with coefficient of variation `cv`; above 1 arrivals clump, below 1 they
  are more regular than chance. Counts over long windows have the index of dispersion cv² (Cox 1962).
- Renewal process with a table of gaps: independent gaps of any distribution, as a trace shows them.
- Markov-modulated Poisson process (Fischer & Meier-Hellstern 1993): a hidden state, held for an exponential time,
  sets the rate of a Poisson process. Counts are correlated over the time that states last, as in real traffic.
- Shape: the rate follows the hours, by a change of time with the integral of the rate (Lewis & Shedler 1979).

The points and the states are drawn one after the other from streams of their own, so a longer window begins with the
same arrivals, and another rate has the same points, only denser.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import InputError

FloatArray = NDArray[np.float64]
_MOST_EXPECTED = 1e8  # requests in a window: gigabytes


@dataclass(frozen=True)
class GammaRenewal:
    """Independent gaps, gamma distributed with this coefficient of variation (1 is Poisson).

    Raises:
        InputError: `cv` is no number in (0, 100].
    """

    cv: float

    def __post_init__(self) -> None:
        if not 0 < self.cv <= 100:
            raise InputError(f"arrivals: cv: found {self.cv}, allowed is a number above 0 and at most 100")


@dataclass(frozen=True)
class GapTable:
    """Independent gaps with these quantiles; between the rows their logarithm is uniform.

    Attributes:
        quantiles: rows (share of gaps, gap), the gaps as multiples of each other: they are scaled to the rate asked
            for.

    Raises:
        InputError: shares that don't rise from 0 to 1, or gaps that don't rise or are not above 0.
    """

    quantiles: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        table = np.array(self.quantiles, dtype=np.float64)
        right = table.ndim == 2 and table.shape[1] == 2 and len(table) > 1 and bool(np.isfinite(table).all())
        if not (
            right
            and (np.diff(table, axis=0) > 0).all()
            and table[0, 0] == 0
            and table[-1, 0] == 1
            and table[0, 1] > 0
        ):
            raise InputError(
                "arrivals: quantiles: allowed are rows (share, gap) with shares that rise from 0 to 1 and gaps above 0 "
                "that rise"
            )

    @property
    def mean(self) -> float:
        """Mean of the gaps as they stand in the table: between rows the mean of a log-uniform number."""
        shares, gaps = np.array(self.quantiles, dtype=np.float64).T
        return float((np.diff(shares) * np.diff(gaps) / np.diff(np.log(gaps))).sum())

    def gaps(self, shares: FloatArray) -> FloatArray:
        """Gaps at these shares, scaled to mean 1."""
        known, gaps = np.array(self.quantiles, dtype=np.float64).T
        return np.asarray(np.exp(np.interp(shares, known, np.log(gaps))) / self.mean, dtype=np.float64)


@dataclass(frozen=True)
class MarkovModulated:
    """A hidden state sets the rate: state i lasts `dwell_s[i]` seconds on average, then another one follows.

    Attributes:
        rates: of each state, as multiples of each other: they are scaled so that the mean over time is the rate
            asked for.
        dwell_s: mean time in each state [s].
        jumps: row i holds the chance of each state to follow state i; None: all others alike.

    Raises:
        InputError: fewer than two states, lists of different lengths, a rate below 0, only zeros, a time not above 0,
            rows of `jumps` that are no chances of the other states, or states that are never left for others.
    """

    rates: tuple[float, ...]
    dwell_s: tuple[float, ...]
    jumps: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        rates, dwell_s = np.array(self.rates, dtype=np.float64), np.array(self.dwell_s, dtype=np.float64)
        if rates.ndim != 1 or rates.size < 2 or rates.shape != dwell_s.shape:
            raise InputError(
                f"arrivals: found {rates.size} rates and {dwell_s.size} dwell_s, allowed are two or more of each"
            )
        if not (np.isfinite(rates).all() and (rates >= 0).all() and rates.sum() > 0):
            raise InputError(
                f"arrivals: rates: found {self.rates}, allowed are numbers ≥ 0 of which one is above 0"
            )
        if not (np.isfinite(dwell_s).all() and (dwell_s > 0).all()):
            raise InputError(f"arrivals: dwell_s: found {self.dwell_s}, allowed are times above 0 s")

        chances = self._chances
        if not (
            chances.shape == (rates.size, rates.size)
            and (chances >= 0).all()
            and not chances.diagonal().any()
            and np.allclose(chances.sum(axis=1), 1)
        ):
            raise InputError(
                f"arrivals: jumps: allowed are {rates.size} rows of chances that add up to 1, none of a state itself"
            )
        reached = np.linalg.matrix_power(np.eye(rates.size) + chances, rates.size)
        if not (reached > 0).all() or not (rates @ self.shares > 0):
            raise InputError(
                "arrivals: jumps: found states that never come, allowed are chains that visit all"
            )

    @property
    def shares(self) -> FloatArray:
        """Part of the time that is spent in each state; adds up to 1."""
        count = len(self.rates)
        equations = np.vstack([self.generator.T * np.array(self.dwell_s)[None, :], np.ones(count)])
        # In units of visits: well scaled even if states last very differently. Then visits × time.
        visits = np.linalg.lstsq(equations, np.append(np.zeros(count), 1.0), rcond=None)[0]
        lasted = np.maximum(visits, 0.0) * np.array(self.dwell_s, dtype=np.float64)
        return np.asarray(lasted / lasted.sum(), dtype=np.float64)

    @property
    def relative_rates(self) -> FloatArray:
        """Rates as multiples of their mean over time."""
        rates = np.array(self.rates, dtype=np.float64)
        return np.asarray(rates / (rates @ self.shares), dtype=np.float64)

    @property
    def generator(self) -> FloatArray:
        """Rates of change from state to state [1/s]; rows add up to 0."""
        leave = 1 / np.array(self.dwell_s, dtype=np.float64)
        return np.asarray(leave[:, None] * (self._chances - np.eye(leave.size)), dtype=np.float64)

    @property
    def _chances(self) -> FloatArray:
        if self.jumps is None:
            count = len(self.rates)
            return np.asarray((1 - np.eye(count)) / (count - 1), dtype=np.float64)
        return np.array(self.jumps, dtype=np.float64)


Process = GammaRenewal | GapTable | MarkovModulated  # None stands for Poisson


def hourly_shape() -> FloatArray:
    """Demand by day of the week (Monday first) and hour of the day [7, 24], as a multiple of the mean; mean 1.

    Assumed, not measured (the Azure traces last one hour): one hump that peaks at 14:30, lowest at 02:30, a second
    harmonic that makes the night longer than the noon, and weekends at 60 % of weekdays.
    """
    hour = np.arange(24) + 0.5
    day = 1 + 0.55 * np.cos(2 * np.pi * (hour - 14.5) / 24) + 0.10 * np.cos(4 * np.pi * (hour - 14.5) / 24)
    shape = np.outer([1, 1, 1, 1, 1, 0.6, 0.6], day)
    return np.asarray(shape / shape.mean(), dtype=np.float64)


def arrival_times(
    rate_rps: float,
    *,
    requests: int | None = None,
    duration_s: float | None = None,
    rng: np.random.Generator | int = 0,
    shape: FloatArray | None = None,
    process: Process | None = None,
) -> FloatArray:
    """Arrivals [s], sorted, from 0 on; either so many of them or for so long.

    Args:
        rate_rps: mean rate.
        requests: how many arrivals.
        duration_s: length of the window.
        rng: generator or seed.
        shape: multiples of the rate, one per hour (any array, read in order and repeated); its mean counts as 1.
            With a Markov-modulated process its states too last longer in quiet hours.
        process: None for Poisson, or bursts: `GammaRenewal`, `GapTable`, `MarkovModulated`.

    Raises:
        InputError: a rate, count, duration or shape that is none.
    """
    if not 0 < rate_rps < math.inf:
        raise InputError(f"rate_rps: found {rate_rps}, allowed is a number above 0")
    if (requests is None) == (duration_s is None):
        raise InputError("give either requests or duration_s")
    rng = np.random.default_rng(rng)
    # The states have a stream of their own: the points stay the same whatever the states do.
    states = _States(process, rng.spawn(1)[0]) if isinstance(process, MarkovModulated) else None

    def at(flat_s: FloatArray) -> FloatArray:
        """Points of a steady process at the times that bursts and hours give them."""
        return in_shape(flat_s if states is None else states.times(flat_s), shape)

    if requests is not None:
        if requests < 0:
            raise InputError(f"requests: found {requests}, allowed is ≥ 0")
        return at(_gaps(rng, requests, process).cumsum() / rate_rps)
    assert duration_s is not None
    if not 0 <= duration_s < math.inf:
        raise InputError(f"duration_s: found {duration_s}, allowed is a number ≥ 0")
    if rate_rps * duration_s > _MOST_EXPECTED:
        raise InputError(
            f"duration_s: found {duration_s:g} s at {rate_rps:g} requests/s, allowed are {_MOST_EXPECTED:g} requests"
        )
    flat = np.empty(0)
    # Drawn in pieces, not as a count and then times: a longer window then begins with the same arrivals.
    while not flat.size or at(flat[-1:])[0] <= duration_s:
        more = _gaps(rng, int(rate_rps * duration_s * 0.1) + 64, process).cumsum() / rate_rps
        flat = np.concatenate([flat, more + (flat[-1] if flat.size else 0.0)])
    times = at(flat)
    return times[times < duration_s]


def in_shape(flat_s: FloatArray, shape: FloatArray | None) -> FloatArray:
    """Times of a steady process, moved so that their rate follows the shape.

    Raises:
        InputError: a shape with no number above 0, or with one that is negative or not finite.
    """
    if shape is None:
        return flat_s
    period_s, passed_s, edges_s = _shape_integral(shape)
    periods, rest_s = np.divmod(flat_s, period_s)
    return np.asarray(periods * period_s + np.interp(rest_s, passed_s, edges_s), dtype=np.float64)


def out_of_shape(times_s: FloatArray, shape: FloatArray | None) -> FloatArray:
    """The inverse of `in_shape`: times at which the arrivals would have come at a steady rate."""
    if shape is None:
        return times_s
    period_s, passed_s, edges_s = _shape_integral(shape)
    periods, rest_s = np.divmod(times_s, period_s)
    return np.asarray(periods * period_s + np.interp(rest_s, edges_s, passed_s), dtype=np.float64)


def index_of_dispersion(times_s: ArrayLike, window_s: float) -> float:
    """Variance over mean of the counts in windows of this length; 1 for a Poisson process, NaN for under two windows.

    Windows begin at time 0; the last, cut one is left out.
    """
    times = np.asarray(times_s, dtype=np.float64)
    windows = int(times[-1] // window_s) if times.size else 0
    if windows < 2:
        return math.nan
    counts = np.bincount((times[times < windows * window_s] // window_s).astype(np.int64), minlength=windows)
    return float(counts.var() / counts.mean()) if counts.any() else math.nan


class _States:
    """One path of the hidden state, grown as far as it is asked for, and the integral of the rate along it."""

    def __init__(self, process: MarkovModulated, rng: np.random.Generator) -> None:
        self._rng = rng
        self._rates = process.relative_rates
        self._dwell_s = np.array(process.dwell_s, dtype=np.float64)
        chances = process.generator * self._dwell_s[:, None] + np.eye(len(self._dwell_s))
        # Edges between the chances of the next state, for each state.
        self._next = np.cumsum(chances, axis=1)[:, :-1].tolist()
        # The path begins in equilibrium; the time left in an exponential state doesn't depend on how long it lasted.
        self._state = int(np.searchsorted(np.cumsum(process.shares)[:-1], rng.random(), side="right"))
        self._edges_s = np.zeros(1)  # times of change
        self._passed = np.zeros(1)  # what a rate-1 clock shows then

    def times(self, flat_s: FloatArray) -> FloatArray:
        """When the integral of the relative rate reaches these values."""
        if not flat_s.size:
            return flat_s
        while self._passed[-1] <= flat_s.max():
            self._grow()
        # Where the rate is 0 the integral stands still: `interp` gives the end of that time, where arrivals go on.
        return np.asarray(np.interp(flat_s, self._passed, self._edges_s), dtype=np.float64)

    def _grow(self) -> None:
        changes = max(256, self._edges_s.size)  # doubling: growing a path n long costs n, not n²
        durations = self._rng.standard_exponential(changes)
        path = [self._state]
        for drawn in self._rng.random(changes).tolist():
            path.append(bisect_right(self._next[path[-1]], drawn))
        self._state = path.pop()
        lasted_s = durations * self._dwell_s[path]
        self._edges_s = np.concatenate([self._edges_s, self._edges_s[-1] + np.cumsum(lasted_s)])
        passed = np.cumsum(lasted_s * self._rates[path])
        self._passed = np.concatenate([self._passed, self._passed[-1] + passed])


def _gaps(rng: np.random.Generator, count: int, process: Process | None) -> FloatArray:
    """Gaps with mean 1."""
    if isinstance(process, GammaRenewal):
        form = 1 / process.cv**2
        return np.asarray(rng.standard_gamma(form, count) / form, dtype=np.float64)
    if isinstance(process, GapTable):
        return process.gaps(rng.random(count))
    return np.asarray(rng.standard_exponential(count), dtype=np.float64)


def _shape_integral(shape: FloatArray) -> tuple[float, FloatArray, FloatArray]:
    """Length of a period, the integral of the rate at the edges of its hours, and these edges."""
    hours = np.asarray(shape, dtype=np.float64).reshape(-1)
    if not (hours.size and np.isfinite(hours).all() and (hours >= 0).all() and hours.sum() > 0):
        raise InputError("shape: allowed are numbers ≥ 0 of which one is above 0")
    # The integral of the rate over one period is piecewise linear; arrivals are found where it reaches the flat time.
    passed_s = np.concatenate([[0.0], np.cumsum(hours / hours.mean() * 3600.0)])
    return 3600.0 * hours.size, passed_s, np.arange(hours.size + 1, dtype=np.float64) * 3600.0
