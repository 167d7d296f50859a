"""The steps of a serving engine, seen from outside, through the gaps between the tokens that it streams.

An engine that batches continuously ends each step with a token for every request that decodes. So a stream is a clock
that ticks once per step:

- while N streams decode and nothing else runs, the gap between two ticks is a decode step of batch N;
- a prompt that comes meanwhile (a rider, with one token of output) is computed in steps that these streams share: the
  gap that ends when its token comes is a step with that prompt's chunk in it. A prompt longer than the engine's token
  budget stretches several gaps, and how the stretch is shared among them shows the budget;
- without streams beside it, the time to a prompt's first token is its step plus what a request costs on its way
  (network, HTTP, tokenizing): the time of a one-token prompt less one decode step;
- of N streams begun at once, those that got a token before the first one ended were running together: fewer than N
  shows the limit of running requests or, with long contexts, the room for keys and values.

Blind spots: an engine that streams several tokens in one piece without counting them, or several replicas behind one
address, whose streams don't share steps (a rider then stretches no gap).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError
from engine.loadtest.answer import Answer
from engine.loadtest.client import Client

FloatArray = NDArray[np.float64]

_SKIP_STEPS = 2  # after the last stream began: connections and caches settle
_STRETCHED = 0.15  # of the longest stretch: with it the prompt begins
_TELLING = 0.1  # of a full chunk: a second step with less may be a step without the prompt


@dataclass
class Ticks:
    """One stream: when its tokens came, and how many there were then."""

    times_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    answer: Answer = field(default_factory=Answer)

    @property
    def ended_s(self) -> float:
        """Time of the last token."""
        return self.times_s[-1] if self.times_s else float("inf")


@dataclass(frozen=True)
class Rider:
    """A prompt that came while the streams decoded: sent and answered (one token) at these times."""

    prompt_tokens: int
    sent_s: float
    first_s: float


@dataclass
class Burst:
    """N streams begun at once, with the same prompt and answer lengths, and the riders that came meanwhile."""

    streams: list[Ticks]
    prompt_tokens: int
    output_tokens: int
    riders: list[Rider] = field(default_factory=list)

    def refusals(self) -> list[Answer]:
        """Answers that did not finish."""
        return [stream.answer for stream in self.streams if stream.answer.status != "finished"]

    def together(self) -> list[Ticks]:
        """The streams that ran at the same time: begun before the first one ended."""
        first_end_s = min(stream.ended_s for stream in self.streams)
        return [stream for stream in self.streams if stream.times_s and stream.times_s[0] < first_end_s]

    def decode_steps(self) -> tuple[FloatArray, float]:
        """Seconds of the steps in which all that ran together decoded alone [steps], and their mean context."""
        running = self.together()
        begin_s = max((stream.times_s[0] for stream in running), default=0.0)
        end_s = min((stream.ended_s for stream in running), default=0.0)
        rows: list[tuple[float, float, int]] = []  # when the step ended, its time, tokens in the cache
        for stream in running:
            kept = [i for i, at_s in enumerate(stream.times_s) if begin_s <= at_s <= end_s]
            for i in kept[_SKIP_STEPS:-1]:
                before_s, after_s = stream.times_s[i], stream.times_s[i + 1]
                alone = not any(before_s < rider.first_s and rider.sent_s < after_s for rider in self.riders)
                if alone and after_s <= end_s and stream.tokens[i + 1] == stream.tokens[i] + 1:
                    rows.append((after_s, after_s - before_s, self.prompt_tokens + stream.tokens[i] - 1))
        if not rows:
            return np.array([]), 0.0
        # Every step shows once in each stream: its time is the median of these.
        ordered = np.array(sorted(rows))
        steps = np.array_split(ordered[:, 1], max(1, len(rows) // len(running)))
        return np.array([float(np.median(step)) for step in steps]), float(ordered[:, 2].mean())

    def shared_gaps(self, rider: Rider) -> list[float]:
        """Gaps between the streams' ticks from the rider's sending to its token, in order; the last ends with it."""
        found: list[list[float]] = []
        for stream in self.together():
            times = stream.times_s
            last = int(np.argmin([abs(at_s - rider.first_s) for at_s in times]))
            gaps = []
            for i in range(last, 0, -1):
                if times[i] <= rider.sent_s:
                    break
                gaps.append(times[i] - times[i - 1])
            found.append(gaps)
        if not found:
            return []
        steps = min(len(gaps) for gaps in found)
        return [float(np.median([gaps[i] for gaps in found])) for i in range(steps)][::-1]

    def context_at(self, at_s: float) -> float:
        """Mean tokens in the cache of a stream before the step that ended at a time."""
        counts = [
            stream.tokens[max(0, int(np.searchsorted(stream.times_s, at_s - 1e-9)) - 1)]
            for stream in self.together()
        ]
        return self.prompt_tokens + float(np.mean(counts)) - 1


async def burst(
    client: Client,
    streams: int,
    prompt_tokens: int,
    output_tokens: int,
    rng: np.random.Generator,
    riders: Sequence[int] = (),
) -> Burst:
    """Run `streams` requests at once, and one rider of each length after the other while all decode.

    Riders that would come after a stream ended are left out. Answers that went wrong are in `Burst.refusals`.
    """
    news = asyncio.Event()
    seen = Burst([Ticks() for _ in range(streams)], prompt_tokens, output_tokens)
    bodies = [client.body(client.prompt(prompt_tokens, rng), output_tokens) for _ in range(streams)]
    tasks = [
        asyncio.create_task(_follow(client, body, output_tokens, ticks, news))
        for body, ticks in zip(bodies, seen.streams, strict=True)
    ]

    async def until(ready: Callable[[], bool]) -> bool:
        """Wait for a state of the streams; False when one has ended first."""
        while not ready():
            if any(task.done() for task in tasks):
                return False
            news.clear()
            await news.wait()
        return not any(task.done() for task in tasks)

    try:
        clock = seen.streams[0].times_s
        if riders and await until(lambda: all(len(ticks.times_s) > _SKIP_STEPS for ticks in seen.streams)):
            for length in riders:
                begun = len(clock)
                if not await until(lambda begun=begun: len(clock) >= begun + 3):  # type: ignore[misc]
                    break
                answer = await client.stream(client.prompt(length, rng), 1)
                if answer.status != "finished" or any(task.done() for task in tasks):
                    break
                seen.riders.append(Rider(length, answer.sent_s, answer.first_token_s))
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return seen


async def _follow(client: Client, body: bytes, output_tokens: int, ticks: Ticks, news: asyncio.Event) -> None:
    def on_tokens(now_s: float, tokens: int) -> None:
        ticks.times_s.append(now_s)
        ticks.tokens.append(tokens)
        news.set()

    ticks.answer = await client.stream(body, output_tokens, on_tokens)
    news.set()


async def first_token_s(client: Client, prompt_tokens: int, rng: np.random.Generator) -> float:
    """Seconds from sending one prompt alone to its token.

    Raises:
        InputError: it wasn't answered.
    """
    answer = await client.stream(client.prompt(prompt_tokens, rng), 1)
    if answer.status != "finished" or not answer.pieces:
        raise InputError(f"{client.endpoint.url}: a prompt of {prompt_tokens} tokens: {answer.error}")
    return answer.first_token_s - answer.sent_s


def chunk_of(gaps_s: Sequence[float], plain_s: float, prompt_tokens: int) -> int | None:
    """Tokens of a full chunk of a rider's prompt, from the gaps that it stretched; None if one step took it whole.

    `plain_s`: a step of the streams alone. All chunks but the last are full ones. Each takes longer than the one
    before, for attention reads what came before; so the last is known by its share of what a full one would take there.
    """
    stretch = np.maximum(np.array(gaps_s) - plain_s, 0.0)
    if not stretch.any():
        return None
    *full, last = stretch[int(np.argmax(stretch >= _STRETCHED * stretch.max())) :]
    if not full:
        return None
    next_full = 2 * full[-1] - full[-2] if len(full) > 1 else full[-1]
    share = min(float(last / next_full), 1.0)
    if len(full) == 1 and share < _TELLING:
        return None
    return round(prompt_tokens / (len(full) + share))


def as_budget(tokens: float) -> int:
    """The power of two that a token budget is, as engines set it, if one lies within 15 %; else the number itself."""
    power = 2 ** round(np.log2(max(tokens, 1.0)))
    return int(power) if abs(power / tokens - 1) <= 0.15 else round(tokens)
