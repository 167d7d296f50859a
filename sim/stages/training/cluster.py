"""Where training takes place and what it costs: rented by the hour, reserved, owned, or at night on the fleet.

How long a phase takes comes from `sim.training.run`: FLOP over speed, and where the scenario counts them failures,
checkpoints at the best interval, restarts and stragglers. Rent is billed month by month as the hours begin;
accelerators that the company owns (`finance.equipment`) are not rented. A shared cluster is the part of the reserved
serving machines that demand leaves idle, at the speed measured on them, as much as there is each month.
"""

from __future__ import annotations

from typing import Any

from simpy.events import ProcessGenerator

from sim.accounting.ledger import HOURS_PER_MONTH
from sim.stages.payments import buy
from sim.stages.training.phases import Phase
from sim.stages.world import CLOSING_HOUR, SERVING_HOUR, World, use_idle
from sim.training.run import RealisedRun, RunPlan, plan_run, realised

_SMALLEST_STEP_H = 1e-6  # keeps rounding at the end of a month from opening slices without length


def work(world: World, phase: Phase, uniform: float) -> ProcessGenerator:
    """Run one phase: its time, cost and records. `uniform` in [0, 1) sets the number of its failures."""
    cluster = world.scenario.training.cluster
    wait_h = delivery_h(world)
    if wait_h > 0:
        world.note("training", "accelerators_awaited", days=wait_h / 24)
        yield world.env.timeout(wait_h)
    if phase.written_tokens > 0:
        yield from _on_fleet(world, phase)
    elif cluster is not None and cluster.ownership == "shared":
        yield from _at_night(world, phase, uniform)
    else:
        yield from _on_cluster(world, phase, uniform)


def keep(world: World) -> ProcessGenerator:
    """Pay for a reserved cluster month by month, used or not."""
    training = world.scenario.training
    cluster = training.cluster
    assert cluster is not None
    for month in range(cluster.from_month, world.months):
        yield world.until(month, CLOSING_HOUR)
        hours = HOURS_PER_MONTH * rented_accelerators(world)
        cost_usd = hours * price_usd_per_h(world) * (1 - cluster.reserved_discount)
        buy(world, "training_compute", cost_usd, "reserved training cluster", "accelerator cloud")


def rented_accelerators(world: World) -> float:
    """Accelerators of the cluster that the company doesn't own."""
    return max(0.0, world.scenario.training.accelerators - float(getattr(world, "owned_accelerators", 0.0)))


def price_usd_per_h(world: World) -> float:
    """Rent of one accelerator this month."""
    training, shortage = world.scenario.training, world.scenario.deployment.shortage
    price = training.accelerator_price_usd_per_hour
    price *= (1 - training.accelerator_price_decline_per_year) ** world.years
    return price * (shortage.price_factor if shortage is not None and world.is_scarce else 1.0)


def delivery_h(world: World) -> float:
    """How long rented accelerators keep a run waiting this month."""
    training, shortage = world.scenario.training, world.scenario.deployment.shortage
    by_the_hour = training.cluster is None or training.cluster.ownership == "rented"
    if shortage is None or not world.is_scarce or not by_the_hour or rented_accelerators(world) == 0:
        return 0.0
    return shortage.training_wait_days * 24


def planned(world: World, phase: Phase) -> RunPlan:
    """Expected course of a phase on the cluster, or on the fleet's machines where they are shared.

    Raises:
        InputError: failures so frequent that no stretch of work ends.
    """
    training = world.scenario.training
    peak, utilisation = training.accelerator_peak_flops, phase.utilisation
    cluster, profile = training.cluster, world.profile
    if cluster is not None and cluster.ownership == "shared" and profile.hardware.peak_flops is not None:
        peak = profile.hardware.peak_flops
        if profile.training and phase.kind != "generation":
            utilisation = max(point.mfu for point in profile.training)
    more: dict[str, Any] = {}
    if training.reliability is not None:
        more |= training.reliability.model_dump()
    if training.power is not None:
        more |= training.power.model_dump()
    return plan_run(phase.flop, accelerators=training.accelerators, peak_flops=peak, mfu=utilisation, **more)


