"""First sheet: the headline as formulas over the other sheets, named; the checks; what makes the run again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xlsxwriter.worksheet import Worksheet

from sim.i18n.translate import tr
from sim.report import content
from sim.report.xlsx.statements import Sheets
from sim.report.xlsx.workbook import Book, MonthSheet, fixed

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
    """Fill the first sheet."""
    head, last = result.headline, len(result.monthly) - 1
    year = max(0, last - 11)

    def whole(name: str) -> str:
        return metrics.span(name, 0, last)

    def recent(name: str) -> str:
        return f"SUM({metrics.span(name, year, last)})"

    def first_month(flag: str) -> str:
        return f'=IFERROR(INDEX({metrics.head_span()},MATCH(1,{whole(flag)},0)),"{tr("never")}")'

    busy = f"SUM({whole('replicas_mean')})"
    rows: list[tuple[str, str, str, str, float | str]] = [
        # label, name, formula, format, value
        (tr("ARR at the end"), "ARR_end", f"={metrics.cell('arr_usd', last)}", "money", head["arr_usd_end"]),
        (
            tr("Revenue, whole run"),
            "Revenue_total",
            f"=SUM({whole('revenue_usd')})",
            "money",
            head["revenue_usd_total"],
        ),
        (
            tr("Gross margin, last 12 months"),
            "Gross_margin_last_12",
            f'=IF({recent("revenue_usd")}=0,"",{recent("gross_profit_usd")}/{recent("revenue_usd")})',
            "percent",
            head["gross_margin_last12"],
        ),
        (
            tr("Compute share of revenue"),
            "Compute_share",
            f'=IF(Revenue_total=0,"",(SUM({whole("compute_serving_usd")})+SUM({whole("compute_training_usd")}))'
            "/Revenue_total)",
            "percent",
            head["compute_share_of_revenue"],
        ),
        (
            tr("Cash at the end"),
            "Cash_end",
            f"={metrics.cell('cash_usd', last)}",
            "money",
            head["cash_usd_end"],
        ),
        (tr("Lowest cash"), "Cash_min", f"=MIN({whole('cash_usd')})", "money", head["cash_usd_min"]),
        (
            tr("Cash out"),
            "Cash_out_month",
            first_month("cash_below_zero"),
            "plain_number",
            _said(head["cash_out_month"]),
        ),
        (
            tr("Break-even"),
            "Break_even_month",
            first_month("profit_holds"),
            "plain_number",
            _said(head["breakeven_month"]),
        ),
        (
            tr("Paying customers at the end"),
            "Customers_end",
            f"={metrics.cell('customers', last)}",
            "count",
            head["customers_end"],
        ),
        (
            tr("LTV / CAC"),
            "LTV_to_CAC",
            f"={metrics.cell('ltv_to_cac', last)}",
            "number",
            head["ltv_to_cac_last"],
        ),
        (
            tr("Net revenue retention"),
            "NRR",
            f'=IF(ISNUMBER({metrics.cell("nrr", last)}),{metrics.cell("nrr", last)},"")',
            "percent",
            head["nrr_last"],
        ),
        (
            tr("Serving cost per million tokens"),
            "Serving_cost_per_Mtok",
            f"={metrics.cell('serving_cost_usd_per_mtok', last)}",
            "price",
            head["serving_cost_usd_per_mtok_last"],
        ),
        (
            tr("Revenue per million tokens"),
            "Revenue_per_Mtok",
            f"={metrics.cell('price_usd_per_mtok', last)}",
            "price",
            head["price_usd_per_mtok_last"],
        ),
        (
            tr("Replicas at the peak"),
            "Replicas_peak",
            f"=MAX({whole('replicas_peak')})",
            "count",
            head["replicas_peak"],
        ),
        (
            tr("Fleet utilisation"),
            "Fleet_utilisation",
            f"=IF({busy}=0,AVERAGE({whole('utilisation')}),"
            f"SUMPRODUCT({whole('utilisation')},{whole('replicas_mean')})/{busy})",
            "percent",
            head["utilisation_mean"],
        ),
    ]
    book.text(sheet, 0, 0, result.scenario.name, "title")
    book.text(sheet, 1, 0, content.opening(result), "muted")
    for column, words in enumerate((tr("Result (simulated)"), tr("Value"), tr("Name for formulas"))):
        book.text(sheet, 3, column, words, "head_right" if column == 1 else "head")
    for row, (label, name, formula, style, value) in enumerate(rows, start=4):
        book.text(sheet, row, 0, label)
        book.formula(sheet, row, 1, formula, value, style)
        book.text(sheet, row, 2, name, "name")
        book.name(name, fixed(f"'{sheet.get_name()}'!B{row + 1}"))
    row = 4 + len(rows) + 1
    book.text(sheet, row, 0, tr("Checks (0 = the books agree)"), "head")
    book.text(sheet, row, 1, "", "head")
    book.text(sheet, row, 2, "", "head")
    for label, formula in (
        (tr("Assets − liabilities − equity, largest"), _largest(sheets.balance, last)),
        (tr("Closing cash − cash of the balance sheet, largest"), _largest(sheets.cash, last)),
        (tr("Debits − credits at the end"), f"={trial_total}"),
    ):
        row += 1
        book.text(sheet, row, 0, label)
        book.formula(sheet, row, 1, formula, 0.0, "number")
    row += 2
    book.text(sheet, row, 0, tr("To make this run again"), "head")
    book.text(sheet, row, 1, "", "head")
    book.text(sheet, row, 2, "", "head")
    for label, words in identity:
        row += 1
        book.text(sheet, row, 0, label, "muted")
        book.text(sheet, row, 1, words, "code")
    sheet.set_column(0, 0, 46)
    sheet.set_column(1, 1, 18)
    sheet.set_column(2, 2, 26)
    book.finish(sheet, rows=0, columns=0, landscape=False)
    sheet.activate()


def _largest(sheet: MonthSheet, last: int) -> str:
    span = sheet.span("check", 0, last)
    return f"=MAX(MAX({span}),-MIN({span}))"


def _said(month: object) -> str:
    return tr("never") if month == "never" else str(month)
