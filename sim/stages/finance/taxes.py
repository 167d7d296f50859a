"""Taxes: sales tax passed on to the state, and income tax on the profit of each year of the run.

Models the tax return. Income tax of a year to date = rate × (profit − earlier losses that may be offset); it is
booked each month as what the year so far asks beyond what is booked already, so a loss later in the year gives
back what an earlier month booked. Losses are carried forward without end and may offset only a part of a
year's income. No deferred tax asset is shown: a company that has not yet earned keeps a full valuation
allowance against it (ASC 740).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.accounting.ledger import micro
from sim.stages.payments import pay

if TYPE_CHECKING:
    from sim.scenario.schema import Taxes
    from sim.stages.world import World

MONTHS_PER_YEAR = 12


def tax_micro(taxes: Taxes, profit_micro: int, losses_micro: int) -> int:
    """Income tax on a year's profit before tax, given losses of earlier years; micro-dollars."""
    income = max(0, profit_micro)
    offset = min(losses_micro, round(income * taxes.loss_offset_limit))
    return round((income - offset) * taxes.income_tax_rate)


def losses_left_micro(taxes: Taxes, profit_micro: int, losses_micro: int) -> int:
    """Losses to carry into the next year, after a year with this profit before tax; micro-dollars."""
    if profit_micro < 0:
        return losses_micro - profit_micro
    return losses_micro - min(losses_micro, round(profit_micro * taxes.loss_offset_limit))


class IncomeTax:
    """The running tax account of a company."""

    def __init__(self, taxes: Taxes) -> None:
        self._taxes = taxes
        self._losses = micro(taxes.losses_brought_forward_usd)
        self._before_year = 0  # profit before tax until the start of the year
        self._booked = 0  # of this year's tax
        self._owed: dict[int, int] = {}  # by month of payment

    def close(self, world: World) -> None:
        """Book the tax of the year so far, less what is booked; close the year with its last month."""
        before_tax = world.ledger.profit_micro() + world.ledger.balance_micro("income_tax")
        profit = before_tax - self._before_year
        due = tax_micro(self._taxes, profit, self._losses)
        change = due - self._booked
        if change:
            entries = [("income_tax", change), ("income_tax_payable", -change)]
            world.ledger.post(world.env.now, "income tax", entries, "tax office")
        self._booked = due
        world.record("tax_losses_usd", losses_left_micro(self._taxes, profit, self._losses) / 1e6)
        if world.month % MONTHS_PER_YEAR == MONTHS_PER_YEAR - 1:
            self._losses = losses_left_micro(self._taxes, profit, self._losses)
            self._owed[world.month + self._taxes.payment_months] = due
            self._before_year, self._booked = before_tax, 0

    def pay(self, world: World) -> None:
        """Pay the tax of a year when it falls due."""
        pay(world, "income_tax_payable", self._owed.pop(world.month, 0), "income tax paid", "tax office")


def remit_sales_tax(world: World) -> None:
    """Pass on the sales tax of the invoices so far."""
    pay(
        world,
        "sales_tax_payable",
        -world.ledger.balance_micro("sales_tax_payable"),
        "sales tax",
        "tax office",
    )
