"""How good a model gets: the scaling law, what repeated text is worth, what tuning and better methods add.

- L(N, D) = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022; constants of Besiroglu et al. 2024, arXiv:2404.10102,
  or a law fitted to own runs), N the served model's parameters, D its effective in-domain tokens.
- Text read e times counts U·(1 + R*·(1 − exp(−(e − 1)/R*))) of its U tokens (Muennighoff et al. 2023,
  arXiv:2305.16264; R* is 15.39 there).
- Better methods: the compute for a given loss halves every so many months (Ho et al. 2024, arXiv:2403.05812).
  A factor g in compute is √g in N and √g in D, because C = 6·N·D.
- The best of n hyper-parameter settings lies Φ⁻¹((n − 0.375)/(n + 0.25)) standard deviations below their mean
  (Blom 1958).
- Tuning and reinforcement don't lower the loss on text; their benefit to users is counted as a lower loss that
  approaches a limit, x/(x + half). Limit and half are assumptions.
- Quality = exp(−k·(loss − gain − E)) is an assumption: monotone, 1 for a perfect model.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING

from engine.errors import InputError
from engine.training.scaling_law import ScalingConstants, load_law, loss
from sim.stages.world import ModelVersion

if TYPE_CHECKING:
    from sim.scenario.schema import Training


def law(training: Training) -> ScalingConstants:
    """The scenario's scaling law: its constants, or those of a fitted law's file.

    Raises:
        InputError: the file is missing or no fitted law.
    """
    if training.scaling_law is not None:
        file = Path(training.scaling_law)
        changed_ns = file.stat().st_mtime_ns if file.is_file() else 0
        fitted = _fitted(training.scaling_law, changed_ns)
        return fitted if training.scaling_law_draw is None else _draw(fitted, training)
    return ScalingConstants(
        E=training.loss_irreducible,
        A=training.loss_a,
        B=training.loss_b,
        alpha=training.loss_alpha,
        beta=training.loss_beta,
    )


@lru_cache(maxsize=8)
def _fitted(path: str, _changed_ns: int) -> ScalingConstants:
    """The law of a file, read again when the file changes."""
    return load_law(path)


def _draw(fitted: ScalingConstants, training: Training) -> ScalingConstants:
    """One bootstrap draw of the fitted laws."""
    row = training.scaling_law_draw or 0
    if row >= len(fitted.draws):
        raise InputError(
            f"training.scaling_law_draw: found {row}, allowed: 0 to {len(fitted.draws) - 1} ({training.scaling_law})"
        )
    e, a, b, alpha, beta = fitted.draws[row]
    return ScalingConstants(e, a, b, alpha, beta, fitted.source)


def expected_loss(
    training: Training, parameters: float, effective_tokens: float, progress: float = 1.0
) -> float:
    """Loss (nats per token) of a model of `parameters` weights that knows this much in-domain text.

    `progress`: compute that yesterday's methods would need, over that of today's.
    """
    root = math.sqrt(progress)
    return loss(parameters * root, effective_tokens * root, law(training))


def progress(training: Training, months: float) -> float:
    """Factor of compute that better methods save after some months; 1 when the scenario has no progress."""
    halving = training.algorithmic_progress_months
    return 1.0 if halving is None else 2.0 ** (months / halving)


def repeated(training: Training) -> float:
    """Effective tokens of a pool read `epochs` times, over those of one pass."""
    decay = training.repetition_decay
    if decay is None:
        return 1.0
    if training.epochs <= 1:
        return training.epochs
    return 1 + decay * -math.expm1(-(training.epochs - 1) / decay)


def trials_gain(training: Training) -> float:
    """Nats per token that the best of the tried settings is expected to lie below their mean."""
    trials = training.trials
    if trials is None or trials.count == 1:
        return 0.0
    return trials.spread_nats * NormalDist().inv_cdf((trials.count - 0.375) / (trials.count + 0.25))


def tuning_gain(training: Training, answer_tokens: float, preference_pairs: float) -> float:
    """Gain of tuning on answers and of reinforcement for users, in nats per token."""
    gain = 0.0
    if training.fine_tuning is not None:
        tuning = training.fine_tuning
        gain += tuning.gain_nats * saturating(answer_tokens, tuning.half_gain_tokens)
    if training.reinforcement is not None:
        steps = training.reinforcement
        part = saturating(steps.steps, steps.half_gain_steps)
        gain += steps.gain_nats * part * saturating(preference_pairs, steps.half_gain_pairs)
    return gain


def saturating(amount: float, half: float) -> float:
    """amount / (amount + half): 0.5 at half, 1 without end; 1 when half is 0."""
    return 1.0 if half == 0 else amount / (amount + half)


def quality(training: Training, loss: float) -> float:
    """Quality index in (0, 1] of a loss less the gain of tuning."""
    return math.exp(-training.quality_per_nat * max(0.0, loss - law(training).E))


def first_version(training: Training, parameters: float) -> ModelVersion:
    """The model that the company starts with: downloaded; its own pool enters with the first run."""
    start = expected_loss(training, parameters, training.base_effective_tokens)
    return ModelVersion(1, start, quality(training, start))
