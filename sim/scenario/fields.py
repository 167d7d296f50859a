"""What the schema says to people: one-line errors, and comments for generated YAML."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from engine.errors import InputError

Loc = tuple[Any, ...]


class Problem(NamedTuple):
    """A mistake that no single key shows."""

    key: str  # dotted
    found: str  # what is wrong
    allowed: str = ""

    def error(self, where: str) -> InputError:
        """The error of a file; `where`: file, line and key."""
        allowed = f", allowed: {self.allowed}" if self.allowed else ""
        return InputError(f"{where}: {self.found}{allowed}", allowed=self.allowed)


def explain(
    error: ValidationError, schema: type[BaseModel], file: str, document: CommentedMap | None = None
) -> InputError:
    """The first mistake (in the order of the file) in one line: file, line, key, found, allowed."""
    # A missing key comes last: it is often the other half of a misspelt one.
    located = [
        (item["type"] == "missing", line_of(document, item["loc"]) or 0, position, item)
        for position, item in enumerate(error.errors())
    ]
    _, line, _, item = min(located, key=lambda entry: entry[:3])
    key = ".".join(str(part) for part in item["loc"])
    where = f"{file}: line {line}: {key}" if line else f"{file}: {key}"
    if item["type"] == "extra_forbidden":
        return InputError(f"{where}: unknown key, {_nearest(item['loc'], schema)}")
    if item["type"] == "value_error":  # a section whose keys contradict each other says so itself
        return InputError(f"{where}: {item['ctx']['error']}")
    field = field_at(schema, item["loc"])
    allowed = _allowed(field) if field is not None else item["msg"]
    found = "missing" if item["type"] == "missing" else f"found {_found(item['input'])}"
    return InputError(f"{where}: {found}, allowed: {allowed}", allowed=allowed)


def line_of(document: CommentedMap | None, loc: Loc) -> int | None:
    """Line (from 1) of the deepest part of a key path that stands in the file."""
    node: Any = document
    line = None
    for part in loc:
        if isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
            line = node.lc.item(part)[0] + 1
        elif isinstance(node, CommentedMap) and part in node:
            line = node.lc.key(part)[0] + 1 if part in (node.lc.data or {}) else line
        else:
            break
        node = node[part]
    return line


def field_at(schema: type[BaseModel], loc: Loc) -> FieldInfo | None:
    """The schema's field at a key path; for an entry of a mapping of sections, the mapping's own field."""
    field: FieldInfo | None = None
    owner: type[BaseModel] | None = schema
    name_follows = False  # the next part names an entry, whatever fields are called
    for part in loc:
        if name_follows:
            name_follows = False
        elif owner is None:
            return field
        elif part in owner.model_fields:
            field = owner.model_fields[part]
            owner = _section(field.annotation)
            name_follows = owner is not None and get_origin(field.annotation) in (dict, list, tuple)
        else:
            return None
    return field


def leaves(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, FieldInfo]]:
    """(dotted key, value, field) of every single value of a scenario, in the order of the schema.

    Not of `uncertainty`, which holds no assumption about the company.
    """
    for name, field in type(model).model_fields.items():
        yield from _leaves_of(f"{prefix}{name}", getattr(model, name), field)


def commented_yaml(
    model: BaseModel, indent: str = "", written: Mapping[str, str] | None = None, prefix: str = ""
) -> str:
    """YAML of a model, each key with its meaning and unit as a comment; features that are off are left out.

    `written`: {dotted key: text} of values that are written otherwise than as their number (distributions).
    """
    written = written or {}
    lines = []
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if is_off(field, value):
            continue
        unit = unit_of(field)
        comment = f"# {field.description}{f' [{unit}]' if unit else ''}"
        source = source_of(field, value)
        if source:
            comment += f"; {', '.join(part for part in source if part)}"
        if isinstance(value, BaseModel):
            inner = commented_yaml(value, indent + "  ", written, f"{prefix}{name}.")
            if inner:
                lines += ["", f"{indent}{comment}", f"{indent}{name}:", inner]
        elif isinstance(value, dict) and value:
            lines += [f"{indent}{comment}", f"{indent}{name}:"]
            for key, entry in value.items():
                if isinstance(entry, BaseModel):
                    deeper = f"{prefix}{name}.{key}."
                    lines += [f"{indent}  {key}:", commented_yaml(entry, indent + "    ", written, deeper)]
                else:
                    text = written.get(f"{prefix}{name}.{key}") or _scalar(entry)
                    lines.append(f"{f'{indent}  {key}: {text}':<46} # [{unit}]")
        else:
            text = written.get(f"{prefix}{name}") or _scalar(value)
            lines.append(f"{f'{indent}{name}: {text}':<46} {comment}")
    return "\n".join(lines)


def is_off(field: FieldInfo, value: Any) -> bool:
    """Whether a value is that of an optional feature that is not used."""
    extra = field.json_schema_extra
    if isinstance(extra, Mapping) and extra.get("optional"):
        return bool(value == field.get_default(call_default_factory=True))
    return value is None and _section(field.annotation) is not None


def unit_of(field: FieldInfo) -> str:
    """The field's unit, "" when it has none."""
    extra = field.json_schema_extra
    return str(extra.get("unit") or "") if isinstance(extra, Mapping) else ""


