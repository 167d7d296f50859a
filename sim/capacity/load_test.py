"""From idle to overloaded: replays of the same requests at rising rates, closest together where a goal breaks.

Models a load test. First the fleet's limit, from a backlog that never empties; then rising rates below it; then,
around the rate at which the goal is missed first, more rates by bisection, each with enough requests that chance
moves the found rate by about one percent. Near saturation waiting times are correlated over hundreds of requests
(their relaxation grows with 1/(1 − load)²), so high rates get many requests, low ones few.

The first tenth of a replay is left out: it finds an empty fleet. So is what arrives after the last new session. More
load cannot mean less latency: what noise is left is taken out by isotonic regression, weighted by requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError
from engine.utils.message import Message
from engine.utils.progress import Progress
from sim.capacity.goals import Goal, GoalOutOfReachError, Judgement, judge
from sim.capacity.offered_load import BLOCK, OfferedLoad
from sim.serving.fleet_config import Fleet, Retries
from sim.serving.metrics import latencies
from sim.serving.replay import replay_fleet
from sim.serving.stats import ReplayStats

LOADS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.88, 0.95)  # of the saturation rate
LATENCIES = ("ttft_p50_s", "ttft_p95_s", "tpot_p50_s", "tpot_p95_s", "e2e_p95_s")
COLUMNS = ("rate_rps", "load", *LATENCIES, "busy_fraction", "output_tokens_per_s", "batch_mean")
WARM_UP = 0.1
_CROWDED = 0.75  # load above which chance decides with few requests
_STRIDE = 0.03  # from a first guess of the rate to the other side of the goal
_CLOSE = 0.008  # relative width at which the bisection ends
_SLOTS = 20  # a replay has so many requests for each place in the fleet's batches
_MOST = 200_000
_STEP, _MOST_STEPS = 1.12, 30  # raising the rate of sessions
_KEEPS_UP = 0.97  # of what goes in comes out


@dataclass(frozen=True)
class RatePoint:
    """One rate of a load test: what was measured, and how each part of the goal was kept."""

    requests: int
    seen: dict[str, float]
    judged: list[Judgement]

    @property
    def rate_rps(self) -> float:
        """Requests per second."""
        return self.seen["rate_rps"]

    @property
    def strain(self) -> float:
        """Strain of the worst part of the goal; up to 1 all parts are kept."""
        return max(each.strain for each in self.judged)


@dataclass(frozen=True)
class LoadTest:
    """All rate points in the order of their rates, and the fleet's saturation rate."""

    saturation_rps: float
    backlog: pd.DataFrame  # the requests
    points: list[RatePoint]

    def table(self) -> pd.DataFrame:
        """COLUMNS by rate; latencies never fall with it."""
        weights = self._weights()
        table = pd.DataFrame([point.seen for point in self.points])[list(COLUMNS)]
        for name in LATENCIES:
            table[name] = _rising(table[name].to_numpy(), weights)
        return table

    def strains(self) -> dict[str, list[float]]:
        """Strain of each part of the goal by rate; never falls."""
        weights = self._weights()
        labels = [each.label for each in self.points[0].judged]
        return {
            label: _rising(np.array([point.judged[i].strain for point in self.points]), weights).tolist()
            for i, label in enumerate(labels)
        }

    def noise(self) -> dict[str, float]:
        """Relative half width of the 95 % interval of each part's value, near where the goal breaks."""
        most = max(point.requests for point in self.points)
        near = sorted(
            (point for point in self.points if point.requests == most),
            key=lambda r: abs(math.log(max(r.strain, 1e-9))),
        )[:3]
        return {
            each.label: float(np.median([point.judged[i].relative_half_width for point in near]))
            for i, each in enumerate(near[0].judged)
        }

    def _weights(self) -> NDArray[np.float64]:
        return np.array([point.requests for point in self.points], dtype=np.float64)


