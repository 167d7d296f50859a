"""Levers of an optimisation: an assumption between bounds, or one of several values.

Written as `KEY=LOW..HIGH` (whole numbers when the key is one, `log` after it for a logarithmic scale) or
`KEY=a,b,c`: "market.price_usd_per_mtok_output=0.2..3 log", "deployment.model=smollm2-135m,llama-3.1-8b".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from engine.errors import InputError
from sim.scenario.fields import field_at, leaves, unit_of
from sim.scenario.schema import ScenarioFields

if TYPE_CHECKING:
    from sim.scenario.scenario import Scenario

_RANGE = re.compile(r"\s*(?P<low>[^.\s]*(?:\.[^.\s]+)?)\s*\.\.\s*(?P<high>\S+)\s*(?P<log>log)?\s*$")


@dataclass(frozen=True)
class KeyFacts:
    """A numeric key as the schema describes it; `low` and `high` are inclusive bounds, ±inf where there are none."""

    key: str
    meaning: str
    unit: str
    whole: bool
    value: float | None  # in the scenario; None where it is null
    low: float
    high: float

    def clipped(self, value: float) -> float | int:
        """The nearest value that the schema allows."""
        within = min(max(value, self.low), self.high)
        return round(within) if self.whole else within


@dataclass(frozen=True)
class Lever:
    """A range (`low`, `high`) or a list of `choices` for one key."""

    key: str
    low: float = math.nan
    high: float = math.nan
    whole: bool = False
    log: bool = False
    choices: tuple[Any, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            return f"{self.key}={','.join(str(choice) for choice in self.choices)}"
        return f"{self.key}={self.low:.12g}..{self.high:.12g}{' log' if self.log else ''}"


def numeric_keys(scenario: Scenario) -> list[str]:
    """Every assumption that is a number in the scenario ; start, length and seed of the run are left out."""
    run = ("seed", "horizon_months")
    return [
        key
        for key, value, _ in leaves(scenario)
        if isinstance(value, (int, float))
        and not isinstance(value, bool)
        and key not in run
        and not key.startswith("uncertainty.")
    ]


def key_facts(scenario: Scenario, key: str) -> KeyFacts:
    """Meaning, unit, value and bounds of a numeric key of this scenario.

    Raises:
        InputError: no such key (names the nearest one), or not a number.
    """
    known = {name: (value, field) for name, value, field in leaves(scenario)}
    if key not in known:
        # A key inside an optional section, or an unknown key: the schema decides.
        field = field_at(ScenarioFields, tuple(key.split(".")))
        if field is None:
            scenario.override({key: 0})  # names the nearest key
            raise InputError(f"{key}: not a single value of the scenario")
        value = None
    else:
        value, field = known[key]
    kinds = set(get_args(field.annotation)) or {field.annotation}
    if not kinds & {int, float, dict[str, float]} and not isinstance(value, float):
        raise InputError(f"{key}: not a number")
    bounds = {
        name: getattr(rule, name)
        for rule in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if getattr(rule, name, None) is not None
    }
    low, high = bounds.get("ge", -math.inf), bounds.get("le", math.inf)
    whole = int in kinds and float not in kinds
    if "gt" in bounds:
        low = bounds["gt"] + 1 if whole else math.nextafter(bounds["gt"], math.inf)
    if "lt" in bounds:
        high = bounds["lt"] - 1 if whole else math.nextafter(bounds["lt"], -math.inf)
    if key.startswith("market.traffic."):
        low, high = 0.0, 1.0
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    return KeyFacts(key, field.description or key, unit_of(field), whole, number, low, high)


def parse_lever(text: str, scenario: Scenario) -> Lever:
    """Read `KEY=LOW..HIGH [log]` or `KEY=a,b,c`, checked against the schema.

    Raises:
        InputError: not of that form, unknown key, or bounds that the schema refuses.
    """
    key, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not key or not values:
        raise InputError(f"lever {text!r}: allowed: KEY=LOW..HIGH, KEY=LOW..HIGH log, or KEY=a,b,c")
    if ".." in values:
        return _range(key, values, text, scenario)
    choices = tuple(_plain(word) for word in values.split(","))
    if len(choices) < 2:
        raise InputError(
            f"lever {text!r}: found one value, allowed: LOW..HIGH or several with commas between"
        )
    for choice in choices:
        _try(scenario, key, choice, text)
    return Lever(key, choices=choices)


def lever_key(text: str) -> str:
    """The key of a lever's text."""
    return text.partition("=")[0].strip()


def parse_bounds(text: str) -> tuple[float, float, bool]:
    """Read `LOW..HIGH [log]`.

    Raises:
        InputError: not two numbers, or the low one is not below the high one.
    """
    found = _RANGE.fullmatch(text)
    try:
        low, high = float(found["low"]), float(found["high"])  # type: ignore[index]
    except (TypeError, ValueError):
        raise InputError(f"{text!r}: found no two numbers, allowed: LOW..HIGH, for example 0.1..5") from None
    log = bool(found and found["log"])
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"{text!r}: allowed: a low number, two dots, a higher number")
    if log and low <= 0:
        raise InputError(f"{text!r}: found {low:g} on a logarithmic scale, allowed: above 0")
    return low, high, log


def _range(key: str, values: str, text: str, scenario: Scenario) -> Lever:
    low, high, log = parse_bounds(values)
    facts = key_facts(scenario, key)
    if facts.whole and not (low.is_integer() and high.is_integer()):
        raise InputError(f"lever {text!r}: {key} is a whole number, allowed: whole bounds")
    for bound in (low, high):
        _try(scenario, key, int(bound) if facts.whole else bound, text)
    return Lever(key, low, high, facts.whole, log)


def _try(scenario: Scenario, key: str, value: Any, text: str) -> None:
    from sim.study.shares import with_shares_kept

    try:
        scenario.override(with_shares_kept(scenario, {key: value}))
    except InputError as error:
        raise InputError(f"lever {text!r}: {error}") from None


def _plain(word: str) -> Any:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(word)


def spread(low: float, high: float, points: int, *, log: bool, whole: bool) -> list[float]:
    """Values from low to high, evenly (or by equal factors); whole ones without repeats."""
    steps: Iterable[float] = (n / (points - 1) for n in range(points))
    values = [low * (high / low) ** step if log else low + (high - low) * step for step in steps]
    values[-1] = high
    return sorted({float(round(value)) for value in values}) if whole else values
