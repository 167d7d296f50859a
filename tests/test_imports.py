"""Imports flow one way, and light entry points stay light."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

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


def contracts_kept(config: Path) -> bool:
    return lint_imports(config_filename=str(config), no_cache=True) == EXIT_STATUS_SUCCESS


def test_no_circle_and_no_arrow_upwards() -> None:
    """The contracts of pyproject.toml, which `make lint` holds the program to as well."""
    assert contracts_kept(ROOT / "pyproject.toml")


LATE = {
    "at the top": "from {other} import x\n",
    "inside a function": "def f():\n    from {other} import x\n",
    "for type checkers": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from {other} import x\n",
}


@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
@pytest.mark.parametrize("depth", ["files", "folders"])
def test_a_circle_is_found_however_it_is_written(
    late: str, depth: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"house_{depth}_{list(LATE.values()).index(late)}"
    one, other = ("one", "other") if depth == "files" else ("one.room", "other.room")
    for name, towards in ((one, other), (other, one)):
        file = tmp_path / package / f"{name.replace('.', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        for folder in {file.parent, tmp_path / package}:
            (folder / "__init__.py").touch()
        text = late if name == one else LATE["at the top"]
        file.write_text(text.format(other=f"{package}.{towards}"))
    config = tmp_path / "contracts.toml"
    config.write_text(
        f'[tool.importlinter]\nroot_packages = ["{package}"]\n[[tool.importlinter.contracts]]\n'
        f'name = "no circle"\ntype = "acyclic_siblings"\nancestors = ["{package}"]\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert not contracts_kept(config)


@pytest.mark.parametrize(("layer", "forbidden"), FORBIDDEN.items())
def test_imports_flow_one_way(layer: str, forbidden: set[str]) -> None:
    for path in sorted((ROOT / layer).rglob("*.py")):
        # FastAPI describes its bodies in pydantic; the server is imported by `flywheel serve` alone.
        allowed = {"pydantic"} if path.parent == ROOT / "engine" / "server" else set()
        assert not imported_packages(path) & (forbidden - allowed), path


def test_only_the_app_layer_knows_streamlit() -> None:
    for path in sorted((ROOT / "sim").rglob("*.py")):
        if "ui" not in path.parts:
            assert "streamlit" not in imported_packages(path), path


@pytest.mark.parametrize(
    "module",
    [
        "engine",
        "engine.scheduler",
        "engine.kv_cache",
        "engine.profile.profile",
        "engine.usage.meter",
        "sim",
        "sim.cli",
        "sim.company.simulate",
        "sim.serving",
        "sim.outputs",
    ],
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