def run_load_test(
    fleet: Fleet, load: OfferedLoad, goal: Goal, requests: int, few: int, seed: int, report: Progress
) -> LoadTest:
    """Replay a fleet from idle to its limit.

    Args:
        fleet: any.
        load: requests at any rate.
        goal: what it must keep.
        requests: of a replay that decides; more if the fleet's batches have more room.
        few: of a replay at low load, where latency hardly depends on chance.
        seed: of the requests.
        report: called with (fraction done, what is being done).

    Raises:
        GoalOutOfReachError: not even an almost idle fleet keeps the goal; says what it does reach.
    """
    quick = requests <= few and not load.rows  # who asks for few requests wants a quick answer
    slots = sum(_most(kind) * kind.scheduler.max_running_requests for kind in fleet.kinds)
    many = load.rows or _blocks(min(max(requests, _SLOTS * slots), max(_MOST, requests)))
    few = load.rows or min(many, _blocks(max(few, _SLOTS * slots // 6)))
    report(0.0, Message("simulating the fleet at its limit"))
    backlog = load.at(1.0, max(few, many // 2), seed)
    saturation_rps = _saturation(fleet, backlog)
    crowd = load.rows or max(few, many // 2)
    if "after" in backlog:
        few = crowd  # sessions take their time to fill the fleet
        saturation_rps = _highest_sustained(fleet, load, saturation_rps, crowd, seed)

    def measure(rate_rps: float, count: int) -> RatePoint:
        return _measure(fleet, load, goal, rate_rps, saturation_rps, count, seed)

    points = []
    loads = LOADS[::2] if quick else LOADS
    for number, share in enumerate(loads):
        report(0.05 + 0.55 * number / len(loads), Message("simulating at {share:.0%} load", share=share))
        points.append(measure(share * saturation_rps, crowd if share > _CROWDED else few))
        if points[0].strain > 1:
            raise GoalOutOfReachError(_out_of_reach(goal, points[0]))
    failing = next((number for number, point in enumerate(points) if point.strain > 1), None)
    if failing is not None:
        report(0.6, Message("finding the highest rate"))
        close = _STRIDE * 1.01 if quick else _CLOSE
        closer = _close_in(points, failing, close, lambda rate: measure(rate, many), report)
        first, last = closer[0].rate_rps, closer[-1].rate_rps
        others = [point for point in points if not first <= point.rate_rps <= last]
        points = sorted([*others, *closer], key=lambda point: point.rate_rps)
    return LoadTest(saturation_rps, backlog, points)


def _close_in(
    points: list[RatePoint],
    failing: int,
    close: float,
    measure: Callable[[float], RatePoint],
    report: Progress,
) -> list[RatePoint]:
    """Rate points around the rate at which the goal breaks, in order; the first keeps it, the last doesn't.

    (Unless the rates end before: then the last keeps it too.)
    """
    low, high = points[failing - 1], points[failing]
    # Where a line through the logarithms reaches 1.
    ends = [math.log(min(max(point.strain, 1e-6), 1e6)) for point in (low, high)]
    part = -ends[0] / (ends[1] - ends[0])
    rate = low.rate_rps * (high.rate_rps / low.rate_rps) ** part
    top, bottom = points[-1].rate_rps, points[0].rate_rps
    found = [measure(rate)]
    step = _STRIDE
    # The first rate points had fewer requests: they are a hint of where to look, not an end of the bracket.
    while found[-1].strain <= 1 and found[-1].rate_rps < top:
        found.append(measure(min(found[-1].rate_rps * (1 + step), top)))
        step *= 2
    step = _STRIDE
    while found[0].strain > 1 and found[0].rate_rps > bottom:
        found.insert(0, measure(max(found[0].rate_rps / (1 + step), bottom)))
        step *= 2
    report(0.85, Message("finding the highest rate"))
    while True:
        below = [number for number, point in enumerate(found) if point.strain <= 1]
        if not below or below[-1] == len(found) - 1:
            return found
        low, high = found[below[-1]], found[below[-1] + 1]
        if high.rate_rps / low.rate_rps - 1 < close:
            return found
        found.insert(below[-1] + 1, measure(math.sqrt(low.rate_rps * high.rate_rps)))


def _measure(
    fleet: Fleet, load: OfferedLoad, goal: Goal, rate_rps: float, saturation_rps: float, count: int, seed: int
) -> RatePoint:
    steady, frame, stats = replay_at(fleet, load, rate_rps, count, seed)
    times_s = latencies(steady)
    seen = {
        "rate_rps": rate_rps,
        "load": rate_rps / saturation_rps,
        **{name: _percentile(times_s, name) for name in LATENCIES},
        "busy_fraction": stats.busy_fraction,
        "output_tokens_per_s": rate_rps * float(frame["output_tokens"].mean()),
        "batch_mean": stats.batch_mean,
    }
    return RatePoint(len(frame), seen, judge(steady, goal))


def replay_at(
    fleet: Fleet, load: OfferedLoad, rate_rps: float, requests: int, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame, ReplayStats]:
    """One replay of a load at a rate, as a load test runs it.

    Returns:
        The steady part (see the module) in the order of arrival, all requests, and what the fleet counted.
    """
    asked = load.at(rate_rps, load.rows or _blocks(requests), seed)
    frame, stats = replay_fleet(asked, fleet)
    ordered = frame
    if not frame["arrived_s"].is_monotonic_increasing:
        ordered = frame.sort_values("arrived_s", kind="stable")
        ordered = ordered[ordered["arrived_s"] <= asked["arrived_s"].max()]
    return ordered[int(len(ordered) * WARM_UP) :], frame, stats


def _saturation(fleet: Fleet, requests: pd.DataFrame) -> float:
    """Requests per second that leave the largest fleet, without its limits, when all of them wait at the start."""
    kinds = tuple(
        kind.model_copy(update={"replicas": _most(kind), "autoscaler": None}) for kind in fleet.kinds
    )
    opened = fleet.model_copy(
        update={
            "kinds": kinds, "timeout_s": None, "max_outstanding": None, "retries": Retries(), "rate_limits": {},
        }
    )  # fmt: skip
    waiting = requests.assign(arrived_s=requests["arrived_s"].where(requests["arrived_s"].isna(), 0.0))
    frame, _ = replay_fleet(waiting, opened)
    return _middle_rate(frame)


def _highest_sustained(fleet: Fleet, load: OfferedLoad, start_rps: float, requests: int, seed: int) -> float:
    """The most requests per second that come out while as many go in, for loads in which requests wait for others.

    A backlog of sessions is worse than any load that the fleet sustains: all at once they push each other's prefixes
    out of the cache. So the rate is raised until what comes out falls behind.
    """
    best = rate_rps = start_rps
    for _ in range(_MOST_STEPS):
        _, frame, _ = replay_at(fleet, load, rate_rps, requests, seed)
        came_out = _middle_rate(frame)
        best = max(best, came_out)
        if came_out < _KEEPS_UP * rate_rps:
            break
        rate_rps *= _STEP
    return best


def _middle_rate(frame: pd.DataFrame) -> float:
    """Requests per second between the first and the last fifth of the finishes."""
    ordered = np.sort(frame["finished_s"].dropna().to_numpy())
    first, last = len(ordered) // 5, len(ordered) * 4 // 5
    passed_s = float(ordered[last] - ordered[first]) if last > first else 0.0
    if not passed_s > 0:
        raise InputError("the fleet takes no time to serve the requests: there is no highest rate")
    return float(last - first) / passed_s


def _out_of_reach(goal: Goal, idle: RatePoint) -> str:
    limits = [getattr(part, "limit_s", None) or 1 - getattr(part, "share", 0.0) for part in goal]
    asked = ", ".join(f"{each.label} {limit:g}" for each, limit in zip(idle.judged, limits, strict=True))
    reached = " and ".join(f"{each.value:.3g}" for each in idle.judged)
    return (
        f"latency objective {asked}: the best achievable, on an almost idle replica, is {reached}; "
        "allowed are objectives above that"
    )


def _most(kind: object) -> int:
    scaler = getattr(kind, "autoscaler", None)
    replicas = int(kind.replicas)  # type: ignore[attr-defined]
    return max(replicas, scaler.max_replicas) if scaler is not None else replicas


def _blocks(requests: int) -> int:
    """Whole blocks of requests, which are stratified by themselves; fewer than one are left as they are."""
    return requests if requests < BLOCK else -(-requests // BLOCK) * BLOCK


def _percentile(times_s: pd.DataFrame, name: str) -> float:
    """The percentile that a column is named after: ttft_p95_s is the 95th of ttft_s."""
    measure, percent, unit = name.split("_")
    return float(times_s[f"{measure}_{unit}"].quantile(int(percent[1:]) / 100))


def _rising(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values made to never fall (least squares, pool adjacent violators); NaN where nothing was measured."""
    from scipy.optimize import isotonic_regression  # slow to import, and a cached surface doesn't need it

    known = np.isfinite(values)
    if not known.any():
        return np.zeros(len(values))
    filled = np.interp(np.arange(len(values)), np.flatnonzero(known), values[known])
    return np.asarray(isotonic_regression(filled, weights=weights).x, dtype=np.float64)
