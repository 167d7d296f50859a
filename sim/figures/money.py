"""The figures of a run, for the app and the report alike: what the money did.

Each function takes a `sim.company.simulate.Result` and gives a Plotly figure whose title states what the run shows.
Figures about serving, training and the profile stand in `sim.figures.operations`; `all_figures` lists all in the order
of the report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from sim.figures.base import annotate, bars, line, month_axis, usd_axis
from sim.figures.theme import Theme, layout, palette
from sim.i18n import numbers
from sim.i18n.translate import tr

if TYPE_CHECKING:
    from sim.company.simulate import Result


def revenue_and_compute(result: Result, theme: Theme = "light") -> go.Figure:
    """Revenue against what compute costs, month by month."""
    colours, table = palette(theme), result.monthly
    share = result.headline["compute_share_of_revenue"]
    title = tr("Compute takes {share} of revenue over the run", share=numbers.percent(share))
    if float(table["revenue_usd"].sum()) <= 0:
        title = tr("No revenue in this run")
    traces = [
        bars(table, "compute_serving_usd", tr("serving compute"), colours.serving, numbers.usd),
        bars(table, "compute_training_usd", tr("training compute"), colours.training, numbers.usd),
        line(table, "revenue_usd", tr("revenue"), colours.revenue, numbers.usd),
    ]
    return go.Figure(
        traces,
        layout(
            title,
            tr("USD per month, simulated"),
            colours,
            xaxis=month_axis(),
            yaxis=usd_axis(tr("USD per month")),
        ),
    )


def gross_margin(result: Result, theme: Theme = "light") -> go.Figure:
    """Gross margin by month."""
    colours, table = palette(theme), result.monthly
    last = result.headline["gross_margin_last12"]
    title = tr("Gross margin is {margin} over the last 12 months", margin=numbers.percent(last))
    low = float(np.nanmin(np.append(table["gross_margin"].to_numpy(), 0.0)))
    axis = {
        "title": {"text": tr("fraction of revenue")},
        "tickformat": ".0%",
        "range": [max(low, -2.0) * 1.05, 1.02],
    }
    return go.Figure(
        [line(table, "gross_margin", tr("gross margin"), colours.revenue, lambda v: numbers.percent(v, 1))],
        layout(
            title,
            tr("(Revenue − cost of goods sold) / revenue; serving is cost of goods, training is not"),
            colours,
            xaxis=month_axis(),
            yaxis=axis,
            showlegend=False,
        ),
    )


def cash(result: Result, theme: Theme = "light") -> go.Figure:
    """Cash at the end of each month, net burn, and the month in which cash runs out."""
    colours, table = palette(theme), result.monthly
    out, even = result.headline["cash_out_month"], result.headline["breakeven_month"]
    if out != "never":
        title = tr("Cash runs out in {month}", month=out)
    else:
        lowest = numbers.usd(result.headline["cash_usd_min"])
        title = tr("Cash never runs out; the lowest point is {lowest}", lowest=lowest)
    title += (
        tr(", break-even in {month}", month=even) if even != "never" else tr(", no break-even in this run")
    )
    runway = [numbers.months(value) for value in table["runway_months"]]
    closing = line(table, "cash_usd", tr("cash"), colours.cash, numbers.usd)
    closing.customdata = [
        tr("{cash} (runway: {runway})", cash=numbers.usd(value), runway=text)
        for value, text in zip(table["cash_usd"], runway, strict=True)
    ]
    figure = go.Figure(
        [closing, bars(table, "net_burn_usd", tr("net burn in the month"), colours.serving, numbers.usd)],
        layout(
            title,
            tr("USD at month end, simulated; below the line a company is insolvent unless it raises money"),
            colours,
            xaxis=month_axis(),
            yaxis=usd_axis(tr("USD")),
        ),
    )
    if out != "never":
        where = int((table["month"] == out).to_numpy().argmax())
        annotate(
            figure,
            str(out),
            float(table["cash_usd"].iloc[where]),
            tr("cash out {month}", month=out),
            colours.loss,
        )
    return figure


def customers(result: Result, theme: Theme = "light") -> go.Figure:
    """Customers won and lost by month, and how many there are."""
    colours, table = palette(theme), result.monthly
    lost = bars(table, "churned_customers", tr("churned"), colours.serving, numbers.count)
    lost.y = -table["churned_customers"].to_numpy()
    title = tr(
        "{customers} paying customers at the end, {won} won and {lost} lost",
        customers=numbers.count(table["customers"].iloc[-1]),
        won=numbers.count(table["new_customers"].sum()),
        lost=numbers.count(table["churned_customers"].sum()),
    )
    return go.Figure(
        [
            line(table, "customers", tr("paying customers"), colours.revenue, numbers.count),
            bars(table, "new_customers", tr("new"), colours.cash, numbers.count),
            lost,
        ],
        layout(
            title,
            tr("Paying customers at month end; won and lost in the month, simulated"),
            colours,
            xaxis=month_axis(),
            yaxis={"title": {"text": tr("customers")}, "exponentformat": "B"},
        ),
    )


def cost_and_price(result: Result, theme: Theme = "light") -> go.Figure:
    """What a million tokens cost to serve and what customers pay for them."""
    colours, table = palette(theme), result.monthly
    cost, price = table["serving_cost_usd_per_mtok"], table["price_usd_per_mtok"]
    title = tr(
        "A million tokens cost {cost} to serve and bring {price} in the last month",
        cost=numbers.usd(cost.iloc[-1]),
        price=numbers.usd(price.iloc[-1]),
    )
    return go.Figure(
        [
            line(table, "price_usd_per_mtok", tr("revenue per million tokens"), colours.revenue, numbers.usd),
            line(
                table,
                "serving_cost_usd_per_mtok",
                tr("serving cost per million tokens"),
                colours.serving,
                numbers.usd,
            ),
        ],
        layout(
            title,
            tr(
                "USD per million tokens, prompt and output together; speed {kind}, demand simulated",
                kind=tr(result.profile.kind),
            ),
            colours,
            xaxis=month_axis(),
            yaxis={"title": {"text": tr("USD per million tokens")}, "tickprefix": "$", "rangemode": "tozero"},
        ),
    )
