"""A fused layer computes what transformers' layer computes, and only layers that are known to are fused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.batch import BatchChunk, SchedulerConfig
from engine.inference.model_runner import ModelRunner
from engine.layers.attention import IMPLEMENTATION
from engine.layers.fused_layer import FusedLayer, _normalized, fuse_layers
from engine.models.load import shape_of

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}
TABLES = ([5, 2, 7, 4], [1, 3, 0])
MODELS = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_key_value_heads": 1, "head_dim": 32, "rms_norm_eps": 0.1}),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}}),
    ("mistral", {"sliding_window": 7}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    ("qwen3", {"head_dim": 16}),
    ("qwen3", {"head_dim": 32, "attention_bias": True}),
    (
        "qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
    ),
]


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


def small_model(family: str, dtype: torch.dtype = torch.float32, **sizes: Any) -> Any:
    """Random weights, biases and norms too, large enough that a forgotten one shows."""
    config = AutoConfig.for_model(family, **(SIZES | sizes))
    model = AutoModelForCausalLM.from_config(config).eval()
    random = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=random)
        parameter.copy_(1 + 0.3 * drawn if "norm" in name else 0.15 * drawn)
    return model.to(dtype)


def paged_logits(model: Any, prompts: list[list[int]], dtype: torch.dtype) -> list[torch.Tensor]:
    """Logits of every token over the paged cache: a long chunk, another with a context, then decodes."""
    model.set_attn_implementation(IMPLEMENTATION)
    config = SchedulerConfig(num_blocks=8, block_tokens=16)
    runner = ModelRunner(
        model, shape_of(model, "small", str(dtype).removeprefix("torch.")), config, "cpu", dtype
    )
    found: list[list[torch.Tensor]] = [[], []]
    for spans in (((0, 13), (0, 9)), ((13, 38), (9, 10)), ((38, 39), (10, 11)), ((39, 41), (11, 12))):
        chunks = [
            BatchChunk(prompt[start:end], start, table, end - start)
            for prompt, table, (start, end) in zip(prompts, TABLES, spans, strict=True)
        ]
        logits = runner.run(chunks)
        for chunk, rows, its in zip(
            chunks, logits.split([chunk.sample for chunk in chunks]), found, strict=True
        ):
            assert len(rows) == len(chunk.token_ids)
            its.append(rows)
    return [torch.cat(rows) for rows in found]


@pytest.mark.parametrize(("family", "sizes"), MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_layer_is_that_of_transformers(family: str, sizes: dict, dtype: torch.dtype) -> None:
    plain, served = small_model(family, dtype, **sizes), small_model(family, dtype, **sizes)
    exact = small_model(family, dtype, **sizes).double()  # the same, rounded weights
    random = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 128, (count,), generator=random).tolist() for count in (41, 12)]
    logits = paged_logits(served, prompts, dtype)
    assert all(type(layer) is FusedLayer for layer in served.model.layers)
    for prompt, got in zip(prompts, logits, strict=True):
        wanted = exact(torch.tensor([prompt])).logits[0]
        theirs = error(plain(torch.tensor([prompt])).logits[0], wanted)
        if dtype == torch.float32:
            assert error(got, wanted) < 1e-5
        else:  # as exact as transformers is in the same format, give or take the order of roundings
            assert theirs / 3 < error(got, wanted) < 1.5 * theirs


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_that_of_transformers(rows: int, dtype: torch.dtype) -> None:
    norm = small_model("llama", dtype, rms_norm_eps=1e-5).model.norm
    given = torch.randn(rows, 5, 64, generator=torch.Generator().manual_seed(2))
    for scale in (1e-15, 1e-4, 1.0, 1e4, 0.0):
        got, wanted = _normalized(norm, (given * scale).to(dtype)), norm((given * scale).to(dtype))
        assert got.dtype == wanted.dtype
        close = {"rtol": 1e-5, "atol": 1e-20} if dtype == torch.float32 else {"rtol": 2**-6, "atol": 0.0}
        torch.testing.assert_close(got, wanted, **close)


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("gpt2", {}),
        ("gemma", {"head_dim": 16}),
        ("phi3", {"pad_token_id": 0}),
        ("llama", {"hidden_act": "gelu"}),
        ("mistral", {"hidden_act": "relu"}),
        ("mixtral", {"num_local_experts": 4}),
    ],
)
def test_any_other_layer_is_left_alone(family: str, sizes: dict) -> None:
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128} if family == "gpt2" else sizes
    model = small_model(family, **sizes)
    before = [(name, type(module)) for name, module in model.named_modules()]
    fuse_layers(model)
    assert [(name, type(module)) for name, module in model.named_modules()] == before


def test_the_plain_weights_go() -> None:
    """Each weight is kept once: a fused model has no more parameters than before."""
    model = small_model("qwen2")
    before = sum(parameter.numel() for parameter in model.parameters())
    fuse_layers(model)
    assert sum(parameter.numel() for parameter in model.parameters()) == before
