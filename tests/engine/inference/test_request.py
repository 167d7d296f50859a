"""Text grows to what the tokenizer decodes at once, shows no half characters, and no part of a stop string."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.inference.request import TextReader
from engine.models.load import load_tokenizer


@pytest.fixture(scope="module")
def byte_level() -> Any:
    return load_tokenizer("smollm2-135m")


@pytest.fixture(scope="module")
def sentencepiece() -> Any:
    """As Llama 2 has it: words begin with ▁, the text's first space is dropped, unknown characters become bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁a", "▁the", "▁end", "a", "b", "en", "d", "▁▁", ".", "STOP", "ST", "OP"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def shown(
    tokenizer: Any, token_ids: list[int], stops: tuple[str, ...] = (), min_tokens: int = 0
) -> list[str]:
    """What may be seen after each token, up to the stop, and at the end."""
    reader = TextReader(tokenizer, stops, min_tokens)
    texts = []
    for end in range(1, len(token_ids) + 1):
        reader.read(token_ids[:end])
        texts.append(reader.text)
        if reader.stopped:
            return texts
    reader.read(token_ids, is_last=True)
    return [*texts, reader.text]


def check_growth(texts: list[str]) -> None:
    for before, after in pairwise(texts):
        assert after.startswith(before)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 49_151), max_size=30))
def test_any_tokens_grow_to_their_text(byte_level: Any, token_ids: list[int]) -> None:
    texts = shown(byte_level, token_ids)
    check_growth(texts)
    assert texts[-1] == byte_level.decode(token_ids, skip_special_tokens=True)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_no_half_character_is_shown(byte_level: Any, text: str) -> None:
    token_ids = byte_level(text, add_special_tokens=False)["input_ids"]
    # The vocabulary lacks a few bytes that begin characters nobody writes.
    assume("\N{REPLACEMENT CHARACTER}" not in byte_level.decode(token_ids))
    texts = shown(byte_level, token_ids)
    check_growth(texts)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(texts)
    assert texts[-1] == byte_level.decode(token_ids, skip_special_tokens=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([" a", " the", " ", "b", ".", "é", "你", "🌍"]) | st.none(), max_size=15))
def test_sentencepiece_spaces_bytes_and_special_tokens(sentencepiece: Any, parts: list[str | None]) -> None:
    token_ids = []
    for part in parts:
        known = sentencepiece.convert_tokens_to_ids((part or "").replace(" ", "▁"))
        if part is None:
            token_ids.append(sentencepiece.eos_token_id)
        elif part.strip(" ").isascii():
            token_ids.append(known)
        else:
            names = [f"<0x{byte:02X}>" for byte in part.encode()]
            token_ids += sentencepiece.convert_tokens_to_ids(names)
    texts = shown(sentencepiece, token_ids)
    check_growth(texts)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(texts)
    assert texts[-1] == sentencepiece.decode(token_ids, skip_special_tokens=True)
    assert texts[-1] == "".join(part or "" for part in parts).removeprefix(" ")


@settings(max_examples=300, deadline=None)
@given(
    st.text("abST.OP é🌍", max_size=25),
    st.lists(st.text("abST.OP é🌍", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_no_part_of_a_stop_string_is_shown(byte_level: Any, text: str, stops: list[str]) -> None:
    # One token per byte, so that every stop string lies across borders.
    letters = byte_level.convert_ids_to_tokens(byte_level(text, add_special_tokens=False)["input_ids"])
    token_ids = byte_level.convert_tokens_to_ids(list("".join(letters)))
    texts = shown(byte_level, token_ids, tuple(stops))
    check_growth(texts)
    # By definition: the first end of a stop string decides, and of those that end there the one that begins first.
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    if not ends:
        assert texts[-1] == text
        return
    longest = max(len(stop) for stop in stops if text[: ends[0]].endswith(stop))
    assert texts[-1] == text[: ends[0] - longest]


def test_a_stop_string_across_tokens_is_never_begun(sentencepiece: Any) -> None:
    ids = sentencepiece.convert_tokens_to_ids
    assert shown(sentencepiece, ids(["▁a", "ST", "OP", "b"]), ("STOP",)) == ["a", "a", "a"]
    assert shown(sentencepiece, ids(["▁a", "ST", "b"]), ("STOP",)) == ["a", "a", "aSTb", "aSTb"]
    assert shown(sentencepiece, ids(["▁a", "ST"]), ("STOP",)) == ["a", "a", "aST"], (
        "the end shows what was held"
    )
    assert shown(sentencepiece, ids(["STOP", "a", "STOP"]), ("STOP",), min_tokens=2)[-1] == "STOPa"
    assert shown(sentencepiece, ids(["ST", "OP", "a"]), ("STOP",), min_tokens=1)[-1] == "STOPa"


def test_reading_costs_what_is_new(byte_level: Any) -> None:
    class Counting:
        decoded = 0

        def decode(self, token_ids: list[int], **kwargs: Any) -> str:
            self.decoded += len(token_ids)
            return str(byte_level.decode(token_ids, **kwargs))

    counting = Counting()
    token_ids = byte_level("one word after another " * 100)["input_ids"]
    shown(counting, token_ids)
    assert counting.decoded < 5 * len(token_ids)
