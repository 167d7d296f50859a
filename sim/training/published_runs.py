"""Published training runs, and what `sim.training.run` makes of their inputs.

`scenarios/reference/training_runs.yaml` holds runs, a record of failures, sizes of checkpoints and an article's
claims, each with its source. `compute` and `compare` put the model's answer beside the published one; the planner
shows both. The file is checked like a scenario: a mistake is one line with file, line, key, found and allowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.errors import InputError
from engine.models.catalog import find_model
from sim.scenario.fields import explain
from sim.training.memory import WEIGHT_BYTES, checkpoint_bytes
from sim.training.run import plan_run, training_compute
from sim.utils import paths
from sim.utils.yaml_file import plain_values, read_mapping

GIB = 2.0**30


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PublishedRun(_Part):
    """One run: inputs, and what was published about it."""

    title: str
    model: str = Field(description="name in engine/models/catalog.json")
    accelerator: str
    accelerators: int = Field(default=1, ge=1)  # GPU-hours need no number; 1 where none was published
    peak_tflops: float | None = Field(default=None, gt=0)
    parameters: float = Field(gt=0, description="that a token multiplies")
    tokens: float = Field(gt=0)
    attention: Literal["none", "causal", "full"]
    sequence_tokens: float = Field(default=0, ge=0)
    recompute_activations: bool = False
    mfu: float | None = Field(default=None, gt=0, le=1)
    mfu_from: str = ""
    effective_fraction: float = Field(default=1.0, gt=0, le=1)
    effective_from: str = ""
    extra_accelerator_hours: float = Field(default=0, ge=0)
    price_usd_per_hour: float = Field(default=0, ge=0)
    board_w: float = Field(default=0, ge=0)
    pue: float = Field(default=1.0, ge=1)
    grid_g_per_kwh: float = Field(default=0, ge=0)
    published: dict[
        Literal[
            "flop",
            "flop_per_token",
            "pretraining_accelerator_hours",
            "accelerator_hours",
            "energy_kwh",
            "co2_t",
            "cost_usd",
        ],
        Annotated[float, Field(gt=0)],
    ]
    inferred_from: tuple[str, ...] = ()
    source: str = Field(min_length=1)


class Snapshot(_Part):
    """Failures of a run over some days."""

    title: str
    accelerators: int = Field(ge=1)
    accelerators_per_node: int = Field(ge=1)
    days: float = Field(gt=0)
    parameters: float = Field(gt=0)
    storage_bytes_per_s: float = Field(gt=0)
    node_mtbf_h: float = Field(gt=0)
    mtbf_from: str
    restart_s: float = Field(ge=0)
    restart_from: str
    planned_stops: int = Field(ge=0)
    unexpected: int = Field(ge=0)
    effective_fraction_above: float = Field(ge=0, le=1)
    source: str = Field(min_length=1)


class Sizes(_Part):
    """Bytes of a model's files."""

    title: str
    parameters: float = Field(gt=0)
    weights_gib: float = Field(gt=0)
    checkpoint_gib: float = Field(gt=0)
    source: str = Field(min_length=1)


class Claim(_Part):
    """A published number of accelerators that a model is said to need."""

    accelerator: str = Field(description="of engine/profile/hardware.py's catalog")
    accelerators: int = Field(ge=1)
    tokens: float | None = Field(default=None, gt=0)  # that the model was trained on, where no run says it
    source: str = Field(min_length=1)


class ReferenceFile(_Part):
    """Content of the file of references, by name."""

    runs: dict[str, PublishedRun]
    snapshots: dict[str, Snapshot] = Field(default_factory=dict)
    sizes: dict[str, Sizes] = Field(default_factory=dict)
    claims: dict[str, Claim] = Field(default_factory=dict)


@dataclass(frozen=True)
class RunComparison:
    """A computed quantity beside the published one."""

    case: str
    quantity: str
    computed: float
    published: float
    inferred: bool  # an input was inferred from this number: its agreement says nothing

    @property
    def error(self) -> float:
        """Relative error of the computed quantity."""
        return self.computed / self.published - 1


def shipped_file() -> Path:
    """The file of references that ships with the program."""
    return paths.scenarios_dir() / "reference" / "training_runs.yaml"


@cache
def references() -> ReferenceFile:
    """The shipped references."""
    return load(shipped_file())


def load(path: str | Path) -> ReferenceFile:
    """Read a file of references.

    Raises:
        InputError: missing, not YAML, or a wrong key or value (with its line).
    """
    try:
        document = read_mapping(Path(path), "the keys runs, snapshots, sizes, claims")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        file = ReferenceFile.model_validate(plain_values(document, str(path)))
    except ValidationError as error:
        message = str(explain(error, ReferenceFile, str(path), document))
        raise InputError(message.replace(" (None)", "")) from None
    for name, run in file.runs.items():
        needed = {"peak_tflops": run.peak_tflops, "mfu": run.mfu}
        missing = [key for key, value in needed.items() if value is None]
        if missing and any(key not in ("flop", "flop_per_token") for key in run.published):
            raise InputError(f"{path}: runs.{name}.{missing[0]}: missing; published hours need it")
    return file


def compute(run: PublishedRun) -> dict[str, float]:
    """Quantities computed from the inputs of a run, by their names in `PublishedRun.published`.

    Times are among them only where an MFU is known.
    """
    flop = training_compute(
        run.parameters,
        run.tokens,
        pair_flop=0.0 if run.attention == "none" else find_model(run.model).pair_flops,
        sequence_tokens=run.sequence_tokens,
        causal=run.attention == "causal",
        recompute_activations=run.recompute_activations,
    )
    found = {"flop": flop, "flop_per_token": flop / run.tokens}
    if run.mfu is None or run.peak_tflops is None:
        return found
    plan = plan_run(
        flop,
        accelerators=run.accelerators,
        peak_flops=run.peak_tflops * 1e12,
        mfu=run.mfu * run.effective_fraction,
        board_w=run.board_w,
        pue=run.pue,
        grid_g_per_kwh=run.grid_g_per_kwh,
        price_usd_per_hour=run.price_usd_per_hour,
    )
    total = plan.accelerator_hours + run.extra_accelerator_hours
    whole = total / plan.accelerator_hours
    return found | {
        "pretraining_accelerator_hours": plan.accelerator_hours,
        "accelerator_hours": total,
        "energy_kwh": plan.energy_kwh * whole,
        "co2_t": plan.co2_kg * whole / 1000,
        "cost_usd": plan.cost_usd * whole,
    }


def compare(file: ReferenceFile) -> list[RunComparison]:
    """Every published quantity of runs and sizes beside the computed one."""
    rows = []
    for run in file.runs.values():
        found = compute(run)
        rows += [
            RunComparison(run.title, quantity, found[quantity], value, quantity in run.inferred_from)
            for quantity, value in run.published.items()
        ]
    for size in file.sizes.values():
        for quantity, computed, value in (
            ("weights_gib", WEIGHT_BYTES * size.parameters / GIB, size.weights_gib),
            ("checkpoint_gib", checkpoint_bytes(size.parameters) / GIB, size.checkpoint_gib),
        ):
            rows.append(RunComparison(size.title, quantity, computed, value, False))
    return rows
