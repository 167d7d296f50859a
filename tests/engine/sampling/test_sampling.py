"""Parameters mean what transformers' processors mean, draws follow the distribution, and keys fix them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.errors import InputError
from engine.sampling import sampler
from engine.sampling.sampler import SamplingParams, SamplingState, random_key, sample, token_logprobs, uniform

VOCAB = 40


def state(
    params: SamplingParams, key: int = 0, prompt: tuple[int, ...] = (), output: tuple[int, ...] = ()
) -> SamplingState:
    return SamplingState(params, random_key(key), prompt, output)


def random_logits(seed: int, rows: int = 1, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def by_transformers(
    logits: torch.Tensor, params: SamplingParams, tokens: tuple[int, ...] = ()
) -> torch.Tensor:
    """Scores [1, vocab] by transformers' own processors."""
    chain: list[Any] = []
    if params.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty)))
    chain.append(TemperatureLogitsWarper(float(params.temperature)))
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(TopPLogitsWarper(float(params.top_p)))
    if params.min_p:
        chain.append(MinPLogitsWarper(float(params.min_p)))
    return LogitsProcessorList(chain)(torch.tensor([tokens], dtype=torch.long), logits.clone())


def ours(logits: torch.Tensor, states: list[SamplingState]) -> torch.Tensor:
    """Probabilities [rows, vocab] that `sample` draws from: what share of all uniform numbers gives each token."""
    drawn: list[torch.Tensor] = []
    original = torch.searchsorted

    def spy(passed: torch.Tensor, at: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        drawn.append(passed.diff(dim=-1, prepend=torch.zeros_like(passed[:, :1])) / passed[:, -1:])
        return original(passed, at, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler.torch, "searchsorted", spy)
        sample(logits, states)
    return drawn[0]


PARAMS = st.builds(
    SamplingParams,
    temperature=st.floats(0.2, 3),
    top_k=st.integers(0, VOCAB + 5),
    top_p=st.just(1.0) | st.floats(0.05, 0.99),
    min_p=st.just(0.0) | st.floats(0.001, 1),
    repetition_penalty=st.just(1.0) | st.floats(0.5, 2),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(PARAMS, min_size=1, max_size=5), st.integers(0, 10**6), st.sampled_from([4, VOCAB]))
def test_a_batch_draws_from_what_transformers_processors_leave(
    batch: list[SamplingParams], seed: int, width: int
) -> None:
    logits = random_logits(seed, len(batch))
    tokens = tuple(random_logits(seed + 1, 1, 12)[0].abs().mul(5).long().clamp(max=VOCAB - 1).tolist())
    half = len(tokens) // 2
    states = [state(params, 0, tokens[:half], tokens[half:]) for params in batch]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "_NUCLEUS_WIDTH_CPU", width)  # 4: most nuclei don't fit into the narrow look
        found = ours(logits, states)
    for row, params in enumerate(batch):
        scores = by_transformers(logits[row : row + 1], params, tokens)
        expected = scores.softmax(dim=-1)[0]
        if params.top_p < 1:  # a border within rounding of a token may fall on either side of it
            whole = SamplingParams(
                temperature=params.temperature,
                top_k=params.top_k,
                repetition_penalty=params.repetition_penalty,
            )
            passed = by_transformers(logits[row : row + 1], whole, tokens).softmax(-1)[0]
            passed = passed.sort(descending=True).values.cumsum(-1)
            assume(float((passed - params.top_p).abs().min()) > 1e-5)
        if params.min_p:
            relative = (logits[row] - logits[row].max()) / params.temperature
            assume(float((relative.exp() - params.min_p).abs()[relative < 0].min()) > 1e-5)
        torch.testing.assert_close(found[row], expected, atol=2e-6, rtol=1e-4)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=5),
    st.lists(st.integers(0, VOCAB - 1), max_size=30),
)
def test_openai_penalties_and_bias(
    seed: int, presence: float, frequency: float, bias: dict[int, float], output: list[int]
) -> None:
    """The formula of OpenAI's reference: logit − count · frequency − (count > 0) · presence, with the bias added."""
    logits = random_logits(seed)
    expected = logits[0].clone()
    for token, value in bias.items():
        expected[token] += value
    for token in set(output):
        expected[token] -= output.count(token) * frequency + presence
    greedy = SamplingParams(presence_penalty=presence, frequency_penalty=frequency, logit_bias=bias)
    top_two = expected.topk(2).values
    assume(top_two[0] - top_two[1] > 1e-4)
    before = logits.clone()
    assert sample(logits, [state(greedy, prompt=(1, 2), output=tuple(output))]) == [int(expected.argmax())]
    assert torch.equal(logits, before)
    drawn = SamplingParams(
        temperature=1.0, presence_penalty=presence, frequency_penalty=frequency, logit_bias=bias
    )
    found = ours(logits, [state(drawn, prompt=(1, 2), output=tuple(output))])
    torch.testing.assert_close(found[0], expected.softmax(-1), atol=2e-6, rtol=1e-3)


