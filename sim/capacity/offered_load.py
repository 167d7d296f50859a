"""What is asked of a fleet, at any rate: the same requests, closer together or further apart.

Models demand that grows without changing its nature. A search for the highest rate needs that: it asks at many rates,
and what differs between them must be the rate alone. So each workload draws common random numbers for one seed, and
its arrivals are stretched to have exactly the mean rate asked for: by chance the rate of n arrivals is off by 1/√n,
which is an error of the capacity and nothing else.

- A traffic mix or a fitted workload: lengths are stratified in blocks of 2,000 requests (every block has the mix's
  lengths in random order), so that blocks are the batches of `sim.serving.batch_means`. Bursts last as long at every
  rate.
- Conversations: sessions start more often; what people do within one stays as it is.
- A recorded trace: its arrivals rescaled in time; think times stay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError
from sim.traces.fit import FittedWorkload
from sim.workload.arrivals import Process, arrival_times
from sim.workload.conversations import CONVERSATION_CLASSES, ConversationClass, conversations
from sim.workload.generate import draw_requests
from sim.workload.requests import check_requests
from sim.workload.traffic_classes import TrafficClass, traffic_mix

BLOCK = 2000  # requests: 100 of them lie beyond the 95th percentile
_FEWEST = 100  # rows of a trace


@dataclass(frozen=True)
class OfferedLoad:
    """Requests at any rate; `content` describes them as JSON values, for cache keys."""

    name: str
    content: dict[str, Any]
    draw: Callable[[float, int, int], pd.DataFrame] = field(repr=False)  # (requests/s, requests, seed)
    rows: int | None = None  # a trace has so many requests, no more and no fewer

    def at(self, rate_rps: float, requests: int, seed: int = 0) -> pd.DataFrame:
        """About `requests` requests at a mean rate, as `sim.serving.replay.replay_fleet` takes them.

        Raises:
            InputError: a rate or number of requests that is not above 0.
        """
        if not 0 < rate_rps < np.inf or requests < 1:
            raise InputError(
                f"offered load: found {requests} requests at {rate_rps}/s, allowed are numbers above 0"
            )
        frame = self.draw(rate_rps, requests, seed)
        arrived_s = frame["arrived_s"].to_numpy(dtype=np.float64)
        last_s = float(np.nanmax(arrived_s))
        return frame.assign(arrived_s=arrived_s * (len(frame) / rate_rps / last_s) if last_s else arrived_s)


def traffic_load(
    traffic: Mapping[str, float],
    classes: Mapping[str, TrafficClass] | None = None,
    *,
    process: Process | None = None,
    shape: NDArray[np.float64] | None = None,
    max_context_tokens: int | None = None,
    block_tokens: int = 16,
    name: str = "",
) -> OfferedLoad:
    """A mix of traffic classes; arguments as of `sim.workload.generate.generate`.

    Raises:
        InputError: unknown class, bad share, bad limit.
    """
    mix = traffic_mix(traffic, classes)
    shares = {kind.name: share for kind, share in mix}
    known = {kind.name: kind for kind, _ in mix}

    # Poisson arrivals at another rate are the same ones rescaled; bursts are not, they keep their length.
    @lru_cache(maxsize=2)
    def lengths(requests: int, seed: int) -> pd.DataFrame:
        streams = np.random.default_rng(seed).spawn(-(-requests // BLOCK))
        blocks = [
            draw_requests(
                shares,
                min(BLOCK, requests - number * BLOCK),
                rng=stream,
                max_context_tokens=max_context_tokens,
                block_tokens=block_tokens,
                stratified=True,
                classes=known,
            )
            for number, stream in enumerate(streams)
        ]
        return pd.concat(blocks, ignore_index=True)

    def draw(rate_rps: float, requests: int, seed: int) -> pd.DataFrame:
        times_s = arrival_times(
            rate_rps, requests=requests, rng=np.random.default_rng([seed, 1]), shape=shape, process=process
        )
        return lengths(requests, seed).assign(arrived_s=times_s)

    content = {
        "traffic": [{"share": share, **asdict(kind)} for kind, share in mix],
        "process": None if process is None else {"kind": type(process).__name__, **asdict(process)},
        "shape": None if shape is None else np.asarray(shape).ravel().tolist(),
        "max_context_tokens": max_context_tokens,
        "block_tokens": block_tokens,
    }
    described = ", ".join(f"{key} {share:.0%}" for key, share in shares.items())
    return OfferedLoad(name or described, content, draw)


def fitted_load(fitted: FittedWorkload, *, max_context_tokens: int | None = None) -> OfferedLoad:
    """The generator of a trace (see `sim.traces.fit`)."""
    shape = fitted.arrivals.shape
    return traffic_load(
        {each.name: each.share for each in fitted.classes},
        {each.name: each.traffic_class(fitted.source) for each in fitted.classes},
        process=fitted.arrivals.process,
        shape=None if shape is None else np.array(shape, dtype=np.float64),
        max_context_tokens=max_context_tokens,
        name=fitted.source,
    )


def conversation_load(
    kind: ConversationClass | str, *, max_context_tokens: int | None = None, block_tokens: int = 16
) -> OfferedLoad:
    """Conversations; the rate is that of requests, all turns counted.

    Raises:
        InputError: unknown class, or a context that its system prompt does not fit in.
    """
    chosen = CONVERSATION_CLASSES.get(kind) if isinstance(kind, str) else kind
    if chosen is None:
        allowed = ", ".join(sorted(CONVERSATION_CLASSES))
        raise InputError(f"conversation class {kind!r}: unknown, allowed: {allowed}")

    def draw(rate_rps: float, requests: int, seed: int) -> pd.DataFrame:
        turns = chosen.turns_mean
        if chosen.turns_shares is not None:
            shares = np.array(chosen.turns_shares, dtype=np.float64)
            turns = float(np.arange(1, len(shares) + 1) @ shares / shares.sum())
        return conversations(
            chosen,
            rate_rps / turns,
            sessions=max(1, round(requests / turns)),
            rng=seed,
            max_context_tokens=max_context_tokens,
            block_tokens=block_tokens,
        )

    draw(1.0, 1, 0)  # refuses now what it would refuse later
    content = {
        "conversation": asdict(chosen),
        "max_context_tokens": max_context_tokens,
        "block_tokens": block_tokens,
    }
    return OfferedLoad(f"{chosen.name} conversations", content, draw)


def trace_load(requests: pd.DataFrame, name: str = "trace") -> OfferedLoad:
    """A recorded trace, its arrivals rescaled in time; every rate sees all of its requests.

    Raises:
        InputError: bad requests, or too few of them, or all at one time.
    """
    checked = check_requests(requests)
    arrived_s = checked["arrived_s"].to_numpy(dtype=np.float64)
    free = np.isfinite(arrived_s)
    if len(checked) < _FEWEST:
        raise InputError(
            f"{name}: found {len(checked)} requests, allowed are {_FEWEST} or more to search a rate with"
        )
    span_s = float(np.ptp(arrived_s[free]))
    if span_s <= 0:
        raise InputError(
            f"{name}: found all requests at one time, allowed are arrivals that can be rescaled in time"
        )
    # The first waits its mean gap, like those that are drawn.
    base = checked.assign(arrived_s=arrived_s - arrived_s[free][0] + span_s / max(1, free.sum() - 1))
    columns = [c for c in base.columns if c not in ("prefix_hashes", "request_id")]
    digest = hashlib.sha256(pd.util.hash_pandas_object(base[columns], index=False).to_numpy().tobytes())
    if "prefix_hashes" in base:
        digest.update(repr(base["prefix_hashes"].tolist()).encode())
    content = {"trace": digest.hexdigest(), "rows": len(base)}
    return OfferedLoad(name, content, lambda _rate, _requests, _seed: base, rows=len(base))
