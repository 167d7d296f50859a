"""Requests that wait for other requests: conversations that grow turn by turn, and users who wait for their answer.

Models single users, where `sim.workload.generate` models a crowd: a user who reads an answer before asking again
sends nothing while the fleet is slow. That is the difference between an open and a closed system (Schroeder, Wierman &
Harchol-Balter 2006): in the closed one the load gives way when waiting grows.

A conversation opens with a system prompt that all of its class share; each turn's prompt is everything said before
(the fleet's answers too) and what the user adds. So the blocks of a turn's prompt are found again in the prefix
cache, if they are still there. The number of turns is geometric with a given mean, or empirical; think times are
exponential, or lognormal by median and mean.

Both functions give the frame that `sim.serving.replay` takes, with two columns more: `after`, the row that
must finish first (−1 for none), and `think_s`, how long after its finish the request arrives; `arrived_s` is NaN in
such rows.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError
from sim.workload.arrivals import FloatArray, Process, arrival_times
from sim.workload.generate import draw_requests
from sim.workload.traffic_classes import TrafficClass, lognormal_sigma, token_lengths

# The order is part of what a seed means: append only.
STREAMS = ("arrivals", "turns", "user_tokens", "output_tokens", "think_s", "identities")
_MOST_TURNS = 100_000
_SESSION_BLOCKS = 31  # bits of a block's number within one frame


def _check_think(where: str, mean_s: float, median_s: float | None) -> None:
    if not 0 <= mean_s < math.inf:
        raise InputError(f"{where}: think_s_mean: found {mean_s}, allowed is a time ≥ 0 s")
    if median_s is not None and not 0 < median_s <= mean_s:
        raise InputError(
            f"{where}: think_s_median: found {median_s}, allowed is a time above 0 s and at most the mean"
        )


@dataclass(frozen=True)
class ConversationClass:
    """One kind of conversation: what each turn adds, how many turns there are, how long people think between them.

    Raises:
        InputError: a length below 1 token or a mean below its median, fewer than one turn, a negative time.
    """

    name: str
    user_tokens_median: float  # that the user adds in a turn
    user_tokens_mean: float
    output_tokens_median: float
    output_tokens_mean: float
    turns_mean: float  # geometric, unless `turns_shares` is given
    think_s_mean: float  # from the end of an answer to the next turn
    think_s_median: float | None = None  # lognormal; None: exponential
    turns_shares: tuple[float, ...] | None = None  # of conversations with 1, 2, 3 … turns
    system_tokens: int = 0  # before the first turn, the same in every conversation of this class
    source: str = "assumed"

    def __post_init__(self) -> None:
        where = f"conversation class {self.name}"
        for what in ("user", "output"):
            median, mean = getattr(self, f"{what}_tokens_median"), getattr(self, f"{what}_tokens_mean")
            if not (1 <= median <= mean < math.inf):
                raise InputError(
                    f"{where}: {what}_tokens: found median {median} and mean {mean}, allowed is 1 ≤ median ≤ mean"
                )
        if not 1 <= self.turns_mean <= _MOST_TURNS:
            raise InputError(f"{where}: turns_mean: found {self.turns_mean}, allowed is 1 to {_MOST_TURNS:,}")
        if self.turns_shares is not None:
            shares = np.array(self.turns_shares, dtype=np.float64)
            if not (shares.size and np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
                raise InputError(f"{where}: turns_shares: allowed are shares ≥ 0 of which one is above 0")
        if self.system_tokens < 0:
            raise InputError(f"{where}: system_tokens: found {self.system_tokens}, allowed is ≥ 0")
        _check_think(where, self.think_s_mean, self.think_s_median)


CONVERSATION_CLASSES: dict[str, ConversationClass] = {
    kind.name: kind
    for kind in (
        ConversationClass(
            "chat",
            60,
            120,
            129,
            211,
            turns_mean=4,
            think_s_mean=40,
            think_s_median=20,
            system_tokens=256,
            source="assumed; answers as in the Azure conversation trace 2023",
        ),
        ConversationClass(
            "agent",
            300,
            700,
            120,
            200,
            turns_mean=12,
            think_s_mean=4,
            think_s_median=2,
            system_tokens=2048,
            source="assumed: tool results come back within seconds, tools are described first",
        ),
    )
}


def conversations(
    kind: ConversationClass | str,
    sessions_per_s: float,
    *,
    sessions: int | None = None,
    duration_s: float | None = None,
    rng: np.random.Generator | int = 0,
    shape: FloatArray | None = None,
    process: Process | None = None,
    max_context_tokens: int | None = None,
    block_tokens: int = 16,
) -> pd.DataFrame:
    """Conversations that start at random and go on turn by turn; rows of a conversation follow each other.

    Args:
        kind: a class, or the name of one in CONVERSATION_CLASSES.
        sessions_per_s, sessions, duration_s, shape, process: when conversations start, see `arrival_times`; those
            that start in the window are complete.
        rng: generator or seed; each column draws from its own child stream.
        max_context_tokens: a conversation ends before the turn that would not fit; the first is cut to fit.
        block_tokens: tokens per KV block, for the hashes.

    Returns:
        Frame arrived_s (NaN after the first turn), prompt_tokens, output_tokens, traffic_class, session (number),
        turn (from 0), after, think_s, prefix_hashes: the key of each full block of the prompt. Keys are whole numbers
        below 2⁶³; those of the system prompt are the same in every frame of the class, all others differ.

    Raises:
        InputError: an unknown class, a bad rate or count, or a system prompt beyond the context.
    """
    if isinstance(kind, str):
        if kind not in CONVERSATION_CLASSES:
            raise InputError(
                f"conversation class {kind!r}: unknown, allowed: {', '.join(sorted(CONVERSATION_CLASSES))}"
            )
        kind = CONVERSATION_CLASSES[kind]
    if block_tokens < 1:
        raise InputError(f"block_tokens: found {block_tokens}, allowed is ≥ 1")
    if max_context_tokens is not None and max_context_tokens < kind.system_tokens + 2:
        raise InputError(
            f"max_context_tokens: found {max_context_tokens}, allowed is ≥ {kind.system_tokens + 2}: the system prompt "
            f"of {kind.name} and a token each for question and answer"
        )
    streams = dict(zip(STREAMS, np.random.default_rng(rng).spawn(len(STREAMS)), strict=True))
    starts_s = arrival_times(
        sessions_per_s,
        requests=sessions,
        duration_s=duration_s,
        rng=streams["arrivals"],
        shape=shape,
        process=process,
    )
    turns = _turns(kind, streams["turns"], len(starts_s))
    count = int(turns.sum())
    first = np.concatenate([[0], np.cumsum(turns)[:-1]]).astype(np.int64)[: len(turns)]  # row of each start
    session = np.repeat(np.arange(len(turns)), turns)
    user = token_lengths(
        kind.user_tokens_median,
        kind.user_tokens_mean,
        None,
        streams["user_tokens"].standard_normal(count),
    )
    output = token_lengths(
        kind.output_tokens_median,
        kind.output_tokens_mean,
        None,
        streams["output_tokens"].standard_normal(count),
    )
    if max_context_tokens is not None:
        room = max_context_tokens - kind.system_tokens
        output = np.minimum(output, room // 2)
        user[first] = np.minimum(user[first], room - output[first])
    said = np.cumsum(user + output)  # by all conversations so far
    before = np.concatenate([[0], said])[first]
    prompt = kind.system_tokens + said - output - before[session]
    think_s = _think(streams["think_s"], count, kind.think_s_mean, kind.think_s_median)
    turn = np.arange(count) - first[session]
    if max_context_tokens is not None:
        missed = np.cumsum(prompt + output > max_context_tokens)
        fits = missed == np.concatenate([[0], missed])[first][session]  # no turn so far that did not fit
        session, turn, prompt, output, think_s = (
            column[fits] for column in (session, turn, prompt, output, think_s)
        )
    rows = np.arange(len(turn))
    return pd.DataFrame(
        {
            "arrived_s": np.where(turn == 0, starts_s[session], np.nan),
            "prompt_tokens": prompt,
            "output_tokens": output,
            "traffic_class": np.full(len(turn), kind.name, dtype=object),
            "session": session,
            "turn": turn,
            "after": np.where(turn == 0, -1, rows - 1),
            "think_s": np.where(turn == 0, 0.0, think_s),
            "prefix_hashes": _block_keys(kind, session, prompt, block_tokens, streams["identities"]),
        }
    )


def closed_loop(
    users: int,
    traffic: Mapping[str, float],
    *,
    requests: int,
    think_s_mean: float,
    think_s_median: float | None = None,
    rng: np.random.Generator | int = 0,
    max_context_tokens: int | None = None,
    block_tokens: int = 16,
    classes: Mapping[str, TrafficClass] | None = None,
) -> pd.DataFrame:
    """Requests of `users` users, each of which thinks, asks, waits for the answer and thinks again.

    Args:
        users: how many.
        traffic, max_context_tokens, block_tokens, classes: see `sim.workload.generate.generate`.
        requests: of all users together; they take turns, so none asks more than once more than another.
        think_s_mean: of the time from the end of an answer to the next question.
        think_s_median: lognormal think times; None: exponential.
        rng: generator or seed.

    Returns:
        The frame of `generate` with user, after and think_s; every user thinks before the first question.

    Raises:
        InputError: no user, no request, a negative time, or bad traffic.
    """
    for name, value in (("users", users), ("requests", requests)):
        if isinstance(value, bool) or value != int(value) or value < 1:
            raise InputError(f"{name}: found {value}, allowed is a whole number ≥ 1")
    _check_think("closed loop", think_s_mean, think_s_median)
    lengths_rng, think_rng = np.random.default_rng(rng).spawn(2)
    drawn = draw_requests(
        traffic,
        requests,
        rng=lengths_rng,
        max_context_tokens=max_context_tokens,
        block_tokens=block_tokens,
        classes=classes,
    )
    think_s = _think(think_rng, requests, think_s_mean, think_s_median)
    starts = min(users, requests)
    rows = np.arange(requests)
    arrived_s = np.full(requests, np.nan)
    arrived_s[:starts] = np.sort(think_s[:starts])
    think_s[:starts] = 0.0
    drawn.insert(0, "arrived_s", arrived_s)
    return drawn.assign(user=rows % users, after=np.where(rows < users, -1, rows - users), think_s=think_s)


def _turns(kind: ConversationClass, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Turns of each conversation, by the inverse of the distribution function."""
    drawn = rng.random(count)
    if kind.turns_shares is not None:
        edges = np.cumsum(np.array(kind.turns_shares, dtype=np.float64))
        return 1 + np.searchsorted(edges[:-1] / edges[-1], drawn, side="right").astype(np.int64)
    if kind.turns_mean == 1:
        return np.ones(count, dtype=np.int64)
    turns = np.ceil(np.log1p(-drawn) / math.log1p(-1 / kind.turns_mean))
    return np.clip(turns, 1, _MOST_TURNS).astype(np.int64)


