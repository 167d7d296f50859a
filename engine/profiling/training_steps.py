"""What an optimizer step of a model costs on this machine, by batch and sequence length.

A real step is timed: forward, backward, gradient clipping and AdamW, on random tokens (their content doesn't
change the time). It is to training what `engine.profiling.profiler` is to serving. Memory that a step needs is
estimated before it is tried: 16 bytes per parameter (weights, gradients, AdamW's two moments, float32), and what the
backward pass wants of each token, after Korthikanti et al. 2022 (arXiv:2205.05198, equation 1, in float32) with the
logits.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from engine.models.build import parameters_in_products
from engine.models.load import free_bytes, load_model
from engine.profile.model_shape import ModelShape
from engine.profile.profile import TrainingPoint
from engine.training.config import TrainConfig
from engine.training.optimizer import new_optimizer, optimizer_step, peak_flops
from engine.training.scaling_law import TRAINING_FLOP
from engine.utils.memory import peak_memory_bytes, reset_peak_memory
from engine.utils.message import Message
from engine.utils.progress import Progress

GRID = ((1, 64), (1, 256), (4, 256), (1, 1024), (4, 64), (16, 64), (16, 256), (4, 1024), (16, 1024))
_TYPICAL_MFU = 0.3  # to guess what the first step will take


def measure_training(
    name: str,
    shape: ModelShape,
    device: str,
    *,
    budget_s: float,
    machine_flops: float,
    seed: int = 0,
) -> tuple[tuple[TrainingPoint, ...], str | None]:
    """Load a model afresh (a served one is laid out for serving) and time its optimizer steps for about `budget_s`.

    Weights are float32, the products too unless `shape.dtype` is of 16 or 8 bits on CUDA: then bfloat16.
    `machine_flops` is the peak that MFU is a fraction of where no data sheet says it. Gives the points from small to
    large batches, or none and the reason.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    free = free_bytes(device)
    longest = shape.max_context_tokens
    shapes = [(batch, length) for batch, length in GRID if length <= longest] or [(1, longest)]
    fitting = [each for each in shapes if training_bytes(shape, *each) <= free]
    if not fitting:
        needed = training_bytes(shape, *shapes[0])
        return (
            (),
            f"needs about {needed / 1e9:.1f} GB, {(needed - free) / 1e9:.1f} GB more than are free on {device}",
        )
    batch, length = fitting[0]
    first_s = 2 * TRAINING_FLOP * shape.parameters * batch * length / (machine_flops * _TYPICAL_MFU)
    if first_s > budget_s:
        return (
            (),
            f"two steps of {batch * length} tokens take about {first_s:.0f} s of a budget of {budget_s:.1f} s",
        )
    half = device.startswith("cuda") and shape.dtype != "float32"
    config = TrainConfig(
        device=device,
        dtype="bfloat16" if half else "float32",
        peak_flops=None if half else machine_flops,
    )
    model = load_model(name, "float32", device, seed)
    return tuple(profile_training(model, fitting, config, repeats=2, budget_s=budget_s)), None


def training_bytes(shape: ModelShape, batch_sequences: int, sequence_tokens: int) -> int:
    """Memory that an optimizer step of a model of this shape needs, about."""
    tokens = batch_sequences * sequence_tokens
    per_layer = 2 * (34 * shape.hidden_size + 5 * shape.attention_heads * sequence_tokens)
    logits = 3 * 4 * shape.vocab_size  # themselves, their logarithms, their gradient
    return 16 * shape.parameters + tokens * (shape.layers * per_layer + logits)


def profile_training(
    model: Any,
    shapes: Sequence[tuple[int, int]] = GRID,
    config: TrainConfig | None = None,
    *,
    repeats: int = 3,
    budget_s: float = math.inf,
    progress: Progress | None = None,
) -> list[TrainingPoint]:
    """Time optimizer steps of a causal language model; its weights are left as they were.

    Args:
        model: a causal language model of transformers, moved to `config.device`.
        shapes: (sequences, tokens of each) of the steps, in this order.
        config: device, dtype, optimizer and peak; its layers and sizes are not used.
        repeats: timed steps per point, after one of warm-up.
        budget_s: seconds; points after the first that would exceed it are left out.
        progress: called after each point.
    """
    config = replace(config or TrainConfig(), weight_decay=0.0)
    device = torch.device(config.device)
    model = model.to(device)
    was_training = model.training
    optimizer = new_optimizer(model, config)
    flop_per_token = TRAINING_FLOP * parameters_in_products(model)
    peak, _ = peak_flops(config)
    points: list[TrainingPoint] = []
    started = time.perf_counter()
    for done, (batch, length) in enumerate(shapes, start=1):
        if points:
            guess_s = (repeats + 1) * batch * length / points[-1].tokens_per_s
            if time.perf_counter() - started + guess_s > budget_s:
                continue
        ids = torch.randint(
            model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0)
        )
        seconds = []
        for repeat in range(repeats + 1):
            if repeat == 1:
                reset_peak_memory(device)
            begun = time.perf_counter()
            optimizer_step(
                model, optimizer, [ids], 0.0, config
            )  # a rate of 0 leaves every bit of the weights
            seconds.append(time.perf_counter() - begun)
        step_s = statistics.median(seconds[1:])
        rate = batch * length / step_s
        points.append(
            TrainingPoint(
                batch, length, step_s, rate, flop_per_token * rate / peak, peak_memory_bytes(device)
            )
        )
        if progress is not None:
            progress(
                done / len(shapes),
                Message("training step of {batch} × {length} tokens", batch=batch, length=length),
            )
    model.train(was_training)
    return points
