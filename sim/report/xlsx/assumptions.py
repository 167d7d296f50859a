"""Sheet of the assumptions: change a value and the sheet shows the command that runs the company with it.

A workbook can't simulate months of a fleet; what it can do is to write the `--set KEY=VALUE` of every changed value.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from xlsxwriter.worksheet import Worksheet

from sim.i18n.translate import tr
from sim.report import content
from sim.report.xlsx.workbook import Book

if TYPE_CHECKING:
    from sim.company.simulate import Result

_HEAD_ROW = 5
_MEASURED = ("profile.", "capacity.")  # of the machine: no key of a scenario


def write_assumptions(book: Book, result: Result, command: str) -> None:
    """One row per value: key, value to change, unit, kind, source; as run, and what a change adds."""
    sheet = book.sheet(tr("Assumptions"))
    heads = (
        tr("Key"),
        tr("Value"),
        tr("Unit"),
        tr("Kind"),
        tr("Source"),
        tr("As run"),
        tr("Option"),
    )
    book.text(sheet, 0, 0, tr("Assumptions"), "title")
    kinds = "; ".join(f"{tr(word)} {tr(meaning)}" for word, meaning in content.KINDS.values())
    book.text(sheet, 1, 0, kinds, "muted")
    note = tr(
        "Change a blue value: the command below runs the company with it. This workbook doesn't simulate."
    )
    book.text(sheet, 2, 0, note, "muted")
    for column, head in enumerate(heads):
        book.text(sheet, _HEAD_ROW, column, head, "head")
    items = result.assumptions
    for row, item in enumerate(items, start=_HEAD_ROW + 1):
        fixed = item.key.startswith(_MEASURED)
        book.text(sheet, row, 0, item.key, "code")
        _value(book, sheet, row, 1, item.value, "plain_number" if fixed else "input")
        book.text(sheet, row, 2, tr(item.unit) if item.unit else "", "unit")
        book.text(sheet, row, 3, tr(content.KINDS[item.kind][0]))
        book.text(sheet, row, 4, content.source_words(result, item))
        if not fixed:
            _value(book, sheet, row, 5, item.value, "plain_number")
            book.formula(sheet, row, 6, _option(row + 1), "", "code")
    last = _HEAD_ROW + len(items) + 1
    book.text(sheet, 3, 0, command, "code")
    span = f"G{_HEAD_ROW + 2}:G{last}"
    book.formula(sheet, 4, 0, f'=A4&_xlfn.TEXTJOIN("",TRUE,{span})', command, "code")
    for column, width in enumerate((48, 16, 30, 11, 60, 16, 40)):
        sheet.set_column(column, column, width)
    sheet.autofilter(_HEAD_ROW, 0, last - 1, 6)
    book.finish(sheet, rows=_HEAD_ROW + 1, columns=1)


def _value(book: Book, sheet: Worksheet, row: int, column: int, value: Any, style: str) -> None:
    if isinstance(value, bool):
        sheet.write_boolean(row, column, value, book.format(style))
    elif isinstance(value, (int, float)):
        book.number(sheet, row, column, float(value), style)
    elif value is None:
        sheet.write_blank(row, column, None, book.format(style))
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        book.text(sheet, row, column, text, style)


def _option(row: int) -> str:
    """` --set 'KEY=VALUE'` when the value differs from the run's, quoted for a shell; decimals with a point."""
    words = (
        f'IF(ISLOGICAL(B{row}),IF(B{row},"true","false"),'
        f'IF(ISNUMBER(B{row}),SUBSTITUTE(B{row}&"",",","."),B{row}&""))'
    )
    quoted = f'SUBSTITUTE(A{row}&"="&{words},"\'","\'\\\'\'")'
    return f'=IF(EXACT(B{row}&"",F{row}&""),""," --set \'"&{quoted}&"\'")'
