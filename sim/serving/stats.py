"""What a replay counts while it runs: time, batches, KV blocks, tokens and steps of each replica."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.serving.fleet_config import ReplicaSpec

Floats = NDArray[np.float64]


@dataclass
class ReplayStats:
    """What a replay counted beside the times of each request. Arrays are [replicas]."""

    started_s: float  # first arrival
    ended_s: float  # when the last request was answered, or given up
    request_time_s: float  # requests in the system × seconds: the integral that Little's law speaks of
    busy_s: Floats  # in steps
    batch_time_s: Floats  # requests in steps × seconds
    kv_block_time_s: Floats  # KV blocks held × seconds, while in steps
    prefill_tokens: Floats  # computed, recomputed ones included
    decode_tokens: Floats
    attention_pairs: Floats  # query-key pairs of prefill
    context_tokens: Floats  # cached tokens that decodes read
    steps: Floats  # engine steps
    events: Floats  # runs of unchanged steps that they were simulated in
    up_s: Floats  # paid for
    records: pd.DataFrame | None = None  # every run of steps, if asked for (see `sim.serving.timeline`)
    kinds: tuple[ReplicaSpec, ...] = field(default=(), repr=False)  # of each replica

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last finish; NaN if no time passed."""
        return self.ended_s - self.started_s or math.nan

    @property
    def busy_fraction(self) -> float:
        """Part of the replicas' time that they ran steps in."""
        return float(self.busy_s.sum() / (self.up_s.sum() or math.nan))

    @property
    def batch_mean(self) -> float:
        """Requests in a step, averaged over the time in which any ran; NaN if steps took no time."""
        return float(self.batch_time_s.sum() / (self.busy_s.sum() or math.nan))
