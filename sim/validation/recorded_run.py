"""A run that another server made: when its requests came, and when each got its first and its last token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError
from sim.traces.read import read_trace

TIME_COLUMNS = ("first_token_s", "finished_s")
_MOST_EARLY_S = 1e-6  # rounding in a file


def read_recorded(path: str | Path) -> pd.DataFrame:
    """Read a CSV with arrived_s, prompt_tokens, output_tokens, first_token_s, finished_s [, scheduled_s].

    All times are seconds on one clock. Further columns are ignored.

    Returns:
        Frame as `sim.serving.replay` gives it, one row per request in the file's order; scheduled_s is NaN
        where the file doesn't say.

    Raises:
        InputError: what `sim.traces.read.read_trace` refuses; a time missing, not finite, or before what comes
        earlier for
            that request. Names file and line (the header is line 1).
    """
    frame = read_trace(path)
    cells = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    cells.columns = pd.Index([str(name).strip() for name in cells.columns])
    missing = [name for name in TIME_COLUMNS if name not in cells]
    if missing:
        raise InputError(
            f"{path}: line 1: found no column {', '.join(missing)}; a recorded run has arrived_s,prompt_tokens,"
            f"output_tokens,{','.join(TIME_COLUMNS)}"
        )

    def refuse(name: str, bad: NDArray[np.bool_], why: str) -> None:
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InputError(f"{path}: line {row + 2}: {name}: found {cells[name].iloc[row]!r}, {why}")

    earlier, earlier_s = "arrived_s", frame["arrived_s"].to_numpy(dtype=float)
    for name in ("scheduled_s", *TIME_COLUMNS):
        if name not in cells:
            frame[name] = np.nan
            continue
        times = pd.to_numeric(cells[name].str.strip().iloc[: len(frame)], errors="coerce").to_numpy(
            dtype=float
        )
        refuse(name, ~np.isfinite(times), "allowed is a finite number of seconds")
        refuse(name, times < earlier_s - _MOST_EARLY_S, f"is before {earlier}")
        frame[name], earlier, earlier_s = times, name, times
    refuse(
        "finished_s",
        (frame["output_tokens"].to_numpy() > 1) & (frame["finished_s"] <= frame["first_token_s"]).to_numpy(),
        "is the time of the first token already, with more than one output token",
    )
    refuse(
        "first_token_s",
        (frame["first_token_s"] <= frame["arrived_s"]).to_numpy(),
        "is no time after arrived_s",
    )
    return frame
