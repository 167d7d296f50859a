"""Plan, actual and forecast in pictures: each measure by month, the variance as a waterfall, the shape of the week."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from sim.actuals.variance import revenue_waterfall
from sim.actuals.wording import CAUSES
from sim.figures.base import finite, month_axis, usd_axis
from sim.figures.theme import Theme, layout, palette
from sim.i18n import numbers
from sim.i18n.translate import mark, tr
from sim.scenario.metrics import MONTHLY, Metric
from sim.scenario.units import MONEY, Unit, in_unit

if TYPE_CHECKING:
    import pandas as pd

    from sim.actuals.compare import Actuals

# measure: metric, colour.
SHOWN: dict[str, tuple[Metric, str]] = {
    "revenue_usd": (MONTHLY["revenue_usd"], "revenue"),
    "cash_usd": (MONTHLY["cash_usd"], "cash"),
    "customers": (MONTHLY["customers"], "training"),
    "tokens": (
        Metric(
            "tokens", mark("Tokens served"), "tokens per month", True, "count", "Prompt and output tokens."
        ),
        "demand",
    ),
    "compute_serving_usd": (MONTHLY["compute_serving_usd"], "serving"),
    "net_income_usd": (MONTHLY["net_income_usd"], "other"),
}


def measure_by_month(found: Actuals, measure: str, theme: Theme = "light") -> go.Figure:
    """One measure: the plan as a line, actual months as bars, the forecast dotted with its band where there is one."""
    metric, colour = SHOWN[measure]
    colours, table = palette(theme), found.months[found.months["measure"] == measure]
    own = getattr(colours, colour)
    months = list(table["month"])
    traces: list[go.Scatter | go.Bar] = []
    if table["forecast_low"].notna().any():
        traces += _band(table, own, metric.unit)
    traces.append(
        go.Bar(
            x=months, y=finite(table["actual"]), name=tr("actual"), marker={"color": own},
            customdata=[in_unit(value, metric.unit) for value in table["actual"]], hovertemplate="%{customdata}",
        )
    )  # fmt: skip
    for column, name, line in (
        ("planned", tr("planned"), {"color": colours.muted, "width": 2}),
        ("forecast", tr("forecast"), {"color": own, "width": 2, "dash": "dot"}),
    ):
        traces.append(
            go.Scatter(
                x=months, y=finite(table[column]), name=name, mode="lines", line=line,
                customdata=[in_unit(value, metric.unit) for value in table[column]], hovertemplate="%{customdata}",
            )
        )  # fmt: skip
    axis = usd_axis(tr(metric.unit)) if metric.unit in MONEY else {"title": {"text": tr(metric.unit)}}
    subtitle = tr("Plan: simulated; actual: meter and bank; forecast: simulated from measured assumptions")
    return go.Figure(
        traces, layout(_title(found, table, metric), subtitle, colours, xaxis=month_axis(), yaxis=axis)
    )


def _title(found: Actuals, table: pd.DataFrame, metric: Metric) -> str:
    label = tr(metric.label)
    done = table[table["actual"].notna()]
    if not len(done):
        return tr("{what}: no actual months (no bank rows)", what=label)
    last = done.iloc[-1]
    return tr(
        "{what} in {month}: {actual} against {planned} planned",
        what=label,
        month=str(last["month"]),
        actual=in_unit(last["actual"], metric.unit),
        planned=in_unit(last["planned"], metric.unit),
    )


def _band(table: pd.DataFrame, colour: str, unit: Unit) -> list[go.Scatter]:
    ahead = table[table["forecast_low"].notna()]
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    name = tr("{share} of runs", share=numbers.percent(0.9))
    bare = {"x": list(ahead["month"]), "mode": "lines", "line": {"width": 0}, "legendgroup": name}
    return [
        go.Scatter(y=finite(ahead["forecast_low"]), name=tr("percentile {number}", number=5), showlegend=False,
                   hoverinfo="skip", **bare),
        go.Scatter(
            y=finite(ahead["forecast_high"]), name=name, fill="tonexty", fillcolor=f"rgba({red},{green},{blue},0.18)",
            customdata=[tr("{low} to {high}", low=in_unit(low, unit), high=in_unit(high, unit))
                        for low, high in zip(ahead["forecast_low"], ahead["forecast_high"], strict=True)],
            hovertemplate="%{customdata}", **bare,
        ),
    ]  # fmt: skip


def revenue_bridge(found: Actuals, theme: Theme = "light") -> go.Figure:
    """From planned to actual recurring revenue: volume, price and mix."""
    colours = palette(theme)
    bars = revenue_waterfall(found.revenue, (tr("planned"), tr("actual")))
    changes = bars[bars["kind"] == "change"]
    largest = changes.iloc[0]
    difference = float(bars["running"].iloc[-1] - bars["running"].iloc[0])
    title = tr(
        "Recurring revenue is {difference} off the plan, most of it by {cause}",
        difference=numbers.usd(difference),
        cause=tr(CAUSES[largest["term"]]),
    )
    if difference == 0:
        title = tr("Recurring revenue is as planned")
    names = [
        tr(CAUSES[term]) if kind == "change" else term
        for kind, term in zip(bars["kind"], bars["term"], strict=True)
    ]
    shades = [
        colours.revenue if kind != "change" else colours.cash if change >= 0 else colours.loss
        for kind, change in zip(bars["kind"], bars["change"], strict=True)
    ]
    values = [change if kind == "change" else level
              for kind, change, level in zip(bars["kind"], bars["change"], bars["running"], strict=True)]  # fmt: skip
    return go.Figure(
        go.Bar(
            x=names, y=(bars["top"] - bars["bottom"]).tolist(), base=bars["bottom"].tolist(), marker={"color": shades},
            text=[numbers.usd(value) for value in values], textposition="outside", cliponaxis=False,
            customdata=[numbers.usd(value) for value in values], hovertemplate="%{customdata}<extra></extra>",
        ),
        layout(
            title,
            tr("USD over all compared months; the parts add up to the micro-dollar"),
            colours,
            hovermode="closest",
            showlegend=False,
            xaxis={"title": {"text": tr("from plan to actual")}},
            yaxis=usd_axis("USD"),
        ),
    )  # fmt: skip


def week_shape(found: Actuals, theme: Theme = "light") -> go.Figure:
    """Requests by hour of the week against what the plan takes."""
    colours, week = palette(theme), found.traffic.week
    peak = float(week["measured"].max())
    title = tr("The busiest hour of the week has {factor} times the mean", factor=f"{peak:.2f}")
    if peak != peak:
        title = tr("Too few requests to tell the shape of the week")
    lines = [
        go.Scatter(x=week["hour_of_week"].tolist(), y=finite(week[column]), name=name, mode="lines",
                   line={"color": shade, "width": 2}, hovertemplate="%{y:.2f}")
        for column, name, shade in (
            ("planned", tr("planned"), colours.muted), ("measured", tr("measured"), colours.revenue))
    ]  # fmt: skip
    return go.Figure(
        lines,
        layout(
            title,
            tr("Requests by hour over their mean, UTC, Monday first; measured from the meter"),
            colours,
            xaxis={"title": {"text": tr("hour of the week")}, "dtick": 24},
            yaxis={"title": {"text": tr("times the mean")}, "rangemode": "tozero"},
        ),
    )
