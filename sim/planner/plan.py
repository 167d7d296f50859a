"""How many accelerators does this model need? Serving and training, any catalog hardware, beside what others said.

Answers of `sim.planner.serving` (predicted) and `sim.planner.training` for each accelerator asked for, the published
runs of the same model, and the claim of the article that this project started from, with the reasons why they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import InputError
from engine.models.catalog import CatalogModel, find_model
from engine.profile.hardware import CATALOG, Accelerator, lookup
from engine.utils.progress import Progress, part_of
from sim.planner.serving import ServingAnswer, ServingNeed, serve
from sim.planner.training import (
    LONGEST_SEQUENCE_TOKENS,
    TrainingAnswer,
    TrainingNeed,
    published_mfu,
    run_on,
    train,
)
from sim.training.memory import USABLE_SHARE, checkpoint_bytes, state_bytes_per_parameter
from sim.training.published_runs import Claim, PublishedRun, compute, references
from sim.training.run import LLAMA3_NODE_MTBF_H, LLAMA_GRID_G_PER_KWH, LLAMA_PUE, MEGASCALE_RESTART_S

DEFAULT_ON = ("A100 SXM 80 GB", "H100 SXM 80 GB")
TOKENS_PER_PARAMETER = 20.0  # compute-optimal: Hoffmann et al. 2022, arXiv:2203.15556


@dataclass(frozen=True)
class Published:
    """A published run of the model, and what the physics of `sim.training.run` gives for its inputs."""

    title: str
    accelerator: str
    accelerators: int | None
    accelerator_hours: float | None
    computed_accelerator_hours: float | None
    days: float | None  # the hours on that many accelerators
    source: str


@dataclass(frozen=True)
class ClaimAnswer:
    """The article's number, what it would do, and why it differs from the computed ones."""

    accelerator: str
    accelerators: int
    source: str
    trains_in_days: float | None  # None: the run doesn't fit into their memory
    serves_rps: float | None  # None: nothing was predicted
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class AcceleratorPlan:
    """The plan; `serving` and `training` have one entry per accelerator."""

    model: str
    parameters: int
    active_parameters: int
    weight_bytes: int  # at the precision served
    training_state_bytes: float  # weights, gradients, optimizer
    checkpoint_bytes: float
    precision: str
    rate_rps: float
    traffic: str
    ttft_p95_s: float
    tpot_p95_s: float
    tokens: float
    tokens_from: str
    days: float
    budget_usd: float | None
    serving: tuple[ServingAnswer, ...]
    training: tuple[TrainingAnswer, ...]
    published: tuple[Published, ...]
    claim: ClaimAnswer | None
    assumptions: tuple[str, ...]


