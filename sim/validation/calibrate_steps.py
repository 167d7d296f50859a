"""Calibration: what a run shows about a step-time model, by Bayes' rule instead of a fit by hand.

The prior is the profile's own knowledge of its coefficients (`sim.validation.posterior`), made wider by what differs
between two machines or two days: a common factor. Data are

- the steps of our own engine, each with its work and its time: linear in the coefficients, so the posterior mode is a
  least-squares problem with bounds (coefficients ≥ 0), solved in relative errors with Huber weights. Errors of steps
  that follow each other are alike; their number counts divided by the integrated autocorrelation (Geyer 1992), and
  each run has a factor of its own, so many steps of one run don't pass for knowledge about the next;
- or, of another server, the times of its requests only (`sim.validation.calibrate_requests`).

The posterior is a profile like any other, whose method says what it was calibrated on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.profile.cost import cost_table
from engine.profile.profile import Profile
from engine.profile.step_time import RooflineStepTime, basis
from sim.validation.observe import Observation
from sim.validation.posterior import coefficients, posterior_of, uncertainty_from, with_coefficients

FloatArray = NDArray[np.float64]

_SPEED_SD = 0.05  # of the machine's common factor, beyond what the steps' median shows at once
_ROUNDS = 6
_HUBER = 1.5  # in robust standard deviations
_BLOCK_S = 5.0  # steps this close together find the machine in the same state
_PRIOR_BLOCKS = 4  # what the profile says about the machine's drift counts like so many blocks
_LONGEST_LAG = 200


def calibrate_on_steps(profile: Profile, runs: Sequence[Observation], source: str) -> Profile:
    """The profile after seeing every step of `runs`, made by the same model on our own engine.

    `source` says where the runs come from, in words. Raises ValueError for no steps.
    """
    prior = posterior_of(profile)
    times = prior.times
    rows = [_rows(run, times) for run in runs]
    seconds = [(run.steps["until_s"] - run.steps["started_s"]).to_numpy(dtype=float) for run in runs]
    x, y = np.concatenate(rows), np.concatenate(seconds)
    if not len(y):
        raise ValueError("calibration needs at least one observed step")
    run_of = np.repeat(np.arange(len(runs)), [len(part) for part in seconds])
    speed = float(np.exp(np.median(np.log(y / (x @ prior.mean)))))
    mean, covariance = speed * prior.mean, speed**2 * prior.covariance
    covariance = covariance + _SPEED_SD**2 * np.outer(mean, mean)
    _open_zeros(covariance, x, x @ mean, times)
    found, after, run_sd = mean, covariance, prior.run_sd
    residual = y / (x @ mean) - 1
    for _ in range(_ROUNDS):
        expected = x @ found
        residual = y / expected - 1
        scatter = max(1.4826 * float(np.median(np.abs(residual - np.median(residual)))), 1e-6)
        dependence = max(_dependence(residual[run_of == run]) for run in range(len(runs)))
        run_sd = _run_sd(prior.run_sd, residual, run_of, runs, scatter)
        weight = np.sqrt(np.minimum(1.0, _HUBER * scatter / np.maximum(np.abs(residual), 1e-300)))
        weight /= scatter * math.sqrt(dependence)
        found, after = update(
            mean, covariance, x / expected[:, None], y / expected, weight, np.eye(len(runs))[run_of], run_sd
        )
    relative_sd = float(np.quantile(np.abs(residual), 0.9)) / 1.645
    before = np.median(np.abs(x @ prior.mean / y - 1))
    note = {
        "on": "steps",
        "steps": len(y),
        "steps_as_independent": round(len(y) / dependence, 1),
        "median_step_error_before": round(float(before), 6),
        "median_step_error_after": round(float(np.median(np.abs(residual))), 6),
    }
    content = b"".join(run.steps[["started_s", "until_s"]].to_numpy().tobytes() for run in runs)
    return calibrated(profile, found, after, relative_sd, run_sd, note_of(source, content, len(runs), note))


def interval_rows(before: Profile, after: Profile) -> list[tuple[str, str, str]]:
    """(step, 90 % interval before, after): what a run of such steps takes each, in milliseconds."""
    found = []
    for label, prefill, contexts in (
        ("decode, 1 request", [], [200]),
        ("decode, 4 requests", [], [200] * 4),
        ("decode, 16 requests", [], [200] * 16),
        ("chunk of 128 and 4 decodes", [(128, 0)], [200] * 4),
        ("chunk of 512", [(512, 0)], []),
    ):
        texts = []
        for profile in (before, after):
            known = posterior_of(profile)
            times = profile.coefficients
            row = np.array([basis(prefill, contexts, times.token_knots, times.request_knots)])
            sd = math.hypot(float(known.relative_sd(row)[0]), known.run_sd)
            middle = 1e3 * times.step_time(prefill, contexts)
            texts.append(f"{middle * math.exp(-1.645 * sd):,.1f} – {middle * math.exp(1.645 * sd):,.1f} ms")
        found.append((label, texts[0], texts[1]))
    return found


def _rows(run: Observation, times: RooflineStepTime) -> FloatArray:
    pairs = zip(run.steps["prefill"], run.steps["decode_contexts"], strict=True)
    rows = [basis(prefill, contexts, times.token_knots, times.request_knots) for prefill, contexts in pairs]
    return np.array(rows, dtype=float).reshape(len(rows), len(coefficients(times)))


def _open_zeros(
    covariance: FloatArray, rows: FloatArray, expected: FloatArray, times: RooflineStepTime
) -> None:
    """Let a coefficient that the fit held at zero become as large as what the model misses of a step."""
    missed = times.uncertainty.relative_sd if times.uncertainty is not None else 0.1
    for j in np.flatnonzero(np.diag(covariance) == 0):
        used = rows[:, j] > 0
        if used.any():
            covariance[j, j] = (missed * float(np.min(expected[used] / rows[used, j]))) ** 2


def update(
    mean: FloatArray,
    covariance: FloatArray,
    rows: FloatArray,
    target: FloatArray,
    weight: FloatArray,
    factors: FloatArray,
    factor_sd: float,
) -> tuple[FloatArray, FloatArray]:
    """Mode and covariance of coefficients x ≥ 0 after equations rows·x + factors·f ≈ target.

    Args:
        mean, covariance: of x [k] before; where the variance is 0, x stays.
        rows: [n, k].
        target: [n].
        weight: [n], one over each equation's standard deviation.
        factors: [n, m], what f stands for; f ~ normal(0, factor_sd) is a nuisance and left out of the result.
        factor_sd: standard deviation of f.
    """
    from scipy.optimize import lsq_linear

    states = np.flatnonzero(np.diag(covariance) > 0)
    scale = np.sqrt(np.diag(covariance)[states])
    count, more = len(states), factors.shape[1]
    fixed = rows @ np.where(np.isin(np.arange(len(mean)), states), 0.0, mean)
    data = np.hstack([rows[:, states] * scale, factors]) * weight[:, None]
    correlation = covariance[np.ix_(states, states)] / np.outer(scale, scale)
    prior = np.zeros((count + more, count + more))
    prior[:count, :count] = np.linalg.inv(np.linalg.cholesky(correlation + 1e-6 * np.eye(count)))
    prior[count:, count:] = np.eye(more) / max(factor_sd, 1e-4)
    centre = prior @ np.concatenate([mean[states] / scale, np.zeros(more)])
    q, r = np.linalg.qr(np.vstack([data, prior]))
    wanted = q.T @ np.concatenate([(target - fixed) * weight, centre])
    # The constant stays positive: a clock must move on.
    least = np.concatenate([np.where(states == 0, 1e-3 * mean[0], 0.0) / scale, np.full(more, -np.inf)])
    solution = lsq_linear(r, wanted, bounds=(least, np.full(len(least), np.inf))).x
    # As wide at a bound as without: a coefficient that the data push to zero may still be a little more.
    inverse = np.linalg.pinv(r.T @ r, hermitian=True)[:count, :count]
    found, after = mean.copy(), np.zeros_like(covariance)
    found[states] = solution[:count] * scale
    after[np.ix_(states, states)] = inverse * np.outer(scale, scale)
    return found, after


def _dependence(residual: FloatArray) -> float:
    """Integrated autocorrelation of a run's errors: the number of steps that weigh as much as one independent one."""
    centred = residual - residual.mean() if len(residual) else residual
    # One interrupted step must not hide that its neighbours are alike.
    centred = np.clip(centred, -3 * centred.std(), 3 * centred.std())
    power = float(centred @ centred)
    total = 1.0
    for lag in range(1, min(_LONGEST_LAG, len(centred) // 2) if power > 0 else 1):
        correlation = float(centred[lag:] @ centred[:-lag]) / power
        if correlation < 0.05:
            break
        total += 2 * correlation
    return total


def _run_sd(
    prior_sd: float,
    residual: FloatArray,
    run_of: NDArray[np.int64],
    runs: Sequence[Observation],
    scatter: float,
) -> float:
    """Relative standard deviation of the machine's speed between stretches of time; the profile's own is included."""
    squares, count = _PRIOR_BLOCKS * prior_sd**2, _PRIOR_BLOCKS
    for number, run in enumerate(runs):
        block = (run.steps["started_s"].to_numpy() // _BLOCK_S).astype(int)
        means = pd.Series(residual[run_of == number]).groupby(block).agg(["median", "size"])
        means = means[means["size"] >= 10]
        if len(means) >= 2:
            noise = float((1.57 * scatter**2 / means["size"]).mean())  # of a median
            squares += max(0.0, float(means["median"].var()) - noise) * (len(means) - 1)
            count += len(means) - 1
    return math.sqrt(squares / count)


def note_of(source: str, content: bytes, runs: int, more: dict[str, Any]) -> dict[str, Any]:
    """Where a calibration comes from, as a profile's method keeps it."""
    return {"source": source, "run_hash": hashlib.sha256(content).hexdigest(), "runs": runs, **more}


def calibrated(
    profile: Profile,
    mean: FloatArray,
    covariance: FloatArray,
    relative_sd: float,
    run_sd: float,
    note: dict[str, Any],
) -> Profile:
    """The profile with other coefficients [k], their covariance [k, k], its costs, and a note of the calibration."""
    times = with_coefficients(profile.coefficients, mean, uncertainty_from(covariance, relative_sd))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    calibration = {**note, "date": now, "run_sd": round(run_sd, 6), "prior_profile": profile.content_hash}
    return replace(
        profile,
        created_at=now,
        coefficients=times,
        method={**profile.method, "calibration": calibration},
        cost=cost_table(
            times,
            profile.cost.price_usd_per_hour,
            profile.scheduler_config(),
            profile.model.max_context_tokens,
        ),
    )
