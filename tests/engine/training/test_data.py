from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InputError
from engine.training.cleaning import CleaningRules, clean, cut, reason_to_remove
from engine.training.data import (
    Document,
    content_hash,
    pack,
    prepare,
    read_documents,
    select,
    split,
    tokenize,
    train_tokenizer,
)
from engine.training.dedup import jaccard, near_duplicates, shingle_hashes

PROSE = "The quick brown fox jumps over the lazy dog while nobody in the village is looking at it. "
texts = st.text(min_size=1, max_size=60)
messy = st.text(
    alphabet=st.sampled_from("ab \t\n\r\x00\x0b\u00a0\u2028\u3000\u0301\ufeff\ud800e"), max_size=40
)


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    """Python's own help topics: some eighty pieces of English prose about the language."""
    return [Document(text, name) for name, text in sorted(topics.items())]


@pytest.fixture(scope="module")
def tokenizer(corpus: list[Document]) -> Any:
    return train_tokenizer((document.text for document in corpus), 500)


@given(st.one_of(texts, messy))
def test_cleaning_is_idempotent_and_leaves_no_control_characters(text: str) -> None:
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in cleaned)
    assert "\n\n\n" not in cleaned


def test_cleaning_keeps_what_carries_meaning() -> None:
    assert clean("if x:\r\n    return  1\t \r\n\n\n\nend\x00\ufeff") == "if x:\n    return 1\n\nend"
    assert clean("Cafe\u0301\u00a0noir") == "Caf\u00e9 noir"
    assert (
        clean("family \U0001f468\u200d\U0001f469\u200d\U0001f467")
        == "family \U0001f468\u200d\U0001f469\u200d\U0001f467"
    )


def test_filters_name_their_reason() -> None:
    rules = CleaningRules(min_characters=20)
    assert reason_to_remove("short", rules) == "too short"
    assert reason_to_remove("cookie banner text\n" * 10, rules) == "repeated lines"
    assert reason_to_remove("=-=-=-=-= $$$ ### !!! a b c d", rules) == "symbols"
    assert reason_to_remove(PROSE, rules) is None
    hindi = "यह एक छोटा सा वाक्य है जिसमें कई मात्राएँ हैं और जो पाठ के रूप में रहना चाहिए"
    assert reason_to_remove(hindi, rules) is None  # vowel signs are not symbols
    code = "def area(width: float, height: float) -> float:\n    return width * height\n"
    assert reason_to_remove(code, rules) is None


@given(st.text(alphabet="ab \n", max_size=300), st.integers(5, 50))
def test_cutting_loses_only_white_space(text: str, limit: int) -> None:
    pieces = cut(text, limit)
    assert all(len(piece) <= limit for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


@given(st.lists(texts, min_size=2, max_size=60, unique=True), st.floats(0.02, 0.98))
def test_a_document_never_sits_on_both_sides(contents: list[str], fraction: float) -> None:
    contents += contents[::3]  # the same text under another name
    documents = [Document(clean(text), str(index)) for index, text in enumerate(contents)]
    if len({document.text for document in documents}) < 2:
        return
    train, validation = split(documents, fraction)
    assert train
    assert validation
    assert len(train) + len(validation) == len(documents)
    assert not {document.text for document in train} & {document.text for document in validation}
    again = split(documents[::-1], fraction)
    assert {document.text for document in again[1]} == {document.text for document in validation}


def test_a_growing_corpus_moves_no_document_to_the_other_side() -> None:
    documents = [Document(f"{PROSE} number {index}") for index in range(400)]
    _, before = split(documents[:200], 0.1)
    _, after = split(documents, 0.1)
    assert set(before) == {document for document in after if document in documents[:200]}
    assert 20 <= len(after) <= 65


def test_near_duplicates_are_found_and_different_texts_stay() -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"word{index}" for index in range(2000)])
    originals = [" ".join(rng.choice(words, 300)) for _ in range(40)]
    edited = [text.replace(f" {text.split()[150]} ", " another ").upper() + "!" for text in originals]
    halves = [" ".join(text.split()[:150]) + " " + " ".join(rng.choice(words, 150)) for text in originals]
    verdicts = near_duplicates([*originals, *edited, *halves], 0.8)
    assert verdicts == [None] * 40 + list(range(40)) + [None] * 40


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=14).map(" ".join), max_size=30))
def test_every_removed_text_truly_resembles_the_kept_one(contents: list[str]) -> None:
    verdicts = near_duplicates(contents, 0.7)
    for text, earlier in zip(contents, verdicts, strict=True):
        if earlier is not None:
            assert verdicts[earlier] is None
            assert jaccard(shingle_hashes(text), shingle_hashes(contents[earlier])) >= 0.7


def test_resemblance_is_that_of_the_word_shingles() -> None:
    one, other = "one two three four five six seven", "one two three four five six eight"
    assert shingle_hashes(one).size == 3
    assert jaccard(shingle_hashes(one), shingle_hashes(other)) == pytest.approx(2 / 4)
    assert jaccard(shingle_hashes("!!!"), shingle_hashes("???")) == 0


