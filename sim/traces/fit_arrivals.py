"""Which arrival process a trace looks like: Poisson, gamma gaps, a table of gaps, or a Markov-modulated process.

Models the recorded past as one of `sim.workload.arrivals`. Each candidate is fitted by maximum likelihood of the gaps
between arrivals and the one with the lowest Bayesian information criterion is taken (Schwarz 1978: parameters·ln n −
2·ln L).

The likelihood of a Markov-modulated process is the product of exp((Q − Λ)·gap)·Λ over the gaps (Rydén 1994), from the
states as an arrival finds them. Its matrices are multiplied in pairs, then pairs of pairs, scaled as they go: as many
products as one by one, but in about log₂ n array operations. The states form a ladder, from slow to fast, on which
the chain moves one state at a time; such a chain is reversible, which makes Q − Λ similar to a symmetric matrix. Only
processes with the mean rate of the trace are tried.

The table of gaps is judged by the density it stands for (the logarithm uniform between its rows), one parameter for
each row; it has the mean of the gaps, however few long ones make it up.

A trace of two days and more first gives the shape of the day, one of two weeks the shape of the week; the process is
then fitted to the arrivals as they would have come at a steady rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError
from engine.utils.progress import Progress
from sim.workload.arrivals import FloatArray, GammaRenewal, GapTable, MarkovModulated, Process, out_of_shape

MOST_STATES = 4
_DAY_HOURS, _WEEK_HOURS = 24, 168
_LEAST_ARRIVALS = 50  # fewer show nothing about bursts
_SEGMENTS, _SEGMENT_GAPS = 16, 1024  # of a trace longer than that, what the likelihood looks at
_TABLE_ROWS, _LEAST_GAPS_PER_ROW = 100, 20  # of a table of gaps
_SMALLEST_GAP = 1e-9  # of the mean: what is below is the clock's rounding
_SCALES = (20, 150)  # arrivals per window from which the search starts


@dataclass(frozen=True)
class ArrivalFit:
    """The process that fits best, and the criteria of the others."""

    rate_rps: float
    process: Process | None  # None: Poisson
    shape: tuple[float, ...] | None  # per hour from the first arrival on, mean 1
    bic: dict[str, float] = field(default_factory=dict)  # by candidate; lower is better


def fit_arrivals(times_s: FloatArray, progress: Progress | None = None) -> ArrivalFit:
    """Fit arrival times [s], sorted; `progress` is called with (fraction done, what is being done).

    Raises:
        InputError: fewer than two arrivals, or all at the same time.
    """
    times = np.asarray(times_s, dtype=np.float64)
    if times.size < 2 or not times[-1] > times[0]:
        raise InputError(
            f"fit: found {times.size} arrivals over no time, allowed are two or more at different times"
        )
    times = _spread_ties(times) - times[0]
    rate_rps = (times.size - 1) / float(times[-1])
    shape = _hours(times)
    flat = times if shape is None else out_of_shape(times, np.array(shape))
    gaps = np.maximum(np.diff(flat), _SMALLEST_GAP * float(flat[-1]) / flat.size)
    parts = _parts(gaps)
    scaled = parts / gaps.mean()  # of mean 1, about: rates near 1 are easier to search
    count = scaled.size
    mean = float(scaled.mean())
    log_likelihoods = {"poisson": (-count * (math.log(mean) + 1), 1)}
    processes: dict[str, Process | None] = {"poisson": None}
    if times.size >= _LEAST_ARRIVALS:
        form = _gamma_form(scaled)
        spread = np.log(scaled)
        log_likelihoods["gamma"] = (
            float(
                count * (form * math.log(form / mean) - math.lgamma(form))
                + (form - 1) * spread.sum()
                - form * scaled.sum() / mean
            ),
            2,
        )
        processes["gamma"] = GammaRenewal(min(max(1 / math.sqrt(form), 1e-3), 100.0))
        table = _gap_table(scaled)
        if table is not None:
            log_likelihoods["gaps"] = (_table_log_likelihood(scaled, table), len(table.quantiles))
            processes["gaps"] = table
        best = math.inf
        for states in range(2, MOST_STATES + 1):
            if progress is not None:
                progress((states - 2) / (MOST_STATES - 1), f"{states} states")
            scaled_process, _, log_likelihood = _fit_modulated(scaled, states)
            name = f"mmpp{states}"
            log_likelihoods[name] = (log_likelihood, 3 * states - 3)
            processes[name] = replace(
                scaled_process,
                rates=tuple(float(each) for each in scaled_process.relative_rates),
                dwell_s=tuple(float(each * gaps.mean()) for each in scaled_process.dwell_s),
            )
            bic = (3 * states - 3) * math.log(count) - 2 * log_likelihood
            if bic >= best:
                break  # one more state did not pay; two more will hardly
            best = bic
    bic_of = {
        name: parameters * math.log(count) - 2 * log_likelihood
        for name, (log_likelihood, parameters) in log_likelihoods.items()
    }
    chosen = min(bic_of, key=lambda name: bic_of[name])
    return ArrivalFit(rate_rps, processes[chosen], shape, bic_of)


def modulated_log_likelihood(gaps: FloatArray, process: MarkovModulated, rates: FloatArray) -> float:
    """ln L of gaps [segments, gaps] between arrivals under these rates per state; segments are independent."""
    shares = process.shares
    root = np.sqrt(shares)
    symmetric = root[:, None] * (process.generator - np.diag(rates)) / root
    values, vectors = np.linalg.eigh((symmetric + symmetric.T) / 2)
    decay = np.exp(values * gaps[..., None])  # [segments, gaps, states]
    steps = (vectors * decay[..., None, :]) @ (vectors.T * rates)
    logs = np.zeros(len(gaps))
    while steps.shape[1] > 1:
        odd = steps[:, -1:] if steps.shape[1] % 2 else steps[:, :0]
        pairs = steps[:, : steps.shape[1] // 2 * 2]
        steps = np.concatenate([pairs[:, 0::2] @ pairs[:, 1::2], odd], axis=1)
        scale = np.maximum(np.abs(steps).max(axis=(2, 3)), 1e-300)
        steps = steps / scale[..., None, None]
        logs += np.log(scale).sum(axis=1)
    start = root * rates / (shares @ rates)
    total = np.einsum("i,sij,j->s", start, steps[:, 0], root)
    return float((logs + np.log(np.maximum(total, 1e-300))).sum())


def _fit_modulated(gaps: FloatArray, states: int) -> tuple[MarkovModulated, FloatArray, float]:
    """The process of most likelihood among those with the mean rate of the gaps, its rates, and ln L."""
    from scipy.optimize import minimize

    rate = 1 / float(gaps.mean())

    def process(numbers: FloatArray) -> tuple[MarkovModulated, FloatArray]:
        rates, dwell, up = (
            np.exp(numbers[:states]),
            np.exp(numbers[states : 2 * states]),
            numbers[2 * states :],
        )
        found = MarkovModulated(tuple(rates), tuple(dwell), _ladder(1 / (1 + np.exp(-up)), states))
        return found, found.relative_rates * rate

    def cost(numbers: FloatArray) -> float:
        return -modulated_log_likelihood(gaps, *process(numbers))

    bounds = [(-12.0, 8.0)] * states + [(-5.0, 14.0)] * states + [(-6.0, 6.0)] * (states - 2)
    start = min(_starts(gaps, states), key=cost)
    best = minimize(cost, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60, "ftol": 1e-8})
    return *process(best.x), -float(best.fun)


def _ladder(up: FloatArray, states: int) -> tuple[tuple[float, ...], ...]:
    """Chances of a chain that only moves to the next slower or faster state; `up` is for the inner ones."""
    jumps = np.zeros((states, states))
    jumps[0, 1] = jumps[-1, -2] = 1.0
    for state, chance in enumerate(up.tolist(), start=1):
        jumps[state, state + 1], jumps[state, state - 1] = chance, 1 - chance
    return tuple(tuple(row) for row in jumps.tolist())


def _starts(gaps: FloatArray, states: int) -> Iterator[FloatArray]:
    """Where to begin the search: windows of so many arrivals, sorted into as many kinds as there are states."""
    flat = gaps.ravel()
    for size in _SCALES:
        size = max(2, min(size, flat.size // (4 * states)))
        lasted = flat[: flat.size // size * size].reshape(-1, size).sum(axis=1)
        # Time, not windows, in equal parts: a quiet state has few arrivals and may fill most of the time.
        order = np.argsort(-lasted)
        filled = np.cumsum(lasted[order]) / lasted.sum()
        kind = np.empty(lasted.size, dtype=np.int64)
        kind[order] = np.minimum((filled * states).astype(np.int64), states - 1)
        kind[order[:states]] = np.arange(states)  # none is empty
        rates = np.array([size * (kind == each).sum() / lasted[kind == each].sum() for each in range(states)])
        runs = 1 + (np.diff(kind) != 0).sum()
        dwell = np.array([lasted[kind == each].sum() * states / runs for each in range(states)])
        slow_first = np.argsort(rates)
        known = np.log(
            np.concatenate([np.maximum(rates, 1e-4)[slow_first], np.maximum(dwell, 0.1)[slow_first]])
        )
        yield np.concatenate([known, np.zeros(states - 2)])


def _gamma_form(gaps: FloatArray) -> float:
    """Shape of the gamma distribution of most likelihood: ln k − ψ(k) = ln mean − mean ln (Choi & Wette 1969)."""
    from scipy.optimize import brentq
    from scipy.special import digamma

    target = math.log(float(gaps.mean())) - float(np.log(gaps).mean())
    if target <= 1e-9:
        return 1e6  # a clock
    return float(brentq(lambda form: math.log(form) - float(digamma(form)) - target, 1e-6, 1e9))


def _gap_table(gaps: FloatArray) -> GapTable | None:
    """Quantiles of the gaps, with their mean; None where there are too few gaps or values for a table.

    The few longest gaps can fill half of a trace, and a row every hundredth would miss them: rows get closer where
    the gaps get longer. The last row is where the table has the mean of the gaps.
    """
    from scipy.optimize import brentq

    rows = max(2, min(_TABLE_ROWS, gaps.size // _LEAST_GAPS_PER_ROW))
    halves = 0.5 ** np.arange(1, 30) / rows
    shares = np.concatenate(
        [np.arange(rows) / rows, 1 - halves[halves * gaps.size >= _LEAST_GAPS_PER_ROW / 4]]
    )
    values = np.quantile(gaps, shares)
    if (np.diff(values) <= 0).any():
        return None

    def table(last: float) -> GapTable:
        ends = np.append(shares, 1.0).tolist(), np.append(values, last).tolist()
        return GapTable(tuple(zip(*ends, strict=True)))

    nearest, farthest = float(values[-1]) * (1 + 1e-6), float(gaps.max()) * 100
    mean = float(gaps.mean())
    if not table(nearest).mean < mean < table(farthest).mean:
        return None
    return table(float(brentq(lambda last: table(last).mean - mean, nearest, farthest, rtol=1e-10)))


def _table_log_likelihood(gaps: FloatArray, table: GapTable) -> float:
    """ln L of independent gaps whose logarithm is uniform between the rows of the table."""
    shares, values = np.array(table.quantiles, dtype=np.float64).T
    density = np.diff(shares) / np.diff(np.log(values))
    # Gaps beyond the last row count as if they were in it.
    row = np.clip(np.searchsorted(values, gaps.ravel(), side="right") - 1, 0, density.size - 1)
    return float((np.log(density[row]) - np.log(gaps.ravel())).sum())


def _spread_ties(times: FloatArray) -> FloatArray:
    """Arrivals of a coarse clock, spread over its ticks by chance (always the same): ties are the clock's doing."""
    ticks = np.unique(times)
    if ticks.size == times.size:
        return times
    tick_s = float(np.diff(ticks).min())
    return np.sort(times + tick_s * np.random.default_rng(0).random(times.size))


def _hours(times: FloatArray) -> tuple[float, ...] | None:
    hours = times[-1] / 3600
    period = _WEEK_HOURS if hours >= 2 * _WEEK_HOURS else _DAY_HOURS
    whole = int(hours // period)
    if whole < 2:
        return None
    inside = times[times < whole * period * 3600.0]
    counts = np.bincount((inside // 3600).astype(np.int64) % period, minlength=period)
    return tuple(float(each) for each in counts / counts.mean())


def _parts(gaps: FloatArray) -> NDArray[np.float64]:
    """[segments, gaps]: all of a short trace, or parts of equal length spread over a long one."""
    if gaps.size <= _SEGMENTS * _SEGMENT_GAPS * 2:
        return gaps[None, :]
    starts = np.linspace(0, gaps.size - _SEGMENT_GAPS * 2, _SEGMENTS).astype(np.int64)
    return np.stack([gaps[start : start + _SEGMENT_GAPS * 2] for start in starts])
