"""The requests frame: what a simulated fleet is given, checked whole before anything runs.

Models what arrives at a serving fleet: when (or after which answer), with prompts and answers of how many tokens.
All checks are on whole columns, so a million rows take milliseconds.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError

OWN_COLUMNS = ("arrived_s", "prompt_tokens", "output_tokens")

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def check_requests(requests: pd.DataFrame) -> pd.DataFrame:
    """A checked copy of a requests frame, its columns made numbers, rows numbered from 0.

    With a column `after` (the row that must finish first, −1 for none) the rows that have one need no time of
    arrival: it is NaN, and `think_s` says how long after that finish they come.

    Raises:
        InputError: a column is missing, there is no row, or a row is bad: not a number, a time before 0 or before
            the row above, fewer than one token, `after` that is not an earlier row; names row and column.
    """
    missing = [name for name in OWN_COLUMNS if name not in requests]
    if missing:
        raise InputError(
            f"requests: found no column {', '.join(missing)}; needed are {', '.join(OWN_COLUMNS)}"
        )
    if requests.empty:
        raise InputError("requests: found no rows, allowed is at least one")
    checked = requests.reset_index(drop=True)

    def numbers(name: str) -> FloatArray:
        return pd.to_numeric(checked[name], errors="coerce").to_numpy(dtype=np.float64)

    def refuse(name: str, bad: BoolArray, allowed: str) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(
                f"requests: row {row}: {name}: found {requests[name].iloc[row]}, allowed is {allowed}"
            )

    waits = np.zeros(len(checked), dtype=bool)
    if "after" in checked:
        after = np.nan_to_num(numbers("after"), nan=-1.0)
        earlier = (after >= -1) & (after < np.arange(len(after))) & (after == np.floor(after))
        refuse("after", ~earlier, "the number of an earlier row, or −1")
        checked["after"] = after.astype(np.int64)
        waits = after >= 0
        think_s = numbers("think_s") if "think_s" in checked else np.zeros(len(after))
        refuse("think_s", waits & ~(np.isfinite(think_s) & (think_s >= 0)), "a finite time ≥ 0 s")
        checked["think_s"] = np.where(waits, think_s, 0.0)
    arrived_s = numbers("arrived_s")
    refuse("arrived_s", ~np.isfinite(arrived_s) & ~waits, "a finite number")
    refuse("arrived_s", ~np.isnan(arrived_s) & waits, "no time (NaN) in a row that waits for another")
    refuse("arrived_s", arrived_s < 0, "≥ 0 s")
    rows = np.flatnonzero(~waits)
    backwards = np.zeros(len(checked), dtype=bool)
    backwards[rows[1:]] = np.diff(arrived_s[rows]) < 0
    refuse("arrived_s", backwards, "a time not before the row above")
    checked["arrived_s"] = arrived_s
    for name in OWN_COLUMNS[1:]:
        values = numbers(name)
        refuse(name, ~np.isfinite(values), "a finite number")
        refuse(name, (values < 1) | (values != np.floor(values)), "a whole number ≥ 1")
        checked[name] = values.astype(np.int64)
    return checked
