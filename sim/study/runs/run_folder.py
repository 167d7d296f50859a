"""A study's folder: its definition and every finished run, so that a study killed at any moment can be resumed.

study.json            definition of the study, and its hash
parts/000012.parquet  finished runs, one file for each chunk, written atomically
runs.parquet          all runs of a finished study, in place of the parts
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from engine.errors import InputError
from engine.utils.files import write_atomically

LAYOUT_VERSION = 1


class RunFolder:
    """The folder of one study.

    Raises:
        InputError: it holds another study, or is not writable.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any]) -> None:
        self.folder, self.parts = folder, folder / "parts"
        content = {"layout": LAYOUT_VERSION, **inputs}
        text = json.dumps(content)
        content["hash"] = hashlib.sha256(text.encode()).hexdigest()
        card = folder / "study.json"
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file, allowed: a folder")
        if card.exists():
            _require_same(card, content)
        elif self.parts.exists() or self.finished_file.exists():
            raise InputError(f"{folder}: holds runs without study.json, allowed: another folder")
        else:
            write_atomically(card, json.dumps(content, indent=1) + "\n")
        for left in self.parts.glob(".*.partial"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)

    @property
    def finished_file(self) -> Path:
        """The file with all runs of a finished study."""
        return self.folder / "runs.parquet"

    def finished(self) -> pd.DataFrame | None:
        """All runs of a finished study, else None."""
        return _read(self.finished_file)

    def part(self, number: int) -> pd.DataFrame | None:
        """The runs of a finished chunk, else None."""
        return _read(self.parts / f"{number:06d}.parquet")

    def add(self, number: int, runs: pd.DataFrame) -> None:
        """Write the runs of a chunk."""
        write_atomically(self.parts / f"{number:06d}.parquet", _parquet(runs))

    def finish(self, runs: pd.DataFrame) -> None:
        """Write all runs into one file and delete the parts."""
        write_atomically(self.finished_file, _parquet(runs))
        shutil.rmtree(self.parts, ignore_errors=True)


def _require_same(card: Path, content: Mapping[str, Any]) -> None:
    try:
        there = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        there = None
    if not isinstance(there, dict):
        raise InputError(f"{card}: not the card of a study, allowed: another folder")
    if there.get("hash") == content["hash"]:
        return
    differ = [key for key in content if key != "hash" and there.get(key) != content[key]]
    raise InputError(
        f"{card.parent}: holds another study (it differs in: {', '.join(differ)}), "
        "allowed: the same study again, or another folder"
    )


def _parquet(runs: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    runs.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _read(file: Path) -> pd.DataFrame | None:
    """The runs in a file; None if it is not there, or damaged (its chunk is then run again)."""
    try:
        return pd.read_parquet(file) if file.exists() else None
    except (OSError, ValueError):
        return None
