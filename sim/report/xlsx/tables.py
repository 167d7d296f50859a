"""Sheets of the unit economics by plan and of the cohorts: quantities of the run, ratios as formulas."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from xlsxwriter.utility import xl_col_to_name
from xlsxwriter.worksheet import Worksheet

from sim.i18n.translate import mark, tr
from sim.report.xlsx.workbook import HEAD_ROW, Book
from sim.scenario.metrics import MONTHLY, PER_PLAN, Metric

if TYPE_CHECKING:
    from sim.company.simulate import Result

# Line: formula over other lines of the same column ({name}), or None for a number of the run.
_PLAN_LINES: dict[str, str | None] = {
    "months": None,
    "customers_mean": None,
    "tokens_mtok": None,
    "revenue_usd": None,
    "cogs_own_usd": None,
    "cogs_shared_usd": None,
    "cogs_usd": "={cogs_own_usd}+{cogs_shared_usd}",
    "gross_profit_usd": "={revenue_usd}-{cogs_usd}",
    "gross_margin": '=IF({revenue_usd}=0,"",{gross_profit_usd}/{revenue_usd})',
    **{
        f"{name}_per_customer": f'=IF({{customers_mean}}=0,"",{{{name}}}/({{customers_mean}}*{{months}}))'
        for name in ("revenue_usd", "cogs_usd", "gross_profit_usd")
    },
    **{
        f"{name}_per_mtok": f'=IF({{tokens_mtok}}=0,"",{{{name}}}/{{tokens_mtok}})'
        for name in ("revenue_usd", "cogs_usd", "gross_profit_usd")
    },
    "churn_per_month": None,
    "ltv_usd": '=IFERROR({revenue_usd_per_customer}*{gross_margin}/{churn_per_month},"")',
}
_METRICS = PER_PLAN | {
    "months": Metric("months", mark("Months"), "months", None, "count", "Months that the lines are over.")
}
_ADDED = ("tokens_mtok", "revenue_usd", "cogs_own_usd", "cogs_shared_usd")


def write_unit_economics(book: Book, result: Result) -> None:
    """Plans across, and all plans together where that can be added up."""
    plans = result.unit_economics.assign(months=float(min(12, len(result.monthly))))
    sheet = book.sheet(tr("Unit economics"))
    book.text(sheet, 0, 0, tr("Unit economics by plan, last 12 months"), "title")
    book.text(sheet, 1, 0, tr("USD unless the line says otherwise; the fleet is shared by tokens."), "muted")
    book.text(sheet, HEAD_ROW, 0, "", "head")
    row = {name: HEAD_ROW + 2 + index for index, name in enumerate(_PLAN_LINES)}  # as a sheet counts, from 1
    for name, formula in _PLAN_LINES.items():
        style: str = _METRICS[name].format
        book.text(sheet, row[name] - 1, 0, tr(_METRICS[name].label))
        for column, value in enumerate(plans[name], start=1):
            letter = xl_col_to_name(column)
            if formula is None:
                book.number(sheet, row[name] - 1, column, float(value), style)
            else:
                cells = {other: f"{letter}{number}" for other, number in row.items()}
                book.formula(sheet, row[name] - 1, column, formula.format(**cells), float(value), style)
    for column, plan in enumerate(plans["plan"], start=1):
        book.text(sheet, HEAD_ROW, column, str(plan), "head_right")
    total, last = 1 + len(plans), xl_col_to_name(len(plans))
    book.text(sheet, HEAD_ROW, total, tr("All plans"), "head_right")
    for name in _ADDED:
        formula = f"=SUM(B{row[name]}:{last}{row[name]})"
        style = f"{_METRICS[name].format}_total"
        book.formula(sheet, row[name] - 1, total, formula, float(plans[name].sum()), style)
    sums = {name: float(plans[name].sum()) for name in _ADDED}
    cogs = sums["cogs_own_usd"] + sums["cogs_shared_usd"]
    profit, revenue = sums["revenue_usd"] - cogs, sums["revenue_usd"]
    letter = xl_col_to_name(total)
    cells = {other: f"{letter}{number}" for other, number in row.items()}
    for name, value in (
        ("cogs_usd", cogs),
        ("gross_profit_usd", profit),
        ("gross_margin", profit / revenue if revenue else math.nan),
    ):
        style = f"{_METRICS[name].format}_total"
        book.formula(sheet, row[name] - 1, total, str(_PLAN_LINES[name]).format(**cells), value, style)
    sheet.set_column(0, 0, 48)
    sheet.set_column(1, total, 16)
    book.finish(sheet, HEAD_ROW + 1, 1)


def write_cohorts(book: Book, result: Result) -> None:
    """Triangles by month of joining and age: customers and MRR, and the shares of the first month as formulas."""
    sheet = book.sheet(tr("Cohorts"))
    book.text(sheet, 0, 0, tr("Cohorts, all plans together"), "title")
    note = tr("Rows: month of joining; columns: months since. Customers billed, and MRR in USD.")
    book.text(sheet, 1, 0, note, "muted")
    cohorts = result.cohorts
    row = HEAD_ROW
    if not len(cohorts):
        book.text(sheet, row, 0, tr("Nobody was billed in this run."))
    for quantity, title, share_title, style in (
        ("customers", tr("Customers"), tr("Customers kept"), "count"),
        ("mrr_usd", tr(MONTHLY["mrr_usd"].label), tr("MRR kept"), "money"),
    ):
        if not len(cohorts):
            continue
        table = cohorts.pivot_table(
            index="cohort", columns="age_months", values=quantity, aggfunc="sum", sort=True
        )
        top = row + 1
        row = _triangle(book, sheet, row, title, table, style)
        row = _shares(book, sheet, row + 1, share_title, table, top) + 1
    sheet.set_column(0, 0, 18)
    sheet.set_column(1, max(1, len(result.monthly)), 9)
    book.finish(sheet, HEAD_ROW, 1)


def _triangle(book: Book, sheet: Worksheet, row: int, title: str, table: pd.DataFrame, style: str) -> int:
    _head(book, sheet, row, title, table)
    for index, (cohort, values) in enumerate(table.iterrows(), start=row + 1):
        book.text(sheet, index, 0, str(cohort))
        for column, value in enumerate(values, start=1):
            if np.isfinite(value):
                book.number(sheet, index, column, float(value), style)
    return row + len(table) + 1


def _shares(book: Book, sheet: Worksheet, row: int, title: str, table: pd.DataFrame, top: int) -> int:
    """Each cell of the triangle that begins at row `top` over the first of its row."""
    _head(book, sheet, row, title, table)
    for index, (cohort, values) in enumerate(table.iterrows()):
        at = row + 1 + index
        book.text(sheet, at, 0, str(cohort))
        first = float(values.iloc[0])
        for column, value in enumerate(values, start=1):
            if not np.isfinite(value):
                continue
            here = top + index + 1
            formula = f'=IF($B{here}=0,"",{xl_col_to_name(column)}{here}/$B{here})'
            kept = float(value) / first if first else math.nan
            book.formula(sheet, at, column, formula, kept, "percent")
    last = row + len(table)
    colours = {"type": "2_color_scale", "min_color": "#ffffff", "max_color": "#8fcdb9"}
    sheet.conditional_format(row + 1, 1, last, table.shape[1], colours)
    return last + 1


def _head(book: Book, sheet: Worksheet, row: int, title: str, table: pd.DataFrame) -> None:
    book.text(sheet, row, 0, title, "head")
    for column, age in enumerate(table.columns, start=1):
        sheet.write_number(row, column, int(age), book.format("head_right"))
