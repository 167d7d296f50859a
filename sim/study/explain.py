"""Explanations of the difference of an outcome between two companies, by terms that add up.

By account: double entry makes every amount of money a sum of accounts, so the difference between two companies' cash or
profit is the sum of the accounts' differences, to the micro-dollar. By assumption: which of the changed assumptions
causes how much, as Shapley's values (`sim.study.shapley`) over runs of companies half-way between the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from engine.errors import InputError
from sim.accounting.ledger import MICRO_PER_USD, PROFIT_KINDS
from sim.scenario.conditions import Measure, require_outcomes
from sim.scenario.metrics import OUTCOMES
from sim.study.candidates import Candidates, common_points, first_error
from sim.study.differences import Difference, differences, grouped, hybrid
from sim.study.estimates import standard_error
from sim.study.runs.options import DEFAULT_OPTIONS, RunOptions
from sim.study.shapley import Coalition, coalitions, contributions, drawn_orders, shapley
from sim.study.waterfall import Term, waterfall

if TYPE_CHECKING:
    from engine.profile.profile import Profile
    from sim.scenario.scenario import Scenario

EXACT_GROUPS = 8  # up to which every coalition is run: 256 of them
MOST_EXACT = 12  # that may be asked for
_PAIRS = 8  # of drawn orders beyond that
BY_ACCOUNT = ("cash_usd_end", "profit_usd_total", "revenue_usd_total")
Method = Literal["exact", "orders", "sequence"]


@dataclass(frozen=True)
class Explanation:
    """The difference of an outcome between two scenarios, as a waterfall.

    `bars`: see `sim.study.waterfall.waterfall`; the terms are accounts, or groups of assumptions. `groups`: which keys
    each term of assumptions stands for, with both values: term, key, before, after. `method`: "accounts", "exact"
    (every coalition), "orders" (drawn ones, with a standard error per term) or "sequence" (one order, that of
    `groups`; another order divides the difference differently).
    """

    outcome: str
    names: tuple[str, str]
    seeds: int
    method: str
    bars: pd.DataFrame
    groups: pd.DataFrame
    runs: int


def explain_by_account(
    a: Scenario,
    b: Scenario,
    outcome: str,
    *,
    names: tuple[str, str] = ("A", "B"),
    seeds: int = 1,
    profile: Profile | None = None,
) -> Explanation:
    """Explain the difference of cash, profit or revenue from `a` to `b` by account; means over common seeds.

    Raises:
        InputError: another outcome, or as `simulate`.
    """
    from sim.company.simulate import simulate

    if outcome not in BY_ACCOUNT:
        raise InputError(f"outcome {outcome}: not a sum of accounts, allowed: {', '.join(BY_ACCOUNT)}")
    points = common_points(a, seeds)
    both: list[list[dict[str, int]]] = []
    for scenario in (a, b):
        ledgers = (simulate(scenario, point.seed, profile).statements.ledger for point in points)
        both.append([_by_account(outcome, ledger, scenario.horizon_months) for ledger in ledgers])
    before, after = both
    terms = []
    for account in before[0]:
        gains = [new[account] - old[account] for old, new in zip(before, after, strict=True)]
        if any(gains):
            terms.append(_mean_term(account, [Fraction(gain, MICRO_PER_USD) for gain in gains]))
    start, end = (
        sum((Fraction(sum(books.values()), MICRO_PER_USD) for books in side), Fraction(0)) / seeds
        for side in both
    )
    bars = _money_bars(start, end, terms, names)
    groups = pd.DataFrame(columns=["term", "key", "before", "after"])
    return Explanation(outcome, names, seeds, "accounts", bars, groups, 2 * seeds)


def explain_by_assumption(
    a: Scenario,
    b: Scenario,
    outcome: str,
    *,
    names: tuple[str, str] = ("A", "B"),
    seeds: int = 4,
    groups: Mapping[str, Sequence[str]] | None = None,
    method: Method | None = None,
    options: RunOptions = DEFAULT_OPTIONS,
) -> Explanation:
    """Attribute the difference of an outcome from `a` to `b` to the changed assumptions, by Shapley's values.

    Args:
        a: the scenario at the start.
        b: the scenario at the end.
        outcome: any outcome of a run (`sim.study.runs.outcomes`); means over common seeds.
        names: of the two.
        seeds: runs of each coalition.
        groups: {term: its keys, or prefixes of keys}; by default each key alone, or by section when there
            are more than 8. Assumptions that can't be changed one without the other are always one term.
        method: "exact", "orders" or "sequence"; by default exact up to 8 groups, drawn orders beyond.
        options: of the runs.

    Raises:
        InputError: nothing differs, an unknown outcome or group, an outcome that is undefined in some run.
    """
    require_outcomes([Measure(outcome)])
    found = differences(a, b)
    if not found:
        raise InputError(f"{names[0]}, {names[1]}: no assumption differs")
    terms = _feasible(a, b, _named_groups(found, groups))
    labels = list(terms)
    method = method or ("exact" if len(labels) <= EXACT_GROUPS else "orders")
    if method == "exact" and len(labels) > MOST_EXACT:
        raise InputError(
            f"exact: found {len(labels)} groups (2^{len(labels)} runs per seed), allowed: up to {MOST_EXACT}"
        )
    orders = [list(range(len(labels)))] if method == "sequence" else drawn_orders(len(labels), _PAIRS, a.seed)
    wanted = coalitions(len(labels)) if method == "exact" else _along(orders)
    with Candidates(a, common_points(a, seeds), options) as runner:
        changes = [hybrid(a, b, [one for index in sorted(s) for one in terms[labels[index]]]) for s in wanted]
        frames = runner.runs(changes)
    worth = {s: _exact_values(outcome, frame) for s, frame in zip(wanted, frames, strict=True)}
    parts: list[
        list[Fraction]
    ] = []  # of each seed (exact) or each order of each seed: what each group brings
    for n in range(seeds):

        def of_seed(coalition: Coalition, n: int = n) -> Fraction:
            return worth[coalition][n]

        if method == "exact":
            parts.append(shapley(len(labels), of_seed))
        else:
            parts += [contributions(order, of_seed) for order in orders]
    bars_terms = []
    for index, label in enumerate(labels):
        mean = sum((part[index] for part in parts), Fraction(0)) / len(parts)
        each = [float(part[index]) for part in parts]
        bars_terms.append(Term(label, mean, _error(each, len(orders) if method == "orders" else 1)))
    none, every = frozenset[int](), frozenset(range(len(labels)))
    start, end = (sum(worth[s], Fraction(0)) / seeds for s in (none, every))
    bars = (
        _money_bars(start, end, bars_terms, names)
        if OUTCOMES[outcome].unit == "USD"
        else waterfall(start, end, bars_terms, names, money=False)
    )
    return Explanation(outcome, names, seeds, method, bars, _group_table(terms), sum(map(len, frames)))


def _by_account(outcome: str, ledger: Any, months: int) -> dict[str, int]:
    """Contribution of each account to an amount over the whole run, in micro-dollars.

    Cash is minus the sum of all other balances, since debits and credits cancel.
    """
    totals = ledger.monthly_micro(months).sum(axis=1).tolist()
    kinds = {"profit_usd_total": PROFIT_KINDS, "revenue_usd_total": ("revenue",)}.get(outcome)
    return {
        account: -total
        for (account, kind), total in zip(ledger.chart.items(), totals, strict=True)
        if (account != "cash" if kinds is None else kind in kinds)
    }


def _mean_term(name: str, gains: list[Fraction]) -> Term:
    mean = sum(gains, Fraction(0)) / len(gains)
    return Term(name, mean, standard_error(np.array([float(gain) for gain in gains])))


def _money_bars(start: Fraction, end: Fraction, terms: list[Term], names: tuple[str, str]) -> pd.DataFrame:
    """A waterfall in whole micro-dollars; a mean over seeds is rounded to one at its two ends first."""
    ends = [Fraction(round(value * MICRO_PER_USD), MICRO_PER_USD) for value in (start, end)]
    left = (ends[1] - ends[0]) - (end - start)  # less than a micro-dollar
    if left and terms:
        largest = max(range(len(terms)), key=lambda index: abs(terms[index].change))
        term = terms[largest]
        terms = [*terms]
        terms[largest] = Term(term.name, term.change + left, term.standard_error)
    return waterfall(ends[0], ends[1], terms, names, money=True)


def _named_groups(
    found: list[Difference], groups: Mapping[str, Sequence[str]] | None
) -> dict[str, list[Difference]]:
    if groups is None:
        return grouped(found, EXACT_GROUPS)
    named: dict[str, list[Difference]] = {name: [] for name in groups}
    for one in found:
        owners = [
            name
            for name, starts in groups.items()
            if any(one.key == start or one.key.startswith(f"{start}.") for start in starts)
        ]
        if len(owners) > 1:
            raise InputError(f"groups: {one.key} is in {owners[0]} and in {owners[1]}, allowed: one group")
        named.setdefault(owners[0] if owners else one.key, []).append(one)
    empty = [name for name, members in named.items() if not members]
    if empty:
        raise InputError(f"groups: {empty[0]} holds no assumption that differs")
    return named


def _feasible(a: Scenario, b: Scenario, groups: dict[str, list[Difference]]) -> dict[str, list[Difference]]:
    """Groups merged until each of them can be applied without the others.

    Assumptions that are valid only together (two signup shares, a plan and the share it takes) are found by applying
    one group alone, and all groups but one.
    """
    while len(groups) > 1:
        invalid = next((label for label in groups if not _possible(a, b, groups, [label])), None)
        if invalid is None:
            return groups
        companies = [
            *([invalid, other] for other in groups if other != invalid),
            *_neighbourhoods(groups, invalid),
        ]
        together = next((one for one in companies if _possible(a, b, groups, one)), list(groups))
        joined = [label for label in groups if label in together]
        kept = {label: members for label, members in groups.items() if label not in joined}
        groups = {_joined(joined): [one for label in joined for one in groups[label]], **kept}
    return groups


def _neighbourhoods(groups: dict[str, list[Difference]], label: str) -> list[list[str]]:
    """The groups of the same section, from the innermost section outward."""
    path = groups[label][0].path
    return [
        [name for name, members in groups.items() if any(one.path[:depth] == path[:depth] for one in members)]
        for depth in range(len(path) - 1, 0, -1)
    ]


def _joined(labels: list[str]) -> str:
    return " + ".join(labels) if len(labels) <= 2 else f"{labels[0]} + {len(labels) - 1} more"


def _possible(a: Scenario, b: Scenario, groups: dict[str, list[Difference]], labels: Sequence[str]) -> bool:
    """Whether a scenario with only these groups, and one with all but these, is valid."""
    inside = [one for label in labels for one in groups[label]]
    outside = [one for label, members in groups.items() if label not in labels for one in members]
    try:
        for taken in (inside, outside):
            a.override(hybrid(a, b, taken))
    except InputError:
        return False
    return True


def _along(orders: list[list[int]]) -> list[Coalition]:
    """Every coalition along the orders, once."""
    met: dict[Coalition, None] = {}
    for order in orders:
        for size in range(len(order) + 1):
            met[frozenset(order[:size])] = None
    return list(met)


def _exact_values(outcome: str, runs: pd.DataFrame) -> list[Fraction]:
    if error := first_error(runs):
        raise InputError(f"a company half-way between the two can't be run: {error}; group these assumptions")
    values = Measure(outcome).each(runs)
    if not np.isfinite(values).all():
        raise InputError(
            f"outcome {outcome}: not a number in some run (never reached, or nothing to divide by), allowed: "
            "an outcome that every run has"
        )
    if OUTCOMES[outcome].unit == "USD":
        return [Fraction(round(value * MICRO_PER_USD), MICRO_PER_USD) for value in values.tolist()]
    return [Fraction(value) for value in values.tolist()]


def _error(each: list[float], orders: int) -> float:
    """Standard error of a term: over seeds (orders averaged first), or over orders with one seed."""
    values = np.array(each).reshape(-1, orders)
    return standard_error(values.mean(axis=1)) if len(values) > 1 else standard_error(values.ravel())


def _group_table(groups: dict[str, list[Difference]]) -> pd.DataFrame:
    rows = [
        {"term": label, "key": one.key, "before": one.before, "after": one.after}
        for label, members in groups.items()
        for one in members
    ]
    return pd.DataFrame(rows, columns=["term", "key", "before", "after"])
