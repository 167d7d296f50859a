"""From a passed gate to all users: a few of them first, and back if the version disappoints.

Some versions that pass on held-out text disappoint in use. The canary finds part of them while few users see them;
the rest serve all users until they are found, and are then rolled back. Without a canary in the scenario every version
is good and simply takes its days. A smaller number format costs quality: exp(−k·loss added), as in `learning`.
"""

from __future__ import annotations

import math
from dataclasses import replace

from simpy.events import ProcessGenerator

from engine.errors import InputError
from sim.accounting.parties import ON_CALL
from sim.stages.payments import buy
from sim.stages.world import ModelVersion, World

_HOURS_PER_DAY = 24
UNIFORMS = 2  # uniforms per version: whether it is bad, whether the canary finds it


def format_loss(world: World) -> float:
    """Nats per token that the served number format adds to the loss.

    Raises:
        InputError: neither the scenario nor the profile has a measurement.
    """
    quantisation = world.scenario.deployment.quantisation
    if quantisation is None:
        return 0.0
    if quantisation.loss_nats is not None:
        return quantisation.loss_nats
    measured = world.profile.quality
    if measured is None or measured.increase is None:
        raise InputError(
            "deployment.quantisation.loss_nats: found null, and the profile holds no perplexity against float32; "
            "allowed: a number, in nats per token"
        )
    return max(0.0, math.log1p(measured.increase))


def served(world: World, version: ModelVersion) -> ModelVersion:
    """A version with its quality in the served number format."""
    lost = format_loss(world)
    if lost == 0:
        return version
    return replace(
        version, quality=version.quality * math.exp(-world.scenario.training.quality_per_nat * lost)
    )


def bring(world: World, version: ModelVersion) -> ProcessGenerator:
    """Roll one version out to all users; a bad one is rolled back when it is found."""
    deployment = world.scenario.deployment
    canary = deployment.canary
    is_bad, is_found = world.random["canary"].random(UNIFORMS).tolist()
    before, new = world.live, served(world, version)
    if canary is None:
        yield world.env.timeout(deployment.rollout_days * _HOURS_PER_DAY)
        _serve(world, new)
        return
    bad = is_bad < canary.bad_share
    if bad:
        new = replace(new, quality=max(0.0, new.quality - canary.bad_quality_drop))
    mixed = before.quality + canary.share * (new.quality - before.quality)
    world.live = replace(before, quality=mixed)
    yield world.env.timeout(canary.days * _HOURS_PER_DAY)
    if bad and is_found < canary.found_share:
        _roll_back(world, before, version, "canary_rollback")
        return
    yield world.env.timeout(max(0.0, deployment.rollout_days - canary.days) * _HOURS_PER_DAY)
    _serve(world, new)
    if bad:
        world.env.process(_found_late(world, before, new))


def _found_late(world: World, before: ModelVersion, bad: ModelVersion) -> ProcessGenerator:
    canary = world.scenario.deployment.canary
    assert canary is not None
    yield world.env.timeout(canary.found_after_days * _HOURS_PER_DAY)
    if world.live.version == bad.version:  # else a newer one has come meanwhile
        _roll_back(world, before, bad, "user_rollback")


def _serve(world: World, version: ModelVersion) -> None:
    world.live = version
    world.note("deployment", "version_served", version=version.version, quality=version.quality)


def _roll_back(world: World, before: ModelVersion, bad: ModelVersion, kind: str) -> None:
    canary = world.scenario.deployment.canary
    assert canary is not None
    if world.live.version in (before.version, bad.version):  # else an older one is back already
        world.live = before
    world.record("rollbacks", 1)
    buy(world, "support", canary.rollback_usd, "roll-back", ON_CALL)
    world.note("deployment", kind, version=bad.version, before=before.version)
