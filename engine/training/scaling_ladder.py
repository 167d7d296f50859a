"""A ladder of small trainings that measures loss(N, D): several sizes, each at several token counts, in one go.

Each size is trained once at a constant rate. For each token count the run branches off: its copy finishes with a
cooldown over the last fifth of its tokens, is validated and dropped, and the trunk goes on. The loss is so that of
a finished run of that many tokens, at little more than half the cost of separate runs, each with its own cosine
(Hägele et al. 2024, "Scaling laws and compute-optimal training beyond fixed training durations",
arXiv:2405.18392; the cooldown 1 − √progress is theirs). Every sequence is new to the model: no token count goes
beyond one pass over the data. N counts all parameters, embeddings (tied) included, as Hoffmann et al. 2022 do.
"""

from __future__ import annotations

import copy
import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.errors import InputError
from engine.profile.hardware import detect
from engine.training.config import TrainConfig
from engine.training.data import Document, PreparedData, prepare, train_tokenizer
from engine.training.optimizer import batch_rows, evaluate, new_optimizer, optimizer_step, threads_for
from engine.training.scaling_fit import LEVEL, HeldOut, Point, held_out, intervals, undetermined, with_draws
from engine.training.scaling_law import TRAINING_FLOP, ScalingConstants, ScalingFit, fit
from engine.training.trainer import new_model
from engine.utils.files import write_atomically
from engine.utils.message import Message
from engine.utils.progress import Progress, part_of

COOLDOWN = 0.2  # of a run's tokens
_WIDTH_OF_RATE = 64  # `learning_rate` is meant for this width; others get it times sqrt(64 / width)


@dataclass(frozen=True)
class LadderOptions:
    """The runs of a ladder: each size at `token_counts` token counts, each twice the one before.

    Raises:
        InputError: fewer than three different sizes or token counts: five constants are fitted.
    """

    sizes: Sequence[tuple[int, int]]  # layers, width
    token_counts: int = 4
    budget_s: float = 120.0  # of training, to aim at
    text: str = ""  # what the data is, for the provenance

    def __post_init__(self) -> None:
        if len(set(self.sizes)) < 3 or self.token_counts < 3:
            raise InputError(
                f"ladder: {len(set(self.sizes))} sizes and {self.token_counts} token counts; at least 3 of each are "
                "needed"
            )


@dataclass(frozen=True)
class LadderReport:
    """The measured losses, the law fitted to them with its uncertainty, and what the ladder took."""

    points: list[Point]
    fitted: ScalingFit
    law: ScalingConstants  # with its draws
    held_out: HeldOut
    training_s: float
    training_flop: float
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """What `engine.training.scaling_law.load_law` reads, and all that explains it."""
        constants = asdict(self.law)
        draws = constants.pop("draws")
        n, d, _ = zip(*self.points, strict=True)
        covariance = self.law.covariance
        return {
            "constants": constants,
            "level": LEVEL,
            "intervals": intervals(self.law),
            "undetermined": undetermined(self.law),
            "median_relative_error": self.fitted.median_relative_error,
            "max_relative_error": self.fitted.max_relative_error,
            "held_out": asdict(self.held_out),
            "measured_between": {"parameters": [min(n), max(n)], "tokens": [min(d), max(d)]},
            "points": [
                dict(zip(("parameters", "tokens", "loss"), point, strict=True)) for point in self.points
            ],
            "covariance": {
                "of": ["E", "log A", "log B", "alpha", "beta"],
                "matrix": None if covariance is None else covariance.tolist(),
            },
            "training_s": self.training_s,
            "training_flop": self.training_flop,
            "provenance": self.provenance,
            "draws": [list(draw) for draw in draws],
        }

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        write_atomically(path, json.dumps(self.to_json(), indent=1) + "\n")


def run_ladder(
    data: PreparedData, config: TrainConfig, ladder: LadderOptions, progress: Progress | None = None
) -> LadderReport:
    """Train each size of a ladder to each of its token counts, and fit the law.

    Args:
        data: what `engine.training.data.prepare` returned.
        config: architecture, batch, rate, seed and device of all runs. `config.steps` is the length of the
            longest; with 1 it is chosen so that the ladder takes about its budget, by the speed measured here.
        ladder: sizes and token counts.
        progress: called after every step.

    Raises:
        InputError: less data than the longest run needs, or too small a budget.
    """
    longest = config.steps
    if longest == 1:
        longest = _affordable_steps(data, config, ladder)
    shortest = longest // 2 ** (ladder.token_counts - 1)
    if shortest < 10:
        raise InputError(
            f"ladder: the shortest run would have {shortest} steps; at least 10 are needed: give a larger budget, "
            "fewer token counts or smaller sizes"
        )
    marks = [shortest * 2**i for i in range(ladder.token_counts)]
    needed = marks[-1] * config.batch_sequences
    if needed > len(data.train):
        raise InputError(
            f"ladder: {needed * data.report.sequence_tokens:,} tokens are asked for, the text has "
            f"{data.train.size:,}; give more text or fewer tokens"
        )
    begun, flop, points = time.perf_counter(), 0.0, []
    shares = np.cumsum([0.0, *(_relative_cost(*size, data.vocab_size) for size in ladder.sizes)])
    for index, (layers, hidden_size) in enumerate(ladder.sizes):
        chosen = replace(
            config,
            layers=layers,
            hidden_size=hidden_size,
            learning_rate=config.learning_rate * math.sqrt(_WIDTH_OF_RATE / hidden_size),
        )
        start, end = (float(share / shares[-1]) for share in shares[index : index + 2])
        with threads_for(hidden_size):
            parameters, losses, steps = learning_curve(chosen, data, marks, part_of(progress, start, end))
        points += [
            (float(parameters), float(mark * config.step_tokens), loss)
            for mark, loss in zip(marks, losses, strict=True)
        ]
        flop += TRAINING_FLOP * parameters * steps * config.step_tokens
    fitted = fit(points, source=f"measured by flywheel scaling on {ladder.text or 'a text'}")
    return LadderReport(
        points=points,
        fitted=fitted,
        law=with_draws(fitted, points, seed=config.seed),
        held_out=held_out(points),
        training_s=time.perf_counter() - begun,
        training_flop=flop,
        provenance=_provenance(config, data, ladder, marks),
    )


