from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.architecture import build_model
from engine.memory import peak_memory_bytes, reset_peak_memory
from engine.train_config import TrainConfig
from engine.training_profile import profile_training

CPU = torch.device("cpu")


def test_a_real_step_is_timed_and_the_weights_stay() -> None:
    model = build_model("llama", layers=2, hidden_size=64, vocab_size=300, context_tokens=64).eval()
    before = [parameter.clone() for parameter in model.parameters()]
    seen: list[float] = []
    points = profile_training(
        model, (1, 4), (16, 64), TrainConfig(peak_flops=1e11), repeats=2, progress=lambda f, _: seen.append(f)
    )
    assert [(p.batch_sequences, p.sequence_tokens) for p in points] == [(1, 16), (4, 16), (1, 64), (4, 64)]
    assert seen == [0.25, 0.5, 0.75, 1.0]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for point in points:
        tokens = point.batch_sequences * point.sequence_tokens
        assert point.tokens_per_s * point.step_s == pytest.approx(tokens)
        assert abs(point.mfu - 6 * parameters * point.tokens_per_s / 1e11) < 1e-9
        assert point.peak_memory_bytes > 4 * 4 * parameters  # weights, gradients, two moments
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert not model.training


def test_the_peak_of_memory_sees_what_was_freed_again() -> None:
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    block = np.ones(8_000_000)
    del block
    assert peak_memory_bytes(CPU) >= before
    assert peak_memory_bytes(CPU) > 64_000_000
