"""The engine gives the tokens that transformers' own generate gives, whatever shares the batch."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from engine import LLM, SamplingParams
from engine.errors import InputError
from engine.model import load_model

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived an old fisherman who",
    "def fibonacci(n):\n",
    "List three reasons why a company measures the cost of its product before it sets a price:",
    "Water boils at",
]


@pytest.fixture(scope="module")
def smollm2() -> LLM:
    return LLM("smollm2-135m", kv_cache_tokens=4096)


@pytest.fixture(scope="module")
def expected(smollm2: LLM) -> list[list[int]]:
    """What transformers' generate gives for each prompt alone (greedy, float32, 24 tokens)."""
    reference = load_model("smollm2-135m")
    tokens = []
    for prompt in PROMPTS:
        ids = smollm2.tokenizer(prompt, return_tensors="pt")
        out = reference.generate(**ids, max_new_tokens=24, do_sample=False)
        tokens.append(out[0, ids["input_ids"].shape[1] :].tolist())
    return tokens


def reference_tokens(model_name: str, prompts: list[list[int]], count: int) -> list[list[int]]:
    model = load_model(model_name)
    model.generation_config.eos_token_id = None
    tokens = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        # Without a mask, generate takes tokens that equal the padding token for padding.
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)
        tokens.append(out[0, len(prompt) :].tolist())
    return tokens


def random_prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(512) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def test_alone_it_equals_transformers(smollm2: LLM, expected: list[list[int]]) -> None:
    out = smollm2.generate(PROMPTS[0], SamplingParams(max_tokens=24))[0]
    assert out.token_ids == expected[0]
    assert "Paris" in out.text
    assert out.metrics.arrived_s < (out.metrics.first_token_s or 0) <= (out.metrics.finished_s or 0)


def test_in_a_mixed_batch_it_equals_transformers(smollm2: LLM, expected: list[list[int]]) -> None:
    outs = smollm2.generate(PROMPTS, SamplingParams(max_tokens=24))
    assert [out.token_ids for out in outs] == expected
    for out, tokens in zip(outs, expected, strict=True):
        assert out.finish_reason == ("length" if len(tokens) == 24 else "stop")


def test_chat_follows_the_template(smollm2: LLM) -> None:
    out = smollm2.chat(
        [{"role": "user", "content": "What is the capital of France?"}], SamplingParams(max_tokens=20)
    )
    assert "Paris" in out.text
    assert out.finish_reason == "stop", "the model ends its turn by itself"
    assert "<|im_end|>" not in out.text


@pytest.mark.parametrize("name", ["llama-tiny@dummy", "gpt2-tiny@dummy", "bloom-tiny@dummy"])
def test_chunked_preempted_and_joining_it_equals_transformers(name: str) -> None:
    prompts = random_prompts(9, 60)
    wanted = reference_tokens(name, prompts, 40)
    # A step takes 24 tokens, so prompts come in chunks; the cache holds two or three requests, so some give way.
    llm = LLM(name, max_step_tokens=24, kv_cache_tokens=144)
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    outputs = {}
    for prompt in prompts:
        outputs[llm.add_request(prompt, params)] = None
        for _ in range(2):  # requests join while others run
            outputs |= {out.request_id: out for out in llm.step()}
    while any(out is None or out.finish_reason is None for out in outputs.values()):
        outputs |= {out.request_id: out for out in llm.step()}
    assert [out.token_ids for out in outputs.values() if out] == wanted
    assert sum(out.metrics.preemptions for out in outputs.values() if out) > 0, (
        "the cache was to be too small"
    )
    assert llm.scheduler.free_blocks == llm.config.num_blocks


def test_a_shared_prefix_changes_nothing_but_the_work() -> None:
    rng = random.Random(5)
    prefix = [rng.randrange(512) for _ in range(70)]
    prompts = [[*prefix, *tail] for tail in random_prompts(4, 20, seed=6)]
    wanted = reference_tokens("llama-tiny@dummy", prompts, 12)
    llm = LLM("llama-tiny@dummy", kv_cache_tokens=1024)
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    outs = [llm.generate(prompt, params)[0] for prompt in prompts]
    assert [out.token_ids for out in outs] == wanted
    assert [out.metrics.cached_tokens for out in outs] == [0, 64, 64, 64]


def test_logits_equal_transformers_in_a_packed_batch() -> None:
    from engine.runner import BatchChunk

    llm = LLM("llama-tiny@dummy", kv_cache_tokens=256)
    prompts = random_prompts(3, 40, seed=1)
    tables = [[0, 5, 2], [9, 1, 7], [3, 8, 4]]
    chunks = [BatchChunk(prompt, 0, table) for prompt, table in zip(prompts, tables, strict=True)]
    packed = llm.runner.run(chunks)
    reference = load_model("llama-tiny@dummy")
    with torch.inference_mode():
        alone = torch.cat([reference(torch.tensor([prompt])).logits[:, -1] for prompt in prompts])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-4)


