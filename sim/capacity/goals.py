"""What a fleet must keep to count as good enough: limits on latency, for all requests or for a class of them.

Models what is promised to customers. Two forms are in use: a limit on a statistic ("the 95th percentile of the time
to first token is at most 2 s"), and a share of requests that meet every limit at once (goodput; Zhong et al. 2024,
DistServe, ask for 90 %). Either is judged by its strain, what was found over what is allowed: up to 1 it is kept.
A request that was refused, given up or lost never ends, so it counts as infinitely late.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from engine.errors import InputError
from sim.i18n import numbers
from sim.serving.batch_means import batch_means
from sim.serving.metrics import finished, latencies, meets
from sim.workload.traffic_classes import TrafficClass

BATCHES = 18  # of the requests after the warm-up
_NEVER_S = 1e15  # percentiles interpolate, and can't do so between infinities
_NOISIEST = 0.9  # relative half width of an interval

Measure = Literal["ttft", "tpot", "e2e", "queue"]


class GoalOutOfReachError(InputError):
    """Not even an almost idle replica keeps the goal."""


@dataclass(frozen=True)
class Objective:
    """Latency that customers are promised: 95th percentiles of the time to first token and per output token."""

    ttft_p95_s: float
    tpot_p95_s: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < math.inf:
                raise InputError(f"objective.{name}: found {value}, allowed is a time above 0 s")


@dataclass(frozen=True)
class Limit:
    """A limit on one statistic of one latency: "mean", or a percentile by its number (95).

    Raises:
        InputError: an unknown latency or statistic, or a limit that is no time above 0.
    """

    measure: Measure
    statistic: float | Literal["mean"]
    limit_s: float
    traffic_class: str | None = None  # None: of all requests

    def __post_init__(self) -> None:
        if self.measure not in get_args(Measure):
            raise InputError(f"limit: found {self.measure!r}, allowed are {', '.join(get_args(Measure))}")
        if self.statistic != "mean" and not (
            isinstance(self.statistic, (int, float)) and 0 < self.statistic < 100
        ):
            raise InputError(
                f"limit on {self.measure}: statistic: found {self.statistic!r}, allowed is mean, or a percentile "
                "between 0 and 100"
            )
        if not 0 < self.limit_s < math.inf:
            raise InputError(f"limit on {self.label}: found {self.limit_s}, allowed is a time above 0 s")

    @property
    def label(self) -> str:
        """Name of the limit, such as ttft_p95_s."""
        statistic = self.statistic if isinstance(self.statistic, str) else f"p{self.statistic:g}"
        return f"{self.traffic_class + ' ' if self.traffic_class else ''}{self.measure}_{statistic}_s"


@dataclass(frozen=True)
class MetShare:
    """At least this share of all requests meets every limit of its objective (of its class, if there are several).

    Raises:
        InputError: a share outside (0, 1).
    """

    share: float
    objectives: Objective | dict[str, Objective]

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(
                f"share of requests that meet the objective: found {self.share}, allowed is 0 to 1"
            )

    @property
    def label(self) -> str:
        """Name of the share."""
        return "missed share"


Goal = Sequence[Limit | MetShare]


@dataclass(frozen=True)
class Judgement:
    """Result of a replay on one part of the goal."""

    label: str
    value: float  # seconds, or the share that missed
    strain: float  # value / what is allowed
    relative_half_width: float  # of the 95 % interval of the value; 0 where it is not known


def goal_of(
    objective: Objective | Mapping[str, Objective | TrafficClass], statistic: float | Literal["mean"] = 95
) -> tuple[Limit, ...]:
    """Limits on TTFT and TPOT from an objective, or from one for each traffic class; a class may have none.

    Raises:
        InputError: no class has any.
    """
    each = objective.items() if isinstance(objective, Mapping) else [(None, objective)]
    measures: tuple[Measure, ...] = ("ttft", "tpot")
    limits = tuple(
        Limit(measure, statistic, limit_s, name)
        for name, one in each
        for measure in measures
        if (limit_s := getattr(one, f"{measure}_p95_s")) is not None
    )
    if not limits:
        raise InputError(
            "objectives: found none, allowed is ttft_p95_s or tpot_p95_s of at least one traffic class"
        )
    return limits


def describe_goal(goal: Goal) -> str:
    """The goal in a line: TTFT p95 ≤ 2 s, TPOT p95 ≤ 100 ms."""
    words = []
    for part in goal:
        if isinstance(part, MetShare):
            words.append(f"{part.share:.1%} of requests meet their objective")
            continue
        statistic = part.statistic if isinstance(part.statistic, str) else f"p{part.statistic:g}"
        whose = f"{part.traffic_class}: " if part.traffic_class else ""
        words.append(f"{whose}{part.measure.upper()} {statistic} ≤ {numbers.seconds(part.limit_s)}")
    return ", ".join(words)


def goal_content(goal: Goal) -> list[dict[str, Any]]:
    """The goal as JSON values, for cache keys."""
    return [{"kind": type(part).__name__, **asdict(part)} for part in goal]


def check_goal(goal: Goal, requests: pd.DataFrame) -> None:
    """Refuse a goal for classes that the requests don't have.

    Raises:
        InputError: that, or no limit at all.
    """
    if not goal:
        raise InputError("objectives: found none, allowed is at least one limit")
    names = set(requests["traffic_class"]) if "traffic_class" in requests else set()
    for part in goal:
        if isinstance(part, MetShare):
            if isinstance(part.objectives, dict) and (missing := sorted(names - set(part.objectives))):
                raise InputError(
                    f"traffic class {missing[0]!r}: found no objective of it, allowed is one for each"
                )
        elif part.traffic_class is not None and part.traffic_class not in names:
            there = ", ".join(sorted(map(str, names))) or "no classes"
            raise InputError(f"limit on {part.label}: found no requests of this class, there are {there}")


def judge(frame: pd.DataFrame, goal: Goal) -> list[Judgement]:
    """How far the requests of a replay, in the order of arrival, keep each part of a goal.

    Args:
        frame: of `sim.serving.replay.replay_fleet`, the warm-up already left out.
        goal: its parts.
    """
    times = latencies(frame)
    done = finished(frame)
    result = []
    for part in goal:
        if isinstance(part, MetShare):
            missed = 1.0 - meets(frame, part.objectives)["objective_met"].to_numpy(dtype=np.float64)
            result.append(_judgement(part.label, missed, "mean", 1 - part.share))
            continue
        values = times[f"{part.measure}_s"].to_numpy().copy()
        values[~done] = _NEVER_S
        chosen = ~np.isnan(values)
        if part.traffic_class is not None:
            chosen &= (frame["traffic_class"] == part.traffic_class).to_numpy()
        result.append(_judgement(part.label, values[chosen], part.statistic, part.limit_s))
    return result


def _judgement(label: str, values: np.ndarray[Any, Any], statistic: float | str, allowed: float) -> Judgement:
    if not len(values):
        return Judgement(label, 0.0, 0.0, 0.0)
    percentiles = () if isinstance(statistic, str) else (statistic,)
    found = batch_means(values, percentiles, warm_up=0.0, batches=BATCHES)[-1]
    relative = found.half_width / found.value if found.value > 0 else 0.0
    known = min(relative, _NOISIEST) if math.isfinite(relative) else 0.0
    return Judgement(label, found.value, found.value / allowed, known)
