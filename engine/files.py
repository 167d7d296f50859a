"""Where this user's cache lies, and how a file is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


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
