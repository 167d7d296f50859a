"""Tables that the two implementations of a replica (`sim/serving/replica.py`, `sim/serving/c/`) share: one row
per request, per replica, and per run of steps. Order and types are those of the C structs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

STATUSES = ("finished", "timed_out", "rejected", "lost")  # how a request ends, as its client sees it

REQUEST = np.dtype(
    [
        *((name, np.float64) for name in ("queued_s", "scheduled_s", "first_token_s", "finished_s")),
        *((name, np.int64) for name in ("added", "hash_start")),
        ("nodes", np.uint64),  # a pointer of the C code
        *((name, np.int32) for name in ("prompt", "output", "received", "priority", "hashes", "watched")),
        *((name, np.int32) for name in ("computed", "produced", "blocks", "drafts", "preemptions", "cached")),
        *((name, np.int32) for name in ("state", "cancelled", "replica", "client")),
    ],
    align=True,
)
COUNTS = np.dtype(
    [
        *(
            (name, np.float64)
            for name in ("busy_s", "batch_time_s", "kv_block_time_s", "request_time_s", "last_finish_s")
        ),
        *(
            (name, np.int64)
            for name in ("prefill_tokens", "decode_tokens", "context_tokens", "steps", "events")
        ),
        ("attention_pairs", np.float64),
    ]
)
STEP_RECORD = np.dtype(
    [
        ("started_s", np.float64),
        ("ended_s", np.float64),
        *(
            (name, np.int64)
            for name in ("replica", "steps", "decodes", "prefill_chunks", "prefill_tokens", "context_tokens")
        ),
        *((name, np.int64) for name in ("kv_blocks", "waiting", "running")),
    ]
)


def request_table(requests: pd.DataFrame, disaggregated: bool) -> np.ndarray[Any, Any]:
    """The table of requests (dtype REQUEST) before a replay.

    With prefill and decode replicas it has twice as many rows: the second half holds the decode half of each request.
    """
    count = len(requests)
    rows = np.zeros(count * (2 if disaggregated else 1), REQUEST)
    for name in ("scheduled_s", "first_token_s", "finished_s"):
        rows[name] = math.nan
    rows["replica"] = -1  # none yet
    first = rows[:count]
    rows["client"] = np.arange(len(rows)) % max(count, 1)
    first["prompt"], first["output"] = requests["prompt_tokens"], requests["output_tokens"]
    if "priority" in requests:
        first["priority"] = requests["priority"]
    if disaggregated:
        second = rows[count:]
        # The first token comes from the prefill replica, with the keys and values of the whole prompt.
        second["received"], second["prompt"] = first["prompt"], first["prompt"] + 1
        second["output"] = np.maximum(first["output"] - 1, 1)
        second["priority"] = first["priority"]
        first["output"], first["watched"] = 1, 1
    return rows
