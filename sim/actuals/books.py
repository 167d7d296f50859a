"""The books of what happened: invoices of the meter, its serving cost and bank rows, in the plan's chart of accounts.

Models bookkeeping of a running company. Each month closes with the real bill (`sim.billing.invoices`): one posting
per invoice and plan, revenue by kind of line. Serving is a cost of the month at the measured cost of its requests,
owed to the cloud until a bank row pays it; what bank rows of machines come to beyond that is a cost of its own
(machines that stood idle are paid too, and on no meter). Other bank rows are paid items. Days of a calendar month are
spread over the 730 hours that a month has in the books, so `sim.accounting.statements.Statements` reads these books
as it reads a plan's.

What was in the bank before the first month is paid-in capital here: who paid it in, or earned it, lies before these
books. An invoice counts in micro-dollars and is paid in cents, so a fraction of a cent stays on the customer's account.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from sim.accounting.ledger import HOURS_PER_MONTH, Ledger
from sim.accounting.parties import cohort_party
from sim.accounting.statements import Statements
from sim.actuals.bank import Bank, BankRow
from sim.actuals.meter import Metered, month_fraction
from sim.billing.charges import first_month, month_index
from sim.billing.invoices import Bill, Invoice, bill_usage
from sim.scenario.scenario import Scenario
from sim.stages.world import CLOSING_HOUR

ACCOUNT_OF: dict[str, str] = {  # of the kinds of lines on an invoice
    "onboarding": "revenue_services",
    "fee": "revenue_seats",
    "licence": "revenue_licences",
    "prompt": "revenue_tokens",
    "cached": "revenue_tokens",
    "output": "revenue_tokens",
    "failed": "revenue_tokens",
    "included": "revenue_tokens",
    "commitment": "revenue_commitments",
    "advance": "deferred_revenue",
    "drawn": "deferred_revenue",
    "tax": "sales_tax_payable",
}
METERED_ACCOUNTS = (  # what is known without any bank row
    "revenue_tokens",
    "revenue_seats",
    "revenue_licences",
    "revenue_commitments",
    "serving_on_demand",
)
RENTED = ("serving_reserved", "serving_on_demand")  # what a bank row of machines may be booked as
_MEASURED = "serving_on_demand"
_LAST_HOUR = HOURS_PER_MONTH - 1e-6


@dataclass(frozen=True)
class Books:
    """Complete books of some months, and what could not be posted.

    `bills`: of each month. `outside_lines`: bank rows before or after these months. `opening_is_planned`: no bank row
    has the opening balance, so the plan's cash replaces it.
    """

    ledger: Ledger
    labels: list[str]
    bills: tuple[Bill, ...]
    has_bank: bool
    opening_is_planned: bool
    outside_lines: tuple[int, ...]

    @property
    def statements(self) -> Statements:
        """Income, balance sheet and cash flow by month."""
        return Statements(self.ledger, self.labels)


def keep_books(
    metered: Metered,
    scenario: Scenario,
    bank: Bank | None,
    *,
    planned_opening_micro: int,
    default_plan: str | None = None,
) -> Books:
    """Post all actual months into a ledger.

    Args:
        metered: the meter's months.
        scenario: whose plans and prices are billed.
        bank: rows of the bank; None: nothing is known of other cost and of cash.
        planned_opening_micro: the plan's cash before the first month, for a bank file without an opening balance.
        default_plan: of keys that name none.

    Raises:
        InputError: a key that is charged for is on no plan, or on one that the scenario doesn't have.
    """
    ledger, labels = Ledger(), metered.months
    inside, outside, opening, opening_is_planned = _opening(metered, bank, planned_opening_micro)
    if opening:
        ledger.post(0.0, "opening cash", [("cash", opening), ("paid_in_capital", -opening)], "founders")
    rows: dict[int, list[BankRow]] = defaultdict(list)
    for row in inside:
        rows[metered.month_at(row.time_s)].append(row)
    bills = []
    for index, label in enumerate(labels):
        # The cost is owed as the month goes; rows of the same month pay it, so it is booked before them.
        cost = sum(one.cost_micro_usd for one in metered.used[index])
        if cost:
            entries = [(_MEASURED, cost), ("payable", -cost)]
            ledger.post(index * HOURS_PER_MONTH, "measured cost of requests", entries, "cloud")
        for row in rows[index]:
            _post_row(ledger, row, index, label)
        is_preliminary = metered.is_preliminary and index == len(labels) - 1
        bill = bill_usage(
            metered.used[index],
            metered.keys,
            scenario,
            label,
            is_preliminary=is_preliminary,
            default_plan=default_plan,
        )
        cohorts = _cohorts(metered, default_plan)
        for invoice in bill.invoices:
            _post_invoice(ledger, invoice, index, cohorts)
        bills.append(bill)
    return Books(
        ledger, labels, tuple(bills), bank is not None, opening_is_planned, tuple(row.line for row in outside)
    )


def _opening(
    metered: Metered, bank: Bank | None, planned_micro: int
) -> tuple[list[BankRow], list[BankRow], int, bool]:
    """(rows within the months, rows outside, cash before the first month, whether that is the plan's)."""
    if bank is None:
        return [], [], planned_micro, True
    start_s, end_s = metered.start_s, metered.end_s
    before = [row for row in bank.rows if row.time_s < start_s]
    inside = [row for row in bank.rows if start_s <= row.time_s < end_s]
    after = [row for row in bank.rows if row.time_s >= end_s]
    if any(row.is_opening for row in before):
        # From the opening on, all that moved cash before the first month is in the bank at its beginning.
        opening = sum(row.amount_micro for row in before if not row.is_bill and row.account != "cash")
        return inside, after, opening, False
    if any(row.is_opening for row in inside):
        return inside, before + after, 0, False
    return inside, before + after, planned_micro, True


def _post_row(ledger: Ledger, row: BankRow, month: int, label: str) -> None:
    amount = row.amount_micro
    if not amount:
        return
    time_h = month * HOURS_PER_MONTH + min(month_fraction(label, row.time_s) * HOURS_PER_MONTH, _LAST_HOUR)
    memo = row.note or ("bill" if row.is_bill else "paid")
    if row.is_bill:
        against = "receivable" if amount > 0 else "payable"
        ledger.post(time_h, memo, [(against, amount), (row.account, -amount)], row.counterparty)
        return
    entries = [("cash", amount)]
    if row.account in RENTED and amount < 0:
        owed = max(0, -ledger.balance_micro("payable"))
        settled = min(owed, -amount)
        entries += [("payable", settled), (row.account, -amount - settled)]
    else:
        entries.append((row.account, -amount))
    ledger.post(time_h, memo, [entry for entry in entries if entry[1]], row.counterparty)


def _post_invoice(
    ledger: Ledger, invoice: Invoice, month: int, cohorts: Mapping[tuple[str, str], int]
) -> None:
    """One posting for each plan on the invoice, under the name of the customer's cohort."""
    for plan in dict.fromkeys(line.plan for line in invoice.lines):
        lines = [line for line in invoice.lines if line.plan == plan]
        if any(line.kind == "trial" for line in lines):
            continue  # it takes back all of the month
        amounts: dict[str, int] = defaultdict(int)
        for line in lines:
            amounts[ACCOUNT_OF[line.kind]] -= line.amount_micro_usd
        amounts["receivable"] = -sum(amounts.values())
        entries = [(account, amount) for account, amount in amounts.items() if amount]
        if entries:
            cohort = min(max(0, cohorts.get((invoice.customer, plan), 0)), month)
            time_h = month * HOURS_PER_MONTH + CLOSING_HOUR
            ledger.post(
                time_h, f"invoice {invoice.number}, {invoice.customer}", entries, cohort_party(plan, cohort)
            )


def _cohorts(metered: Metered, default_plan: str | None) -> dict[tuple[str, str], int]:
    """{(customer, plan): month of the first key}."""
    start = month_index(metered.months[0])
    cohorts: dict[tuple[str, str], int] = {}
    for key in sorted(metered.keys, key=lambda key: key.created_s, reverse=True):
        cohorts[key.customer, key.plan or default_plan or ""] = first_month(key) - start
    return cohorts
