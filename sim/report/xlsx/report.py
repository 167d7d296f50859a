"""The report as a workbook: what a finance lead opens first, with live formulas wherever a number follows from others.

Sums, margins, retained earnings, cash flow, metrics and the summary are formulas over the lines of the ledger; each
carries the value that the run gave, for programs that don't calculate. Text from a scenario is always written as
text: nothing a user typed becomes a formula or a link. The workbook carries no time, so the same run gives the
same bytes.
"""

from __future__ import annotations

import datetime as dt
import io
from typing import TYPE_CHECKING

from sim.company.provenance import provenance_rows
from sim.i18n.translate import language as language_now
from sim.i18n.translate import speaking, tr
from sim.report import content

if TYPE_CHECKING:
    from sim.company.simulate import Result
    from sim.report.xlsx.workbook import Book


def report_xlsx(result: Result, language: str | None = None) -> bytes:
    """The report as an Excel workbook.

    Sheets: summary, assumptions, income, balance sheet, cash flow, metrics, unit economics, cohorts, trial balance,
    sources. Names (`ARR_end`, `Cash_min`, …) stand for the key results.

    Args:
        result: the run.
        language: "en" or "zh"; the language of the moment when None.

    Raises:
        InputError: an unknown language.
    """
    from sim.report.xlsx.assumptions import write_assumptions
    from sim.report.xlsx.metrics import write_metrics
    from sim.report.xlsx.statements import write_statements, write_trial_balance
    from sim.report.xlsx.summary import write_summary
    from sim.report.xlsx.tables import write_cohorts, write_unit_economics
    from sim.report.xlsx.workbook import Book

    stream = io.BytesIO()
    with speaking(language or language_now()):
        identity = content.identity(result)
        command = identity[-1][1]
        book = Book(stream, footer=f"{result.scenario.content_hash[:12]} · seed {result.seed}")
        book.workbook.set_properties(
            {
                "title": result.scenario.name[:255],
                "subject": tr("Simulated finances"),
                "comments": command[:250],
                "keywords": f"scenario {result.scenario.content_hash} seed {result.seed}",
                "created": dt.datetime(2000, 1, 1),  # not a fact: the same run shall give the same bytes
            }
        )
        summary = book.sheet(tr("Summary"))  # first on screen, filled last: it points at the others
        write_assumptions(book, result, command)
        sheets = write_statements(book, result)
        metrics = write_metrics(book, result, sheets)
        write_unit_economics(book, result)
        write_cohorts(book, result)
        trial_total = write_trial_balance(book, result)
        _write_sources(book, result, command)
        write_summary(book, summary, result, sheets, metrics, trial_total, identity)
        book.workbook.close()
    return stream.getvalue()


def _write_sources(book: Book, result: Result, command: str) -> None:
    sheet = book.sheet(tr("Sources"))
    sheet.set_column(0, 0, 34)
    sheet.set_column(1, 1, 110, book.format("wrap"))
    book.text(sheet, 0, 0, tr(content.SECTIONS["provenance"]), "title")
    rows = [*provenance_rows(result), (tr("Command"), command)]
    for row, (label, words) in enumerate(rows, start=2):
        book.text(sheet, row, 0, label, "muted")
        book.text(sheet, row, 1, words, "wrap")
    start = len(rows) + 3
    book.text(sheet, start, 0, tr("Published sources of assumptions"), "head")
    book.text(sheet, start, 1, "", "head")
    sourced = [item for item in result.assumptions if item.source]
    for row, item in enumerate(sourced, start=start + 1):
        book.text(sheet, row, 0, item.key, "plain")
        book.text(sheet, row, 1, ", ".join(part for part in (item.source, item.date) if part), "wrap")
    book.finish(sheet, rows=2, columns=1, landscape=False)
