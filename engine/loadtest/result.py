"""Result of a load: the times of each request as its client saw them, and the field's measures of them.

Measures, with the times of the pieces of the stream as they reach this process:

- TTFT: first token − intended arrival (vLLM, AIPerf and GuideLLM count from sending);
- TPOT: (last − first token) / (output tokens − 1), as in `vllm bench serve`; AIPerf and GuideLLM call it inter-token
  latency (GuideLLM's TPOT is another: it includes the first token);
- ITL: every gap between two pieces of an answer, pooled over all answers, as in `vllm bench serve`;
- E2E: last token − intended arrival;
- goodput: requests that finish and meet every goal, as a share and per second (DistServe, Zhong et al. 2024).

Gaps are kept as a histogram with bins of 1 %: answers of a million requests have hundreds of millions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError
from engine.loadtest.client import Dialect

FloatArray = NDArray[np.float64]

PERCENTILES = (50, 95, 99)
GOALS = ("ttft", "tpot", "e2e", "itl")
STATUSES = ("finished", "timed_out", "rejected", "lost")  # those of a simulated fleet
_SHORTEST_GAP_S, _BINS_PER_E, _BINS = 1e-6, 100, 2100  # up to 1300 s


class GapHistogram:
    """Gaps between tokens, to 1 %, in the memory of a page; the mean is exact."""

    def __init__(self) -> None:
        self._counts = [0] * _BINS
        self.count, self.total_s = 0, 0.0

    def add(self, gap_s: float) -> None:
        """Count a gap, in seconds."""
        place = int(math.log(max(gap_s, _SHORTEST_GAP_S) / _SHORTEST_GAP_S) * _BINS_PER_E)
        self._counts[min(place, _BINS - 1)] += 1
        self.count += 1
        self.total_s += gap_s

    def percentile(self, percent: float) -> float:
        """The gap in seconds that `percent` % of all don't exceed, to 1 %; NaN without any."""
        if not self.count:
            return math.nan
        below = np.cumsum(self._counts)
        place = int(np.searchsorted(below, percent / 100 * self.count * (1 - 1e-12)))
        return _SHORTEST_GAP_S * math.exp((place + 0.5) / _BINS_PER_E)


@dataclass
class LoadResult:
    """Result of a load.

    `requests`: a row per request that ended, in the order of arrival: request_id, arrived_s (as intended), sent_s,
    scheduled_s (NaN: not seen from outside), first_token_s, finished_s (last token), prompt_tokens, output_tokens,
    pieces, itl_max_s, cached_tokens (0 if the server doesn't say), preemptions (0: not seen), replica (0), status and
    error. Seconds since the start; NaN: never came. `sim.serving.metrics.latencies` and `meets`, and
    `sim.validation.compare.measures`, read it as they read a replay.
    """

    requests: pd.DataFrame
    gaps: GapHistogram
    dialect: Dialect
    concurrency: int | None  # of a closed loop
    wall_s: float
    unfinished: int = 0  # sent or not, when it was interrupted
    notes: list[str] = field(default_factory=list)

    def times(self) -> pd.DataFrame:
        """ttft_s, tpot_s (NaN for one token), e2e_s and late_s (sent − intended) of each request."""
        frame = self.requests
        more = frame["output_tokens"].to_numpy(dtype=float) - 1
        done = (frame["status"] == "finished").to_numpy()
        decoding_s = np.where(done, frame["finished_s"] - frame["first_token_s"], math.nan)
        return pd.DataFrame(
            {
                "ttft_s": frame["first_token_s"] - frame["arrived_s"],
                "tpot_s": decoding_s / np.where(more > 0, more, math.nan),
                "e2e_s": np.where(done, frame["finished_s"] - frame["arrived_s"], math.nan),
                "late_s": frame["sent_s"] - frame["arrived_s"],
            }
        )

    def summary(self, goals: Mapping[str, float] | None = None) -> dict[str, Any]:
        """The field's metrics: ttft, tpot, e2e, itl and late, each as _mean_s, _p50_s, _p95_s, _p99_s, _max_s; rates.

        Args:
            goals: limits in seconds for "ttft", "tpot", "e2e" or "itl" (the longest gap of a request). Adds the share
                of all ended requests that meet each (NAME_met) and all of them (goodput), and goodput_rps. A
                request that didn't finish meets none; one with a single token has no TPOT or ITL to miss.

        Raises:
            InputError: an unknown goal, or a limit that isn't positive.
        """
        frame, times = self.requests, self.times()
        done = (frame["status"] == "finished").to_numpy()
        ended_s = float(np.nanmax([*frame["finished_s"], *frame["sent_s"]])) if len(frame) else math.nan
        duration_s = ended_s - float(frame["arrived_s"].min()) if len(frame) else math.nan
        per_s = 1 / duration_s if duration_s and duration_s > 0 else math.nan
        found: dict[str, Any] = {
            "requests": len(frame),
            **{status: int((frame["status"] == status).sum()) for status in STATUSES},
            "unfinished": self.unfinished,
            "duration_s": duration_s,
            "requests_per_s": float(done.sum()) * per_s,
            "prompt_tokens_per_s": float(frame["prompt_tokens"].to_numpy()[done].sum()) * per_s,
            "output_tokens_per_s": float(frame["output_tokens"].to_numpy()[done].sum()) * per_s,
        }
        for name in ("ttft", "tpot", "e2e", "late"):
            values = times[f"{name}_s"].dropna().to_numpy()
            found[f"{name}_mean_s"] = float(values.mean()) if len(values) else math.nan
            for percent in PERCENTILES:
                found[f"{name}_p{percent}_s"] = (
                    float(np.percentile(values, percent)) if len(values) else math.nan
                )
            found[f"{name}_max_s"] = float(values.max()) if len(values) else math.nan
        found["itl_mean_s"] = self.gaps.total_s / self.gaps.count if self.gaps.count else math.nan
        for percent in PERCENTILES:
            found[f"itl_p{percent}_s"] = self.gaps.percentile(percent)
        kinds = frame.loc[frame["error"] != "", "error"].str.split(":").str[0].value_counts()
        found["errors"] = {str(kind): int(count) for kind, count in kinds.items()}
        if goals:
            measured = times.assign(itl_s=frame["itl_max_s"])
            met = np.ones(len(frame), dtype=bool)
            for name, limit_s in goals.items():
                if name not in GOALS or not limit_s > 0:
                    raise InputError(
                        f"goal {name}={limit_s}: allowed are {', '.join(GOALS)} with a limit in seconds > 0"
                    )
                each = done & ~(measured[f"{name}_s"].to_numpy() > limit_s)
                found[f"{name}_met"] = float(each.mean()) if len(each) else math.nan
                met &= each
            found["goodput"] = float(met.mean()) if len(met) else math.nan
            found["goodput_rps"] = float(met.sum()) * per_s
        return found
