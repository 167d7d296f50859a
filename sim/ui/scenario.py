"""Page Scenario: every assumption with its unit, meaning and source; any of them can be changed."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from engine.errors import InputError
from sim.scenario import Scenario
from sim.scenario_help import leaves, unit_of
from sim.ui import controls, parts

_SECTIONS = {
    "Market": "market",
    "Deployment": "deployment",
    "Training": "training",
    "Data": "data",
    "Finance": "finance",
    "Run": "",
}


def as_text(value: Any) -> str:
    """A value as it is written in YAML: 1e11, true, null."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def from_text(text: str) -> Any:
    """A value as YAML reads it, like `--set` on the command line."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return text  # the schema then says what is allowed


def rows(scenario: Scenario, section: str) -> pd.DataFrame:
    """One row per assumption of a section that is not a lever of the sidebar."""
    documented = {item.key: item for item in result.assumptions}
    found = []
    for key, value, field in leaves(scenario):
        head, _, rest = key.partition(".")
        if (
            key in controls.LEVER_KEYS
            or key == "seed"
            or head == "sources"
            or (head if rest else "") != section
        ):
            continue
        item = documented.get(key)
        source = f"{item.source} ({item.date})" if item and item.source else "assumed"
        found.append((key, as_text(value), unit_of(field), field.description or "", source))
    return pd.DataFrame(found, columns=["key", "value", "unit", "meaning", "source"]).set_index("key")


result = controls.run_on_show()
name = st.session_state["scenario"]
parts.heading(
    result, "Every assumption with unit, meaning and source. The levers in the sidebar are not repeated here."
)
asked = st.session_state["asked"]
scenario = asked[0] if isinstance(asked, tuple) else result.scenario
section = st.segmented_control("Section", list(_SECTIONS), default="Market", required=True, key="section")
table = rows(scenario, _SECTIONS[section])
with st.form("edit", border=False):
    edited = st.data_editor(
        table,
        height="content",
        disabled=["key", "unit", "meaning", "source"],
        column_config={
            "key": st.column_config.TextColumn("Key", pinned=True),
            "value": st.column_config.TextColumn(
                "Value ✎", required=True, help="As in the YAML file: 1e11, true, null"
            ),
            "unit": "Unit",
            "meaning": "Meaning",
            "source": "Source",
        },
        key=f"editor_{name}_{section}",
        alt=f"Assumptions of the section {section}",
    )
    apply = st.form_submit_button("Apply and run", type="primary", icon=":material/play_arrow:")
if apply:
    before, after = table["value"].to_dict(), edited["value"].to_dict()
    changed = {str(key): from_text(str(text)) for key, text in after.items() if text != before[key]}
    try:
        scenario.override(changed)
    except InputError as error:
        st.error(str(error), title="Nothing was changed", icon=":material/error:")
    else:
        if changed:
            edits = st.session_state.setdefault("edits", {})
            edits[name] = {**edits.get(name, {}), **changed}
            st.rerun()
edits_here = st.session_state.get("edits", {}).get(name, {})
if edits_here:
    st.caption(
        "Changed here: " + ", ".join(f"`{key}` = {as_text(value)}" for key, value in edits_here.items())
    )
st.download_button(
    "Download this scenario (YAML)",
    scenario.to_yaml(),
    file_name=f"{name}.yaml",
    mime="application/yaml",
    icon=":material/download:",
    on_click="ignore",
)
st.subheader("What the run rests on")
kinds = pd.DataFrame(
    [
        (item.key, as_text(item.value), item.unit, item.kind, item.source, item.date)
        for item in result.assumptions
    ],
    columns=["Key", "Value", "Unit", "Kind", "Source", "Date"],
)
wanted = st.pills(
    "Kind", ["measured", "predicted", "sourced", "assumed"], selection_mode="multi", key="kinds"
)
st.dataframe(
    kinds[kinds["Kind"].isin(wanted)] if wanted else kinds,
    hide_index=True,
    height=360,
    alt="All assumptions of the run",
)