def test_no_end_token_within_the_first_tokens() -> None:
    logits = torch.tensor([[0.0, 5.0, 4.0, 1.0]])
    params = SamplingParams(min_tokens=2)
    for output, expected in [((), 3), ((0,), 3), ((0, 0), 1)]:
        its = SamplingState(params, b"", (), output, end_token_ids=(1, 2))
        assert sample(logits, [its]) == [expected]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=7),
        SamplingParams(temperature=1.3, top_p=0.8, min_p=0.02, repetition_penalty=1.3),
    ],
)
def test_drawn_tokens_follow_the_distribution(params: SamplingParams) -> None:
    draws = 20_000
    logits = random_logits(3)
    tokens = (1, 2, 3)
    expected = by_transformers(logits, params, tokens).softmax(-1)[0].double()
    states = [state(params, key, (), tokens) for key in range(draws)]
    counts = np.bincount(sample(logits.expand(draws, -1), states), minlength=VOCAB)
    assert counts[expected.numpy() == 0].sum() == 0
    likely = expected.numpy() * draws >= 5
    observed = np.append(counts[likely], counts[~likely].sum())
    wanted = np.append(expected[likely].numpy(), expected[~likely].sum()) * draws
    filled = wanted > 0
    wanted = wanted[filled] / wanted[filled].sum() * draws
    assert chisquare(observed[filled], wanted).pvalue > 0.001


def test_random_numbers_are_uniform_and_independent() -> None:
    by_position = [uniform(random_key(7), position) for position in range(5000)]
    by_key = [uniform(random_key(7, key), 0) for key in range(5000)]
    for numbers in (by_position, by_key):
        assert kstest(numbers, "uniform").pvalue > 0.001
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.06
    assert all(0 <= number < 1 for number in by_position)


def test_each_position_and_each_key_draws_anew() -> None:
    params = SamplingParams(temperature=1.0)
    for states in (
        [state(params, 0, output=(0,) * length) for length in range(200)],
        [state(params, key) for key in range(200)],
    ):
        counts = np.bincount(sample(torch.zeros(200, 4), states), minlength=4)
        assert chisquare(counts).pvalue > 0.001


@settings(max_examples=50, deadline=None)
@given(st.lists(PARAMS, min_size=2, max_size=6), st.integers(0, 10**6))
def test_a_row_draws_the_same_whatever_shares_the_batch(batch: list[SamplingParams], seed: int) -> None:
    logits = random_logits(seed, len(batch))
    states = [state(params, key) for key, params in enumerate(batch)]
    together = sample(logits, states)
    assert together == [sample(logits[row : row + 1], [its])[0] for row, its in enumerate(states)]
    backwards = sample(logits.flip(0), states[::-1])
    assert together == backwards[::-1]


def test_greedy_and_drawn_rows_share_a_batch() -> None:
    logits = random_logits(5, 4)
    best = logits.argmax(-1).tolist()
    greedy, drawn = SamplingParams(), SamplingParams(temperature=2.0)
    tokens = sample(logits, [state(greedy), state(drawn, 1), state(greedy), state(drawn, 2)])
    assert [tokens[0], tokens[2]] == [best[0], best[2]]
    for cold in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-45}):
        params = SamplingParams(**{"temperature": 2.0, **cold})  # type: ignore[arg-type]
        assert sample(logits, [state(params, key) for key in range(4)]) == best


