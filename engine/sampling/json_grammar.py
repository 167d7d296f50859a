"""JSON mode: masks of the tokens after which the output can still end as a JSON object within its remaining tokens.

A pushdown automaton reads the output byte by byte: the grammar of RFC 8259 over UTF-8 (RFC 3629, well-formed only),
from the opening brace of one object to its closing one. For the automaton's state, a walk through the vocabulary's
trie finds for each token the least number of bytes from there to the end of the object, or that the token is not
allowed. A token is allowed if at least that many tokens remain: so every output of two tokens or more is a complete
object, whatever max_tokens is.

Two limits that RFC 8259 leaves open: containers are at most 64 deep, and numbers at most 32 characters long.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.errors import InputError

NEVER = np.iinfo(np.int16).max  # bytes missing after a token that is not allowed
_DEEPEST = 64
_LONGEST_NUMBER = 32
_MOST_STATES = 256  # whose tokens are remembered; of a vocabulary of 50,000 each takes 100 KB
_CLOSING = frozenset(b'{}[]":0truefalsn\x80\x90\xa0')  # what the shortest ways consist of

_SPACE, _DIGITS, _HEX = frozenset(b" \t\n\r"), frozenset(b"0123456789"), frozenset(b"0123456789abcdefABCDEF")
_ESCAPED = frozenset(b'"\\/bfnrt')
_LITERALS = {literal[0]: literal[1:] for literal in (b"true", b"false", b"null")}
# First byte of a character: the allowed second bytes, and how many more follow.
_SECOND = dict.fromkeys(range(0xC2, 0xE0), (0x80, 0xBF, 0)) | dict.fromkeys(
    range(0xE1, 0xF0), (0x80, 0xBF, 1)
)
_SECOND |= {0xE0: (0xA0, 0xBF, 1), 0xED: (0x80, 0x9F, 1), 0xF0: (0x90, 0xBF, 2), 0xF4: (0x80, 0x8F, 2)}
_SECOND |= dict.fromkeys(range(0xF1, 0xF4), (0x80, 0xBF, 2))
# A number by its part: which part a byte leads to; a number may end in the parts of _COMPLETE.
_PARTS: dict[str, dict[str, str]] = {
    "-": {"0": "0", "1": "int"},
    "0": {".": ".", "e": "e"},
    "int": {"1": "int", "0": "int", ".": ".", "e": "e"},
    ".": {"1": "fraction", "0": "fraction"},
    "fraction": {"1": "fraction", "0": "fraction", ".": "", "e": "e"},
    "e": {"+": "sign", "1": "exponent", "0": "exponent"},
    "sign": {"1": "exponent", "0": "exponent"},
    "exponent": {"1": "exponent", "0": "exponent"},
}
_COMPLETE = frozenset(("0", "int", "fraction", "exponent"))


class GrammarState(NamedTuple):
    """State of the automaton: the position in a JSON object.

    `place`: "start", "first key", "key", "colon", "value", "first value", "after", "literal", "number", "string" or
    "done". `containers`: the open ones, "{" or "[", the outermost first. `part` and `left` are details of a place: the
    missing bytes of a literal; part and length of a number; whether a string is a key, and the bytes that an escape or
    a multi-byte character still needs.
    """

    place: str
    containers: str = ""
    part: Any = None
    left: Any = None


START = GrammarState("start")


def advance(state: GrammarState, byte: int) -> GrammarState | None:
    """The state after one more byte; None if the byte is not allowed."""
    place, containers = state.place, state.containers
    if place == "string":
        return _in_string(state, byte)
    if place == "number":
        after = _in_number(state, byte)
        if after is not None or state.part not in _COMPLETE:
            return after
        place = "after"
    if place == "literal":
        if byte != state.part[0]:
            return None
        rest = state.part[1:]
        return GrammarState("literal", containers, rest) if rest else GrammarState("after", containers)
    if byte in _SPACE:
        return None if place == "done" else GrammarState(place, containers)
    if place == "start":
        return GrammarState("first key", "{") if byte == 0x7B else None
    if place in ("first key", "key") and byte == 0x22:
        return GrammarState("string", containers, True)
    if place == "colon":
        return GrammarState("value", containers) if byte == 0x3A else None
    if place in ("value", "first value") and (begun := _begin_value(containers, byte)):
        return begun
    inside = containers[-1:]
    if place == "after" and byte == 0x2C:
        return GrammarState("key" if inside == "{" else "value", containers)
    closes = (byte == 0x7D and inside == "{" and place in ("first key", "after")) or (
        byte == 0x5D and inside == "[" and place in ("first value", "after")
    )
    if not closes:
        return None
    return GrammarState("after", containers[:-1]) if len(containers) > 1 else GrammarState("done")


def missing_bytes(state: GrammarState) -> int:
    """Least number of bytes to the end of the object."""
    place, depth = state.place, len(state.containers)
    if place in ("first key", "first value", "after"):
        return depth
    if place == "start":
        return 2
    if place == "value":
        return 1 + depth
    if place == "colon":
        return 2 + depth
    if place == "key":
        return 4 + depth
    if place == "literal":
        return len(state.part) + depth
    if place == "number":
        return depth + (0 if state.part in _COMPLETE else 1)
    if place == "string":
        inner = 0
        if state.left is not None:  # "\\", ("hex", digits), (lowest, highest, more)
            inner = (
                1 if state.left == "\\" else state.left[1] if state.left[0] == "hex" else 1 + state.left[2]
            )
        return inner + 1 + depth + (2 if state.part else 0)
    return 0  # done


def _begin_value(containers: str, byte: int) -> GrammarState | None:
    if byte == 0x22:
        return GrammarState("string", containers, False)
    if byte in (0x7B, 0x5B):
        if len(containers) == _DEEPEST:
            return None
        return GrammarState("first key" if byte == 0x7B else "first value", containers + chr(byte))
    if byte in _LITERALS:
        return GrammarState("literal", containers, _LITERALS[byte])
    if byte == 0x2D:
        return GrammarState("number", containers, "-", 1)
    if byte in _DIGITS:
        return GrammarState("number", containers, "0" if byte == 0x30 else "int", 1)
    return None


def _in_number(state: GrammarState, byte: int) -> GrammarState | None:
    kind = chr(byte)
    kind = "1" if kind in "123456789" else "e" if kind in "eE" else "+" if kind in "+-" else kind
    part = _PARTS[state.part].get(kind)
    # What has to follow an "e" or a "." still finds room.
    longest = _LONGEST_NUMBER - (0 if part in _COMPLETE else 2)
    if not part or state.left >= longest:
        return None
    return GrammarState("number", state.containers, part, state.left + 1)


def _in_string(state: GrammarState, byte: int) -> GrammarState | None:
    _, containers, is_key, needs = state
    plain = GrammarState("string", containers, is_key)
    if needs is None:
        if byte == 0x22:
            return GrammarState("colon" if is_key else "after", containers)
        if byte == 0x5C:
            return GrammarState("string", containers, is_key, "\\")
        if byte < 0x80:
            return plain if byte >= 0x20 else None
        return GrammarState("string", containers, is_key, _SECOND[byte]) if byte in _SECOND else None
    if needs == "\\":
        if byte == 0x75:
            return GrammarState("string", containers, is_key, ("hex", 4))
        return plain if byte in _ESCAPED else None
    if needs[0] == "hex":
        if byte not in _HEX:
            return None
        return plain if needs[1] == 1 else GrammarState("string", containers, is_key, ("hex", needs[1] - 1))
    lowest, highest, more = needs
    if not lowest <= byte <= highest:
        return None
    return GrammarState("string", containers, is_key, (0x80, 0xBF, more - 1)) if more else plain


class _Node:
    """A place in the trie of a vocabulary: the tokens that end here, and where a byte leads."""

    __slots__ = ("next", "tokens")

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.next: dict[int, _Node] = {}


_PLAIN = re.compile(rb'[^"\\\x00-\x1f]+')


class JsonTokens:
    """A vocabulary as a trie of bytes, and its JSON masks."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        """Build the trie.

        Args:
            token_bytes: the bytes of each token; empty for tokens without a text.

        Raises:
            InputError: some byte that an object may need is not a token, so an object could not always be closed.
        """
        self.token_bytes = token_bytes
        missing = _CLOSING - {text[0] for text in token_bytes if len(text) == 1}
        if missing:
            raise InputError(
                f"response_format: found no token for {bytes(sorted(missing))!r}, so this model's JSON could not "
                "always be closed; allowed is a vocabulary with a token for each byte"
            )
        plain = [bool(_PLAIN.fullmatch(text)) and _is_utf8(text) for text in token_bytes]
        self._plain = np.array(plain)  # which leave a string's inside as it is
        self._all, self._others = _Node(), _Node()
        for token, text in enumerate(token_bytes):
            if text:
                _insert(self._all, token, text)
                if not plain[token]:
                    _insert(self._others, token, text)
        self._found: OrderedDict[GrammarState, npt.NDArray[np.int16]] = OrderedDict()

    def missing_after(self, state: GrammarState) -> npt.NDArray[np.int16]:
        """Least number of bytes to the end of the object after each token, or `NEVER`; [vocabulary]."""
        found = self._found.get(state)
        if found is None:
            found = np.full(len(self.token_bytes), NEVER, np.int16)
            inside_string = state.place == "string" and state.left is None
            if inside_string:
                found[self._plain] = missing_bytes(state)
            _walk(self._others if inside_string else self._all, state, found)
            self._found[state] = found
            if len(self._found) > _MOST_STATES:
                self._found.popitem(last=False)
        self._found.move_to_end(state)
        return found


class JsonAnswer:
    """JSON state of one output while it is generated."""

    def __init__(self, tokens: JsonTokens, max_tokens: int) -> None:
        self._tokens, self._max_tokens = tokens, max_tokens
        self._state, self._read = START, 0

    def is_complete(self, token_ids: Sequence[int]) -> bool:
        """The output tokens are a complete object."""
        return self._after(token_ids).place == "done"

    def forbidden(self, token_ids: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Mask of the tokens that are not allowed next; [vocabulary]."""
        left = self._max_tokens - len(token_ids) - 1
        missing = self._tokens.missing_after(self._after(token_ids))
        found = missing > left
        # Fewer than two tokens close nothing: then a beginning has to do.
        return missing == NEVER if found.all() else found

    def _after(self, token_ids: Sequence[int]) -> GrammarState:
        for token in token_ids[self._read :]:
            for byte in self._tokens.token_bytes[token]:
                self._state = advance(self._state, byte) or self._state
        self._read = len(token_ids)
        return self._state


def _insert(node: _Node, token: int, text: bytes) -> None:
    for byte in text:
        node = node.next.setdefault(byte, _Node())
    node.tokens.append(token)


def _walk(root: _Node, state: GrammarState, found: npt.NDArray[np.int16]) -> None:
    """Record the missing bytes after each allowed token below `root`."""
    todo = [(root, state)]
    while todo:
        node, here = todo.pop()
        if node.tokens:
            found[node.tokens] = missing_bytes(here)
        for byte, child in node.next.items():
            after = advance(here, byte)
            if after is not None:
                todo.append((child, after))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
