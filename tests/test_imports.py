"""Imports flow one way, and light entry points stay light."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers.imports import loaded_by
from tests.helpers.places import ROOT

# What each layer must never import (at any depth of the file).
FORBIDDEN = {"engine": {"sim", "app", "simpy", "streamlit", "pydantic", "plotly"}, "sim": {"app"}}


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(("layer", "forbidden"), FORBIDDEN.items())
def test_imports_flow_one_way(layer: str, forbidden: set[str]) -> None:
    for path in sorted((ROOT / layer).rglob("*.py")):
        # FastAPI describes its bodies in pydantic; the server is imported by `flywheel serve` alone.
        allowed = {"pydantic"} if path.parent == ROOT / "engine" / "server" else set()
        assert not imported_packages(path) & (forbidden - allowed), path


def test_only_the_app_layer_knows_streamlit() -> None:
    for path in sorted((ROOT / "sim").rglob("*.py")):
        if path.parent.name != "ui":
            assert "streamlit" not in imported_packages(path), path


@pytest.mark.parametrize(
    "module", ["engine", "sim", "sim.cli", "sim.company.simulate", "sim.serving", "sim.outputs"]
)
def test_the_simulator_never_loads_torch(module: str) -> None:
    assert loaded_by(module, ("torch", "transformers")) == []


@pytest.mark.parametrize("package", ["engine", "sim"])
def test_every_public_name_resolves(package: str) -> None:
    module = __import__(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no attribute"):
        _ = module.nothing_of_this_name
