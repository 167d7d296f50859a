"""What is known about a step-time model's coefficients, as a distribution: where a prediction's interval comes from.

A run of many steps differs from its prediction by what is common to its steps; what each step scatters on its own
averages out. Common are

- the coefficients' own errors: their covariance from the fit;
- what the model misses of a step: a step of that size is missed the same way each time. The fit shows how much by
  its scatter (`StepTimeUncertainty.relative_sd`: each point of the grid is a median of repeats, so little of that is
  noise). It bends the ramp over packed tokens by a factor at each knot, alike at knots that are close (a Gaussian
  process over log₂ tokens, correlation exp(−distance / 2): a model discrepancy as in Kennedy & O'Hagan 2001), and
  moves the other coefficients by as much;
- the machine: as fast as it was when measured, give or take `run_sd` for a run as a whole.

Together they are a normal distribution over the coefficients, in the order of `step_time.basis`, times a
log-normal factor per run. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.profile.profile import Profile
from engine.profile.step_time import RooflineStepTime, StepTimeUncertainty

FloatArray = NDArray[np.float64]

_IQR_OF_NORMAL = 1.349  # interquartile range of a normal distribution over its standard deviation
_STEADIEST_SD = 0.01  # a point that was measured once says nothing about how steady the machine is
_BEND_LENGTH = 2.0  # doublings of the batch after which the model errs in another way
_LEAST_CONSTANT = 1e-3  # share of the mean that a drawn constant keeps: a clock must move on


@dataclass(frozen=True)
class Posterior:
    """Coefficients [k] ~ normal(mean, covariance [k, k]); a run's steps all take exp(normal(0, run_sd)) times as long.

    `times` gives the knots, and the mean as a model.
    """

    times: RooflineStepTime
    covariance: FloatArray
    run_sd: float

    @property
    def mean(self) -> FloatArray:
        """The coefficients of `times`, in seconds per unit."""
        return coefficients(self.times)

    def draw(self, count: int, rng: np.random.Generator | int = 0) -> list[RooflineStepTime]:
        """`count` step-time models drawn from the posterior, one per run.

        Coefficients are ≥ 0: where a draw of a ramp falls with more work, the knots it concerns share their mean.
        """
        rng = np.random.default_rng(rng)
        values, vectors = np.linalg.eigh(self.covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        drawn = self.mean + rng.standard_normal((count, len(values))) @ root.T
        factors = np.exp(self.run_sd * rng.standard_normal(count))
        return [
            with_coefficients(self.times, factor * _monotone(row, self.times))
            for row, factor in zip(drawn, factors, strict=True)
        ]

    def relative_sd(self, rows: FloatArray) -> FloatArray:
        """Standard deviation over mean of the total time of steps whose `basis` are the rows [n, k]."""
        variance = np.einsum("ij,jk,ik->i", rows, self.covariance, rows)
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)) / (rows @ self.mean))


def posterior_of(profile: Profile) -> Posterior:
    """Posterior of a profile: of a calibrated one its own, of others the fit's covariance and unexplained error.

    A profile without an `uncertainty` has none at all: every draw is the model itself.
    """
    times = profile.coefficients
    calibration = profile.method.get("calibration")
    if times.uncertainty is None:
        return Posterior(times, np.zeros((len(coefficients(times)),) * 2), 0.0)
    known = _covariance(times, times.uncertainty)
    if calibration is not None:
        return Posterior(times, known, float(calibration["run_sd"]))
    bends = bend_covariance(times, times.uncertainty.relative_sd)
    # The repeats of a point are spread over all of the measurement: how they differ shows how steady the machine is.
    return Posterior(times, known + bends, max(_STEADIEST_SD, profile.fit.repeat_spread / _IQR_OF_NORMAL))


def bend_covariance(times: RooflineStepTime, relative_sd: float) -> FloatArray:
    """Covariance [k, k] of the coefficients for a model that misses each regime of steps by `relative_sd`."""
    mean = coefficients(times)
    knots = np.array(times.token_knots, dtype=float)
    base = np.array([times.constant_s + part for part in times.ramp("token")[2]])
    place = np.log2(np.maximum(knots, 0.5))
    alike = np.exp(-np.abs(place[:, None] - place) / _BEND_LENGTH)
    # From a relative change at each knot to the change of constant and slopes.
    count, size = len(knots), len(mean)
    change = np.zeros((size, count))
    change[0, 0] = base[0]
    for i in range(count - 1):
        width = knots[i + 1] - knots[i]
        change[1 + i, i] -= base[i] / width
        change[1 + i, i + 1] += base[i + 1] / width
    change[count, count - 1] += mean[count]
    others = np.zeros(size)
    others[1 + count :] = mean[1 + count :]
    return np.asarray(relative_sd**2 * (change @ alike @ change.T + np.diag(others**2)))


def coefficients(times: RooflineStepTime) -> FloatArray:
    """The coefficients [k] in the order of `step_time.basis`."""
    return np.array(
        [
            times.constant_s,
            *times.token_slopes_s,
            *times.request_slopes_s,
            times.decode_context_s,
            times.chunk_s,
            times.prefill_pair_s,
            times.prefill_context_s,
        ]
    )


def with_coefficients(
    times: RooflineStepTime,
    values: Sequence[float] | FloatArray,
    uncertainty: StepTimeUncertainty | None = None,
) -> RooflineStepTime:
    """A model with the knots of `times` and these coefficients, ≥ 0, in the order of `step_time.basis`."""
    numbers = [float(value) for value in values]
    ramp, rest = 1 + len(times.token_knots), 1 + len(times.token_knots) + len(times.request_knots)
    return replace(
        times,
        constant_s=numbers[0],
        token_slopes_s=tuple(numbers[1:ramp]),
        request_slopes_s=tuple(numbers[ramp:rest]),
        decode_context_s=numbers[rest],
        chunk_s=numbers[rest + 1],
        prefill_pair_s=numbers[rest + 2],
        prefill_context_s=numbers[rest + 3],
        uncertainty=uncertainty,
    )


def uncertainty_from(covariance: FloatArray, relative_sd: float) -> StepTimeUncertainty:
    """A covariance [k, k] as a profile's file keeps it."""
    errors = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    active = np.flatnonzero(errors > 0)
    correlation = covariance[np.ix_(active, active)] / np.outer(errors[active], errors[active])
    correlation = np.clip(correlation, -1.0, 1.0)
    return StepTimeUncertainty(
        relative_sd=relative_sd,
        active=tuple(int(i) for i in active),
        standard_errors=tuple(float(error) for error in errors[active]),
        correlations_plus_one=tuple(
            tuple(round(float(value) + 1, 9) for value in correlation[i, :i]) for i in range(1, len(active))
        ),
    )


