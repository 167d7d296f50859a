"""Monte Carlo: the distribution of a company's outcomes over its uncertain assumptions and over random events.

Each run draws every uncertain assumption (`sim.study.sampling`) and has its own seed. Outcomes are summarised by
percentiles with intervals by order statistics, means with Student's t, probabilities with Wilson's score interval
(`sim.study.estimates`), all at 95 %. They take the runs as independent; under a Latin hypercube they are
conservative (Owen 1997).

Sequential stopping: the runs are evaluated after each batch of 256, every batch an independent design, and the study
ends at the first evaluation at which every requested interval is narrow enough. Such a rule keeps the coverage of the
intervals as the requested width shrinks, when the variance is estimated consistently and the first evaluation comes
late enough (Chow and Robbins 1965; for simulations Glynn and Whitt 1992); `tests/sim/study/test_monte_carlo.py` checks
it on a skewed outcome.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError
from sim.scenario.conditions import Condition, Measure, parse_condition, parse_measure, require_outcomes
from sim.scenario.metrics import OUTCOMES
from sim.study.estimates import estimate, half_width, wilson
from sim.study.runs.options import DEFAULT_OPTIONS, RunOptions
from sim.study.runs.run_points import Point, run_points
from sim.study.sampling import Sampling, draw

if TYPE_CHECKING:
    from sim.company.simulate import Result
    from sim.scenario.scenario import Scenario

PERCENTILES = (5, 10, 25, 50, 75, 90, 95)
FAN_COLUMNS = ("revenue_usd", "cash_usd", "gross_margin", "customers")
BATCH = 256  # runs between two evaluations; a power of two, for Sobol' sequences
_PRECISION = re.compile(r"(?P<measure>.+?)\s*(?:±|\+/?-)\s*(?P<width>[0-9.eE+]+)\s*(?P<percent>%?)")


@dataclass(frozen=True)
class Precision:
    """Requested width of a 95 % interval: `half_width` in the measure's unit, or relative to its value."""

    measure: Measure
    half_width: float
    relative: bool

    def met(self, runs: pd.DataFrame) -> bool:
        """Whether the interval over these runs is narrow enough."""
        found = estimate(self.measure, runs)
        allowed = self.half_width * abs(found.value) if self.relative else self.half_width
        return bool((found.high - found.low) / 2 <= allowed)

    def __str__(self) -> str:
        width = f"{100 * self.half_width:g}%" if self.relative else f"{self.half_width:g}"
        return f"{self.measure} ± {width}"


@dataclass(frozen=True)
class MonteCarlo:
    """The result of `monte_carlo`. Shares are fractions, amounts have the unit in the outcome's name.

    `runs`: as `run_points` gives them. `outcomes`: one row each: outcome, runs (in which it is defined), mean,
    mean_low, mean_high, sd, p5 … p95, p50_low, p50_high; a month that was never reached counts as infinite. `fans`:
    by monthly column, one row per month: month_index, month, mean, p5 … p95. `ruin`: month_index, month,
    probability (cash below zero at the end of this month or of one before), low, high. `targets`: target,
    probability, low, high. `precision`: asked, value, low, high, met. `failed`: number of runs that failed; they
    are left out of everything else.
    """

    scenario: str
    scenario_hash: str
    uncertain: dict[str, str]
    sampling: Sampling
    seed: int
    runs: pd.DataFrame
    outcomes: pd.DataFrame
    fans: dict[str, pd.DataFrame]
    ruin: pd.DataFrame
    targets: pd.DataFrame
    precision: pd.DataFrame
    failed: int

    def summary(self) -> dict[str, Any]:
        """All fields except the single runs, for `sim.utils.serialise.json_ready`."""
        return {
            **{name: value for name, value in vars(self).items() if name != "runs"},
            "runs": len(self.runs),
        }


