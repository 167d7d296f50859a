"""The companies that can be chosen: those that ship, those the user saved, those imported in this session.

A user's own scenarios are YAML files in `out/scenarios/` below the working directory, so the command line runs them
too. An imported one lives in the browser tab until it is saved.
"""

from __future__ import annotations

import re
from pathlib import Path

import streamlit as st

from engine.errors import InputError
from engine.utils.files import write_atomically
from sim.scenario.scenario import Scenario
from sim.utils.paths import scenarios_dir
from sim.utils.yaml_file import LARGEST_FILE_BYTES, mapping_in, plain_values

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.()-]{0,59}")


def own_dir() -> Path:
    """Folder of the scenarios that the user saved."""
    return Path("out") / "scenarios"


def shipped_names() -> list[str]:
    """Names of the shipped scenarios."""
    return [path.stem for path in sorted(scenarios_dir().glob("*.yaml"))]


def scenario_names() -> list[str]:
    """All that can be chosen, the user's own after the shipped ones."""
    shipped = shipped_names()
    own = [path.stem for path in sorted(own_dir().glob("*.yaml"))]
    return list(dict.fromkeys([*shipped, *own, *_imported()]))


def load(name: str) -> Scenario:
    """A scenario by its name here; read again when its file has changed.

    Raises:
        InputError: it no longer exists, or its file is wrong.
    """
    if name in _imported():
        return _imported()[name]
    for folder in (scenarios_dir(), own_dir()):
        path = folder / f"{name}.yaml"
        if path.is_file():
            return _read(str(path), path.stat().st_mtime_ns)
    raise InputError(f"scenario: found {name!r}, allowed: {', '.join(scenario_names())}")


def in_a_link(name: str) -> bool:
    """Whether a link can name it: one that lives in this tab only cannot be opened elsewhere."""
    return name not in _imported()


def save(name: str, scenario: Scenario) -> Path:
    """Write a scenario to the user's folder.

    Raises:
        InputError: a name that is no plain file name or that a shipped scenario has, or the folder cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"name: found {name!r}, allowed: up to 60 letters, digits, spaces, dots, dashes and brackets"
        )
    if name in shipped_names():
        raise InputError(f"name: found {name!r}, which is a shipped scenario, allowed: another name")
    path = own_dir() / f"{name}.yaml"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, scenario.to_yaml())
    except OSError as error:
        raise InputError(f"{path}: cannot write there: {error.strerror or error}") from None
    _imported().pop(name, None)
    return path


def import_yaml(file_name: str, content: bytes) -> str:
    """Take a scenario file into this session; gives the name under which it can be chosen.

    Raises:
        InputError: too large, not YAML, or a wrong key or value, with its line.
    """
    document = mapping_in(content, file_name, "the keys of a scenario")
    scenario = Scenario.parse(plain_values(document, file_name), file=file_name, document=document)
    stem = re.sub(r"[^A-Za-z0-9 _.()-]", "_", Path(file_name).stem)[:40].strip() or "scenario"
    taken = {*shipped_names(), *(path.stem for path in own_dir().glob("*.yaml"))}
    name = f"{stem} (imported)" if stem in taken else stem
    _imported()[name] = scenario
    return name


def _imported() -> dict[str, Scenario]:
    found: dict[str, Scenario] = st.session_state.setdefault("imported", {})
    return found


@st.cache_resource(show_spinner=False, max_entries=64)
def _read(path: str, changed_ns: int) -> Scenario:
    file = Path(path)
    return Scenario.load(file.stem if file.parent == scenarios_dir() else file)


__all__ = [
    "LARGEST_FILE_BYTES",
    "import_yaml",
    "in_a_link",
    "load",
    "own_dir",
    "save",
    "scenario_names",
    "shipped_names",
]
