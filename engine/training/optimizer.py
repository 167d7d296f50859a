"""The arithmetic of training: an optimizer step, its learning rate and batch; validation; the peak."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.training.config import TrainConfig
from engine.training.data import Tokens

_NARROW = 96


@contextmanager
def threads_for(hidden_size: int) -> Iterator[None]:
    """One thread while a narrow model trains on a CPU, all of them for others.

    A second core speeds such small products by less than 1.5, and where another program wants that core, its
    threads wait for each other at every product: ten times slower was measured.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if hidden_size <= _NARROW else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def optimizer_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[torch.Tensor],
    rate: float,
    config: TrainConfig,
) -> float:
    """Forward and backward over `batches` ([sequences, tokens], all of one size), clip, update; mean loss."""
    model.train()
    total = torch.zeros((), device=config.device)
    for batch in batches:
        ids = batch.to(config.device)
        with _autocast(config):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        (loss / len(batches)).backward()
        total += loss.detach() / len(batches)
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(total)  # waits for the device, so that a step's time is its own


@torch.no_grad()
def evaluate(model: Any, sequences: Tokens, config: TrainConfig) -> float:
    """Mean negative log-likelihood (nats per token) of `sequences` [sequences, tokens], each on its own."""
    was_training = model.training
    model.eval()
    total = 0.0
    for start in range(0, len(sequences), config.batch_sequences):
        batch = sequences[start : start + config.batch_sequences].astype(np.int64)
        ids = torch.from_numpy(batch).to(config.device)
        with _autocast(config):
            total += float(model(input_ids=ids, labels=ids, use_cache=False).loss) * len(batch)
    model.train(was_training)
    return total / len(sequences)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of the 1-based `step`: linear warm-up, then half a cosine down to the final fraction."""
    warmup = round(config.warmup_fraction * config.steps)
    if step <= warmup:
        return config.learning_rate * step / warmup
    done = (step - warmup) / max(config.steps - warmup, 1)
    low = config.final_learning_rate_fraction
    return config.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * done)) / 2)


def batch_rows(step: int, sequences: int, config: TrainConfig) -> NDArray[np.int64]:
    """Which sequences the 1-based `step` trains on: epoch after epoch, each in an order of its own."""
    per_step = config.batch_sequences * config.accumulation_steps
    positions = np.arange((step - 1) * per_step, step * per_step)
    rows = [
        _epoch_order(config.seed, int(epoch), sequences)[at]
        for epoch, at in zip(*np.divmod(positions, sequences), strict=True)
    ]
    return np.array(rows, dtype=np.int64)


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, sequences: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(sequences)


def new_optimizer(model: Any, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); biases and norms are not decayed."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def measured_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square product here and now: the best of several, about a tenth of a second."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    fastest_s = math.inf
    for _ in range(8):
        begun = time.perf_counter()
        product = left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest_s = min(fastest_s, time.perf_counter() - begun)
    del product
    return 2 * size**3 / fastest_s


def peak_flops(config: TrainConfig) -> tuple[float, str]:
    """Peak FLOP/s that MFU is a fraction of, and where it comes from."""
    device = torch.device(config.device)
    if config.peak_flops is not None:
        return config.peak_flops, "given"
    if device.type == "cuda" and config.dtype == "bfloat16":
        from engine.profile.hardware import match_device

        row = match_device(torch.cuda.get_device_name(device))
        if row is not None and row.peak_bf16_flops:
            return row.peak_bf16_flops, f"data sheet of {row.name}, bf16"
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    return measured_peak_flops(device, dtype), f"measured square product, {config.dtype}"


def _autocast(config: TrainConfig) -> torch.autocast:
    return torch.autocast(
        torch.device(config.device).type, dtype=torch.bfloat16, enabled=config.dtype == "bfloat16"
    )
