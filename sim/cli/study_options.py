"""The options that every `flywheel study` command takes: changes, profile, workers, and the folder of its results."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.options import JsonFlag, ProfileOption, SetOption
from sim.cli.terminal import progress_bar
from sim.study.runs.options import RunOptions

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class StudyOptions:
    """Options common to all studies."""

    overrides: SetOption = None
    profile: ProfileOption = None
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Worker processes (default: one per core; 0: run in this process)."),
    ] = None
    ray: Annotated[bool, typer.Option("--ray", help="Run on a Ray cluster.")] = False
    ray_address: Annotated[
        str | None,
        typer.Option(help="Address of the Ray cluster (default: this machine's, else one is started here)."),
    ] = None
    out: Annotated[
        Path | None, typer.Option(help="Folder for runs and tables; the same command resumes from it.")
    ] = None
    as_json: JsonFlag = False

    @contextmanager
    def running(self, title: str, folder: str = "runs") -> Iterator[RunOptions]:
        """Options of the runs, kept in `folder` below `--out`; a progress bar is shown until the block ends."""
        from engine.profile.profile import Profile

        profile = Profile.load(self.profile) if self.profile else None
        address = self.ray_address
        if address is None and self.ray:
            address = "auto" if os.environ.get("RAY_ADDRESS") else "local"
        with progress_bar(title) as progress:
            yield RunOptions(profile, self.workers, address, self.out and self.out / folder, progress)

    def write(self, content: dict[str, Any], **tables: pd.DataFrame) -> None:
        """Write result.json and each table as CSV into the folder `--out`; nothing without it."""
        from engine.utils.files import write_atomically
        from sim.utils.serialise import json_ready

        if self.out is None:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(json_ready(content), indent=1, allow_nan=False) + "\n"
        write_atomically(self.out / "result.json", text)
        for name, table in tables.items():
            write_atomically(self.out / f"{name}.csv", table.to_csv(index=False))
