"""Stage 2 of a scenario: training runs."""

from __future__ import annotations

from sim.schema.base import BESIROGLU, NEBIUS, Section, option, quantity
from sim.schema.training_parts import (
    Cluster,
    FineTuning,
    Gate,
    Power,
    Pretraining,
    Reinforcement,
    Reliability,
    Safety,
    Trials,
)


class Training(Section):
    """Stage 2: runs on a rented cluster, a scaling law, a gate before release."""

    base_effective_tokens: float = quantity(
        1e10, "effective tokens", "what the starting model knows of this domain, as in-domain tokens", gt=0
    )
    loss_irreducible: float = quantity(
        1.8172, "nats per token", "E of L = E + A/N^alpha + B/D^beta", source=BESIROGLU, date="2024", ge=0
    )
    loss_a: float = quantity(
        482.01, "nats per token", "A of the scaling law", source=BESIROGLU, date="2024", gt=0
    )
    loss_alpha: float = quantity(
        0.3478, "exponent", "alpha of the scaling law", source=BESIROGLU, date="2024", gt=0, le=2
    )
    loss_b: float = quantity(
        2085.43, "nats per token", "B of the scaling law", source=BESIROGLU, date="2024", gt=0
    )
    loss_beta: float = quantity(
        0.3658, "exponent", "beta of the scaling law", source=BESIROGLU, date="2024", gt=0, le=2
    )
    scaling_law: str | None = option(
        None, "file", "law fitted by `flywheel train`, instead of the constants above; null: the constants"
    )
    scaling_law_draw: int | None = option(
        None,
        "row, from 0",
        "of the fitted law's draws, for studies of its uncertainty; null: its constants",
        ge=0,
    )
    algorithmic_progress_months: float | None = option(
        None,
        "months",
        "in which the compute for a given loss halves; published: 8 (Ho et al. 2024, arXiv:2403.05812); null: never",
        gt=0,
    )
    repetition_decay: float | None = option(
        None,
        "passes",
        "R* of repeated text (Muennighoff et al. 2023, arXiv:2305.16264: 15.39); null: passes after the first add none",
        gt=0,
    )
    quality_per_nat: float = quantity(
        1.0, "1 per nat", "k of quality = exp(-k (loss - E)): 1 is a perfect model", gt=0, le=20
    )
    cadence_months: float = quantity(3.0, "months", "time between the starts of two runs", gt=0, le=120)
    min_new_data_share: float = quantity(
        0.02, "fraction of effective tokens", "new data below which a run is not worth starting", ge=0, le=10
    )
    replay_tokens: float = quantity(
        1e11, "tokens", "general text repeated in each run so that the model forgets nothing", ge=0
    )
    epochs: float = quantity(2.0, "passes", "how often a run reads the in-domain pool", gt=0, le=100)
    experiments_factor: float = quantity(
        10.0, "FLOP per FLOP of the final run", "compute of trials and ablations before the final run", ge=0
    )
    active_share: float = option(
        1.0,
        "fraction of the parameters",
        "that a token multiplies: below 1 in a mixture of experts",
        gt=0,
        le=1,
    )
    accelerators: int = quantity(8, "accelerators", "size of the rented cluster", ge=1, le=1_000_000)
    accelerator_price_usd_per_hour: float = quantity(
        2.95, "USD per accelerator-hour", "rent of one H100 SXM", source=NEBIUS, date="2026", ge=0
    )
    accelerator_price_decline_per_year: float = option(
        0.0, "fraction per year", "how fast the rent falls", ge=0, lt=1
    )
    accelerator_peak_flops: float = quantity(
        989e12, "FLOP/s", "dense bf16 peak of one accelerator", source="NVIDIA H100 SXM data sheet", gt=0
    )
    mfu: float = quantity(0.40, "fraction of peak", "model FLOP utilisation in training", gt=0, le=1)
    run_noise: float = quantity(0.01, "nats per token", "standard deviation of a run's true loss", ge=0, le=1)
    evaluation_noise: float = quantity(
        0.005, "nats per token", "standard deviation of the loss measured at the gate", ge=0, le=1
    )
    min_improvement: float = quantity(
        0.002, "nats per token", "measured gain that the gate asks before a release", ge=0, le=5
    )
    pretraining: Pretraining | None = option(None, "section", "a model from scratch; null: a downloaded one")
    fine_tuning: FineTuning | None = option(None, "section", "tuning on written answers; null: none")
    reinforcement: Reinforcement | None = option(None, "section", "learning from preferences; null: none")
    trials: Trials | None = option(
        None, "section", "search over hyper-parameters, besides experiments_factor; null: none"
    )
    gate: Gate | None = option(None, "section", "time and money of the evaluation; null: neither")
    cluster: Cluster | None = option(None, "section", "bought, reserved or shared; null: rented by the hour")
    reliability: Reliability | None = option(
        None, "section", "failures, checkpoints and stragglers; null: nothing fails"
    )
    power: Power | None = option(None, "section", "electricity of the runs; null: not counted")
    safety: Safety | None = option(None, "section", "incidents and the work against them; null: none")
