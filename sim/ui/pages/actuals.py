"""Page Plan and actual: the plan beside meter and bank, causes of the difference, and the forecast.

Which database is read is not the visitor's choice alone: files under the server's working folder, or the one that
the server's FLYWHEEL_DATABASE names.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pandas as pd
import streamlit as st

from engine.errors import InputError
from engine.utils.progress import Progress
from sim.actuals.bank import bank_in
from sim.actuals.compare import Actuals, plan_against_actual
from sim.actuals.files import variance_table
from sim.actuals.wording import in_words, label
from sim.figures.actuals import SHOWN, measure_by_month, revenue_bridge, week_shape
from sim.i18n import numbers as human
from sim.i18n.translate import language, mark, tr
from sim.scenario.units import in_unit
from sim.study.wording import quantity
from sim.ui import components, sidebar
from sim.ui.study_jobs import studied, study

_VARIABLE = "FLYWHEEL_DATABASE"
_MOST_FILES = 50
_RUNS = {0: mark("one run"), 50: "50", 200: "200", 500: "500"}
_UPLOAD_MB = 10
_PLACES = ("out", ".")  # folders of the working folder that are looked through, without those below them


def databases() -> dict[str, str]:
    """{what a visitor sees: URL} of the databases that may be opened here."""
    found: dict[str, str] = {}
    named = os.environ.get(_VARIABLE)
    if named:
        found[tr("the server's own ({variable})", variable=_VARIABLE)] = named
    home = Path.cwd().resolve()
    for place in _PLACES:
        for path in sorted((home / place).glob("*.db"))[:_MOST_FILES]:
            # A link may lead out of the folder.
            if path.is_file() and path.resolve().is_relative_to(home):
                found[str(path.relative_to(home))] = f"sqlite:///{path.resolve()}"
    return found


def asked_for() -> dict[str, object] | None:
    """What to compare, from the form; None before it was sent."""
    choices = databases()
    if not choices:
        st.info(
            tr(
                "No usage database is here. `flywheel serve` writes out/usage.db; another one can be named in the "
                "variable {variable} before the app is started.",
                variable=_VARIABLE,
            ),
            icon=":material/database:",
        )
        st.stop()
    with st.form("actuals", border=True):
        with st.grid(4, min_column_width=170, gap="small"):
            database = st.selectbox(tr("Usage database"), list(choices), key="usage_database")
            months = st.text_input(
                tr("Months to compare"), key="actual_months", max_chars=20, placeholder="2026-08..2026-11",
                help=tr("Empty: from the first request to the last month that is over."),
            )  # fmt: skip
            default_plan = st.text_input(
                tr("Plan of keys that name none"), key="default_plan", max_chars=200,
                help=tr("Name of a plan of the scenario; empty: such keys are refused."),
            )  # fmt: skip
            runs = st.selectbox(
                tr("Runs of the forecast"),
                list(_RUNS),
                key="forecast_runs",
                format_func=lambda n: tr(_RUNS[n]),
            )
        upload = st.file_uploader(
            tr("Bank or billing rows (CSV)"), type="csv", key="bank_file", max_upload_size=_UPLOAD_MB,
            help=tr("Columns: date, amount_usd, category or account; counterparty, note, kind and id if there are."),
        )  # fmt: skip
        sent = st.form_submit_button(tr("Compare"), type="primary", icon=":material/rule:")
    if sent:
        st.session_state["actuals_asked"] = {
            "database": choices[database],
            "months": months.strip() or None,
            "default_plan": default_plan.strip() or None,
            "runs": int(runs),
            "bank": None if upload is None else (upload.name, upload.getvalue()),
            "now_s": time.time(),
        }
    asked: dict[str, object] | None = st.session_state.get("actuals_asked")
    return asked


def compared(asked: dict[str, object]) -> Actuals | None:
    """The comparison, computed in the background; None until it is done."""
    company, profile, surface = studied(result), result.profile, result.surface
    options = {name: value for name, value in asked.items() if name not in ("bank", "database")}
    file = asked["bank"]

    def work(progress: Progress) -> Actuals:
        bank = None
        if isinstance(file, tuple):
            bank = bank_in(file[1], file[0])
        return plan_against_actual(
            company, str(asked["database"]), bank, profile=profile, surface=surface, progress=progress,
            **options,  # type: ignore[arg-type]
        )  # fmt: skip

    digest = hashlib.sha256(file[1]).hexdigest() if isinstance(file, tuple) else ""
    about = (
        company.canonical_json(),
        profile.content_hash,
        str(asked["database"]),
        tuple(options.items()),
        digest,
    )
    return study("actuals", tr("The comparison"), (*about, language()), work)


def numbers(found: Actuals) -> None:
    """The last actual month in numbers, each beside the plan's."""
    last = found.metered.months[-1]
    table = found.months[found.months["month"] == last].set_index("measure")
    with st.grid(4, min_column_width=160, gap="small"):
        for measure in ("revenue_usd", "customers", "tokens", "cash_usd"):
            metric = SHOWN[measure][0]
            planned, actual = (
                in_unit(table.loc[measure, column], metric.unit) for column in ("planned", "actual")
            )
            components.metric(f"{tr(metric.title)}, {last}", actual, note=tr("plan: {value}", value=planned))


