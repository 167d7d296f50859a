"""The table of a waterfall chart: from one number to another by terms that add up.

Terms are exact fractions; an amount of money is divided in whole micro-dollars, so the bars meet to the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import pandas as pd

from sim.accounting.ledger import MICRO_PER_USD
from sim.study.shapley import whole_parts


@dataclass(frozen=True)
class Term:
    """One cause of a difference; `standard_error` over seeds, NaN with one seed."""

    name: str
    change: Fraction
    standard_error: float


def waterfall(
    start: Fraction, end: Fraction, terms: Sequence[Term], names: tuple[str, str], *, money: bool
) -> pd.DataFrame:
    """One row per bar: the start, the terms (largest first), the end.

    Columns: kind ("start", "change", "end"), term, change, standard_error, bottom and top of the bar,
    running (the level after it); for money also change_micro_usd, whole numbers that add up exactly.

    Args:
        start: the number explained, in its unit (USD for money, in whole micro-dollars).
        end: the other number.
        terms: causes; they add up to end − start.
        names: what start and end are called.
        money: whether the unit is USD.

    Raises:
        ValueError: the terms don't add up.
    """
    if sum((term.change for term in terms), Fraction(0)) != end - start:
        raise ValueError(f"terms add up to {sum(term.change for term in terms)}, not to {end - start}")
    ordered = sorted(terms, key=lambda term: -abs(term.change))
    changes = [term.change for term in ordered]
    if money:
        changes = [
            Fraction(part, MICRO_PER_USD)
            for part in whole_parts([change * MICRO_PER_USD for change in changes])
        ]
    rows = [_bar("start", names[0], Fraction(0), start, float("nan"), money)]
    level = start
    for term, change in zip(ordered, changes, strict=True):
        rows.append(_bar("change", term.name, level, level + change, term.standard_error, money))
        level += change
    rows.append(_bar("end", names[1], Fraction(0), end, float("nan"), money))
    return pd.DataFrame(rows)


def _bar(
    kind: str, term: str, before: Fraction, after: Fraction, standard_error: float, money: bool
) -> dict[str, object]:
    change = after - before
    bar: dict[str, object] = {
        "kind": kind,
        "term": term,
        "change": float(change),
        "standard_error": standard_error,
        "bottom": float(min(before, after)),
        "top": float(max(before, after)),
        "running": float(after),
    }
    if money:
        bar["change_micro_usd"] = int(change * MICRO_PER_USD)
    return bar
