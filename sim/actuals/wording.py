"""The comparison in sentences: what differed, why, and what the assumptions should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.accounting.ledger import MICRO_PER_USD
from sim.actuals.variance import REVENUE_CAUSES, USAGE_CAUSES
from sim.i18n import numbers
from sim.i18n.translate import mark, tr
from sim.study.wording import quantity

if TYPE_CHECKING:
    from sim.actuals.compare import Actuals
    from sim.actuals.measured import MeasuredAssumption

CAUSES = {
    "volume": mark("tokens sold"),
    "price": mark("price per token"),
    "mix": mark("mix of plans"),
    "without_usage": mark("fees without usage"),
    "customers": mark("customers"),
    "requests_per_customer": mark("requests per customer"),
    "tokens_per_request": mark("tokens per request"),
}
_MOST_ACCOUNTS = 3
_MOST_OFF = 3


def in_words(found: Actuals) -> list[str]:
    """What differed from the plan and why, in the current language; the largest causes first."""
    return [_revenue(found), _usage(found), *_accounts(found), *_off(found)]


def _causes(sums: dict[str, float], shown: dict[str, str]) -> str:
    largest = sorted((name for name in sums if sums[name]), key=lambda name: -abs(sums[name]))
    return ", ".join(tr("{cause} {amount}", cause=tr(CAUSES[name]), amount=shown[name]) for name in largest)


def _signed(text: str) -> str:
    return text if text.startswith("−") else f"+{text}"


def _revenue(found: Actuals) -> str:
    table = found.revenue
    planned, actual = (
        int(table[name].sum()) / MICRO_PER_USD for name in ("planned_micro_usd", "actual_micro_usd")
    )
    sums = {cause: int(table[cause].sum()) / MICRO_PER_USD for cause in REVENUE_CAUSES}
    return tr(
        "Recurring revenue was {actual} against {planned} planned ({difference}): {causes}.",
        actual=numbers.usd(actual),
        planned=numbers.usd(planned),
        difference=_signed(numbers.usd(actual - planned)),
        causes=_causes(sums, {name: _signed(numbers.usd(value)) for name, value in sums.items()})
        or tr("no difference"),
    )


def _usage(found: Actuals) -> str:
    table = found.usage
    planned, actual = (int(table[name].sum()) for name in ("planned_tokens", "actual_tokens"))
    sums = {cause: float(table[cause].sum()) for cause in USAGE_CAUSES}
    return tr(
        "Customers used {actual} tokens against {planned} planned ({difference}): {causes}.",
        actual=numbers.count(actual),
        planned=numbers.count(planned),
        difference=_signed(numbers.count(actual - planned)),
        causes=_causes(sums, {name: _signed(numbers.count(value)) for name, value in sums.items()})
        or tr("no difference"),
    )


def _accounts(found: Actuals) -> list[str]:
    from sim.accounting.labels import line_label

    sums = found.accounts.groupby("account")[
        ["planned_micro_usd", "actual_micro_usd", "variance_micro_usd"]
    ].sum()
    sums = sums[~sums.index.str.startswith("revenue_") & (sums["variance_micro_usd"] != 0)]
    largest = sums.reindex(
        sums["variance_micro_usd"].abs().sort_values(ascending=False).index[:_MOST_ACCOUNTS]
    )
    return [
        tr(
            "{account}: {actual} against {planned} planned.",
            account=line_label(str(name)),
            actual=numbers.usd(row["actual_micro_usd"] / MICRO_PER_USD),
            planned=numbers.usd(row["planned_micro_usd"] / MICRO_PER_USD),
        )
        for name, row in largest.iterrows()
    ]


def _off(found: Actuals) -> list[str]:
    """Assumptions that the measured bounds exclude, the furthest first."""
    far = []
    for one in found.calibration.estimates:
        assumed = one.planned_as_seen
        if one.key and assumed == assumed and not one.low <= assumed <= one.high:
            width = max(one.high - one.low, 1e-12 * abs(assumed) or 1e-12)
            far.append((abs(assumed - one.value) / width, one))
    far.sort(key=lambda pair: -pair[0])
    return [
        tr(
            "{what} was {value} ({low} to {high}), where the plan takes {planned}.",
            what=label(one),
            value=quantity(one.value, one.unit),
            low=quantity(one.low, one.unit),
            high=quantity(one.high, one.unit),
            planned=quantity(one.planned_as_seen, one.unit),
        )
        for _, one in far[:_MOST_OFF]
    ]


def label(one: MeasuredAssumption) -> str:
    """Name of an estimate, with its plan, segment or class."""
    return tr(one.what) if not one.of else tr("{what}, {of}", what=tr(one.what), of=one.of)
