"""Differences between two scenarios, and hybrids of them: some assumptions of one, some of the other.

A difference is a dotted key with its two values. Entries of a mapping (plans, people, competitors …) that only
one scenario has are one difference as a whole: with the entry, or without it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.i18n.translate import mark
from sim.scenario.scenario import Scenario

ABSENT = mark("absent")  # shown for an entry that a scenario doesn't have
# Titles, notes and studies don't change a run; runs are compared at the same seeds.
_NO_EFFECT = ("name", "sources", "seed", "uncertainty")
_MISSING = object()
Path = tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """One assumption that differs; `before` and `after` are plain values, `ABSENT` for a missing entry."""

    path: Path
    before: Any
    after: Any

    @property
    def key(self) -> str:
        """The dotted key."""
        return ".".join(self.path)


def differences(a: Scenario, b: Scenario) -> list[Difference]:
    """Every assumption that differs from scenario `a` to scenario `b`, in the order of the schema."""
    found: list[Difference] = []
    _compare(plain(a), plain(b), (), found)
    return found


def plain(scenario: Scenario) -> dict[str, Any]:
    """All values that a run depends on, except the seed."""
    values = scenario.model_dump(mode="python")
    for name in _NO_EFFECT:
        values.pop(name, None)
    return values


def hybrid(a: Scenario, b: Scenario, taken: Iterable[Difference]) -> dict[str, Any]:
    """The overrides that turn `a` into a scenario with the differences `taken` applied from `b`."""
    before = plain(a)
    values, other = copy.deepcopy(before), plain(b)
    for difference in taken:
        *sections, last = difference.path
        here, there = values, other
        for name in sections:
            here, there = here[name], there[name]
        if last in there:
            here[last] = copy.deepcopy(there[last])
        else:
            del here[last]
    return overrides_between(before, _in_order_of(values, other))


def _in_order_of(values: Any, other: Any) -> Any:
    """The values, each mapping in the order of `other` where it has the same names: order decides who draws first."""
    if not (isinstance(values, dict) and isinstance(other, dict)):
        return values
    names = list(other) if set(values) == set(other) else list(values)
    return {name: _in_order_of(values[name], other.get(name)) for name in names}


def overrides_between(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """{dotted key: value} that turn one tree of values into another; a mapping whose names change is replaced whole."""
    changes: dict[str, Any] = {}
    for name, value in after.items():
        old, key = before.get(name, _MISSING), f"{prefix}{name}"
        if _alike(old, value) and _same_order(old, value):
            continue
        if isinstance(old, dict) and isinstance(value, dict) and _by_key(old, value):
            changes |= overrides_between(old, value, f"{key}.")
        else:
            changes[key] = value
    return changes


def grouped(found: Sequence[Difference], most: int) -> dict[str, list[Difference]]:
    """At most `most` groups of neighbours, {key or prefix: differences}; single differences when they are that few.

    Otherwise whole sections; the largest are split as long as the number of groups allows.
    """
    groups = _split(found, 1)
    split = True
    while split:
        split = False
        for name, members in sorted(groups.items(), key=lambda item: -len(item[1])):
            finer = _split(members, len(name.split(".")) + 1) if len(members) > 1 else {}
            while len(finer) == 1 and next(iter(finer)) != members[0].key:
                finer = _split(members, len(next(iter(finer)).split(".")) + 1)
            if len(finer) > 1 and len(groups) + len(finer) - 1 <= most:
                groups = {
                    key: entry
                    for label, held in groups.items()
                    for key, entry in (finer if label == name else {label: held}).items()
                }
                split = True
                break
    return {_common_key(members): members for members in groups.values()}


def _common_key(members: Sequence[Difference]) -> str:
    """The common prefix of a group's keys; the whole key of a single one."""
    first = members[0].path
    agree = next(
        (
            depth
            for depth in range(len(first))
            if any(one.path[: depth + 1] != first[: depth + 1] for one in members)
        ),
        len(first),
    )
    return ".".join(first[:agree])


def _split(found: Sequence[Difference], depth: int) -> dict[str, list[Difference]]:
    groups: dict[str, list[Difference]] = {}
    for difference in found:
        groups.setdefault(".".join(difference.path[:depth]), []).append(difference)
    return groups


def _compare(a: Any, b: Any, path: Path, found: list[Difference]) -> None:
    if isinstance(a, dict) and isinstance(b, dict):
        for name in [*a, *(name for name in b if name not in a)]:
            _compare(a.get(name, _MISSING), b.get(name, _MISSING), (*path, name), found)
    elif not _alike(a, b):
        shown = tuple(ABSENT if value is _MISSING else value for value in (a, b))
        found.append(Difference(path, *shown))


def _alike(a: Any, b: Any) -> bool:
    return a is not _MISSING and b is not _MISSING and bool(a == b)


def _same_order(a: Any, b: Any) -> bool:
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return True
    return list(a) == list(b) and all(_same_order(a[name], b[name]) for name in a)


def _by_key(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether dotted keys reach every change: same names in the same order, none with a dot."""
    return list(old) == list(new) and not any("." in name for name in new)
