"""Tables that the two implementations of a replica (`sim/serving/replica.py`, `sim/serving/c/`) share: one row
per request, per replica, and per run of steps. Order and types are those of the C structs."""

from __future__ import annotations

import numpy as np

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
