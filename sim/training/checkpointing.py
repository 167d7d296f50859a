"""Failures of a training job, and how often it should save its state.

Models a job that computes on many machines at once and stops when any of them fails: failures come at random, with
an exponential time between them of mean M (a Poisson process; M of the job is M of a node over the nodes). The job
saves its state every τ seconds of work, which takes δ seconds; after a failure it starts again from the last state,
which takes R seconds (a failure may hit those as well), and does the lost work once more.

- expected time of a stretch of τ with its checkpoint: M·e^(R/M)·(e^((τ+δ)/M) − 1)
  (Daly 2006, doi:10.1016/j.future.2004.11.016)
- best interval: x = τ/M solves ln(1 − x) + x + δ/M = 0, where the derivative of the expected time per work vanishes
"""

from __future__ import annotations

import math
from statistics import NormalDist

from engine.errors import InputError

SHORTEST_INTERVAL_S = 1.0  # the least interval in practice, however cheap a checkpoint is
_EXACT_MEAN = 1e6  # expected counts above this take the normal approximation
_HOPELESS = 50.0  # mean times between failures that one stretch lasts: it would never end


def best_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Seconds of work between checkpoints that make the expected time least; infinite without failures."""
    if math.isinf(mtbf_s):
        return math.inf
    delta = checkpoint_s / mtbf_s
    if delta == 0:
        return 0.0
    # Both are above the root; from above, Newton on this falling, concave function comes down to it.
    x = min(math.sqrt(2 * delta), -math.expm1(-1 - delta))
    for _ in range(50):
        step = (math.log1p(-x) + x + delta) * (1 - x) / x
        x += step
        if abs(step) <= 1e-15 * x:
            break
    return x * mtbf_s


def best_stretches(work_s: float, checkpoint_s: float, mtbf_s: float) -> int:
    """Into how many equal stretches, each ending with a checkpoint, to cut `work_s` seconds of work (≥ 1).

    The expected time is convex in the number, so it is one of the two beside the best interval.
    """
    interval_s = max(SHORTEST_INTERVAL_S, best_interval_s(checkpoint_s, mtbf_s))
    below = max(1, math.floor(work_s / interval_s))
    if (
        (work_s / (below + 1)) < SHORTEST_INTERVAL_S
        or math.isinf(interval_s)
        or _stretch(work_s / below + checkpoint_s, mtbf_s) * below
        <= _stretch(work_s / (below + 1) + checkpoint_s, mtbf_s) * (below + 1)
    ):
        return below
    return below + 1


def expected_time_s(
    work_s: float, interval_s: float, checkpoint_s: float, mtbf_s: float, restart_s: float
) -> float:
    """Expected seconds until `work_s` of work are done and saved, failures and restarts included.

    Args:
        work_s: seconds that the work takes if nothing fails.
        interval_s: seconds of work between checkpoints; the last stretch may be shorter. Infinite: one stretch.
        checkpoint_s: seconds that the job stands still for a checkpoint.
        mtbf_s: mean time between failures of the whole job; infinite for none.
        restart_s: seconds from a failure until work goes on.

    Raises:
        InputError: failures come so fast that a stretch would practically never end.
    """
    interval_s = min(interval_s, work_s)
    whole = math.floor(work_s / interval_s * (1 + 1e-12))
    rest_s = max(0.0, work_s - whole * interval_s)
    if rest_s <= 1e-9 * interval_s:
        rest_s = 0.0
    if math.isinf(mtbf_s):
        return work_s + (whole + (rest_s > 0)) * checkpoint_s
    if (interval_s + checkpoint_s + restart_s) / mtbf_s > _HOPELESS:
        raise InputError(
            f"training: the job fails every {mtbf_s:,.0f} s, but a stretch of work, its checkpoint and a restart take "
            f"{interval_s + checkpoint_s + restart_s:,.0f} s: it would not end; allowed are fewer accelerators, "
            "steadier nodes or faster checkpoints"
        )
    total = whole * _stretch(interval_s + checkpoint_s, mtbf_s)
    if rest_s:
        total += _stretch(rest_s + checkpoint_s, mtbf_s)
    return math.exp(restart_s / mtbf_s) * total


def _stretch(length_s: float, mtbf_s: float) -> float:
    """Expected seconds to get through `length_s` without a failure, restarts being free."""
    if math.isinf(mtbf_s):
        return length_s
    return math.inf if length_s / mtbf_s > 700 else mtbf_s * math.expm1(length_s / mtbf_s)


def poisson_quantile(mean: float, probability: float) -> int:
    """The smallest count that a Poisson variable of this mean stays at or below with `probability` in [0, 1).

    Raises:
        ValueError: a mean below 0, or no probability.
    """
    if not 0 <= probability < 1 or not 0 <= mean < math.inf:
        raise ValueError(f"mean {mean}, probability {probability}: allowed are a mean ≥ 0 and [0, 1)")
    if mean == 0:
        return 0
    if mean > _EXACT_MEAN:
        z = NormalDist().inv_cdf(min(max(probability, 1e-12), 1 - 1e-12))
        return max(0, round(mean + z * math.sqrt(mean) + (z * z - 1) / 6))
    spread = math.sqrt(mean)
    count = max(0, math.floor(mean - 12 * spread))  # below it lies less than 1e-30
    term = math.exp(count * math.log(mean) - mean - math.lgamma(count + 1))
    total, last = term, mean + 12 * spread + 40
    while total < probability and count < last:
        count += 1
        term *= mean / count
        total += term
    return count


def poisson_interval(mean: float, level: float = 0.95) -> tuple[int, int]:
    """(low, high) counts between which a Poisson variable of this mean falls with probability `level` or more."""
    tail = (1 - level) / 2
    return poisson_quantile(mean, tail), poisson_quantile(mean, 1 - tail)
