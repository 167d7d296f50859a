"""The lines of the statements as people read them, and which of them are sums.

The names are those of the chart of accounts (`sim.accounting.ledger.CHART`) and of the frames of
`sim.accounting.statements`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from sim.i18n.translate import mark, tr

TOTALS = frozenset(
    {
        "total_revenue",
        "total_cogs",
        "gross_profit",
        "total_opex",
        "operating_income",
        "total_interest",
        "income_before_tax",
        "net_income",
        "total_assets",
        "total_liabilities",
        "total_equity",
        "operating_cash_flow",
        "investing_cash_flow",
        "financing_cash_flow",
        "net_cash_flow",
        "closing_cash",
    }
)
STATEMENTS = {
    "income": mark("Income statement"),
    "cash_flow": mark("Cash flow"),
    "balance_sheet": mark("Balance sheet"),
}
_KEPT = TOTALS | {"cash", "retained_earnings", "opening_cash"}
_CHANGE = "change_in_"
_LABELS = {
    "cash": mark("Cash"),
    "receivable": mark("Receivable"),
    "bad_debt_allowance": mark("Allowance for bad debt"),
    "deposits": mark("Deposits"),
    "equipment": mark("Equipment"),
    "accumulated_depreciation": mark("Accumulated depreciation"),
    "right_of_use": mark("Right of use (leases)"),
    "total_assets": mark("Total assets"),
    "payable": mark("Payable"),
    "sales_tax_payable": mark("Sales tax payable"),
    "income_tax_payable": mark("Income tax payable"),
    "deferred_revenue": mark("Deferred revenue"),
    "lease_liability": mark("Lease liability"),
    "debt": mark("Debt"),
    "total_liabilities": mark("Total liabilities"),
    "paid_in_capital": mark("Paid-in capital"),
    "retained_earnings": mark("Retained earnings"),
    "total_equity": mark("Total equity"),
    "revenue_tokens": mark("Revenue from tokens"),
    "revenue_seats": mark("Revenue from seats"),
    "revenue_commitments": mark("Revenue from commitments"),
    "revenue_licences": mark("Revenue from licences"),
    "revenue_shared": mark("Revenue shared by customers"),
    "revenue_services": mark("Revenue from services"),
    "revenue_fine_tuning": mark("Revenue from fine-tuning"),
    "sla_credits": mark("Credits for outages"),
    "total_revenue": mark("Total revenue"),
    "serving_reserved": mark("Serving, reserved machines"),
    "serving_on_demand": mark("Serving, on-demand machines"),
    "serving_owned": mark("Serving, upkeep of own machines"),
    "lease_serving": mark("Serving, leases"),
    "depreciation_serving": mark("Serving, depreciation"),
    "fine_tuning_compute": mark("Compute of customers' fine-tuning"),
    "support": mark("Support"),
    "people_support": mark("People in support"),
    "payment_fees": mark("Payment fees"),
    "partner_share": mark("Share of partners"),
    "total_cogs": mark("Total cost of goods sold"),
    "gross_profit": mark("Gross profit"),
    "training_compute": mark("Training compute"),
    "lease_training": mark("Training, leases"),
    "depreciation_training": mark("Training, depreciation"),
    "data": mark("Data"),
    "people_research": mark("People in research"),
    "people_sales": mark("People in sales"),
    "people_general": mark("People, general"),
    "recruiting": mark("Recruiting"),
    "severance": mark("Severance"),
    "marketing": mark("Marketing"),
    "sales_commissions": mark("Sales commissions"),
    "bad_debt": mark("Bad debt"),
    "legal": mark("Legal"),
    "lease_general": mark("Leases, general"),
    "depreciation_general": mark("Depreciation, general"),
    "other_opex": mark("Other operating expense"),
    "total_opex": mark("Total operating expense"),
    "operating_income": mark("Operating income"),
    "interest_income": mark("Interest income"),
    "interest_expense": mark("Interest expense"),
    "total_interest": mark("Total interest"),
    "income_before_tax": mark("Income before tax"),
    "income_tax": mark("Income tax"),
    "net_income": mark("Net income"),
    "depreciation": mark("Depreciation"),
    "operating_cash_flow": mark("Operating cash flow"),
    "investing_cash_flow": mark("Investing cash flow"),
    "shares_sold": mark("Shares sold"),
    "debt_drawn_less_repaid": mark("Debt drawn less repaid"),
    "financing_cash_flow": mark("Financing cash flow"),
    "net_cash_flow": mark("Net cash flow"),
    "opening_cash": mark("Opening cash"),
    "closing_cash": mark("Closing cash"),
}


def line_label(name: str) -> str:
    """A line of a statement, in the language of the moment."""
    if name.startswith(_CHANGE):
        account = line_label(name.removeprefix(_CHANGE))
        return tr("Change in {account}", account=account[0].lower() + account[1:])
    return tr(_LABELS[name]) if name in _LABELS else name.replace("_", " ").capitalize()


def by_year(frame: pd.DataFrame, *, balances: bool) -> pd.DataFrame:
    """Calendar years of a monthly statement: flows add up, balances are those of the last month."""
    groups = frame.groupby([str(month)[:4] for month in frame.index])
    annual = groups.last() if balances else groups.sum()
    if "closing_cash" in annual:
        annual["opening_cash"] = groups["opening_cash"].first()
        annual["closing_cash"] = groups["closing_cash"].last()
    return annual


def used(frame: pd.DataFrame) -> pd.DataFrame:
    """The statement without lines that are zero throughout; sums and cash stay."""
    kept = [name for name in frame.columns if name in _KEPT or np.any(frame[name].to_numpy())]
    return frame[kept]
