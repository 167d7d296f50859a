"""The bill of a month: metered usage at the prices of the plans in a scenario, invoice by invoice.

Models the billing run at a month's end. `sim.billing.charges` computes the lines; here keys become customers and lines
become invoices. A request belongs to the month (UTC) in which it finished. A total is the sum of its lines, exact in
micro-dollars; only the amount to pay is rounded again, to the cent. The same database, scenario and month give the
same invoices at any time after the month's end.

What a scenario states as a mean and is not metered (further services, customers' own sales, fine-tuning) is on no
invoice, nor are credits for outages; `Bill.not_billed` names the former.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import TYPE_CHECKING

from engine.errors import InputError
from engine.usage.api_keys import ApiKey, ApiKeys
from engine.usage.database import month_bounds_s, month_of, open_database
from engine.usage.meter import Used, used_by_key
from sim.billing.charges import (
    TOKEN_KINDS,
    InvoiceLine,
    charges,
    first_month,
    last_month,
    month_index,
    not_metered,
    plans_of,
    sales_tax,
    token_prices,
)
from sim.stages.payments import terms_of

if TYPE_CHECKING:
    from sim.scenario.scenario import Scenario

MICRO_PER_CENT = 10_000


@dataclass(frozen=True)
class Invoice:
    """Invoice of one customer for a month. Dates are YYYY-MM-DD."""

    number: str
    customer: str
    month: str
    dated: str  # the day after the month; of a running month the day of its last request
    due: str
    is_preliminary: bool  # the month is still running
    lines: tuple[InvoiceLine, ...]
    requests: int
    cost_micro_usd: int  # measured cost of the requests: for the company's eyes, on no invoice

    @property
    def net_micro_usd(self) -> int:
        """Sum of the lines without tax."""
        return sum(line.amount_micro_usd for line in self.lines if line.kind != "tax")

    @property
    def total_micro_usd(self) -> int:
        """Sum of the lines."""
        return sum(line.amount_micro_usd for line in self.lines)

    @property
    def to_pay_cents(self) -> int:
        """The total rounded to the cent, half to even."""
        return round(Fraction(self.total_micro_usd, MICRO_PER_CENT))

    @property
    def tokens(self) -> int:
        """Prompt and output tokens on the lines, including those of failed requests."""
        return sum(line.quantity for line in self.lines if line.kind in TOKEN_KINDS)


@dataclass(frozen=True)
class Bill:
    """All invoices of a month, by number."""

    company: str
    month: str
    is_preliminary: bool
    invoices: tuple[Invoice, ...]
    unassigned: tuple[Used, ...]  # metered for keys that are not in the database; on no invoice
    not_billed: tuple[str, ...]  # parts of the plans on the invoices that no meter counts


def bill(url: str, scenario: Scenario, month: str, *, now_s: float, default_plan: str | None = None) -> Bill:
    """The invoices of a month from a usage database; writes nothing.

    Args:
        url: of the database.
        scenario: whose plans and prices are charged.
        month: YYYY-MM.
        now_s: Unix time [s]; a month that has not ended by then is preliminary.
        default_plan: of keys without a plan.

    Raises:
        InputError: an invalid month, one that has not begun, or a plan that is not in the scenario.
        UsageDatabaseError: the database cannot be read.
    """
    start_s, end_s = month_bounds_s(month)
    if start_s > now_s:
        raise InputError(f"month: found {month}, which has not begun, allowed: up to {month_of(now_s)}")
    engine = open_database(url, create=False)
    try:
        used = used_by_key(engine, start_s, end_s)
    finally:
        engine.dispose()
    keys = ApiKeys(url, create=False)
    try:
        return bill_usage(
            used, keys.list(), scenario, month, is_preliminary=now_s < end_s, default_plan=default_plan
        )
    finally:
        keys.close()


def bill_usage(
    used: Sequence[Used],
    keys: Sequence[ApiKey],
    scenario: Scenario,
    month: str,
    *,
    is_preliminary: bool = False,
    default_plan: str | None = None,
) -> Bill:
    """The invoices from a month's sums by key and model, and all keys.

    Raises:
        InputError: a key to be charged has no plan, or one that is not in the scenario.
    """
    by_key: dict[str, list[Used]] = {}
    for one in used:
        by_key.setdefault(one.key_id, []).append(one)
    plans, prices = plans_of(scenario), token_prices(scenario, month)
    if default_plan is not None and default_plan not in plans:
        raise InputError(f"--default-plan: found {default_plan!r:.60}, allowed: {', '.join(plans)}")
    last_s = max((one.last_finished_s for one in used), default=None) if is_preliminary else None
    dated = _dated(month, last_s)
    invoices: list[Invoice] = []
    not_billed: set[str] = set()
    for number, (customer, own_keys) in enumerate(_customers(keys).items(), 1):
        lines: list[InvoiceLine] = []
        days: list[float] = []
        for name, subscribed in _subscriptions(own_keys, by_key, list(plans), month, default_plan).items():
            segment, plan = plans[name]
            charged = charges(name, plan, subscribed, by_key, prices[name], month)
            if charged:
                terms = terms_of(segment.terms, scenario.finance)
                lines += charged + sales_tax(name, charged, terms.sales_tax_rate)
                days.append(terms.customer_payment_days)
                not_billed |= {f"{name}: {what}" for what in not_metered(plan)}
        if lines:
            own_use = [one for key in own_keys for one in by_key.get(key.key_id, ())]
            invoices.append(
                Invoice(
                    number=f"{month}-{number:04d}",
                    customer=customer,
                    month=month,
                    dated=dated.isoformat(),
                    due=(dated + timedelta(days=round(min(days)))).isoformat(),
                    is_preliminary=is_preliminary,
                    lines=tuple(lines),
                    requests=sum(one.requests for one in own_use),
                    cost_micro_usd=sum(one.cost_micro_usd for one in own_use),
                )
            )
    known = {key.key_id for key in keys}
    return Bill(
        company=scenario.name,
        month=month,
        is_preliminary=is_preliminary,
        invoices=tuple(invoices),
        unassigned=tuple(one for one in used if one.key_id not in known),
        not_billed=tuple(sorted(not_billed)),
    )


def _customers(keys: Sequence[ApiKey]) -> dict[str, list[ApiKey]]:
    """Keys by customer, in the order of the customers' first keys: a customer's number is never another's."""
    customers: dict[str, list[ApiKey]] = {}
    for key in sorted(keys, key=lambda key: (key.created_s, key.key_id)):
        customers.setdefault(key.customer, []).append(key)
    return customers


def _subscriptions(
    keys: Sequence[ApiKey],
    used: Mapping[str, Sequence[Used]],
    plans: Sequence[str],
    month: str,
    default_plan: str | None,
) -> dict[str, list[ApiKey]]:
    """A customer's keys by plan: all that were made by the end of the month, or used in it."""
    subscriptions: dict[str, list[ApiKey]] = {}
    for key in keys:
        if first_month(key) > month_index(month) and key.key_id not in used:
            continue
        plan = key.plan or default_plan
        if plan is not None and plan in plans:
            subscriptions.setdefault(plan, []).append(key)
        elif key.key_id in used or last_month(key) >= month_index(month):
            found = "no plan" if plan is None else f"plan {plan!r:.60}"
            raise InputError(
                f"key {key.key_id} ({key.name}, {key.customer}): found {found}, allowed: {', '.join(plans)}"
                + ("; or give --default-plan" if plan is None else "")
            )
    return subscriptions


def _dated(month: str, last_s: float | None) -> date:
    """The day after a month; the day of the last request where one is given."""
    at_s = month_bounds_s(month)[1] if last_s is None else last_s
    return datetime.fromtimestamp(at_s, UTC).date()
