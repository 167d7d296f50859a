"""A workbook to fill: number formats, text that stays text, formulas with their value, sheets of months and years."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from xlsxwriter import Workbook
from xlsxwriter.utility import quote_sheetname, xl_cell_to_rowcol, xl_col_to_name
from xlsxwriter.worksheet import Worksheet

from sim.figures.theme import palette
from sim.scenario.metrics import Format

_MONEY = '#,##0;(#,##0);"–"'
_NUMBERS: dict[Format, str] = {
    "money": _MONEY,
    "price": "#,##0.0000",
    "percent": "0.0%",
    "number": "#,##0.00",
    "count": "#,##0",
    "plain_number": "General",
}
HEAD_ROW = 3  # of a sheet of months; lines follow


class Book:
    """An open workbook: its sheets and named formats.

    Formats by name: "title", "head", "head_right", "plain", "bold", "muted", "unit", "wrap", "code", "name", "alarm",
    "input" (a number to change, blue as finance people write inputs), and the number formats "money", "price",
    "percent", "number", "count", "plain_number", each with a bold "…_total".
    """

    def __init__(self, stream: BinaryIO, footer: str) -> None:
        options = {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False}
        self.workbook = Workbook(stream, {**options, "strings_to_numbers": False, "nan_inf_to_errors": False})
        self.workbook.set_calc_mode("auto")
        self._footer = footer.replace("&", "&&")
        self._formats: dict[str, Any] = {}
        colours = palette("light")
        base = {"font_name": "Arial", "font_size": 10, "valign": "top"}
        styles: dict[str, dict[str, Any]] = {
            "title": {"bold": True, "font_size": 14},
            "head": {"bold": True, "font_color": colours.muted, "bottom": 1},
            "head_right": {"bold": True, "font_color": colours.muted, "bottom": 1, "align": "right"},
            "plain": {},
            "muted": {"font_color": colours.muted},
            "bold": {"bold": True, "bg_color": colours.surface},
            "wrap": {"text_wrap": True},
            "unit": {"font_color": colours.muted, "indent": 1},
            "code": {"font_name": "Courier New", "font_size": 9},
            "name": {"font_name": "Courier New", "font_size": 9, "indent": 1},
            "input": {"font_color": "#0000ff", "locked": False, "align": "right", "num_format": "General"},
            "alarm": {"bold": True, "font_color": colours.loss},
        }
        for number, code in _NUMBERS.items():
            styles[number] = {"num_format": code, "align": "right"}
            styles[f"{number}_total"] = {
                **styles[number],
                "bold": True,
                "bg_color": colours.surface,
                "top": 1,
            }
        for name, style in styles.items():
            self._formats[name] = self.workbook.add_format({**base, **style})

    def format(self, name: str) -> Any:
        """A format by its name."""
        return self._formats[name]

    def sheet(self, name: str) -> Worksheet:
        """A new sheet at the end."""
        sheet = self.workbook.add_worksheet(name[:31])
        sheet.hide_gridlines(2)
        return sheet

    def text(self, sheet: Worksheet, row: int, column: int, words: str, style: str = "plain") -> None:
        """Write text as text, whatever it begins with."""
        sheet.write_string(row, column, words[:32_767], self.format(style))

    def number(self, sheet: Worksheet, row: int, column: int, value: float, style: str) -> None:
        """Write a number; an undefined one leaves the cell empty, an infinite one is text."""
        if math.isfinite(value):
            sheet.write_number(row, column, value, self.format(style))
        else:
            sheet.write_string(row, column, _words(value), self.format(style))

    def formula(
        self, sheet: Worksheet, row: int, column: int, formula: str, value: float | str, style: str
    ) -> None:
        """Write a formula with the value that it has; an undefined value is empty text."""
        cached = _words(value) if isinstance(value, float) and not math.isfinite(value) else value
        sheet.write_formula(row, column, formula, self.format(style), cached)

    def name(self, name: str, address: str) -> None:
        """Name a cell for use in other formulas."""
        self.workbook.define_name(name, f"={address}")

    def finish(
        self,
        sheet: Worksheet,
        rows: int,
        columns: int,
        landscape: bool = True,
        breaks: Sequence[int] = (),
    ) -> None:
        """Freeze the head and the labels, and set the sheet up for paper: A4, one page wide, numbered.

        With `breaks` (columns before which a page begins) the sheet is as many pages wide as these make.
        """
        sheet.freeze_panes(rows, columns)
        sheet.set_paper(9)
        if landscape:
            sheet.set_landscape()
        if breaks:
            sheet.set_print_scale(54)
            sheet.set_v_pagebreaks(list(breaks))
        else:
            sheet.fit_to_pages(1, 0)
        sheet.set_margins(left=0.5, right=0.5, top=0.6, bottom=0.7)
        if rows:
            sheet.repeat_rows(0, rows - 1)
        sheet.set_footer(f"&L&8 {self._footer}&R&8 &P / &N")


@dataclass(frozen=True)
class SheetLine:
    """A line of a sheet of months.

    Its cells are formulas of their own column (`vertical`: letter of the column → formula, in months and years
    alike), or of the month (`monthly`), or the numbers given. Years are the sum of their months, the last or the
    first of them, unless `vertical`.
    """

    name: str
    label: str
    values: Sequence[float]  # [months]
    annual: Sequence[float] = ()  # [years]
    style: str = "money"
    vertical: Callable[[str], str] | None = None
    monthly: Callable[[int], str] | None = None
    yearly: Literal["sum", "last", "first"] = "sum"
    unit: str = ""


class MonthSheet:
    """A sheet with lines down, and years (if wanted) and months across.

    The rows are known before anything is written, so that lines may point at each other in any direction.
    """

    def __init__(
        self, book: Book, title: str, note: str, months: Sequence[str], names: Sequence[str], *, years: bool
    ) -> None:
        self.book, self.months = book, list(months)
        self.sheet = book.sheet(title)
        self.years = sorted({month[:4] for month in months}) if years else []
        self.row = {name: HEAD_ROW + 1 + index for index, name in enumerate(names)}
        self._first_month = 1 + (len(self.years) if years else 1)
        self._quoted = quote_sheetname(self.sheet.get_name())
        book.text(self.sheet, 0, 0, title, "title")
        book.text(self.sheet, 1, 0, note, "muted")
        book.text(self.sheet, HEAD_ROW, 0, "", "head")
        for index, head in enumerate([*(self.years if years else [""]), *self.months]):
            book.text(self.sheet, HEAD_ROW, 1 + index, head, "head_right")

    def has(self, name: str) -> bool:
        """Whether there is such a line."""
        return name in self.row

    def letter(self, month: int) -> str:
        """Letter of a month's column."""
        return str(xl_col_to_name(self._first_month + month))

    def cell(self, name: str, month: int) -> str:
        """Address of a line in a month, for any sheet."""
        return f"{self._quoted}!{self.letter(month)}{self.row[name] + 1}"

    def span(self, name: str, first: int, last: int) -> str:
        """Address of a line from one month to another, both included."""
        row = self.row[name] + 1
        return f"{self._quoted}!{self.letter(first)}{row}:{self.letter(last)}{row}"

    def fixed(self, name: str, month: int) -> str:
        """Address of a cell that doesn't move when copied, for names."""
        return f"{self._quoted}!${self.letter(month)}${self.row[name] + 1}"

    def head_span(self) -> str:
        """Address of the names of the months."""
        row = HEAD_ROW + 1
        return f"{self._quoted}!{self.letter(0)}{row}:{self.letter(len(self.months) - 1)}{row}"

    def write(self, line: SheetLine, total: bool = False) -> None:
        """Write a line into its row."""
        row, style = self.row[line.name], f"{line.style}{'_total' if total else ''}"
        self.book.text(self.sheet, row, 0, line.label, "bold" if total else "plain")
        if not self.years:
            self.book.text(self.sheet, row, 1, line.unit, "unit")
        for index in range(len(self.years)):
            column = 1 + index
            formula = (
                line.vertical(xl_col_to_name(column)) if line.vertical else self._year_formula(line, index)
            )
            self.book.formula(self.sheet, row, column, formula, line.annual[index], style)
        for month, value in enumerate(line.values):
            column = self._first_month + month
            if line.vertical or line.monthly:
                formula = (
                    line.vertical(self.letter(month))
                    if line.vertical
                    else line.monthly(month) if line.monthly else ""
                )  # fmt: skip
                self.book.formula(self.sheet, row, column, formula, value, style)
            else:
                self.book.number(self.sheet, row, column, value, style)

    def finish(self, label_width: float = 34) -> None:
        """Widths, frozen head and labels, paper; months fold away under their years."""
        self.sheet.set_column(0, 0, label_width)
        self.sheet.set_column(1, self._first_month - 1, 13)
        last = self._first_month + len(self.months) - 1
        self.sheet.set_column(self._first_month, last, 12, None, {"level": 1} if self.years else {})
        # On paper: the years, then twelve months a page, each with the labels.
        breaks = range(self._first_month + (0 if self.years else 12), last + 1, 12)
        self.book.finish(self.sheet, HEAD_ROW + 1, self._first_month if self.years else 2, breaks=breaks)
        self.sheet.repeat_columns(0, 0)

    def _year_formula(self, line: SheetLine, index: int) -> str:
        inside = [month for month, label in enumerate(self.months) if label[:4] == self.years[index]]
        first, last = (f"{self.letter(month)}{self.row[line.name] + 1}" for month in (inside[0], inside[-1]))
        return {"sum": f"=SUM({first}:{last})", "last": f"={last}", "first": f"={first}"}[line.yearly]


def fixed(address: str) -> str:
    """An address of one cell of a sheet ("Sheet!B2") with dollars, for names."""
    sheet, _, cell = address.rpartition("!")
    row, column = xl_cell_to_rowcol(cell)
    return f"{sheet}!${xl_col_to_name(column)}${row + 1}"


def _words(value: float) -> str:
    return "" if math.isnan(value) else "∞" if value > 0 else "−∞"
