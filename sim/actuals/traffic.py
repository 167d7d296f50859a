"""The shape of measured traffic: the week, its noise and growth, and which classes of requests its lengths look like.

- Week: requests by hour of the week over the mean. Noise: what hours vary beyond their Poisson noise; with counts N
  around μ = level × shape, E[(N − μ)² − N]/μ² = exp(σ²) − 1 for lognormal noise of mean 1, the scenario's
  `market.demand_noise`. μ is estimated from the same weeks, which takes one of w weeks: a factor w/(w − 1).
- Growth: least squares of the logarithm of each week's requests, Student's t; weeks that hang together make it look
  surer than it is.
- Classes: the lengths of a class are lognormal (`sim.workload.traffic_classes`); shares of classes by maximum
  likelihood, with the EM algorithm (Dempster, Laird and Rubin 1977). Bounds by the Bayesian bootstrap over customers
  (Rubin 1981), because one customer's requests are alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.actuals.estimates import Belief, drawn, mean, ratio
from sim.workload.arrivals import hourly_shape
from sim.workload.traffic_classes import TRAFFIC_CLASSES, TrafficClass, lognormal_sigma

HOURS_PER_WEEK = 168
_HOURS_PER_MONTH = 730
_REPLICATES, _STEPS, _FEWER_STEPS = 60, 200, 25
_MOST_REQUESTS = 3_000  # in the likelihood of classes
_LEAST_SHARE = 0.01  # of a class; below it is left out
_MONDAY_H = 96  # hours from unix time 0, a Thursday, to the first Monday

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Traffic:
    """`week`: hour_of_week (0 is Monday 0:00 UTC), measured and planned, as multiples of the mean.

    `noise`, `growth_per_month`: None where there is too little (below two weeks, three weeks). `shares`: of requests by
    class, rounded to whole percent and adding up to 1; `share_bounds`: 95 % by class. `prompt_mean`, `output_mean`:
    tokens of a request of this mix.
    """

    week: pd.DataFrame
    noise: Belief | None
    growth_per_month: Belief | None
    shares: dict[str, float]
    share_bounds: dict[str, tuple[float, float]]
    prompt_mean: float
    output_mean: float


def read_traffic(
    by_hour: NDArray[np.int64], start_s: float, sample: pd.DataFrame, classes: Iterable[str]
) -> Traffic:
    """Shape, noise, growth and classes of traffic.

    Args:
        by_hour: requests by hour [hours].
        start_s: unix time of the first hour.
        sample: single requests: key_id, prompt_tokens, output_tokens.
        classes: of the plan; besides them those without pictures and sound are tried.
    """
    first, last = _used_hours(by_hour)
    counts = by_hour[first:last].astype(np.float64)
    hour = (np.arange(first, last) + round(start_s / 3600) - _MONDAY_H) % HOURS_PER_WEEK
    shape = _shape(counts, hour)
    planned = np.asarray(hourly_shape(), dtype=np.float64).reshape(-1)
    week = pd.DataFrame(
        {"hour_of_week": np.arange(HOURS_PER_WEEK), "measured": shape, "planned": planned / planned.mean()}
    )
    shares, bounds = _classes(sample, classes)
    prompt, output = mean_tokens(shares)
    return Traffic(week, _noise(counts, hour, shape), _growth(counts), shares, bounds, prompt, output)


def mean_tokens(shares: dict[str, float]) -> tuple[float, float]:
    """(prompt, output) tokens of the mean request of a mix of known classes."""
    kinds = [(TRAFFIC_CLASSES[name], share) for name, share in shares.items()]
    total = sum(share for _, share in kinds)
    prompt = sum((kind.prompt_tokens_mean + kind.media_tokens_mean) * share for kind, share in kinds)
    return prompt / total, sum(kind.output_tokens_mean * share for kind, share in kinds) / total


def _used_hours(by_hour: NDArray[np.int64]) -> tuple[int, int]:
    """The whole days from the first request to the last: what lies before and after is no traffic."""
    used = np.flatnonzero(by_hour)
    if not len(used):
        return 0, 0
    first, last = -(-int(used[0]) // 24) * 24, (int(used[-1]) + 1) // 24 * 24
    return (first, last) if last > first else (int(used[0]), int(used[-1]) + 1)


def _shape(counts: FloatArray, hour: NDArray[np.int64]) -> FloatArray:
    hours = np.bincount(hour, minlength=HOURS_PER_WEEK)
    sums = np.bincount(hour, weights=counts, minlength=HOURS_PER_WEEK)
    each = np.divide(sums, hours, out=np.full(HOURS_PER_WEEK, math.nan), where=hours > 0)
    measured = each[np.isfinite(each)]
    return (
        each / measured.mean() if len(measured) and measured.mean() > 0 else np.full(HOURS_PER_WEEK, math.nan)
    )


def _weeks(counts: FloatArray) -> FloatArray:
    """Whole weeks of hours, the youngest last [weeks, 168]."""
    weeks = len(counts) // HOURS_PER_WEEK
    return counts[len(counts) - weeks * HOURS_PER_WEEK :].reshape(weeks, HOURS_PER_WEEK)


def _noise(counts: FloatArray, hour: NDArray[np.int64], shape: FloatArray) -> Belief | None:
    weeks = _weeks(counts)
    if len(weeks) < 2:
        return None
    hours = hour[len(counts) - weeks.size :].reshape(weeks.shape)
    expected = weeks.mean(axis=1, keepdims=True) * shape[hours]
    beyond = (weeks - expected) ** 2 * len(weeks) / (len(weeks) - 1) - weeks
    days = (-1, 24)
    found = ratio(beyond.reshape(days).sum(axis=1), (expected**2).reshape(days).sum(axis=1))
    return None if found is None else found.through(lambda value: np.sqrt(np.log1p(value)))


def _growth(counts: FloatArray) -> Belief | None:
    totals = _weeks(counts).sum(axis=1)
    if len(totals) < 3 or (totals <= 0).any():
        return None
    from scipy.special import stdtrit

    week = np.arange(len(totals)) - (len(totals) - 1) / 2
    logs = np.log(totals)
    slope = float(week @ logs / (week @ week))
    rest = logs - logs.mean() - slope * week
    spread = math.sqrt(float(rest @ rest) / (len(totals) - 2) / float(week @ week))
    weeks_per_month = _HOURS_PER_MONTH / HOURS_PER_WEEK
    freedom = len(totals) - 2
    return Belief(lambda at: np.expm1(weeks_per_month * (slope + spread * stdtrit(freedom, at))))


def usage_growth(lives_logs: list[FloatArray]) -> Belief | None:
    """How a customer's usage grows by month: the mean over customers of the slope of its logarithm.

    Args:
        lives_logs: of each customer the logarithms of his monthly usage, three months and more, one after the other.
    """
    slopes = []
    for logs in lives_logs:
        month = np.arange(len(logs)) - (len(logs) - 1) / 2
        slopes.append(float(month @ logs / (month @ month)))
    found = mean(slopes)
    return None if found is None else found.through(np.expm1)


def _classes(
    sample: pd.DataFrame, planned: Iterable[str]
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    planned = list(planned)
    names = [
        name for name, kind in TRAFFIC_CLASSES.items() if name in planned or not kind.media_tokens_median
    ]
    served = sample[(sample["prompt_tokens"] > 0) & (sample["output_tokens"] > 0)]
    if len(served) < len(names):
        return {name: 1 / len(planned) for name in planned}, {}
    served = served.sample(min(len(served), _MOST_REQUESTS), random_state=0)
    logs = np.log(served[["prompt_tokens", "output_tokens"]].to_numpy(dtype=np.float64))
    density = np.stack([_log_density(TRAFFIC_CLASSES[name], logs) for name in names], axis=1)
    density = np.exp(density - density.max(axis=1, keepdims=True))
    shares = _em(density, np.ones(len(density)), np.full(len(names), 1 / len(names)), _STEPS)
    customer, _ = pd.factorize(served["key_id"])
    if customer.max() == 0:
        customer = np.arange(len(served))  # of one customer nothing else is known than his requests
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(_REPLICATES):
        weight = rng.standard_exponential(int(customer.max()) + 1)[customer]
        draws.append(_em(density, weight, 0.98 * shares + 0.02 / len(names), _FEWER_STEPS))
    kept = {name: share for name, share in zip(names, shares.tolist(), strict=True) if share >= _LEAST_SHARE}
    bounds = {
        name: drawn(np.array(draws)[:, column]).bounds for column, name in enumerate(names) if name in kept
    }
    return _whole_percent(kept), bounds


def _log_density(kind: TrafficClass, logs: FloatArray) -> FloatArray:
    """Log density of (prompt, output) up to a constant that all classes share; logs: [requests, 2]."""
    prompt_median, prompt_mean = kind.prompt_tokens_median, kind.prompt_tokens_mean
    if kind.media_tokens_median:
        prompt_median, prompt_mean = _sum_of_lognormals(kind)
    total = np.zeros(len(logs))
    sides = ((prompt_median, prompt_mean), (kind.output_tokens_median, kind.output_tokens_mean))
    for column, (median, average) in enumerate(sides):
        sigma = lognormal_sigma(median, average)
        total += -0.5 * ((logs[:, column] - math.log(median)) / sigma) ** 2 - math.log(sigma)
    return total


def _sum_of_lognormals(kind: TrafficClass) -> tuple[float, float]:
    """(median, mean) of the lognormal with mean and variance of text and media together (Fenton 1960)."""
    average = variance = 0.0
    for median, mean_tokens_ in (
        (kind.prompt_tokens_median, kind.prompt_tokens_mean),
        (kind.media_tokens_median, kind.media_tokens_mean),
    ):
        average += mean_tokens_
        variance += mean_tokens_**2 * math.expm1(lognormal_sigma(median, mean_tokens_) ** 2)
    return average / math.sqrt(1 + variance / average**2), average


def _em(density: FloatArray, weight: FloatArray, shares: FloatArray, steps: int) -> FloatArray:
    """Shares of a mixture of known densities [requests, classes]."""
    weight = weight / weight.sum()
    for _ in range(steps):
        belongs = density * shares
        belongs /= belongs.sum(axis=1, keepdims=True)
        shares = weight @ belongs
    return shares


def _whole_percent(shares: dict[str, float]) -> dict[str, float]:
    """Rounded to whole percent, so that a capacity surface is found again; they add up to 1."""
    from fractions import Fraction

    from sim.study.shapley import whole_parts

    exact = [Fraction(share) for share in shares.values()]
    parts = whole_parts([share / sum(exact) * 100 for share in exact])
    return {name: part / 100 for name, part in zip(shares, parts, strict=True) if part}
