"""What chance and unsure assumptions do to a company, and which of them decide it, in pictures.

Of many runs (`sim.study.monte_carlo`): fans by month, the risk of ruin, the distribution of an outcome. Of a
sensitivity study (`sim.study.sensitivity`): the tornado, and Morris' and Sobol' indices with their intervals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sim.figures.base import finite, month_axis
from sim.figures.compare import COLUMNS, axis_of, column_value, meanings, row_labels
from sim.figures.theme import Palette, Theme, layout, palette
from sim.i18n import numbers
from sim.i18n.translate import tr
from sim.scenario.metrics import OUTCOMES, shown
from sim.scenario.units import Unit
from sim.study.wording import quantity

if TYPE_CHECKING:
    from sim.study.monte_carlo import MonteCarlo
    from sim.study.sensitivity import Sensitivity

BANDS = ((5, 95, 0.14), (25, 75, 0.2))  # percentiles and opacity, the wide one first
MOST_ROWS = 10
_BINS = 30
_ROW_PX = 48
_LOWEST_MARGIN = -2.0


def fan(study: MonteCarlo, column: str, theme: Theme = "light") -> go.Figure:
    """A monthly column over all runs: half of them, nine tenths of them, and the median."""
    colours, table = palette(theme), study.fans[column]
    colour = colours.cash if column == "cash_usd" else colours.revenue
    label, unit = tr(COLUMNS[column].title), COLUMNS[column].unit
    last = table.iloc[-1]
    title = tr(
        "{what} in the last month: {middle}, in 9 of 10 runs between {low} and {high}",
        what=label,
        middle=column_value(column, last["p50"]),
        low=column_value(column, last["p5"]),
        high=column_value(column, last["p95"]),
    )
    traces: list[go.Scatter] = []
    for low, high, opacity in BANDS:
        name = tr("{share} of runs", share=numbers.percent((high - low) / 100))
        traces += band(
            list(table["month"]),
            table[f"p{low}"],
            table[f"p{high}"],
            name,
            translucent(colour, opacity),
            lambda value: column_value(column, value),
        )
    traces.append(
        go.Scatter(
            x=list(table["month"]),
            y=finite(table["p50"]),
            name=tr("median"),
            mode="lines",
            line={"color": colour, "width": 2.5},
            customdata=[column_value(column, value) for value in table["p50"]],
            hovertemplate="%{customdata}",
        )
    )
    axis = axis_of(unit)
    if column == "gross_margin":
        lowest = float(np.nanmin(np.append(table["p5"].to_numpy(float), 0.0)))
        axis["range"] = [max(lowest, _LOWEST_MARGIN) * 1.05, 1.02]
    return go.Figure(traces, layout(title, _subtitle(study, unit), colours, xaxis=month_axis(), yaxis=axis))


def ruin(study: MonteCarlo, theme: Theme = "light") -> go.Figure:
    """The probability that the company has been out of cash by each month, with its 95 % interval."""
    colours, table = palette(theme), study.ruin
    last, months = table.iloc[-1], list(table["month"])
    if last["probability"] == 0:
        title = tr(
            "Cash runs out in none of {runs} runs: the risk is below {high}",
            runs=numbers.count(_good(study)),
            high=numbers.percent(last["high"], 1),
        )
    else:
        title = tr(
            "Out of cash by the end in {share} of runs ({low} to {high})",
            share=numbers.percent(last["probability"], 1),
            low=numbers.percent(last["low"], 1),
            high=numbers.percent(last["high"], 1),
        )
    traces = band(
        months,
        table["low"],
        table["high"],
        tr("95% interval"),
        translucent(colours.loss, 0.16),
        lambda value: numbers.percent(value, 1),
    )
    traces.append(
        go.Scatter(
            x=months,
            y=finite(table["probability"]),
            name=tr("out of cash by then"),
            mode="lines",
            line={"color": colours.loss, "width": 2.5},
            customdata=[numbers.percent(value, 1) for value in table["probability"]],
            hovertemplate="%{customdata}",
        )
    )
    axis = {"title": {"text": tr("share of runs")}, "tickformat": ".0%", "rangemode": "tozero"}
    subtitle = tr("Share of {runs} runs in which a month closed below zero", runs=numbers.count(_good(study)))
    return go.Figure(traces, layout(title, subtitle, colours, xaxis=month_axis(), yaxis=axis))


def spread(study: MonteCarlo, outcome: str, theme: Theme = "light") -> go.Figure:
    """The distribution of an outcome over the runs, its median and the ends of 90 % of runs."""
    colours, label = palette(theme), tr(OUTCOMES[outcome].label)
    good = study.runs[study.runs["error"] == ""]
    values = good[f"out.{outcome}"].to_numpy(float)
    defined = values[np.isfinite(values)]
    row = row_of(study, outcome)
    missing = len(values) - len(defined)
    subtitle = tr("Number of runs, of {runs} in all", runs=numbers.count(len(values)))
    if missing:
        subtitle += " · " + tr("undefined or never reached in {count}", count=numbers.count(missing))
    title = tr(
        "{what}: half of the runs lie between {low} and {high}",
        what=label,
        low=shown(outcome, row["p25"]),
        high=shown(outcome, row["p75"]),
    )
    counts, edges = np.histogram(defined, bins=_BINS) if len(defined) else (np.zeros(0), np.zeros(1))
    middles = (edges[:-1] + edges[1:]) / 2
    money = OUTCOMES[outcome].unit == "USD"
    figure = go.Figure(
        go.Bar(
            x=middles,
            y=counts,
            width=np.diff(edges),
            marker={
                "color": [colours.loss if money and middle < 0 else colours.revenue for middle in middles],
                "line": {"width": 1, "color": colours.background},
            },
            customdata=[
                tr(
                    "{count} runs from {low} to {high}",
                    count=int(n),
                    low=shown(outcome, a),
                    high=shown(outcome, b),
                )
                for n, a, b in zip(counts, edges[:-1], edges[1:], strict=True)
            ],
            hovertemplate="%{customdata}<extra></extra>",
        ),
        layout(
            title,
            subtitle,
            colours,
            hovermode="closest",
            bargap=0,
            xaxis=axis_of(OUTCOMES[outcome].unit, label),
            yaxis={"title": {"text": tr("runs")}, "rangemode": "tozero"},
            showlegend=False,
        ),
    )
    heights = {"p5": 1.0, "p50": 0.9, "p95": 1.0}  # the middle one lower, where it may come near the others
    for level, height in heights.items():
        if np.isfinite(row[level]):
            figure.add_vline(row[level], line={"color": colours.text, "width": 1.5, "dash": "dot"})
            name = tr("median") if level == "p50" else tr("percentile {number}", number=level[1:])
            figure.add_annotation(
                x=row[level],
                yref="paper",
                y=height,
                yanchor="bottom",
                text=f"{name} {shown(outcome, row[level])}",
                showarrow=False,
                bgcolor=colours.background,
                font={"size": 12, "color": colours.text},
            )
    return figure


def tornado(found: Sensitivity, theme: Theme = "light") -> go.Figure:
    """The outcome at the low and the high value of each assumption, the one that moves it most on top."""
    colours = palette(theme)
    table = found.table[found.table["error"] == ""].head(MOST_ROWS)
    names = meanings(table["key"].tolist())
    rows, base = np.arange(len(table)), found.base.value
    pale = [0.35 if noise else 1.0 for noise in table["in_noise"]]
    traces = []
    for side, name, colour in (
        ("low", tr("at its low value"), colours.on_demand),
        ("high", tr("at its high value"), colours.revenue),
    ):
        ends = table[f"outcome_{side}"].to_numpy(float)
        traces.append(
            go.Bar(
                y=rows,
                x=ends - base,
                base=base,
                orientation="h",
                width=0.36,
                name=name,
                offset=-0.18,
                marker={"color": colour, "opacity": pale},
                customdata=[
                    f"<b>{key}</b> = {quantity(value, unit)}<br>{_value(found, end)}"
                    for key, value, unit, end in zip(
                        table["key"], table[side], table["unit"], ends, strict=True
                    )
                ],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    title = tr("No assumption moves {what}", what=_what(found))
    if len(table):
        top = table.iloc[0]
        title = tr(
            "{assumption}: {what} goes from {low} to {high}",
            assumption=names[0],
            what=_what(found),
            low=_value(found, min(top["outcome_low"], top["outcome_high"])),
            high=_value(found, max(top["outcome_low"], top["outcome_high"])),
        )
    subtitle = tr(
        "Each alone at both ends of its range, mean of {seeds} common seeds; pale: within what chance does",
        seeds=found.seeds,
    )
    figure = _rows(traces, title, subtitle, names, found, colours)
    figure.update_layout(barmode="overlay")
    figure.add_vline(base, line={"color": colours.text, "width": 1.5})
    return figure


def indices(found: Sensitivity, theme: Theme = "light") -> go.Figure:
    """Morris' μ* or Sobol' total indices with 95 % intervals; of Sobol' also what each decides alone."""
    colours = palette(theme)
    table = found.table.head(MOST_ROWS)
    names, rows = meanings(table["key"].tolist()), np.arange(len(table))
    if found.method == "morris":
        traces = [_bars(table, rows, "mu_star", tr("mean absolute effect (μ*)"), colours, found)]
        title = tr(
            "{assumption} moves {what} most: by {effect} over its range",
            assumption=names[0],
            what=_what(found),
            effect=_value(found, table["mu_star"].iloc[0]),
        )
        subtitle = tr(
            "Morris: mean absolute effect of each over its range, with 95% intervals; {runs} runs",
            runs=numbers.count(found.runs),
        )
    else:
        traces = [
            _bars(table, rows, "st", tr("alone and with others (total)"), colours, found),
            go.Scatter(
                x=finite(table["s1"]),
                y=rows,
                mode="markers",
                name=tr("alone (first order)"),
                marker={"color": colours.training, "size": 10, "symbol": "diamond"},
                customdata=[
                    f"<b>{key}</b><br>{numbers.percent(value, 1)}"
                    for key, value in zip(table["key"], table["s1"], strict=True)
                ],
                hovertemplate="%{customdata}<extra></extra>",
            ),
        ]
        title = tr(
            "{assumption} decides {share} of the variance of {what}",
            assumption=names[0],
            share=numbers.percent(np.clip(table["st"].iloc[0], 0, 1)),
            what=_what(found),
        )
        subtitle = tr("Sobol' indices with 95% intervals; {runs} runs", runs=numbers.count(found.runs))
    figure = _rows(traces, title, subtitle, names, found, colours)
    if found.method == "sobol":
        figure.update_xaxes(title_text=tr("share of the variance"), tickprefix="", tickformat=".0%")
    return figure


