"""Which replica a request goes to.

Models the router in front of a serving fleet. It knows what it has sent where and what came back, the prompts' lengths
and beginnings, and nothing about how long an answer will get. Where replicas differ in weight, it compares the load
that each would have with one request more, per weight.

- round_robin: the next in turn; with unequal weights each as often as its weight says, evenly spread (the smooth
  weighted round robin of nginx).
- least_outstanding: fewest requests sent and not finished.
- least_outstanding_tokens: fewest prompt tokens of such requests.
- power_of_two: the less loaded of two picked by chance (Mitzenmacher 2001).
- prefix_aware: where the longest beginning of the prompt went before, unless that replica is much busier than the
  least busy one (as SGLang's and vLLM's routers do).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from typing import Any

import numpy as np

Numbers = np.ndarray[Any, np.dtype[Any]]
Route = Callable[[int, Numbers], int]  # a request's row and the replicas to choose from, to one of them

_REMEMBERED_BLOCKS = 1_000_000  # of prompts, by the prefix-aware router
_LEAST_MATCH = 0.2  # of the prompt's blocks: a shorter common beginning is not worth a busier replica
_MOST_AHEAD = (
    1.5  # times the load of the least busy (and 8 requests more): beyond that the prefix is given up
)


def router(
    name: str,
    outstanding: Numbers,
    outstanding_tokens: Numbers,
    weights: Numbers | None,
    prefixes: Sequence[Sequence[Hashable]],
    rng: np.random.Generator,
) -> Route:
    """The router of that name; loads are by replica and read whenever it decides, weights too (None: all equal)."""

    def least(load: Numbers, among: Numbers) -> int:
        if len(among) == 1:
            return int(among[0])
        loads = load[among]
        return int(among[(loads if weights is None else (loads + 1) / weights[among]).argmin()])

    def weight(replica: int) -> float:
        return 1.0 if weights is None else float(weights[replica])

    if name == "round_robin" and weights is not None:
        credit = np.zeros(len(weights))

        def next_by_weight(_row: int, among: Numbers) -> int:
            shares = weights[among]
            credit[among] += shares
            chosen = int(among[credit[among].argmax()])
            credit[chosen] -= shares.sum()
            return chosen

        return next_by_weight
    if name == "round_robin":
        turn = [-1]

        def next_in_turn(_row: int, among: Numbers) -> int:
            turn[0] += 1
            return int(among[turn[0] % len(among)])

        return next_in_turn
    if name == "least_outstanding_tokens":
        return lambda _row, among: least(outstanding_tokens, among)
    if name == "power_of_two":
        return lambda _row, among: least(outstanding, among[rng.integers(len(among), size=2)])
    if name == "prefix_aware" and prefixes:
        places: OrderedDict[Hashable, int] = OrderedDict()  # block content to the replica it was last sent to
        forgets = len(set(chain.from_iterable(prefixes))) > _REMEMBERED_BLOCKS

        def with_prefix(row: int, among: Numbers) -> int:
            prefix = prefixes[row]
            chosen = least(outstanding, among)
            if prefix:
                matched = _matched(prefix, places, among)
                if matched is not None:
                    most = 8 + _MOST_AHEAD * outstanding[chosen] / weight(chosen)
                    if outstanding[matched] / weight(matched) <= most:
                        chosen = matched
                places.update(dict.fromkeys(prefix, chosen))
                if forgets:  # else the order of use doesn't matter
                    for content in prefix:
                        places.move_to_end(content)
                    while len(places) > _REMEMBERED_BLOCKS:
                        places.popitem(last=False)
            return chosen

        return with_prefix
    return lambda _row, among: least(outstanding, among)


def _matched(prefix: Sequence[Hashable], places: dict[Hashable, int], among: Numbers) -> int | None:
    """The replica that saw the longest beginning of the prompt, if that is long enough and it still serves.

    Who was sent a block last was sent all before it; those may have gone elsewhere since, as system prompts do.
    """
    known = list(map(places.get, prefix))
    length = known.index(None) if None in known else len(known)
    serving = set(among.tolist())
    while length and known[length - 1] not in serving:
        length -= 1
    return known[length - 1] if length and length >= _LEAST_MATCH * len(prefix) else None
