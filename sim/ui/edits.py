"""Edits of a scenario on screen: tried as they are typed, kept when the schema takes them, marked when it doesn't.

A text that was refused stays as it was typed, with the reason beside it. Values that only fit together (shares that
add up to one) can be typed one after the other: with each, all texts that still wait are tried at once.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from engine.errors import InputError
from sim.scenario.fields import leaves
from sim.scenario.scenario import Scenario
from sim.ui import sidebar
from sim.ui.scenario_store import load
from sim.ui.url_state import as_text, from_text


def refused(name: str) -> dict[str, tuple[str, str]]:
    """{key: (text as typed, why it is refused)} of the scenario of that name; to be changed in place."""
    found: dict[str, tuple[str, str]] = st.session_state.setdefault("refused", {}).setdefault(name, {})
    return found


def text_of(scenario: Scenario, key: str, value: Any) -> str:
    """A value as its field shows it: a distribution as it was written, a number as in YAML."""
    distribution = scenario.uncertain.get(key)
    return as_text(value) if distribution is None else distribution.text


def texts(scenario: Scenario) -> dict[str, str]:
    """{key: text} of every assumption."""
    return {key: text_of(scenario, key, value) for key, value, _ in leaves(scenario)}


def type_in(name: str, scenario: Scenario, key: str, text: str) -> None:
    """Take what was typed into the field of a key, for a callback: before the next run of the page.

    Args:
        name: of the chosen scenario.
        scenario: as it stands, with all edits.
        key: dotted.
        text: as typed.
    """
    waiting = {other: typed for other, (typed, _) in refused(name).items()} | {key: text}
    refused(name).clear()
    known = texts(scenario)
    together = {other: typed for other, typed in waiting.items() if typed != known.get(other)}
    if _why_not(scenario, together) is None:
        _take(name, {other: from_text(typed) for other, typed in together.items()})
        return
    taken: dict[str, Any] = {}
    for other, typed in together.items():
        reason = _why_not(scenario, {other: typed})
        if reason is None:
            taken[other] = from_text(typed)
        else:
            refused(name)[other] = (typed, reason)
    _take(name, taken)


def _why_not(scenario: Scenario, texts: dict[str, str]) -> str | None:
    try:
        scenario.override({key: from_text(text) for key, text in texts.items()})
    except InputError as error:
        return str(error)
    return None


def _take(name: str, changes: dict[str, Any]) -> None:
    """Keep accepted values: a number in the lever where the sidebar has one, all else among the edits."""
    base = load(name)
    filed, words = {key: value for key, value, _ in leaves(base)}, texts(base)
    for key, value in changes.items():
        sidebar.edits_of(name).pop(key, None)
        lever, number = sidebar.LEVER_OF.get(key), isinstance(value, (int, float))
        if lever is not None:
            moved = number and value != filed.get(key)
            st.session_state[lever.name] = lever.on_screen(value if moved else filed.get(key))
            if moved:
                continue
        if as_text(value) != words.get(key):
            sidebar.edits_of(name)[key] = value
