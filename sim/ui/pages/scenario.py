"""Page Scenario: every assumption with its unit, meaning and source; change, compare with the file, save, hand on."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st
from pydantic.fields import FieldInfo

from engine.errors import InputError
from sim.i18n.translate import mark, tr, worded
from sim.scenario.fields import leaves, unit_of
from sim.scenario.scenario import Scenario
from sim.ui import components, edits, scenario_store, sidebar, url_state

_SECTIONS = {
    "market": mark("Market"),
    "deployment": mark("Deployment"),
    "training": mark("Training"),
    "data": mark("Data"),
    "finance": mark("Finance"),
    "run": mark("Run"),
    "yaml": mark("All as YAML"),
}
_IN_RUN = ("", "loop")  # keys at the top of the file, and those of small sections
_KINDS = {
    "measured": mark("measured"),
    "predicted": mark("predicted"),
    "sourced": mark("sourced"),
    "assumed": mark("assumed"),
}
_SHOWN_FOUND = 60
Leaf = tuple[str, Any, FieldInfo]


def parts_of(scenario: Scenario, section: str) -> dict[str, list[Leaf]]:
    """{part: its assumptions} of a section: its own keys ("") and those of each plan, role, source … in it."""
    found: dict[str, list[Leaf]] = {}
    for leaf in leaves(scenario):
        sections = leaf[0].split(".")[:-1]
        head = sections[0] if sections else ""
        if head == section or (section == "run" and head in _IN_RUN):
            found.setdefault(".".join(sections[1:]), []).append(leaf)
    return found


def field(leaf: Leaf, sources: dict[str, str], *, with_section: bool) -> None:
    """One assumption: its meaning, the value to type over, its key, unit and source; why the value is refused."""
    key, value, described = leaf
    typed, reason = edits.refused(name).get(key, ("", ""))
    widget = f"field {name} {key}"
    st.session_state[widget] = typed if reason else edits.text_of(scenario, key, value)
    meaning = tr(described.description or key)
    with st.container(gap="xsmall", height="stretch"):
        st.text_input(
            key if with_section else key.rsplit(".", 1)[-1],
            key=widget,
            on_change=lambda: edits.type_in(name, scenario, key, st.session_state[widget]),
            icon=":material/error:" if reason else ":material/edit:" if key in differs else None,
        )
        if reason:
            st.error(components.plain(reason.split(f"{key}: ", 1)[-1]), icon=":material/error:")
        unit, source = tr(unit_of(described)), sources.get(key, "")
        said = meaning[:1].upper() + meaning[1:] + (f" [{unit}]" if unit else "")
        st.caption(components.plain(" · ".join(word for word in (said, source) if word)))


def fields(section: str) -> None:
    """All assumptions of a section, part by part."""
    found = parts_of(scenario, section)
    part = next(iter(found))
    if len(found) > 1:
        labels = {path: components.plain(path.replace(".", " · ")) or tr("general") for path in found}
        part = url_state.choice(st.pills, tr("Part"), labels, key="part", label_visibility="collapsed")
    grid(found[part], with_section=False)


def grid(found: list[Leaf], *, with_section: bool) -> None:
    """Draw assumptions side by side on wide screens."""
    sources = {
        item.key: f"{item.source} ({item.date})" if item.date else item.source
        for item in result.assumptions
        if item.source
    }
    with st.grid(3, min_column_width=300, gap="medium"):
        for leaf in found:
            field(leaf, sources, with_section=with_section)


def as_yaml() -> None:
    """The whole scenario as text: the way to add or take out a plan, a role, a round."""
    text = st.text_area(
        tr("The scenario as YAML"),
        scenario.to_yaml(),
        height=560,
        key=f"yaml {name} {scenario.content_hash}",
        help=tr("Plans, roles, data sources and rounds can be added or taken out here."),
    )
    if st.button(tr("Use this text"), type="primary", icon=":material/check:"):
        take_in(f"{name}.yaml", text.encode())


def take_in(file_name: str, content: bytes) -> None:
    """Import a scenario and choose it, or show the error."""
    try:
        st.session_state["choose"] = scenario_store.import_yaml(file_name, content)
    except InputError as error:
        st.error(components.plain(str(error)), title=tr("Not taken"), icon=":material/error:")
    else:
        st.rerun()


def difference() -> None:
    """What differs from the file, with units."""
    st.subheader(tr("Changed from the file"))
    if not differs:
        st.caption(tr("Nothing: this is the scenario as its file has it."))
        return
    rows = [
        (key, *differs[key], tr(unit_of(described)))
        for key, _, described in leaves(scenario)
        if key in differs
    ]
    st.dataframe(
        pd.DataFrame(rows, columns=["Key", "Before", "After", "Unit"]),
        hide_index=True,
        height="content",
        column_config={
            "Key": tr("Key"),
            "Before": tr("Before"),
            "After": tr("After"),
            "Unit": tr("Unit"),
        },
        alt=tr("What differs from the file"),
    )


def hand_on() -> None:
    """Save, export and import."""
    with st.grid(3, min_column_width=280, gap="medium"):
        with st.container(border=True, height="stretch"):
            st.markdown(f"**{tr('Save')}**")
            st.caption(tr("As a file of your own in `out/scenarios/`; the command line runs it too."))
            wanted = st.text_input(
                tr("Name"), f"{name.removesuffix(' (imported)')}-2", key="save_as", max_chars=60
            )
            if st.button(tr("Save"), icon=":material/save:", key="save"):
                try:
                    path = scenario_store.save(wanted, scenario)
                except InputError as error:
                    st.error(components.plain(str(error)), icon=":material/error:")
                else:
                    st.session_state["choose"], st.session_state["saved"] = wanted, str(path)
                    st.rerun()
            if "saved" in st.session_state:
                st.success(components.plain(st.session_state.pop("saved")), icon=":material/check:")
        with st.container(border=True, height="stretch"):
            st.markdown(f"**{tr('Export')}**")
            st.caption(tr("The scenario as it stands, with the comments of its file."))
            st.download_button(
                tr("Download (YAML)"),
                scenario.to_yaml(),
                file_name=f"{name}.yaml",
                mime="application/yaml",
                icon=":material/download:",
                on_click="ignore",
                key="export",
            )
        with st.container(border=True, height="stretch"):
            st.markdown(f"**{tr('Import')}**")
            st.caption(tr("A scenario file, to be chosen in this tab; save it to keep it."))
            sent = st.file_uploader(
                tr("Scenario file"),
                ["yaml", "yml"],
                key="import",
                max_upload_size=1,
                label_visibility="collapsed",
            )
            if sent is not None and st.session_state.get("imported_file") != sent.file_id:
                st.session_state["imported_file"] = sent.file_id
                take_in(sent.name, sent.getvalue())


def sources_table() -> None:
    """Table of all assumptions, each marked as measured, predicted, sourced or assumed."""
    st.subheader(tr("What the run rests on"))
    wanted = st.pills(
        tr("Kind"),
        list(_KINDS),
        format_func=lambda kind: tr(_KINDS[kind]),
        selection_mode="multi",
        key="kinds",
    )
    rows = [
        (
            item.key,
            url_state.as_text(item.value),
            tr(item.unit),
            tr(_KINDS[item.kind]),
            worded(item.source),
            item.date,
        )
        for item in result.assumptions
        if not wanted or item.kind in wanted
    ]
    columns = ["Key", "Value", "Unit", "Kind", "Source", "Date"]
    st.dataframe(
        pd.DataFrame(rows, columns=columns),
        hide_index=True,
        height=360,
        column_config={column: tr(column) for column in columns},
        alt=tr("All assumptions of the run"),
    )


result = sidebar.run_on_show()
name = st.session_state["scenario"]
found = sidebar.asked()
scenario = found[0] if found else result.scenario
base = scenario_store.load(name)
filed = edits.texts(base)
differs = {
    key: (filed.get(key, "–"), text) for key, text in edits.texts(scenario).items() if filed.get(key) != text
}
components.heading(
    result,
    tr("Every assumption with its unit, meaning and source. Type over a value: the run follows at once."),
)
with st.container(horizontal=True, vertical_alignment="bottom"):
    labels = {code: tr(label) for code, label in _SECTIONS.items()}
    section = url_state.choice(
        st.segmented_control, tr("Section"), labels, key="section", label_visibility="collapsed"
    )
    searched = st.text_input(
        tr("Search"),
        key="search",
        type="search",
        placeholder=tr("Search all assumptions"),
        label_visibility="collapsed",
        width=280,
    )
if searched:
    words = searched.lower().split()
    hits = [
        leaf
        for leaf in leaves(scenario)
        if all(
            word in f"{leaf[0]} {leaf[2].description} {tr(leaf[2].description or '')}".lower()
            for word in words
        )
    ]
    st.caption(tr("{count} of all assumptions", count=len(hits)))
    grid(hits[:_SHOWN_FOUND], with_section=True)
elif section == "yaml":
    as_yaml()
else:
    fields(section)
difference()
hand_on()
sources_table()
