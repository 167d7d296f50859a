"""Guessing ahead: the lookup finds what a plain search finds, the scheduler takes nothing from anybody for a guess,
and the output is the same with and without."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import LLM, SamplingParams
from engine.batch import Request, SchedulerConfig, State
from engine.errors import InputError
from engine.inference.request import RequestOutput
from engine.sampling.speculation import PromptLookup, count_kept
from engine.scheduler import Scheduler

TOKENS = st.lists(st.integers(0, 3), max_size=60)


def naive_guess(tokens: list[int], most: int) -> list[int]:
    """What followed the latest earlier occurrence of the longest of the last 4, 3 or 2 tokens, and on in that loop."""
    original = len(tokens)
    for size in (4, 3, 2):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                while len(tokens) < end + most:  # a text that loops goes on looping
                    tokens = [*tokens, tokens[end + len(tokens) - original]]
                return tokens[end : end + most]
    return []


@given(TOKENS, st.lists(st.integers(0, 5), max_size=20), st.integers(1, 9))
def test_a_guess_is_what_a_plain_search_finds(tokens: list[int], pieces: list[int], most: int) -> None:
    lookup = PromptLookup()
    for end in [*accumulate(pieces), len(tokens), len(tokens)]:
        known = tokens[: max(end, len(lookup._tokens))]
        assert lookup.guess(known, most) == naive_guess(known, most)


@given(st.lists(st.integers(0, 1), max_size=8), st.lists(st.integers(0, 1), min_size=9, max_size=9))
def test_guesses_are_kept_up_to_the_first_wrong_one(drafts: list[int], picked: list[int]) -> None:
    kept = count_kept(drafts, picked)
    assert drafts[:kept] == picked[:kept]
    assert kept == len(drafts) or drafts[kept] != picked[kept]


# Prompt tokens, output tokens, step of arrival, prefix family, priority.
WORKLOADS = st.lists(
    st.tuples(
        st.integers(1, 40), st.integers(1, 30), st.integers(0, 20), st.integers(0, 2), st.integers(-1, 1)
    ),
    min_size=1,
    max_size=10,
)
CONFIGS = st.builds(
    SchedulerConfig,
    max_running_requests=st.integers(1, 6),
    max_step_tokens=st.integers(6, 24),
    block_tokens=st.sampled_from([4, 8]),
    num_blocks=st.integers(18, 40),
    prefix_caching=st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(WORKLOADS, CONFIGS, st.integers(1, 9), st.integers(0, 2**32), st.booleans())
def test_guesses_lose_nothing_and_take_nothing(workload, config, most, seed, cancels) -> None:
    rng = random.Random(seed)
    scheduler = Scheduler(config)
    arriving = []
    for index, (prompt, output, when, family, priority) in enumerate(sorted(workload, key=lambda w: w[2])):
        hashes = [(family, block) for block in range(prompt // config.block_tokens)]
        arriving.append((when, Request(index, prompt, output, float(when), hashes, priority)))
    requests = [request for _, request in arriving]
    produced = dict.fromkeys(requests, 0)
    cancelled = set()
    now = 0
    while arriving or scheduler.has_work:
        while arriving and arriving[0][0] <= now:
            scheduler.add(arriving.pop(0)[1])
        for request in scheduler.running:
            if request.output_tokens and request.computed_tokens + 1 == request.total_tokens:
                request.draft_tokens = rng.randint(0, most)
        asked = {request.request_id: request.draft_tokens for request in scheduler.running}
        unguessed = copy.deepcopy(scheduler)
        for request in unguessed.running:
            request.draft_tokens = 0
        step, plain = scheduler.schedule(), unguessed.schedule()
        now += 1
        if step is None:
            assert plain is None
            continue
        assert plain is not None
        check_step_with_drafts(scheduler, step, asked)
        # Everybody gets the token and keeps the place that would have been his without the guesses.
        assert [r.request_id for r in step.decodes] == [r.request_id for r in plain.decodes]
        preempted = {r.request_id: r.preemptions for r in [*unguessed.running, *unguessed.waiting]}
        assert all(preempted[r.request_id] == r.preemptions for r in [*scheduler.running, *scheduler.waiting])
        before = {request: request.computed_tokens for request in step.decodes}
        kept = {request: rng.randint(0, request.draft_tokens) for request in step.decodes}
        sampling = [chunk.request for chunk in step.chunks if chunk.samples]
        assert scheduler.complete(step, kept) == sampling
        for request in sampling:
            produced[request] += 1 + kept.get(request, 0)
            assert request.output_tokens == produced[request] <= request.max_output_tokens
            assert request.draft_tokens == 0
        for request, computed in before.items():
            assert request.computed_tokens == computed + 1 + kept[request]
        if cancels and rng.random() < 0.1:
            victim = rng.choice(requests)
            if victim not in [request for _, request in arriving] and victim.state is not State.FINISHED:
                scheduler.finish(victim)
                cancelled.add(victim)
    assert scheduler.free_blocks == config.num_blocks
    for request in requests:
        assert request.state is State.FINISHED
        if request not in cancelled:
            assert produced[request] == request.output_tokens == request.max_output_tokens
            assert request.computed_tokens == request.total_tokens - 1


def check_step_with_drafts(scheduler, step, asked) -> None:
    config = scheduler.config
    assert sum(chunk.tokens for chunk in step.chunks) <= config.max_step_tokens
    assert len({chunk.request for chunk in step.chunks}) == len(step.chunks)
    for chunk in step.chunks:
        assert chunk.start + chunk.tokens <= len(chunk.request.block_table) * config.block_tokens
    for request in step.decodes:
        assert 0 <= request.draft_tokens <= asked[request.request_id]
    # What is not checked in a decode is forgotten: a prompt that is computed again has no guesses.
    for chunk in step.prefills:
        assert chunk.request.draft_tokens == 0
        assert chunk.samples == (chunk.start + chunk.tokens == chunk.request.total_tokens)
    held = {block for request in scheduler.running for block in request.block_table}
    assert len(held) + scheduler.free_blocks == config.num_blocks
    if not config.prefix_caching:
        assert len(held) == sum(len(request.block_table) for request in scheduler.running)
    # The time of a step: decodes with guesses count as prefills, once.
    assert sorted(step.prefill + [(1, context) for context in step.decode_contexts]) == sorted(
        (chunk.tokens, chunk.start) for chunk in step.chunks
    )
    assert len(step.decode_contexts) == sum(not request.draft_tokens for request in step.decodes)
    if any(request.draft_tokens for request in step.decodes):
        assert scheduler.unchanged_steps(step) == 1


def test_guesses_leave_the_others_their_token() -> None:
    scheduler = Scheduler(SchedulerConfig(max_step_tokens=8, num_blocks=64))
    requests = [Request(index, 1, 50) for index in range(6)]
    for request in requests:
        scheduler.add(request)
    step = scheduler.schedule()
    assert step is not None
    scheduler.complete(step)
    for request in requests:
        request.draft_tokens = 8
    step = scheduler.schedule()
    assert step is not None
    assert step.decodes == requests
    assert [request.draft_tokens for request in requests] == [2, 0, 0, 0, 0, 0]
    assert step.prefill == [(3, 1)]
    assert step.decode_contexts == [1] * 5


def pattern(seed: int, length: int) -> list[int]:
    """A prompt that repeats itself."""
    rng = random.Random(seed)
    words = [[rng.randrange(512) for _ in range(rng.randint(2, 5))] for _ in range(3)]
    tokens: list[int] = []
    while len(tokens) < length:
        tokens += rng.choice(words)
    return tokens[:length]


LOOPS = SamplingParams(max_tokens=40, ignore_eos=True)
# One request of each kind: what a guess could disturb.
MIXED = [
    LOOPS,
    replace(LOOPS, temperature=0.4, seed=5),
    replace(LOOPS, logprobs=3),
    replace(LOOPS, temperature=0.7, top_k=4, seed=9, n=2, logprobs=1),
    replace(LOOPS, repetition_penalty=1.2, frequency_penalty=0.4, temperature=0.3, seed=1),
    replace(LOOPS, max_tokens=7),
    replace(LOOPS, max_tokens=1),
    replace(LOOPS, logit_bias={7: 8.0, 9: 7.5}, temperature=0.5, seed=2),
]
PROMPTS = [pattern(seed, 12 + 11 * seed) for seed in range(len(MIXED))]


def tiny(**options) -> LLM:
    return LLM("llama-tiny@dummy", **({"kv_cache_tokens": 2048} | options))


def assert_same(outs: list[RequestOutput], wanted: list[RequestOutput]) -> None:
    for out, want in zip(outs, wanted, strict=True):
        for ours, theirs in zip(out.samples, want.samples, strict=True):
            assert ours.token_ids == theirs.token_ids
            assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
            assert (ours.logprobs is None) == (theirs.logprobs is None)
            for a, b in zip(ours.logprobs or [], theirs.logprobs or [], strict=True):
                assert a.token_id == b.token_id
                assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
                assert list(a.top.values()) == pytest.approx(list(b.top.values()), abs=1e-4)
            if theirs.cumulative_logprob is not None:
                assert ours.cumulative_logprob == pytest.approx(theirs.cumulative_logprob, abs=1e-3)


@pytest.fixture(scope="module")
def wanted() -> list[RequestOutput]:
    return tiny().generate(PROMPTS, MIXED)


def rates(outs: list[RequestOutput]) -> list[float | None]:
    return [sample.metrics.acceptance_rate for out in outs for sample in out.samples]


@pytest.mark.parametrize("draft_tokens", [1, 3, 8])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_step_tokens": 12},
        {"prefix_caching": False},
        {"kv_cache_tokens": 208, "max_step_tokens": 24},
        {"kv_cache_tokens": 160, "prefix_caching": False, "max_running_requests": 5},
    ],
    ids=["wide", "chunked", "no-prefix-cache", "preempted", "preempted-no-prefix-cache"],
)
def test_the_output_is_the_same(wanted: list[RequestOutput], draft_tokens: int, options: dict) -> None:
    llm = tiny(draft_tokens=draft_tokens, **options)
    outs = llm.generate(PROMPTS, MIXED)
    assert_same(outs, wanted)
    assert any(rate for rate in rates(outs)), "no guess was ever right"
    preemptions = sum(sample.metrics.preemptions for out in outs for sample in out.samples)
    assert (preemptions > 0) == ("kv_cache_tokens" in options)
    assert llm.scheduler.free_blocks == llm.config.num_blocks
    assert_same(llm.generate(PROMPTS, MIXED), wanted)  # now with what the prefix cache remembers


def test_no_rate_without_guesses(wanted: list[RequestOutput]) -> None:
    assert rates(wanted) == [None] * len(rates(wanted))


@pytest.mark.parametrize("draft_tokens", [1, 3, 8])
def test_right_guesses_save_steps_and_may_hold_the_end(
    monkeypatch: pytest.MonkeyPatch, draft_tokens: int
) -> None:
    """Guesses that are right up to a random place: the text may end at any of them."""
    plain, guessing = tiny(), tiny(draft_tokens=draft_tokens)
    rng = random.Random(0)
    prompt = pattern(3, 30)
    full = plain.generate(prompt, LOOPS)[0].token_ids
    certain = True

    def guess(self: PromptLookup, tokens: list[int], most: int) -> list[int]:
        drafts = (prompt + full)[len(tokens) : len(tokens) + most]
        if not certain and drafts:
            drafts[rng.randrange(len(drafts))] ^= rng.randint(0, 1)
        return drafts

    monkeypatch.setattr(PromptLookup, "guess", guess)
    assert count_steps(guessing, prompt, LOOPS) == 1 + math.ceil(39 / (1 + draft_tokens))
    certain = False
    for max_tokens in range(10, 20):
        short = replace(LOOPS, max_tokens=max_tokens)
        assert guessing.generate(prompt, short)[0].token_ids == full[:max_tokens]
    for stop in sorted(set(full)):
        ends = replace(LOOPS, stop_token_ids=[stop])
        out = guessing.generate(prompt, ends)[0]
        assert out.token_ids == full[: full.index(stop) + 1]
        assert out.finish_reason == "stop"
        for min_tokens in (5, 10):  # a stop token may be no guess that is kept as long as it is forbidden
            ends = replace(ends, min_tokens=min_tokens)
            assert_same(guessing.generate(prompt, ends), plain.generate(prompt, ends))
    assert guessing.scheduler.free_blocks == guessing.config.num_blocks


def count_steps(llm: LLM, prompt: list[int], params: SamplingParams) -> int:
    llm.add_request(prompt, params)
    steps = 0
    while llm.scheduler.has_work:
        llm.step()
        steps += 1
    return steps


@pytest.fixture(scope="module")
def smollm2() -> LLM:
    return LLM("smollm2-135m", kv_cache_tokens=2048, draft_tokens=4)


def test_the_real_model_repeats_a_text_in_fewer_steps(smollm2: LLM) -> None:
    """Greedy, sampled and with stop strings, streamed: the same text, and guesses that are right."""
    line = "The cat sat on the mat. The dog lay by the door. "
    prompts = [line * 3, line * 2 + "The", "1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2"]
    params = [
        SamplingParams(max_tokens=24, logprobs=2),
        SamplingParams(max_tokens=24, stop=["dog lay by"], min_tokens=2),
        SamplingParams(max_tokens=24, temperature=0.5, seed=4, stop=["3, 4"], min_tokens=5),
    ]
    smollm2.draft_tokens = 0
    wanted = smollm2.generate(prompts, params)
    smollm2.draft_tokens = 4
    outs = smollm2.generate(prompts, params)
    assert_same(outs, wanted)
    assert outs[1].finish_reason == "stop"
    assert "dog lay by" not in outs[1].text
    assert outs[0].metrics.acceptance_rate is not None
    assert outs[0].metrics.acceptance_rate > 0.5
    assert rates(wanted) == [None] * 3
    texts = [out.text for out in smollm2.stream(prompts[1], params[1])]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert texts[-1] == wanted[1].text


@pytest.mark.parametrize("draft_tokens", [-1, 1.5, True, "3"])
def test_bad_draft_tokens_are_named(draft_tokens: object) -> None:
    with pytest.raises(InputError, match=r"draft_tokens: found .*, allowed is a whole number"):
        tiny(draft_tokens=draft_tokens)
