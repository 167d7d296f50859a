"""What the figures share: axes, monthly lines and bars, plain values, annotations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go

from sim.i18n.translate import language, tr


def month_axis() -> dict[str, Any]:
    """Axis of months."""
    axis = {"title": {"text": tr("month")}, "type": "date", "hoverformat": "%B %Y", "showgrid": False}
    if language() != "en":  # Plotly names the months in English
        axis |= {"hoverformat": "%Y-%m", "tickformat": "%Y-%m"}
    return axis


def usd_axis(title: str) -> dict[str, Any]:
    """Axis of money."""
    return {"title": {"text": title}, "tickprefix": "$", "exponentformat": "B", "minexponent": 2}


def line(
    table: Any, column: str, name: str, colour: str, say: Callable[[Any], str], dash: str = "solid"
) -> go.Scatter:
    """Line of a column of the monthly table; `say` formats the hover text."""
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
    """Bars of a column of the monthly table; `say` formats the hover text."""
    return go.Bar(
        x=list(table["month"]),
        y=finite(table[column]),
        name=name,
        marker={"color": colour},
        customdata=[say(value) for value in table[column]],
        hovertemplate="%{customdata}",
    )


def annotate(figure: go.Figure, x: Any, y: float, text: str, colour: str) -> None:
    """Annotate one point with text and an arrow."""
    figure.add_annotation(
        x=x, y=y, text=text, showarrow=True, arrowcolor=colour, font={"color": colour}, ay=-36
    )


def finite(values: Any) -> list[float | None]:
    """Plain floats, None (a gap) where a value is undefined or infinite."""
    numbers = np.asarray(values, dtype=np.float64)
    return [float(number) if np.isfinite(number) else None for number in numbers]