def _on_cluster(world: World, phase: Phase, uniform: float) -> ProcessGenerator:
    """Use the cluster until the work is done; rent month by month as the hours begin."""
    training, cluster = world.scenario.training, world.scenario.training.cluster
    plan = planned(world, phase)
    run = realised(plan, uniform)
    remaining_h = run.hours
    while remaining_h > _SMALLEST_STEP_H:
        slice_h = _slice_h(world, remaining_h)
        reserved = (
            cluster is not None and cluster.ownership == "reserved" and world.month >= cluster.from_month
        )
        if not reserved:
            cost_usd = slice_h * rented_accelerators(world) * price_usd_per_h(world)
            buy(world, "training_compute", cost_usd, "training cluster", "accelerator cloud")
        _record(world, plan, run, slice_h * training.accelerators)
        world.record("cluster_hours", slice_h)
        yield world.env.timeout(slice_h)
        remaining_h -= slice_h
    _finish(world, phase, run)


def _at_night(world: World, phase: Phase, uniform: float) -> ProcessGenerator:
    """Work in the idle hours of reserved serving machines, at each month's close, until it is done."""
    most_h = HOURS_PER_MONTH * world.scenario.training.accelerators
    plan = planned(world, phase)
    run = realised(plan, uniform)
    remaining_h = run.accelerator_hours
    month = world.month
    while True:
        if world.env.now > month * HOURS_PER_MONTH + CLOSING_HOUR:
            month += 1
        yield world.until(month, CLOSING_HOUR)
        done_h = world.recorded("training_accelerator_h")
        wanted_h = min(remaining_h, most_h - done_h)
        used_h = use_idle(world, wanted_h, "training_compute", "training, idle fleet")
        _record(world, plan, run, used_h)
        world.record("cluster_hours", used_h / world.scenario.training.accelerators)
        remaining_h -= used_h
        if remaining_h <= _SMALLEST_STEP_H:
            break
        month += 1
    _finish(world, phase, run)


def _on_fleet(world: World, phase: Phase) -> ProcessGenerator:
    """Let serving replicas write the samples of reinforcement: idle reserved ones first, the rest on demand."""
    steps = world.scenario.training.reinforcement
    assert steps is not None
    remaining_h = phase.written_tokens / world.spare.output_tokens_per_h / steps.fleet_replicas
    while remaining_h > _SMALLEST_STEP_H:
        if world.env.now < world.month * HOURS_PER_MONTH + SERVING_HOUR:
            yield world.until(world.month, SERVING_HOUR)  # before, this month's fleet isn't known
        slice_h = _slice_h(world, remaining_h)
        replica_h = slice_h * steps.fleet_replicas
        idle_h = use_idle(world, replica_h, "training_compute", "samples written, idle fleet")
        cost_usd = (replica_h - idle_h) * world.spare.on_demand_usd_per_h
        buy(world, "training_compute", cost_usd, "samples written, on-demand replicas", "cloud")
        world.record("reinforcement_replica_h", replica_h)
        yield world.env.timeout(slice_h)
        remaining_h -= slice_h


def _slice_h(world: World, remaining_h: float) -> float:
    """Hours until the work or the month ends, whichever comes first."""
    rest_of_month_h = (world.month + 1) * HOURS_PER_MONTH - world.env.now
    return min(remaining_h, max(rest_of_month_h, _SMALLEST_STEP_H))


def _record(world: World, plan: RunPlan, run: RealisedRun, accelerator_h: float) -> None:
    """Count a part of a run in this month, and pay the electricity of owned accelerators."""
    part = accelerator_h / run.accelerator_hours
    world.record("training_flop", part * plan.flop)
    world.record("training_accelerator_h", accelerator_h)
    world.record("training_lost_h", part * (run.hours - plan.work_hours))
    training = world.scenario.training
    if training.power is None:
        return
    world.record("training_energy_kwh", part * run.energy_kwh)
    world.record("training_co2_kg", part * run.co2_kg)
    if training.cluster is not None:
        owned = 1 - rented_accelerators(world) / training.accelerators
        usd = part * run.energy_kwh * owned * training.cluster.power_usd_per_kwh
        buy(world, "training_compute", usd, "electricity of own accelerators", "utility")


def _finish(world: World, phase: Phase, run: RealisedRun) -> None:
    world.record("training_failures", run.failures)
    if run.failures:
        world.note("training", "phase_failures", phase=phase.kind, failures=run.failures, hours=run.hours)
