"""Sheets of the three statements and the trial balance: lines of the ledger, everything else a formula over them.

Income lines and balances are the ledger's. Retained earnings add up net income; the cash flow is derived from both
other sheets by the indirect method, and must end on the balance sheet's cash: two rows check it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from xlsxwriter.utility import quote_sheetname, xl_col_to_name

from sim.accounting.labels import STATEMENTS, TOTALS, by_year, line_label, used
from sim.accounting.ledger import MICRO_PER_USD
from sim.i18n.translate import tr
from sim.report.xlsx.workbook import HEAD_ROW, Book, MonthSheet, SheetLine
from sim.scenario.metrics import MONTHLY

if TYPE_CHECKING:
    from sim.company.simulate import Result

_TENTH_OF_A_CENT = 0.001


@dataclass(frozen=True)
class Sheets:
    """The statements on their sheets."""

    income: MonthSheet
    balance: MonthSheet
    cash: MonthSheet


def write_statements(book: Book, result: Result) -> Sheets:
    """Income, balance sheet and cash flow, by year and month."""
    chart = result.statements.ledger.chart
    frames = {name: used(getattr(result.statements, name)()) for name in STATEMENTS}
    months = list(result.monthly["month"])
    extra = {"income": ["gross_margin", "net_margin"], "balance_sheet": ["check"], "cash_flow": ["check"]}
    note = tr("USD, from the double-entry ledger; amounts in brackets are negative.")
    made = {
        name: MonthSheet(book, tr(STATEMENTS[name]), note, months, [*frames[name], *extra[name]], years=True)
        for name in ("income", "balance_sheet", "cash_flow")
    }
    sheets = Sheets(made["income"], made["balance_sheet"], made["cash_flow"])
    _write_income(sheets, frames["income"], chart)
    _write_balance(sheets, frames["balance_sheet"], chart)
    _write_cash(sheets, frames["cash_flow"], chart, result)
    for one in made.values():
        one.finish()
    return sheets


def write_trial_balance(book: Book, result: Result) -> str:
    """Every account with its balance at the end of each year, debits positive; gives the address of the last total."""
    ledger, months = result.ledger, list(result.monthly["month"])
    years = sorted({month[:4] for month in months})
    ends = [max(index for index, month in enumerate(months) if month[:4] == year) for year in years]
    balances = np.cumsum(ledger.monthly_micro(len(months)), axis=1)[:, ends] / MICRO_PER_USD
    sheet = book.sheet(tr("Trial balance"))
    book.text(sheet, 0, 0, tr("Trial balance"), "title")
    note = tr("USD at the end of each year since the start; debits positive, credits in brackets.")
    book.text(sheet, 1, 0, note, "muted")
    for column, head in enumerate([tr("Account"), tr("Type"), *years]):
        book.text(sheet, HEAD_ROW, column, head, "head" if column < 2 else "head_right")
    row = HEAD_ROW
    for account, values in zip(ledger.accounts, balances, strict=True):
        if not np.any(values):
            continue
        row += 1
        book.text(sheet, row, 0, line_label(account))
        book.text(sheet, row, 1, tr(ledger.chart[account]), "muted")
        for column, value in enumerate(values, start=2):
            book.number(sheet, row, column, float(value), "money")
    book.text(sheet, row + 1, 0, tr("Debits less credits"), "bold")
    book.text(sheet, row + 1, 1, "", "bold")
    for column in range(2, 2 + len(years)):
        letter = xl_col_to_name(column)
        formula = f"=ROUND(SUM({letter}{HEAD_ROW + 2}:{letter}{row + 1}),2)"
        book.formula(sheet, row + 1, column, formula, 0.0, "money_total")
    sheet.set_column(0, 0, 34)
    sheet.set_column(1, 1 + len(years), 14)
    book.finish(sheet, HEAD_ROW + 1, 1, landscape=False)
    return f"{quote_sheetname(sheet.get_name())}!{xl_col_to_name(1 + len(years))}{row + 2}"


def _write_income(sheets: Sheets, frame: pd.DataFrame, chart: Mapping[str, str]) -> None:
    sheet, annual = sheets.income, by_year(frame, balances=False)
    row = {name: index + 1 for name, index in sheet.row.items()}

    def total(kind: str) -> str:
        return _sum_of([row[name] for name in _names(frame) if chart.get(name) == kind])

    formulas = {
        "total_revenue": total("revenue"),
        "total_cogs": total("cogs"),
        "gross_profit": f"={{c}}{row['total_revenue']}-{{c}}{row['total_cogs']}",
        "total_opex": total("opex"),
        "operating_income": f"={{c}}{row['gross_profit']}-{{c}}{row['total_opex']}",
        "total_interest": total("interest"),
        "income_before_tax": f"={{c}}{row['operating_income']}-{{c}}{row['total_interest']}",
        "net_income": f"={{c}}{row['income_before_tax']}"
        + "".join(f"-{{c}}{row[name]}" for name in _names(frame) if chart.get(name) == "tax"),
    }
    _write_lines(sheet, frame, annual, formulas)
    for name, label, above in (
        ("gross_margin", tr(MONTHLY["gross_margin"].label), "gross_profit"),
        ("net_margin", tr("Net margin"), "net_income"),
    ):
        revenue = row["total_revenue"]
        sheet.write(
            SheetLine(
                name,
                label,
                _ratio(frame[above], frame["total_revenue"]),
                _ratio(annual[above], annual["total_revenue"]),
                "percent",
                vertical=_vertical(f'=IF({{c}}{revenue}=0,"",{{c}}{row[above]}/{{c}}{revenue})'),
            )
        )


def _write_balance(sheets: Sheets, frame: pd.DataFrame, chart: Mapping[str, str]) -> None:
    sheet, income, annual = sheets.balance, sheets.income, by_year(frame, balances=True)
    row = {name: index + 1 for name, index in sheet.row.items()}

    def total(kind: str, *more: str) -> str:
        return _sum_of([row[name] for name in _names(frame) if chart.get(name) == kind or name in more])

    formulas = {
        "total_assets": total("asset"),
        "total_liabilities": total("liability"),
        "total_equity": total("equity", "retained_earnings"),
    }

    def retained(month: int) -> str:
        before = f"{sheet.letter(month - 1)}{row['retained_earnings']}+" if month else ""
        return f"={before}{income.cell('net_income', month)}"

    _write_lines(sheet, frame, annual, formulas, {"retained_earnings": retained}, balances=True)
    _write_check(
        sheet,
        tr("Check: assets − liabilities − equity"),
        f"=ROUND({{c}}{row['total_assets']}-{{c}}{row['total_liabilities']}-{{c}}{row['total_equity']},2)",
    )


def _write_cash(sheets: Sheets, frame: pd.DataFrame, chart: Mapping[str, str], result: Result) -> None:
    sheet, income, balance = sheets.cash, sheets.income, sheets.balance
    annual = by_year(frame, balances=False)
    row = {name: index + 1 for name, index in sheet.row.items()}

    def grown(account: str, month: int, sign: str) -> str:
        """Change of an account of the balance sheet in the month, as a term of a formula."""
        if not balance.has(account):
            return ""
        opposite = "-" if sign == "+" else "+"
        before = f"{opposite}{balance.cell(account, month - 1)}" if month else ""
        return f"{sign}{balance.cell(account, month)}{before}"

    wear = [name for name in income.row if name.startswith("depreciation_")]

    def monthly(name: str, month: int) -> str:
        if name == "net_income":
            return f"={income.cell('net_income', month)}"
        if name == "depreciation":
            return "=" + "+".join(income.cell(one, month) for one in wear)
        if name == "shares_sold":
            return f"={grown('paid_in_capital', month, '+')}"
        if name == "debt_drawn_less_repaid":
            return f"={grown('debt', month, '+')}"
        if name == "investing_cash_flow":
            worn = f"-{sheet.letter(month)}{row['depreciation']}" if sheet.has("depreciation") else ""
            both = grown("equipment", month, "-") + grown("accumulated_depreciation", month, "-") + worn
            return f"={both or 0}"
        if name == "opening_cash":
            return f"={sheet.letter(month - 1)}{row['closing_cash']}" if month else "=0"
        account = name.removeprefix("change_in_")
        return f"={grown(account, month, '-' if chart[account] == 'asset' else '+')}"

    names = _names(frame)
    operating = [
        row[one] for one in names if one in ("net_income", "depreciation") or one.startswith("change_in_")
    ]
    financing = [row[one] for one in names if one in ("shares_sold", "debt_drawn_less_repaid")]
    flows = [row[f"{one}_cash_flow"] for one in ("operating", "investing", "financing")]
    formulas = {
        "operating_cash_flow": _sum_of(operating),
        "financing_cash_flow": _sum_of(financing),
        "net_cash_flow": "=" + "+".join(f"{{c}}{number}" for number in flows),
        "closing_cash": f"={{c}}{row['opening_cash']}+{{c}}{row['net_cash_flow']}",
    }
    by_month = {name: partial(monthly, name) for name in names if name not in formulas}
    _write_lines(sheet, frame, annual, formulas, by_month)
    cash = balance.row["cash"] + 1
    # Both sheets have the same columns: years, then months.
    quoted = balance.cell("cash", 0).rpartition("!")[0]
    _write_check(
        sheet,
        tr("Check: closing cash − cash of the balance sheet"),
        f"=ROUND({{c}}{row['closing_cash']}-{quoted}!{{c}}{cash},2)",
    )


def _write_lines(
    sheet: MonthSheet,
    frame: pd.DataFrame,
    annual: pd.DataFrame,
    vertical: dict[str, str],
    monthly: Mapping[str, Callable[[int], str]] | None = None,
    balances: bool = False,
) -> None:
    """Every line of a statement: formulas of the column or the month where there are some, else numbers."""
    for name in _names(frame):
        line = SheetLine(
            name,
            line_label(name),
            list(frame[name]),
            list(annual[name]),
            vertical=_vertical(vertical[name]) if name in vertical else None,
            monthly=(monthly or {}).get(name),
            yearly="last" if balances else "first" if name == "opening_cash" else "sum",
        )
        sheet.write(line, total=name in TOTALS)


def _write_check(sheet: MonthSheet, label: str, formula: str) -> None:
    nothing = [0.0] * len(sheet.months), [0.0] * len(sheet.years)
    sheet.write(SheetLine("check", label, *nothing, style="number", vertical=_vertical(formula)))
    row = sheet.row["check"]
    alarm = {
        "type": "cell",
        "criteria": "not between",
        "minimum": -_TENTH_OF_A_CENT,
        "maximum": _TENTH_OF_A_CENT,
    }
    sheet.sheet.conditional_format(
        row, 1, row, len(sheet.years) + len(sheet.months), {**alarm, "format": sheet.book.format("alarm")}
    )


def _names(frame: pd.DataFrame) -> list[str]:
    return [str(name) for name in frame.columns]


def _vertical(formula: str) -> Callable[[str], str]:
    return lambda letter: formula.replace("{c}", letter)


def _sum_of(rows: Sequence[int]) -> str:
    """SUM over rows of a column, neighbours as one range; 0 without any."""
    if not rows:
        return "=0"
    ranges: list[list[int]] = []
    for number in rows:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return f"=SUM({','.join(f'{{c}}{first}:{{c}}{last}' for first, last in ranges)})"


def _ratio(above: pd.Series, below: pd.Series) -> list[float]:
    return [float(a / b) if b else float("nan") for a, b in zip(above, below, strict=True)]
