"""What an estimate is, and what it is read from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim.actuals.estimates import Belief
from sim.i18n.translate import mark

if TYPE_CHECKING:
    from sim.actuals.books import Books
    from sim.actuals.meter import Metered
    from sim.actuals.subscriptions import Subscriptions
    from sim.actuals.traffic import Traffic
    from sim.company.simulate import Result

FACTOR = mark("times those expected")


@dataclass(frozen=True)
class MeasuredAssumption:
    """A measured assumption: value with 95 % bounds, its number of cases, and the scenario's present value.

    `what` is to be translated, `of` names the plan, segment or class. `written` goes to `key`; "" and None where no key
    holds it. `planned` is the plan's value of `key`, NaN where there is none.
    """

    what: str
    of: str
    unit: str
    value: float
    low: float
    high: float
    cases: float  # customers, months or requests it was read from
    key: str = ""
    written: Any = None
    planned: float = math.nan

    @property
    def planned_as_seen(self) -> float:
        """The plan's value in the estimate's own terms; a factor on what was expected is 1 there."""
        return 1.0 if self.unit == FACTOR else self.planned


@dataclass(frozen=True)
class Measured:
    """What an estimate is read from. `first`: the plan's month that is the first of the comparison."""

    metered: Metered
    subscriptions: Subscriptions
    books: Books
    traffic: Traffic
    plan: Result
    first: int

    @property
    def months(self) -> int:
        """Length of the comparison."""
        return len(self.metered.months)


def estimated(
    what: str,
    of: str,
    unit: str,
    found: Belief | None,
    cases: float,
    key: str = "",
    planned: float = math.nan,
    at_par: Belief | None = None,
    most: float = math.inf,
) -> list[MeasuredAssumption]:
    """The estimate, as a list of one; empty without a belief. `at_par` is what goes to the key, up to `most`."""
    if found is None:
        return []
    low, high = found.bounds
    written = (at_par or found).text(0.0, most) if key else None
    return [MeasuredAssumption(what, of, unit, found.value, low, high, cases, key, written, planned)]
