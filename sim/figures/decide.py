"""Choices in pictures: the curve on which a target is sought, and the candidates that a search has tried."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sim.figures.base import finite
from sim.figures.compare import axis_of, meanings
from sim.figures.study import band, translucent
from sim.figures.theme import Theme, layout, palette
from sim.i18n import numbers
from sim.i18n.translate import tr
from sim.scenario.conditions import parse_condition, parse_goal
from sim.scenario.metrics import OUTCOMES, shown
from sim.scenario.units import Unit
from sim.study.wording import quantity

if TYPE_CHECKING:
    from sim.scenario.conditions import Measure
    from sim.study.goal_seek import GoalSeek
    from sim.study.optimise import Optimum


def curve(found: GoalSeek, theme: Theme = "light") -> go.Figure:
    """The outcome over the values tried, its 95 % interval, the target, and where the two meet."""
    colours, scan = palette(theme), found.scan[found.scan["error"] == ""]
    measure = parse_condition(found.condition).measure
    values = scan["value"].tolist()
    name, unit = measure_name(measure), measure_unit(measure)

    def say(value: float) -> str:
        return measure_value(measure, value)

    traces: list[go.Scatter] = band(
        values,
        scan["outcome_low"],
        scan["outcome_high"],
        tr("95% interval"),
        translucent(colours.revenue, 0.18),
        say,
    )
    traces.append(
        go.Scatter(
            x=values,
            y=finite(scan["outcome"]),
            name=name,
            mode="lines+markers",
            line={"color": colours.revenue, "width": 2.5},
            marker={"size": 5},
            customdata=[
                f"{quantity(x, found.unit)}: {say(y)}" for x, y in zip(values, scan["outcome"], strict=True)
            ],
            hovertemplate="%{customdata}",
        )
    )
    crossings = found.crossings
    if len(crossings):
        traces.append(
            go.Scatter(
                x=crossings["value"].tolist(),
                y=finite(crossings["outcome"]),
                name=tr("target reached"),
                mode="markers",
                marker={"color": colours.cash, "size": 13, "symbol": "diamond"},
                error_x={
                    "array": finite(crossings["high"] - crossings["value"]),
                    "arrayminus": finite(crossings["value"] - crossings["low"]),
                    "color": colours.cash,
                    "thickness": 2,
                },
                customdata=[with_interval(row, found.unit) for _, row in crossings.iterrows()],
                hovertemplate="%{customdata}",
            )
        )
    subtitle = tr(
        "Simulated; mean and 95% interval over {seeds} common seeds, {runs} runs",
        seeds=found.seeds,
        runs=numbers.count(found.runs),
    )
    spread = [value for value in values if value > 0]
    log = len(spread) == len(values) > 1 and _by_factors(values)
    xaxis = {"title": {"text": f"{meanings([found.key])[0]} [{tr(found.unit)}]"}, "exponentformat": "B"}
    figure = go.Figure(
        traces,
        layout(
            answer(found),
            subtitle,
            colours,
            hovermode="closest",
            xaxis=xaxis | ({"type": "log"} if log else {}),
            yaxis=axis_of(unit, name),
        ),
    )
    figure.add_hline(found.target, line={"color": colours.text, "width": 1.5, "dash": "dash"})
    figure.add_annotation(
        xref="paper",
        x=1,
        xanchor="right",
        y=found.target,
        yanchor="bottom",
        text=tr("target {value}", value=say(found.target)),
        showarrow=False,
        font={"size": 12, "color": colours.text},
    )
    return figure


def answer(found: GoalSeek) -> str:
    """What goal seek found, in one sentence."""
    condition = parse_condition(found.condition)
    target = measure_value(condition.measure, found.target)
    names = {"what": measure_name(condition.measure), "target": target, "key": meanings([found.key])[0]}
    if not len(found.crossings):
        return tr(
            "{what} never comes to {target}: it stays between {low} and {high}",
            low=measure_value(condition.measure, found.outcome_least),
            high=measure_value(condition.measure, found.outcome_most),
            **names,
        )
    first = found.crossings.iloc[0]
    value = with_interval(first, found.unit)
    if first["kind"] == "jump":
        return tr("{what} jumps over {target} where {key} is {value}", value=value, **names)
    if len(found.crossings) > 1:
        return tr(
            "{what} comes to {target} at {count} places; the first: {key} {value}",
            value=value,
            count=len(found.crossings),
            **names,
        )
    return tr("{what} comes to {target} where {key} is {value}", value=value, **names)


def with_interval(crossing: Any, unit: str) -> str:
    """A crossing's value with its 95 % interval, where there is one."""
    text = quantity(crossing["value"], unit)
    if math.isnan(crossing["low"]) and math.isnan(crossing["high"]):
        return text
    low, high = (
        numbers.UNKNOWN if math.isnan(crossing[end]) else quantity(crossing[end], unit)
        for end in ("low", "high")
    )
    return tr("{value} ({low} to {high})", value=text, low=low, high=high)


