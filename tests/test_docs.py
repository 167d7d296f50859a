"""README, CONTRIBUTING and docs/ are true: the commands, files, functions and folders that they name exist."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import typer

from sim.cli.app import app
from tests.helpers.places import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
COMMAND = re.compile(r"^(?:\.venv/bin/)?flywheel [^|\n]*|(?<=`)flywheel [^`\n]+", re.MULTILINE)
FLYWHEEL: click.Command = typer.main.get_command(app)
FILE = re.compile(r"`((?:engine|sim|tests|scenarios|docs)/[\w/.*-]*)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_these_options(page: Path) -> None:
    for line in COMMAND.findall(page.read_text()):
        _, *words = shlex.split(line, comments=True)
        command = FLYWHEEL
        while words and hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        asked = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert asked <= options | {"--help"}, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_are_there(page: Path) -> None:
    assert [file for file in FILE.findall(page.read_text()) if not list(ROOT.glob(file.rstrip("/")))] == []


def test_make_targets_are_there() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        assert set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= set(targets)


def test_the_ways_name_what_their_files_define() -> None:
    rows = re.findall(r"^\| (`.+?\.py`) \| (`.+?`) \|", ARCHITECTURE, re.MULTILINE)
    assert len(rows) > 30
    for files, names in rows:
        trees = [ast.parse((ROOT / file).read_text()) for file in re.findall(r"`(.+?)`", files)]
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        defined = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, functions)}
        assert set(re.findall(r"`(.+?)`", names)) <= defined, files


def test_the_rooms_stand_in_the_order_of_the_contracts() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = {each["containers"][0]: each["layers"] for each in contracts if "containers" in each}
    rooms = [f"{package}/{name}/" for package in ("engine", "sim") for name in reversed(floors[package])]
    listed = re.findall(r"^\| `((?:engine|sim)/\w+/)` \|", ARCHITECTURE, re.MULTILINE)
    assert listed == [room for room in rooms if (ROOT / room).is_dir()]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1200
