"""Page Report: hand the run over, as a report that people read and as the data behind it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

import streamlit as st

from engine.utils.progress import Progress, part_of
from sim.company.provenance import provenance_rows
from sim.i18n.translate import LANGUAGES, language, mark, tr
from sim.outputs import result_json, result_tables
from sim.report.content import SECTIONS
from sim.report.html import report_html
from sim.report.pdf import report_pdf
from sim.report.xlsx.report import report_xlsx
from sim.ui import components, sidebar
from sim.ui.jobs import bench
from sim.utils.serialise import table_csv

_RUNS = 200  # as `make run`'s
_STUDY_SHARE = 0.6  # of the time that a report takes

_FORMATS = {
    "html": (mark("HTML: one page with live figures, opens without a network"), "text/html"),
    "pdf": (mark("PDF: A4, to print or to send to a board"), "application/pdf"),
    "xlsx": (
        mark("Excel: statements, metrics and assumptions with live formulas"),
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ),
}


def files_of(formats: list[str], sections: list[str], code: str, progress: Progress) -> dict[str, bytes]:
    """{format: the report's bytes}, made one after the other, after the runs of the section Uncertainty."""
    study, begin = None, 0.0
    if "uncertainty" in sections and set(formats) & {"html", "pdf"}:
        from sim.study.monte_carlo import around
        from sim.study.runs.options import RunOptions

        begin = _STUDY_SHARE
        study = around(result, _RUNS, options=RunOptions(progress=part_of(progress, 0.0, begin)))
    made: dict[str, bytes] = {}
    each = (1 - begin) / len(formats)
    for number, name in enumerate(formats):
        part = part_of(progress, begin + number * each, begin + (number + 1) * each)
        part(0.0, name.upper())
        if name == "html":
            made[name] = report_html(result, sections, code, study).encode()
        elif name == "pdf":
            made[name] = report_pdf(result, sections, code, part, study)
        else:
            made[name] = report_xlsx(result, code)
    return made


def zipped(make: Callable[[], dict[str, bytes]]) -> bytes:
    """Files in one ZIP archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in make().items():
            archive.writestr(name, content)
    return stream.getvalue()


def parquet(name: str) -> bytes:
    """One table of the run as Parquet."""
    stream = io.BytesIO()
    result_tables(result)[name].to_parquet(stream, index=False)
    return stream.getvalue()


def build() -> None:
    """Choose what the report holds, have it made in the background, download it."""
    with st.container(border=True):
        st.subheader(tr("Report"))
        formats = st.pills(
            tr("Formats"),
            list(_FORMATS),
            format_func=str.upper,
            selection_mode="multi",
            default=["html", "pdf"],
            key="formats",
            persist_state="session",
        )
        st.caption("  \n".join(tr(_FORMATS[name][0]) for name in _FORMATS if name in formats))
        sections = st.pills(
            tr("Sections of HTML and PDF"),
            list(SECTIONS),
            format_func=lambda name: tr(SECTIONS[name]),
            selection_mode="multi",
            default=list(SECTIONS),
            key="sections",
            persist_state="session",
        )
        code = st.segmented_control(
            tr("Language of the report"),
            list(LANGUAGES),
            format_func=lambda code: LANGUAGES[code],
            default=language(),
            required=True,
            key="report_language",
            persist_state="session",
        )
        formats = [name for name in _FORMATS if name in formats]
        sections = [name for name in SECTIONS if name in sections]
        lacking = tr("Choose a format.") if not formats else "" if sections else tr("Choose a section.")
        key = ("report", *run_key, code, tuple(formats), tuple(sections))
        if st.button(
            tr("Make the report"),
            type="primary",
            icon=":material/description:",
            disabled=bool(lacking),
            help=lacking or None,
            key="make",
        ):
            st.session_state["report_key"] = key
            bench().start(key, lambda progress: files_of(formats, sections, code, progress), patience_s=0.2)
        made = st.session_state.get("report_key")
        if made is None or made[: len(run_key) + 1] != key[: len(run_key) + 1]:
            return  # none asked for, or of another run than the one on show
        job = bench().find(made)
        files = components.outcome(job, tr("The report")) if job is not None else None
        if files is None:
            return
        with st.container(horizontal=True):
            for name, content in files.items():
                st.download_button(
                    tr("Download {format} ({size})", format=name.upper(), size=_size(content)),
                    content,
                    file_name=f"{stem}.{name}",
                    mime=_FORMATS[name][1],
                    icon=":material/download:",
                    on_click="ignore",
                    key=f"download_{name}",
                )
        if "html" in files and st.toggle(tr("Preview"), key="preview"):
            st.iframe(files["html"].decode(), height=900, alt=tr("Preview of the report"))


def data() -> None:
    """Draw buttons that download the tables and the result."""
    tables: dict[str, Callable[[], dict[str, bytes]]] = {
        "csv": lambda: {
            f"{name}.csv": table_csv(table).encode() for name, table in result_tables(result).items()
        },
        "parquet": lambda: {f"{name}.parquet": parquet(name) for name in result_tables(result)},
    }
    with st.container(border=True):
        st.subheader(tr("Data"))
        st.caption(
            tr(
                "Months, every posting of the ledger, the statements and cohorts; the whole result; the scenario."
            )
        )
        with st.container(horizontal=True):
            for label, name, mime, make in (
                (tr("Months (CSV)"), "monthly.csv", "text/csv", lambda: table_csv(result.monthly).encode()),
                (
                    tr("Ledger (Parquet)"),
                    "ledger.parquet",
                    "application/vnd.apache.parquet",
                    lambda: parquet("ledger"),
                ),
                (tr("All tables (CSV)"), "csv.zip", "application/zip", lambda: zipped(tables["csv"])),
                (
                    tr("All tables (Parquet)"),
                    "parquet.zip",
                    "application/zip",
                    lambda: zipped(tables["parquet"]),
                ),
                (
                    tr("Result (JSON)"),
                    "result.json",
                    "application/json",
                    lambda: result_json(result).encode(),
                ),
                (
                    tr("Scenario (YAML)"),
                    "scenario.yaml",
                    "application/yaml",
                    lambda: result.scenario.to_yaml().encode(),
                ),
            ):
                st.download_button(
                    label,
                    make,
                    file_name=f"{stem}-{name}",
                    mime=mime,
                    icon=":material/table:",
                    on_click="ignore",
                    key=f"download_{name}",
                )


def _size(content: bytes) -> str:
    return f"{len(content) / 1e6:.1f} MB" if len(content) >= 1e5 else f"{max(len(content) / 1e3, 1):.0f} kB"


result = sidebar.run_on_show()
stem = f"{st.session_state['scenario']}-seed{result.seed}".replace(" ", "_")
run_key = (result.scenario.canonical_json(), result.seed, result.profile.content_hash)
components.heading(
    result, tr("Send it: everything below is made from the run on show, and says how to make it again.")
)
build()
data()
st.subheader(tr("Where the numbers come from"))
st.table(
    dict(provenance_rows(result)),
    border="horizontal",
    alt=tr("Where the numbers come from"),
)
