"""What the pages share: a chart as a card, a row of metrics, work in progress, the colours and words of the moment."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from engine.errors import InputError
from sim.figures.catalogue import all_figures
from sim.figures.theme import Theme, without_title
from sim.i18n import numbers
from sim.i18n.translate import LANGUAGES, language, set_language, tr, worded
from sim.ui.chart_data import chart_data
from sim.ui.jobs import Cancelled, Job, bench

if TYPE_CHECKING:
    from sim.company.simulate import Result

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_POLL_S = 0.8
PAINT_S = 0.6  # the headline in the browser (tests/bench/bench_app.py); the charts come no later for it
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


def speak() -> None:
    """Set the visitor's language for this thread; call it first in a script run and in a fragment."""
    code = st.session_state.get("lang")
    set_language(code if code in LANGUAGES else "en")


def fragment(*, run_every: float | None = None, key: str | None = None) -> Callable[[F], F]:
    """`st.fragment` in the visitor's language: its reruns don't pass through `app.py`."""

    def decorate(function: F) -> F:
        @wraps(function)
        def spoken(*args: Any, **named: Any) -> Any:
            speak()
            return function(*args, **named)

        fragmented: F = st.fragment(spoken, run_every=run_every, key=key)  # type: ignore[assignment]
        return fragmented

    return decorate


def heading(result: Result, lead: str) -> None:
    """Title of a page: the company, and what this page answers."""
    st.title(plain(result.scenario.name))
    st.caption(lead)


def let_paint() -> None:
    """Once in a visit, between headline and charts: else the browser shows neither before it has read Plotly."""
    if not st.session_state.get("painted"):
        time.sleep(PAINT_S)
        st.session_state["painted"] = True


def figures(result: Result, *names: str) -> None:
    """Figures as cards, two in a row on wide screens; names are those of `sim.figures.catalogue.all_figures`."""
    with st.grid(2 if len(names) > 1 else 1, min_column_width=340, gap="small"):
        for name in names:
            figure(result, name)


def figure(result: Result, name: str) -> None:
    """One figure of a run as a card."""
    chart(all_figures()[name](result, theme()), name)


def chart(
    figure: go.Figure,
    key: str,
    data: pd.DataFrame | None = None,
    *,
    beneath: Callable[[], Any] | None = None,
) -> None:
    """A figure as a card: its finding and what is drawn as text, which wraps on a narrow screen; the data as CSV.

    `data` defaults to what the figure draws (see `chart_data`). `beneath` draws below it, in the card. The figure is
    not changed.
    """
    title, subtitle, bare = without_title(figure)
    bare.update_layout(**_LEFT_TO_BROWSER)
    for axis in (*bare.select_xaxes(), *bare.select_yaxes()):
        axis.update(gridcolor=None, linecolor=None, zerolinecolor=None)
    with st.container(border=True, height="stretch"):
        with st.container(horizontal=True, wrap=False):
            with st.container(gap="xxsmall"):
                st.markdown(f"**{plain(title)}**")
                st.caption(plain(subtitle))
            st.download_button(
                "CSV",
                lambda: _csv(chart_data(figure) if data is None else data),
                file_name=f"{key}.csv",
                mime="text/csv",
                key=f"data_{key}",
                type="tertiary",
                icon=":material/download:",
                on_click="ignore",
                help=tr("What this chart draws, as a table."),
            )
        st.plotly_chart(bare, key=f"figure_{key}", config=_CONFIG, alt=f"{title}. {subtitle}")
        if beneath is not None:
            beneath()


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


def outcome(job: Job[T], label: str) -> T | None:
    """The outcome of a job; draws its progress until then (see `watch`), or its error in one line.

    `label` names the work ("Monte Carlo") before the progress and the error.
    """
    if not job.future.done():
        if not job.cancelled:
            watch(job, label)
            return None
    elif job.future.exception() is None:
        return job.future.result()
    error = job.future.exception() if job.future.done() else None
    if isinstance(error, InputError):
        st.error(plain(str(error)), title=tr("{work} is not possible", work=label), icon=":material/error:")
    elif error is None or isinstance(error, Cancelled):
        st.info(tr("{work} was cancelled.", work=label), icon=":material/cancel:")
    else:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        st.error(plain(said), title=tr("{work} failed", work=label), icon=":material/error:")
    if not isinstance(error, InputError):  # the same wrong input would only fail again
        st.button(
            tr("Start again"),
            icon=":material/refresh:",
            key=f"again_{_short(job)}",
            on_click=bench().forget,
            args=(job.key,),
        )
    return None


@fragment(run_every=_POLL_S)
def watch(job: Job[Any], label: str) -> None:
    """Progress of work under way: a bar, what it does, time left, a cancel button; the page is drawn anew when done."""
    if job.future.done() or job.cancelled:
        st.rerun()
    if job.place:
        said = tr("{work}: waiting, {count} before it", work=label, count=job.place)
    else:
        said = tr("{work}: {doing}", work=label, doing=worded(job.doing))
    left_s = job.left_s
    if left_s is not None:
        said += " · " + tr("about {time} left", time=_rough(left_s))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(job.fraction, text=plain(said))
        st.button(tr("Cancel"), icon=":material/close:", key=f"cancel_{_short(job)}", on_click=job.cancel)


def plain(text: str) -> str:
    """Text escaped for Markdown ($ would start a formula)."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]<>()#+-!|$:~" else letter for letter in text)


def _csv(table: pd.DataFrame) -> bytes:
    from sim.utils.serialise import table_csv

    return table_csv(table).encode("utf-8-sig")  # the mark tells a spreadsheet that it is UTF-8


def _rough(time_s: float) -> str:
    if time_s < 90:
        return tr("{count} s", count=numbers.count(max(round(time_s), 1)))
    return tr("{count} min", count=numbers.count(round(time_s / 60)))


def _short(job: Job[Any]) -> str:
    return f"{hash((job.key, language())) & 0xFFFFFFFF:x}"
