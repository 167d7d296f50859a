"""When bills and invoices are really paid: suppliers' terms, customers' terms, late payers, bad debt.

Models accounts payable and receivable. A cost counts in the month it is caused, its cash leaves
`supplier_payment_days` later; revenue counts when it is earned, its cash comes `customer_payment_days` after
the invoice. Losses on invoices are expected from experience and booked with the invoice as an allowance (the
current expected credit losses of ASC 326); the invoice itself is written off some time after it fell due.
Every bill and invoice is remembered as an open item, so that ageing tables tie out to the ledger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simpy.events import ProcessGenerator

from sim.accounting.ledger import micro
from sim.scenario.schema.market import Terms
from sim.stages.world import OpenItem

if TYPE_CHECKING:
    from sim.scenario.schema import Finance
    from sim.stages.world import World

_HOURS_PER_DAY = 24


def buy(world: World, account: str, usd: float, memo: str, supplier: str) -> None:
    """Book a cost now; its cash leaves after the supplier's payment term."""
    amount = micro(usd)
    if amount <= 0:
        return
    delay_h = world.scenario.finance.supplier_payment_days * _HOURS_PER_DAY
    if delay_h == 0:
        pay(world, account, amount, memo, supplier)
        return
    now = world.env.now
    world.ledger.post(now, memo, [(account, amount), ("payable", -amount)], supplier)
    world.open_items.append(OpenItem("payable", now, now + delay_h, now + delay_h, amount))
    world.env.process(_later(world, delay_h, "bill paid", [("payable", amount), ("cash", -amount)], supplier))


def pay(world: World, account: str, amount_micro: int, memo: str, party: str) -> None:
    """Book a cost or settle a debt out of cash at once."""
    if amount_micro:
        world.ledger.post(world.env.now, memo, [(account, amount_micro), ("cash", -amount_micro)], party)


def terms_of(terms: Terms | None, finance: Finance) -> Terms:
    """A segment's own payment terms, else those under `finance`."""
    if terms is not None:
        return terms
    return Terms(
        customer_payment_days=finance.customer_payment_days,
        payment_fee_share=finance.payment_fee_share,
        payment_fee_usd=finance.payment_fee_usd,
    )


def collect(
    world: World, amount_micro: int, terms: Terms | None = None, customers: str = "customers"
) -> None:
    """Let the money for invoices booked as receivable come in: most on time, some late, some never."""
    if amount_micro == 0:
        return
    terms = terms_of(terms, world.scenario.finance)
    bad = round(amount_micro * terms.bad_debt_share)
    late = round((amount_micro - bad) * terms.late_share)
    if bad:
        entries = [("bad_debt", bad), ("bad_debt_allowance", -bad)]
        world.ledger.post(world.env.now, "expected losses on invoices", entries, customers)
        given_up_days = terms.customer_payment_days + terms.write_off_days
        _settle(world, bad, "bad_debt_allowance", terms, given_up_days, "invoices written off", customers)
    late_days = terms.customer_payment_days + terms.late_days
    _settle(world, late, "cash", terms, late_days, "invoices collected", customers)
    on_time = amount_micro - bad - late
    _settle(world, on_time, "cash", terms, terms.customer_payment_days, "invoices collected", customers)


def _settle(
    world: World, amount: int, against: str, terms: Terms, days: float, memo: str, customers: str
) -> None:
    if amount == 0:
        return
    entries = [(against, amount), ("receivable", -amount)]
    delay_h = days * _HOURS_PER_DAY
    if delay_h == 0:
        world.ledger.post(world.env.now, memo, entries, customers)
        return
    now = world.env.now
    due_h = now + terms.customer_payment_days * _HOURS_PER_DAY
    world.open_items.append(OpenItem("receivable", now, due_h, now + delay_h, amount))
    world.env.process(_later(world, delay_h, memo, entries, customers))


def _later(
    world: World, delay_h: float, memo: str, entries: list[tuple[str, int]], party: str
) -> ProcessGenerator:
    yield world.env.timeout(delay_h)
    world.ledger.post(world.env.now, memo, entries, party)
