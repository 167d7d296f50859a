"""Settings in YAML files: plain values with the line of every key, or a one-line error.

YAML can construct types and can expand a few bytes into gigabytes; neither belongs in settings, so tags and
documents of unusual size are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.representer import RoundTripRepresenter

from engine.errors import InputError

LARGEST_FILE_BYTES = 1_000_000
_MOST_VALUES = 10_000
_DEEPEST = 16


class _Representer(RoundTripRepresenter):
    """Writes null where ruamel would omit the value, so that a saved file loads as the same values."""


_Representer.add_representer(
    type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null")
)


def round_trip_yaml() -> YAML:
    """A YAML reader and writer that keeps comments and quotes."""
    yaml = YAML(typ="rt", pure=True)
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 4096
    return yaml


def read_mapping(file: Path, allowed: str) -> CommentedMap:
    """The mapping of keys to values that a YAML file holds, with the line of each.

    Raises:
        InputError: too large, not UTF-8, not YAML (with line and column), or no mapping; the message quotes `allowed`.
    """
    if file.stat().st_size > LARGEST_FILE_BYTES:  # before it is read
        raise InputError(f"{file}: {file.stat().st_size:,} bytes, allowed: at most {LARGEST_FILE_BYTES:,}")
    return mapping_in(file.read_bytes(), str(file), allowed)


def mapping_in(content: bytes, file: str, allowed: str) -> CommentedMap:
    """The mapping in a file's content; `file` is its name in the error messages.

    Raises:
        InputError: as `read_mapping`.
    """
    if len(content) > LARGEST_FILE_BYTES:
        raise InputError(f"{file}: {len(content):,} bytes, allowed: at most {LARGEST_FILE_BYTES:,}")
    try:
        document = round_trip_yaml().load(content.decode("utf-8-sig"))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InputError(f"{file}: {where}not YAML: {error.problem or error.context}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start}: not UTF-8 text") from None
    except (YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{file}: not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(document, CommentedMap):
        found = "nothing" if document is None else "no mapping of keys to values"
        raise InputError(f"{file}: found {found}, allowed: {allowed}")
    return document


def plain_values(document: Any, file: str) -> dict[str, Any]:
    """The document as plain Python values.

    Raises:
        InputError: a tag, or a document with too many values or levels.
    """
    budget = _MOST_VALUES

    def walk(node: Any, depth: int) -> Any:
        nonlocal budget
        budget -= 1
        if budget < 0 or depth > _DEEPEST:
            raise InputError(
                f"{file}: more than {_MOST_VALUES:,} values or {_DEEPEST} levels, allowed: fewer"
            )
        if isinstance(node, TaggedScalar):
            raise InputError(f"{file}: found the YAML tag {node.tag.value}, allowed: plain values")
        if isinstance(node, Mapping):
            return {str(key): walk(value, depth + 1) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return [walk(value, depth + 1) for value in node]
        for kind in (bool, int, float, str):
            if isinstance(node, kind):
                return kind(node)
        # ruamel keeps an anchored yes/no in an int; everything else (dates, null) is left to the schema.
        return node

    plain: dict[str, Any] = walk(document, 0)
    return plain
