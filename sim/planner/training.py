"""How many accelerators train a model in some days: memory with optimizer state, time, failures, money.

Memory: weights, gradients and Adam's state sharded over all accelerators (ZeRO stage 3), activations of one sequence
recomputed layer by layer: the fewest that can hold a run at all (`sim.training.memory`). Time: the fewest whose run,
with the failures of `sim.training.checkpointing`, ends within the days. The utilisation is what the published runs of
`sim.training.published_runs` reached in terms of 6·N·D over all the hours they were billed: their median, and from
the lowest to the highest as interval.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from engine.errors import InputError
from engine.models.catalog import CatalogModel
from engine.profile.hardware import Accelerator
from engine.training.scaling_law import training_flop
from sim.training.memory import (
    activation_bytes,
    checkpoint_bytes,
    checkpoint_write_s,
    least_accelerators,
    zero_bytes,
)
from sim.training.published_runs import references
from sim.training.run import (
    LLAMA3_NODE_MTBF_H,
    LLAMA_GRID_G_PER_KWH,
    LLAMA_PUE,
    MEGASCALE_RESTART_S,
    STORAGE_BYTES_PER_S_PER_NODE,
    RunPlan,
    inferred_mfu,
    plan_run,
)

ACCELERATORS_PER_NODE = 8
LONGEST_SEQUENCE_TOKENS = 4096  # trained on; longer contexts come in a short stage after it
MOST_ACCELERATORS = 10_000_000
_SLOW_LINK = 100e9  # bytes/s: below it, the published runs' utilisation is out of reach


@dataclass(frozen=True)
class TrainingNeed:
    """The training run to plan.

    Raises:
        InputError: tokens, days, utilisation or budget out of range.
    """

    tokens: float
    days: float
    mfu: float | None = None  # None: of the published runs
    budget_usd: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("tokens", self.tokens), ("days", self.days), ("budget_usd", self.budget_usd)):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} {value}: allowed is a number above 0")
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise InputError(f"mfu {self.mfu}: allowed is a fraction above 0 and at most 1")


@dataclass(frozen=True)
class TrainingAnswer:
    """Accelerators of one kind that train the model in time; None where nothing can be said, and `note` says why."""

    accelerator: str
    memory_accelerators: int | None  # fewest that hold state and activations
    accelerators: int | None = None  # that end in time
    accelerators_low: int | None = None  # at the highest published utilisation
    accelerators_high: int | None = None  # at the lowest
    decided_by: str = ""  # "memory" (the fewest that hold it are fast enough) or "days"
    plan: RunPlan | None = None
    bytes_per_accelerator: float | None = None  # state, with that many
    usd: float | None = None
    tokens_in_budget: float | None = None
    note: str = ""


def published_mfu() -> tuple[float, float, float]:
    """(lowest, median, highest) utilisation of the published runs: 6·N·D over all accelerator-hours of pre-training."""
    found = []
    for run in references().runs.values():
        hours = run.published.get(
            "pretraining_accelerator_hours", run.published.get("accelerator_hours", 0.0)
        )
        if hours and run.peak_tflops:
            found.append(
                inferred_mfu(training_flop(run.parameters, run.tokens), hours, run.peak_tflops * 1e12)
            )
    return min(found), statistics.median(found), max(found)


def run_on(
    model: CatalogModel,
    row: Accelerator,
    tokens: float,
    accelerators: int,
    mfu: float,
    price_usd_per_hour: float | None = None,
) -> RunPlan:
    """The run of a published model: `run_of` its parameters, of which the active ones compute."""
    return run_of(
        model.parameters,
        tokens,
        row,
        accelerators,
        mfu,
        price_usd_per_hour,
        active_parameters=model.active_parameters,
    )


def run_of(
    parameters: float,
    tokens: float,
    row: Accelerator,
    accelerators: int,
    mfu: float,
    price_usd_per_hour: float | None = None,
    *,
    active_parameters: float | None = None,
) -> RunPlan:
    """The run of `tokens` on so many accelerators, with the defaults for failures, checkpoints and power.

    Raises:
        InputError: no peak in the catalog, a number out of range, or failures that let no work be done.
    """
    if row.peak_bf16_flops is None:
        raise InputError(f"{row.name}: no peak_bf16_flops in the catalog")
    nodes = math.ceil(accelerators / ACCELERATORS_PER_NODE)
    return plan_run(
        training_flop(active_parameters or parameters, tokens),
        accelerators=accelerators,
        peak_flops=row.peak_bf16_flops,
        mfu=mfu,
        price_usd_per_hour=price_usd_per_hour or 0.0,
        accelerators_per_node=ACCELERATORS_PER_NODE,
        node_mtbf_h=LLAMA3_NODE_MTBF_H,
        checkpoint_s=checkpoint_write_s(checkpoint_bytes(parameters), nodes * STORAGE_BYTES_PER_S_PER_NODE),
        restart_s=MEGASCALE_RESTART_S,
        board_w=row.board_w or 0.0,
        pue=LLAMA_PUE,
        grid_g_per_kwh=LLAMA_GRID_G_PER_KWH,
    )


def memory_to_train(model: CatalogModel, row: Accelerator) -> int | None:
    """Fewest accelerators that can hold a training run (see the module); None: no number can."""
    sequence = min(model.max_context_tokens, LONGEST_SEQUENCE_TOKENS)
    activations = activation_bytes(
        sequence,
        layers=model.layers,
        hidden_size=model.hidden_size,
        attention_heads=model.attention_heads,
        sequence_tokens=sequence,
        vocab_size=model.vocab_size,
        recompute="full",
    )
    return least_accelerators(
        model.parameters,
        row.memory_bytes,
        activations,
        layer_parameters=_gathered_parameters(model),
    )


def train(
    model: CatalogModel, row: Accelerator, need: TrainingNeed, price_usd_per_hour: float | None
) -> TrainingAnswer:
    """How many of this accelerator train the model in time (see the module)."""
    memory = memory_to_train(model, row)
    if memory is None:
        return TrainingAnswer(row.name, None, note="one layer and its activations don't fit into its memory")
    if row.peak_bf16_flops is None:
        return TrainingAnswer(row.name, memory, note="no data sheet in the catalog: memory only")
    low, middle, high = published_mfu() if need.mfu is None else (need.mfu,) * 3
    counts = [_in_time(model, row, need, mfu, memory) for mfu in (high, middle, low)]
    if counts[1] is None:
        return TrainingAnswer(
            row.name, memory, note=f"no number ends within {need.days:g} days: failures come too fast"
        )
    plan = run_on(model, row, need.tokens, counts[1], middle, price_usd_per_hour)
    usd = None if price_usd_per_hour is None else plan.cost_usd
    affordable = None if need.budget_usd is None or not usd else need.tokens * need.budget_usd / usd
    slow = row.link_bytes_per_s is not None and row.link_bytes_per_s < _SLOW_LINK
    return TrainingAnswer(
        accelerator=row.name,
        memory_accelerators=memory,
        accelerators=counts[1],
        accelerators_low=counts[0],
        accelerators_high=counts[2],
        decided_by="memory" if counts[1] == memory else "days",
        plan=plan,
        bytes_per_accelerator=zero_bytes(model.parameters, counts[1]),
        usd=usd,
        tokens_in_budget=affordable,
        note="no fast link between its accelerators: expect less utilisation than the published runs'"
        if slow
        else "",
    )


def _in_time(
    model: CatalogModel, row: Accelerator, need: TrainingNeed, mfu: float, memory: int
) -> int | None:
    """The fewest accelerators, at least `memory`, whose run ends within the days; None: no number does."""
    limit_h = need.days * 24

    def hours(count: int) -> float:
        try:
            return run_on(model, row, need.tokens, count, mfu).hours
        except InputError:
            return math.inf  # fails faster than it gets on

    high = memory
    while True:
        taken = hours(high)
        if taken <= limit_h:
            break
        if high >= MOST_ACCELERATORS or math.isinf(taken):
            return None
        high = min(MOST_ACCELERATORS, max(high + 1, math.ceil(high * min(taken / limit_h, 2.0))))
    low = memory - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if hours(middle) <= limit_h else (middle, high)
    return high


def _gathered_parameters(model: CatalogModel) -> float:
    """Parameters that stage 3 brings together at a time: a layer; of a mixture of experts without its experts, which
    stay where they are (expert parallelism)."""
    return model.always_parameters / model.layers
