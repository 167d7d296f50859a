"""Numbers as people read them: $1.2M, 3.4B tokens, 68%, 6.8 s; an undefined number is a dash."""

from __future__ import annotations

import math
from typing import Any

from sim.i18n.translate import tr

UNKNOWN = "–"
_STEPS = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def count(value: Any, digits: int = 3) -> str:
    """A quantity with about three significant digits: 12, 1,452, 3.4B."""
    number = _number(value)
    if number is None:
        return UNKNOWN
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    sign, size = ("−" if number < 0 else ""), abs(number)
    if 1000 <= round(size) < 10_000:
        return f"{sign}{size:,.0f}"
    for step, letter in _STEPS:
        # 999,950 is 1M, not 1,000k: the step is chosen for the number as it will be written.
        if float(f"{size:.{digits}g}") >= step:
            return f"{sign}{_significant(size / step, digits)}{letter}"
    return f"{sign}{_significant(size, digits)}"


def usd(value: Any, digits: int = 3) -> str:
    """Money: $1.2M, −$350k, $0.0513."""
    number = _number(value)
    if number is None:
        return UNKNOWN
    text = count(abs(number), digits)
    if 0.1 <= abs(number) < 100:
        text = f"{abs(number):.2f}"
    return f"{'−' if number < 0 else ''}${text}"


def usd_exact(value: Any) -> str:
    """Money to the dollar, as in a statement: 1,234,567 and (350) for negative amounts."""
    number = _number(value)
    if number is None or math.isinf(number):
        return UNKNOWN
    whole = round(number)
    return f"({-whole:,})" if whole < 0 else f"{whole:,}"


def percent(value: Any, decimals: int = 0) -> str:
    """A fraction as percent: 68%."""
    number = _number(value)
    return UNKNOWN if number is None else f"{number:.{decimals}%}".replace("-", "−")


def seconds(value: Any) -> str:
    """A time: 6.8 s, 351 ms."""
    number = _number(value)
    if number is None:
        return UNKNOWN
    return f"{_significant(number, 3)} s" if abs(number) >= 1 else f"{_significant(number * 1000, 3)} ms"


def months(value: Any) -> str:
    """A runway: "18 months", or "not burning" for inf."""
    number = _number(value)
    if number is None:
        return UNKNOWN
    return tr("not burning") if math.isinf(number) else tr("{count} months", count=f"{number:.0f}")


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    return None if math.isnan(number) else number


def _significant(size: float, digits: int) -> str:
    if size == 0:
        return "0"
    text = f"{size:.{digits}g}"
    if "e" in text:
        text = f"{float(text):.{12}f}" if size < 1 else f"{float(text):.0f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
