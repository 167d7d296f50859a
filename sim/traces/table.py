"""Cells of a trace file, each with the number of its line: CSV with a header, or JSONL with an object per line.

A good file is parsed whole by the fast readers. Only where these stumble, or where the rows they give are not the
lines of the file (a quote that swallows a line end), is it read line by line, so that one bad line of a million is
found and named, and costs no more than a second reading.
"""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError

_CHUNK_LINES = 8192  # JSON lines parsed at once
_LINES_TO_RECOGNISE = 100  # JSON lines among which one must show what the file is

Recognise = Callable[[Iterable[str]], Any]


@dataclass
class TraceTable:
    """What stands in a file: text in the cells of a CSV, any JSON value in those of a JSONL (None where missing)."""

    path: Path
    cells: pd.DataFrame
    lines: NDArray[np.int64]  # of each row; the first line of the file is 1
    broken: list[tuple[int, str]]  # lines that are no rows, and why; in order
    is_json: bool

    @property
    def places(self) -> NDArray[np.int64]:
        """Of each row among all lines below the header, from 0; broken lines count."""
        return self.lines - (1 if self.is_json else 2)


def read_table(path: Path, known: Recognise, allowed: str) -> TraceTable:
    """Read a file whole.

    Args:
        path: of the file; what begins with a brace is JSONL.
        known: called with the column names or keys; gives something true if they are those of a trace.
        allowed: what to say is allowed when they aren't.

    Raises:
        InputError: no such file, neither CSV nor JSONL, no known columns, or nothing below the header.
    """
    if not path.is_file():
        found = "is a folder, allowed: a file" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {found}")
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    content = content.rstrip()  # blank lines at the end are no mistake
    read = _read_json_lines if content.lstrip().startswith(b"{") else _read_csv
    table = read(path, content, known, allowed)
    if not len(table.lines) and not table.broken:
        raise InputError(f"{path}: no requests below the header")
    return table


def _read_csv(path: Path, content: bytes, known: Recognise, allowed: str) -> TraceTable:
    first = content.split(b"\n", 1)[0]
    try:
        header = [name.strip() for name in _cells_of(first.decode("utf-8"))]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a CSV file: byte {error.start} is not UTF-8 text") from None
    if not any(header) or "\0" in first.decode("utf-8"):
        raise InputError(f"{path}: not a CSV file: line 1 names no columns")
    if not known(header):
        raise InputError(f"{path}: line 1: found columns {', '.join(header)}; allowed is {allowed}")
    twice = {name for name in header if name and header.count(name) > 1}
    if twice:
        raise InputError(f"{path}: line 1: found the column {min(twice)} twice, allowed is once")
    rows = content.count(b"\n")
    cells = _parse_at_once(content, header)
    if cells is not None and len(cells) == rows:
        return TraceTable(path, cells, np.arange(2, rows + 2), [], is_json=False)
    kept: list[list[str]] = []
    lines: list[int] = []
    broken: list[tuple[int, str]] = []
    for number, line in enumerate(content.splitlines()[1:], start=2):
        try:
            row = _cells_of(line.decode("utf-8"))
        except UnicodeDecodeError:
            broken.append((number, "not UTF-8 text"))
            continue
        if len(row) > len(header):
            broken.append((number, "more cells than the header names columns"))
            continue
        kept.append(row + [""] * (len(header) - len(row)))
        lines.append(number)
    cells = pd.DataFrame(kept, columns=pd.Index(header), dtype=str)
    return TraceTable(path, cells, np.array(lines, dtype=np.int64), broken, is_json=False)


def _parse_at_once(content: bytes, header: list[str]) -> pd.DataFrame | None:
    """All rows as text; None if not every line is a row."""
    try:
        with warnings.catch_warnings():
            # More cells than the header has: pandas would drop them with a warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            cells = pd.read_csv(
                io.BytesIO(content),
                dtype=str,
                keep_default_na=False,
                skip_blank_lines=False,  # row numbers are line numbers
                encoding="utf-8",
                index_col=False,
            )
    except (UnicodeDecodeError, pd.errors.ParserWarning, pd.errors.ParserError, pd.errors.EmptyDataError):
        return None
    cells.columns = pd.Index(header)
    return cells.fillna("")  # cells missing at the end of a line


def _cells_of(line: str) -> list[str]:
    return next(csv.reader([line.rstrip("\r\n")]), [])


def _read_json_lines(path: Path, content: bytes, known: Recognise, allowed: str) -> TraceTable:
    texts = content.splitlines()
    first_keys: list[str] | None = None
    for text in texts[:_LINES_TO_RECOGNISE]:
        row = _object_of(text)
        if isinstance(row, dict):
            first_keys = first_keys or list(row)
            if known(row):
                break
    else:
        found = f"found keys {', '.join(first_keys)}" if first_keys else "found no JSON object"
        raise InputError(f"{path}: line 1: {found}; allowed is {allowed}")
    names = list(row)
    columns: dict[str, list[Any]] = {name: [] for name in names}
    lines: list[int] = []
    broken: list[tuple[int, str]] = []
    for start in range(0, len(texts), _CHUNK_LINES):
        chunk = texts[start : start + _CHUNK_LINES]
        rows = _objects_at_once(chunk)
        if rows is None:
            rows = []
            for number, text in enumerate(chunk, start=start + 1):
                parsed = _object_of(text)
                if isinstance(parsed, dict):
                    rows.append(parsed)
                    lines.append(number)
                else:
                    broken.append((number, parsed))
        else:
            lines += range(start + 1, start + 1 + len(rows))
        for name, column in columns.items():
            column += [row.get(name) for row in rows]
    cells = pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in columns.items()})
    return TraceTable(path, cells, np.array(lines, dtype=np.int64), broken, is_json=True)


def _objects_at_once(texts: list[bytes]) -> list[dict[str, Any]] | None:
    """One object per line; None if a line is none."""
    try:
        rows = json.loads((b"[" + b",".join(texts) + b"]").decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return rows if len(rows) == len(texts) and all(type(row) is dict for row in rows) else None


def _object_of(text: bytes) -> dict[str, Any] | str:
    """The object on a line, or why there is none."""
    try:
        value = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError:
        return "not UTF-8 text"
    except (ValueError, RecursionError):
        return "not valid JSON" if text.strip() else "an empty line"
    return value if isinstance(value, dict) else "no JSON object"
