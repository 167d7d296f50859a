"""The distributions of a scenario: found among its values, and checked against the keys they stand at."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel

from engine.errors import InputError
from sim.scenario.conditions import parse_condition, require_outcomes
from sim.scenario.correlation import Pair, normal_correlation
from sim.scenario.distributions import Distribution, is_distribution, parse_distribution
from sim.scenario.fields import Problem, field_at, leaves

if TYPE_CHECKING:
    from sim.scenario.schema import ScenarioFields, Uncertainty


def distributions_in(
    values: Mapping[str, Any],
    schema: type[BaseModel],
    refuse: Callable[[Problem], InputError],
    folder: Path | None = None,
) -> tuple[dict[str, Any], dict[str, Distribution]]:
    """(the values with the median in place of each distribution, {dotted key: distribution}).

    Args:
        values: plain values of a scenario, as in its file.
        schema: its class; a text is a distribution only where a number belongs.
        refuse: makes the error of a mistake.
        folder: where files lie that a distribution names; None allows none.

    Raises:
        InputError: a text that is no distribution.
    """
    found: dict[str, Distribution] = {}

    def walk(node: Any, path: tuple[str, ...]) -> Any:
        if isinstance(node, Mapping):
            return {key: walk(value, (*path, key)) for key, value in node.items()}
        if not is_distribution(node):
            return node
        field = field_at(schema, path)
        kinds = set() if field is None else _kinds(field.annotation)
        if not kinds & {int, float}:
            return node
        key = ".".join(path)
        try:
            found[key] = parse_distribution(node, whole=float not in kinds, folder=folder)
        except InputError as error:
            raise refuse(Problem(key, str(error))) from None
        return found[key].median

    return walk(values, ()), found


def range_problem(distribution: Distribution, checked_with: Callable[[float], object]) -> str | None:
    """What is wrong with the range of a distribution, None if nothing is.

    Args:
        distribution: whose ends are tried.
        checked_with: checks the scenario with a value at the key, and raises InputError.
    """
    for end in distribution.range:
        try:
            checked_with(int(end) if distribution.whole else end)
        except InputError as error:
            return (
                f"found {distribution}, which reaches {end:.4g}, allowed: {error.allowed}; "
                "cut it off with `within [low, high]` behind it"
            )
    return None


def uncertainty_problem(fields: ScenarioFields, uncertain: Mapping[str, Distribution]) -> Problem | None:
    """The first mistake in the section `uncertainty`, None when there is none.

    `uncertain`: the distribution of each key that has one.
    """
    return next(_problems(fields, uncertain), None)


def pairs(section: Uncertainty, uncertain: Container[str]) -> list[Pair]:
    """(key, key, rank correlation) of all uncertain assumptions that move together."""
    return [
        (entry.between[0], entry.between[1], entry.rank)
        for entry in section.correlations
        if all(key in uncertain for key in entry.between)
    ]


def _problems(fields: ScenarioFields, uncertain: Mapping[str, Distribution]) -> Iterator[Problem]:
    where = "uncertainty.correlations"
    # A key with a single value is no mistake: a study may have fixed it.
    known = {key for key, _, _ in leaves(fields)}
    seen: set[frozenset[str]] = set()
    for entry in fields.uncertainty.correlations:
        one, other = entry.between
        for key in (one, other):
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
                yield Problem(where, f"found {key!r}, an unknown key, nearest is {near[0]}")
        if one == other:
            yield Problem(where, f"found {one!r} with itself", "two keys")
        if frozenset((one, other)) in seen:
            yield Problem(where, f"found {one!r} and {other!r} twice", "each pair once")
        seen.add(frozenset((one, other)))
    try:
        normal_correlation(list(uncertain), pairs(fields.uncertainty, uncertain))
    except InputError as error:
        yield Problem(where, str(error))
    for outcome, relation in fields.uncertainty.targets.items():
        try:
            target = parse_condition(f"{outcome.removeprefix('out.')} {relation}")
            require_outcomes([target.measure])
        except InputError as error:
            yield Problem(f"uncertainty.targets.{outcome}", str(error))


def _kinds(annotation: Any) -> set[Any]:
    """The single types that an annotation allows; of a mapping those of its values."""
    if get_origin(annotation) is dict:
        return _kinds(get_args(annotation)[1])
    inner = get_args(annotation)
    return set().union(*(_kinds(kind) for kind in inner)) if inner else {annotation}
