"""What a model looks at and expects, against transformers' own attention weights, logits and loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine import LLM
from engine.errors import InputError
from engine.inference.introspection import MAX_TOKENS, attention_weights, next_tokens, text_loss
from engine.models.load import load_model
from tests.engine.inference.test_architectures import SERVED, VOCABULARY, saved

TOKENS = [5, 17, 99, 3, 64, 64, 12, 120, 7, 31, 8, 2, 77, 54, 23, 90, 41, 1, 66, 19, 3, 5, 17, 99]
ARCHITECTURES = (
    "llama",  # two heads of keys for four of queries
    "gpt2",
    "bloom",
    "bloom, heads no power of two",
    "mistral, sliding window",
    "qwen3",
    "gemma2, soft caps",
)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LLM, Any]:
    """A tiny model as the engine serves it, and as transformers runs it with plain attention."""
    folder = saved(tmp_path_factory.mktemp("model"), *SERVED[request.param])
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return LLM(folder, kv_cache_tokens=256), plain


def test_weights_are_those_of_transformers(pair: tuple[LLM, Any]) -> None:
    llm, plain = pair
    with torch.inference_mode():
        wanted = plain(torch.tensor([TOKENS]), output_attentions=True).attentions
    for layer, weights in enumerate(wanted):
        found = attention_weights(llm, TOKENS, layer)
        assert found.shape == (llm.shape.attention_heads, len(TOKENS), len(TOKENS))
        np.testing.assert_allclose(found, weights[0].numpy(), atol=2e-5)


def test_rows_add_up_to_one_and_nobody_looks_ahead(pair: tuple[LLM, Any]) -> None:
    weights = attention_weights(pair[0], TOKENS, 1)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
    assert np.all(weights[:, *np.triu_indices(len(TOKENS), 1)] == 0)
    assert np.all(weights >= 0)


def test_next_tokens_are_the_softmax_of_the_logits(pair: tuple[LLM, Any]) -> None:
    llm, plain = pair
    with torch.inference_mode():
        logits = plain(torch.tensor([TOKENS])).logits[0, -1].double()
    for temperature in (1.0, 0.25, 3.0):
        wanted = (logits / temperature).softmax(-1)
        found = next_tokens(llm, TOKENS, VOCABULARY, temperature)
        assert [each.token_id for each in found[:3]] == wanted.topk(3).indices.tolist()
        np.testing.assert_allclose(
            [each.probability for each in found],
            [wanted[each.token_id] for each in found],
            rtol=2e-3,
            atol=1e-6,
        )
        assert math.isclose(sum(each.probability for each in found), 1.0, abs_tol=1e-6)


def test_loss_is_that_of_transformers_with_the_text_as_its_own_labels(pair: tuple[LLM, Any]) -> None:
    llm, plain = pair
    ids = torch.tensor([TOKENS])
    with torch.inference_mode():
        wanted = float(plain(ids, labels=ids).loss)
    found = text_loss(llm, TOKENS)
    assert found.loss_nats == pytest.approx(wanted, rel=1e-4)
    assert found.perplexity == pytest.approx(math.exp(wanted), rel=1e-3)
    assert len(found.token_losses_nats) == len(TOKENS) - 1
    assert sum(found.token_losses_nats) / (len(TOKENS) - 1) == pytest.approx(found.loss_nats)


def test_a_running_generation_is_not_disturbed(tmp_path: Path) -> None:
    llm = LLM(saved(tmp_path, *SERVED["llama"]), kv_cache_tokens=256)
    undisturbed = llm.generate(TOKENS)[0].token_ids
    found: list[int] = []
    for output in llm.stream(TOKENS):
        if len(output.token_ids) % 5 == 2:
            attention_weights(llm, TOKENS[::-1], 0)
        found = output.token_ids
    assert found == undisturbed


def test_zero_temperature_is_certain_of_the_best(tmp_path: Path) -> None:
    llm = LLM(saved(tmp_path, *SERVED["llama"]), kv_cache_tokens=256)
    found = next_tokens(llm, TOKENS, 4, 0.0)
    assert [each.probability for each in found] == [1.0, 0.0, 0.0, 0.0]
    assert found[0].token_id == next_tokens(llm, TOKENS, 1, 1e-4)[0].token_id
    assert next_tokens(llm, TOKENS, 1, 1e-4)[0].probability == pytest.approx(1.0)


def test_bad_input_is_one_clear_line(tmp_path: Path) -> None:
    llm = LLM(saved(tmp_path, *SERVED["gpt2"]), kv_cache_tokens=256)
    for bad, words in (
        (lambda: attention_weights(llm, TOKENS, 2), "layer: found 2, allowed is 0 to 1"),
        (lambda: attention_weights(llm, TOKENS, True), "layer: found True"),
        (lambda: attention_weights(llm, [], 0), "prompt: found 0 tokens, allowed are 1 to 256"),
        (lambda: attention_weights(llm, [1] * (MAX_TOKENS + 1), 0), "prompt: found 513 tokens"),
        (lambda: attention_weights(llm, [1, VOCABULARY], 0), "prompt: found token 128, allowed are 0 to 127"),
        (lambda: next_tokens(llm, TOKENS, 0), "count: found 0, allowed is 1 to 128"),
        (lambda: next_tokens(llm, TOKENS, 3, math.nan), "temperature: found nan"),
        (lambda: text_loss(llm, [1]), "text: found 1 tokens"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            bad()
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_bundled_model_looks_where_transformers_says() -> None:
    llm = LLM(kv_cache_tokens=512)
    tokens = llm.tokenizer("The capital of France is")["input_ids"]
    plain = load_model("smollm2-135m")
    plain.set_attn_implementation("eager")
    with torch.inference_mode():
        wanted = plain(torch.tensor([tokens]), output_attentions=True)
    for layer in (0, 15, 29):
        found = attention_weights(llm, tokens, layer)
        np.testing.assert_allclose(found, wanted.attentions[layer][0].numpy(), atol=1e-4)
    best = next_tokens(llm, tokens, 3)
    assert best[0].token_id == int(wanted.logits[0, -1].argmax())
    assert best[0].text.strip() == "Paris"
