"""What the pages of studies share: the company that is studied, and one study of a kind under way for a visitor."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import streamlit as st

from engine.utils.progress import Progress
from sim.i18n.translate import tr
from sim.scenario.scenario import Scenario
from sim.ui import components, edits
from sim.ui.jobs import Job, bench
from sim.ui.url_state import as_text

if TYPE_CHECKING:
    from sim.company.simulate import Result

T = TypeVar("T")
_PATIENCE_S = 0.3  # a study that is known or tiny: no progress bar flashes up


def studied(result: Result) -> Scenario:
    """The company on show with the seed on show: a study's first seed."""
    return with_seed(result.scenario, result.seed)


def with_seed(scenario: Scenario, seed: int) -> Scenario:
    """The scenario with another seed."""
    return scenario if scenario.seed == seed else scenario.override({"seed": seed})


def study(kind: str, label: str, about: Hashable, work: Callable[[Progress], T]) -> T | None:
    """The outcome of a study, started if it is not known; until then its progress (see `components.outcome`).

    The visitor's earlier study of the same kind is cancelled if it is still under way.

    Args:
        kind: of the study; each kind has one under way.
        label: what is being made, for the page.
        about: all inputs.
        work: makes it; called with a function to report progress.
    """
    key = (kind, about)
    place = f"study {kind}"
    before = st.session_state.get(place)
    if before not in (None, key):
        last = bench().find(before)
        if last is not None and not last.future.done():
            bench().forget(before)
    st.session_state[place] = key
    job: Job[T] = bench().start(key, work, patience_s=_PATIENCE_S)
    return components.outcome(job, label)


def dropdown(label: str, options: Sequence[str], *, required: bool, **more: Any) -> str:
    """`st.selectbox` for `url_state.choice`, without the remark that one must be chosen: one always is."""
    chosen: str = st.selectbox(label, options, **more)
    return chosen


def apply(scenario: Scenario, changes: Mapping[str, Any]) -> None:
    """Set assumptions of the company on show, for a callback: a lever of the sidebar moves, all else is an edit."""
    from sim.study.shares import with_shares_kept

    name = st.session_state["scenario"]
    for key, value in with_shares_kept(scenario, changes).items():
        edits.type_in(name, scenario, key, as_text(value))
    st.session_state["applied"] = [key for key in changes if key not in edits.refused(name)]


def say_applied() -> None:
    """Once after `apply`: what was set, and where it can be seen."""
    keys = st.session_state.pop("applied", None)
    if keys:
        st.success(
            components.plain(", ".join(keys)),
            title=tr("Set in the scenario on show"),
            icon=":material/check:",
        )
    refused = edits.refused(st.session_state["scenario"])
    if keys is not None and refused:
        st.error(
            components.plain("; ".join(reason for _, reason in refused.values())), icon=":material/error:"
        )
