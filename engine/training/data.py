"""From text files to training sequences: read, clean, deduplicate, split, tokenize, pack; count the yields.

The first stage of the life of a language model. Every step reports what it left, in documents, characters and
tokens, because those yields are what the data stage of a company pays for: a token that cleaning throws away
was acquired, too.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError
from engine.training.cleaning import CleaningRules, clean, cut, reason_to_remove
from engine.training.dedup import near_duplicates
from engine.utils.message import Message
from engine.utils.progress import Progress, part_of

Tokens = NDArray[np.int32]

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
JSONL_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Document:
    """A text and where it came from (`file` or `file:line`)."""

    text: str
    source: str = ""


@dataclass(frozen=True)
class StepYield:
    """What is left after one step. Before tokenization `tokens` is estimated from the characters."""

    step: str
    documents: int
    characters: int
    tokens: int


@dataclass(frozen=True)
class DataReport:
    """Yield of every step, what was removed and why, and what is left to train and validate on."""

    steps: list[StepYield]
    removed_documents: dict[str, int]  # reason -> documents
    characters_per_token: float
    train_documents: int
    validation_documents: int
    train_tokens: int  # in whole sequences; ends of document included
    validation_tokens: int
    sequence_tokens: int
    content_hash: str  # of the training and validation sequences

    @property
    def cleaning_yield(self) -> float:
        """Fraction of the characters read that survives cleaning and its filters."""
        return self._ratio("cleaned", "read")

    @property
    def duplicate_share(self) -> float:
        """Fraction of the cleaned characters that are exact or near duplicates."""
        return 1 - self._ratio("near-deduplicated", "cleaned")

    def _ratio(self, after: str, before: str) -> float:
        characters = {step.step: step.characters for step in self.steps}
        return characters[after] / characters[before]


@dataclass(frozen=True)
class PreparedData:
    """Sequences ready for training: token ids [sequences, sequence_tokens], and how they came about."""

    train: Tokens
    validation: Tokens
    vocab_size: int
    eos_token_id: int
    report: DataReport


def read_documents(paths: Sequence[str | Path]) -> list[Document]:
    """Read text files (one document each), JSONL files (one a line, key `text`) and folders of both.

    Raises:
        InputError: a path is missing, a folder holds no such file, a file is empty or not UTF-8, or a line is
            not a JSON object with a string under `text`; the message names file and line.
    """
    if not paths:
        raise InputError("no text given; name files or folders")
    documents: list[Document] = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        files = _text_files(path) if path.is_dir() else [path]
        before = len(documents)
        for file in files:
            documents += _read_jsonl(file) if file.suffix.lower() in JSONL_SUFFIXES else _read_text(file)
        # One empty file in a folder of thousands is dropped by cleaning, and counted there.
        if not any(document.text.strip() for document in documents[before:]):
            raise InputError(f"{path}: empty; allowed is a file or folder with text in it")
    return documents


def content_hash(text: str) -> int:
    """64-bit hash of a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


def split(documents: Sequence[Document], validation_fraction: float) -> tuple[list[Document], list[Document]]:
    """Training and validation documents, told apart by the hash of their text alone.

    A document so never sits on both sides, nor changes side when others come or go. Only when a side would
    stay empty, the document whose hash is nearest to it goes there.

    Raises:
        InputError: `validation_fraction` is not above 0 and below 1, or there are fewer than two texts.
    """
    if not 0 < validation_fraction < 1:
        raise InputError(f"validation_fraction is {validation_fraction!r}; allowed is between 0 and 1")
    hashes = [content_hash(document.text) for document in documents]
    distinct = sorted(set(hashes))
    if len(distinct) < 2:
        raise InputError(
            f"{len(distinct)} different document(s) left after cleaning; a validation set needs at least 2"
        )
    border = min(max(int(validation_fraction * 2**64), distinct[0] + 1), distinct[-1])
    validation = [document for document, value in zip(documents, hashes, strict=True) if value < border]
    train = [document for document, value in zip(documents, hashes, strict=True) if value >= border]
    return train, validation