def words(found: Actuals) -> None:
    """Draw the causes of the differences, and the notes."""
    st.subheader(tr("What differed, and why"))
    st.markdown("\n".join(f"- {components.plain(line)}" for line in in_words(found)))
    with st.expander(tr("What was assumed and left out"), icon=":material/info:"):
        st.markdown("\n".join(f"- {components.plain(line)}" for line in found.notes))


def pictures(found: Actuals) -> None:
    """Each measure by month, the bridge from planned to actual revenue, the shape of the week."""
    theme = components.theme()
    with st.grid(2, min_column_width=340, gap="small"):
        for measure in SHOWN:
            own = found.months[found.months["measure"] == measure]
            components.chart(measure_by_month(found, measure, theme), f"actual_{measure}", own)
        components.chart(revenue_bridge(found, theme), "revenue_bridge", found.revenue)
        components.chart(week_shape(found, theme), "week_shape", found.traffic.week)


def measured(found: Actuals) -> None:
    """All estimates beside the plan's values, and the scenario made of them."""
    st.subheader(tr("Measured assumptions"))
    st.caption(tr("With bounds that hold the true value in 95 of 100 cases; few customers, wide bounds."))
    ones = found.calibration.estimates
    st.dataframe(
        pd.DataFrame(
            {
                tr("Assumption"): [label(one) for one in ones],
                tr("Measured"): [quantity(one.value, one.unit) for one in ones],
                tr("95% interval"): [
                    tr("{low} to {high}", low=quantity(one.low, one.unit), high=quantity(one.high, one.unit))
                    for one in ones
                ],
                tr("Plan"): [
                    human.UNKNOWN
                    if one.planned_as_seen != one.planned_as_seen
                    else quantity(one.planned_as_seen, one.unit)
                    for one in ones
                ],
                tr("Key"): [one.key for one in ones],
            }
        ),
        hide_index=True,
        height="content",
        alt=tr("Measured assumptions"),
    )
    with st.container(horizontal=True):
        st.download_button(
            tr("Calibrated scenario"), found.calibrated.to_yaml(), "calibrated.yaml", "application/yaml",
            icon=":material/download:", on_click="ignore", key="calibrated_yaml",
            help=tr("Starts in the month after; import it on the page Scenario."),
        )  # fmt: skip
        from sim.utils.serialise import table_csv

        st.download_button(
            tr("Variances by month"), table_csv(variance_table(found)), "variance.csv", "text/csv",
            icon=":material/download:", on_click="ignore", key="variance_csv",
        )  # fmt: skip


result = sidebar.run_on_show()
components.heading(result, tr("What was planned, what the meter and the bank say, and what follows from it."))
asked = asked_for()
if asked is not None:
    try:
        comparison = compared(asked)
    except InputError as error:
        st.error(components.plain(str(error)), icon=":material/error:")
    else:
        if comparison is not None:
            numbers(comparison)
            words(comparison)
            pictures(comparison)
            measured(comparison)
