from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.models.build import build_model
from engine.models.load import load_model, shape_of
from engine.profiling.training_steps import measure_training, profile_training, training_bytes
from engine.training.config import TrainConfig
from engine.utils.memory import peak_memory_bytes, reset_peak_memory

CPU = torch.device("cpu")
SHAPES = [(1, 16), (4, 16), (1, 64), (4, 64)]


def test_a_real_step_is_timed_and_the_weights_stay() -> None:
    model = build_model("llama", layers=2, hidden_size=64, vocab_size=300, context_tokens=64).eval()
    before = [parameter.clone() for parameter in model.parameters()]
    seen: list[float] = []
    points = profile_training(
        model, SHAPES, TrainConfig(peak_flops=1e11), repeats=2, progress=lambda f, _: seen.append(f)
    )
    assert [(p.batch_sequences, p.sequence_tokens) for p in points] == SHAPES
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


def test_a_budget_leaves_points_out_but_never_the_first() -> None:
    model = build_model("llama", layers=1, hidden_size=32, vocab_size=100, context_tokens=64)
    points = profile_training(model, [(1, 16), (4096, 64), (1, 32)], repeats=1, budget_s=1.0)
    assert [(p.batch_sequences, p.sequence_tokens) for p in points] == [(1, 16), (1, 32)]
    assert len(profile_training(model, SHAPES, repeats=1, budget_s=0.0)) == 1


def test_a_model_by_name_is_trained_as_far_as_it_fits() -> None:
    shape = shape_of(load_model("llama-tiny@dummy"), "llama-tiny@dummy", "float32")
    points, reason = measure_training("llama-tiny@dummy", shape, "cpu", budget_s=1.0, machine_flops=1e11)
    assert reason is None
    assert (points[0].batch_sequences, points[0].sequence_tokens) == (1, 64)
    assert all(0 < point.mfu < 1 for point in points)


def test_a_model_too_large_to_train_says_why() -> None:
    shape = shape_of(load_model("llama-tiny@dummy"), "llama-tiny@dummy", "float32")
    huge = replace(shape, parameters=10**12)
    points, reason = measure_training("llama-tiny@dummy", huge, "cpu", budget_s=1.0, machine_flops=1e11)
    assert points == ()
    assert reason is not None
    assert reason.startswith("needs about 16000.0 GB")
    points, reason = measure_training("llama-tiny@dummy", shape, "cpu", budget_s=1.0, machine_flops=1e6)
    assert points == ()
    assert reason is not None
    assert "take about" in reason


def test_the_estimate_of_memory_grows_with_all_that_needs_some() -> None:
    shape = shape_of(load_model("llama-tiny@dummy"), "llama-tiny@dummy", "float32")
    least = training_bytes(shape, 1, 64)
    assert least > 16 * shape.parameters
    assert training_bytes(shape, 2, 64) - 16 * shape.parameters == 2 * (least - 16 * shape.parameters)
    for more in ({"layers": 9}, {"hidden_size": 999}, {"vocab_size": 9999}, {"attention_heads": 99}):
        assert training_bytes(replace(shape, **more), 1, 64) > least