def source_of(field: FieldInfo, value: Any) -> tuple[str, str] | None:
    """(source, date) of a field's default while the value is that default, else None."""
    extra = field.json_schema_extra
    if isinstance(extra, Mapping) and extra.get("source") and value == field.default:
        return str(extra["source"]), str(extra.get("date") or "")
    return None


def _leaves_of(key: str, value: Any, field: FieldInfo) -> Iterator[tuple[str, Any, FieldInfo]]:
    if key == "uncertainty":
        return
    if isinstance(value, BaseModel):
        yield from leaves(value, f"{key}.")
    elif isinstance(value, dict):
        for name, entry in value.items():
            if key != "sources":
                yield from _leaves_of(f"{key}.{name}", entry, field)
    else:
        yield key, value, field


def _scalar(value: Any) -> str:
    """A single value as YAML; large and small numbers in scientific notation."""
    if isinstance(value, float):
        if value == 0 or 1e-4 <= abs(value) < 1e6:
            return f"{value:.12g}"
        digits, exponent = f"{value:.12e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, list):
        plain = [entry.model_dump() if isinstance(entry, BaseModel) else entry for entry in value]
        return json.dumps(plain, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section class that an annotation holds: itself, or as the values of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        section = _section(inner)
        if section is not None:
            return section
    return None


def _nearest(loc: Loc, schema: type[BaseModel]) -> str:
    parent = field_at(schema, loc[:-1]) if len(loc) > 1 else None
    owner = _section(parent.annotation) if parent is not None else schema
    here = list(owner.model_fields) if owner is not None else []
    wanted = str(loc[-1])
    near = difflib.get_close_matches(wanted, here, n=1, cutoff=0.6)
    if near:
        return f"nearest is {near[0]}"
    elsewhere: dict[str, str] = {}
    for key in _all_keys(schema):
        elsewhere.setdefault(key.rsplit(".", 1)[-1], key)  # the first is the plainest
    if wanted in elsewhere:
        return f"it belongs at {elsewhere[wanted]}"
    near = difflib.get_close_matches(wanted, here, n=1, cutoff=0.0)
    return f"nearest is {near[0]}" if near else "allowed: no key here"


def _all_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        section = _section(field.annotation)
        if section is None:
            yield f"{prefix}{name}"
        else:
            named = "NAME." if get_origin(field.annotation) is dict else ""
            yield from _all_keys(section, f"{prefix}{name}.{named}")


def _allowed(field: FieldInfo) -> str:
    annotation = field.annotation
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)] or [annotation]
    nullable = type(None) in get_args(annotation)
    if get_origin(annotation) is dict:
        section = _section(annotation)
        words = "a mapping of names to " + ("sections" if section else "values")
        if any(getattr(rule, "min_length", 0) for rule in field.metadata):
            words += ", at least one"
        return f"{words} ({field.description})"
    if get_origin(annotation) is list:
        return f"a list of {'sections' if _section(annotation) else unit_of(field)} ({field.description})"
    if _section(annotation) is not None:
        return f"a section of keys ({field.description})"
    if all(isinstance(kind, str) for kind in kinds):
        return f"{', '.join(str(kind) for kind in kinds)} ({field.description})"
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
    words = names.get(kinds[0], str(kinds[0]))
    for rule in field.metadata:
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            bound = getattr(rule, name, None)
            if bound is not None:
                words += f" {sign} {bound:g}"
    unit = unit_of(field)
    words = (
        f"{words}, in {unit}" if unit and kinds[0] in (float, int) else f"{words} ({unit})" if unit else words
    )
    return f"{words} ({field.description})" + (" or null" if nullable else "")


def _found(value: Any) -> str:
    if isinstance(value, str):
        return f"{value!r} (text)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"{value}"
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else f"{value!r}"
