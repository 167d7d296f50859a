"""Configuration and report of a training run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from engine.errors import InputError
from engine.utils.files import write_atomically


@dataclass(frozen=True)
class TrainConfig:
    """One training run; together with the data it determines every loss.

    A new model of `architecture`, or with `model` (a name or folder) an existing one that is trained further.
    """

    architecture: str = "llama"  # or "bloom", "gpt2"
    layers: int = 4
    hidden_size: int = 128
    attention_heads: int | None = None  # None: head size near 64
    model: str | None = None
    steps: int = 100  # optimizer steps
    batch_sequences: int = 8  # sequences of one forward and backward pass
    accumulation_steps: int = 1  # passes per optimizer step
    sequence_tokens: int = 128
    learning_rate: float = 1e-3  # at the top of the schedule
    final_learning_rate_fraction: float = 0.1
    warmup_fraction: float = 0.05  # of the steps
    weight_decay: float = 0.1  # matrices only
    beta1: float = 0.9
    beta2: float = 0.95
    max_gradient_norm: float = 1.0
    validation_fraction: float = 0.05  # of the documents
    max_validation_sequences: int = 256
    evaluate_every: int | None = None  # steps; None: ten times a run
    patience: int | None = None  # stop after so many evaluations without a new best; None: never
    checkpoint_every: int | None = None  # steps; None: no checkpoints
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"  # of the products; "bfloat16" keeps weights and moments in float32
    peak_flops: float | None = None  # FLOP/s for MFU; None: data sheet of a known GPU, else measured

    def __post_init__(self) -> None:
        optional = ("attention_heads", "evaluate_every", "patience", "checkpoint_every", "peak_flops")
        positive = ["layers", "hidden_size", "steps", "batch_sequences", "accumulation_steps"]
        positive += ["learning_rate", "max_gradient_norm", "max_validation_sequences"]
        for name in (*positive, *(name for name in optional if getattr(self, name) is not None)):
            if not getattr(self, name) > 0:
                raise InputError(f"training: {name} is {getattr(self, name)!r}; allowed is a number above 0")
        for name in ("final_learning_rate_fraction", "warmup_fraction", "weight_decay", "beta1", "beta2"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"training: {name} is {getattr(self, name)!r}; allowed is 0 to 1")
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"training: dtype is {self.dtype!r}; allowed are float32 and bfloat16")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(
                f"training: device is {self.device!r}, but torch finds no CUDA device; allowed is cpu"
            )

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch_sequences * self.accumulation_steps * self.sequence_tokens


@dataclass
class TrainReport:
    """Result of a run: losses in nats per token, and what it took."""

    architecture: str
    parameters: int
    steps: int  # done; fewer than asked for when it stopped early
    tokens: int  # trained on, repetitions counted
    validation_loss: float  # of the weights that were kept
    perplexity: float
    initial_validation_loss: float
    best_step: int
    stopped_early: bool
    tokens_per_s: float  # of the optimizer steps alone
    training_s: float  # time in those steps
    wall_s: float  # with evaluation and checkpoints
    training_flop: float
    mfu: float
    peak_flops: float
    peak_flops_source: str
    peak_memory_bytes: int  # CUDA: most allocated; CPU: the largest this process has been
    config: dict[str, Any]
    software: dict[str, str]
    train_losses: list[float] = field(default_factory=list)  # of each step, before its update
    validation_losses: list[tuple[int, float]] = field(default_factory=list)  # (after step, loss)
    data: dict[str, Any] = field(default_factory=dict)  # engine.training.data.DataReport and its ratios

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        write_atomically(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> TrainReport:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or not such a report.
        """
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
            raw["validation_losses"] = [(step, loss) for step, loss in raw["validation_losses"]]
            return cls(**raw)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: not a training report ({error})") from None
