"""Stage 3, deployment: versions roll out, and a fleet of replicas follows demand hour by hour.

Models the platform team. The 168 hours of a week stand for the month (730/168 = 4.345 weeks); each region's fleet
follows its own clock (`fleet_week`). Reserved replicas are paid always at a discount, the rest by the hour, part of it
spot. At each renewal the fleet may move to new machines (`hardware_generations`). Outages, roll-backs and shortages
come by chance or by the scenario (`outages`, `canary`, `sim.stages.deployment.machine_market`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from simpy.events import ProcessGenerator

from sim.accounting.ledger import HOURS_PER_MONTH
from sim.accounting.parties import ON_CALL, SUPPORT_DESK
from sim.scenario.schema.deployment import MOST_REGIONS, Region
from sim.stages.deployment import outages, rollout
from sim.stages.deployment.fleet_week import HOURS_PER_WEEK, SpotMarket, Week, serve_week, together
from sim.stages.deployment.machine_market import MachineOffer, best, machines, scarce_months
from sim.stages.deployment.outages import OutageMonth
from sim.stages.payments import buy
from sim.stages.world import CLOSING_HOUR, SERVING_HOUR, FloatArray, Service, World

__all__ = ["FLEET_COLUMNS", "SECONDS_PER_MONTH", "roll_out", "run", "serve_week"]

SECONDS_PER_MONTH = HOURS_PER_MONTH * 3600
FLEET_COLUMNS = ("demand_rps", "replicas_reserved", "replicas_on_demand", "utilisation", "replicas_spot")


@dataclass
class FleetState:
    """State of the fleet over the months: its machines, and the replicas reserved in each region."""

    regions: list[Region]
    shares: list[float]  # of the traffic, by region
    known: list[MachineOffer]
    machine: MachineOffer
    reserved: list[float] = field(default_factory=list)
    reserved_factor: float = 1.0  # on the price, when reserved in a shortage


def run(world: World) -> ProcessGenerator:
    """Month by month: renew reservations, serve the month's demand, pay for the machines at its close."""
    deployment = world.scenario.deployment
    fleet = _open(world)
    for month in range(world.months):
        yield world.until(month, SERVING_HOUR)
        noise = world.random["deployment"].standard_normal(HOURS_PER_WEEK)
        spot_uniforms = world.random["spot"].random((MOST_REGIONS, HOURS_PER_WEEK))
        outage_uniforms = world.random["outages"].random(outages.UNIFORMS)
        if month % deployment.reserved_term_months == 0:
            _renew(world, fleet)
        weeks = _serve(world, fleet, noise, spot_uniforms)
        outage = outages.NONE
        if deployment.outages is not None:
            outage = outages.happened(deployment.outages, outage_uniforms, fleet.shares, weeks)
        undisturbed = together(weeks)
        week = undisturbed.without(outage.lost_fraction)
        slowness = max(week.ttft_p95_s / deployment.ttft_p95_s, week.tpot_p95_s / deployment.tpot_p95_s, 1.0)
        world.service = Service(week.served_fraction, slowness, outage.credit_share)
        bills = _prices(world, fleet, weeks)
        _record(world, fleet.machine, week, outage)

        yield world.until(month, CLOSING_HOUR)
        for memo, (account, usd) in bills.items():
            buy(world, account, usd, memo, "cloud")
        _support(world, float(undisturbed.short.mean()) * HOURS_PER_MONTH + outage.hours)
        world.record("model_version", world.live.version)
        world.record("model_loss", world.live.loss)
        world.record("model_quality", world.live.quality)


def roll_out(world: World) -> ProcessGenerator:
    """Bring each version that passed its gate to all users, some days after."""
    while True:
        version = yield world.releases.get()
        yield from rollout.bring(world, version)


def _open(world: World) -> FleetState:
    """Create the fleet before its first month."""
    deployment = world.scenario.deployment
    world.live = rollout.served(world, world.live)
    if deployment.shortage is not None:
        world.scarcity = scarce_months(deployment.shortage, world.random["shortage"], world.months)
    regions = list(deployment.regions.values()) or [Region(min_replicas=deployment.min_replicas)]
    parts = sum(region.share for region in regions)
    known = machines(world)
    fleet = FleetState(regions, [region.share / parts for region in regions], known, known[0])
    world.spare.output_tokens_per_h = _output_tokens_per_h(world, fleet.machine)
    return fleet


