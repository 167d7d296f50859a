"""Stage 2 of a scenario: training runs; kinds of runs, the cluster and its failures, the gate, safety."""

from __future__ import annotations

from typing import Literal

from sim.scenario.schema.base import BESIROGLU, NEBIUS, Section, fraction, option, quantity

LLAMA3 = "Llama 3 report, table 5: 419 unexpected interruptions in 54 days of 2,048 nodes"
MEGASCALE = "MegaScale, Jiang et al. 2024, arXiv:2402.15627"
TOUVRON = "LLaMA, Touvron et al. 2023, arXiv:2302.13971"


class Pretraining(Section):
    """A model from scratch instead of the downloaded one: the first run that starts in its month or later."""

    start_month: int = quantity(0, "month of the run, 0 is the first", "earliest start", ge=0, le=600)
    tokens: float = quantity(1e11, "tokens", "read from scratch", gt=0)
    effective_per_token: float = quantity(
        0.1, "effective tokens per token", "what general text teaches of this domain", gt=0, le=100
    )


class FineTuning(Section):
    """Supervised tuning on written answers, after every run on text."""

    tokens: float = quantity(1e7, "tokens", "answers at hand besides those that own labellers write", ge=0)
    epochs: float = quantity(3.0, "passes", "over the answers", gt=0, le=100)
    gain_nats: float = quantity(
        0.02, "nats per token", "most that it adds to what users feel, as lower loss", ge=0, le=5
    )
    half_gain_tokens: float = quantity(1e7, "tokens", "of answers that give half of the most", gt=0)


class Reinforcement(Section):
    """Steps of reinforcement on preferences: write samples, rate them, learn from the ratings."""

    steps: int = quantity(500, "steps", "per version", ge=1, le=10**7)
    prompts_per_step: float = quantity(64.0, "prompts", "in one step", gt=0)
    samples_per_prompt: float = quantity(8.0, "samples", "written for each prompt", gt=0)
    prompt_tokens: float = quantity(500.0, "tokens", "in a prompt", ge=0)
    sample_tokens: float = quantity(500.0, "tokens", "in a sample", gt=0)
    generation: Literal["cluster", "fleet"] = quantity(
        "cluster", "cluster or fleet", "who writes: the training cluster, or serving replicas as measured"
    )
    generation_utilisation: float = quantity(
        0.1, "fraction of peak", "of the cluster while it writes: decoding waits for memory", gt=0, le=1
    )
    fleet_replicas: float = quantity(4.0, "replicas", "that write side by side", gt=0)
    gain_nats: float = quantity(
        0.03, "nats per token", "most that it adds to what users feel, as lower loss", ge=0, le=5
    )
    half_gain_steps: float = quantity(500.0, "steps", "that give half of the most", gt=0)
    half_gain_pairs: float = quantity(
        0.0, "preference pairs", "at which the reward is half as good as it can be; 0: it is good", ge=0
    )


class Trials(Section):
    """Search over hyper-parameters with small runs before the final one."""

    count: int = quantity(16, "runs", "settings tried", ge=1, le=100_000)
    scale: float = quantity(0.02, "fraction of the final run's FLOP", "size of one trial", ge=0, le=10)
    spread_nats: float = quantity(
        0.01, "nats per token", "standard deviation of the final loss over settings", ge=0, le=5
    )


class Gate(Section):
    """What it takes to measure a candidate on the held-out set, and what a refusal costs."""

    days: float = quantity(3.0, "days", "evaluation takes", ge=0, le=365)
    usd: float = quantity(0.0, "USD per evaluation", "judges, compute, red team", ge=0)
    failure_days: float = quantity(
        0.0, "days", "to find the cause before another run may start", ge=0, le=730
    )
    failure_usd: float = quantity(0.0, "USD per refused candidate", "to find the cause", ge=0)


class Cluster(Section):
    """Where runs take place, besides accelerators that the company owns (finance.equipment, use: training)."""

    ownership: Literal["rented", "reserved", "shared"] = quantity(
        "rented",
        "rented, reserved or shared",
        "rented: by the hour of a run; reserved: all month, cheaper; shared: serving machines idle at night",
    )
    from_month: int = quantity(0, "month of the run, 0 is the first", "reserved from then on", ge=0, le=600)
    reserved_discount: float = fraction(0.3, "off the hourly price of a reserved cluster")
    power_usd_per_kwh: float = quantity(
        0.0,
        "USD per kWh",
        "electricity of owned accelerators in a run (needs `power`); rent includes it",
        ge=0,
    )


class Reliability(Section):
    """Failures of nodes, checkpoints at the optimal interval, restarts, stragglers."""

    accelerators_per_node: int = quantity(8, "accelerators", "lost together", ge=1, le=1024)
    node_mtbf_h: float = quantity(
        6334.0, "h", "mean time between failures of one node", source=LLAMA3, date="2024", gt=0
    )
    checkpoint_s: float = quantity(30.0, "s", "the run stands still while it writes a checkpoint", ge=0)
    restart_s: float = quantity(
        600.0, "s", "detect, replace, load, start again", source=MEGASCALE, date="2024", ge=0
    )
    step_time_cv: float = quantity(
        0.0,
        "standard deviation / mean",
        "spread of the nodes' step times: all wait for the slowest; 0 when the MFU was measured",
        ge=0,
        le=1,
    )


class Power(Section):
    """Electricity of a run, for energy and CO2."""

    board_w: float = quantity(700.0, "W", "of one accelerator", source="NVIDIA H100 SXM data sheet", ge=0)
    power_share: float = fraction(1.0, "of the board's watts drawn in a run")
    pue: float = quantity(
        1.1, "facility / equipment", "power usage effectiveness", source=TOUVRON, date="2023", ge=1, le=5
    )
    grid_g_per_kwh: float = quantity(
        385.0, "g CO2e per kWh", "of the grid", source=TOUVRON, date="2023", ge=0, le=2000
    )


class Safety(Section):
    """Work against harmful answers: what it costs and how much rarer it makes incidents."""

    interpretability_usd_per_month: float = quantity(
        0.0, "USD per month", "work on seeing why the model answers as it does", ge=0
    )
    bias_usd_per_month: float = quantity(0.0, "USD per month", "audits, red teams, balanced data", ge=0)
    incidents_per_year: float = quantity(
        1.0, "events per year", "harmful answers that make news, without such work", ge=0, le=500
    )
    incident_usd: float = quantity(
        50_000.0, "USD per incident", "mean cost of response and claims (exponential)", ge=0
    )
    interpretability_halving_usd: float = quantity(
        20_000.0, "USD per month", "of interpretability work that halves incidents", gt=0
    )
    bias_halving_usd: float = quantity(20_000.0, "USD per month", "of bias work that halves incidents", gt=0)


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
