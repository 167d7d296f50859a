"""Funding: shares sold in rounds, on a date or when the cash runs low; loans with interest and repayment.

Models the capital side. A round pays in its amount; its investors own amount / (pre-money + amount) of the
company and all earlier holders are diluted by that and by new shares for staff. A round may wait until the runway
(cash over the mean net burn of the last three months) is short, and in a downturn it closes only with some
chance each month. A loan costs interest each month on what is owed, and is paid back in equal parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from simpy.events import ProcessGenerator

from sim.accounting.ledger import MICRO_PER_USD, micro
from sim.accounting.saas_metrics import runway_months
from sim.stages.payments import pay
from sim.stages.world import BOOKS_HOUR, ClosedRound
from sim.utils.randomness import substream

if TYPE_CHECKING:
    from sim.scenario.schema import FundingRound, Loan
    from sim.stages.world import World

_FINANCING = ("paid_in_capital", "debt")


@dataclass(frozen=True)
class Sought:
    """A round that is not closed yet, with a random stream of its own: no other round changes its draws."""

    funding: FundingRound
    random: np.random.Generator


class Treasury:
    """Cash burnt in each month, without the money of investors and lenders."""

    def __init__(self) -> None:
        self._closing: list[int] = [0]  # cash less all financing so far, micro-dollars, by month

    def close(self, world: World) -> None:
        """Record the burn of the month that ends."""
        financed = -sum(world.ledger.balance_micro(account) for account in _FINANCING)
        self._closing.append(world.ledger.balance_micro("cash") - financed)

    def runway(self, world: World) -> float:
        """Months that the cash lasts at the burn of the last three; inf before the first month is over."""
        if len(self._closing) < 2:
            return math.inf
        burnt = -np.diff(self._closing) / MICRO_PER_USD
        return runway_months(world.ledger.balance_micro("cash") / MICRO_PER_USD, burnt)


def rounds_to_seek(world: World) -> dict[str, Sought]:
    """All rounds of the scenario, by name."""
    return {
        name: Sought(funding, substream(world.seed, f"funding {name}"))
        for name, funding in world.scenario.finance.funding.items()
    }


def pay_in(world: World, memo: str, investor: str, usd: float) -> None:
    """Book money paid in for shares."""
    amount = micro(usd)
    if amount:
        world.ledger.post(world.env.now, memo, [("cash", amount), ("paid_in_capital", -amount)], investor)


def open_month(world: World, treasury: Treasury, sought: dict[str, Sought]) -> None:
    """Close the rounds that are due, and draw the loans of the month; `sought` loses the closed rounds."""
    for name, one in list(sought.items()):
        funding, uniform = one.funding, float(one.random.random())
        if world.month < funding.month:
            continue
        limit = funding.runway_below_months
        if limit is not None and treasury.runway(world) >= limit:
            continue
        if uniform >= funding.chance_per_month:
            world.note("finance", "round_refused", round=name)
            continue
        del sought[name]
        if funding.amount_usd > 0:
            _close_round(world, name, funding)
    for name, loan in world.scenario.finance.loans.items():
        if loan.month == world.month and loan.amount_usd > 0:
            world.env.process(_borrow(world, name, loan))


def founders_share(rounds: list[ClosedRound]) -> float:
    """Fraction of the company that the founders own after all rounds."""
    return math.prod(1 - one.investor_share - one.staff_share for one in rounds)


def cap_table(rounds: list[ClosedRound], labels: list[str]) -> pd.DataFrame:
    """Who owns the company after each round.

    Columns: round, month, amount_usd, pre_money_usd, post_money_usd, investor_share (of this round),
    founders_share (after it), staff_share (after it).
    """
    rows = []
    founders, staff = 1.0, 0.0
    for one in rounds:
        kept = 1 - one.investor_share - one.staff_share
        founders, staff = founders * kept, staff * kept + one.staff_share
        post = one.pre_money_usd + one.amount_usd if one.pre_money_usd > 0 else math.nan
        pre = one.pre_money_usd if one.pre_money_usd > 0 else math.nan
        rows.append(
            (one.name, labels[one.month], one.amount_usd, pre, post, one.investor_share, founders, staff)
        )
    columns = ["round", "month", "amount_usd", "pre_money_usd", "post_money_usd"]
    return pd.DataFrame(rows, columns=[*columns, "investor_share", "founders_share", "staff_share"])


def _close_round(world: World, name: str, funding: FundingRound) -> None:
    pay_in(world, "funding round", name, funding.amount_usd)
    fee = micro(funding.amount_usd * funding.fee_share)
    pay(world, "paid_in_capital", fee, "cost of the round", name)
    investors = 0.0
    if funding.pre_money_usd > 0:
        investors = funding.amount_usd / (funding.pre_money_usd + funding.amount_usd)
    staff = min(funding.option_pool_share, 1 - investors)
    world.rounds.append(
        ClosedRound(name, world.month, funding.amount_usd, funding.pre_money_usd, investors, staff)
    )
    world.note("finance", "round_closed", round=name, usd=funding.amount_usd)


def _borrow(world: World, name: str, loan: Loan) -> ProcessGenerator:
    first, amount = world.month, micro(loan.amount_usd)
    world.ledger.post(world.env.now, "loan drawn", [("cash", amount), ("debt", -amount)], name)
    pay(world, "interest_expense", micro(loan.amount_usd * loan.fee_share), "fee of the loan", name)
    world.note("finance", "loan_drawn", loan=name, usd=loan.amount_usd)
    owed = amount
    parts = max(1, loan.term_months - loan.interest_only_months)
    for age in range(1, loan.term_months + 1):
        yield world.until(first + age - 1, BOOKS_HOUR)
        pay(world, "interest_expense", round(owed * loan.interest_per_year / 12), "interest", name)
        paid_parts = age - (loan.term_months - parts)
        if paid_parts > 0:
            left = amount - amount * paid_parts // parts
            pay(world, "debt", owed - left, "repayment", name)
            owed = left