def _renew(world: World, fleet: FleetState) -> None:
    """Choose the machine and reserve a share of each region's mean fleet until the next renewal."""
    deployment = world.scenario.deployment
    machine = best(world, fleet.known)
    if machine is not fleet.machine:
        fleet.machine = machine
        world.note("deployment", "fleet_moved", machine=machine.name, times=machine.speed)
    fleet.reserved_factor = _scarcity_factor(world)
    fleet.reserved = []
    for region, demand_rps in zip(fleet.regions, _demand(world, fleet, None), strict=True):
        week = serve_week(deployment, machine.surface, demand_rps, 0.0, min_replicas=region.min_replicas)
        fleet.reserved.append(float(round(deployment.reserved_share * float(week.ordered.mean()))))
    world.note(
        "deployment",
        "replicas_reserved",
        replicas=sum(fleet.reserved),
        months=deployment.reserved_term_months,
    )


def _demand(world: World, fleet: FleetState, noise: FloatArray | None) -> list[FloatArray]:
    """Requests per second by hour of the week [168] of each region; without noise what is expected."""
    sigma = world.scenario.market.demand_noise
    demand = []
    for region, share in zip(fleet.regions, fleet.shares, strict=True):
        shape = world.week_shape
        if region.hours_ahead:
            shape = np.roll(shape, -region.hours_ahead)
        expected = world.demand_rps * share * shape
        # Lognormal with mean 1: noise must not add demand.
        demand.append(expected if noise is None else expected * np.exp(sigma * noise - sigma**2 / 2))
    return demand


def _serve(world: World, fleet: FleetState, noise: FloatArray, spot_uniforms: FloatArray) -> list[Week]:
    """Serve the week of each region, in their order."""
    deployment = world.scenario.deployment
    shortage = deployment.shortage if world.is_scarce else None
    weeks = []
    owned = world.owned_replicas  # stand in the first region
    for row, demand_rps in enumerate(_demand(world, fleet, noise)):
        market = None
        if deployment.spot is not None:
            rate = deployment.spot.interruptions_per_h * (shortage.interruption_factor if shortage else 1.0)
            market = SpotMarket(deployment.spot, spot_uniforms[row], rate)
        week = serve_week(
            deployment,
            fleet.machine.surface,
            demand_rps,
            max(fleet.reserved[row], owned),
            min_replicas=fleet.regions[row].min_replicas,
            provisioning_factor=shortage.provisioning_factor if shortage else 1.0,
            market=market,
        )
        weeks.append(week)
        owned = 0.0
    return weeks


def _prices(world: World, fleet: FleetState, weeks: list[Week]) -> dict[str, tuple[str, float]]:
    """What the month's machines cost: {memo: (account, USD)}; sets the prices of idle machines in `world.spare`."""
    deployment = world.scenario.deployment
    price = fleet.machine.price(world)
    now_price = price * _scarcity_factor(world)
    reserved_usd = on_demand_usd = spot_usd = 0.0
    owned = world.owned_replicas
    for region, week in zip(fleet.regions, weeks, strict=True):
        rented = max(0.0, week.reserved - owned)
        owned = 0.0
        reserved_price = price * fleet.reserved_factor * region.price_factor
        reserved_usd += rented * HOURS_PER_MONTH * reserved_price * (1 - deployment.reserved_discount)
        on_demand_usd += float(week.on_demand.mean()) * HOURS_PER_MONTH * now_price * region.price_factor
        if deployment.spot is not None:
            hours = float((week.spot - week.missing).mean()) * HOURS_PER_MONTH
            spot_usd += hours * now_price * region.price_factor * (1 - deployment.spot.discount)
    spare, reserved = world.spare, sum(week.reserved for week in weeks)
    spare.idle_h = sum(float(week.idle.mean()) for week in weeks) * HOURS_PER_MONTH
    spare.reserved_usd_per_h = reserved_usd / (reserved * HOURS_PER_MONTH) if reserved else 0.0
    spare.on_demand_usd_per_h = now_price
    spare.output_tokens_per_h = _output_tokens_per_h(world, fleet.machine)
    return {
        "reserved replicas": ("serving_reserved", reserved_usd),
        "on-demand replicas": ("serving_on_demand", on_demand_usd),
        "spot replicas": ("serving_on_demand", spot_usd),
    }


