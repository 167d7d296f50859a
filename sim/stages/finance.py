"""Money that is not tied to one stage: funding, salaries, other cost, and when bills are really paid.

Models accrual accounting: a cost counts in the month it is caused, its cash leaves `supplier_payment_days`
later; revenue counts when invoiced, its cash comes `customer_payment_days` later. Cash may go below zero:
the report then says in which month the money ended, because a founder wants to see by how much it falls
short.
"""

from __future__ import annotations

from simpy.events import ProcessGenerator

from sim.ledger import micro
from sim.world import OPENING_HOUR, PAYDAY_HOUR, World

_HOURS_PER_DAY = 24


def run(world: World) -> ProcessGenerator:
    """Pay in the founders' money, then by month: rounds, salaries, other cost; note when cash runs out."""
    finance = world.scenario.finance
    _pay_in(world, "opening cash", "founders", finance.initial_cash_usd)
    solvent = True
    for month in range(world.months):
        yield world.until(month, OPENING_HOUR)
        for name, funding in finance.funding.items():
            if funding.month == month and funding.amount_usd > 0:
                _pay_in(world, "funding round", name, funding.amount_usd)
                world.note("finance", f"round {name!r} pays in {funding.amount_usd:,.0f} USD")
        yield world.until(month, PAYDAY_HOUR)
        for name, role in finance.people.items():
            heads = max(0.0, role.headcount + int(role.hires_per_year * month / 12))
            amount = micro(heads * role.cost_usd_per_year / 12)
            if amount:
                entries = [(f"people_{role.function}", amount), ("cash", -amount)]
                world.ledger.post(world.env.now, "salaries", entries, name)
            world.record("headcount", heads)
        buy(world, "other_opex", finance.other_opex_usd_per_month, "office, software, legal", "suppliers")
        cash = world.ledger.balance_micro("cash")
        if solvent and cash < 0:
            world.note("finance", "cash is used up")
        solvent = cash >= 0


def buy(world: World, account: str, usd: float, memo: str, supplier: str) -> None:
    """Book a cost now; its cash leaves after the supplier's payment term."""
    amount = micro(usd)
    if amount <= 0:
        return
    delay_h = world.scenario.finance.supplier_payment_days * _HOURS_PER_DAY
    if delay_h == 0:
        world.ledger.post(world.env.now, memo, [(account, amount), ("cash", -amount)], supplier)
        return
    world.ledger.post(world.env.now, memo, [(account, amount), ("payable", -amount)], supplier)
    world.env.process(_later(world, delay_h, "bill paid", [("payable", amount), ("cash", -amount)], supplier))


def collect(world: World, amount_micro: int) -> None:
    """Let the customers' money for invoices booked as receivable come in after their payment term."""
    if amount_micro == 0:
        return
    entries = [("cash", amount_micro), ("receivable", -amount_micro)]
    delay_h = world.scenario.finance.customer_payment_days * _HOURS_PER_DAY
    if delay_h == 0:
        world.ledger.post(world.env.now, "invoices collected", entries, "customers")
    else:
        world.env.process(_later(world, delay_h, "invoices collected", entries, "customers"))


def _later(
    world: World, delay_h: float, memo: str, entries: list[tuple[str, int]], party: str
) -> ProcessGenerator:
    yield world.env.timeout(delay_h)
    world.ledger.post(world.env.now, memo, entries, party)


def _pay_in(world: World, memo: str, investor: str, usd: float) -> None:
    amount = micro(usd)
    if amount:
        world.ledger.post(world.env.now, memo, [("cash", amount), ("paid_in_capital", -amount)], investor)
