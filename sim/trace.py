"""Request traces from files: the Azure LLM inference traces, and our own plain CSV.

Models the recorded past of a serving fleet. A file is read whole or refused with one line that names its first bad
line: a trace with holes would quietly give wrong loads.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from engine.errors import InputError

OWN_COLUMNS = ("arrived_s", "prompt_tokens", "output_tokens")
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_trace(path: str | Path) -> pd.DataFrame:
    """Read a trace: CSV with arrived_s,prompt_tokens,output_tokens, or Azure's TIMESTAMP,ContextTokens,GeneratedTokens.

    Further columns are ignored. Azure's time stamps become seconds since the first request.

    Returns:
        Frame arrived_s (float, seconds), prompt_tokens, output_tokens (int), one row per request, in the file's order.

    Raises:
        InputError: no such file, not a CSV, columns missing, or a line whose time or token count is bad or whose time
            is before the line above; names file and line (the header is line 1).
    """
    path = Path(path)
    table = _read_text_table(path)
    if set(OWN_COLUMNS) <= set(table.columns):
        names = OWN_COLUMNS
        arrived_s = _numbers(path, table, names[0])
        _refuse(path, table, names[0], arrived_s < 0, "allowed is seconds ≥ 0")
    elif set(AZURE_COLUMNS) <= set(table.columns):
        names = AZURE_COLUMNS
        arrived_s = _seconds_since_first(path, table, names[0])
    else:
        raise InputError(
            f"{path}: line 1: found columns {', '.join(map(str, table.columns))}; allowed is {','.join(OWN_COLUMNS)} "
            f"or Azure's {','.join(AZURE_COLUMNS)}"
        )
    backwards = np.concatenate([[False], np.diff(arrived_s) < 0])
    _refuse(path, table, names[0], backwards, "is before the line above; sort the trace by time")
    columns = {"arrived_s": arrived_s}
    for ours, theirs in zip(OWN_COLUMNS[1:], names[1:], strict=True):
        tokens = _numbers(path, table, theirs)
        bad = (tokens < 1) | (tokens != np.floor(tokens)) | (tokens > 2**40)
        _refuse(path, table, theirs, bad, "allowed is a whole number of tokens ≥ 1")
        columns[ours] = tokens.astype(np.int64)
    return pd.DataFrame(columns)


def check_requests(requests: pd.DataFrame) -> pd.DataFrame:
    """A copy of a frame that somebody built, its three columns made numbers, rows numbered from 0.

    Raises:
        InputError: a column is missing, there is no row, or a row is bad: not a number, a time before 0 or before
            the row above, fewer than one token; names row and column.
    """
    missing = [name for name in OWN_COLUMNS if name not in requests]
    if missing:
        raise InputError(
            f"requests: found no column {', '.join(missing)}; needed are {', '.join(OWN_COLUMNS)}"
        )
    if requests.empty:
        raise InputError("requests: found no rows, allowed is at least one")
    checked = requests.reset_index(drop=True)

    def refuse(name: str, bad: pd.Series, allowed: str) -> None:
        if bad.any():
            row = int(np.argmax(bad.to_numpy()))
            raise InputError(
                f"requests: row {row}: {name}: found {requests[name].iloc[row]}, allowed is {allowed}"
            )

    for name in OWN_COLUMNS:
        checked[name] = values = pd.to_numeric(checked[name], errors="coerce").astype(np.float64)
        refuse(name, values.isna() | (values.abs() == np.inf), "a finite number")
    refuse("arrived_s", checked["arrived_s"] < 0, "≥ 0 s")
    refuse("arrived_s", checked["arrived_s"].diff() < 0, "a time not before the row above")
    for name in OWN_COLUMNS[1:]:
        refuse(name, (checked[name] < 1) | (checked[name] % 1 != 0), "a whole number ≥ 1")
        checked[name] = checked[name].astype(np.int64)
    return checked


def _read_text_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        # Blank lines stay in, so that row numbers are line numbers.
        with warnings.catch_warnings():
            # More cells than the header has: pandas would drop them with a warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path,
                dtype=str,
                keep_default_na=False,
                skip_blank_lines=False,
                encoding="utf-8-sig",
                index_col=False,
            )
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except pd.errors.ParserWarning:
        raise InputError(
            f"{path}: not a CSV file: rows hold more cells than the header names columns"
        ) from None
    except (UnicodeDecodeError, pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a CSV file: {reason}") from None
    table.columns = pd.Index([str(name).strip() for name in table.columns])
    table = table.fillna("")  # cells missing at the end of a line
    blank = (table == "").all(axis=1).to_numpy(dtype=bool)
    kept = len(table) if not blank.any() else int(np.flatnonzero(~blank).max(initial=-1)) + 1
    table = table.iloc[:kept]  # blank lines at the end are nobody's mistake
    if table.empty:
        raise InputError(f"{path}: no requests below the header")
    return table


def _numbers(path: Path, table: pd.DataFrame, column: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    numbers = pd.to_numeric(table[column].str.strip(), errors="coerce").to_numpy(dtype=np.float64)
    _refuse(path, table, column, ~np.isfinite(numbers), "allowed is a finite number")
    return numbers


def _seconds_since_first(
    path: Path, table: pd.DataFrame, column: str
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    stamps = pd.to_datetime(table[column], errors="coerce", format="ISO8601", utc=True)
    _refuse(path, table, column, stamps.isna().to_numpy(dtype=bool), "allowed is a date and time")
    return np.asarray((stamps - stamps.iloc[0]).dt.total_seconds(), dtype=np.float64)


def _refuse(
    path: Path, table: pd.DataFrame, column: str, bad: np.ndarray[tuple[int], np.dtype[np.bool_]], why: str
) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(f"{path}: line {row + 2}: {column}: found {table[column].iloc[row]!r}, {why}")
