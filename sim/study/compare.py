"""Comparison of scenarios at the same seeds, with every uncertain assumption at its median."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError
from sim.scenario.conditions import Measure
from sim.scenario.metrics import OUTCOMES
from sim.study.candidates import Candidates, common_points, first_error
from sim.study.differences import differences, overrides_between, plain
from sim.study.estimates import half_width
from sim.study.runs.options import DEFAULT_OPTIONS, RunOptions

if TYPE_CHECKING:
    from sim.scenario.scenario import Scenario

MONTHLY = ("revenue_usd", "gross_margin", "net_income_usd", "cash_usd", "customers", "replicas_mean")


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`: scenarios at the same seeds.

    `headline`: one row per scenario and outcome: scenario, outcome, label, unit, higher_is_better, value (mean), low,
    high (95 % interval of it), difference (to the first scenario, paired by seed), difference_low, difference_high.
    `monthly`: one row per scenario, month and column: scenario, month_index, month, column, value (mean over seeds).
    `changes`: one row per assumption that differs from the first scenario: key, and each scenario's value.
    """

    names: tuple[str, ...]
    seeds: int
    headline: pd.DataFrame
    monthly: pd.DataFrame
    changes: pd.DataFrame


def compare(
    scenarios: Mapping[str, Scenario],
    *,
    seeds: int = 8,
    monthly: Sequence[str] = MONTHLY,
    options: RunOptions = DEFAULT_OPTIONS,
) -> Comparison:
    """Run scenarios at the same seeds and compare them with the first.

    Args:
        scenarios: {name: scenario}, two or more. The first one's seed is the first seed of all.
        seeds: runs of each.
        monthly: columns of the monthly table to keep.
        options: of the runs.

    Raises:
        InputError: fewer than two scenarios, or one that can't be run.
    """
    if len(scenarios) < 2:
        raise InputError(f"compare: found {len(scenarios)} scenario, allowed: two or more")
    names, each = tuple(scenarios), list(scenarios.values())
    first = each[0]
    candidates = [overrides_between(plain(first), plain(other)) for other in each]
    with Candidates(first, common_points(first, seeds), options) as runner:
        frames = runner.runs(candidates, monthly=monthly)
    for name, frame in zip(names, frames, strict=True):
        if error := first_error(frame):
            raise InputError(f"{name}: {error}")
    return Comparison(
        names=names,
        seeds=seeds,
        headline=_headline(names, frames),
        monthly=_monthly(names, each, frames, monthly),
        changes=_changes(scenarios),
    )


def _headline(names: Sequence[str], frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    rows = []
    for outcome, facts in OUTCOMES.items():
        measure = Measure(outcome)
        base = frames[0][f"out.{outcome}"].to_numpy(dtype=float)
        for name, frame in zip(names, frames, strict=True):
            values = frame[f"out.{outcome}"].to_numpy(dtype=float)
            with np.errstate(invalid="ignore"):
                apart = values - base
            rows.append(
                {
                    "scenario": name,
                    "outcome": outcome,
                    "label": facts.label,
                    "unit": facts.unit,
                    "higher_is_better": facts.higher_is_better,
                    **_mean_and_interval("", values, measure.of(frame)),
                    **_mean_and_interval("difference", apart, float(apart.mean())),
                }
            )
    return pd.DataFrame(rows)


def _mean_and_interval(name: str, values: NDArray[np.float64], mean: float) -> dict[str, float]:
    half = half_width(values) if np.isfinite(values).all() else float("nan")
    prefix = f"{name}_" if name else ""
    return {name or "value": mean, f"{prefix}low": mean - half, f"{prefix}high": mean + half}


def _monthly(
    names: Sequence[str],
    scenarios: Sequence[Scenario],
    frames: Sequence[pd.DataFrame],
    columns: Sequence[str],
) -> pd.DataFrame:
    from sim.company.monthly_table import month_labels

    parts = []
    for name, scenario, frame in zip(names, scenarios, frames, strict=True):
        labels = month_labels(scenario.start_month, scenario.horizon_months)
        for column in columns:
            values = np.stack([np.asarray(run, dtype=float) for run in frame[f"month.{column}"]]).mean(axis=0)
            part = {
                "scenario": name,
                "month_index": np.arange(len(labels)),
                "month": labels,
                "column": column,
            }
            parts.append(pd.DataFrame({**part, "value": values}))
    if not parts:
        return pd.DataFrame(columns=["scenario", "month_index", "month", "column", "value"])
    return pd.concat(parts, ignore_index=True)


def _changes(scenarios: Mapping[str, Scenario]) -> pd.DataFrame:
    """Assumptions in which any scenario differs from the first; missing entries are "absent"."""
    names, each = list(scenarios), list(scenarios.values())
    rows: dict[str, dict[str, Any]] = {}
    for name, other in zip(names[1:], each[1:], strict=True):
        for one in differences(each[0], other):
            row = rows.setdefault(one.key, {"key": one.key, **dict.fromkeys(names, one.before)})
            row[name] = one.after
    return pd.DataFrame(rows.values(), columns=["key", *names])
