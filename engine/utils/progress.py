"""Progress of a piece of work, as its caller is informed of it."""

from __future__ import annotations

from collections.abc import Callable

# Called with the fraction done (0 to 1) and what is being done (a `Message`, where it is to be translated).
# An exception that it raises ends the work.
Progress = Callable[[float, str], None]


def no_progress(fraction: float, doing: str) -> None:
    """Drop the progress."""


def part_of(progress: Progress | None, start: float, end: float) -> Progress:
    """The progress of the part of the work from `start` to `end`, both fractions of the whole."""
    if progress is None:
        return no_progress
    return lambda fraction, doing: progress(start + (end - start) * fraction, doing)