def monte_carlo(
    scenario: Scenario,
    *,
    runs: int = 1000,
    sampling: Sampling = "lhs",
    seed: int = 0,
    until: Sequence[str] = (),
    targets: Sequence[str] = (),
    fans: Sequence[str] = FAN_COLUMNS,
    vary_world: bool = True,
    keys: Iterable[str] = (),
    options: RunOptions = DEFAULT_OPTIONS,
) -> MonteCarlo:
    """Run a company many times over its uncertain assumptions.

    Args:
        scenario: the company, with distributions, correlations and targets.
        runs: number of runs, the maximum where `until` is given; "sobol" rounds it up to a power of two.
        sampling: "lhs", "sobol" or "random".
        seed: of the study; run i of every scenario has the same seed and shares of its draws.
        until: precisions at which to stop, such as "cash_usd_end ± 5%" (relative, of the mean),
            "p10(cash_usd_end) ± 20000" or "p(ruined) ± 1%" (of a probability in percentage points).
        targets: conditions on an outcome, such as "gross_margin_last12 >= 60%", besides the scenario's own.
        fans: columns of `Result.monthly` to give percentiles of by month.
        vary_world: false gives every run the scenario's own seed.
        keys: as of `sim.study.sampling.draw`.
        options: of the runs.

    Raises:
        InputError: a malformed condition or precision, no run that succeeds, or as `run_points`.
    """
    precisions = [parse_precision(text) for text in until]
    conditions = _targets(scenario, targets)
    keys = sorted(set(keys))
    design: dict[str, Any] = {"sampling": sampling, "seed": seed, "keys": keys, "vary_world": vary_world}
    if precisions:
        points: list[Point] = []
        for batch in range(math.ceil(runs / BATCH)):
            points += draw(scenario, BATCH, batch=batch, **design)
    else:
        points = draw(scenario, runs, **design)
    found = run_points(
        scenario,
        points,
        options,
        monthly=fans,
        stop=_stopping_rule(precisions) if precisions else None,
        stop_every=BATCH,
        about={**design, "until": [str(precision) for precision in precisions]},
    )
    good = found[found["error"] == ""]
    if not len(good):
        raise InputError(f"none of {len(found):,} runs could be made: {found['error'].iloc[0]}")
    return MonteCarlo(
        scenario=scenario.name,
        scenario_hash=scenario.content_hash,
        uncertain={key: str(distribution) for key, distribution in scenario.uncertain.items()},
        sampling=sampling,
        seed=seed,
        runs=found,
        outcomes=outcome_table(good),
        fans={name: fan(good, name, scenario.start_month) for name in dict.fromkeys(fans)},
        ruin=ruin_by_month(good, scenario.start_month, scenario.horizon_months),
        targets=_target_table(good, conditions),
        precision=_precision_table(good, precisions),
        failed=len(found) - len(good),
    )


def around(
    result: Result, runs: int, *, fans: Sequence[str] = FAN_COLUMNS, options: RunOptions = DEFAULT_OPTIONS
) -> MonteCarlo:
    """The study of a run's company with the run's seed and profile, as `flywheel run --runs` makes it."""
    options = replace(options, profile=result.profile)
    return monte_carlo(result.scenario, runs=runs, seed=result.seed, fans=fans, options=options)


def parse_precision(text: str) -> Precision:
    """Parse a precision such as "cash_usd_end ± 5%"; "+-" and "+/-" may stand for ±. A bare outcome means its mean.

    Raises:
        InputError: another form, or an unknown outcome.
    """
    found = _PRECISION.fullmatch(text.strip())
    try:
        width = float(found["width"]) if found else math.nan
    except ValueError:
        width = math.nan
    if found is None or not width > 0:
        raise InputError(
            f"until: found {text!r}, allowed: for example 'cash_usd_end ± 5%', 'p(ruined) ± 1%' or "
            "'p10(cash_usd_end) ± 20000'"
        )
    measure = parse_measure(found["measure"])
    require_outcomes([measure])
    if measure.statistic == "each":
        yes_or_no = measure.outcome == "ruined"
        measure = Measure(measure.outcome, "probability" if yes_or_no else "mean")
    if measure.statistic in ("min", "max"):
        raise InputError(f"until: found {measure}, allowed: a mean, a percentile or a probability")
    percent = bool(found["percent"])
    return Precision(
        measure, width / 100 if percent else width, percent and measure.statistic != "probability"
    )


