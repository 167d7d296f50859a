"""Where this user's cache lies, and how a file is written: whole or not at all, and refused before the work is done."""

from __future__ import annotations

import os
from pathlib import Path

from engine.errors import InputError


def cache_dir() -> Path:
    """This user's cache: `$FLYWHEEL_CACHE`, or `~/.cache/flywheel`. Safe to delete at any time."""
    return Path(os.environ.get("FLYWHEEL_CACHE") or Path.home() / ".cache" / "flywheel")


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write to a temporary file beside `path`, then rename: a reader never sees half a file.

    Text is encoded as UTF-8; missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: str | Path, option: str = "--out") -> None:
    """Refuse a path that no file can be written to, before minutes are spent on what goes there.

    Raises:
        InputError: it is a folder, or lies in what is no folder or in one that this user may not write to.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{option} {path}: is a folder, allowed: the name of a file")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"{option} {path}: {above} is a file, allowed: a folder")
    if not os.access(above, os.W_OK):
        raise InputError(f"{option} {path}: the folder {above} may not be written to, allowed: one that may")
