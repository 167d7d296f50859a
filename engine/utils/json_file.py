"""Read JSON that may have been edited or cut off into dataclasses, checking every key and type.

The engine reads its artefacts without pydantic. All numbers in them are quantities: negative, infinite and
NaN are refused. Every complaint is one line: file, key, what was found, what is allowed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import InputError

T = TypeVar("T")


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: missing, unreadable, not UTF-8, not JSON (says the line), or not an object.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a JSON text (byte {error.start} is not UTF-8)") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise InputError(f"{path}: {where}: not valid JSON, perhaps cut off ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: found {_kind(value)} at the top, allowed is an object")
    return value


def build(cls: type[T], value: Any, file: str, key: str = "") -> T:
    """A `cls` (dataclass) from a JSON object; nested dataclasses, tuples, lists and optional fields follow.

    Fields with a default may be missing. Annotated types understood: str, bool, int, float, X | None,
    tuple[X, ...], tuple[X, Y], list[X], dict[str, X], Any (scalars and containers of them), dataclasses,
    Literal.

    Raises:
        InputError: a key is missing or unknown, a type is wrong, a number is negative or not finite.
    """
    if not isinstance(value, dict):
        raise _wrong(file, key, value, "an object")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for name in value:
        if name not in fields:
            raise InputError(f"{file}: {_join(key, name)}: unknown key, allowed: {', '.join(fields)}")
    hints = typing.get_type_hints(cls)
    arguments = {}
    for name, spec in fields.items():
        if name in value:
            arguments[name] = _check(hints[name], value[name], file, _join(key, name))
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise InputError(f"{file}: {_join(key, name)}: missing")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise InputError(f"{file}: {key or 'file'}: {error}") from None


def _check(hint: Any, value: Any, file: str, key: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _check(next(part for part in inner if part is not type(None)), value, file, key)
    if origin is typing.Literal:
        if value not in inner:
            raise _wrong(file, key, value, " or ".join(repr(choice) for choice in inner))
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, file, key)
    if origin in (tuple, list):
        return _check_sequence(origin, inner, value, file, key)
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(file, key, value, "an object")
        return {name: _check(inner[1], item, file, _join(key, name)) for name, item in value.items()}
    return _check_scalar(hint, value, file, key)


def _check_sequence(origin: type, inner: tuple[Any, ...], value: Any, file: str, key: str) -> Any:
    if not isinstance(value, list):
        raise _wrong(file, key, value, "a list")
    if origin is tuple and inner[-1] is not Ellipsis:
        if len(value) != len(inner):
            raise _wrong(file, key, value, f"a list of {len(inner)}")
        hints = list(inner)
    else:
        hints = [inner[0]] * len(value)
    pairs = enumerate(zip(hints, value, strict=True))
    return origin(_check(hint, item, file, f"{key}[{i}]") for i, (hint, item) in pairs)


def _check_scalar(hint: Any, value: Any, file: str, key: str) -> Any:
    if hint in (int, float) or hint is Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and not (value >= 0 and math.isfinite(value)):
            raise _wrong(file, key, value, "a finite number ≥ 0")
        if hint is Any:
            return value
        if not number or (hint is int and not isinstance(value, int)):
            raise _wrong(file, key, value, "a whole number ≥ 0" if hint is int else "a number ≥ 0")
        return hint(value)
    if not isinstance(value, hint):
        raise _wrong(file, key, value, {str: "a text", bool: "true or false"}[hint])
    return value


def _wrong(file: str, key: str, value: Any, allowed: str) -> InputError:
    return InputError(f"{file}: {key or 'file'}: found {_kind(value)}, allowed is {allowed}")


def _kind(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
