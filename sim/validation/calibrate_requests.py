"""Calibration on another server's run, of which only the requests' times are known.

The replay maps the step-time model's coefficients to mean log TTFT, TPOT and E2E of groups of requests. A Gauss–Newton
iteration with derivatives by finite differences (the iterated extended Kalman update: Bell & Cathey 1993) moves the
logarithms of the coefficients from the profile's towards what was recorded, as far as the prior lets it: the profile's
own covariance, a common factor for the machine's speed, and one for each kind of work (overhead, products of the
batch, attention of decodes, attention of prefill), because another server's code is another code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.batch import SchedulerConfig
from engine.profile.profile import Profile
from engine.utils.progress import Progress, no_progress
from sim.serving.metrics import latencies
from sim.serving.replay import equal_replicas, replay_fleet
from sim.validation.calibrate_steps import calibrated, note_of, update
from sim.validation.posterior import Posterior, bend_covariance, posterior_of, with_coefficients

FloatArray = NDArray[np.float64]

_MOST_SPEED = 2.0  # |log(speed of that machine / of the profile's)| that is looked for
_KIND_SD = 0.3  # of that logarithm, for each kind of work on its own
_UNKNOWN_SD = 0.1  # what a profile that doesn't say misses of a step
_ROUNDS = 6
_HUBER = 1.5  # in standard deviations
_STEP = 0.5  # of a standard deviation, for derivatives: a queue answers to small changes by chance
_NOISE = 0.01  # of a group's mean, at least


def calibrate_on_requests(
    profile: Profile,
    recorded: pd.DataFrame,
    source: str,
    scheduler: SchedulerConfig | None = None,
    seen: slice | None = None,
    progress: Progress | None = None,
) -> Profile:
    """The profile after seeing when another server's requests got their first and last token.

    Args:
        profile: the prior.
        recorded: arrived_s, prompt_tokens, output_tokens, first_token_s, finished_s; one row per request.
        source: where it comes from, in words.
        scheduler: the server's limits; None takes the profile's.
        seen: rows whose times may be looked at; the others only take part in the replay.
        progress: called with (fraction done, what is being done).
    """
    report = progress or no_progress
    prior = posterior_of(profile)
    config = scheduler or profile.scheduler_config()
    groups = _groups(recorded, np.arange(len(recorded))[seen or slice(None)])
    everything = _group_means(latencies(recorded), groups)
    known = np.isfinite(everything)
    target = everything[known]
    noise = np.tile(_group_noise(groups), len(_MEASURES))[known]
    none = np.empty((len(target), 0))

    def predicted(values: FloatArray) -> FloatArray:
        times = with_coefficients(prior.times, values)
        return _group_means(latencies(replay_fleet(recorded, equal_replicas(times, config))[0]), groups)[
            known
        ]

    def weights(expected: FloatArray) -> FloatArray:
        return _huber_weight((target - expected) / noise)

    # First the machine's speed alone: a saturated server answers to it far from linearly.
    report(0.0, "calibrating: speed")
    first = predicted(prior.mean)
    speeds = np.exp(np.linspace(-_MOST_SPEED, _MOST_SPEED, 31))
    misses = [float(np.sum(_huber((target - predicted(prior.mean * speed)) / noise))) for speed in speeds]
    mean = prior.mean * speeds[int(np.argmin(misses))]
    covariance = _widened(prior, mean)
    precision = np.linalg.pinv(covariance, hermitian=True)

    def cost(values: FloatArray, expected: FloatArray) -> float:
        moved = values - mean
        return float(np.sum(_huber((target - expected) / noise)) + moved @ precision @ moved)

    found, after, expected = mean, covariance, predicted(mean)
    for number in range(_ROUNDS):
        report(0.1 + 0.9 * number / _ROUNDS, f"calibrating, round {number + 1}")
        jacobian = _jacobian(predicted, found, expected, covariance)
        weight = np.sqrt(weights(expected)) / noise
        misfit = float(np.sum((weight * (target - expected)) ** 2)) / len(target)
        weight /= math.sqrt(max(1.0, misfit))
        wanted, after = update(
            mean, covariance, jacobian, target - expected + jacobian @ found, weight, none, 0.0
        )
        best = cost(found, expected)
        for share in (1.0, 0.5, 0.25, 0.1):
            tried = found + share * (wanted - found)
            reached = predicted(tried)
            if cost(tried, reached) < best:
                found, expected = tried, reached
                break
        else:
            break
    stated = profile.coefficients.uncertainty
    note = {
        "on": "requests",
        "requests": sum(map(len, groups)) // 2,  # each is in two groups
        "median_group_error_before": round(float(np.median(np.abs(np.expm1(first - target)))), 6),
        "median_group_error_after": round(float(np.median(np.abs(np.expm1(expected - target)))), 6),
    }
    content = recorded[["arrived_s", "first_token_s", "finished_s"]].to_numpy(dtype=float).tobytes()
    report(1.0, "calibrated")
    sd = stated.relative_sd if stated is not None else _UNKNOWN_SD
    return calibrated(profile, found, after, sd, prior.run_sd, note_of(source, content, 1, note))


def _jacobian(
    predicted: Callable[[FloatArray], FloatArray],
    at: FloatArray,
    expected: FloatArray,
    covariance: FloatArray,
) -> FloatArray:
    """Derivatives [observations, k] of what is predicted, by differences; 0 for a coefficient that is known."""
    found = np.zeros((len(expected), len(at)))
    for j in np.flatnonzero(np.diag(covariance) > 0):
        step = _STEP * math.sqrt(covariance[j, j])
        up, down = at.copy(), at.copy()
        up[j] += step
        down[j] = max(0.0, at[j] - step) if j else at[j]
        below = predicted(down) if down[j] < at[j] else expected
        found[:, j] = (predicted(up) - below) / (up[j] - down[j])
    return found


_MEASURES = ("ttft_s", "tpot_s", "e2e_s")


def _groups(recorded: pd.DataFrame, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The rows in groups of about 15: neighbours in time, and, again, of like prompts."""
    count = max(1, min(20, len(rows) // 15))
    by_prompt = rows[np.argsort(recorded["prompt_tokens"].to_numpy()[rows], kind="stable")]
    return [part for order in (rows, by_prompt) for part in np.array_split(order, count)]


def _group_means(times: pd.DataFrame, groups: Sequence[NDArray[np.int64]]) -> FloatArray:
    """Mean logarithm of each measure [measures × groups]; NaN where a group has none."""
    found = []
    for name in _MEASURES:
        logs = np.log(np.maximum(times[name].to_numpy(dtype=float), 1e-6))
        for rows in groups:
            some = logs[rows][np.isfinite(logs[rows])]
            found.append(float(some.mean()) if len(some) else math.nan)
    return np.array(found)


def _group_noise(groups: Sequence[NDArray[np.int64]]) -> FloatArray:
    """Standard error of each group's mean, as far as a replay can't know it; every request stands in two groups."""
    return np.array([2 * math.hypot(_NOISE, 0.1 / math.sqrt(max(1, len(rows)))) for rows in groups])


def _widened(prior: Posterior, mean: FloatArray) -> FloatArray:
    """Covariance of the coefficients around `mean` for a server that the profile doesn't know."""
    times = prior.times
    covariance = prior.covariance * (mean[-1] / prior.mean[-1] if prior.mean[-1] else 1.0) ** 2
    if times.uncertainty is None:
        covariance = covariance + bend_covariance(with_coefficients(times, mean), _UNKNOWN_SD)
    ramps = len(times.token_knots) + len(times.request_knots)
    kind = np.array([0, *[1] * ramps, 2, 3, 3, 3])
    return np.asarray(covariance + _KIND_SD**2 * np.outer(mean, mean) * (kind[:, None] == kind))


def _huber(errors: FloatArray) -> FloatArray:
    size = np.abs(errors)
    return np.where(size <= _HUBER, size**2, 2 * _HUBER * size - _HUBER**2)


def _huber_weight(errors: FloatArray) -> FloatArray:
    return np.minimum(1.0, _HUBER / np.maximum(np.abs(errors), 1e-300))
