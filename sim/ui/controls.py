"""The sidebar: which scenario, the levers that matter most, and the run they ask for.

A lever is one number of the scenario with its unit and meaning from the schema. The scenario's name and the levers
stand in the URL, so a link shows the same run. Values changed on the page Scenario come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st
from pydantic.fields import FieldInfo

from engine.errors import InputError
from sim.paths import scenarios_dir
from sim.scenario import Scenario
from sim.scenario_help import leaves, unit_of
from sim.ui.jobs import Job, bench

if TYPE_CHECKING:
    from sim.company import Result

FIRST = "api_startup"
_PATIENCE_S = 0.8  # a run with a known capacity surface takes less: no progress bar flashes up


@dataclass(frozen=True)
class Lever:
    """A number of the scenario that can be changed in the sidebar."""

    name: str  # in the URL
    key: str  # dotted key in the scenario
    label: str
    unit: str  # of the number on screen
    step: float
    scale: float = 1.0  # scenario value of 1 on screen
    format: str = "%.4g"


LEVERS = (
    Lever("price_in", "market.price_usd_per_mtok_prompt", "Price of prompt tokens", "USD per million", 0.01),
    Lever("price_out", "market.price_usd_per_mtok_output", "Price of output tokens", "USD per million", 0.05),
    Lever("marketing", "market.marketing_usd_per_month", "Marketing", "USD per month", 1000.0, format="%.0f"),
    Lever("machine", "deployment.replica_price_usd_per_hour", "Price of a machine", "USD per hour", 0.01),
    Lever("headroom", "deployment.headroom", "Fleet headroom", "% above demand", 5.0, 0.01),
    Lever("reserved", "deployment.reserved_share", "Reserved machines", "% of mean fleet", 5.0, 0.01),
    Lever("train_tokens", "training.replay_tokens", "Training size", "billion tokens per run", 10.0, 1e9),
    Lever("cadence", "training.cadence_months", "Time between runs", "months", 1.0),
    Lever("cash", "finance.initial_cash_usd", "Cash at the start", "USD", 50_000.0, format="%.0f"),
    Lever("months", "horizon_months", "Horizon", "months", 6.0, format="%.0f"),
)
LEVER_KEYS = {lever.key for lever in LEVERS}


def sidebar() -> None:
    """Draw the sidebar and leave the scenario it describes, or the reason why there is none, in the session."""
    with st.sidebar:
        names = scenario_names()
        chosen = st.selectbox(
            "Scenario",
            names,
            index=names.index(FIRST) if FIRST in names else 0,
            key="scenario",
            bind="query-params",
            on_change=_back_to_file,
            help="A company to start from. Each is a YAML file in `scenarios/`.",
        )
        try:
            base = load(chosen)
        except InputError as error:
            st.session_state["asked"] = str(error)
            return
        fields = {key: (value, field) for key, value, field in leaves(base)}
        with st.form("levers", border=False):
            changes = {
                lever.key: value
                for lever in LEVERS
                if lever.key in fields and (value := _lever(lever, *fields[lever.key])) is not None
            }
            seed = st.number_input(
                "Seed of chance",
                0,
                value=base.seed,
                key="seed",
                bind="query-params",
                help="Another seed, another luck.",
            )
            st.form_submit_button("Run", type="primary", icon=":material/play_arrow:", width="stretch")
        changes = {key: value for key, value in changes.items() if value != fields[key][0]}
        edits = dict(st.session_state.get("edits", {}).get(chosen, {}))
        if changes or edits:
            said = len(changes) + len(edits)
            st.caption(f"{said} value{'s' if said != 1 else ''} changed from the file.")
            st.button("Back to the file", icon=":material/undo:", on_click=_back_to_file, width="stretch")
    try:
        scenario = base.override({**changes, **edits}) if changes or edits else base
        st.session_state["asked"] = (scenario, int(seed))
    except InputError as error:
        st.session_state["asked"] = str(error)


def scenario_names() -> list[str]:
    """Names of the shipped scenarios."""
    return [path.stem for path in sorted(scenarios_dir().glob("*.yaml"))]


def load(name: str) -> Scenario:
    """A shipped scenario; read again when its file has changed."""
    path = scenarios_dir() / f"{name}.yaml"
    return _read(name, path.stat().st_mtime_ns)


@st.cache_resource(show_spinner=False, max_entries=16)
def _read(name: str, changed_ns: int) -> Scenario:
    return Scenario.load(name)


def run_on_show() -> Result:
    """The result for the page to draw: the one asked for, or the last one while that is still being made.

    Says what is wrong when the values are; stops the page where there is nothing to draw yet.
    """
    asked = st.session_state.get("asked")
    if isinstance(asked, tuple):
        try:
            scenario, seed = asked
            job = bench().job(scenario, seed, patience_s=_PATIENCE_S)
            if job.future.done():
                st.session_state["shown"] = job.future.result()
            else:
                _watch(job)
        except InputError as error:
            st.error(str(error), title="This run is not possible", icon=":material/error:")
    elif asked:
        st.error(asked, title="A value is not allowed", icon=":material/error:")
    result: Result | None = st.session_state.get("shown")
    if result is None:
        st.stop()
    return result


@st.fragment(run_every=0.3)
def _watch(job: Job) -> None:
    if job.future.done():
        st.rerun()
    st.progress(job.fraction, text=f"Simulating: {job.doing}")


def _lever(lever: Lever, value: float | None, field: FieldInfo) -> float | int | None:
    """One number input; gives the value in the scenario's unit, None where the profile's own is meant."""
    low, high = _bounds(field, lever.scale)
    whole = isinstance(value, int) and lever.scale == 1
    meaning = (field.description or "").capitalize()
    shown = st.number_input(
        f"{lever.label} ({lever.unit})",
        min_value=low,
        max_value=high,
        value=None if value is None else float(f"{value / lever.scale:.12g}"),
        step=lever.step,
        format=lever.format,
        placeholder="as in the profile" if value is None else None,
        key=lever.name,
        bind="query-params",
        help=f"{meaning} [{unit_of(field)}]. Key: `{lever.key}`",
    )
    if shown is None:
        return None
    return round(shown) if whole else float(f"{shown * lever.scale:.12g}")


def _bounds(field: FieldInfo, scale: float) -> tuple[float | None, float | None]:
    found: dict[str, Any] = {}
    for mark in field.metadata:
        for name in ("ge", "gt", "le", "lt"):
            if getattr(mark, name, None) is not None:
                found[name] = float(getattr(mark, name)) / scale
    return found.get("ge", found.get("gt")), found.get("le", found.get("lt"))


def _back_to_file() -> None:
    """All levers and edits of the chosen scenario as its file has them."""
    chosen = st.session_state["scenario"]
    st.session_state.get("edits", {}).pop(chosen, None)
    values = {key: value for key, value, _ in leaves(load(chosen))}
    for lever in LEVERS:
        value = values.get(lever.key)
        st.session_state[lever.name] = None if value is None else float(f"{value / lever.scale:.12g}")
    st.session_state["seed"] = load(chosen).seed
