"""Money that is not tied to one stage: funding, people, assets, other cost, interest and tax.

Models the finance team's month. Opening: rounds, loans, purchases and leases. Payday: salaries, other cost,
taxes due. Close of the books, after all other stages: depreciation, rent, interest, income tax. Cash may go
below zero: the report then says in which month the money ended, because a founder wants to see by how much it
falls short. When bills and invoices are really paid is in `sim.stages.payments`.
"""

from __future__ import annotations

from simpy.events import ProcessGenerator

from sim.stages.finance import assets, funding, people, taxes
from sim.stages.finance.assets import invest
from sim.stages.payments import buy, collect, pay
from sim.stages.world import BOOKS_HOUR, OPENING_HOUR, PAYDAY_HOUR, World

__all__ = ["buy", "collect", "invest", "pay", "run"]


def run(world: World) -> ProcessGenerator:
    """Pay in the founders' money, then month by month; note when cash runs out."""
    finance = world.scenario.finance
    treasury = funding.Treasury()
    income_tax = taxes.IncomeTax(finance.taxes) if finance.taxes is not None else None
    sought, staff = funding.rounds_to_seek(world), people.hire(world)
    world.env.process(_close_books(world, treasury, income_tax))
    funding.pay_in(world, "opening cash", "founders", finance.initial_cash_usd)
    solvent = True
    for month in range(world.months):
        yield world.until(month, OPENING_HOUR)
        funding.open_month(world, treasury, sought)
        assets.open_month(world)
        people.assign_sales(world, staff)
        yield world.until(month, PAYDAY_HOUR)
        people.pay_salaries(world, staff)
        buy(world, "other_opex", finance.other_opex_usd_per_month, "office, software, legal", "suppliers")
        taxes.remit_sales_tax(world)
        if income_tax is not None:
            income_tax.pay(world)
        cash = world.ledger.balance_micro("cash")
        if solvent and cash < 0:
            world.note("finance", "cash_used_up")
        solvent = cash >= 0


def _close_books(
    world: World, treasury: funding.Treasury, income_tax: taxes.IncomeTax | None
) -> ProcessGenerator:
    for month in range(world.months):
        yield world.until(month, BOOKS_HOUR)
        yield world.env.timeout(0)  # after the processes of assets and loans, which wait for the same hour
        _earn_interest(world)
        if income_tax is not None:
            income_tax.close(world)
        treasury.close(world)


def _earn_interest(world: World) -> None:
    """Interest on the cash in the bank at the month's end."""
    rate = world.scenario.finance.cash_interest_per_year
    earned = round(max(0, world.ledger.balance_micro("cash")) * rate / 12)
    if earned:
        world.ledger.post(world.env.now, "interest", [("cash", earned), ("interest_income", -earned)], "bank")
