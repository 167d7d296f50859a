"""Stage 3, deployment: versions roll out, and a fleet of replicas follows demand hour by hour.

Models the platform team. The 168 hours of a week stand for the month (730/168 = 4.345 weeks). Each hour the
autoscaler orders ceil(demand × (1 + headroom) / capacity of one replica), capacity being what the measured
model sustains under the latency objective (`sim.capacity`). Machines serve `provisioning_delay_h` after
their order, so a rising demand finds a smaller fleet for a while: replicas then run above their capacity,
slower, up to the overload limit where requests are refused. Reserved replicas are paid always at a discount,
the rest by the hour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from simpy.events import ProcessGenerator

from sim.ledger import HOURS_PER_MONTH
from sim.stages.finance import buy
from sim.world import CLOSING_HOUR, SERVING_HOUR, FloatArray, Service, World

HOURS_PER_WEEK = 168
SECONDS_PER_MONTH = HOURS_PER_MONTH * 3600
OVERLOAD = 0.95  # of the saturation rate: beyond it a queue only grows, so the front door refuses requests
FLEET_COLUMNS = ("demand_rps", "replicas_reserved", "replicas_on_demand", "utilisation")


@dataclass(frozen=True)
class Week:
    """One week of serving, by hour [168] unless a scalar is named."""

    ordered: FloatArray  # replicas paid for
    on_demand: FloatArray  # of these, beyond the reserved base
    demand_rps: FloatArray
    served_rps: FloatArray
    utilisation: FloatArray  # served rate over what the paid replicas can carry within the objective
    busy_fraction: FloatArray  # of the paid replicas' time
    short: FloatArray  # 1 in hours that refused requests
    served_fraction: float
    ttft_p95_s: float  # mean over requests served
    tpot_p95_s: float


def serve_week(world: World, demand_rps: FloatArray, reserved: float) -> Week:
    """Follow demand (requests per second by hour of the week [168]) with a fleet on a reserved base."""
    deployment, surface = world.scenario.deployment, world.surface
    wanted = np.ceil(demand_rps * (1 + deployment.headroom) / surface.capacity_rps - 1e-9)
    wanted = np.maximum(wanted, float(deployment.min_replicas))
    ordered = np.maximum(wanted, reserved)
    whole_h = math.floor(deployment.provisioning_delay_h)
    part_h = deployment.provisioning_delay_h - whole_h
    # Each hour in two parts: until `part_h` the orders of one hour more ago serve. Released ones go at once.
    early = np.maximum(np.minimum(wanted, np.roll(wanted, whole_h + 1)), reserved)
    late = np.maximum(np.minimum(wanted, np.roll(wanted, whole_h)), reserved)
    replicas = np.stack([early, late])
    weight = np.array([[part_h], [1 - part_h]])
    limit_rps = max(surface.capacity_rps, OVERLOAD * surface.saturation_rps)
    served = np.minimum(demand_rps, replicas * limit_rps)
    felt = surface.at(served / replicas)
    requests = served * weight
    total = float(requests.sum())
    by_hour = requests.sum(axis=0)
    busy = (felt["busy_fraction"] * replicas * weight).sum(axis=0) / ordered

    def mean_felt(column: str) -> float:
        values = np.asarray(felt[column])
        return float((values * requests).sum() / total) if total > 0 else float(values.min())

    return Week(
        ordered=ordered,
        on_demand=ordered - reserved,
        demand_rps=demand_rps,
        served_rps=by_hour,
        utilisation=by_hour / (ordered * surface.capacity_rps),
        busy_fraction=busy,
        short=(by_hour < demand_rps * (1 - 1e-9)).astype(np.float64),
        served_fraction=min(1.0, total / float(demand_rps.sum())) if demand_rps.sum() > 0 else 1.0,
        ttft_p95_s=mean_felt("ttft_p95_s"),
        tpot_p95_s=mean_felt("tpot_p95_s"),
    )


def run(world: World) -> ProcessGenerator:
    """Month by month: renew reservations, serve the month's demand, pay for the machines at its close."""
    deployment = world.scenario.deployment
    reserved = 0.0
    list_price = deployment.replica_price_usd_per_hour
    if list_price is None:
        list_price = world.profile.hardware.price_usd_per_hour
    for month in range(world.months):
        yield world.until(month, SERVING_HOUR)
        noise = world.random["deployment"].standard_normal(HOURS_PER_WEEK)
        sigma = world.scenario.market.demand_noise
        # Lognormal with mean 1: noise must not add demand.
        demand_rps = world.demand_rps * world.week_shape * np.exp(sigma * noise - sigma**2 / 2)
        if month % deployment.reserved_term_months == 0:
            mean_fleet = float(serve_week(world, world.demand_rps * world.week_shape, 0.0).ordered.mean())
            reserved = float(round(deployment.reserved_share * mean_fleet))
            world.note(
                "deployment", f"{reserved:.0f} replicas reserved for {deployment.reserved_term_months} months"
            )
        week = serve_week(world, demand_rps, reserved)
        slowness = max(week.ttft_p95_s / deployment.ttft_p95_s, week.tpot_p95_s / deployment.tpot_p95_s, 1.0)
        world.service = Service(week.served_fraction, slowness)
        _record(world, week, reserved)

        yield world.until(month, CLOSING_HOUR)
        price = list_price * (1 - deployment.price_decline_per_year) ** world.years
        reserved_usd = reserved * HOURS_PER_MONTH * price * (1 - deployment.reserved_discount)
        on_demand_usd = float(week.on_demand.mean()) * HOURS_PER_MONTH * price
        buy(world, "serving_reserved", reserved_usd, "reserved replicas", "cloud")
        buy(world, "serving_on_demand", on_demand_usd, "on-demand replicas", "cloud")
        incident_h = float(week.short.mean()) * HOURS_PER_MONTH
        buy(world, "support", incident_h * deployment.support_usd_per_incident_hour, "incidents", "on-call")
        world.record("model_version", world.live.version)
        world.record("model_loss", world.live.loss)
        world.record("model_quality", world.live.quality)


