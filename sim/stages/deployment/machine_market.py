"""The market for machines: new ones with a price and a speed, and months in which they are short.

At each renewal of the reservations the company takes the machine with the lowest price per request, and stays with
it until the next renewal. A machine that is `s` times as fast runs every step in 1/s of the time: it carries s times
the rate at 1/s of the latency (the capacity at an unchanged objective is then a little underrated). Prices fall by the
scenario's yearly rate from a machine's first month on.

A shortage is stated (it begins in a given month) or drawn, as a Poisson process whose events last the same time and
may overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.scenario.schema.deployment import Shortage
from sim.stages.world import World
from sim.utils.randomness import poisson

if TYPE_CHECKING:
    from sim.capacity.surface import CapacitySurface


_RATES = ("rate_rps", "output_tokens_per_s")
_TIMES = ("ttft_p50_s", "ttft_p95_s", "tpot_p50_s", "tpot_p95_s", "e2e_p95_s")


@dataclass(frozen=True)
class MachineOffer:
    """A serving machine: one replica's capacity, and its price in its first month."""

    name: str
    month: int
    speed: float
    usd_per_h: float
    power_factor: float
    surface: CapacitySurface

    def price(self, world: World) -> float:
        """USD per hour this month, on demand and without a shortage."""
        years = world.years if self.month == 0 else max(0, world.month - self.month) / 12
        return self.usd_per_h * (1 - world.scenario.deployment.price_decline_per_year) ** years


def machines(world: World) -> list[MachineOffer]:
    """All machines of the run: the measured one, then the generations of the scenario; speeds in the served format."""
    deployment = world.scenario.deployment
    price = deployment.replica_price_usd_per_hour
    if price is None:
        price = world.profile.hardware.price_usd_per_hour
    format_speed = 1.0 if deployment.quantisation is None else deployment.quantisation.speed
    known = [("measured", 0, 1.0, price, 1.0)]
    known += [
        (name, new.month, new.speed, new.price_usd_per_hour, new.power_factor)
        for name, new in deployment.generations.items()
    ]
    return [
        MachineOffer(name, month, speed, usd, power, faster(world.surface, speed * format_speed))
        for name, month, speed, usd, power in known
    ]


def best(world: World, known: list[MachineOffer]) -> MachineOffer:
    """The machine with the lowest price per request among those that can be had this month; the older on a tie."""
    there = [machine for machine in known if machine.month <= world.month]
    return min(there, key=lambda machine: machine.price(world) / machine.speed)


def faster(surface: CapacitySurface, speed: float) -> CapacitySurface:
    """Capacity surface of a replica whose every step takes 1/speed of the time."""
    if speed == 1:
        return surface
    table = surface.table.copy()
    for name in table.columns:
        if name in _RATES:
            table[name] *= speed
        elif name in _TIMES:
            table[name] /= speed
    return replace(
        surface,
        capacity_rps=surface.capacity_rps * speed,
        saturation_rps=surface.saturation_rps * speed,
        table=table,
    )


def scarce_months(shortage: Shortage, random: np.random.Generator, months: int) -> NDArray[np.float64]:
    """1 in months of a shortage, else 0; shape [months]. Draws one uniform per month."""
    scarce = np.zeros(months)
    starts = [
        month
        for month, uniform in enumerate(random.random(months).tolist())
        if poisson(uniform, shortage.events_per_year / 12) > 0
    ]
    if shortage.start_month is not None:
        starts.append(shortage.start_month)
    for start in starts:
        scarce[start : start + shortage.duration_months] = 1.0
    return scarce
