"""Shapley's values: the contribution of each of several interacting causes to a difference.

Shapley's value of a cause is its mean contribution over all orders in which the causes can be brought in
(L. S. Shapley, "A value for n-person games", 1953):

    φ_i = Σ_{S ∌ i} |S|! (n − |S| − 1)! / n! · (v(S ∪ {i}) − v(S)),     Σ φ_i = v(all) − v(none)

v(S) is the outcome with the causes S brought in. It is the only division that is efficient (adds up), symmetric,
zero for a cause without effect, and additive over outcomes. Values are exact fractions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import combinations

import numpy as np

Coalition = frozenset[int]
Worth = Callable[[Coalition], Fraction]


def coalitions(players: int) -> list[Coalition]:
    """All 2^players sets of causes, from the empty set to the full one."""
    return [frozenset(chosen) for size in range(players + 1) for chosen in combinations(range(players), size)]


def shapley(players: int, worth: Worth) -> list[Fraction]:
    """Shapley's value of each cause, exactly; evaluates `worth` at every coalition."""
    known = {coalition: worth(coalition) for coalition in coalitions(players)}
    weights = [
        Fraction(math.factorial(size) * math.factorial(players - size - 1), math.factorial(players))
        for size in range(players)
    ]
    values = [Fraction(0)] * players
    for coalition, before in known.items():
        for player in range(players):
            if player not in coalition:
                values[player] += weights[len(coalition)] * (known[coalition | {player}] - before)
    return values


def contributions(order: Sequence[int], worth: Worth) -> list[Fraction]:
    """Contribution of each cause when they are applied in this order; the sum is v(all) − v(none)."""
    values = [Fraction(0)] * len(order)
    inside: Coalition = frozenset()
    before = worth(inside)
    for player in order:
        inside = inside | {player}
        after = worth(inside)
        values[player] = after - before
        before = after
    return values


def drawn_orders(players: int, pairs: int, seed: int) -> list[list[int]]:
    """Random orders for an estimate of Shapley's values, each with its reverse (antithetic sampling)."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(players).tolist() for _ in range(pairs)]
    return [order for forward in orders for order in (forward, forward[::-1])]


def whole_parts(values: Sequence[Fraction]) -> list[int]:
    """Whole numbers next to `values` with the same (whole) sum, by the largest remainder method.

    Raises:
        ValueError: the sum is not whole.
    """
    total = sum(values, Fraction(0))
    if total.denominator != 1:
        raise ValueError(f"parts add up to {total}, allowed: a whole number")
    floors = [math.floor(value) for value in values]
    missing = int(total) - sum(floors)
    by_remainder = sorted(range(len(values)), key=lambda index: floors[index] - values[index])
    for index in by_remainder[:missing]:
        floors[index] += 1
    return floors
