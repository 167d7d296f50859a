"""How the commands answer: a table for a person, or JSON for a script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from engine.profile import Profile

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON for a script to read.")]


def print_json(value: dict[str, Any]) -> None:
    """Print a result; numbers that JSON doesn't know become null."""
    from sim.report import json_ready

    print(json.dumps(json_ready(value), indent=2))


def print_table(title: str, rows: list[tuple[str, str]]) -> None:
    """Print (label, value) rows."""
    table = Table(title=title, show_header=False, title_justify="left", title_style="bold")
    table.add_column(style="dim")
    table.add_column(justify="right", overflow="fold")
    for label, value in rows:
        table.add_row(label, value)
    Console().print(table)


def save_and_show(profile: Profile, target: Path, model: str, as_json: bool) -> None:
    """Write a profile to `target` and say what is in it."""
    from engine.profile import describe

    target.parent.mkdir(parents=True, exist_ok=True)
    profile.save(target)
    rows = describe(profile)
    if as_json:
        print_json({"profile": str(target), "content_hash": profile.content_hash, **dict(rows)})
    else:
        print_table(f"{model} on {profile.hardware.name}", rows)
        print(f"Profile: {target}")
