"""Which lines of a trace are good, why the others are not, and what is said of them.

Every check is on a whole column. A line is counted under the first reason that it fails for. Nothing is raised before
all checks are done, so the line that is named is the first bad one of the file.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError
from sim.traces.table import TraceTable

_LINES_SHOWN = 5

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class SkippedLines:
    """Lines that were left out for one reason."""

    reason: str
    count: int
    first_lines: tuple[int, ...]  # numbers of the first few; the first line of the file is 1


@dataclass(frozen=True)
class TraceReport:
    """The format and rows read from a file, and the lines left out."""

    path: Path
    format: str
    rows: int
    skipped: tuple[SkippedLines, ...] = ()

    def describe(self) -> list[tuple[str, str]]:
        """(label, value) rows for a table: what was read, and each reason with its count and first lines."""
        rows = [("Requests", f"{self.rows:,} ({self.format} format)")]
        for each in self.skipped:
            shown = ", ".join(f"{line:,}" for line in each.first_lines)
            more = ", …" if each.count > len(each.first_lines) else ""
            plural = "lines" if each.count > 1 else "line"
            rows.append((f"Left out: {each.reason}", f"{each.count:,} ({plural} {shown}{more})"))
        return rows


class TraceChecks:
    """Which rows of a table are good, and why the others are not."""

    def __init__(self, table: TraceTable, skip_bad: bool) -> None:
        self.table, self._skip_bad = table, skip_bad
        self.ok = np.ones(len(table.lines), dtype=bool)
        self._found: list[tuple[int, str]] = []  # line and what to say of it, first of each reason
        self._skipped: list[SkippedLines] = []
        for reason in dict.fromkeys(reason for _, reason in table.broken):
            self._add(reason, [line for line, why in table.broken if why == reason], reason)

    def refuse(self, column: str, bad: BoolArray, why: str) -> None:
        """Refuse rows for a reason; a row refused before is not counted again."""
        rows = np.flatnonzero(bad & self.ok)
        if rows.size:
            value = self.table.cells[column].iloc[rows[0]]
            shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
            self._add(f"{column}: {why}", self.table.lines[rows].tolist(), f"{column}: found {shown}, {why}")
            self.ok[rows] = False

    def numbers(self, column: str, needed: BoolArray | None = None) -> FloatArray:
        """A column as numbers; those that are missing or not finite are refused, where they are needed."""
        cells = self.table.cells[column]
        if self.table.is_json:
            # A number too large for a float would stop the conversion; true and false are no numbers here.
            values = np.array(
                [v if type(v) is float or (type(v) is int and abs(v) < 2**63) else np.nan for v in cells],
                dtype=np.float64,
            )
        else:
            values = pd.to_numeric(cells.str.strip(), errors="coerce").to_numpy(dtype=np.float64)
        bad = ~np.isfinite(values)
        self.refuse(column, bad if needed is None else bad & needed, "allowed is a finite number")
        return np.where(bad, np.nan, values)

    def in_order(self, column: str, times: FloatArray, after: NDArray[np.int64] | None) -> BoolArray:
        """The rows to keep: good ones with times that never fall, and whose forerunner is kept."""
        timed = self.ok if after is None else self.ok & (after < 0)
        rows = np.flatnonzero(timed)
        backwards = np.zeros(len(times), dtype=bool)
        if (np.diff(times[rows]) < 0).any():
            if self._skip_bad:
                backwards[rows] = True
                backwards[rows[longest_sorted(times[rows])]] = False
            else:
                backwards[rows[1:]] = np.diff(times[rows]) < 0
        self.refuse(column, backwards, "is before the line above; sort the trace by time")
        if after is not None and not self.ok.all():
            kept = self.ok.tolist()
            for row, forerunner in enumerate(after.tolist()):
                if forerunner >= 0 and not kept[forerunner]:
                    kept[row] = False
            self.refuse("after", ~np.array(kept, dtype=bool), "waits for a line that is left out")
        return self.ok

    def report(self, name: str, keep: BoolArray) -> TraceReport:
        """What was read; raises unless every line was good, or bad ones may be left out and some are good."""
        path, rows = self.table.path, int(keep.sum())
        if self._found and not (self._skip_bad and rows):
            line, what = min(self._found)
            nothing = "no line is good; " if self._skip_bad else ""
            raise InputError(f"{path}: {nothing}line {line}: {what}")
        return TraceReport(path, name, rows, tuple(self._skipped))

    def _add(self, reason: str, lines: list[int], first: str) -> None:
        self._found.append((lines[0], first))
        self._skipped.append(SkippedLines(reason, len(lines), tuple(lines[:_LINES_SHOWN])))


def longest_sorted(times: FloatArray) -> NDArray[np.int64]:
    """Positions of a longest part of `times` that never falls (patience sorting: Schensted 1961)."""
    tails: list[float] = []  # smallest last time of a sorted part of each length
    holders: list[int] = []  # and where it stands
    before = [-1] * len(times)
    for position, value in enumerate(times.tolist()):
        length = bisect_right(tails, value)
        if length == len(tails):
            tails.append(value)
            holders.append(position)
        else:
            tails[length] = value
            holders[length] = position
        before[position] = holders[length - 1] if length else -1
    chosen = []
    position = holders[-1]
    while position >= 0:
        chosen.append(position)
        position = before[position]
    return np.array(chosen[::-1], dtype=np.int64)