def tokenize(documents: Sequence[Document], tokenizer: Any, progress: Progress | None = None) -> list[Tokens]:
    """Token ids of each document, the tokenizer's end-of-text token after each.

    Raises:
        InputError: the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(f"tokenizer {tokenizer.name_or_path!r} has no end-of-text token (eos_token)")
    rows: list[Tokens] = []
    for start in range(0, len(documents), 256):
        texts = [document.text for document in documents[start : start + 256]]
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        rows += [np.array([*ids, tokenizer.eos_token_id], dtype=np.int32) for ids in encoded["input_ids"]]
        if progress is not None:
            progress(len(rows) / len(documents), Message("tokenizing"))
    return rows


def pack(rows: Sequence[Tokens], sequence_tokens: int) -> Tokens:
    """Documents laid end to end and cut into [sequences, sequence_tokens]; an incomplete one is dropped."""
    stream = np.concatenate([np.empty(0, dtype=np.int32), *rows])
    sequences = stream.size // sequence_tokens
    return stream[: sequences * sequence_tokens].reshape(sequences, sequence_tokens)


def prepare(
    documents: Sequence[Document],
    tokenizer: Any,
    sequence_tokens: int = 256,
    *,
    validation_fraction: float = 0.05,
    rules: CleaningRules | None = None,
    progress: Progress | None = None,
) -> PreparedData:
    """Clean, filter, deduplicate, split, tokenize and pack, with the yield of each step.

    Args:
        documents: what was read.
        tokenizer: a tokenizer of transformers, with an end-of-text token.
        sequence_tokens: length of a training sequence, at least 2.
        validation_fraction: fraction of the documents that is held out.
        rules: what is kept; the defaults of `CleaningRules` when None.
        progress: called with the fraction done and what is being done.

    Raises:
        InputError: nothing is left, or too little for one sequence on either side.
    """
    if sequence_tokens < 2:
        raise InputError(f"sequence_tokens is {sequence_tokens}; allowed is 2 or more")
    kept = select(documents, rules or CleaningRules(), part_of(progress, 0.0, 0.6))
    train_documents, validation_documents = split(kept.documents, validation_fraction)
    sides = {}
    tokens = 0
    for side, members, span in (
        ("training", train_documents, (0.6, 0.95)),
        ("validation", validation_documents, (0.95, 1.0)),
    ):
        rows = tokenize(members, tokenizer, part_of(progress, *span))
        side_tokens = sum(row.size for row in rows)
        tokens += side_tokens
        sides[side] = pack(rows, sequence_tokens)
        if not sides[side].size:
            raise InputError(
                f"{side} text has {side_tokens} tokens, fewer than one sequence of {sequence_tokens}; "
                "give more text, shorter sequences or another validation_fraction"
            )
    per_token = kept.steps[-1][2] / tokens
    digest = hashlib.sha256(sides["training"].tobytes() + b"|" + sides["validation"].tobytes()).hexdigest()
    packed_tokens = sum(int(side.size) for side in sides.values())
    steps = [StepYield(*step, tokens=round(step[2] / per_token)) for step in kept.steps]
    steps.append(StepYield("tokenized", len(kept.documents), kept.steps[-1][2], tokens))
    steps.append(StepYield("packed", len(kept.documents), round(packed_tokens * per_token), packed_tokens))
    report = DataReport(
        steps=steps,
        removed_documents=kept.removed,
        characters_per_token=per_token,
        train_documents=len(train_documents),
        validation_documents=len(validation_documents),
        train_tokens=int(sides["training"].size),
        validation_tokens=int(sides["validation"].size),
        sequence_tokens=sequence_tokens,
        content_hash=digest,
    )
    return PreparedData(
        sides["training"], sides["validation"], len(tokenizer), tokenizer.eos_token_id, report
    )


@dataclass(frozen=True)
class Selection:
    """What cleaning and deduplication kept, (step, documents, characters) on the way, what they removed."""

    documents: list[Document]
    steps: list[tuple[str, int, int]]
    removed: dict[str, int] = field(default_factory=dict)


def select(
    documents: Sequence[Document], rules: CleaningRules, progress: Progress | None = None
) -> Selection:
    """Clean, cut, filter and deduplicate; of equal or resembling documents the first stays.

    Raises:
        InputError: nothing is left.
    """
    removed: Counter[str] = Counter()
    cleaned: list[Document] = []
    for index, document in enumerate(documents):
        for piece in cut(clean(document.text), rules.max_document_characters):
            reason = reason_to_remove(piece, rules)
            if reason is None:
                cleaned.append(Document(piece, document.source))
            else:
                removed[reason] += 1
        if progress is not None and index % 256 == 0:
            progress(index / len(documents) / 2, Message("cleaning"))
    first_of = {content_hash(document.text): document for document in reversed(cleaned)}
    exact = [document for document in cleaned if first_of[content_hash(document.text)] is document]
    removed["exact duplicate"] = len(cleaned) - len(exact)
    kept = exact
    if rules.near_duplicate_similarity is not None:
        verdicts = near_duplicates(
            [document.text for document in exact],
            rules.near_duplicate_similarity,
            part_of(progress, 0.5, 1.0),
        )
        kept = [document for document, earlier in zip(exact, verdicts, strict=True) if earlier is None]
    removed["near duplicate"] = len(exact) - len(kept)
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in removed.items() if count)
        raise InputError(
            f"no text is left of {len(documents)} document(s) after cleaning ({reasons or 'none read'})"
        )
    steps = [
        (step, len(members), sum(len(document.text) for document in members))
        for step, members in (
            ("read", documents),
            ("cleaned", cleaned),
            ("deduplicated", exact),
            ("near-deduplicated", kept),
        )
    ]
    return Selection(kept, steps, {reason: count for reason, count in removed.items() if count})


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer (the kind that GPT-2 and BLOOM have) learnt from `texts`, for transformers.

    Raises:
        InputError: `vocab_size` cannot hold the 256 bytes and the end-of-text token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    end_of_text = "<|endoftext|>"
    if vocab_size < 257:
        raise InputError(f"vocab_size is {vocab_size}; allowed is 257 (256 bytes and end of text) or more")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end_of_text],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end_of_text, bos_token=end_of_text, unk_token=end_of_text
    )


def _text_files(folder: Path) -> list[Path]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in TEXT_SUFFIXES + JSONL_SUFFIXES and path.is_file()
    )
    if not files:
        raise InputError(
            f"{folder}: no text in this folder; looked for {', '.join(TEXT_SUFFIXES + JSONL_SUFFIXES)}"
        )
    return files


def _read_utf8(path: Path) -> str:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8; allowed is UTF-8"
        ) from None
    return text


def _read_text(path: Path) -> list[Document]:
    return [Document(_read_utf8(path), str(path))]


def _read_jsonl(path: Path) -> list[Document]:
    documents = []
    # JSON strings may hold U+2028 and the like, which str.splitlines() would break.
    for number, line in enumerate(_read_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{place}: not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(row, dict) or "text" not in row:
            found = (
                f"keys {', '.join(map(repr, row)) or 'none'}" if isinstance(row, dict) else type(row).__name__
            )
            raise InputError(f'{place}: found {found}; allowed is an object with the key "text"')
        if not isinstance(row["text"], str):
            raise InputError(f'{place}: "text" is {row["text"]!r:.40}; allowed is a string')
        documents.append(Document(row["text"], place))
    return documents
