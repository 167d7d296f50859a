"""The engine gives the tokens that transformers' own generate gives, whatever shares the batch."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from engine import LLM, SamplingParams
from engine.errors import InputError
from engine.models.load import load_model

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
    from engine.batch import BatchChunk

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


def test_streamed_text_only_grows_to_the_text_at_once(smollm2: LLM) -> None:
    params = SamplingParams(max_tokens=24, stop=["kind of", "gentle soul"])
    texts = [out.text for out in smollm2.stream(PROMPTS[1], params)]
    assert texts[-1].endswith("She was a kind and "), "the first stop string was begun, the second came"
    assert all(after.startswith(before) for before, after in pairwise(texts))
    assert len(set(texts)) > 10
    out = smollm2.generate(PROMPTS[1], params)[0]
    assert texts[-1] == out.text
    decoded = smollm2.tokenizer.decode(out.token_ids, skip_special_tokens=True)
    cut = min((at for at in map(decoded.find, params.stop) if at >= 0), default=len(decoded))
    assert out.text == decoded[:cut]


def test_a_stop_string_counts_only_after_min_tokens(smollm2: LLM, expected: list[list[int]]) -> None:
    first = smollm2.tokenizer.decode(expected[1][:3])
    stop = first.split()[0]
    short = smollm2.generate(PROMPTS[1], SamplingParams(max_tokens=24, stop=stop))[0]
    long = smollm2.generate(PROMPTS[1], SamplingParams(max_tokens=24, stop=stop, min_tokens=12))[0]
    assert len(short.token_ids) < 12 <= len(long.token_ids)
    assert stop in long.text


def test_logprobs_are_those_of_transformers(smollm2: LLM, expected: list[list[int]]) -> None:
    outs = smollm2.generate(PROMPTS[:2], [SamplingParams(max_tokens=24), SamplingParams(24, logprobs=2)])
    assert outs[0].logprobs is None
    out = outs[1]
    assert out.logprobs is not None
    with torch.inference_mode():
        logits = load_model("smollm2-135m")(torch.tensor([out.prompt_token_ids + out.token_ids])).logits[0]
    wanted = logits[len(out.prompt_token_ids) - 1 : -1].log_softmax(-1)
    chosen = wanted.gather(1, torch.tensor(out.token_ids)[:, None])[:, 0]
    assert [its.token_id for its in out.logprobs] == expected[1]
    assert [its.logprob for its in out.logprobs] == pytest.approx(chosen.tolist(), abs=1e-3)
    assert out.cumulative_logprob == pytest.approx(float(chosen.sum()), abs=1e-2)
    for its, row in zip(out.logprobs, wanted, strict=True):
        best = row.topk(2)
        assert list(its.top) == best.indices.tolist()
        assert list(its.top.values()) == pytest.approx(best.values.tolist(), abs=1e-3)


def test_repetition_penalty_equals_transformers(smollm2: LLM) -> None:
    ids = smollm2.tokenizer(PROMPTS[3], return_tensors="pt")
    out = load_model("smollm2-135m").generate(
        **ids, max_new_tokens=24, do_sample=False, repetition_penalty=1.3
    )
    params = SamplingParams(max_tokens=24, repetition_penalty=1.3)
    assert smollm2.generate(PROMPTS[3], params)[0].token_ids == out[0, ids["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_samples_share_the_prompt_and_are_what_they_are_alone(prefix_caching: bool) -> None:
    llm = LLM("llama-tiny@dummy", kv_cache_tokens=1024, prefix_caching=prefix_caching)
    prompt = [random.Random(1).randrange(512) for _ in range(70)]
    params = SamplingParams(max_tokens=8, temperature=1.0, ignore_eos=True, seed=3, n=4)
    out = llm.generate(prompt, params)[0]
    assert [sample.metrics.cached_tokens for sample in out.samples] == (
        [0, 64, 64, 64] if prefix_caching else [0] * 4
    )
    assert out.samples[0] is out
    assert len({tuple(sample.token_ids) for sample in out.samples}) == 4
    assert all(sample.finish_reason == "length" for sample in out.samples)
    alone = llm.generate(prompt, replace(params, n=1))[0]
    assert alone.token_ids == out.token_ids
    assert alone.samples == [alone]
    assert [s.token_ids for s in llm.generate(prompt, params)[0].samples] == [
        s.token_ids for s in out.samples
    ]
    assert llm.scheduler.free_blocks == llm.config.num_blocks


def test_a_seed_outlives_chunks_and_preemption() -> None:
    prompts = random_prompts(6, 60)
    params = [
        SamplingParams(max_tokens=30, temperature=0.8, top_p=0.95, seed=seed, ignore_eos=True)
        for seed in range(6)
    ]
    wide = LLM("llama-tiny@dummy", kv_cache_tokens=2048)
    wanted = [wide.generate(prompt, its)[0].token_ids for prompt, its in zip(prompts, params, strict=True)]
    tight = LLM("llama-tiny@dummy", max_step_tokens=24, kv_cache_tokens=128)
    outs = tight.generate(prompts, params)
    assert sum(out.metrics.preemptions for out in outs) > 0
    assert [out.token_ids for out in outs] == wanted


def test_without_a_seed_requests_differ_and_the_engine_repeats() -> None:
    params = SamplingParams(max_tokens=8, temperature=1.0, ignore_eos=True)
    runs = [LLM("llama-tiny@dummy", kv_cache_tokens=256).generate([[1, 2, 3]] * 2, params) for _ in range(2)]
    first, again = [[out.token_ids for out in outs] for outs in runs]
    assert first == again
    assert first[0] != first[1]


def test_the_urgent_request_is_first() -> None:
    llm = LLM("llama-tiny@dummy", kv_cache_tokens=512, max_running_requests=1)
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    ids = [llm.add_request([1, 2, 3], params, priority=priority) for priority in (1, 0, 1, -1)]
    finished = []
    while llm.scheduler.has_work:
        finished += [out.request_id for out in llm.step() if out.finish_reason]
    assert finished == [ids[3], ids[1], ids[0], ids[2]]


def test_nothing_stays_queued_after_an_error() -> None:
    llm = LLM("llama-tiny@dummy", kv_cache_tokens=512, max_waiting_requests=3)
    params = SamplingParams(max_tokens=20, ignore_eos=True, n=2)
    with pytest.raises(InputError, match="found token 512"):
        llm.generate([[1, 2], [512]], params)
    with pytest.raises(InputError, match="3 requests wait already, allowed are 3"):
        llm.generate([[1, 2]] * 4, params)
    assert not llm.scheduler.has_work
    steps = []

    def interrupt(chunks: object) -> torch.Tensor:
        steps.append(chunks)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return run(chunks)  # type: ignore[arg-type]

    run = llm.runner.run
    llm.runner.run = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[1, 2], [3]], params)
    llm.runner.run = run  # type: ignore[method-assign]
    assert not llm.scheduler.has_work
    assert llm.scheduler.free_blocks == llm.config.num_blocks
    assert [out.finish_reason for out in llm.generate([[1, 2], [3]], params)] == ["length"] * 2


def test_cancelling_takes_all_samples_out_in_any_state() -> None:
    llm = LLM("llama-tiny@dummy", kv_cache_tokens=512)
    params = SamplingParams(max_tokens=20, ignore_eos=True, n=3)
    for steps in (0, 1, 3):
        outputs = {}
        request_id = llm.add_request([1, 2, 3], params)
        for _ in range(steps):
            outputs |= {out.request_id: out for out in llm.step()}
        llm.cancel(request_id)
        assert not llm.scheduler.has_work
        assert llm.scheduler.free_blocks == llm.config.num_blocks
        assert llm.step() == []
        assert all(out.finish_reason == "cancelled" for out in outputs.values())
        assert len(outputs) == (0 if not steps else 1 if steps == 1 else 3)
    llm.cancel(request_id)


def test_cancelling_one_sample_leaves_the_others() -> None:
    llm = LLM("llama-tiny@dummy", kv_cache_tokens=512)
    for steps in (0, 1, 3):  # 0: the further samples are not queued yet
        first = llm.add_request([1, 2, 3], SamplingParams(max_tokens=6, ignore_eos=True, n=3))
        for _ in range(steps):
            llm.step()
        llm.cancel(first + 1)
        ended = {}
        while llm.scheduler.has_work:
            ended |= {out.request_id: out for out in llm.step() if out.finish_reason}
        assert set(ended) == {first, first + 2}
        assert [out.finish_reason for out in ended[first].samples] == ["length", "cancelled", "length"]
    assert llm.scheduler.free_blocks == llm.config.num_blocks


def test_a_request_that_takes_too_long_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM("llama-tiny@dummy", kv_cache_tokens=512)
    params = SamplingParams(max_tokens=40, ignore_eos=True, n=2)
    llm.add_request([1, 2], params, timeout_s=1000)
    llm.add_request([3, 4], params, timeout_s=10_000)
    for _ in range(5):
        llm.step()
    clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + 2000)
    progressed = llm.step()
    assert [
        (out.finish_reason, len(out.token_ids)) for out in progressed if out.prompt_token_ids == [1, 2]
    ] == [
        ("timeout", 5),
        ("timeout", 4),
    ]
    while llm.scheduler.has_work:
        progressed = llm.step()
    assert progressed[-1].finish_reason == "length"
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
    with pytest.raises(InputError, match="no tokenizer: give stop_token_ids"):
        llm.generate([1], SamplingParams(stop="x"))
    with pytest.raises(InputError, match="logit_bias: found token 512"):
        llm.generate([1], SamplingParams(logit_bias={512: 1}))
    with pytest.raises(InputError, match="priority: found True, allowed is a whole number"):
        llm.generate([1], priority=True)
    for timeout_s in (0, math.nan, "1"):
        with pytest.raises(InputError, match="timeout_s: found"):
            llm.generate([1], timeout_s=timeout_s)  # type: ignore[arg-type]
    assert not llm.scheduler.has_work


def test_a_cache_that_does_not_fit_says_by_how_much() -> None:
    with pytest.raises(InputError, match=r"GB more than the .* GB that are free"):
        LLM("llama-tiny@dummy", kv_cache_tokens=10**12)


def test_alibi_slopes_equal_transformers() -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    from engine.inference.bloom import alibi_slopes

    for heads in (1, 4, 12, 16, 112):
        expected = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
        torch.testing.assert_close(alibi_slopes(heads), expected)


def test_an_architecture_without_an_attention_interface_is_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("mpt", d_model=64, n_layers=1, n_heads=4, vocab_size=512)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="MptForCausalLM can't be served"):
        LLM(str(tmp_path))