def candidates(found: Optimum, theme: Theme = "light") -> go.Figure:
    """Every candidate tried: one goal against the other with the Pareto front, or in order with the best so far."""
    return _front(found, theme) if len(found.goals) > 1 else _progress(found, theme)


def goal_name(goal: str) -> str:
    """A goal as text: "Cash at the end, as high as possible"."""
    parsed = parse_goal(goal)
    name = measure_name(parsed.measure)
    return (
        tr("{what}, as high as possible", what=name)
        if parsed.direction == "max"
        else tr("{what}, as low as possible", what=name)
    )


def measure_name(measure: Measure) -> str:
    """A measure in words: "Cash at the end", "probability of: Out of cash", "percentile 10 of: …"."""
    label = tr(OUTCOMES[measure.outcome].label) if measure.outcome in OUTCOMES else measure.outcome
    if measure.statistic == "probability":
        if measure.inside is not None:
            return tr("Probability of {condition}", condition=str(measure.inside))
        return tr("Probability: {what}", what=label)
    if measure.statistic == "percentile":
        return tr("{what} (percentile {number})", what=label, number=f"{measure.level:g}")
    if measure.statistic in ("min", "max"):
        return (
            tr("{what} (worst run)", what=label)
            if measure.statistic == "min"
            else tr("{what} (best run)", what=label)
        )
    return label


def measure_unit(measure: Measure) -> Unit:
    """Unit of a measure."""
    if measure.statistic == "probability" or measure.outcome not in OUTCOMES:
        return "fraction"
    return OUTCOMES[measure.outcome].unit


def measure_value(measure: Measure, value: float) -> str:
    """A value of a measure as text."""
    return numbers.percent(value, 1) if measure.statistic == "probability" else shown(measure.outcome, value)


def setting(found: Optimum, row: Any) -> str:
    """The levers of a candidate in one line."""
    return ", ".join(f"{key.rsplit('.', 1)[-1]} {plain(row[key])}" for key in keys_of(found))


def keys_of(found: Optimum) -> list[str]:
    """Keys of the levers."""
    from sim.study.levers import lever_key

    return [lever_key(text) for text in found.levers]


def plain(value: Any) -> str:
    """A lever's value as text, with four significant digits."""
    if not isinstance(value, (float, np.floating)):
        return str(value)
    number = float(value)
    return f"{number:,.0f}" if 1e4 <= abs(number) < 1e9 else f"{number:.4g}"