def _scarcity_factor(world: World) -> float:
    """Factor on the price of machines ordered now."""
    shortage = world.scenario.deployment.shortage
    return shortage.price_factor if shortage is not None and world.is_scarce else 1.0


def _output_tokens_per_h(world: World, machine: MachineOffer) -> float:
    return machine.surface.saturation_rps * world.surface.output_tokens_mean * 3600


def _support(world: World, incident_h: float) -> None:
    """Pay for people who handle incidents and answer customers."""
    deployment = world.scenario.deployment
    buy(world, "support", incident_h * deployment.support_usd_per_incident_hour, "incidents", ON_CALL)
    if deployment.support is None:
        return
    served, asked = world.recorded("requests"), world.recorded("requests_asked")
    tickets = served / 1e6 * deployment.support.tickets_per_million_requests
    tickets += (asked - served) / 1e3 * deployment.support.tickets_per_thousand_refused
    buy(world, "support", tickets * deployment.support.usd_per_ticket, "tickets", SUPPORT_DESK)
    world.record("support_tickets", tickets)


def _failed_tokens(world: World, week: Week, outage: OutageMonth) -> float:
    """Tokens computed for requests that died with their machine: the prompt and half of the answer, not billed."""
    machines = week.interruptions * HOURS_PER_MONTH / HOURS_PER_WEEK + outage.machines_lost
    each = world.surface.prompt_tokens_mean + world.surface.output_tokens_mean / 2
    return machines * week.in_flight * each


def _request_tokens(world: World) -> float:
    return world.surface.prompt_tokens_mean + world.surface.output_tokens_mean


def _record(world: World, machine: MachineOffer, week: Week, outage: OutageMonth) -> None:
    surface, hardware = world.surface, world.profile.hardware
    served = float(week.served_rps.mean()) * SECONDS_PER_MONTH
    world.record("requests_asked", float(week.demand_rps.mean()) * SECONDS_PER_MONTH)
    world.record("requests", served)
    world.record("prompt_tokens", served * surface.prompt_tokens_mean)
    world.record("output_tokens", served * surface.output_tokens_mean)
    if world.scenario.deployment.spot is not None or world.scenario.deployment.outages is not None:
        world.record(
            "failed_tokens", min(_failed_tokens(world, week, outage), served * _request_tokens(world))
        )
    world.record("served_fraction", week.served_fraction)
    world.record("replicas_mean", float(week.ordered.mean()))
    world.record("replicas_peak", float(week.ordered.max()))
    world.record("replicas_reserved", week.reserved)
    world.record("replicas_on_demand_mean", float(week.on_demand.mean()))
    world.record("replicas_spot_mean", float(week.spot.mean()))
    world.record("replica_h_idle", world.spare.idle_h)
    world.record("spot_interruptions", week.interruptions * HOURS_PER_MONTH / HOURS_PER_WEEK)
    world.record("outages", outage.count)
    world.record("outage_h", outage.hours)
    world.record("uptime", outage.uptime)
    world.record("credit_share", outage.credit_share)
    world.record("scarce", float(world.is_scarce))
    world.record("utilisation", float(week.served_rps.sum() / (week.ordered.sum() * week.capacity_rps)))
    world.record("ttft_p95_s", week.ttft_p95_s)
    world.record("tpot_p95_s", week.tpot_p95_s)
    if hardware.idle_w is None or hardware.load_w is None:
        world.record("energy_kwh", math.nan)
    else:
        watts = hardware.idle_w + (hardware.load_w - hardware.idle_w) * week.busy_fraction
        world.record(
            "energy_kwh", float((week.ordered * watts).mean()) * machine.power_factor * HOURS_PER_MONTH / 1000
        )
    reserved = np.full(HOURS_PER_WEEK, week.reserved)
    columns = (week.demand_rps, reserved, week.on_demand, week.utilisation, week.spot)
    world.fleet_by_hour.append(np.stack([column.reshape(7, 24).mean(axis=0) for column in columns], axis=1))
