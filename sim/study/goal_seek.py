"""Goal seek: the price, load or cost at which an outcome reaches a value.

The outcome over common seeds is scanned between two bounds; wherever it passes the target between two neighbours,
`scipy.optimize.toms748` (Alefeld, Potra and Shi 1995) closes in, without derivatives. Nothing is assumed about
the curve: several crossings are all listed, a jump over the target (whole machines, whole months, a funding
round missed) is called a jump, and when the target is never reached the range of the outcome is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from engine.errors import InputError
from engine.utils.message import Message
from sim.scenario.conditions import Condition, Measure, parse_condition, require_outcomes
from sim.study.candidates import Candidates, common_points, first_error
from sim.study.estimates import estimate
from sim.study.levers import key_facts, spread
from sim.study.runs.options import DEFAULT_OPTIONS, RunOptions

if TYPE_CHECKING:
    from sim.scenario.scenario import Scenario

Curve = Callable[[Sequence[float]], Sequence[float]]
_STEPS = 30  # of closing in on one crossing at most; each asks for a run per seed
_MET = (
    0.02  # of the change between the two neighbours of the scan: nearer to the target is reached, else a jump
)


@dataclass(frozen=True)
class Crossing:
    """A value at which the outcome passes the target.

    `below` and `above` are the last values tried on both sides; for a jump (or a whole-numbered key) the outcome is
    never the target itself: it is `outcome_below` up to the one and `outcome_above` from the other.
    """

    value: float
    kind: Literal["reached", "jump"]
    below: float
    above: float
    outcome_below: float
    outcome_above: float


@dataclass(frozen=True)
class GoalSeek:
    """The result of `goal_seek`.

    `crossings`: value, kind, below, above, outcome_below, outcome_above, outcome (at `value`), and the 95 % interval
    of the value over seeds, low and high (NaN where the scan doesn't bound it). `scan`: one row per value tried, in
    order: value, outcome, outcome_low, outcome_high (95 % interval of the outcome), error (of a failed run, else "").
    """

    key: str
    unit: str
    condition: str
    target: float
    seeds: int
    crossings: pd.DataFrame
    scan: pd.DataFrame
    outcome_least: float  # of the scan: where no crossing is found, the target lies outside
    outcome_most: float
    runs: int

    @property
    def value(self) -> float | None:
        """The first crossing's value, None when there is none."""
        return float(self.crossings["value"].iloc[0]) if len(self.crossings) else None


def find_crossings(
    curve: Curve, target: float, values: Sequence[float], *, whole: bool = False, tolerance: float = 1e-6
) -> list[Crossing]:
    """Every place between the values scanned at which a curve passes a target.

    Args:
        curve: the outcome at some values; NaN where it is undefined (no crossing is searched next to it).
        target: value of the outcome to reach.
        values: arguments of the first scan, increasing.
        whole: only whole values make sense.
        tolerance: of a crossing, relative to the distance between the first and last value.
    """
    known = dict(zip(values, (float(outcome) for outcome in curve(values)), strict=True))

    def off(value: float) -> float:
        if value not in known:
            known[value] = float(curve([value])[0])
        return known[value] - target

    found = []
    # The value itself on the target is a crossing whose two sides are one.
    found += [
        Crossing(value, "reached", value, value, known[value], known[value])
        for value in values
        if off(value) == 0
    ]
    for left, right in pairwise(values):
        if off(left) * off(right) < 0:  # False for NaN
            width = abs(known[right] - known[left])
            step = 1.0 if whole else tolerance * (values[-1] - values[0])
            found.append(_close_in(off, left, right, target, width, whole=whole, step=step))
    return sorted(found, key=lambda crossing: crossing.value)


def goal_seek(
    scenario: Scenario,
    key: str,
    until: Condition | str,
    low: float,
    high: float,
    *,
    seeds: int = 8,
    points: int = 13,
    log: bool = False,
    tolerance: float = 1e-3,
    options: RunOptions = DEFAULT_OPTIONS,
) -> GoalSeek:
    """The values of an assumption at which an outcome, over common seeds and draws, reaches a number.

    Args:
        scenario: the company.
        key: the assumption to change, a dotted key.
        until: such as "gross_margin_last12 = 0.7" or "p(ruined) <= 5%"; a plain outcome means its mean.
        low: least value to try.
        high: greatest value to try.
        seeds: runs per value, the same for all.
        points: values in the first scan.
        log: scan by equal factors.
        tolerance: accuracy of the value, relative to high − low.
        options: of the runs.

    Raises:
        InputError: an unknown key, outcome or bound, or no value at which the company can be run.
    """
    condition = parse_condition(until) if isinstance(until, str) else until
    require_outcomes([condition.measure])
    facts = key_facts(scenario, key)
    if not (facts.low <= low < high <= facts.high) or (log and low <= 0):
        allowed = f"{facts.low:g} to {facts.high:g}" + (", above 0 on a logarithmic scale" if log else "")
        raise InputError(f"{key}: found {low:g}..{high:g}, allowed: a low and a higher number, {allowed}")
    if points < 2:
        raise InputError(f"points: found {points}, allowed: 2 or more")
    tried: dict[float, pd.DataFrame] = {}
    scanned = spread(low, high, points, log=log, whole=facts.whole)

    def curve(values: Sequence[float]) -> list[float]:
        first = not tried
        frames = candidates.runs(
            [{key: round(value) if facts.whole else value} for value in values],
            span=(0.0, 0.5) if first else (0.5, 0.95),
            doing=Message("scan") if first else Message("closing in"),
        )
        tried.update(zip(values, frames, strict=True))
        return [_outcome(condition.measure, frame) for frame in frames]

    with Candidates(scenario, common_points(scenario, seeds, drawn=True), options) as candidates:
        found = find_crossings(curve, condition.value, scanned, whole=facts.whole, tolerance=tolerance)
    errors = {value: first_error(frame) for value, frame in tried.items()}
    if all(errors[value] for value in scanned):
        raise InputError(f"{key}: no run at any value from {low:g} to {high:g}: {errors[scanned[0]]}")
    if options.progress is not None:
        options.progress(1.0, Message("done"))
    scan = _scan_table(condition.measure, tried, errors)
    outcomes = scan["outcome"].dropna()
    return GoalSeek(
        key=key,
        unit=facts.unit,
        condition=str(condition),
        target=condition.value,
        seeds=seeds,
        crossings=_crossing_table([_that_holds(one, condition) for one in found], condition.value, scan),
        scan=scan,
        outcome_least=float(outcomes.min()) if len(outcomes) else math.nan,
        outcome_most=float(outcomes.max()) if len(outcomes) else math.nan,
        runs=sum(len(frame) for frame in tried.values()),
    )


def _close_in(
    off: Callable[[float], float],
    left: float,
    right: float,
    target: float,
    width: float,
    *,
    whole: bool,
    step: float,
) -> Crossing:
    """Narrow a bracket to `step`; the target always lies between the outcomes at its ends."""
    from scipy.optimize import toms748

    sides = {left: off(left), right: off(right)}

    def evaluated(value: float) -> float:
        value = float(value)
        found = off(value)
        if math.isnan(found):
            raise _Undefined
        sides[value] = found
        return found

    try:
        if whole:
            while right - left > 1:
                middle = float((left + right) // 2)
                left, right = (middle, right) if evaluated(middle) * sides[right] < 0 else (left, middle)
        else:
            toms748(evaluated, left, right, xtol=step, rtol=1e-12, maxiter=_STEPS, disp=False)
    except _Undefined:
        pass  # undefined inside the bracket: the narrowest one so far is the result
    below, above = _tightest(sides)
    nearest = min((below, above), key=lambda value: abs(sides[value]))
    reached = sides[nearest] == 0 if whole else abs(sides[nearest]) <= _MET * width
    return Crossing(
        nearest, "reached" if reached else "jump", below, above, sides[below] + target, sides[above] + target
    )


class _Undefined(Exception):
    """The outcome is undefined at a value that was evaluated."""


def _tightest(sides: dict[float, float]) -> tuple[float, float]:
    """The closest pair of neighbours, among all values tried, with the target between them."""
    ordered = sorted(sides)
    pairs = [(a, b) for a, b in pairwise(ordered) if sides[a] * sides[b] <= 0]
    return min(pairs, key=lambda pair: pair[1] - pair[0])


def _that_holds(crossing: Crossing, condition: Condition) -> Crossing:
    """The crossing with the side on which an inequality holds; for an equation, unchanged."""
    if condition.relation == "=":
        return crossing
    holds = condition.compared(np.array([crossing.outcome_below, crossing.outcome_above]))
    if holds[0] == holds[1]:
        return crossing
    return replace(crossing, value=crossing.below if holds[0] else crossing.above)


def _outcome(measure: Measure, frame: pd.DataFrame) -> float:
    return math.nan if first_error(frame) else measure.of(frame)


def _scan_table(measure: Measure, tried: dict[float, pd.DataFrame], errors: dict[float, str]) -> pd.DataFrame:
    rows = []
    for value in sorted(tried):
        row: dict[str, float | str] = {"value": value, "error": errors[value]}
        if not errors[value]:
            found = estimate(measure, tried[value])
            row |= {"outcome": found.value, "outcome_low": found.low, "outcome_high": found.high}
        rows.append(row)
    columns = ["value", "outcome", "outcome_low", "outcome_high", "error"]
    return pd.DataFrame(rows).reindex(columns=columns)


def _crossing_table(found: list[Crossing], target: float, scan: pd.DataFrame) -> pd.DataFrame:
    columns = ["value", "kind", "below", "above", "outcome_below", "outcome_above", "outcome", "low", "high"]
    rows = []
    for crossing in found:
        low, high = _interval(crossing.value, target, scan)
        outcome = float(scan.loc[scan["value"] == crossing.value, "outcome"].iloc[0])
        rows.append({**crossing.__dict__, "outcome": outcome, "low": low, "high": high})
    return pd.DataFrame(rows, columns=columns)


def _interval(value: float, target: float, scan: pd.DataFrame) -> tuple[float, float]:
    """95 % interval of a crossing: the values around it whose outcome has the target within its own interval.

    The edge is interpolated linearly between values tried; NaN on a side where no value tried lies outside.
    """
    good = scan.dropna(subset=["outcome_low", "outcome_high"])
    below = good[good["value"] <= value].iloc[::-1]
    above = good[good["value"] >= value]
    return _edge(below, target), _edge(above, target)


def _edge(outward: pd.DataFrame, target: float) -> float:
    """The value, going outward from a crossing, at which the outcome's interval no longer holds the target."""
    inner: tuple[float, float, float] | None = (
        None  # value, and how far the ends of the interval lie from the target
    )
    for value, low, high in outward[["value", "outcome_low", "outcome_high"]].itertuples(index=False):
        ends = (low - target, high - target)
        if ends[0] > 0 or ends[1] < 0:
            if inner is None:
                return float(value)  # the interval has no width, or the crossing is a jump
            side = 0 if ends[0] > 0 else 1  # which end has passed the target
            passed = inner[1 + side] / (inner[1 + side] - ends[side])
            return float(inner[0] + (value - inner[0]) * passed)
        inner = (value, *ends)
    return math.nan