def _think(rng: np.random.Generator, count: int, mean_s: float, median_s: float | None) -> FloatArray:
    if median_s is None:
        return np.asarray(mean_s * rng.standard_exponential(count), dtype=np.float64)
    spread = lognormal_sigma(median_s, mean_s)
    return np.asarray(median_s * np.exp(spread * rng.standard_normal(count)), dtype=np.float64)


def _block_keys(
    kind: ConversationClass,
    session: NDArray[np.int64],
    prompt: NDArray[np.int64],
    block_tokens: int,
    rng: np.random.Generator,
) -> list[list[int]]:
    """Keys of the full blocks of each prompt; the turns of a conversation share its keys, number by number."""
    blocks = prompt // block_tokens
    shared = kind.system_tokens // block_tokens
    name = zlib.crc32(kind.name.encode())
    system_key = name << _SESSION_BLOCKS
    # Frames drawn with other seeds must not find each other's blocks.
    next_key = (name ^ int(rng.integers(1, 2**32))) << _SESSION_BLOCKS
    keys: list[list[int]] = []
    if not len(session):
        return keys
    # The last turn of a conversation has the longest prompt: its keys serve all.
    ends = np.append(np.flatnonzero(np.diff(session)), len(session) - 1)
    system_keys = list(range(system_key, system_key + shared))
    row = 0
    for end, longest in zip(ends.tolist(), blocks[ends].tolist(), strict=True):
        own = longest - shared
        all_keys = [*system_keys, *range(next_key, next_key + own)]
        next_key += own
        keys += [all_keys[:size] for size in blocks[row : end + 1].tolist()]
        row = end + 1
    return keys
