"""What people ask of many runs, in one line: "cash_usd_min >= 0", "p(ruined) <= 5%", "max p10(cash_usd_end)".

A measure is an outcome of a run, or a statistic of it over the runs:

    NAME                 the outcome of each run (as a goal: its mean)
    mean(NAME)  min(NAME)  max(NAME)  p10(NAME)     mean, extremes, 10th percentile over the runs
    p(NAME)              share of runs in which a yes-or-no outcome is yes
    p(NAME >= NUMBER)    share of runs in which a condition holds

A condition compares a measure with a number (1e6, 5%, 300k, 2.5M); on the plain name it must hold in every run.
An outcome that never came (`…_month_index` is NaN) counts as later than any month; any other NaN meets no condition.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError
from sim.scenario.metrics import OUTCOMES

if TYPE_CHECKING:
    import pandas as pd

OUTCOME_PREFIX = "out."  # of the columns of a frame of runs (`sim.study.runs.run_points`)
Statistic = Literal["each", "mean", "min", "max", "percentile", "probability"]
Relation = Literal["<=", ">=", "<", ">", "="]
_NAME = r"[A-Za-z_][A-Za-z0-9_.]*"
_RELATION = re.compile(r"(<=|>=|==|=|<|>)")
_CALL = re.compile(r"(?P<call>[a-z][a-z0-9.]*)\s*\(\s*(?P<inner>.*?)\s*\)$")
_STEPS = {"": 1.0, "%": 0.01, "k": 1e3, "M": 1e6, "B": 1e9}
_HELP = "allowed: for example cash_usd_min >= 0, p(ruined) <= 5%, p10(cash_usd_end) >= 1M"


@dataclass(frozen=True)
class Measure:
    """One number of many runs; `level` is the percentile, `inside` the condition that a share of runs meets."""

    outcome: str
    statistic: Statistic = "each"
    level: float = math.nan
    inside: Condition | None = None

    def of(self, runs: pd.DataFrame) -> float:
        """Value of the measure over runs (one row each); NaN when the outcome is undefined in one of them.

        Raises:
            InputError: an outcome that the runs don't have.
        """
        values = self.each(runs)
        if not len(values):
            return math.nan
        if self.statistic == "min":
            return float(values.min())
        if self.statistic == "max":
            return float(values.max())
        if self.statistic == "percentile":
            return float(np.percentile(values, self.level))
        return float(values.mean())

    def each(self, runs: pd.DataFrame) -> NDArray[np.float64]:
        """Values that the statistic is taken of: the outcome of each run, or 0 and 1 for a probability [runs].

        Raises:
            InputError: as `of`.
        """
        if self.inside is not None:
            return self.inside.holds_in(runs).astype(np.float64)
        column = OUTCOME_PREFIX + self.outcome
        if column not in runs:
            known = [
                name.removeprefix(OUTCOME_PREFIX)
                for name in map(str, runs)
                if name.startswith(OUTCOME_PREFIX)
            ]
            raise InputError(_unknown(self.outcome, known))
        values = runs[column].to_numpy(dtype=np.float64, copy=True)
        if self.outcome.endswith("_month_index"):
            values[np.isnan(values)] = math.inf
        return values

    def __str__(self) -> str:
        if self.statistic == "each":
            return self.outcome
        if self.statistic == "percentile":
            return f"p{self.level:g}({self.outcome})"
        if self.statistic == "probability":
            return f"p({self.inside or self.outcome})"
        return f"{self.statistic}({self.outcome})"


@dataclass(frozen=True)
class Condition:
    """A measure compared with a number."""

    measure: Measure
    relation: Relation
    value: float

    def holds_in(self, runs: pd.DataFrame) -> NDArray[np.bool_]:
        """Whether the condition holds in each run [runs]; for conditions on a plain outcome."""
        return self.compared(self.measure.each(runs))

    def holds(self, runs: pd.DataFrame) -> bool:
        """Whether the condition holds over the runs: in every one for a plain outcome, else for the statistic."""
        if self.measure.statistic == "each":
            return bool(self.holds_in(runs).all()) and len(runs) > 0
        return bool(self.compared(np.array([self.measure.of(runs)]))[0])

    def violation(self, runs: pd.DataFrame) -> float:
        """Distance of the worst run (or the statistic) from the condition, in the outcome's unit; 0 when it holds."""
        if self.holds(runs):
            return 0.0
        plain = self.measure.statistic == "each"
        values = self.measure.each(runs) if plain else np.array([self.measure.of(runs)])
        if not len(values) or np.isnan(values).any():
            return math.inf
        with np.errstate(invalid="ignore"):
            beyond = values - self.value
        size = {"<": beyond, "<=": beyond, ">": -beyond, ">=": -beyond, "=": np.abs(beyond)}[self.relation]
        # A strict relation met with equality fails by less than any number; the least positive one stands for it.
        return max(float(np.max(size)), np.finfo(np.float64).tiny)

    def compared(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether each value is in the relation to the target."""
        compare = {
            "<=": np.less_equal,
            ">=": np.greater_equal,
            "<": np.less,
            ">": np.greater,
            "=": np.equal,
        }[self.relation]
        return np.asarray(compare(values, self.value))

    def __str__(self) -> str:
        return f"{self.measure} {self.relation} {self.value:.12g}"


@dataclass(frozen=True)
class Goal:
    """A measure to make large ("max") or small ("min")."""

    direction: Literal["max", "min"]
    measure: Measure

    def __str__(self) -> str:
        return f"{self.direction} {self.measure}"


def parse_condition(text: str) -> Condition:
    """Read a condition such as "cash_usd_min >= 0" or "p(ruined) <= 0.05".

    Raises:
        InputError: not of that form.
    """
    depth, split = 0, None
    for found in re.finditer(r"[()]|<=|>=|==|=|<|>", text):
        depth += {"(": 1, ")": -1}.get(found.group(), 0)
        if depth == 0 and _RELATION.fullmatch(found.group()):
            if split is not None:
                raise InputError(f"condition {text!r}: found two relations, {_HELP}")
            split = found
    if split is None:
        raise InputError(f"condition {text!r}: found no relation, {_HELP}")
    relation = "=" if split.group() == "==" else split.group()
    measure = parse_measure(text[: split.start()])
    return Condition(measure, relation, _number(text[split.end() :], text))  # type: ignore[arg-type]


def parse_measure(text: str) -> Measure:
    """Read a measure such as "cash_usd_end", "p10(cash_usd_end)" or "p(cash_usd_min >= 0)".

    Raises:
        InputError: not of that form.
    """
    words = text.strip()
    if re.fullmatch(_NAME, words):
        return Measure(words)
    call = _CALL.fullmatch(words)
    if call is None:
        raise InputError(f"measure {words!r}: found neither an outcome nor a statistic of one, {_HELP}")
    name, inner = call["call"], call["inner"]
    if name == "p" and _RELATION.search(inner):
        inside = parse_condition(inner)
        if inside.measure.statistic != "each":
            raise InputError(f"measure {words!r}: found a statistic inside p(…), allowed: an outcome")
        return Measure(inside.measure.outcome, "probability", inside=inside)
    if not re.fullmatch(_NAME, inner):
        raise InputError(f"measure {words!r}: found {inner!r}, allowed: the name of an outcome")
    if name == "p":
        return Measure(inner, "probability")
    if name in ("mean", "min", "max"):
        return Measure(inner, name)  # type: ignore[arg-type]
    percentile = re.fullmatch(r"p(\d+(?:\.\d+)?)", name)
    if percentile is None or not 0 <= float(percentile[1]) <= 100:
        raise InputError(f"measure {words!r}: found {name!r}, allowed: mean, min, max, p, p0 … p100")
    return Measure(inner, "percentile", float(percentile[1]))


def parse_goal(text: str) -> Goal:
    """Read a goal such as "max cash_usd_end" or "min p(ruined)".

    Raises:
        InputError: not of that form.
    """
    direction, _, measure = text.strip().partition(" ")
    if direction not in ("max", "min") or not measure.strip():
        raise InputError(f"goal {text!r}: allowed: max or min and a measure, for example max cash_usd_end")
    return Goal(direction, parse_measure(measure))  # type: ignore[arg-type]


def require_outcomes(measures: Iterable[Measure]) -> None:
    """Refuse a measure of an outcome that no run has, before any run is made.

    Raises:
        InputError: names the nearest outcome.
    """
    for measure in measures:
        if measure.outcome not in OUTCOMES:
            raise InputError(_unknown(measure.outcome, list(OUTCOMES)))


def _unknown(outcome: str, known: list[str]) -> str:
    near = difflib.get_close_matches(outcome, known, n=1, cutoff=0.0)
    return f"outcome {outcome}: unknown" + (f", nearest is {near[0]}" if near else "")


def _number(text: str, whole: str) -> float:
    found = re.fullmatch(r"\$?([-+]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*([%kMB]?)", text.strip())
    if found is None:
        raise InputError(f"condition {whole!r}: found {text.strip()!r} for the number, {_HELP}")
    return float(re.sub("[_,]", "", found[1])) * _STEPS[found[2]]
