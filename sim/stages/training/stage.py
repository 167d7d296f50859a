"""Stage 2, training: a run every few months, and a gate before anything is released.

Models the research team. At each cadence, when enough new text came in, a run goes through its phases
(`training_phases`: from scratch or on, tuning, reinforcement) on a cluster (`cluster`: rented, reserved, owned or
shared with serving, with failures and checkpoints). What comes out follows the scaling law (`learning`), N the
parameters of the served model and D the effective in-domain tokens: what the starting model knows plus the pool at
the start of the run. The gate (`release_gate`) compares a noisy measurement of the new model with the newest one; a
failed gate costs the same and releases nothing.
"""

from __future__ import annotations

from simpy.events import ProcessGenerator

from sim.accounting.ledger import HOURS_PER_MONTH
from sim.stages.text_pool import LABELS
from sim.stages.training import cluster, safety_incidents
from sim.stages.training.phases import KINDS, phases
from sim.stages.training.release_gate import evaluate
from sim.stages.training.scaling_law import (
    expected_loss,
    first_version,
    law,
    progress,
    quality,
    repeated,
    trials_gain,
    tuning_gain,
)
from sim.stages.world import ModelVersion, World

__all__ = ["expected_loss", "first_version", "quality", "run"]


def run(world: World) -> ProcessGenerator:
    """Start a run at each cadence when enough new data came in; train, measure, release or not."""
    training = world.scenario.training
    if training.safety is not None:
        world.env.process(safety_incidents.run(world))
    if training.cluster is not None and training.cluster.ownership == "reserved":
        world.env.process(cluster.keep(world))
    parameters = float(world.profile.model.parameters)
    newest = world.live
    base = learnt = training.base_effective_tokens
    pretraining = training.pretraining  # still ahead; None when done or not wanted
    next_start_h = training.cadence_months * HOURS_PER_MONTH
    while True:
        yield world.env.timeout(max(0.0, next_start_h - world.env.now))
        next_start_h = world.env.now + training.cadence_months * HOURS_PER_MONTH
        # Drawn at every start, run or not, so that the noise of later runs doesn't depend on it.
        run_noise, gate_noise = world.random["training"].standard_normal(2)
        uniforms = dict(zip(KINDS, world.random["failures"].random(len(KINDS)).tolist(), strict=True))
        from_scratch = pretraining is not None and world.month >= pretraining.start_month
        start = base
        if pretraining is not None and from_scratch:
            start = pretraining.tokens * pretraining.effective_per_token
        knows = start + world.pool.effective_tokens * repeated(training)
        if not from_scratch and knows < learnt * (1 + training.min_new_data_share):
            world.note("training", "run_skipped")
            continue
        tokens = training.replay_tokens + training.epochs * world.pool.tokens
        answers = _answer_tokens(world)
        gain = tuning_gain(training, answers, world.pool.preference_pairs)
        better = progress(training, world.month)
        active = parameters * training.active_share
        parts = phases(training, active, tokens, answers, from_scratch=from_scratch)
        if not parts:
            continue
        for phase in parts:
            yield from cluster.work(world, phase, uniforms[phase.kind])
            world.record(f"runs_{phase.kind.replace('-', '_')}", 1)
        found = expected_loss(training, parameters, knows, better) + training.run_noise * float(run_noise)
        found = max(found - trials_gain(training), law(training).E)
        if from_scratch:
            pretraining = None
        if not (yield from evaluate(world, newest, found, gain, float(gate_noise))):
            continue
        base, learnt = start, knows
        newest = ModelVersion(newest.version + 1, found, quality(training, found - gain), gain)
        world.record("releases", 1)
        world.record("trained_tokens", tokens)
        world.note("training", "gate_passed", version=newest.version, loss=found)
        world.releases.put(newest)


def _answer_tokens(world: World) -> float:
    """Written answers at hand for tuning: those of the scenario and those of the company's own labellers."""
    tuning = world.scenario.training.fine_tuning
    if tuning is None:
        return 0.0
    own = world.pool.held.get(LABELS)
    return tuning.tokens + (own.tokens if own is not None else 0.0)