def _front(found: Optimum, theme: Theme) -> go.Figure:
    colours = palette(theme)
    one, other = found.goals[:2]
    measures = [parse_goal(goal).measure for goal in (one, other)]
    tried = found.trials[found.trials["error"] == ""]
    feasible = tried["feasible"].to_numpy(bool)
    front = tried[tried["chosen"]].sort_values(one)

    def points(table: pd.DataFrame, name: str, **look: Any) -> go.Scatter:
        texts = [
            f"{setting(found, row)}<br>{measure_value(measures[0], row[one])}, "
            f"{measure_value(measures[1], row[other])}"
            for _, row in table.iterrows()
        ]
        return go.Scatter(
            x=finite(table[one]),
            y=finite(table[other]),
            name=name,
            customdata=texts,
            hovertemplate="%{customdata}<extra></extra>",
            **look,
        )

    traces = [
        points(
            tried[~feasible],
            tr("breaks a condition"),
            mode="markers",
            marker={
                "color": colours.loss,
                "size": 7,
                "symbol": "x-thin",
                "line": {"color": colours.loss, "width": 1.5},
            },
        ),
        points(tried[feasible], tr("tried"), mode="markers", marker={"color": colours.other, "size": 7}),
        points(
            front,
            tr("best (Pareto front)"),
            mode="lines+markers",
            line={"color": colours.cash, "width": 2},
            marker={"color": colours.cash, "size": 10, "symbol": "diamond"},
        ),
    ]
    today = found.today.iloc[0]
    traces.append(
        go.Scatter(
            x=[today[one]],
            y=[today[other]],
            name=tr("as it is"),
            mode="markers",
            marker={"color": colours.revenue, "size": 13, "symbol": "circle-open", "line": {"width": 3}},
            customdata=[tr("the company as it is, at fresh seeds")],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    title = (
        tr(
            "{count} of {tried} candidates are best for one goal or the other",
            count=len(front),
            tried=len(found.trials),
        )
        if len(front)
        else tr("None of {tried} candidates meets the conditions", tried=len(found.trials))
    )
    return go.Figure(
        [trace for trace in traces if len(trace.x)],
        layout(
            title,
            tr("Simulated, as seen in the search; {seeds} common seeds for each", seeds=found.seeds),
            colours,
            hovermode="closest",
            xaxis=axis_of(measure_unit(measures[0]), goal_name(one)),
            yaxis=axis_of(measure_unit(measures[1]), goal_name(other)),
        ),
    )


def _progress(found: Optimum, theme: Theme) -> go.Figure:
    colours, goal = palette(theme), found.goals[0]
    parsed = parse_goal(goal)
    tried = found.trials[found.trials["error"] == ""]
    feasible = tried["feasible"].to_numpy(bool)
    texts = [
        f"{setting(found, row)}<br>{measure_value(parsed.measure, row[goal])}" for _, row in tried.iterrows()
    ]
    traces = []
    for where, name, colour, symbol in (
        (~feasible, tr("breaks a condition"), colours.loss, "x-thin"),
        (feasible, tr("candidate"), colours.other, "circle"),
    ):
        if where.any():
            traces.append(
                go.Scatter(
                    x=(tried["trial"][where] + 1).tolist(),
                    y=finite(tried[goal][where]),
                    name=name,
                    mode="markers",
                    marker={
                        "color": colour,
                        "size": 7,
                        "symbol": symbol,
                        "line": {"color": colour, "width": 1.5},
                    },
                    customdata=[text for text, take in zip(texts, where, strict=True) if take],
                    hovertemplate="%{customdata}<extra></extra>",
                )
            )
    title = tr("None of {tried} candidates meets the conditions", tried=len(found.trials))
    if len(found.chosen):
        able = tried[feasible]
        best = able[goal].cummax() if parsed.direction == "max" else able[goal].cummin()
        traces.append(
            go.Scatter(
                x=(able["trial"] + 1).tolist(),
                y=finite(best),
                name=tr("best so far"),
                mode="lines",
                line={"color": colours.cash, "width": 2.5, "shape": "hv"},
                hoverinfo="skip",
            )
        )
        chosen, today = found.chosen.iloc[0], found.today.iloc[0]
        title = tr(
            "{what} of {best} at {setting}; as it is, {today}",
            what=measure_name(parsed.measure),
            best=measure_value(parsed.measure, chosen[goal]),
            setting=setting(found, chosen),
            today=measure_value(parsed.measure, today[goal]),
        )
        if not chosen["holds"]:
            title += tr("; at fresh seeds it breaks a condition")
    return go.Figure(
        traces,
        layout(
            title,
            tr(
                "Simulated; dots as seen in the search ({seeds} seeds), the title at {fresh} fresh seeds",
                seeds=found.seeds,
                fresh=found.fresh_seeds,
            ),
            colours,
            hovermode="closest",
            xaxis={"title": {"text": tr("candidates tried")}},
            yaxis=axis_of(measure_unit(parsed.measure), measure_name(parsed.measure)),
        ),
    )


def _by_factors(values: list[float]) -> bool:
    """Whether values were scanned by equal factors: the middle is then far below the mean of the ends."""
    return values[-1] / values[0] > 8 and float(np.median(values)) < 0.35 * (values[0] + values[-1])