@given(st.lists(st.lists(st.integers(0, 9), max_size=20), max_size=10), st.integers(1, 12))
def test_packing_keeps_the_stream_of_tokens(rows: list[list[int]], sequence_tokens: int) -> None:
    packed = pack([np.array(row, dtype=np.int32) for row in rows], sequence_tokens)
    stream = [token for row in rows for token in row]
    assert packed.ravel().tolist() == stream[: len(stream) // sequence_tokens * sequence_tokens]
    assert packed.shape[1] == sequence_tokens


def test_each_document_ends_with_the_end_of_text(corpus: list[Document], tokenizer: Any) -> None:
    rows = tokenize(corpus[:5], tokenizer)
    assert all(row[-1] == tokenizer.eos_token_id for row in rows)
    assert [tokenizer.decode(row[:-1]) for row in rows] == [document.text for document in corpus[:5]]


def test_prepare_reports_the_yield_of_every_step(corpus: list[Document], tokenizer: Any) -> None:
    edited = Document(corpus[3].text.replace("the", "THE", 1) + " End.", "edited")
    documents = [*corpus, corpus[0], edited, Document("tiny"), Document("=" * 200)]
    data = prepare(documents, tokenizer, 64, validation_fraction=0.1)
    report = data.report
    steps = {step.step: step for step in report.steps}
    assert list(steps) == ["read", "cleaned", "deduplicated", "near-deduplicated", "tokenized", "packed"]
    assert steps["read"].documents == len(documents)
    assert steps["read"].characters == sum(len(document.text) for document in documents)
    assert report.removed_documents["exact duplicate"] >= 1
    assert report.removed_documents["near duplicate"] >= 1
    assert report.removed_documents["too short"] >= 1
    assert report.removed_documents["symbols"] >= 1
    assert report.train_documents + report.validation_documents == steps["tokenized"].documents
    assert data.train.shape[1] == data.validation.shape[1] == 64
    assert steps["packed"].tokens == data.train.size + data.validation.size <= steps["tokenized"].tokens
    assert steps["tokenized"].tokens - steps["packed"].tokens < 2 * 64
    characters = [step.characters for step in report.steps]
    assert characters == sorted(characters, reverse=True)
    assert 0 < report.cleaning_yield < 1
    assert 0 < report.duplicate_share < 1
    again = prepare(documents, tokenizer, 64, validation_fraction=0.1)
    assert again.report == report


def test_one_long_text_can_be_split_too(corpus: list[Document], tokenizer: Any) -> None:
    book = Document("\n\n".join(document.text for document in corpus), "book.txt")
    data = prepare([book], tokenizer, 32)
    assert len(data.train)
    assert len(data.validation)


def test_files_folders_and_jsonl_are_read(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_bytes(b"\xef\xbb\xbf" + "Grüße".encode())
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in ("one", "two\u2028three"))
        + "\n\n",
        encoding="utf-8",
    )
    (tmp_path / "deep" / "c.txt").touch()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    documents = read_documents([tmp_path])
    assert [document.text for document in documents] == ["one", "two\u2028three", "Grüße", ""]
    assert documents[1].source.endswith("a.jsonl:2")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", b"fine\ncaf\xe9\n", r"latin\.txt:2: byte 0xe9 is not UTF-8"),
        ("empty.txt", b" \n", r"empty\.txt: empty"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', r"bad\.jsonl:2: not JSON"),
        ("other.jsonl", b'{"body": "a"}\n', r"other\.jsonl:1: found keys 'body'"),
        ("list.jsonl", b"[1]\n", r"list\.jsonl:1: found list"),
        ("number.jsonl", b'{"text": 3}\n', r'number\.jsonl:1: "text" is 3'),
    ],
)
def test_bad_files_are_refused_with_file_and_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        read_documents([tmp_path / name])
    assert "\n" not in str(refused.value)


def test_too_little_text_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_documents([tmp_path / "missing"])
    with pytest.raises(InputError, match="no text in this folder"):
        read_documents([tmp_path])
    with pytest.raises(InputError, match=r"no text is left of 1 document.*1 too short"):
        select([Document("hi")], CleaningRules())
    with pytest.raises(InputError, match=r"1 different document\(s\)"):
        prepare([Document(PROSE * 2)], tokenizer)
    with pytest.raises(InputError, match="fewer than one sequence of 4096"):
        prepare([Document(PROSE * 2), Document("Something else is told here. " * 9)], tokenizer, 4096)
    with pytest.raises(InputError, match="validation_fraction is 5"):
        split([Document("a"), Document("b")], 5)
    with pytest.raises(InputError, match="vocab_size is 100"):
        train_tokenizer(["a"], 100)


def test_the_hash_of_a_text_never_changes() -> None:
    # Splits made by an earlier version must stay what they were.
    assert content_hash("flywheel") == content_hash("flywheel")
    assert f"{content_hash(''):016x}" == "e4a6a0577479b2b4"
