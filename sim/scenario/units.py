"""Units of metrics, a closed set, and a value written in each of them."""

from __future__ import annotations

import math
from typing import Any, Literal

from sim.i18n import numbers
from sim.i18n.translate import tr

Unit = Literal[
    "USD",
    "USD per month",
    "USD per million tokens",
    "fraction",
    "fraction of revenue",
    "percentage points",
    "ratio",
    "0 or 1",
    "months",
    "month of the run",  # counted from 0
    "calendar month",  # "2026-01", or "never"
    "s",
    "per second",
    "count",
    "customers",
    "replicas",
    "releases",
    "tokens",
    "tokens per month",
    "million tokens",
]
MONEY = frozenset[Unit]({"USD", "USD per month", "USD per million tokens"})
SHARES = frozenset[Unit]({"fraction", "fraction of revenue", "0 or 1"})


def in_unit(value: Any, unit: Unit, decimals: int = 1) -> str:
    """A value as text in the current language: $1.2M, 68.0%, 14 months, month 15, 351 ms; an undefined one is a dash.

    Args:
        value: a number, or the text of a calendar month.
        unit: what it counts.
        decimals: of a share in percent.
    """
    if unit == "calendar month":
        return tr("never") if value == "never" else str(value)
    if unit == "month of the run" and not math.isnan(value):
        return tr("never") if math.isinf(value) else tr("month {number}", number=f"{value:.0f}")
    if unit in MONEY:
        return numbers.usd(value)
    if unit in SHARES:
        return numbers.percent(value, decimals)
    if unit == "months":
        return numbers.months(value)
    if unit == "per second":
        return f"{numbers.count(value)} /s"
    return numbers.seconds(value) if unit == "s" else numbers.count(value)
