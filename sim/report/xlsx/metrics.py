"""Sheet of the metrics by month: those that follow from the statements and customer counts are formulas.

Definitions are those of `sim.accounting.saas_metrics`; sums over three or twelve months start short, as there.
Columns of the monthly table that are measurements of a stage, not ratios, stand below as numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from sim.accounting import saas_metrics
from sim.company.monthly_table import SERVING_ACCOUNTS, TRAINING_ACCOUNTS
from sim.i18n.translate import mark, tr
from sim.report.xlsx.statements import Sheets
from sim.report.xlsx.workbook import Book, MonthSheet, SheetLine
from sim.scenario.metrics import MONTHLY, Metric
from sim.scenario.units import Unit

if TYPE_CHECKING:
    from sim.company.simulate import Result

_TRAILING = saas_metrics.TRAILING_MONTHS
# Lines that only the workbook has: what the metrics divide, and flags for the summary.
_HELPERS = (
    Metric(
        "billed_customers", mark("Customers billed"), "customers", None, "count",
        "Customers who get an invoice for the month.",
    ),
    Metric(
        "sales_and_marketing_usd", mark("Sales and marketing"), "USD per month", None, "money",
        "Spend that CAC divides.",
    ),
    Metric(
        "cash_below_zero", mark("Cash below zero"), "0 or 1", False, "count",
        "1 in a month that ends with cash below zero.",
    ),
    Metric(
        "profit_holds", mark("Three profitable months from here"), "0 or 1", True, "count",
        "1 where this month and the two after it have a positive net income.",
    ),
)  # fmt: skip
_METRICS = MONTHLY | {metric.name: metric for metric in _HELPERS}
# In the order of the sheet. The first ones have formulas where `_formulas` has one.
_LINES = (
    "revenue_usd",
    "mrr_usd",
    "arr_usd",
    "cogs_usd",
    "gross_profit_usd",
    "gross_margin",
    "operating_income_usd",
    "depreciation_usd",
    "ebitda_usd",
    "net_income_usd",
    "free_cash_flow_usd",
    "net_burn_usd",
    "cash_usd",
    "runway_months",
    "rule_of_40",
    "burn_multiple",
    "customers",
    "billed_customers",
    "new_customers",
    "churned_customers",
    "churn_rate",
    "arpu_usd",
    "sales_and_marketing_usd",
    "cac_usd",
    "ltv_usd",
    "ltv_to_cac",
    "cac_payback_months",
    "nrr",
    "grr",
    "compute_serving_usd",
    "compute_training_usd",
    "prompt_tokens",
    "output_tokens",
    "serving_cost_usd_per_mtok",
    "price_usd_per_mtok",
    "cash_below_zero",
    "profit_holds",
)
# Units in the sheet's own words: its columns are months.
_UNITS: dict[Unit, str] = {
    "USD per month": mark("USD"),
    "fraction of revenue": mark("fraction"),
    "customers": mark("count"),
    "0 or 1": mark("1 = yes"),
}
_NOTES = {
    "runway_months": mark("months, ∞ when not burning"),
    "burn_multiple": mark("USD burnt per USD of new ARR"),
}
_BOLD = {"arr_usd", "gross_profit_usd", "net_income_usd", "cash_usd", "ltv_to_cac"}


def write_metrics(book: Book, result: Result, sheets: Sheets) -> MonthSheet:
    """The metrics, then every other column of the monthly table."""
    table = result.monthly
    rest = [name for name in table.columns if name not in _LINES and name != "month"]
    note = tr("Simulated; formulas over the statements and the customer counts. Empty: nothing to divide by.")
    sheet = MonthSheet(book, tr("Metrics"), note, list(table["month"]), [*_LINES, "", *rest], years=False)
    formulas = _formulas(sheet, sheets)
    values = {name: table[name].to_numpy(dtype=np.float64) for name in table.columns if name != "month"}
    values |= _helpers(result)
    for name in _LINES:
        metric = _METRICS[name]
        line = SheetLine(
            name,
            tr(metric.label),
            list(values[name]),
            unit=tr(_NOTES.get(name) or _UNITS.get(metric.unit, metric.unit)),
            style=metric.format,
            monthly=formulas.get(name),
        )
        sheet.write(line, total=name in _BOLD)
    for name in rest:  # the name in the monthly table, which carries the unit
        sheet.write(SheetLine(name, name, list(values[name]), style=_style(name)))
    sheet.finish()
    sheet.sheet.set_column(1, 1, 24)
    return sheet


def _helpers(result: Result) -> dict[str, np.ndarray]:
    """Values [months] of `_HELPERS`."""
    months = len(result.monthly)
    income = result.statements.income()
    billed = sum((seen.sum(axis=0) for seen in result.facts.billed.values()), np.zeros(months))
    profit = result.monthly["net_income_usd"].to_numpy() > 0
    span = min(_TRAILING, months)
    holds = [bool(profit[month : month + span].all()) and month + span <= months for month in range(months)]
    return {
        "billed_customers": np.asarray(billed, dtype=np.float64),
        "sales_and_marketing_usd": np.asarray(
            income[list(saas_metrics.SALES_ACCOUNTS)].sum(axis=1), dtype=np.float64
        ),
        "cash_below_zero": (result.monthly["cash_usd"].to_numpy() < 0).astype(np.float64),
        "profit_holds": np.array(holds, dtype=np.float64),
    }


def _formulas(sheet: MonthSheet, sheets: Sheets) -> dict[str, Callable[[int], str]]:
    income, balance, cash = sheets.income, sheets.balance, sheets.cash
    months = len(sheet.months)

    def at(name: str, month: int) -> str:
        return f"{sheet.letter(month)}{sheet.row[name] + 1}"

    def over(name: str, month: int, count: int = _TRAILING) -> str:
        return f"SUM({at(name, max(0, month - count + 1))}:{at(name, month)})"

    def accounts(*names: str) -> Callable[[int], str]:
        return lambda m: "=" + ("+".join(income.cell(name, m) for name in names if income.has(name)) or "0")

    def divided(above: str, below: str) -> Callable[[int], str]:
        return lambda m: f'=IF({at(below, m)}=0,"",{at(above, m)}/{at(below, m)})'

    def cac(m: int) -> str:
        new = over("new_customers", m)
        return f'=IF({new}=0,"",{over("sales_and_marketing_usd", m)}/{new})'

    def margin(m: int) -> str:
        return f"{over('gross_profit_usd', m)}/{over('revenue_usd', m)}"

    def ltv(m: int) -> str:
        churn = f"{over('churned_customers', m)}/{over('billed_customers', m)}"
        return f'=IFERROR({at("arpu_usd", m)}*({margin(m)})/({churn}),"")'

    def payback(m: int) -> str:
        earned = f"{at('arpu_usd', m)}*{margin(m)}"
        return f'=IFERROR(IF({earned}>0,{at("cac_usd", m)}/({earned}),""),"")'

    def runway(m: int) -> str:
        burn = f"AVERAGE({at('net_burn_usd', max(0, m - _TRAILING + 1))}:{at('net_burn_usd', m)})"
        return f'=IF({burn}<=0,"∞",MAX(0,{at("cash_usd", m)})/{burn})'

    def multiple(m: int) -> str:
        before = f"-{at('arr_usd', m - _TRAILING)}" if m >= _TRAILING else ""
        gained = f"({at('arr_usd', m)}{before})"
        return f'=IF({gained}>0,{over("net_burn_usd", m)}/{gained},"")'

    def rule(m: int) -> str:
        if m < 23:  # the table has no growth before there are two years
            return '=""'
        year, before = over("revenue_usd", m, 12), over("revenue_usd", m - 12, 12)
        return f'=IFERROR(100*(({year}-{before})/{before}+{over("free_cash_flow_usd", m, 12)}/{year}),"")'

    def per_mtok(above: str) -> Callable[[int], str]:
        def formula(m: int) -> str:
            tokens = f"({at('prompt_tokens', m)}+{at('output_tokens', m)})"
            return f'=IF({tokens}=0,"",{at(above, m)}/({tokens}/1000000))'

        return formula

    def holds(m: int) -> str:
        span = min(_TRAILING, months)
        if m + span > months:
            return "=0"
        return f"=IF(MIN({at('net_income_usd', m)}:{at('net_income_usd', m + span - 1)})>0,1,0)"

    return {
        "revenue_usd": lambda m: f"={income.cell('total_revenue', m)}",
        "mrr_usd": accounts(*saas_metrics.MRR_ACCOUNTS),
        "arr_usd": lambda m: f"=12*{at('mrr_usd', m)}",
        "cogs_usd": lambda m: f"={income.cell('total_cogs', m)}",
        "gross_profit_usd": lambda m: f"={at('revenue_usd', m)}-{at('cogs_usd', m)}",
        "gross_margin": divided("gross_profit_usd", "revenue_usd"),
        "operating_income_usd": lambda m: f"={income.cell('operating_income', m)}",
        "depreciation_usd": lambda m: (
            f"={cash.cell('depreciation', m)}" if cash.has("depreciation") else "=0"
        ),
        "ebitda_usd": lambda m: f"={at('operating_income_usd', m)}+{at('depreciation_usd', m)}",
        "net_income_usd": lambda m: f"={income.cell('net_income', m)}",
        "free_cash_flow_usd": lambda m: (
            f"={cash.cell('operating_cash_flow', m)}+{cash.cell('investing_cash_flow', m)}"
        ),
        "net_burn_usd": lambda m: f"=-{at('free_cash_flow_usd', m)}",
        "cash_usd": lambda m: f"={balance.cell('cash', m)}",
        "runway_months": runway,
        "rule_of_40": rule,
        "burn_multiple": multiple,
        "churn_rate": divided("churned_customers", "billed_customers"),
        "arpu_usd": divided("mrr_usd", "billed_customers"),
        "sales_and_marketing_usd": accounts(*saas_metrics.SALES_ACCOUNTS),
        "cac_usd": cac,
        "ltv_usd": ltv,
        "ltv_to_cac": lambda m: f'=IFERROR({at("ltv_usd", m)}/{at("cac_usd", m)},"")',
        "cac_payback_months": payback,
        "compute_serving_usd": accounts(*SERVING_ACCOUNTS),
        "compute_training_usd": accounts(*TRAINING_ACCOUNTS),
        "serving_cost_usd_per_mtok": per_mtok("compute_serving_usd"),
        "price_usd_per_mtok": per_mtok("mrr_usd"),
        "cash_below_zero": lambda m: f"=IF({at('cash_usd', m)}<0,1,0)",
        "profit_holds": holds,
    }


def _style(name: str) -> str:
    if name.endswith("_usd"):
        return "money"
    if name in ("utilisation", "served_fraction", "uptime", "credit_share"):
        return "percent"
    return "plain_number" if name.endswith(("_s", "loss", "quality", "version")) else "number"
