"""The gate before a release: a noisy measurement of the candidate on held-out text, which takes time and money.

Compared is the loss on text less the gain of tuning and reinforcement.
"""

from __future__ import annotations

from collections.abc import Generator

import simpy

from sim.stages.payments import buy
from sim.stages.world import ModelVersion, World

_HOURS_PER_DAY = 24


def evaluate(
    world: World, newest: ModelVersion, found_loss: float, gain: float, noise: float
) -> Generator[simpy.Event, None, bool]:
    """Measure a candidate against the newest version; returns whether it may be released.

    Args:
        world: the company.
        newest: the last version that passed.
        found_loss: the candidate's true loss, nats per token.
        gain: of tuning and reinforcement, nats per token.
        noise: error of the measurement, in standard deviations.
    """
    training = world.scenario.training
    gate = training.gate
    if gate is not None:
        buy(world, "training_compute", gate.usd, "evaluation", "evaluators")
        yield world.env.timeout(gate.days * _HOURS_PER_DAY)
    measured_gain = (newest.loss - newest.gain) - (found_loss - gain) - training.evaluation_noise * noise
    world.record("evaluations", 1)
    if measured_gain >= training.min_improvement:
        return True
    world.record("failed_gates", 1)
    world.note("training", "gate_failed", gain=measured_gain)
    if gate is not None:
        buy(world, "training_compute", gate.failure_usd, "search for the cause", "evaluators")
        yield world.env.timeout(gate.failure_days * _HOURS_PER_DAY)
    return False