def test_a_seed_gives_the_same_tokens_whatever_shares_the_batch() -> None:
    llm = LLM("llama-tiny@dummy", kv_cache_tokens=1024)
    seeded = SamplingParams(max_tokens=16, temperature=1.0, top_k=40, top_p=0.9, seed=11, ignore_eos=True)
    alone = llm.generate([4, 5, 6], seeded)[0].token_ids
    others = [SamplingParams(max_tokens=16, temperature=1.0, ignore_eos=True)] * 3
    batch = llm.generate([*random_prompts(3, 30), [4, 5, 6]], [*others, seeded])
    assert batch[-1].token_ids == alone
    assert batch[0].token_ids != alone


def test_top_k_one_is_greedy() -> None:
    llm = LLM("llama-tiny@dummy", kv_cache_tokens=512)
    greedy = llm.generate([1, 2, 3], SamplingParams(max_tokens=10, ignore_eos=True))[0].token_ids
    for narrow in ({"top_k": 1}, {"top_p": 1e-9}):
        params = SamplingParams(max_tokens=10, temperature=2.0, ignore_eos=True, **narrow)  # type: ignore[arg-type]
        assert llm.generate([1, 2, 3], params)[0].token_ids == greedy


def test_stop_tokens_and_stop_strings_end_a_request(smollm2: LLM, expected: list[list[int]]) -> None:
    stop = expected[1][5]
    out = smollm2.generate(PROMPTS[1], SamplingParams(max_tokens=24, stop_token_ids=[stop]))[0]
    assert out.token_ids == expected[1][: expected[1].index(stop) + 1]
    assert out.finish_reason == "stop"
    out = smollm2.generate(PROMPTS[0], SamplingParams(max_tokens=24, stop="."))[0]
    assert out.finish_reason == "stop"
    assert "." not in out.text
    assert smollm2.scheduler.free_blocks == smollm2.config.num_blocks


def test_streaming_yields_each_token_and_leaving_frees_the_blocks() -> None:
    llm = LLM("llama-tiny@dummy", kv_cache_tokens=512)
    params = SamplingParams(max_tokens=10, ignore_eos=True)
    lengths = [len(out.token_ids) for out in llm.stream([1, 2, 3], params)]
    assert lengths == list(range(1, 11))
    for _ in llm.stream([1, 2, 3], params):
        break
    assert not llm.scheduler.has_work
    assert llm.scheduler.free_blocks == llm.config.num_blocks


def test_bad_requests_are_named() -> None:
    llm = LLM("llama-tiny@dummy", kv_cache_tokens=64)
    with pytest.raises(InputError, match="no tokens"):
        llm.generate([[]])
    with pytest.raises(InputError, match="found token 512, allowed are 0 to 511"):
        llm.generate([512])
    with pytest.raises(InputError, match="no tokenizer"):
        llm.generate("text")
    with pytest.raises(InputError, match=r"more than the KV cache holds \(64\)"):
        llm.generate([1] * 60, SamplingParams(max_tokens=20))
    with pytest.raises(InputError, match=r"50 more than the model's context \(2048\)"):
        llm.generate([1] * 2048, SamplingParams(max_tokens=50))
    with pytest.raises(InputError, match="params: found 2 for 1 prompts"):
        llm.generate([1], [SamplingParams(), SamplingParams()])
    for bad in ({"temperature": -1}, {"top_p": 0}, {"max_tokens": 0}, {"top_k": -1}, {"stop": [""]}):
        with pytest.raises(InputError, match=next(iter(bad))):
            SamplingParams(**bad)  # type: ignore[arg-type]
    assert not llm.scheduler.has_work


def test_a_cache_that_does_not_fit_says_by_how_much() -> None:
    with pytest.raises(InputError, match=r"GB more than the .* GB that are free"):
        LLM("llama-tiny@dummy", kv_cache_tokens=10**12)


def test_alibi_slopes_equal_transformers() -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    from engine.bloom import alibi_slopes

    for heads in (1, 4, 12, 16, 112):
        expected = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
        torch.testing.assert_close(alibi_slopes(heads), expected)


def test_an_architecture_without_an_attention_interface_is_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("codegen", n_embd=64, n_layer=1, n_head=4, vocab_size=512, rotary_dim=8)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="CodeGenForCausalLM can't be served"):
        LLM(str(tmp_path))
