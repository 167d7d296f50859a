"""Fit the step-time model to measured steps: non-negative least squares on relative errors.

A step of 20 ms and one of 2 s count alike, so each equation is divided by its measured time; coefficients
are ≥ 0 (Lawson & Hanson 1974), so the model stays physical and monotone; and equations far off the rest get
less weight (Huber 1964, iterated), so that one interrupted measurement doesn't bend the fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.step_time import RooflineStepTime

Step = tuple[Sequence[tuple[int, int]], Sequence[int]]  # prefill [(chunk, context)], decode contexts

# The step from one row to two is its own regime (a matrix-vector product becomes a matrix product); from there on
# four times the batch changes it.
_KNOTS = (1, 2, *(4**power for power in range(1, 12)))
_ROUNDS = 8
_HUBER = 1.5  # in robust standard deviations


def fit_step_time(steps: Sequence[Step], times_s: Sequence[float]) -> RooflineStepTime:
    """The coefficients that reproduce `times_s` (seconds, > 0) of `steps` best.

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
    basis = np.array([_basis(step, token_knots, request_knots) for step in steps]) / times[:, None]
    found = _robust_nnls(basis)
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
    )


def relative_errors(model: RooflineStepTime, steps: Sequence[Step], times_s: Sequence[float]) -> np.ndarray:
    """Signed relative errors (predicted - measured) / measured, one per step."""
    predicted = np.array([model.step_time(*step) for step in steps], dtype=float)
    measured = np.asarray(times_s, dtype=float)
    return (predicted - measured) / measured


def _tokens(step: Step) -> int:
    return sum(chunk for chunk, _ in step[0]) + len(step[1])


def _basis(step: Step, token_knots: tuple[int, ...], request_knots: tuple[int, ...]) -> list[float]:
    """What each coefficient is multiplied with in this step, in the order of the fit."""
    prefill, contexts = step
    return [
        1.0,
        *_ramp(_tokens(step), token_knots),
        *_ramp(len(prefill) + len(contexts), request_knots),
        float(sum(contexts)),
        float(len(prefill)),
        sum(chunk * (context + 0.5 * (chunk + 1)) for chunk, context in prefill),
        float(sum(context for _, context in prefill)),
    ]


def _ramp(amount: int, knots: tuple[int, ...]) -> list[float]:
    """How much of `amount` falls into each segment; the last segment has no end."""
    ends = [*knots[1:], amount]
    return [float(max(0, min(amount, end) - knot)) for knot, end in zip(knots, ends, strict=True)]


def _choose_knots(amounts: Sequence[int]) -> tuple[int, ...]:
    """0 and those of `_KNOTS` with enough different measured amounts on either side to tell their slopes."""
    seen = sorted(set(amounts))
    knots = [0]
    for knot in _KNOTS:
        below = sum(knots[-1] < amount <= knot for amount in seen)
        above = sum(amount > knot for amount in seen)
        if below >= (1 if knot <= 2 else 2) and above >= 2:
            knots.append(knot)
    return tuple(knots)


def _robust_nnls(basis: np.ndarray) -> list[float]:
    """Non-negative x with basis·x ≈ 1, rows weighted down where the residual is an outlier."""
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
    return [float(value) for value in solution / scale]