def roll_out(world: World) -> ProcessGenerator:
    """Bring each version that passed its gate to all users, some days after."""
    while True:
        version = yield world.releases.get()
        yield world.env.timeout(world.scenario.deployment.rollout_days * 24)
        world.live = version
        world.note(
            "deployment", f"version {version.version} serves all users (quality {version.quality:.3f})"
        )


def _record(world: World, week: Week, reserved: float) -> None:
    surface, hardware = world.surface, world.profile.hardware
    served = float(week.served_rps.mean()) * SECONDS_PER_MONTH
    world.record("requests_asked", float(week.demand_rps.mean()) * SECONDS_PER_MONTH)
    world.record("requests", served)
    world.record("prompt_tokens", served * surface.prompt_tokens_mean)
    world.record("output_tokens", served * surface.output_tokens_mean)
    world.record("served_fraction", week.served_fraction)
    world.record("replicas_mean", float(week.ordered.mean()))
    world.record("replicas_peak", float(week.ordered.max()))
    world.record("replicas_reserved", reserved)
    world.record("utilisation", float(week.served_rps.sum() / (week.ordered.sum() * surface.capacity_rps)))
    world.record("ttft_p95_s", week.ttft_p95_s)
    world.record("tpot_p95_s", week.tpot_p95_s)
    if hardware.idle_w is None or hardware.load_w is None:
        world.record("energy_kwh", math.nan)
    else:
        watts = hardware.idle_w + (hardware.load_w - hardware.idle_w) * week.busy_fraction
        world.record("energy_kwh", float((week.ordered * watts).mean()) * HOURS_PER_MONTH / 1000)
    columns = (week.demand_rps, np.full(HOURS_PER_WEEK, reserved), week.on_demand, week.utilisation)
    world.fleet_by_hour.append(np.stack([column.reshape(7, 24).mean(axis=0) for column in columns], axis=1))