def plan(
    model: str,
    on: Sequence[str] | str = DEFAULT_ON,
    *,
    serving: ServingNeed,
    tokens: float | None = None,
    days: float = 100.0,
    budget_usd: float | None = None,
    mfu: float | None = None,
    price_usd_per_hour: float | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> AcceleratorPlan:
    """How many accelerators serve and train a model.

    Args:
        model: name, alias or hub id in engine/models/catalog.json.
        on: accelerators of the hardware catalog, or "all".
        serving: load, objective, precision and where serving efficiencies come from.
        tokens: to train on; None takes those of the model's published run, else 20 per active parameter.
        days: in which training is to end.
        budget_usd: of training.
        mfu: of training; None takes that of the published runs.
        price_usd_per_hour: of one accelerator of any kind; None takes list prices where there are any.
        cache_dir: of capacity surfaces; None takes the user's.
        progress: called with (fraction done, what is being done).

    Raises:
        InputError: an unknown model, accelerator, traffic class, precision or engine; a number out of range.
    """
    if price_usd_per_hour is not None and not 0 <= price_usd_per_hour < float("inf"):
        raise InputError(f"price_usd_per_hour {price_usd_per_hour}: a finite number ≥ 0 is allowed")
    found = find_model(model)
    rows = accelerators(on)
    file = references()
    claim = file.claims.get(found.name)
    runs = [run for run in file.runs.values() if find_model(run.model) is found]
    if tokens is None:
        tokens, tokens_from = _usual_tokens(found, runs, claim)
    else:
        tokens_from = "as asked"
    need = TrainingNeed(tokens, days, mfu, budget_usd)
    claimed = lookup(claim.accelerator) if claim else None
    computed = rows if claimed is None or claimed in rows else [*rows, claimed]
    answers = []
    for number, row in enumerate(computed):
        price = row.price_usd_per_hour if price_usd_per_hour is None else price_usd_per_hour
        report = part_of(progress, number / len(computed), (number + 1) / len(computed))
        served = serve(found, row, serving, price, cache_dir=cache_dir, progress=report)
        answers.append((row, served, train(found, row, need, price)))
    shown = [each for each in answers if each[0] in rows]
    return AcceleratorPlan(
        model=found.name,
        parameters=found.parameters,
        active_parameters=found.active_parameters,
        weight_bytes=found.weight_bytes(serving.precision),
        training_state_bytes=state_bytes_per_parameter() * found.parameters,
        checkpoint_bytes=checkpoint_bytes(found.parameters),
        precision=serving.precision,
        rate_rps=serving.rate_rps,
        traffic=serving.traffic,
        ttft_p95_s=serving.objective.ttft_p95_s,
        tpot_p95_s=serving.objective.tpot_p95_s,
        tokens=tokens,
        tokens_from=tokens_from,
        days=days,
        budget_usd=budget_usd,
        serving=tuple(served for _, served, _ in shown),
        training=tuple(trained for _, _, trained in shown),
        published=tuple(_published(run) for run in runs),
        claim=None
        if claim is None
        else _claim(claim, found, serving, need, runs, next(each for each in answers if each[0] is claimed)),
        assumptions=_assumptions(serving, mfu),
    )


def accelerators(on: Sequence[str] | str) -> list[Accelerator]:
    """The catalog's rows for names, or all for "all"; each once.

    Raises:
        InputError: an unknown or ambiguous name, or none at all.
    """
    names = [on] if isinstance(on, str) else list(on)
    if [name.strip().lower() for name in names] == ["all"]:
        return list(CATALOG)
    rows = list(dict.fromkeys(lookup(name) for name in names if name.strip()))
    if not rows:
        raise InputError("no accelerator named: allowed are names of the hardware catalog, or all")
    return rows


def _usual_tokens(
    model: CatalogModel, runs: Sequence[PublishedRun], claim: Claim | None
) -> tuple[float, str]:
    if runs:
        return runs[0].tokens, f"what {runs[0].title} was trained on"
    if claim is not None and claim.tokens is not None:
        return claim.tokens, f"what {model.name} was trained on"
    tokens = TOKENS_PER_PARAMETER * model.active_parameters
    return tokens, "20 per active parameter (compute-optimal: Hoffmann et al. 2022)"


def _published(run: PublishedRun) -> Published:
    hours = run.published.get("accelerator_hours")
    count = run.accelerators if run.accelerators > 1 else None
    return Published(
        title=run.title,
        accelerator=run.accelerator,
        accelerators=count,
        accelerator_hours=hours,
        computed_accelerator_hours=compute(run).get("accelerator_hours"),
        days=hours / count / 24 if hours and count else None,
        source=run.source,
    )


def _claim(
    claim: Claim,
    model: CatalogModel,
    serving: ServingNeed,
    need: TrainingNeed,
    runs: Sequence[PublishedRun],
    answer: tuple[Accelerator, ServingAnswer, TrainingAnswer],
) -> ClaimAnswer:
    """The claim beside the answers for its accelerator."""
    row, served, trained = answer
    count = claim.accelerators
    days = None
    if trained.memory_accelerators is not None and count >= trained.memory_accelerators:
        days = run_on(model, row, need.tokens, count, need.mfu or published_mfu()[1]).hours / 24
    rps = None
    if served.width is not None and served.capacity_rps is not None:
        rps = count // served.width * served.capacity_rps
    reasons = [
        "The claim names neither a purpose (serving or training), nor a load, nor a time; each decides the number."
    ]
    if served.accelerators is not None:
        reasons.append(
            f"Serving {serving.rate_rps:g} {serving.traffic} requests/s takes {served.accelerators} by prediction: "
            f"{_against(served.accelerators, count)}."
        )
    if trained.memory_accelerators is not None:
        reasons.append(
            f"Holding weights, gradients and optimizer state takes {trained.memory_accelerators}: memory is "
            + (
                "not what asks for the claimed number."
                if trained.memory_accelerators < count
                else "the limit."
            )
        )
    if days is not None and trained.accelerators is not None:
        reasons.append(
            f"Training on {need.tokens / 1e9:,.0f}B tokens is a choice of days: {need.days:g} days take "
            f"{trained.accelerators}, the claimed {count:,} would take {days:,.0f} days."
        )
    for run in runs:
        published = _published(run)
        if published.days is not None and published.accelerators is not None:
            reasons.append(
                f"{run.title} was in fact trained on {published.accelerators:,} {run.accelerator} in "
                f"{published.days:,.0f} days: {_against(published.accelerators, count)}."
            )
    return ClaimAnswer(row.name, count, claim.source, days, rps, tuple(reasons))


def _against(needed: int, claimed: int) -> str:
    if needed == claimed:
        return "as claimed"
    times = max(needed, claimed) / min(needed, claimed)
    return f"the claim is {times:.1f} times as many" if claimed > needed else f"{times:.1f} times the claim"


def _assumptions(serving: ServingNeed, mfu: float | None) -> tuple[str, ...]:
    low, middle, high = published_mfu()
    efficiency = (
        f"{serving.engine}'s efficiencies fitted on published benchmarks"
        if serving.engine
        else "a measured profile carried over"
    )
    return (
        f"Serving is PREDICTED, not measured: roofline terms with {efficiency}; the range is a 90 % interval of the "
        "step times. The load is that of the busiest time; there is no spare replica in it.",
        f"Training: 6·N·D FLOP at {middle if mfu is None else mfu:.1%} of the bf16 peak"
        + (
            f", the median of the published runs over all hours billed; range: {low:.1%} to {high:.1%}."
            if mfu is None
            else ", as asked."
        ),
        f"Training memory: 16 bytes per parameter sharded over all (ZeRO stage 3), one sequence of up to "
        f"{LONGEST_SEQUENCE_TOKENS:,} tokens on each with activations recomputed, {USABLE_SHARE:.0%} of the memory.",
        f"Failures: a node of 8 every {LLAMA3_NODE_MTBF_H:,.0f} h (Llama 3 report), {MEGASCALE_RESTART_S:.0f} s to "
        "restart (MegaScale), checkpoints of 14 bytes per parameter at 1 GB/s per node, at the best interval.",
        f"Energy: board watts × PUE {LLAMA_PUE}; CO2 at {LLAMA_GRID_G_PER_KWH:.0f} g/kWh (LLaMA paper).",
        "Prices: on-demand list prices of engine/profile/hardware.py, read 2026-11.",
    )
