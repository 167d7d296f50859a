"""Bytes of each token of a vocabulary.

A byte-level vocabulary (GPT-2, Llama 3, Qwen, SmolLM) writes each of the 256 bytes as a printable character: printable
bytes as themselves, the others as U+0100 onwards in their order. A SentencePiece vocabulary (Llama 2, Gemma) writes a
space as ▁ and a single byte as <0xE2>. Special tokens have no bytes.
"""

from __future__ import annotations

import re
from typing import Any

_SINGLE_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PRINTS = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]


def token_bytes(tokenizer: Any, vocab_size: int) -> list[bytes]:
    """Bytes of each token id below `vocab_size`; empty for special tokens and for ids without a token."""
    others = [byte for byte in range(256) if byte not in _PRINTS]
    byte_of = {chr(byte): byte for byte in _PRINTS}
    byte_of |= {chr(0x100 + index): byte for index, byte in enumerate(others)}
    added = tokenizer.added_tokens_decoder
    names = tokenizer.convert_ids_to_tokens(range(min(vocab_size, len(tokenizer))))
    in_bytes = not any(name and "\u2581" in name for name in names)  # ▁ is no byte's character
    found = []
    for token, name in enumerate(names):
        if token in added:
            special = added[token].special or token in tokenizer.all_special_ids
            found.append(b"" if special else added[token].content.encode())
        elif name is None:
            found.append(b"")
        elif single := _SINGLE_BYTE.fullmatch(name):
            found.append(bytes([int(single[1], 16)]))
        elif in_bytes and all(character in byte_of for character in name):
            found.append(bytes(byte_of[character] for character in name))
        else:
            found.append(name.replace("\u2581", " ").encode())
    return found + [b""] * (vocab_size - len(found))