def test_equal_logits_are_all_kept() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, -5.0]])
    for params in (SamplingParams(temperature=1.0, top_k=2), SamplingParams(temperature=1.0, top_p=0.4)):
        torch.testing.assert_close(
            ours(logits, [state(params)])[0], torch.tensor([0, 1 / 3, 1 / 3, 1 / 3, 0])
        )


def test_the_last_number_before_one_gives_a_token_that_may_be_drawn() -> None:
    logits = torch.full((1, 50_000), -math.inf)
    logits[0, :30_000] = random_logits(2, 1, 30_000)
    with pytest.MonkeyPatch.context() as patch:
        for number, allowed in ((1 - 2**-48, {29_999}), (0.0, {0})):
            patch.setattr(sampler, "uniform", lambda key, position, number=number: number)
            token = sample(logits, [state(SamplingParams(temperature=1.0))])[0]
            assert token in allowed or (number > 0.5 and 29_000 < token < 30_000)


def test_not_a_number_still_gives_tokens() -> None:
    logits = torch.full((2, VOCAB), math.nan)
    params = SamplingParams(temperature=1.0), SamplingParams(temperature=1.0, top_k=3, top_p=0.5, min_p=0.1)
    tokens = sample(logits, [state(its) for its in params])
    assert all(0 <= token < VOCAB for token in tokens)


def test_logprobs_are_those_of_the_model() -> None:
    logits = random_logits(9, 3)
    expected = logits.log_softmax(-1)
    biased = SamplingParams(temperature=0.5, top_k=2, logit_bias={4: 100}, logprobs=3)
    states = [state(biased), state(SamplingParams()), state(SamplingParams(logprobs=0))]
    tokens = sample(logits, states)
    assert tokens[0] == 4
    first, none, last = token_logprobs(logits, states, tokens)
    assert first is not None
    assert first.token_id == 4
    assert first.logprob == pytest.approx(float(expected[0, 4]))
    assert list(first.top) == expected[0].topk(3).indices.tolist()
    assert list(first.top.values()) == pytest.approx(expected[0].topk(3).values.tolist())
    assert none is None
    assert last is not None
    assert last.top == {}
    assert last.logprob == pytest.approx(float(expected[2].max()))


BAD: list[tuple[str, list[Any]]] = [
    ("max_tokens", [0, 1.5, True, "8", None]),
    ("temperature", [-1, math.nan, math.inf, True, "1", None]),
    ("top_k", [-1, 2.0, False]),
    ("top_p", [0, 1.1, math.nan, True]),
    ("min_p", [-0.1, 1.1, math.nan]),
    ("repetition_penalty", [0, -1, math.inf, math.nan, "x"]),
    ("presence_penalty", [2.1, -2.1, math.nan]),
    ("frequency_penalty", [2.1, -2.1, math.nan, True]),
    ("logit_bias", [{1: 101}, {1: math.nan}, {-1: 0}, {"1": 0}, {True: 1}, [(1, 2)]]),
    ("min_tokens", [-1, 65, 1.0, True]),
    ("logprobs", [-1, 1.0, True]),
    ("n", [0, 1.0, True]),
    ("stop", [[""], [1], 7, b"x", ""]),
    ("stop_token_ids", [[-1], [1.0], [True], 3, "3"]),
    ("ignore_eos", [1, None, "yes"]),
    ("seed", [1.5, "1", True]),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD for value in values])
def test_what_is_not_allowed_is_named_in_one_line(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name}: found .*, allowed is ") as caught:
        SamplingParams(**{name: value})
    assert "\n" not in str(caught.value)


def test_token_ids_outside_the_vocabulary_are_named() -> None:
    for bad in ({"stop_token_ids": [3, 40]}, {"logit_bias": {40: 1.0}}):
        with pytest.raises(InputError, match="found token 40, allowed are 0 to 39"):
            SamplingParams(**bad).check_vocabulary(VOCAB)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="logprobs: found 41, allowed is at most the vocabulary, 40"):
        SamplingParams(logprobs=41).check_vocabulary(VOCAB)
    SamplingParams(stop_token_ids=[39], logit_bias={0: 1}, logprobs=40).check_vocabulary(VOCAB)