def _covariance(times: RooflineStepTime, known: StepTimeUncertainty) -> FloatArray:
    size, active = len(coefficients(times)), list(known.active)
    correlation = np.eye(len(active))
    for i, row in enumerate(known.correlations_plus_one, start=1):
        correlation[i, :i] = correlation[:i, i] = np.array(row) - 1.0
    errors = np.array(known.standard_errors)
    covariance = np.zeros((size, size))
    covariance[np.ix_(active, active)] = correlation * np.outer(errors, errors)
    return covariance


def _monotone(row: FloatArray, times: RooflineStepTime) -> FloatArray:
    """The nearest coefficients that are ≥ 0, ramps taken by their values at the knots (isotonic regression)."""
    tokens, requests = len(times.token_knots), len(times.request_knots)
    fixed = np.maximum(row, 0.0)
    if (row >= 0).all():
        return fixed
    least = _LEAST_CONSTANT * max(times.constant_s, times.ramp("token")[2][min(1, tokens - 1)])
    start, slopes = _monotone_ramp(row[0], row[1 : 1 + tokens], times.token_knots)
    fixed[0], fixed[1 : 1 + tokens] = max(start, least), slopes
    start, slopes = _monotone_ramp(0.0, row[1 + tokens : 1 + tokens + requests], times.request_knots)
    fixed[1 + tokens : 1 + tokens + requests] = slopes
    return fixed


def _monotone_ramp(start: float, slopes: FloatArray, knots: Sequence[int]) -> tuple[float, FloatArray]:
    from scipy.optimize import isotonic_regression

    widths = np.diff(np.array(knots, dtype=float))
    values = start + np.concatenate([[0.0], np.cumsum(slopes[:-1] * widths)])
    rising = np.maximum(isotonic_regression(values).x, 0.0)
    found = np.maximum(slopes, 0.0)
    found[:-1] = np.diff(rising) / widths
    return float(rising[0]), np.maximum(found, 0.0)
