"""What the company owns or leases: machines worn off in a straight line, rents, and what need not be rented.

Models fixed assets. A purchase is an asset of its price; each month of its life an equal part becomes expense
(straight-line depreciation, ASC 360); at the end it is sold for its salvage value. A lease is an operating
lease of ASC 842: at its start the present value of the payments stands on both sides of the balance sheet; the
expense is the level payment; both sides shrink by the payment less the interest on what is left, to zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from simpy.events import ProcessGenerator

from sim.accounting.ledger import micro
from sim.stages.payments import buy, pay
from sim.stages.world import BOOKS_HOUR

if TYPE_CHECKING:
    from sim.scenario.schema import Equipment, Lease
    from sim.stages.world import World

Use = Literal["serving", "training", "general"]
_UPKEEP = {"serving": "serving_owned", "training": "training_compute", "general": "other_opex"}


def open_month(world: World) -> None:
    """Buy and lease what begins this month."""
    finance, month = world.scenario.finance, world.month
    for name, equipment in finance.equipment.items():
        if equipment.month == month:
            world.env.process(_own(world, name, equipment))
    for name, lease in finance.leases.items():
        if lease.month == month:
            world.env.process(_lease(world, name, lease))


def invest(
    world: World,
    usd: float,
    life_months: int,
    memo: str,
    supplier: str,
    use: Use = "training",
    salvage_share: float = 0.0,
) -> None:
    """Buy something that lasts: cash now, expense in equal parts over its life, salvage value at the end.

    Args:
        world: the company.
        usd: price.
        life_months: months over which it wears off; this month is the first.
        memo: what it is.
        supplier: from whom.
        use: where the depreciation shows.
        salvage_share: of the price got for it at the end.
    """
    cost = micro(usd)
    if cost > 0:
        pay(world, "equipment", cost, memo, supplier)
        world.env.process(_wear_off(world, cost, life_months, supplier, use, salvage_share))


def present_value(payment_usd: float, months: int, rate_per_year: float) -> float:
    """USD today of level payments at the end of each of some months."""
    rate = rate_per_year / 12
    if rate == 0:
        return payment_usd * months
    return float(payment_usd * (1 - (1 + rate) ** -months) / rate)


def _wear_off(
    world: World, cost: int, life_months: int, party: str, use: Use, salvage_share: float
) -> ProcessGenerator:
    first = world.month
    salvage = round(cost * salvage_share)
    booked = 0
    for age in range(1, life_months + 1):
        yield world.until(first + age - 1, BOOKS_HOUR)
        part = (cost - salvage) * age // life_months - booked
        booked += part
        if part:
            entries = [(f"depreciation_{use}", part), ("accumulated_depreciation", -part)]
            world.ledger.post(world.env.now, "depreciation", entries, party)
    entries = [("accumulated_depreciation", cost - salvage), ("cash", salvage), ("equipment", -cost)]
    world.ledger.post(world.env.now, "equipment retired", [e for e in entries if e[1]], party)


def _own(world: World, name: str, equipment: Equipment) -> ProcessGenerator:
    usd = equipment.units * equipment.price_usd
    invest(world, usd, equipment.life_months, "equipment", name, equipment.use, equipment.salvage_share)
    world.note("finance", "equipment_bought", units=equipment.units, equipment=name, usd=usd)
    first = world.month
    _add_capacity(world, equipment.use, equipment.units * equipment.capacity)
    for age in range(equipment.life_months):
        yield world.until(first + age, BOOKS_HOUR)
        upkeep = equipment.units * equipment.upkeep_usd_per_month
        buy(world, _UPKEEP[equipment.use], upkeep, "upkeep", name)
    _add_capacity(world, equipment.use, -equipment.units * equipment.capacity)


def _lease(world: World, name: str, lease: Lease) -> ProcessGenerator:
    first = world.month
    payment, deposit = micro(lease.payment_usd_per_month), micro(lease.deposit_usd)
    owed = micro(present_value(lease.payment_usd_per_month, lease.term_months, lease.discount_per_year))
    pay(world, "deposits", deposit, "deposit", name)
    if owed:
        entries = [("right_of_use", owed), ("lease_liability", -owed)]
        world.ledger.post(world.env.now, "lease begins", entries, name)
    world.note("finance", "lease_begun", lease=name, usd=lease.payment_usd_per_month)
    _add_capacity(world, lease.use, lease.capacity)
    for age in range(1, lease.term_months + 1):
        yield world.until(first + age - 1, BOOKS_HOUR)
        pay(world, f"lease_{lease.use}", payment, "rent", name)
        interest = round(owed * lease.discount_per_year / 12)
        less = owed if age == lease.term_months else min(owed, payment - interest)
        owed -= less
        if less:
            entries = [("lease_liability", less), ("right_of_use", -less)]
            world.ledger.post(world.env.now, "lease shorter by a month", entries, name)
    pay(world, "deposits", -deposit, "deposit back", name)
    _add_capacity(world, lease.use, -lease.capacity)


def _add_capacity(world: World, use: Use, capacity: float) -> None:
    if use == "serving":
        world.owned_replicas += capacity
    elif use == "training":
        world.owned_accelerators += capacity