def outcome_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean, spread and percentiles of every outcome, with intervals (see `MonteCarlo.outcomes`)."""
    rows = []
    for name in OUTCOMES:
        measure = Measure(name, "percentile", 50.0)
        defined = runs[~np.isnan(measure.each(runs))]
        values = measure.each(defined)
        row: dict[str, Any] = {"outcome": name, "runs": len(values)}
        bounded = len(values) > 0 and bool(np.isfinite(values).all())
        mean = float(values.mean()) if bounded else math.nan
        half = half_width(values) if bounded else math.nan
        row |= {"mean": mean, "mean_low": mean - half, "mean_high": mean + half}
        row["sd"] = float(values.std(ddof=1)) if bounded and len(values) > 1 else math.nan
        row |= _percentiles(values)
        middle = estimate(measure, defined) if bounded else None
        row |= {"p50_low": middle.low, "p50_high": middle.high} if middle else {}
        rows.append(row)
    return pd.DataFrame(rows)


def fan(runs: pd.DataFrame, column: str, start_month: str) -> pd.DataFrame:
    """Mean and percentiles by month of a monthly column (see `MonteCarlo.fans`); shorter runs count up to their end."""
    from sim.company.monthly_table import month_labels

    series = runs[f"month.{column}"]
    months = max(len(values) for values in series)
    table = np.full((len(series), months), math.nan)
    for row, values in zip(table, series, strict=True):
        row[: len(values)] = values
    rows = []
    for month, label in enumerate(month_labels(start_month, months)):
        values = table[:, month]
        values = values[~np.isnan(values)]
        mean = float(values.mean()) if len(values) else math.nan
        rows.append({"month_index": month, "month": label, "mean": mean, **_percentiles(values)})
    return pd.DataFrame(rows)


def ruin_by_month(runs: pd.DataFrame, start_month: str, months: int) -> pd.DataFrame:
    """Probability that cash was below zero at the end of a month up to each one (see `MonteCarlo.ruin`)."""
    from sim.company.monthly_table import month_labels

    out = runs["out.cash_out_month_index"].to_numpy()
    rows = []
    for month, label in enumerate(month_labels(start_month, months)):
        broke = int((out <= month).sum())  # NaN (never) compares as False
        low, high = wilson(broke, len(out))
        rows.append((month, label, broke / len(out), low, high))
    return pd.DataFrame(rows, columns=["month_index", "month", "probability", "low", "high"])


def _percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    if not len(values):
        return {f"p{level}": math.nan for level in PERCENTILES}
    if np.isfinite(values).all():
        found = np.percentile(values, PERCENTILES)
    else:  # no interpolation between a number and infinity: the value of a run
        places = np.ceil(np.array(PERCENTILES) / 100 * len(values)).astype(int) - 1
        found = np.sort(values)[np.maximum(places, 0)]
    return {f"p{level}": float(value) for level, value in zip(PERCENTILES, found, strict=True)}


def _targets(scenario: Scenario, more: Sequence[str]) -> list[Condition]:
    own = (f"{name.removeprefix('out.')} {rule}" for name, rule in scenario.uncertainty.targets.items())
    conditions = [parse_condition(text) for text in dict.fromkeys([*own, *more])]
    require_outcomes(condition.measure for condition in conditions)
    for condition in conditions:
        if condition.measure.statistic != "each":
            raise InputError(
                f"target {condition}: found a statistic of many runs, allowed: an outcome of one"
            )
    return conditions


def _target_table(runs: pd.DataFrame, conditions: list[Condition]) -> pd.DataFrame:
    rows = []
    for condition in conditions:
        held = condition.holds_in(runs)
        rows.append((str(condition), float(held.mean()), *wilson(int(held.sum()), len(held))))
    return pd.DataFrame(rows, columns=["target", "probability", "low", "high"])


def _precision_table(runs: pd.DataFrame, precisions: list[Precision]) -> pd.DataFrame:
    rows = []
    for precision in precisions:
        found = estimate(precision.measure, runs)
        rows.append((str(precision), found.value, found.low, found.high, precision.met(runs)))
    return pd.DataFrame(rows, columns=["asked", "value", "low", "high", "met"])


def _stopping_rule(precisions: list[Precision]) -> Callable[[pd.DataFrame], bool]:
    def enough(runs: pd.DataFrame) -> bool:
        good = runs[runs["error"] == ""]
        return len(good) > 1 and all(precision.met(good) for precision in precisions)

    return enough
