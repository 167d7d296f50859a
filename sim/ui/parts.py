"""What the pages share: a figure as a card, a row of metrics, the colours of the moment."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import streamlit as st

from sim.figures import all_figures
from sim.theme import Theme, without_title

if TYPE_CHECKING:
    from sim.company import Result

# The chart's own colours of text, grid and ground are left to the browser's theme, which knows a switch at once.
_LEFT_TO_BROWSER = {"paper_bgcolor": None, "plot_bgcolor": None, "hoverlabel": None, "font": None}
_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"],
}


def theme() -> Theme:
    """Light or dark, as the browser shows the app."""
    return "dark" if st.context.theme.type == "dark" else "light"


def heading(result: Result, lead: str) -> None:
    """Title of a page: the company, and what this page answers."""
    st.title(_plain(result.scenario.name))
    st.caption(lead)


def figures(result: Result, *names: str) -> None:
    """Figures as cards, two in a row where there is room; names are those of `sim.figures.all_figures`."""
    with st.grid(2 if len(names) > 1 else 1, min_column_width=340, gap="medium"):
        for name in names:
            with st.container(border=True, height="stretch"):
                figure(result, name)


def figure(result: Result, name: str) -> None:
    """One figure; its finding and what is drawn stand above it as text, which wraps on a narrow screen."""
    title, subtitle, chart = without_title(all_figures()[name](result, theme()))
    st.markdown(f"**{_plain(title)}**")
    st.caption(_plain(subtitle))
    chart.update_layout(**_LEFT_TO_BROWSER)
    for axis in (*chart.select_xaxes(), *chart.select_yaxes()):
        axis.update(gridcolor=None, linecolor=None, zerolinecolor=None)
    st.plotly_chart(chart, key=f"figure_{name}", config=_CONFIG, alt=f"{title}. {subtitle}")


def metric(
    label: str,
    value: str,
    series: Iterable[Any] | None = None,
    note: str | None = None,
    help: str | None = None,
) -> None:
    """A headline number with the course of the months under it."""
    finite = [float(x) for x in series if math.isfinite(float(x))] if series is not None else []
    st.metric(
        label,
        value,
        delta=note,
        delta_color="blue" if finite else "off",
        delta_arrow="off",
        chart_data=finite or None,
        chart_type="area",
        border=True,
        height="stretch",
        help=help,
    )


def _plain(text: str) -> str:
    """Text of ours or of a user as Markdown that shows it as it is ($ would start a formula)."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]<>()#+-!|$:~" else letter for letter in text)
