"""What Decide's two sections share: an assumption in a list, the range in which it may move, numbers of a link."""

from __future__ import annotations

from typing import Any

import streamlit as st

from sim.figures.compare import meanings
from sim.i18n.translate import tr
from sim.scenario.scenario import Scenario
from sim.study.levers import KeyFacts
from sim.ui import components

FIRST_KEY = "market.price_usd_per_mtok_output"
MOST_SEEDS = 64


def usual_range(facts: KeyFacts) -> tuple[float, float]:
    """Default bounds: a third to three times the present value, within what is allowed."""
    value = facts.value or 0.0
    low, high = (facts.clipped(value * factor) for factor in (1 / 3, 3))
    if not low < high:
        low, high = facts.clipped(0), facts.clipped(1)
    if facts.whole:
        return low, max(high, low + 1)
    return float(f"{low:.3g}"), float(f"{high:.3g}")


def bounds(facts: KeyFacts, name: str) -> tuple[float, float]:
    """Two numbers of one lever, side by side; they begin anew with another company's value."""
    low, high = usual_range(facts)
    keys = _bound_keys(facts, name)
    shown: dict[str, Any] = {"format": "%d" if facts.whole else "%.6g", "persist_state": "session"}
    if facts.whole:
        low, high = int(low), int(high)
    with st.container(horizontal=True, gap="small"):
        found_low = st.number_input(tr("From"), value=low, key=keys[0], **shown)
        found_high = st.number_input(tr("To"), value=high, key=keys[1], **shown)
    return float(found_low), float(found_high)


def set_bounds(facts: KeyFacts, name: str, low: float, high: float) -> None:
    """Set the bounds that the inputs show, from a link."""
    for key, value in zip(_bound_keys(facts, name), (low, high), strict=True):
        st.session_state[key] = int(value) if facts.whole else float(value)


def _bound_keys(facts: KeyFacts, name: str) -> tuple[str, str]:
    widget = f"{name} {facts.key} {facts.value}"
    return f"low {widget}", f"high {widget}"


def key_label(key: str) -> str:
    """An assumption in a list: its key and what it means."""
    return f"{key} · {meanings([key])[0]}"


def say_changed(then: Scenario, now: Scenario) -> None:
    """Warn that an answer is about a company that has been changed since."""
    if then.canonical_json() != now.canonical_json():
        st.caption(
            components.plain(tr("For the company as it was when this was asked; it has been changed since."))
        )


def number_in(text: str, most: int) -> int:
    """A whole number of a link, from 1 to `most`."""
    return min(max(int(text), 1), most) if text.isdecimal() else 1
