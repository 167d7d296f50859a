"""The results of `flywheel study` as tables in a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sim.cli.terminal import print_grid, print_table
from sim.i18n import numbers

if TYPE_CHECKING:
    import pandas as pd

    from sim.study.compare import Comparison
    from sim.study.explain import Explanation
    from sim.study.goal_seek import GoalSeek
    from sim.study.optimise import Optimum

Row = dict[str, Any]


def optimum(found: Optimum, title: str) -> None:
    """Print the chosen settings beside the scenario as it is."""
    from sim.study.levers import lever_key

    keys = [lever_key(text) for text in found.levers]
    feasible = int(found.trials["feasible"].sum())
    print(
        f"{title}: {len(found.trials)} candidates ({found.method}), {feasible} meet the conditions; "
        f"{found.runs:,} runs"
    )
    if not len(found.chosen):
        for row in _rows(found.nearest):
            settings = ", ".join(f"{key}={_plain_value(row[key])}" for key in keys)
            print(f"No candidate meets {'; '.join(found.conditions)}. Nearest: {settings}")
        return
    head = ["", *keys, *(f"{goal}, fresh seeds" for goal in found.goals), "in the search", "conditions"]
    lines = []
    for number, row in enumerate(_rows(found.chosen), 1):
        levers = [_plain_value(row[key]) for key in keys]
        searched = ", ".join(_shown(goal, row[f"{goal} (search)"]) for goal in found.goals)
        fresh = [f"{_with_interval(goal, row)}; {_gain(goal, row)}" for goal in found.goals]
        name = "best" if len(found.chosen) == 1 else str(number)
        lines.append([name, *levers, *fresh, searched, "hold" if row["holds"] else "BROKEN at fresh seeds"])
    for row in _rows(found.today):
        fresh = [_with_interval(goal, row) for goal in found.goals]
        kept = "hold" if row["holds"] else "broken"
        lines.append(["today", *(numbers.UNKNOWN for _ in keys), *fresh, numbers.UNKNOWN, kept])
    print_grid(f"At {found.fresh_seeds} seeds that the search has not seen (95 % interval)", head, lines)


def goal_seek(found: GoalSeek, title: str) -> None:
    """Print the values at which the outcome passes the target, or its range, and the scan."""
    lines = []
    for row in _rows(found.crossings):
        value = f"{row['value']:.6g} {found.unit}"
        if not (math.isnan(row["low"]) and math.isnan(row["high"])):
            low, high = (
                numbers.UNKNOWN if math.isnan(row[end]) else f"{row[end]:.4g}" for end in ("low", "high")
            )
            value += f" ({low} to {high}, 95 %)"
        if row["kind"] == "jump":
            value += f"; jumps from {row['outcome_below']:.4g} to {row['outcome_above']:.4g}"
        lines.append((found.key, value))
    if lines:
        print_table(f"{title}: {found.condition}", lines)
    else:
        print(
            f"{title}: {found.condition} is not reached: between {found.scan['value'].min():g} and "
            f"{found.scan['value'].max():g} the outcome lies between {found.outcome_least:.6g} and "
            f"{found.outcome_most:.6g}"
        )
    scan = [
        [
            f"{row['value']:.6g}",
            f"{row['outcome']:.6g}",
            f"{row['outcome_low']:.5g} to {row['outcome_high']:.5g}",
            row["error"],
        ]
        for row in _rows(found.scan)
    ]
    head = [found.key, "outcome", "95 % interval", "error"]
    print_grid(f"{found.runs} runs at {found.seeds} common seeds", head, scan)


def comparison(found: Comparison) -> None:
    """Print every outcome of every scenario with its difference to the first scenario."""
    lines: dict[str, list[str]] = {}
    for row in _rows(found.headline):
        text = _shown(row["outcome"], row["value"])
        if row["scenario"] != found.names[0] and math.isfinite(row["difference"]) and row["difference"]:
            text += f" ({_difference(row['unit'], row['outcome'], row['difference'])})"
        lines.setdefault(row["outcome"], [row["label"]]).append(text)
    head = ["", *found.names]
    print_grid(f"At {found.seeds} common seeds (difference to the first)", head, list(lines.values()))


def explanation(found: Explanation) -> None:
    """Print the terms of a difference, the largest first."""
    lines = []
    for bar in _rows(found.bars):
        error = bar["standard_error"]
        shown = numbers.UNKNOWN if math.isnan(error) else _shown(found.outcome, error)
        lines.append([str(bar["term"]), _shown(found.outcome, bar["change"]), shown])
    title = f"{found.outcome}, from {found.names[0]} to {found.names[1]} ({found.method}, {found.runs} runs)"
    print_grid(title, ["", "change", "standard error"], lines)


def _rows(table: pd.DataFrame) -> list[Row]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict(orient="records")]


def _with_interval(goal: str, row: Row) -> str:
    text = _shown(goal, row[goal])
    low, high = row[f"{goal} low"], row[f"{goal} high"]
    return text if math.isnan(low) else f"{text} ({_shown(goal, low)} to {_shown(goal, high)})"


def _gain(goal: str, row: Row) -> str:
    low, high = row[f"{goal} gain low"], row[f"{goal} gain high"]
    text = f"against today {_shown(goal, row[f'{goal} gain'])}"
    return text if math.isnan(low) else f"{text} ({_shown(goal, low)} to {_shown(goal, high)})"


def _shown(goal: str, value: float) -> str:
    from sim.scenario.conditions import parse_measure
    from sim.scenario.metrics import shown

    measure = parse_measure(goal.removeprefix("max ").removeprefix("min "))
    return numbers.percent(value, 1) if measure.statistic == "probability" else shown(measure.outcome, value)


def _difference(unit: str, outcome: str, value: float) -> str:
    sign = "+" if value > 0 else "−"
    if unit in ("fraction", "0 or 1"):
        return f"{sign}{100 * abs(value):.1f} points"
    if unit == "month of the run":
        return f"{sign}{abs(value):.3g} months"
    return f"{sign}{_shown(outcome, abs(value))}"


def _plain_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
