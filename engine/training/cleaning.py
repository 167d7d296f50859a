"""Clean one text, and decide whether it is worth training on.

The filters follow the quality rules of Gopher (Rae et al. 2021, arXiv:2112.11446, appendix A1), in a form
that does not depend on the language of the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class CleaningRules:
    """What a document must be like to stay; fractions lie between 0 and 1."""

    min_characters: int = 100
    max_repeated_line_fraction: float = (
        0.3  # of the lines that are not blank, those seen before in the document
    )
    max_symbol_fraction: float = 0.4  # punctuation and symbols among the characters that are not white space
    max_document_characters: int = (
        20_000  # longer texts are cut at a paragraph, so that a book can be split too
    )
    near_duplicate_similarity: float | None = 0.8  # None: keep near-duplicates


def clean(text: str) -> str:
    """Text in Unicode NFC without control characters and surplus white space; cleaning twice changes nothing.

    Line ends become \\n, runs of spaces inside a line one space, three and more line ends two; indentation
    stays, since code has meaning in it.
    """
    text = _LINE_ENDS.sub("\n", text)
    text = unicodedata.normalize("NFC", _CONTROL.sub("", text))
    text = _INDENT_SPACE.sub(" ", text)
    text = _INNER_SPACE.sub(" ", text)
    text = _TRAILING_SPACE.sub("", text)
    return _BLANK_LINES.sub("\n\n", text).strip("\n")


_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# Also zero-width space, byte-order mark, and halves of surrogate pairs, which JSON may hold.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u200b\ufeff\ud800-\udfff]")
_INDENT_SPACE = re.compile(r"[^\S\n\t ]")
_INNER_SPACE = re.compile(r"(?<=[^\s])[ \t]+(?=[^\s])")
_TRAILING_SPACE = re.compile(r"[ \t]+(?=\n|\Z)")
_BLANK_LINES = re.compile(r"\n{3,}")


def reason_to_remove(text: str, rules: CleaningRules) -> str | None:
    """Name of the first rule that the cleaned `text` breaks, or None: too short, repeated lines, symbols."""
    if len(text) < rules.min_characters:
        return "too short"
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) - len(set(lines)) > rules.max_repeated_line_fraction * len(lines):
        return "repeated lines"
    counts = Counter(text)
    visible = symbols = 0
    for character, count in counts.items():
        if not character.isspace():
            visible += count
            symbols += count * (unicodedata.category(character)[0] in "PS")
    return "symbols" if symbols > rules.max_symbol_fraction * visible else None


def cut(text: str, max_characters: int) -> list[str]:
    """Pieces of at most `max_characters`, cut at a paragraph, else a line, else a space, else anywhere."""
    pieces = []
    while len(text) > max_characters:
        ends = (text.rfind(mark, 1, max_characters) for mark in ("\n\n", "\n", " "))
        end = next((end for end in ends if end > max_characters // 2), max_characters)
        pieces.append(text[:end].strip("\n "))
        text = text[end:].lstrip("\n ")
    return [*pieces, text]
