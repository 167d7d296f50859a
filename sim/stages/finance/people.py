"""People: who works here in which month, what they cost, and how much of the sales force is at full strength.

Models hiring. Headcount of a role = start + steady growth + plan; a person costs his role's pay times the
factor of his place of work, from the month of joining. Recruiting is paid with each hire, severance with each
who has to leave. New people reach full strength in a straight line over the ramp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.accounting.ledger import micro
from sim.scenario.plans import segments_of
from sim.stages.market.plan_book import FloatArray
from sim.stages.payments import buy, pay

if TYPE_CHECKING:
    from sim.scenario.schema import Role
    from sim.stages.world import World


@dataclass(frozen=True)
class Staff:
    """The people of one role by month [months]."""

    role: Role
    heads: FloatArray
    strength: FloatArray  # heads counted by how far they have grown into their work


def headcounts(role: Role, months: int) -> FloatArray:
    """People of a role by month [months]."""
    plan = np.zeros(months)
    for month, joining in role.hiring_plan.items():
        if int(month) < months:
            plan[int(month)] += joining
    steady = [int(role.hires_per_year * month / 12) for month in range(months)]
    return np.maximum(0.0, role.headcount + np.array(steady, dtype=np.float64) + np.cumsum(plan))


def at_full_strength(heads: FloatArray, ramp_months: float) -> FloatArray:
    """People counted by their strength [months]: each hire grows from 0 to 1 over the ramp."""
    if ramp_months == 0:
        return heads
    hired = np.maximum(0.0, np.diff(heads, prepend=heads[:1]))
    missing = np.zeros_like(heads)
    for age in range(min(len(heads), int(np.ceil(ramp_months)))):
        missing[age:] += hired[: len(heads) - age] * (1 - age / ramp_months)
    return np.maximum(0.0, heads - missing)


def hire(world: World) -> dict[str, Staff]:
    """Staff of every role, for the whole run."""
    staff = {}
    for name, role in world.scenario.finance.people.items():
        heads = headcounts(role, world.months)
        staff[name] = Staff(role, heads, at_full_strength(heads, role.ramp_months))
    return staff


def pay_salaries(world: World, staff: dict[str, Staff]) -> None:
    """Salaries of the month, then recruiting, severance and desks, role by role."""
    month = world.month
    for name, people in staff.items():
        role, heads = people.role, float(people.heads[month])
        joined = heads - float(people.heads[month - 1]) if month > 0 else 0.0
        place = world.scenario.finance.locations.get(role.location or "")
        factor = (1 + role.raise_per_year) ** (month // 12) * (
            place.cost_factor if place is not None else 1.0
        )
        salaries_usd = heads * role.cost_usd_per_year / 12 * factor
        pay(world, f"people_{role.function}", micro(salaries_usd), "salaries", name)
        world.record("headcount", heads)
        buy(world, "recruiting", max(0.0, joined) * role.hiring_cost_usd, "recruiting", name)
        severance_usd = max(0.0, -joined) * role.severance_months * role.cost_usd_per_year / 12 * factor
        pay(world, "severance", micro(severance_usd), "severance", name)
        if place is not None:
            buy(world, "other_opex", heads * place.office_usd_per_month, "desks", role.location or "")


def assign_sales(world: World, staff: dict[str, Staff]) -> None:
    """Set `world.sales_people`: ramped salespeople of each segment this month."""
    segments = list(segments_of(world.scenario.market))
    world.sales_people = dict.fromkeys(segments, 0.0)
    for people in staff.values():
        if people.role.function != "sales":
            continue
        targets = segments if people.role.sells_to is None else [people.role.sells_to]
        for segment in targets:
            world.sales_people[segment] += float(people.strength[world.month]) / len(targets)
