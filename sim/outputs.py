"""What a run leaves behind: report.html, report.pdf, report.xlsx, tables as CSV and Parquet, and result.json.

Every format is made from the same result and carries what it takes to make it again: scenario hash, seed, profile,
program version, command. Outputs carry no time of writing, so the same run gives the same bytes.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from engine.errors import InputError
from engine.utils.progress import Progress, no_progress
from sim.company.provenance import command_line, provenance_rows
from sim.i18n.translate import LANGUAGES, speaking
from sim.i18n.translate import language as language_now
from sim.report.content import SECTIONS, chosen_sections, headline_rows
from sim.report.html import report_html
from sim.report.pdf import report_pdf
from sim.report.xlsx.report import report_xlsx
from sim.utils.serialise import json_ready, table_csv

if TYPE_CHECKING:
    from sim.company.simulate import Result
    from sim.study.monte_carlo import MonteCarlo

__all__ = [
    "FILES",
    "FORMATS",
    "SECTIONS",
    "check_choices",
    "headline_rows",
    "report_html",
    "report_pdf",
    "report_xlsx",
    "result_json",
    "result_schema",
    "result_tables",
    "write_outputs",
]

FILES = ("report.html", "monthly.csv", "ledger.parquet", "result.json")  # unless formats are named
FORMATS = ("html", "pdf", "xlsx", "csv", "parquet", "json")
_SCHEMA = Path(__file__).with_name("outputs.schema.json")


def write_outputs(
    result: Result,
    out_dir: str | Path,
    formats: Iterable[str] | None = None,
    sections: Iterable[str] | None = None,
    language: str | None = None,
    progress: Progress | None = None,
    study: MonteCarlo | None = None,
) -> Path:
    """Write a run's files into a folder; gives the path of the report (of the first file, where there is none).

    All are written beside their places first and then moved there: a reader sees the old files or the new
    ones, never half of one. Whatever `progress` raises ends the work and leaves the old files.

    Args:
        result: the run.
        out_dir: the folder, made if missing.
        formats: names out of `FORMATS`; "csv" and "parquet" are every table of `result_tables`. When None: the
            four of `FILES`.
        sections: of the HTML and the PDF, names out of `SECTIONS`; all when None.
        language: of what people read, "en" or "zh"; the language of the moment when None.
        progress: called with (fraction done, what is being done).
        study: a Monte Carlo study of the same scenario, for the section "uncertainty" of the HTML and the PDF.

    Raises:
        InputError: the folder cannot be written, a format, section or language is unknown, or what draws the PDF is
            missing.
    """
    folder = Path(out_dir)
    check_choices(formats, sections, language)
    makers = _makers(result, formats, chosen_sections(sections), progress or no_progress, study)
    staging = folder / f".partial-{os.getpid()}"
    try:
        staging.mkdir(parents=True, exist_ok=True)
        with speaking(language or language_now()):
            for name, make in makers.items():
                made = make()
                (staging / name).write_bytes(made.encode("utf-8") if isinstance(made, str) else made)
        for name in makers:
            os.replace(staging / name, folder / name)
    except OSError as error:
        raise InputError(f"{folder}: cannot write there: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder / next(iter(makers))


def check_choices(
    formats: Iterable[str] | None = None, sections: Iterable[str] | None = None, language: str | None = None
) -> None:
    """Check the choices of `write_outputs` before a run is made.

    Raises:
        InputError: an unknown format, section or language; an empty list.
    """
    chosen_sections(sections)
    wanted = FORMATS if formats is None else list(formats)
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown or not wanted:
        raise InputError(f"formats: found {', '.join(unknown) or 'none'}, allowed: {', '.join(FORMATS)}")
    if language is not None and language not in LANGUAGES:
        raise InputError(f"language: found {language!r}, allowed: {', '.join(LANGUAGES)}")


def result_tables(result: Result) -> dict[str, pd.DataFrame]:
    """{name: table}: the months, every posting line, the three statements by month, the cohorts."""
    statements = result.statements
    return {
        "monthly": result.monthly,
        "ledger": result.ledger.to_frame(),
        "income": statements.income().reset_index(),
        "cash_flow": statements.cash_flow().reset_index(),
        "balance_sheet": statements.balance_sheet().reset_index(),
        "cohorts": result.cohorts,
    }


def result_schema() -> dict[str, Any]:
    """The JSON Schema of result.json (draft 2020-12); its `$id` carries the version of the format."""
    return dict(json.loads(_SCHEMA.read_text(encoding="utf-8")))


def result_json(result: Result) -> str:
    """The run in one JSON object: what went in (scenario, seed, profile) and what came out, without the months."""
    with speaking("en"):
        provenance = dict(provenance_rows(result))
    content = {
        "$schema": result_schema()["$id"],
        "headline": result.headline,
        "seed": result.seed,
        "command": command_line(result.scenario, result.seed),
        "provenance": provenance,
        "profile_hash": result.profile.content_hash,
        "scenario_hash": result.scenario.content_hash,
        "ledger_hash": result.ledger.content_hash(),
        "loop": result.loop,
        "capacity": {
            "capacity_rps": result.surface.capacity_rps,
            "saturation_rps": result.surface.saturation_rps,
            "provenance": result.surface.provenance,
        },
        "scenario": result.scenario.plain(),
        "events": result.events[["month_index", "day", "stage", "what"]],
        "assumptions": result.assumptions,
    }
    return json.dumps(json_ready(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _makers(
    result: Result,
    formats: Iterable[str] | None,
    sections: list[str],
    progress: Progress,
    study: MonteCarlo | None,
) -> dict[str, Callable[[], str | bytes]]:
    """{file name: what makes its content}, in the order of `FORMATS`."""
    makers: dict[str, Callable[[], str | bytes]] = {
        "report.html": lambda: report_html(result, sections, study=study),
        "report.pdf": lambda: report_pdf(result, sections, progress=progress, study=study),
        "report.xlsx": lambda: report_xlsx(result),
        "result.json": lambda: result_json(result),
    }
    tables = result_tables(result)
    for name, table in tables.items():
        makers[f"{name}.csv"] = lambda table=table: table_csv(table)  # type: ignore[misc]
        makers[f"{name}.parquet"] = lambda table=table: _parquet(table)  # type: ignore[misc]
    names: tuple[str, ...] = FILES
    if formats is not None:
        wanted = set(formats)
        names = tuple(name for name in makers if name.rpartition(".")[2] in wanted)
    return {name: makers[name] for name in names}


def _parquet(table: pd.DataFrame) -> bytes:
    stream = io.BytesIO()
    table.to_parquet(stream, index=False)
    return stream.getvalue()
