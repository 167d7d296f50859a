"""Stage 2, training: a run on a rented cluster every few months, and a gate before anything is released.

Models the research team. The loss follows the scaling law L(N, D) = E + A/N^alpha + B/D^beta (constants of
Besiroglu et al. 2024, arXiv:2404.10102) with N the parameters of the served model and D the effective
in-domain tokens: what the starting model knows plus the pool at the start of the run. Compute of the final
run is 6·N·tokens (Kaplan et al. 2020, arXiv:2001.08361); trials and ablations multiply it; hours = FLOP /
(accelerators × peak × MFU). The gate compares a noisy measurement of the new loss with the live one;
a failed gate costs the same and releases nothing. Quality = exp(−k·(L − E)) is an assumption: monotone, 1
for a perfect model.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from simpy.events import ProcessGenerator

from engine.scaling import ScalingConstants, loss, training_flop, training_hours
from sim.ledger import HOURS_PER_MONTH
from sim.stages.finance import buy
from sim.world import ModelVersion, World

if TYPE_CHECKING:
    from sim.schema import Training

_SMALLEST_STEP_H = 1e-6  # keeps rounding at the end of a month from opening slices without length


def expected_loss(training: Training, parameters: float, effective_tokens: float) -> float:
    """Loss (nats per token) of a model of `parameters` weights that knows this much in-domain text."""
    law = ScalingConstants(
        E=training.loss_irreducible,
        A=training.loss_a,
        B=training.loss_b,
        alpha=training.loss_alpha,
        beta=training.loss_beta,
    )
    return loss(parameters, effective_tokens, law)


def quality(training: Training, model_loss: float) -> float:
    """Quality index in (0, 1] of a loss: what customers feel."""
    return math.exp(-training.quality_per_nat * max(0.0, model_loss - training.loss_irreducible))


def first_version(training: Training, parameters: float) -> ModelVersion:
    """The model that the company starts with: downloaded; its own pool enters with the first run."""
    start = expected_loss(training, parameters, training.base_effective_tokens)
    return ModelVersion(1, start, quality(training, start))


def run(world: World) -> ProcessGenerator:
    """Start a run at each cadence when enough new data came in; rent, train, measure, release or not."""
    training = world.scenario.training
    parameters = float(world.profile.model.parameters)
    newest = world.live
    learnt = training.base_effective_tokens
    next_start_h = training.cadence_months * HOURS_PER_MONTH
    while True:
        yield world.env.timeout(max(0.0, next_start_h - world.env.now))
        next_start_h = world.env.now + training.cadence_months * HOURS_PER_MONTH
        # Drawn at every start, run or not, so that the noise of later runs doesn't depend on it.
        run_noise, gate_noise = world.random["training"].standard_normal(2)
        knows = training.base_effective_tokens + world.pool.effective_tokens
        if knows < learnt * (1 + training.min_new_data_share):
            world.note("training", "too little new data: no run")
            continue
        tokens = training.replay_tokens + training.epochs * world.pool.tokens
        if tokens <= 0:
            continue
        flop = training_flop(parameters, tokens) * (1 + training.experiments_factor)
        yield from _rent(world, flop)
        found = expected_loss(training, parameters, knows) + training.run_noise * float(run_noise)
        found = max(found, training.loss_irreducible)
        measured_gain = newest.loss - found - training.evaluation_noise * float(gate_noise)
        if measured_gain < training.min_improvement:
            world.record("failed_gates", 1)
            world.note("training", f"gate failed: measured gain {measured_gain:.4f} nats per token")
            continue
        learnt = knows
        newest = ModelVersion(newest.version + 1, found, quality(training, found))
        world.record("releases", 1)
        world.record("trained_tokens", tokens)
        world.note("training", f"version {newest.version} passed the gate with loss {found:.4f}")
        world.releases.put(newest)


def _rent(world: World, flop: float) -> ProcessGenerator:
    """Rent the cluster until the work is done, billed month by month as the hours begin."""
    training = world.scenario.training
    remaining_h = training_hours(flop, training.accelerators, training.accelerator_peak_flops, training.mfu)
    flop_per_h = flop / remaining_h
    while remaining_h > _SMALLEST_STEP_H:
        rest_of_month_h = (world.month + 1) * HOURS_PER_MONTH - world.env.now
        slice_h = min(remaining_h, max(rest_of_month_h, _SMALLEST_STEP_H))
        cost_usd = slice_h * training.accelerators * training.accelerator_price_usd_per_hour
        buy(world, "training_compute", cost_usd, "training cluster", "accelerator cloud")
        world.record("training_flop", slice_h * flop_per_h)
        world.record("cluster_hours", slice_h)
        yield world.env.timeout(slice_h)
        remaining_h -= slice_h
