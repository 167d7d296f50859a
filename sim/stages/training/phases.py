"""What a run consists of: from scratch or on, then tuning, then reinforcement; the operations of each.

Compute is 6·N·D FLOP (Kaplan et al. 2020, arXiv:2001.08361): 2·N per token forward, 4·N backward. Trials and
ablations multiply the runs on text. A step of reinforcement writes prompts × samples (2·N per token, decoding, so at a
low utilisation or on serving machines), rates them with a reward model and a reference model of the same size
(2 × 2·N), and learns from them (6·N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.training.scaling_law import FORWARD_FLOP, training_flop

if TYPE_CHECKING:
    from sim.scenario.schema import Training
    from sim.scenario.schema.training import Reinforcement

KINDS = ("pretraining", "continued", "fine-tuning", "generation", "reinforcement")
_RATERS = 2  # reward model and reference model


@dataclass(frozen=True)
class Phase:
    """One part of a run: its FLOP, and the fraction of the peak at which they run."""

    kind: str
    flop: float
    utilisation: float
    written_tokens: float = 0.0  # above 0: written by serving replicas instead, `flop` is not on the cluster


def phases(
    training: Training, parameters: float, text_tokens: float, answer_tokens: float, *, from_scratch: bool
) -> list[Phase]:
    """The parts of one run, in order.

    Args:
        training: the section of the scenario.
        parameters: of the served model that a token multiplies.
        text_tokens: that the run on text reads, all passes counted.
        answer_tokens: written answers at hand, one pass.
        from_scratch: whether a model from scratch comes first.
    """
    trials = training.trials
    tried = 0.0 if trials is None else trials.count * trials.scale
    around = 1 + training.experiments_factor + tried
    parts = []
    if from_scratch and training.pretraining is not None:
        flop = training_flop(parameters, training.pretraining.tokens) * around
        parts.append(Phase("pretraining", flop, training.mfu))
    if text_tokens > 0:
        parts.append(Phase("continued", training_flop(parameters, text_tokens) * around, training.mfu))
    if training.fine_tuning is not None and answer_tokens > 0:
        flop = training_flop(parameters, answer_tokens * training.fine_tuning.epochs)
        parts.append(Phase("fine-tuning", flop, training.mfu))
    if training.reinforcement is not None:
        parts += _reinforcement(training, training.reinforcement, parameters)
    return parts


def _reinforcement(training: Training, steps: Reinforcement, parameters: float) -> list[Phase]:
    samples = steps.steps * steps.prompts_per_step * steps.samples_per_prompt
    seen = samples * (steps.prompt_tokens + steps.sample_tokens)
    # The samples of one prompt share its prefill.
    prompts = steps.steps * steps.prompts_per_step * steps.prompt_tokens
    written = samples * steps.sample_tokens
    writing = FORWARD_FLOP * parameters * (prompts + written)
    learning = training_flop(parameters, seen) + _RATERS * FORWARD_FLOP * parameters * seen
    on_fleet = written if steps.generation == "fleet" else 0.0
    return [
        Phase("generation", writing, steps.generation_utilisation, on_fleet),
        Phase("reinforcement", learning, training.mfu),
    ]
