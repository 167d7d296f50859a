"""How far a piece of work is, as it tells whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable

# Called with the fraction done (0 to 1) and what is being done (a `Message`, where it is to be translated).
# An exception that it raises ends the work.
Progress = Callable[[float, str], None]


def no_progress(fraction: float, doing: str) -> None:
    """Nobody waits: the progress is dropped."""
