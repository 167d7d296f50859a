"""First sheet: the headline as formulas over the other sheets, named; the checks; what makes the run again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xlsxwriter.worksheet import Worksheet

from sim.i18n.translate import tr
from sim.report import content
from sim.report.xlsx.statements import Sheets
from sim.report.xlsx.workbook import Book, MonthSheet, fixed
from sim.scenario.metrics import HEADLINE
from sim.scenario.units import in_unit

if TYPE_CHECKING:
    from sim.company.simulate import Result


def write_summary(
    book: Book,
    sheet: Worksheet,
    result: Result,
    sheets: Sheets,
    metrics: MonthSheet,
    trial_total: str,
    identity: list[tuple[str, str]],
) -> None:
    """Write the first sheet: headline, checks, and how to make the run again.

    Args:
        book: the workbook.
        sheet: its first sheet, empty.
        result: the run.
        sheets: the sheets of the statements, already written.
        metrics: the sheet of monthly metrics, already written.
        trial_total: address of the difference between debits and credits.
        identity: (label, value) of what makes the run again.
    """
    last = len(result.monthly) - 1
    book.text(sheet, 0, 0, result.scenario.name, "title")
    book.text(sheet, 1, 0, content.opening(result), "muted")
    row = _write_results(book, sheet, result, _formulas(metrics, last)) + 1
    checks = {
        tr("Assets − liabilities − equity, largest"): _largest(sheets.balance, last),
        tr("Closing cash − cash of the balance sheet, largest"): _largest(sheets.cash, last),
        tr("Debits − credits at the end"): f"={trial_total}",
    }
    _write_head(book, sheet, row, tr("Checks (0 = the books agree)"))
    for label, formula in checks.items():
        row += 1
        book.text(sheet, row, 0, label)
        book.formula(sheet, row, 1, formula, 0.0, "number")
    row += 2
    _write_head(book, sheet, row, tr("To make this run again"))
    for label, words in identity:
        row += 1
        book.text(sheet, row, 0, label, "muted")
        book.text(sheet, row, 1, words, "code")
    sheet.set_column(0, 0, 46)
    sheet.set_column(1, 1, 18)
    sheet.set_column(2, 2, 26)
    book.finish(sheet, rows=0, columns=0, landscape=False)
    sheet.activate()


def _formulas(metrics: MonthSheet, last: int) -> dict[str, tuple[str, str]]:
    """{headline metric: (name of its cell, formula over the sheet of metrics)}; `last` is the last month."""

    def at_end(name: str) -> str:
        return f"={metrics.cell(name, last)}"

    def whole(name: str) -> str:
        return metrics.span(name, 0, last)

    def recent(name: str) -> str:
        return f"SUM({metrics.span(name, max(0, last - 11), last)})"

    def first_month(flag: str) -> str:
        return f'=IFERROR(INDEX({metrics.head_span()},MATCH(1,{whole(flag)},0)),"{tr("never")}")'

    margin = f'=IF({recent("revenue_usd")}=0,"",{recent("gross_profit_usd")}/{recent("revenue_usd")})'
    compute = f"(SUM({whole('compute_serving_usd')})+SUM({whole('compute_training_usd')}))"
    retention = metrics.cell("nrr", last)
    replicas, busy = f"SUM({whole('replicas_mean')})", whole("utilisation")
    utilisation = f"=IF({replicas}=0,AVERAGE({busy}),SUMPRODUCT({busy},{whole('replicas_mean')})/{replicas})"
    return {
        "arr_usd_end": ("ARR_end", at_end("arr_usd")),
        "revenue_usd_total": ("Revenue_total", f"=SUM({whole('revenue_usd')})"),
        "gross_margin_last12": ("Gross_margin_last_12", margin),
        "compute_share_of_revenue": ("Compute_share", f'=IF(Revenue_total=0,"",{compute}/Revenue_total)'),
        "cash_usd_end": ("Cash_end", at_end("cash_usd")),
        "cash_usd_min": ("Cash_min", f"=MIN({whole('cash_usd')})"),
        "cash_out_month": ("Cash_out_month", first_month("cash_below_zero")),
        "breakeven_month": ("Break_even_month", first_month("profit_holds")),
        "customers_end": ("Customers_end", at_end("customers")),
        "ltv_to_cac_last": ("LTV_to_CAC", at_end("ltv_to_cac")),
        "nrr_last": ("NRR", f'=IF(ISNUMBER({retention}),{retention},"")'),
        "serving_cost_usd_per_mtok_last": ("Serving_cost_per_Mtok", at_end("serving_cost_usd_per_mtok")),
        "price_usd_per_mtok_last": ("Revenue_per_Mtok", at_end("price_usd_per_mtok")),
        "replicas_peak": ("Replicas_peak", f"=MAX({whole('replicas_peak')})"),
        "utilisation_mean": ("Fleet_utilisation", utilisation),
    }


def _write_results(book: Book, sheet: Worksheet, result: Result, formulas: dict[str, tuple[str, str]]) -> int:
    """Write the headline, one metric a row, and name its cells; returns the row after it."""
    for column, words in enumerate((tr("Result (simulated)"), tr("Value"), tr("Name for formulas"))):
        book.text(sheet, 3, column, words, "head_right" if column == 1 else "head")
    for row, (metric, (name, formula)) in enumerate(formulas.items(), start=4):
        label, value = HEADLINE[metric].label, result.headline[metric]
        book.text(sheet, row, 0, tr(label))
        shown = in_unit(value, "calendar month") if isinstance(value, str) else value
        book.formula(sheet, row, 1, formula, shown, HEADLINE[metric].format)
        book.text(sheet, row, 2, name, "name")
        book.name(name, fixed(f"'{sheet.get_name()}'!B{row + 1}"))
    return 4 + len(formulas)


def _write_head(book: Book, sheet: Worksheet, row: int, title: str) -> None:
    """Write the head of a part of the sheet."""
    for column, words in enumerate((title, "", "")):
        book.text(sheet, row, column, words, "head")


def _largest(sheet: MonthSheet, last: int) -> str:
    span = sheet.span("check", 0, last)
    return f"=MAX(MAX({span}),-MIN({span}))"