def report_figures(study: MonteCarlo) -> dict[str, go.Figure]:
    """{name: figure} for a report: fans of revenue and cash, and the risk of ruin."""
    fans = {f"fan_{name}": fan(study, name) for name in ("revenue_usd", "cash_usd") if name in study.fans}
    return {**fans, "ruin": ruin(study)}


def row_of(study: MonteCarlo, outcome: str) -> dict[str, float]:
    """Mean and percentiles of an outcome (see `MonteCarlo.outcomes`)."""
    row = study.outcomes[study.outcomes["outcome"] == outcome].drop(columns="outcome")
    return {str(name): float(column.iloc[0]) for name, column in row.items()}


def band(x: list[Any], low: Any, high: Any, name: str, colour: str, say: Any) -> list[go.Scatter]:
    """Two lines with the area between them; the hover text has both values."""
    bare: dict[str, Any] = {"x": x, "mode": "lines", "line": {"width": 0}, "legendgroup": name}
    words = [tr("{low} to {high}", low=say(a), high=say(b)) for a, b in zip(low, high, strict=True)]
    return [
        go.Scatter(
            y=finite(low), name=f"{name}, {tr('low end')}", showlegend=False, hoverinfo="skip", **bare
        ),
        go.Scatter(
            y=finite(high),
            name=name,
            fill="tonexty",
            fillcolor=colour,
            customdata=words,
            hovertemplate="%{customdata}",
            **bare,
        ),
    ]


