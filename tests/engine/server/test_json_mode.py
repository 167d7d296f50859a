"""Answers that are held to JSON: whatever the model would rather say, every answer parses."""

from __future__ import annotations

import json
import random
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import LLM, SamplingParams
from engine.errors import InputError
from engine.models.load import load_tokenizer
from engine.sampling.json_grammar import (
    NEVER,
    START,
    GrammarState,
    JsonAnswer,
    JsonTokens,
    advance,
    missing_bytes,
)
from engine.sampling.token_bytes import token_bytes
from tests.helpers.server import one_thread, tiny_llm  # noqa: F401

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def read(text: bytes) -> GrammarState | None:
    state: GrammarState | None = START
    for byte in text:
        state = advance(state, byte) if state is not None else None
    return state


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), st.booleans(), st.sampled_from([None, 2]))
@settings(max_examples=100, deadline=None)
def test_what_python_writes_is_read_to_its_end_and_no_further(
    value: dict[str, Any], ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    assert read(text) == GrammarState("done")
    for end in range(1, len(text)):
        state = read(text[:end])
        assert state is not None
        assert state.place != "done"
        assert missing_bytes(state) <= len(text) - end
    assert read(text + b" ") is None


BROKEN = """
[ | " | {, | {"a"} | {"a":} | {"a":1,} | {"a":01 | {"a":1.} | {"a":-} | {"a":+1 | {"a":.5 | {"a":1e} | {"a":tru}
{"a":nil | {'a' | {"\\x | {"\\u12g | {"a":[1,] | {"a":[1} | {"a":1}{ | {"a":NaN
"""
BROKEN_UTF8 = [
    b"\x80",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xf5\x80\x80\x80",
    b"\xf4\x90\x80\x80",
    b'\xe2"',
    b"\n",
]


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


@pytest.mark.parametrize(
    "text",
    [each.strip().encode() for each in BROKEN.replace("\n", "|").split("|") if each.strip()]
    + [b'{"' + each for each in BROKEN_UTF8],
)
def test_what_no_parser_would_go_on_with_is_refused(text: bytes) -> None:
    assert read(text) is None
    for ending in (b"", b"}", b'"}', b'":0}', b"0}", b"]}"):  # json agrees, whatever is put behind it
        with pytest.raises(ValueError, match=r"."):
            json.loads((text + ending).decode(), parse_constant=refuse)


def shortest_way(state: GrammarState) -> int:
    """By trying all bytes, breadth first."""
    todo, seen = deque([(state, 0)]), {state}
    while todo:
        here, length = todo.popleft()
        if here.place == "done":
            return length
        for byte in range(256):
            after = advance(here, byte)
            if after is not None and after not in seen:
                seen.add(after)
                todo.append((after, length + 1))
    raise AssertionError("no way to the end")


BEGUN = """
{ | {"a | {"a" | {"a": | {"a":- | {"a":1. | {"a":1e | {"a":1e+ | {"a":12 | {"a":fa | {"a":"x\\ | {"a":"\\u1 | {"a":[
{"a":[1, | {"a":{"b":[[ | {"a":1, | {"a":11111111111111111111111111111111
"""


@pytest.mark.parametrize(
    "text",
    [each.strip().encode() for each in BEGUN.replace("\n", "|").split("|")] + [b'{"\xe0', b'{"a":"\xf0\x9f'],
)
def test_the_missing_bytes_are_those_of_the_shortest_way(text: bytes) -> None:
    state = read(text)
    assert state is not None
    assert missing_bytes(state) == shortest_way(state)


@pytest.fixture(scope="module")
def tokens() -> JsonTokens:
    return JsonTokens(token_bytes(load_tokenizer("smollm2-135m"), 49_152))


def test_tokens_are_allowed_exactly_where_their_bytes_are(tokens: JsonTokens) -> None:
    rng = random.Random(0)
    for text in (
        b"",
        b"{",
        b'{"a',
        b'{"a":',
        b'{"a":[1',
        b'{"a":"\\',
        b'{"a":"\xe2',
        b'{"a":{"b":[',
        b'{"a":t',
    ):
        state = read(text)
        assert state is not None
        missing = tokens.missing_after(state)
        for token in rng.sample(range(49_152), 1500) + np.flatnonzero(missing < NEVER)[:500].tolist():
            piece = tokens.token_bytes[token]
            after = read(text + piece) if piece else None
            assert missing[token] == (NEVER if after is None else missing_bytes(after))


@given(st.integers(2, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_any_choice_among_the_allowed_tokens_ends_in_an_object(
    tokens: JsonTokens, most: int, seed: int
) -> None:
    rng, answer, chosen = random.Random(seed), JsonAnswer(tokens, most), []
    while not answer.is_complete(chosen):
        allowed = np.flatnonzero(~answer.forbidden(chosen)).tolist()
        short = [token for token in allowed if len(tokens.token_bytes[token]) == 1]
        chosen.append(rng.choice(short if short and rng.random() < 0.7 else allowed))
    assert len(chosen) <= most
    assert isinstance(json.loads(b"".join(tokens.token_bytes[token] for token in chosen)), dict)


def test_token_bytes_are_what_the_tokenizer_decodes() -> None:
    tokenizer = load_tokenizer("smollm2-135m")
    each = token_bytes(tokenizer, 49_152)
    text = 'naïve 日本語 😀 {"a": [1, 2]}\n\tdef f(x):  return "ü"'
    ids = tokenizer(text)["input_ids"]
    assert b"".join(each[token] for token in ids).decode() == text
    assert each[tokenizer.eos_token_id] == b""


def test_a_vocabulary_that_can_not_close_an_object_is_refused() -> None:
    with pytest.raises(InputError, match="no token for"):
        JsonTokens([b"{", b"hello"])


@pytest.fixture(scope="module")
def llm() -> LLM:
    return tiny_llm()


def test_every_answer_of_the_engine_parses(llm: LLM) -> None:
    params = [
        SamplingParams(max_tokens=most, temperature=heat, seed=seed, json_object=True)
        for seed, (most, heat) in enumerate(
            [(2, 0.0), (3, 1.0), (8, 1.0), (20, 1.0), (40, 0.0), (60, 2.0)] * 3
        )
    ]
    for asked, output in zip(params, llm.generate(["Say:"] * len(params), params), strict=True):
        assert isinstance(json.loads(output.text), dict)
        assert output.finish_reason in ("stop", "length")
        assert len(output.token_ids) <= asked.max_tokens


def test_others_in_the_batch_are_not_held_to_it(llm: LLM) -> None:
    free = SamplingParams(max_tokens=12)
    alone = llm.generate("Say:", free)[0].token_ids
    held = SamplingParams(max_tokens=12, json_object=True)
    together = llm.generate(["Say:", "Say:"], [free, held])
    assert together[0].token_ids == alone
    assert isinstance(json.loads(together[1].text), dict)


def test_guessing_ahead_changes_no_json(llm: LLM) -> None:
    params = SamplingParams(max_tokens=24, temperature=0.9, seed=5, json_object=True)
    plain = llm.generate("a a a a", params)[0].token_ids
    llm.draft_tokens = 4
    try:
        assert llm.generate("a a a a", params)[0].token_ids == plain
    finally:
        llm.draft_tokens = 0
