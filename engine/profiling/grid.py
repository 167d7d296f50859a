"""Which steps the profiler times, a grid over what the scheduler may put into one step, and what it keeps of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.profile.profile import Measurement

if TYPE_CHECKING:
    from engine.batch import SchedulerConfig

CHUNKS = (4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)  # tokens
# Requests. Kernels work on rows by fours and eights: sizes in between belong in, or the fit sees only the best ones.
BATCHES = (1, 2, 3, 4, 6, 8, 10, 14, 16, 24, 32, 48, 64, 96, 128, 192, 256)
LONGEST_TOKENS = 4096  # context


@dataclass(frozen=True)
class GridPoint:
    """One step to be timed: prefill chunks (tokens, context before) and the contexts of decoding requests."""

    kind: str  # "prefill", "decode" or "mixed"
    prefill: tuple[tuple[int, int], ...]
    decode_contexts: tuple[int, ...]

    @property
    def requests(self) -> int:
        """Requests in the step."""
        return len(self.prefill) + len(self.decode_contexts)


def default_grid(config: SchedulerConfig, max_context_tokens: int) -> list[GridPoint]:
    """Points that span what the scheduler may ask for: its token budget, its batch, contexts up to 4k."""
    room = config.num_blocks * config.block_tokens
    longest = min(max_context_tokens, room, LONGEST_TOKENS)
    budget, most = config.max_step_tokens, config.max_running_requests
    chunks = [size for size in CHUNKS if size <= budget]
    contexts = sorted({0, longest // 16, longest // 4, longest // 2, longest})
    batches = [size for size in BATCHES if size <= most]
    prefill = [
        GridPoint("prefill", ((chunk, context),), ())
        for i, chunk in enumerate(chunks)
        for j, context in enumerate(min(c, longest - chunk) for c in contexts)
        if (i + j) % 2 == 0  # a checkerboard: every chunk and every context, half the points
    ]
    prefill += [GridPoint("prefill", ((budget // parts, 0),) * parts, ()) for parts in (4, 16)]
    decode = [
        GridPoint("decode", (), (context,) * batch)
        for i, batch in enumerate(batches)
        for j, context in enumerate(max(1, c - 1) for c in contexts)
        if (i + j) % 2 == 0
    ]
    # Requests of all ages together, as when serving.
    decode += [GridPoint("decode", (), _spread(batch, longest // 2)) for batch in batches[2::2]]
    mixed = [
        GridPoint("mixed", ((chunk, context),), _spread(batch, 2 * age))
        for k, batch in enumerate((2, 8, 24, 48))
        for chunk, context, age in (
            (budget // 8, 0, longest // 16),
            (budget // 4, longest // 4, longest // 8),
            (budget - batch, longest // 16 if k % 2 else 0, longest // 16),
        )
    ]
    points = dict.fromkeys([*prefill, *decode, *mixed])  # each once, in order
    return [point for point in points if _is_allowed(point, config, longest)]


def _spread(batch: int, longest: int) -> tuple[int, ...]:
    """Contexts evenly spread from near 0 to `longest`."""
    return tuple(max(1, round(longest * (i + 0.5) / batch)) for i in range(batch))


def _is_allowed(point: GridPoint, config: SchedulerConfig, longest: int) -> bool:
    """Whether the scheduler could ask for this step: within its budgets, each token with its own slot."""
    requests = [*point.prefill, *((1, context) for context in point.decode_contexts)]
    blocks = sum(-(-(tokens + context) // config.block_tokens) for tokens, context in requests)
    return (
        all(tokens >= 1 and context >= 0 and tokens + context <= longest for tokens, context in requests)
        and sum(tokens for tokens, _ in requests) <= config.max_step_tokens
        and len(requests) <= config.max_running_requests
        and blocks <= config.num_blocks
    )


def is_held_out(index: int) -> bool:
    """One in four, shifted by one every four points so that no chunk size or context is always the one."""
    return (index + index // 4) % 4 == 2


def measurement(point: GridPoint, times_s: Sequence[float], held_out: bool = False) -> Measurement:
    """A step's median time, and the spread of its repeats: interquartile range / median."""
    low, middle, high = np.quantile(times_s, [0.25, 0.5, 0.75])
    return Measurement(
        kind=point.kind,
        prefill=point.prefill,
        decode_contexts=point.decode_contexts,
        time_s=float(middle),
        spread=float((high - low) / middle),
        repeats=len(times_s),
        held_out=held_out,
    )
