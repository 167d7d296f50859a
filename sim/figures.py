"""The figures of a run, for the app and the report alike: what the money did.

Each function takes a `sim.company.Result` and gives a Plotly figure whose title states what the run shows.
Figures about serving, training and the profile stand in `sim.figures_model`; `all_figures` lists all in the order
of the report.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from sim import human
from sim.theme import Theme, layout, palette

if TYPE_CHECKING:
    from sim.company import Result

MONTH_AXIS: dict[str, Any] = {
    "title": {"text": "month"},
    "type": "date",
    "hoverformat": "%B %Y",
    "showgrid": False,
}
USD_PER_MONTH: dict[str, Any] = {
    "title": {"text": "USD per month"},
    "tickprefix": "$",
    "exponentformat": "B",
    "minexponent": 2,
}


def revenue_and_compute(result: Result, theme: Theme = "light") -> go.Figure:
    """Revenue against what compute costs, month by month."""
    colours, table = palette(theme), result.monthly
    share = result.headline["compute_share_of_revenue"]
    title = f"Compute takes {human.percent(share)} of revenue over the run"
    if float(table["revenue_usd"].sum()) <= 0:
        title = "No revenue in this run"
    traces = [
        bars(table, "compute_serving_usd", "serving compute", colours.serving, human.usd),
        bars(table, "compute_training_usd", "training compute", colours.training, human.usd),
        line(table, "revenue_usd", "revenue", colours.revenue, human.usd),
    ]
    return go.Figure(
        traces,
        layout(title, "USD per month, simulated", colours, xaxis=MONTH_AXIS, yaxis=USD_PER_MONTH),
    )


def gross_margin(result: Result, theme: Theme = "light") -> go.Figure:
    """Gross margin by month."""
    colours, table = palette(theme), result.monthly
    last = result.headline["gross_margin_last12"]
    title = f"Gross margin is {human.percent(last)} over the last 12 months"
    low = float(np.nanmin(np.append(table["gross_margin"].to_numpy(), 0.0)))
    axis = {
        "title": {"text": "fraction of revenue"},
        "tickformat": ".0%",
        "range": [max(low, -2.0) * 1.05, 1.02],
    }
    return go.Figure(
        [line(table, "gross_margin", "gross margin", colours.revenue, lambda v: human.percent(v, 1))],
        layout(
            title,
            "(Revenue − cost of goods sold) / revenue; serving is cost of goods, training is not",
            colours,
            xaxis=MONTH_AXIS,
            yaxis=axis,
            showlegend=False,
        ),
    )


def cash(result: Result, theme: Theme = "light") -> go.Figure:
    """Cash at the end of each month, net burn, and the month in which the money is gone."""
    colours, table = palette(theme), result.monthly
    out, even = result.headline["cash_out_month"], result.headline["breakeven_month"]
    if out != "never":
        title = f"Cash runs out in {out}"
    else:
        title = f"Cash never runs out; the lowest point is {human.usd(result.headline['cash_usd_min'])}"
    title += f", break-even in {even}" if even != "never" else ", no break-even in this run"
    runway = [human.months(value) for value in table["runway_months"]]
    closing = line(table, "cash_usd", "cash", colours.cash, human.usd)
    closing.customdata = [
        f"{human.usd(value)} (runway: {text})" for value, text in zip(table["cash_usd"], runway, strict=True)
    ]
    figure = go.Figure(
        [closing, bars(table, "net_burn_usd", "net burn in the month", colours.serving, human.usd)],
        layout(
            title,
            "USD at month end, simulated; below the line a company is insolvent unless it raises money",
            colours,
            xaxis=MONTH_AXIS,
            yaxis={**USD_PER_MONTH, "title": {"text": "USD"}},
        ),
    )
    if out != "never":
        where = int((table["month"] == out).to_numpy().argmax())
        mark(figure, str(out), float(table["cash_usd"].iloc[where]), f"cash out {out}", colours.loss)
    return figure


def customers(result: Result, theme: Theme = "light") -> go.Figure:
    """Customers won and lost by month, and how many there are."""
    colours, table = palette(theme), result.monthly
    lost = bars(table, "churned_customers", "churned", colours.serving, human.count)
    lost.y = -table["churned_customers"].to_numpy()
    title = (
        f"{human.count(table['customers'].iloc[-1])} paying customers at the end, "
        f"{human.count(table['new_customers'].sum())} won and {human.count(table['churned_customers'].sum())} lost"
    )
    return go.Figure(
        [
            line(table, "customers", "paying customers", colours.revenue, human.count),
            bars(table, "new_customers", "new", colours.cash, human.count),
            lost,
        ],
        layout(
            title,
            "Paying customers at month end; won and lost in the month, simulated",
            colours,
            xaxis=MONTH_AXIS,
            yaxis={"title": {"text": "customers"}, "exponentformat": "B"},
        ),
    )


def cost_and_price(result: Result, theme: Theme = "light") -> go.Figure:
    """What a million tokens cost to serve and what customers pay for them."""
    colours, table = palette(theme), result.monthly
    cost, price = table["serving_cost_usd_per_mtok"], table["price_usd_per_mtok"]
    title = (
        f"A million tokens cost {human.usd(cost.iloc[-1])} to serve "
        f"and bring {human.usd(price.iloc[-1])} in the last month"
    )
    return go.Figure(
        [
            line(table, "price_usd_per_mtok", "revenue per million tokens", colours.revenue, human.usd),
            line(
                table,
                "serving_cost_usd_per_mtok",
                "serving cost per million tokens",
                colours.serving,
                human.usd,
            ),
        ],
        layout(
            title,
            f"USD per million tokens, prompt and output together; speed {result.profile.kind}, demand simulated",
            colours,
            xaxis=MONTH_AXIS,
            yaxis={"title": {"text": "USD per million tokens"}, "tickprefix": "$", "rangemode": "tozero"},
        ),
    )


def line(
    table: Any, column: str, name: str, colour: str, say: Callable[[Any], str], dash: str = "solid"
) -> go.Scatter:
    """A monthly line; the hover says the value in human units."""
    return go.Scatter(
        x=list(table["month"]),
        y=finite(table[column]),
        name=name,
        mode="lines+markers" if len(table) <= 2 else "lines",
        line={"color": colour, "width": 2.5, "dash": dash},
        customdata=[say(value) for value in table[column]],
        hovertemplate="%{customdata}",
    )


def bars(table: Any, column: str, name: str, colour: str, say: Callable[[Any], str]) -> go.Bar:
    """Monthly bars; the hover says the value in human units."""
    return go.Bar(
        x=list(table["month"]),
        y=finite(table[column]),
        name=name,
        marker={"color": colour},
        customdata=[say(value) for value in table[column]],
        hovertemplate="%{customdata}",
    )


def mark(figure: go.Figure, x: Any, y: float, text: str, colour: str) -> None:
    """Point at one value with words."""
    figure.add_annotation(
        x=x, y=y, text=text, showarrow=True, arrowcolor=colour, font={"color": colour}, ay=-36
    )


def finite(values: Any) -> list[float | None]:
    """Plain floats, None (a gap) where a value is undefined or infinite."""
    numbers = np.asarray(values, dtype=np.float64)
    return [float(number) if np.isfinite(number) else None for number in numbers]


def all_figures() -> dict[str, Callable[..., go.Figure]]:
    """{name: figure function} in the order of the report."""
    from sim import figures_model

    return {
        "revenue": revenue_and_compute,
        "margin": gross_margin,
        "cash": cash,
        "cost_per_mtok": cost_and_price,
        "customers": customers,
        "fleet": figures_model.fleet_by_month,
        "fleet_day": figures_model.fleet_by_hour,
        "latency": figures_model.latency,
        "flywheel": figures_model.flywheel,
        "versions": figures_model.versions,
        "profile": figures_model.profile_fit,
    }
