"""A link that reproduces a view: the edits of a scenario, written into the page's address and read from it.

The scenario's name, the levers, the seed, the language and the pages' own choices are bound to the address by their
widgets. All other edits stand in it as `set=key:value`, once for each, with the value as in YAML.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import streamlit as st
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from engine.errors import InputError
from sim.scenario.scenario import Scenario
from sim.utils.yaml_file import plain_values

_PARAMETER = "set"
_MOST_EDITS = 200
_LONGEST_VALUE = 2000


def as_text(value: Any) -> str:
    """A value as it is written in YAML, in one line: 1e11, true, null, [1, 2]."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, str) and from_text(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, int) else str(value)


def from_text(text: str) -> Any:
    """A value as YAML reads it, like `--set` on the command line; text that is no YAML stays text.

    Raises:
        InputError: longer than any value, or one that unfolds without end.
    """
    if len(text) > _LONGEST_VALUE:
        raise InputError(f"found {len(text):,} characters, allowed: at most {_LONGEST_VALUE:,}")
    try:
        found = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, RecursionError, ValueError):
        return text  # the schema then says what is allowed
    return plain_values({"value": found}, "value")["value"]


def edits_of(base: Scenario) -> tuple[dict[str, Any], list[str]]:
    """({key: value} of the edits in the address that the scenario takes, why others are left out).

    Each is tried alone, so that one wrong edit takes no other with it.
    """
    edits: dict[str, Any] = {}
    refused = []
    for entry in st.query_params.get_all(_PARAMETER)[:_MOST_EDITS]:
        key, colon, text = entry.partition(":")
        try:
            if not colon:
                raise InputError(f"found {entry[:80]!r}, allowed: key:value")
            value = from_text(text)
            base.override({**edits, key: value})
        except InputError as error:
            refused.append(f"{_PARAMETER}={key[:80]}: {error}")
        else:
            edits[key] = value
    return edits, refused


def changed_by_browser() -> bool:
    """Whether the address has other edits than this session wrote last: a link was opened, or Back pressed."""
    found = st.query_params.get_all(_PARAMETER)
    return bool(found) and found != st.session_state.get("edits_written")


def write_edits(edits: dict[str, Any]) -> None:
    """Put the edits into the address."""
    wanted = [f"{key}:{as_text(value)}" for key, value in edits.items()]
    st.session_state["edits_written"] = wanted
    if st.query_params.get_all(_PARAMETER) != wanted:
        if wanted:
            st.query_params[_PARAMETER] = wanted
        else:
            st.query_params.pop(_PARAMETER, None)


def address(bound: dict[str, Any], edits: dict[str, Any]) -> str:
    """The link to this page with these bound values and edits."""
    pairs = [(key, as_text(value)) for key, value in bound.items()]
    pairs += [(_PARAMETER, f"{key}:{as_text(value)}") for key, value in edits.items()]
    return urlunsplit(urlsplit(str(st.context.url or ""))._replace(query=urlencode(pairs)))


def choice(
    widget: Callable[..., Any], label: str, options: Mapping[str, str], *, key: str, **more: Any
) -> str:
    """One of a few options whose labels are translated, in the address by its own name (`?section=market`).

    `bind="query-params"` would write the label there, another one in each language. Other widgets bind themselves.

    Args:
        widget: `st.segmented_control` or `st.pills`.
        label: of the widget.
        options: {option: its label}; the first is the default, and leaves the address short.
        key: of the widget, and the name in the address.
        more: passed on to the widget.
    """
    first = next(iter(options))
    if st.session_state.get(key) not in options:
        named = st.query_params.get(key)
        st.session_state[key] = named if named in options else first
    chosen = widget(label, list(options), format_func=options.__getitem__, required=True, key=key, **more)
    if chosen != first:
        st.query_params[key] = chosen
    else:
        st.query_params.pop(key, None)
    return str(chosen)