def measure_law(
    documents: Sequence[Document],
    config: TrainConfig,
    ladder: LadderOptions,
    vocab_size: int,
    progress: Progress | None = None,
) -> LadderReport:
    """`run_ladder` on documents: learn a byte-level BPE of `vocab_size` tokens from them, and prepare them by it."""
    tokenizer = train_tokenizer([document.text for document in documents], vocab_size)
    data = prepare(documents, tokenizer, config.sequence_tokens, progress=part_of(progress, 0.0, 0.05))
    return run_ladder(data, config, ladder, part_of(progress, 0.05, 1.0))


def learning_curve(
    config: TrainConfig, data: PreparedData, marks: Sequence[int], progress: Progress | None = None
) -> tuple[int, list[float], int]:
    """Parameters, the validation loss of a run finished at each of `marks` (rising steps), and the steps made."""
    with torch.random.fork_rng(devices=[]):
        model = new_model(config, data).to(config.device)
    optimizer = new_optimizer(model, config)
    validation = data.validation[: config.max_validation_sequences]
    warmup = max(marks[0] // 5, 1)
    branches = [mark - max(round(COOLDOWN * mark), 1) for mark in marks]
    total = branches[-1] + sum(mark - branch for mark, branch in zip(marks, branches, strict=True))
    trunk, made, losses = 0, 0, []

    def step(number: int, rate: float) -> None:
        nonlocal made
        rows = data.train[batch_rows(number, len(data.train), config)].astype(np.int64)
        found = optimizer_step(model, optimizer, [torch.from_numpy(rows)], rate, config)
        if not math.isfinite(found):
            raise InputError(f"ladder: the loss is {found} at step {number}; lower learning_rate ({rate:g})")
        made += 1
        if progress is not None:
            width = config.hidden_size
            text = Message(
                "width {width}, step {step}, loss {loss:.2f}", width=width, step=number, loss=found
            )
            progress(made / total, text)

    for mark, branch in zip(marks, branches, strict=True):
        for number in range(trunk + 1, branch + 1):
            step(number, config.learning_rate * min(number / warmup, 1.0))
        trunk = branch
        kept = copy.deepcopy((model.state_dict(), optimizer.state_dict())) if mark != marks[-1] else None
        for number in range(branch + 1, mark + 1):
            done = (number - branch) / (mark - branch + 1)
            step(number, config.learning_rate * (1 - math.sqrt(done)))
        losses.append(evaluate(model, validation, config))
        if kept is not None:
            model.load_state_dict(kept[0])
            optimizer.load_state_dict(kept[1])
    return sum(parameter.numel() for parameter in model.parameters()), losses, made


def _affordable_steps(data: PreparedData, config: TrainConfig, ladder: LadderOptions) -> int:
    """Steps of the longest run, a multiple of the shortest's, so that the whole ladder takes about its budget."""
    step_s = 0.0
    for layers, hidden_size in ladder.sizes:
        tried = replace(config, layers=layers, hidden_size=hidden_size)
        model = new_model(tried, data).to(config.device)
        optimizer = new_optimizer(model, tried)
        rows = torch.from_numpy(data.train[: config.batch_sequences].astype(np.int64))
        seconds = []
        with threads_for(hidden_size):
            for _ in range(4):  # the first is warm-up
                begun = time.perf_counter()
                optimizer_step(model, optimizer, [rows], config.learning_rate, tried)
                seconds.append(time.perf_counter() - begun)
        step_s += min(seconds[1:])
    halvings = 2 ** (ladder.token_counts - 1)
    branched = (1 - COOLDOWN) + COOLDOWN * sum(0.5**i for i in range(ladder.token_counts))
    steps = min(ladder.budget_s / (step_s * branched), len(data.train) // config.batch_sequences)
    return int(steps) // halvings * halvings


def _relative_cost(layers: int, hidden_size: int, vocab_size: int) -> float:
    return (
        12.0 * layers * hidden_size**2 + vocab_size * hidden_size + 5e4
    )  # the last: what each step takes anyway


def _provenance(
    config: TrainConfig, data: PreparedData, ladder: LadderOptions, marks: Sequence[int]
) -> dict[str, Any]:
    import transformers

    return {
        "text": ladder.text,
        "content_hash": data.report.content_hash,
        "vocab_size": data.vocab_size,
        "characters_per_token": data.report.characters_per_token,
        "validation_sequences": min(len(data.validation), config.max_validation_sequences),
        "sizes": [list(size) for size in ladder.sizes],
        "steps": list(marks),
        "config": asdict(config),
        "machine": detect("cuda" if config.device.startswith("cuda") else "cpu", 0.0).name,
        "software": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
