"""Output of the commands: tables, JSON, and progress bars."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from engine.utils import progress

if TYPE_CHECKING:
    from engine.profile.profile import Profile


def _console() -> Console:
    """Standard output; a file or a pipe has no width, so it gets one wide enough for tables."""
    # Names of files and classes are printed unchanged: brackets are no markup, colons no emoji.
    console = Console(markup=False, emoji=False)
    return console if console.is_terminal else Console(width=120, markup=False, emoji=False)


def print_json(value: dict[str, Any]) -> None:
    """Print a result as JSON; NaN and infinities become null."""
    from sim.utils.serialise import json_ready

    print(json.dumps(json_ready(value), indent=2))


def print_table(title: str, rows: list[tuple[str, str]]) -> None:
    """Print (label, value) rows."""
    table = Table(title=title, show_header=False, title_justify="left", title_style="bold")
    table.add_column(style="dim")
    table.add_column(justify="right", overflow="fold")
    for label, value in rows:
        table.add_row(label, value)
    _console().print(table)


def print_grid(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Print a table with a head; the first column names the rows."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(head[0], style="dim")
    for name in head[1:]:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def save_and_show(profile: Profile, target: Path, model: str, as_json: bool) -> None:
    """Write a profile to `target` and print its content."""
    from sim.company.profile_rows import profile_rows

    target.parent.mkdir(parents=True, exist_ok=True)
    profile.save(target)
    rows = profile_rows(profile)
    if as_json:
        print_json({"profile": str(target), "content_hash": profile.content_hash, **dict(rows)})
    else:
        print_table(f"{model} on {profile.hardware.name}", rows)
        print(f"Profile: {target}")


@contextmanager
def progress_bar(title: str, redraws_per_s: float = 10.0) -> Iterator[progress.Progress]:
    """A progress bar on standard error; yields report(fraction done, what is being done).

    With 0 redraws per second it is drawn at reports only, since drawing would disturb measurements.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    errors = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=errors, transient=True, disable=not errors.is_terminal, auto_refresh=redraws_per_s > 0,
        refresh_per_second=redraws_per_s or 1.0,
    ) as bar:  # fmt: skip
        task = bar.add_task(title, total=1.0)

        def report(fraction: float, what: str = "") -> None:
            described = f"{title}: {what}" if what else title
            bar.update(task, completed=fraction, description=described, refresh=not redraws_per_s)

        yield report
