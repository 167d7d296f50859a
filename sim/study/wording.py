"""The assumptions that decide an outcome, in sentences, with how sure each of them is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.i18n import numbers
from sim.i18n.translate import mark, tr
from sim.scenario.metrics import OUTCOMES, shown

if TYPE_CHECKING:
    from sim.study.sensitivity import Sensitivity

TORNADO = mark("{rank}. {what} ({key}): from {low} to {high}, {outcome} goes from {at_low} to {at_high}.")
TURN = mark(
    "{rank}. {what} ({key}): at {low} {outcome} is {at_low}, at {high} it is {at_high}, and between them {at_base}."
)
MORRIS = mark(
    "{rank}. {what} ({key}): over its range ({low} to {high}) it moves {outcome} by {effect} on average."
)
SOBOL = mark("{rank}. {what} ({key}): it decides {share} of the variance of {outcome} ({least} to {most}).")
NOISE = mark("This lies within what chance does.")
SOURCED = mark("The value has a source; ±20% is only to compare it with the others.")


def in_words(found: Sensitivity, most: int = 10) -> list[str]:
    """The most important assumptions, one sentence or two each, in the language of the moment."""
    rows = found.table.head(most).to_dict(orient="records")
    return [_sentence({str(name): value for name, value in row.items()}, found) for row in rows]


def quantity(value: float, unit: str) -> str:
    """A value of an assumption with its unit: $0.64 per million output tokens, 25%, 40 months."""
    if unit.startswith("fraction"):
        rest = unit.removeprefix("fraction")
        return numbers.percent(value, 1) + (
            tr(unit).removeprefix(tr("fraction")) if rest.startswith(" per") else ""
        )
    if unit == "USD" or unit.startswith("USD "):
        return f"{numbers.usd(value)}{tr(unit).removeprefix(tr('USD'))}"
    return f"{numbers.count(value)} {tr(unit)}".strip()


def _sentence(row: dict[str, Any], found: Sensitivity) -> str:
    name = found.outcome
    label = tr(OUTCOMES[name].label) if name in OUTCOMES else name
    known = {
        "rank": row["rank"],
        "what": _capital(tr(row["meaning"])),
        "key": row["key"],
        "low": quantity(row["low"], row["unit"]),
        "high": quantity(row["high"], row["unit"]),
        "outcome": label[:1].lower() + label[1:] if label[1:2].islower() else label,
    }
    if found.method == "morris":
        words = tr(MORRIS, **known, effect=_value(name, row["mu_star"]))
    elif found.method == "sobol":
        share, least, most = (
            numbers.percent(min(1.0, max(0.0, row[column]))) for column in ("st", "st_low", "st_high")
        )
        words = tr(SOBOL, **known, share=share, least=least, most=most)
    else:
        low, high, base = row["outcome_low"], row["outcome_high"], found.base.value
        pattern = TORNADO if min(low, high) <= base <= max(low, high) else TURN
        ends = {"at_low": _value(name, low), "at_high": _value(name, high)}
        words = tr(pattern, **known, **ends, **({"at_base": _value(name, base)} if pattern == TURN else {}))
    notes = []
    if row["in_noise"]:
        notes.append(tr(NOISE))
    if row["source"] and row["origin"].startswith("±"):
        notes.append(tr(SOURCED))
    return " ".join([words, *notes])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _value(outcome: str, value: float) -> str:
    name = outcome if outcome in OUTCOMES else outcome.partition("(")[2].rstrip(")")
    return numbers.percent(value) if outcome.startswith("p(") else shown(name, value)
