"""What an optimizer step of a model costs on this machine, by batch and sequence length.

A real step is timed: forward, backward, gradient clipping and AdamW, on random tokens (their content doesn't
change the time). It is to training what `engine.profiler` is to serving.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from engine.architecture import parameters_in_products
from engine.data import Progress
from engine.memory import peak_memory_bytes, reset_peak_memory
from engine.optimization import new_optimizer, optimizer_step, peak_flops
from engine.scaling import TRAINING_FLOP
from engine.train_config import TrainConfig


@dataclass(frozen=True)
class TrainingPoint:
    """One optimizer step of `batch_sequences` × `sequence_tokens`: the median of several, after warm-up."""

    batch_sequences: int
    sequence_tokens: int
    step_s: float
    tokens_per_s: float
    mfu: float
    peak_memory_bytes: int  # CUDA: allocated; CPU: resident, weights and interpreter included


def profile_training(
    model: Any,
    batch_sequences: Sequence[int] = (1, 4, 16),
    sequence_tokens: Sequence[int] = (64, 256),
    config: TrainConfig | None = None,
    *,
    repeats: int = 3,
    progress: Progress | None = None,
) -> list[TrainingPoint]:
    """Time optimizer steps of a causal language model; its weights are left as they were.

    Args:
        model: a causal language model of transformers, moved to `config.device`.
        batch_sequences: batch sizes to try.
        sequence_tokens: sequence lengths to try, each with each batch size.
        config: device, dtype, optimizer and peak; its layers and sizes are not used.
        repeats: timed steps per point, after one of warm-up.
        progress: called after each point.
    """
    config = replace(config or TrainConfig(), learning_rate=1e-12, weight_decay=0.0)
    device = torch.device(config.device)
    model = model.to(device)
    was_training = model.training
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = new_optimizer(model, config)
    flop_per_token = TRAINING_FLOP * parameters_in_products(model)
    peak, _ = peak_flops(config)
    shapes = [(batch, length) for length in sequence_tokens for batch in batch_sequences]
    points = []
    for done, (batch, length) in enumerate(shapes, start=1):
        ids = torch.randint(
            model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0)
        )
        optimizer_step(model, optimizer, [ids], config.learning_rate, config)
        reset_peak_memory(device)
        seconds = []
        for _ in range(repeats):
            begun = time.perf_counter()
            optimizer_step(model, optimizer, [ids], config.learning_rate, config)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - begun)
        step_s = statistics.median(seconds)
        rate = batch * length / step_s
        points.append(
            TrainingPoint(
                batch, length, step_s, rate, flop_per_token * rate / peak, peak_memory_bytes(device)
            )
        )
        if progress is not None:
            progress(done / len(shapes), f"training step of {batch} × {length} tokens")
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), before, strict=True):
            parameter.copy_(value)
    model.train(was_training)
    return points
