"""Request traces from files: what a serving fleet was asked for, and when.

Models the recorded past. The format is known by its columns or keys, in CSV (with a header) and JSONL alike:

- our own and the engine's usage log: arrived_s, prompt_tokens, output_tokens, and the OPTIONAL columns;
- Azure LLM inference trace 2023: TIMESTAMP, ContextTokens, GeneratedTokens;
- BurstGPT (Wang et al. 2024): Timestamp [s], Request tokens, Response tokens, Log Type; failed requests have 0
  response tokens;
- Mooncake (Qin et al. 2025): timestamp [ms], input_length, output_length, hash_ids: a number for each 512 tokens of
  the prompt, the same number for the same beginning;
- Vidur: arrived_at [s], num_prefill_tokens, num_decode_tokens.

A file is read whole, or refused with one line that names its first bad line: a trace with holes would quietly give
wrong loads. `skip_bad` leaves bad lines out and reports how many and why.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError
from engine.utils.files import write_atomically
from sim.traces.checks import SkippedLines, TraceChecks, TraceReport
from sim.traces.table import read_table
from sim.workload.requests import OWN_COLUMNS, check_requests

__all__ = [
    "FORMATS",
    "OPTIONAL",
    "OWN_COLUMNS",
    "SkippedLines",
    "TraceReport",
    "check_requests",
    "read_trace",
    "read_trace_report",
    "write_trace",
]

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")
MOONCAKE_KEYS = ("timestamp", "input_length", "output_length")
VIDUR_COLUMNS = ("arrived_at", "num_prefill_tokens", "num_decode_tokens")
OPTIONAL = ("request_id", "traffic_class", "tenant", "priority", "after", "think_s", "prefix_hashes")
MOONCAKE_BLOCK_TOKENS = 512
FORMATS = {  # name: columns of the time, the prompt's and the answer's tokens
    "own": OWN_COLUMNS,
    "azure": AZURE_COLUMNS,
    "burstgpt": BURSTGPT_COLUMNS,
    "mooncake": MOONCAKE_KEYS,
    "vidur": VIDUR_COLUMNS,
}
_ALLOWED = "; or ".join(f"{','.join(columns)} ({name})" for name, columns in FORMATS.items())
_MOST_TOKENS = 2**40

FloatArray = NDArray[np.float64]


def read_trace(
    path: str | Path,
    skip_bad: bool = False,
    *,
    max_context_tokens: int | None = None,
    block_tokens: int = 16,
) -> pd.DataFrame:
    """Read a trace file; see the module's text for the formats.

    Columns that mean nothing here are ignored. Azure's time stamps become seconds since the first request; all other
    times stay as they are.

    Args:
        path: of the file.
        skip_bad: leave bad lines out; `read_trace_report` returns which.
        max_context_tokens: of the model that is to serve the requests; those that need more are bad.
        block_tokens: tokens per KV block, for the prefix hashes of a Mooncake trace.

    Returns:
        Frame arrived_s (float, seconds), prompt_tokens, output_tokens (int), and those of OPTIONAL that the file has;
        one row per request, in the file's order.

    Raises:
        InputError: no such file, neither CSV nor JSONL, columns missing, or a line whose time or token count is bad or
            whose time is before the line above; names file and line. With `skip_bad` only if no line is good.
    """
    return read_trace_report(
        path, skip_bad, max_context_tokens=max_context_tokens, block_tokens=block_tokens
    )[0]


def read_trace_report(
    path: str | Path,
    skip_bad: bool = False,
    *,
    max_context_tokens: int | None = None,
    block_tokens: int = 16,
) -> tuple[pd.DataFrame, TraceReport]:
    """`read_trace`, and what was left out: lines counted by reason, with the numbers of the first.

    Of lines that are out of order as few are left out as make the rest sorted.
    """
    table = read_table(Path(path), _format_of, _ALLOWED)
    name = str(_format_of(table.cells.columns))
    time, prompt, output = FORMATS[name]
    checks = TraceChecks(table, skip_bad)
    optional = _optional_columns(checks, name)
    arrived_s = _times(checks, name, optional.get("after"))
    columns: dict[str, Any] = {"arrived_s": arrived_s}
    zero = ", 0 marks a failed request" if name == "burstgpt" else ""
    for ours, theirs in (("prompt_tokens", prompt), ("output_tokens", output)):
        tokens = checks.numbers(theirs)
        bad = (tokens < 1) | (tokens != np.floor(tokens)) | (tokens > _MOST_TOKENS)
        checks.refuse(theirs, bad, f"allowed is a whole number of tokens ≥ 1{zero}")
        columns[ours] = np.where(checks.ok, tokens, 1).astype(np.int64)
    if max_context_tokens is not None:
        limit = f"the model's context of {max_context_tokens} tokens"
        checks.refuse(prompt, columns["prompt_tokens"] > max_context_tokens, f"is beyond {limit}")
        needed = columns["prompt_tokens"] + columns["output_tokens"]
        checks.refuse(output, needed > max_context_tokens, f"is, with the prompt, beyond {limit}")
    if name == "mooncake" and "hash_ids" in table.cells:
        columns["prefix_hashes"] = _mooncake_hashes(checks, columns["prompt_tokens"], block_tokens)
    frame = pd.DataFrame({**columns, **optional})
    keep = checks.in_order(time, arrived_s, optional.get("after"))
    report = checks.report(name, keep)
    frame = frame[keep].reset_index(drop=True)
    if "after" in frame and not keep.all():
        new_row = np.concatenate([np.cumsum(keep) - 1, [-1]])  # the last for −1
        frame["after"] = new_row[frame["after"].to_numpy()]
    if name == "azure":
        frame["arrived_s"] -= frame["arrived_s"].iloc[0]
    return frame, report


def write_trace(requests: pd.DataFrame, path: str | Path) -> None:
    """Write requests so that `read_trace` reads them: JSONL if the name ends so, CSV otherwise; whole or not at all.

    Prefix hashes become words in a cell; what is no whole number becomes a text that is equal for equal hashes.
    """
    path = Path(path)
    frame = requests.copy()
    if "prefix_hashes" in frame:
        frame["prefix_hashes"] = [[_word(key) for key in keys] for keys in frame["prefix_hashes"]]
    if path.suffix in (".jsonl", ".ndjson"):
        columns = {
            name: frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in frame
        }
        rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        return
    if "prefix_hashes" in frame:
        frame["prefix_hashes"] = [" ".join(map(str, keys)) for keys in frame["prefix_hashes"]]
    write_atomically(path, frame.to_csv(index=False))


def _format_of(names: Iterable[str]) -> str | None:
    found = set(names)
    return next((name for name, columns in FORMATS.items() if set(columns) <= found), None)


def _times(checks: TraceChecks, name: str, after: NDArray[np.int64] | None) -> FloatArray:
    column = FORMATS[name][0]
    if name == "azure":
        cells = checks.table.cells[column]
        stamps = pd.to_datetime(cells, errors="coerce", format="ISO8601", utc=True)
        checks.refuse(column, stamps.isna().to_numpy(dtype=bool), "allowed is a date and time")
        return np.asarray((stamps - stamps.min()).dt.total_seconds(), dtype=np.float64)
    times = checks.numbers(column, None if after is None else after < 0)
    if after is not None:
        times[after >= 0] = np.nan
    checks.refuse(column, times < 0, "allowed is a time ≥ 0")
    return np.asarray(times / 1000 if name == "mooncake" else times, dtype=np.float64)


def _optional_columns(checks: TraceChecks, name: str) -> dict[str, Any]:
    cells = checks.table.cells
    if name == "burstgpt" and "Log Type" in cells:
        kinds = cells["Log Type"].astype(str).str.strip().str.removesuffix(" log").str.lower()
        return {"traffic_class": kinds.to_numpy(dtype=object)}
    found: dict[str, Any] = {}
    if name != "own":
        return found
    for column in OPTIONAL:
        if column not in cells:
            continue
        if column in ("priority", "after", "think_s"):
            empty = cells[column].isna() | (cells[column] == "")
            numbers = checks.numbers(column, ~empty.to_numpy(dtype=bool))
            if column == "think_s":
                checks.refuse(column, numbers < 0, "allowed is a time ≥ 0 s")
                found[column] = np.nan_to_num(numbers)
                continue
            values = np.nan_to_num(numbers, nan=-1.0 if column == "after" else 0.0)
            whole = (values == np.floor(values)) & (np.abs(values) < 2**53)
            checks.refuse(column, ~whole, "allowed is a whole number")
            if column == "after":
                place = checks.table.places
                checks.refuse(
                    column,
                    (values < -1) | (values >= place),
                    "allowed is the row of an earlier request (the first is 0), or −1",
                )
                values = np.where(checks.ok, values, -1)
                rows = np.searchsorted(place, values)
                # Rows are counted by line; a broken line is the forerunner of none.
                lost = (values >= 0) & (place[rows] != values)
                checks.refuse(column, lost, "waits for a line that is left out")
                values = np.where((values >= 0) & ~lost, rows, -1)
            found[column] = np.where(checks.ok, values, -1).astype(np.int64)
        elif column == "prefix_hashes":
            found[column] = _hashes(checks)
        else:
            found[column] = cells[column].to_numpy(dtype=object)
    return found


def _hashes(checks: TraceChecks) -> list[Any]:
    cells = checks.table.cells["prefix_hashes"].tolist()
    if not checks.table.is_json:
        return [_keys_of(cell) for cell in cells]
    wrong = np.array([not (cell is None or isinstance(cell, list)) for cell in cells], dtype=bool)
    checks.refuse("prefix_hashes", wrong, "allowed is a list")
    return [
        [key if type(key) in (int, str) else str(key) for key in cell] if isinstance(cell, list) else []
        for cell in cells
    ]


def _keys_of(cell: str) -> list[Any]:
    words = cell.split()
    return (
        [int(word) for word in words]
        if all(word.isdecimal() and len(word) <= 40 for word in words)
        else words
    )


def _word(key: Any) -> int | str:
    """A hash as JSON and a cell can hold it."""
    if isinstance(key, (int, np.integer)):
        return int(key)
    return ":".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _mooncake_hashes(
    checks: TraceChecks, prompt_tokens: NDArray[np.int64], block_tokens: int
) -> list[list[int]]:
    """Key of each full block of `block_tokens`: the number of the 512 tokens that it ends in, and where in them."""
    if block_tokens < 1:
        raise InputError(f"block_tokens: found {block_tokens}, allowed is ≥ 1")
    cells = checks.table.cells["hash_ids"].tolist()
    chains = [
        cell
        if isinstance(cell, list) and all(type(each) is int and 0 <= each < 2**53 for each in cell)
        else None
        for cell in cells
    ]
    checks.refuse(
        "hash_ids", np.array([chain is None for chain in chains]), "allowed is a list of whole numbers ≥ 0"
    )
    keys: list[list[int]] = []
    for chain, prompt in zip(chains, prompt_tokens.tolist(), strict=True):
        # Fewer numbers than the prompt has blocks: what is behind them is shared with no other prompt.
        known = min(prompt, MOONCAKE_BLOCK_TOKENS * len(chain or ()))
        ends = np.arange(block_tokens - 1, known, block_tokens)
        numbers = np.array(chain or [], dtype=np.int64)[ends // MOONCAKE_BLOCK_TOKENS]
        keys.append((numbers * MOONCAKE_BLOCK_TOKENS + ends % MOONCAKE_BLOCK_TOKENS).tolist())
    return keys
