"""What a chart draws, as one table: a row for each point, with the units of its axes in the column names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

_LARGEST_ROWS = 200_000


def chart_data(figure: go.Figure) -> pd.DataFrame:
    """The points of all traces of a figure: column `series`, then the axes by their titles.

    Traces over the same axes stand below one another. A heat map gives a row for each cell, a Sankey diagram a row
    for each flow (from, to, value), a trace with error bars or intervals their ends.
    """
    tables = [_trace_table(figure, trace) for trace in figure.data if trace.visible is not False]
    tables = [table for table in tables if len(table)]
    if not tables:
        return pd.DataFrame({"series": []})
    return pd.concat(tables, ignore_index=True).head(_LARGEST_ROWS)


def _trace_table(figure: go.Figure, trace: Any) -> pd.DataFrame:
    kind, name = trace.type, trace.name or ""
    if kind == "sankey":
        labels = list(trace.node.label if trace.node.label is not None else [])
        return pd.DataFrame(
            {
                "from": [labels[index] for index in trace.link.source],
                "to": [labels[index] for index in trace.link.target],
                "value": list(trace.link.value),
            }
        )
    x_title, y_title = _axis_title(figure, trace, "x"), _axis_title(figure, trace, "y")
    if x_title == y_title:
        x_title, y_title = f"{x_title} (x)", f"{y_title} (y)"
    if kind in ("heatmap", "contour", "surface"):
        return _cells(trace, name, x_title, y_title)
    columns = {
        title: np.asarray(values, dtype=object)
        for title, values in (
            ("label", getattr(trace, "labels", None)),
            ("value", getattr(trace, "values", None)),
            (x_title, getattr(trace, "x", None)),
            (y_title, getattr(trace, "y", None)),
        )
        if values is not None
    }
    for letter, title in (("x", x_title), ("y", y_title)):
        error = getattr(trace, f"error_{letter}", None)
        if error is not None and error.array is not None:
            columns[f"{title}, plus"] = np.asarray(error.array, dtype=object)
            columns[f"{title}, minus"] = np.asarray(
                error.array if error.arrayminus is None else error.arrayminus, dtype=object
            )
    rows = max((len(values) for values in columns.values()), default=0)
    whole = {title: values for title, values in columns.items() if len(values) == rows}
    table = pd.DataFrame(whole)
    table.insert(0, "series", name)
    return table


def _cells(trace: Any, name: str, x_title: str, y_title: str) -> pd.DataFrame:
    z = np.asarray(trace.z, dtype=object)
    rows, columns = z.shape
    x = np.asarray(trace.x if trace.x is not None else range(columns), dtype=object)[:columns]
    y = np.asarray(trace.y if trace.y is not None else range(rows), dtype=object)[:rows]
    bar = getattr(trace, "colorbar", None)
    value = (bar.title.text if bar is not None else None) or "value"
    return pd.DataFrame(
        {"series": name, x_title: np.tile(x, rows), y_title: np.repeat(y, columns), value: z.reshape(-1)}
    )


def _axis_title(figure: go.Figure, trace: Any, letter: str) -> str:
    axis = getattr(trace, f"{letter}axis", None) or letter
    found = figure.layout[f"{letter}axis{axis[1:]}"]
    return str((found.title.text if found.title else None) or letter)
