"""Figures of a hardware choice: what a dollar buys on each machine, and what a fleet costs that is faster.

Each takes a comparison of `sim.capacity.lab`. Measured and predicted step times differ by colour, hatching and
words, everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from sim.capacity.lab import HardwareComparison
from sim.figures.base import finite
from sim.figures.theme import Theme, layout, palette
from sim.i18n import numbers
from sim.i18n.translate import mark, tr

KINDS = {"measured": mark("measured"), "predicted": mark("predicted"), "table": mark("from a table")}


def per_dollar(comparison: HardwareComparison, theme: Theme = "light") -> go.Figure:
    """Tokens per dollar of one replica at its capacity, by configuration; coloured by measured or predicted."""
    colours, table = palette(theme), comparison.per_dollar
    names = [_short_name(row).replace(", ", "<br>") for row in table.to_dict(orient="records")]
    traces = []
    for kind, name, colour, pattern in (
        ("measured", tr("measured step times"), colours.cash, ""),
        ("predicted", tr("predicted step times, 90% interval"), colours.on_demand, "/"),
    ):
        rows = table[table["kind"] == kind]
        if rows.empty:
            continue
        low, high, middle = (rows[f"tokens_per_usd{end}"].to_numpy() for end in ("_low", "_high", ""))
        words = [
            tr(
                "{configuration}: {tokens} tokens and {requests} requests per dollar at {rate} requests/s, "
                "{price} per hour",
                configuration=row.configuration,
                tokens=numbers.count(row.tokens_per_usd),
                requests=numbers.count(row.requests_per_usd),
                rate=numbers.count(row.capacity_rps),
                price=numbers.usd(row.usd_per_hour),
            )
            for row in rows.itertuples()
        ]
        traces.append(
            go.Bar(
                y=[names[index] for index in rows.index],
                x=finite(middle),
                orientation="h",
                name=name,
                marker={
                    "color": colour,
                    "pattern": {
                        "shape": pattern,
                        "fgcolor": colours.muted,
                        "fillmode": "overlay",
                        "solidity": 0.2,
                    },
                },
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": finite(np.nan_to_num(high - middle)),
                    "arrayminus": finite(np.nan_to_num(middle - low)),
                    "color": colours.muted,
                    "thickness": 1.5,
                },
                customdata=words,
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    if table.empty:
        title = tr("No configuration serves this load within the objectives")
    else:
        best = table.iloc[0].to_dict()
        title = tr(
            "{hardware} gives most per dollar: {tokens} tokens, {requests} requests ({kind})",
            hardware=_short_name(best),
            tokens=numbers.count(best["tokens_per_usd"]),
            requests=numbers.count(best["requests_per_usd"]),
            kind=tr(KINDS[best["kind"]]),
        )
    return go.Figure(
        traces,
        layout(
            title,
            tr(
                "Prompt and output tokens at the highest rate that keeps the objectives, over the machine's price"
            ),
            colours,
            xaxis={"title": {"text": tr("tokens per USD")}, "exponentformat": "B", "rangemode": "tozero"},
            yaxis={
                "title": {"text": tr("configuration")},
                "autorange": "reversed",
                "type": "category",
                "categoryarray": names,
            },
            hovermode="closest",
            height=170 + 46 * max(2, len(table)),
        ),
    )


def cost_against_latency(
    comparison: HardwareComparison, against: str = "e2e_p95_s", theme: Theme = "light"
) -> go.Figure:
    """What each fleet costs that serves the rate, and how fast it is; the curve joins those on the Pareto front."""
    colours, found = palette(theme), comparison.found
    traces = []
    if not found.curve.empty:
        traces.append(
            go.Scatter(
                x=finite(found.curve["usd_per_hour"]),
                y=finite(found.curve[against]),
                name=tr("no fleet is cheaper and faster"),
                mode="lines+markers",
                line={"color": colours.revenue, "width": 2, "shape": "hv"},
                marker={"size": 5},
                customdata=[_fleet_words(row, against) for row in found.curve.to_dict(orient="records")],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    for kind, name, colour, symbol in (
        ("measured", tr("fewest machines, measured step times"), colours.cash, "circle"),
        ("predicted", tr("fewest machines, predicted step times"), colours.serving, "circle-open"),
    ):
        rows = [] if found.table.empty else found.table[found.table["kind"] == kind].to_dict(orient="records")
        if rows:
            traces.append(
                go.Scatter(
                    x=finite([row["usd_per_hour"] for row in rows]),
                    y=finite([row[against] for row in rows]),
                    name=name,
                    mode="markers",
                    marker={
                        "color": colour,
                        "size": 11,
                        "symbol": symbol,
                        "line": {"width": 2, "color": colour},
                    },
                    customdata=[_fleet_words(row, against) for row in rows],
                    hovertemplate="%{customdata}<extra></extra>",
                )
            )
    if found.table.empty:
        title = tr("No fleet serves this load within the objectives")
    else:
        best = found.table.iloc[0].to_dict()
        title = tr(
            "{replicas} × {hardware} is cheapest: {usd} per hour, {mtok} per million tokens",
            replicas=numbers.count(best["replicas"]),
            hardware=_short_name(best),
            usd=numbers.usd(best["usd_per_hour"]),
            mtok=numbers.usd(best["usd_per_mtok"]),
        )
    return go.Figure(
        traces,
        layout(
            title,
            tr(
                "Fleets that serve {rate} requests per second within the objectives; simulated",
                rate=numbers.count(found.rate_rps),
            ),
            colours,
            xaxis={
                "title": {"text": tr("cost of the fleet (USD per hour)")},
                "tickprefix": "$",
                "rangemode": "tozero",
            },
            yaxis={
                "title": {"text": tr("{latency} p95 (s)", latency=against[: -len("_p95_s")].upper())},
                "rangemode": "tozero",
            },
            hovermode="closest",
            height=420,
        ),
    )


def _fleet_words(row: Mapping[Any, Any], against: str) -> str:
    return tr(
        "{replicas} × {configuration} ({kind}): {usd} per hour, p95 {latency}, {used} of its capacity used",
        replicas=numbers.count(row["replicas"]),
        configuration=row["configuration"],
        kind=tr(KINDS[row["kind"]]),
        usd=numbers.usd(row["usd_per_hour"]),
        latency=numbers.seconds(row[against]),
        used=numbers.percent(row["capacity_used"]),
    )


def _short_name(row: Mapping[Any, Any]) -> str:
    """A configuration without its batch limits, which all share: "2 × H100 SXM 80 GB, fp8"; measured: the machine."""
    if row["kind"] == "measured":
        return str(row["hardware"])
    return str(row["configuration"]).partition(", batch ")[0]
