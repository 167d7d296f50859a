"""The profile: what was measured of a model on a machine, how well the step-time model fits it, what it
costs.

A Profile is the artefact between the two halves of the program: `engine.profiling.profiler` writes it, the simulator
reads it. It carries its own provenance (hardware, versions, date, method, fit error, the raw measurements),
so that every figure drawn from it can say where it comes from. No torch here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engine.errors import InputError
from engine.profile.cost import CostTable
from engine.profile.hardware import HardwareInfo
from engine.profile.model_shape import ModelShape
from engine.profile.step_time import RooflineStepTime, StepTimeModel
from engine.utils.files import write_atomically
from engine.utils.json_file import build, read_json_object

if TYPE_CHECKING:
    from engine.batch import SchedulerConfig

__all__ = [
    "CostTable",
    "FitReport",
    "Measurement",
    "ModelShape",
    "Profile",
    "Quality",
    "RooflineStepTime",
    "StepTimeModel",
    "TrainingPoint",
]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Measurement:
    """One point of the grid: a step, its time over several repeats, and whether the fit saw it."""

    kind: str  # "prefill", "decode" or "mixed"
    prefill: tuple[tuple[int, int], ...]  # (chunk tokens, context tokens) of each chunk
    decode_contexts: tuple[int, ...]  # tokens in the cache of each decoding request
    time_s: float  # the median of the repeats
    spread: float  # interquartile range over median of the repeats
    repeats: int
    held_out: bool


@dataclass(frozen=True)
class FitReport:
    """How well the step-time model fits the measurements; an error is |predicted - measured| / measured."""

    train_points: int
    held_out_points: int
    median_relative_error: float  # over the held-out points, as is p95 and max
    p95_relative_error: float
    max_relative_error: float
    train_median_relative_error: float
    repeat_spread: (
        float  # median over points of the repeats' interquartile range over median: the machine's noise
    )


@dataclass(frozen=True)
class TrainingPoint:
    """One optimizer step of `batch_sequences` × `sequence_tokens`: the median of several, after warm-up."""

    batch_sequences: int
    sequence_tokens: int
    step_s: float
    tokens_per_s: float
    mfu: float
    peak_memory_bytes: int  # CUDA: allocated; CPU: resident, weights and interpreter included


@dataclass(frozen=True)
class Quality:
    """Perplexity of the fixed text in a profile's number format, and in float32."""

    perplexity: float
    float32_perplexity: float | None  # None: the model doesn't fit in float32 here
    text_tokens: int

    @property
    def increase(self) -> float | None:
        """How much higher the perplexity is than in float32, as a fraction."""
        return None if self.float32_perplexity is None else self.perplexity / self.float32_perplexity - 1


@dataclass(frozen=True)
class Profile:
    """Measured (or predicted) speed, memory, power and cost of one model on one machine.

    Times are seconds; `scheduler` holds the fields of the `SchedulerConfig` that the engine ran with;
    `memory` bytes by name; `power` mean watts and their source, or the reason why there are none.
    """

    schema_version: int
    created_at: str  # ISO 8601, UTC
    kind: Literal["measured", "predicted"]
    model: ModelShape
    hardware: HardwareInfo
    software: dict[str, str]
    method: dict[str, Any]
    scheduler: dict[str, Any]
    coefficients: RooflineStepTime
    fit: FitReport
    cost: CostTable
    memory: dict[str, int]
    power: dict[str, Any]
    measurements: tuple[Measurement, ...] = field(default=())
    quality: Quality | None = None  # of the number format; None: random weights, or not measured
    training: tuple[TrainingPoint, ...] = ()  # none: `method["training"]` says why

    def step_time(
        self, prefill: Sequence[tuple[int, int]] = (), decode_contexts: Sequence[int] = ()
    ) -> float:
        """Seconds of one step: prefill [(chunk_tokens, context_tokens)] and one token per decode context."""
        return self.coefficients.step_time(prefill, decode_contexts)

    def step_time_interval(
        self,
        prefill: Sequence[tuple[int, int]] = (),
        decode_contexts: Sequence[int] = (),
        level: float = 0.9,
    ) -> tuple[float, float]:
        """(low, high) seconds between which one measured step lies with probability `level`.

        (0, inf) for a profile that doesn't know its uncertainty. Raises ValueError for a level outside (0, 1).
        """
        return self.coefficients.interval(prefill, decode_contexts, level)

    def step_time_model(self) -> RooflineStepTime:
        """The model that drives the simulator."""
        return self.coefficients

    def scheduler_config(self) -> SchedulerConfig:
        """The batching policy that the profile was measured with."""
        from engine.batch import SchedulerConfig

        known = {f.name for f in fields(SchedulerConfig)}
        for key in self.scheduler:
            if key not in known:
                allowed = ", ".join(sorted(known))
                raise InputError(
                    f"profile of {self.model.name}: scheduler.{key}: unknown key, allowed: {allowed}"
                )
        return SchedulerConfig(**self.scheduler)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the canonical JSON: two profiles with the same hash give the same simulation."""
        return hashlib.sha256(self.canonical_json().encode("utf-8")).hexdigest()

    def canonical_json(self) -> str:
        """The whole profile as JSON with sorted keys and no blanks."""
        return json.dumps(_as_json(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON, whole or not at all; readable: one measurement per line."""
        content = _as_json(self)
        points = [json.dumps(point, allow_nan=False) for point in content.pop("measurements")]
        head = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
        lines = ",\n".join(f"  {point}" for point in points)
        write_atomically(path, f'{head[:-2]},\n "measurements": [\n{lines}\n ]\n}}\n')

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile and check every key.

        Raises:
            InputError: the file is missing, cut off, of another schema version, or a key is wrong.
        """
        content = read_json_object(path)
        version = content.get("schema_version")
        if version is None:
            raise InputError(f"{path}: schema_version: missing; this is not a profile")
        if version != SCHEMA_VERSION or isinstance(version, bool):
            raise InputError(
                f"{path}: schema_version: found {version!r}, allowed is {SCHEMA_VERSION}; "
                "measure again with `flywheel profile`"
            )
        return build(cls, content, str(path))

    def require_model(self, name: str, file: str | Path = "profile") -> Profile:
        """This profile, if it is of the model called `name`.

        Raises:
            InputError: it is of another model.
        """
        if self.model.name != name:
            raise InputError(f"{file}: model.name: found {self.model.name!r}, the scenario needs {name!r}")
        return self


def _as_json(profile: Profile) -> dict[str, Any]:
    content = asdict(profile)
    for name in [key for key in content["coefficients"] if key.startswith("_")]:
        del content["coefficients"][name]
    if profile.coefficients.uncertainty is None:  # a profile of before keeps its text and hash
        del content["coefficients"]["uncertainty"]
    return content
