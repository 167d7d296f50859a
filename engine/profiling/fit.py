"""Fit the step-time model to measured steps: non-negative least squares on relative errors.

A step of 20 ms and one of 2 s count alike, so each equation is divided by its measured time; coefficients
are ≥ 0 (Lawson & Hanson 1974), so the model stays physical and monotone; and equations far off the rest get
less weight (Huber 1964, iterated), so that one interrupted measurement doesn't bend the fit.

The coefficients' covariance is that of weighted least squares over the coefficients found positive, the others
held at zero; what the residuals scatter beyond it becomes the model's own relative error. Together they give every
prediction an interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from engine.profile.profile import FitReport, Measurement
from engine.profile.step_time import RooflineStepTime, StepTimeUncertainty, basis

Step = tuple[Sequence[tuple[int, int]], Sequence[int]]  # prefill [(chunk, context)], decode contexts

# The step from one row to two is its own regime (a matrix-vector product becomes a matrix product); from there on
# four times the batch changes it.
_KNOTS = (1, 2, *(4**power for power in range(1, 12)))
_ROUNDS = 8
_HUBER = 1.5  # in robust standard deviations
FIT_METHOD = {  # as a profile's method keeps it
    "held_out": "every fourth point, on the diagonal of the grid",
    "fit": "non-negative least squares on relative errors, Huber weights",
}


def fit_step_time(steps: Sequence[Step], times_s: Sequence[float]) -> RooflineStepTime:
    """Fit the coefficients to the times of steps, in seconds (> 0).

    Raises:
        ValueError: fewer steps than coefficients can bear, lengths differ, or a time isn't positive.
    """
    times = np.asarray(times_s, dtype=float)
    if len(steps) != len(times) or len(steps) < 4:
        raise ValueError(f"found {len(steps)} steps and {len(times)} times: at least 4 of both are needed")
    if not (np.isfinite(times).all() and (times > 0).all()):
        raise ValueError("every measured time must be a positive number of seconds")
    token_knots = _choose_knots([_tokens(step) for step in steps])
    request_knots = _choose_knots([len(step[0]) + len(step[1]) for step in steps])
    rows = np.array([basis(*step, token_knots, request_knots) for step in steps]) / times[:, None]
    found, weight = _robust_nnls(rows)
    ramp, rest = len(token_knots), 1 + len(token_knots) + len(request_knots)
    return RooflineStepTime(
        # A step always takes time, even where noise leaves nothing for the constant: a clock must move on.
        constant_s=max(found[0], 1e-3 * float(times.min())),
        token_knots=token_knots,
        token_slopes_s=tuple(found[1 : 1 + ramp]),
        request_knots=request_knots,
        request_slopes_s=tuple(found[1 + ramp : rest]),
        decode_context_s=found[rest],
        chunk_s=found[rest + 1],
        prefill_pair_s=found[rest + 2],
        prefill_context_s=found[rest + 3],
        uncertainty=_uncertainty(rows, np.array(found), weight),
    )


def relative_errors(model: RooflineStepTime, steps: Sequence[Step], times_s: Sequence[float]) -> np.ndarray:
    """Signed relative errors (predicted - measured) / measured, one per step."""
    predicted = np.array([model.step_time(*step) for step in steps], dtype=float)
    measured = np.asarray(times_s, dtype=float)
    return (predicted - measured) / measured


def _tokens(step: Step) -> int:
    return sum(chunk for chunk, _ in step[0]) + len(step[1])


def _choose_knots(amounts: Sequence[int]) -> tuple[int, ...]:
    """0 and those of `_KNOTS` with enough different measured amounts on either side to determine their slopes."""
    seen = sorted(set(amounts))
    knots = [0]
    for knot in _KNOTS:
        below = sum(knots[-1] < amount <= knot for amount in seen)
        above = sum(amount > knot for amount in seen)
        if below >= (1 if knot <= 2 else 2) and above >= 2:
            knots.append(knot)
    return tuple(knots)


def _robust_nnls(basis: np.ndarray) -> tuple[list[float], np.ndarray]:
    """Non-negative x with basis·x ≈ 1, and the rows' weights: less than 1 where the residual is an outlier."""
    from scipy.optimize import nnls

    scale = np.linalg.norm(basis, axis=0)
    scale[scale == 0] = 1.0  # a term that never occurs gets the coefficient 0
    scaled = basis / scale
    target = np.ones(len(basis))
    weight = np.ones(len(basis))
    solution = np.zeros(basis.shape[1])
    for _ in range(_ROUNDS):
        solution, _residual = nnls(scaled * weight[:, None], target * weight, maxiter=50 * basis.shape[1])
        residual = np.abs(scaled @ solution - target)
        deviation = 1.4826 * np.median(residual)
        if deviation < 1e-12:
            break
        weight = np.sqrt(np.minimum(1.0, _HUBER * deviation / np.maximum(residual, 1e-300)))
    return [float(value) for value in solution / scale], weight


def _uncertainty(rows: np.ndarray, found: np.ndarray, weight: np.ndarray) -> StepTimeUncertainty:
    """Covariance over the positive coefficients and the scatter around the fit, from its relative residuals."""
    active = np.flatnonzero(found > 0)
    residual = rows @ found - 1
    scale = 1 / np.linalg.norm(rows[:, active], axis=0)
    weighted = rows[:, active] * scale * weight[:, None]
    inverse = np.linalg.pinv(weighted.T @ weighted, hermitian=True)
    variance = float(np.sum((weight * residual) ** 2)) / max(1, len(rows) - len(active))
    covariance = inverse * np.outer(scale, scale) * variance
    errors = np.sqrt(np.maximum(np.diag(covariance), 0))
    safe = np.where(errors > 0, errors, 1)
    correlation = np.clip(covariance / np.outer(safe, safe), -1, 1)
    # The scatter is that of steps which the fit didn't see, as if each had been left out in turn (by its leverage),
    # read off where 90 % of them lie: tails heavier than a normal distribution's count.
    leverage = np.minimum(np.einsum("ij,jk,ik->i", weighted, inverse, weighted), 0.9)
    scatter = float(np.quantile(np.abs(residual) / (1 - leverage), 0.9)) / NormalDist().inv_cdf(0.95)
    return StepTimeUncertainty(
        relative_sd=scatter,
        active=tuple(int(i) for i in active),
        standard_errors=tuple(float(error) for error in errors),
        correlations_plus_one=tuple(
            tuple(round(float(value) + 1, 6) for value in correlation[i, :i]) for i in range(1, len(active))
        ),
    )


def fit_and_judge(measured: Sequence[Measurement]) -> tuple[RooflineStepTime, FitReport]:
    """Fit a step-time model to the points that aren't held out; the report is of its errors on those that are."""
    train = [point for point in measured if not point.held_out]
    held = [point for point in measured if point.held_out]
    model = fit_step_time([(p.prefill, p.decode_contexts) for p in train], [p.time_s for p in train])

    def errors(points: Sequence[Measurement]) -> np.ndarray:
        steps = [(p.prefill, p.decode_contexts) for p in points]
        return np.abs(relative_errors(model, steps, [p.time_s for p in points]))

    judged = errors(held or train)
    return model, FitReport(
        train_points=len(train),
        held_out_points=len(held),
        median_relative_error=float(np.median(judged)),
        p95_relative_error=float(np.quantile(judged, 0.95)),
        max_relative_error=float(judged.max()),
        train_median_relative_error=float(np.median(errors(train))),
        repeat_spread=float(np.median([point.spread for point in measured])),
    )
