"""The sidebar: the scenario, its most important levers, and the run of both.

A lever is one number of the scenario with its unit and meaning from the schema. The scenario's name, the levers and
all edits made on the page Scenario stand in the URL, so a link shows the same run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st
from pydantic.fields import FieldInfo

from engine.errors import InputError
from sim.i18n.translate import LANGUAGES, mark, tr
from sim.scenario.fields import leaves, unit_of
from sim.scenario.scenario import Scenario
from sim.ui import components, url_state
from sim.ui.jobs import bench
from sim.ui.scenario_store import in_a_link, load, scenario_names

if TYPE_CHECKING:
    from sim.company.simulate import Result

FIRST = "api_startup"
_PATIENCE_S = 0.8  # a run with a known capacity surface takes less: no progress bar flashes up


@dataclass(frozen=True)
class SidebarLever:
    """A number of the scenario that can be changed in the sidebar."""

    name: str  # in the URL
    key: str  # dotted key in the scenario
    label: str
    unit: str  # of the number on screen
    step: float
    scale: float = 1.0  # scenario value of 1 on screen
    format: str = "%.4g"

    def on_screen(self, value: Any) -> float | None:
        """A value of the scenario as the lever shows it."""
        return None if value is None else float(f"{value / self.scale:.12g}")


LEVERS = (
    SidebarLever(
        "price_in",
        "market.price_usd_per_mtok_prompt",
        mark("Price of prompt tokens"),
        mark("USD per million"),
        0.01,
    ),
    SidebarLever(
        "price_out",
        "market.price_usd_per_mtok_output",
        mark("Price of output tokens"),
        mark("USD per million"),
        0.05,
    ),
    SidebarLever(
        "marketing",
        "market.marketing_usd_per_month",
        mark("Marketing"),
        mark("USD per month"),
        1000.0,
        format="%.0f",
    ),
    SidebarLever(
        "machine",
        "deployment.replica_price_usd_per_hour",
        mark("Price of a machine"),
        mark("USD per hour"),
        0.01,
    ),
    SidebarLever(
        "headroom", "deployment.headroom", mark("Fleet headroom"), mark("% above demand"), 5.0, 0.01
    ),
    SidebarLever(
        "reserved", "deployment.reserved_share", mark("Reserved machines"), mark("% of mean fleet"), 5.0, 0.01
    ),
    SidebarLever(
        "train_tokens",
        "training.replay_tokens",
        mark("Training size"),
        mark("billion tokens per run"),
        10.0,
        1e9,
    ),
    SidebarLever("cadence", "training.cadence_months", mark("Time between runs"), mark("months"), 1.0),
    SidebarLever(
        "cash", "finance.initial_cash_usd", mark("Cash at the start"), "USD", 50_000.0, format="%.0f"
    ),
    SidebarLever("months", "horizon_months", mark("Horizon"), mark("months"), 6.0, format="%.0f"),
)
LEVER_OF = {lever.key: lever for lever in LEVERS}


def language_switch() -> None:
    """Draw the choice of language and speak it from here on; it stands in the address as `lang=zh`."""
    url_state.choice(
        st.segmented_control,
        "Language / 语言",
        LANGUAGES,
        key="lang",
        label_visibility="collapsed",
        width="stretch",
    )
    components.speak()


def sidebar() -> None:
    """Draw the controls and store in the session the scenario that they describe, or why there is none."""
    names = scenario_names()
    wanted = st.session_state.pop("choose", None)  # a page saved or imported one
    if wanted in names:
        st.session_state["scenario"] = wanted
        _back_to_file(keep_edits=True)
    _say_unknown_scenario(names)
    chosen = st.selectbox(
        tr("Scenario"),
        names,
        index=names.index(FIRST) if FIRST in names else 0,
        key="scenario",
        bind="query-params",
        on_change=_back_to_file,
        help=tr("A company to start from: those that ship, your own in `out/scenarios/`, and imported ones."),
    )
    st.session_state["asked"] = None
    try:
        base = load(chosen)
    except InputError as error:
        st.session_state["asked"] = str(error)
        return
    edits = _edits_from_link(chosen, base)
    fields = {key: (value, field) for key, value, field in leaves(base)}
    with st.form("levers", border=False):
        changes = {
            lever.key: value
            for lever in LEVERS
            if lever.key in fields and (value := _lever(lever, *fields[lever.key])) is not None
        }
        seed = st.number_input(
            tr("Seed of chance"),
            0,
            value=base.seed,
            key="seed",
            bind="query-params",
            help=tr("Another seed, another luck."),
        )
        st.form_submit_button(tr("Run"), type="primary", icon=":material/play_arrow:", width="stretch")
    changes = {key: value for key, value in changes.items() if value != fields[key][0]}
    _changed_from_file(chosen, len({**changes, **edits}))
    url_state.write_edits(edits)
    _share(chosen, fields, int(seed), base.seed, changes, edits)
    try:
        scenario = base.override({**edits, **changes}) if changes or edits else base
        st.session_state["asked"] = (scenario, int(seed))
    except InputError as error:
        st.session_state["asked"] = str(error)


def asked() -> tuple[Scenario, int] | None:
    """(scenario, seed) as the sidebar and the edits have it; None while a value is not allowed."""
    found = st.session_state.get("asked")
    return found if isinstance(found, tuple) else None


def edits_of(name: str) -> dict[str, Any]:
    """{key: value} changed on the page Scenario, of the scenario of that name; to be changed in place."""
    found: dict[str, Any] = st.session_state.setdefault("edits", {}).setdefault(name, {})
    return found


def run_on_show() -> Result:
    """The result for the page to draw: of the present scenario, or the last one while that is being computed.

    Shows the error of wrong values; stops the page while there is nothing to draw.
    """
    for line in st.session_state.get("link_problems", []):
        st.warning(components.plain(line), title=tr("Left out of the link"), icon=":material/link_off:")
    found = asked()
    if found is not None:
        try:
            job = bench().run(*found, patience_s=_PATIENCE_S)
        except InputError as error:
            st.error(
                components.plain(str(error)), title=tr("This run is not possible"), icon=":material/error:"
            )
        else:
            result = components.outcome(job, tr("The run"))
            if result is not None:
                st.session_state["shown"] = result
    elif st.session_state.get("asked"):
        st.error(
            components.plain(st.session_state["asked"]),
            title=tr("A value is not allowed"),
            icon=":material/error:",
        )
    shown: Result | None = st.session_state.get("shown")
    if shown is None:
        st.stop()
    return shown


def _lever(lever: SidebarLever, value: float | None, field: FieldInfo) -> float | int | None:
    """One number input; gives the value in the scenario's unit, None where the profile's own is meant."""
    low, high = _bounds(field, lever.scale)
    whole = isinstance(value, int) and lever.scale == 1
    meaning = tr(field.description or "")
    shown = st.number_input(
        f"{tr(lever.label)} ({tr(lever.unit)})",
        min_value=low,
        max_value=high,
        value=lever.on_screen(value),
        step=lever.step,
        format=lever.format,
        placeholder=tr("as in the profile") if value is None else None,
        key=lever.name,
        bind="query-params",
        help=f"{meaning[:1].upper()}{meaning[1:]} [{tr(unit_of(field))}]. {tr('Key')}: `{lever.key}`",
    )
    if shown is None:
        return None
    return round(shown) if whole else float(f"{shown * lever.scale:.12g}")


def _bounds(field: FieldInfo, scale: float) -> tuple[float | None, float | None]:
    found: dict[str, Any] = {}
    for rule in field.metadata:
        for name in ("ge", "gt", "le", "lt"):
            if getattr(rule, name, None) is not None:
                found[name] = float(getattr(rule, name)) / scale
    return found.get("ge", found.get("gt")), found.get("le", found.get("lt"))


def _changed_from_file(chosen: str, count: int) -> None:
    if count:
        st.caption(
            tr("1 value changed from the file.")
            if count == 1
            else tr("{count} values changed from the file.", count=count)
        )
        st.button(
            tr("Back to the file"),
            icon=":material/undo:",
            on_click=_back_to_file,
            width="stretch",
            key="undo",
        )


def _share(
    chosen: str,
    fields: dict[str, Any],
    seed: int,
    usual_seed: int,
    changes: dict[str, Any],
    edits: dict[str, Any],
) -> None:
    with st.popover(tr("Link to this view"), icon=":material/link:", width="stretch"):
        if not in_a_link(chosen):
            st.caption(tr("An imported scenario lives in this tab only: save it first (page Scenario)."))
            return
        bound = {"scenario": chosen} | {
            LEVER_OF[key].name: LEVER_OF[key].on_screen(value) for key, value in changes.items()
        }
        if seed != usual_seed:
            bound["seed"] = seed
        if st.session_state.get("lang", "en") != "en":
            bound["lang"] = st.session_state["lang"]
        st.caption(tr("Opens this page with this scenario, all changed values and the seed."))
        st.code(url_state.address(bound, edits), language=None, wrap_lines=True)


def _edits_from_link(chosen: str, base: Scenario) -> dict[str, Any]:
    if url_state.changed_by_browser():
        found, st.session_state["link_problems"] = url_state.edits_of(base)
        st.session_state.setdefault("edits", {})[chosen] = found
    return edits_of(chosen)


def _say_unknown_scenario(names: list[str]) -> None:
    named = st.query_params.get("scenario")
    if named is not None and named not in names and "scenario" not in st.session_state:
        st.session_state["link_problems"] = [f"scenario: found {named[:80]!r}, allowed: {', '.join(names)}"]


def _back_to_file(keep_edits: bool = False) -> None:
    """All levers and edits of the chosen scenario as its file has them."""
    chosen = st.session_state["scenario"]
    st.session_state["link_problems"] = []
    st.session_state.get("refused", {}).pop(chosen, None)
    if not keep_edits:
        edits_of(chosen).clear()
    try:
        base = load(chosen)
    except InputError:
        return  # the sidebar says so
    values = {key: value for key, value, _ in leaves(base)}
    for lever in LEVERS:
        st.session_state[lever.name] = lever.on_screen(values.get(lever.key))
    st.session_state["seed"] = base.seed
