"""Perplexity as the engine serves it, against transformers' loss."""

from __future__ import annotations

import math

import pytest
import torch

from engine import LLM
from engine.models.load import load_model
from engine.profile.profile import Quality
from engine.profiling.perplexity import fixed_text, measure_quality, perplexity


def test_it_is_that_of_transformers_in_chunks_too():
    llm = LLM("llama-tiny@dummy", max_step_tokens=24)
    ids = torch.randint(512, (1, 70), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        loss = load_model("llama-tiny@dummy")(input_ids=ids, labels=ids).loss
    assert perplexity(llm, ids[0].tolist()) == pytest.approx(math.exp(loss), rel=1e-5)


def test_random_weights_have_no_quality():
    assert measure_quality(LLM("llama-tiny@dummy"), "llama-tiny@dummy") is None


def test_the_bundled_model_loses_little_in_other_formats():
    found = measure_quality(LLM("smollm2-135m", dtype="bfloat16"), "smollm2-135m")
    assert found.text_tokens > 600
    assert 15 < found.float32_perplexity < 35
    assert abs(found.increase) < 0.01


@pytest.mark.slow
@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="no VNNI on this processor")
def test_8_bit_weights_cost_little():
    llm = LLM("smollm2-135m", dtype="int8")
    token_ids = llm.tokenizer(fixed_text())["input_ids"][:300]
    plain = LLM("smollm2-135m")
    assert perplexity(llm, token_ids) < 1.03 * perplexity(plain, token_ids)


def test_the_increase_is_a_fraction():
    assert Quality(21.0, 20.0, 100).increase == pytest.approx(0.05)
    assert Quality(21.0, None, 100).increase is None