def translucent(colour: str, opacity: float) -> str:
    """A colour of the palette with an opacity."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def _bars(
    table: pd.DataFrame, rows: Any, column: str, name: str, colours: Palette, found: Sensitivity
) -> go.Bar:
    value = table[column].to_numpy(float)
    low, high = table[f"{column}_low"].to_numpy(float), table[f"{column}_high"].to_numpy(float)
    percent = column == "st"
    texts = []
    for key, ends in zip(table["key"], zip(value, low, high, strict=True), strict=True):
        said_ends = [numbers.percent(x, 1) if percent else _value(found, x) for x in ends]
        interval = tr("{low} to {high}", low=said_ends[1], high=said_ends[2])
        texts.append(f"<b>{key}</b><br>{said_ends[0]} ({interval})")
    return go.Bar(
        y=rows,
        x=value,
        orientation="h",
        width=0.36,
        name=name,
        marker={"color": colours.revenue, "opacity": [0.35 if noise else 1.0 for noise in table["in_noise"]]},
        error_x={"array": high - value, "arrayminus": value - low, "color": colours.text, "thickness": 1.5},
        customdata=texts,
        hovertemplate="%{customdata}<extra></extra>",
    )


def _rows(
    traces: list[Any], title: str, subtitle: str, labels: list[str], found: Sensitivity, colours: Palette
) -> go.Figure:
    unit: Unit = OUTCOMES[found.outcome].unit if found.outcome in OUTCOMES else "fraction"
    figure = go.Figure(
        traces,
        layout(
            title,
            subtitle,
            colours,
            hovermode="closest",
            height=130 + _ROW_PX * max(len(labels), 1),
            xaxis=axis_of(unit, _what(found)),
            yaxis={"visible": False, "range": [len(labels) - 0.5, -0.75]},
        ),
    )
    row_labels(figure, labels, colours)
    return figure


def _what(found: Sensitivity) -> str:
    return tr(OUTCOMES[found.outcome].label) if found.outcome in OUTCOMES else found.outcome


def _value(found: Sensitivity, value: float) -> str:
    return shown(found.outcome, value) if found.outcome in OUTCOMES else numbers.percent(value, 1)


def _good(study: MonteCarlo) -> int:
    return len(study.runs) - study.failed


def _subtitle(study: MonteCarlo, unit: Unit) -> str:
    if not study.uncertain:
        return tr(
            "{unit}, {runs} simulated runs that differ by chance alone",
            unit=tr(unit),
            runs=numbers.count(_good(study)),
        )
    return tr(
        "{unit}, {runs} simulated runs over {count} unsure assumptions and chance",
        unit=tr(unit),
        runs=numbers.count(_good(study)),
        count=len(study.uncertain),
    )
