"""Charges of one customer's subscription in a month: its lines, at the prices of a plan in a scenario.

Models a price list applied to metered usage. Prices, included tokens, minimums and payment in advance are those of
`sim.stages.market.plan_book` and `sim.stages.market.contracts`, by the same functions that bill in the simulated
company; what is a cohort there is one customer here, what is an assumed mean there is a count here.

- A unit price is a whole number of micro-dollars, for tokens per million of them. Each line is quantity × unit price,
  rounded once, half to even.
- A seat is a key: a plan with seats charges for the most keys that were valid at once. A fee is owed for each month in
  which a key of the plan was valid, and to the end of a contract's running term.
- Failed requests ("error", "timeout") are listed and not charged.

Months are counted from year 0 where they are numbers (`month_index`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from engine.usage.database import month_bounds_s, month_of
from engine.usage.meter import TokenPrices, Used, amount_micro_usd
from sim.accounting.ledger import MICRO_PER_USD, micro
from sim.scenario.plans import is_paying, plan_key, segments_of
from sim.stages.market import contracts
from sim.stages.market.competition import elsewhere
from sim.stages.market.plan_book import beyond_included, price_factor, prompt_price

if TYPE_CHECKING:
    from engine.usage.api_keys import ApiKey
    from sim.scenario.scenario import Scenario
    from sim.scenario.schema import Plan, Segment

TOKEN_KINDS = (
    "prompt",
    "cached",
    "output",
    "failed",
)  # their quantities are tokens, and add up to the meter's
KINDS = (
    "onboarding",
    "fee",
    "licence",
    *TOKEN_KINDS,
    "included",
    "commitment",
    "advance",
    "drawn",
    "trial",
    "tax",
)


@dataclass(frozen=True)
class InvoiceLine:
    """One line of an invoice.

    Kinds: onboarding, fee, licence; `TOKEN_KINDS`; included (negative: usage that the fee covers), commitment (a
    contract's minimum beyond usage), advance (prepaid months), drawn (negative: this month's part of them), trial
    (negative: all of a trial month), tax.
    """

    kind: str
    plan: str
    amount_micro_usd: int
    quantity: int = 1
    unit_price_micro_usd: int | None = None  # of tokens: per million; None: the amount is no quantity × price
    key_id: str = ""
    key_name: str = ""
    model: str = ""
    tax_rate: float | None = None


def month_index(month: str) -> int:
    """Months since year 0 of a month YYYY-MM."""
    return int(month[:4]) * 12 + int(month[5:7]) - 1


def first_month(key: ApiKey) -> int:
    """Month in which the key was created."""
    return month_index(month_of(key.created_s))


def last_month(key: ApiKey) -> float:
    """Last month in which the key is valid; inf without expiry."""
    return math.inf if key.ends_s == math.inf else month_index(month_of(math.nextafter(key.ends_s, 0)))


def plans_of(scenario: Scenario) -> dict[str, tuple[Segment, Plan]]:
    """All plans with their segments, by their names in ledger and tables: "developers", "enterprise/committed"."""
    return {
        plan_key(segment_name, plan_name): (segment, plan)
        for segment_name, segment in segments_of(scenario.market).items()
        for plan_name, plan in segment.plans.items()
    }


def token_prices(scenario: Scenario, month: str) -> dict[str, TokenPrices]:
    """Token prices in a month (YYYY-MM), by plan; without plans that bill no tokens.

    Prices that follow the reference price change with the months of the scenario's run.
    """
    run_month = max(0, month_index(month) - month_index(scenario.start_month))
    prices = {}
    for name, (segment, plan) in plans_of(scenario).items():
        factor = price_factor(segment, elsewhere(segment, run_month).price_usd_per_mtok)
        usd = (prompt_price(segment, 0.0), prompt_price(segment, 1.0), segment.price_usd_per_mtok_output)
        prices[name] = TokenPrices(*(micro(each * factor) if plan.pays_per_token else 0 for each in usd))
    return prices


def charges(
    name: str,
    plan: Plan,
    keys: Sequence[ApiKey],
    used: Mapping[str, Sequence[Used]],
    prices: TokenPrices,
    month: str,
) -> list[InvoiceLine]:
    """Lines of a subscription without tax; none if nothing was used and nothing is owed.

    Args:
        name: of the plan.
        plan: its terms.
        keys: of one customer on this plan, at least one.
        used: usage in the month, by key id.
        prices: of tokens in the month.
        month: YYYY-MM.
    """
    now = month_index(month)
    first = min(now, min(first_month(key) for key in keys))
    paying = first + (plan.trial.months if plan.trial else 0)  # the first month that is paid
    begun = _runs_since(plan, keys, first, paying, now) if is_paying(plan) else None
    fees = [_fee(name, plan, keys, now)] if begun is not None and plan.monthly_fee_usd > 0 else []
    usage = [
        line
        for key in keys
        for one in used.get(key.key_id, ())
        for line in _token_lines(name, key, one, prices)
    ]
    lines = fees + usage + _included(name, plan, usage)
    if begun is not None and now >= paying and plan.contract is not None:
        lines += _contract_lines(name, plan, keys, max(begun, paying), now, lines)
    if begun is not None and now == paying and plan.onboarding_fee_usd > 0:
        lines.insert(0, InvoiceLine("onboarding", name, micro(plan.onboarding_fee_usd)))
    if now < paying and lines:
        lines.append(InvoiceLine("trial", name, -sum(line.amount_micro_usd for line in lines)))
    return lines


def sales_tax(name: str, lines: Sequence[InvoiceLine], rate: float) -> list[InvoiceLine]:
    """Tax on the lines of a subscription; none at a rate of 0."""
    tax = round(sum(line.amount_micro_usd for line in lines) * Fraction(str(rate)))
    return [InvoiceLine("tax", name, tax, tax_rate=rate)] if rate > 0 else []


def not_metered(plan: Plan) -> list[str]:
    """What a plan charges for that is not metered, and therefore on no invoice."""
    parts = {
        "further services": plan.services_usd_per_month > 0,
        "a share of customers' sales": plan.share_of_customer_sales * plan.customer_sales_usd_per_month > 0,
        "fine-tuning": plan.fine_tuning is not None,
    }
    return [what for what, there in parts.items() if there]


def _token_lines(plan: str, key: ApiKey, used: Used, prices: TokenPrices) -> list[InvoiceLine]:
    parts = [("failed", used.prompt_tokens + used.output_tokens, 0)]
    if used.is_billed:
        parts = [
            ("prompt", used.prompt_tokens - used.cached_tokens, prices.prompt),
            ("cached", used.cached_tokens, prices.cached),
            ("output", used.output_tokens, prices.output),
        ]
    return [
        InvoiceLine(
            kind, plan, amount_micro_usd(tokens, price), tokens, price, key.key_id, key.name, used.model
        )
        for kind, tokens, price in parts
        if tokens
    ]


def _included(name: str, plan: Plan, usage: Sequence[InvoiceLine]) -> list[InvoiceLine]:
    """Usage covered by the fee: the same share of every kind of token."""
    full = sum(line.amount_micro_usd for line in usage)
    tokens = sum(line.quantity for line in usage if line.kind != "failed")
    beyond = float(beyond_included(plan, np.ones(1, dtype=np.int64), np.array([float(tokens)]))[0])
    covered = full - round(full * beyond)
    return [InvoiceLine("included", name, -covered)] if covered else []


def _fee(name: str, plan: Plan, keys: Sequence[ApiKey], month: int) -> InvoiceLine:
    """The fee of a month, per seat where the plan has seats; without a good key, of the seats there were at last."""
    seats = 1
    if plan.seats is not None:
        earlier = range(month, min(first_month(key) for key in keys) - 1, -1)
        seats = next(filter(None, (_most_at_once(keys, one) for one in earlier)), 0)
    price = micro(plan.monthly_fee_usd)
    return InvoiceLine("licence" if plan.on_premise else "fee", name, seats * price, seats, price)


def _contract_lines(
    name: str, plan: Plan, keys: Sequence[ApiKey], signed: int, now: int, so_far: Sequence[InvoiceLine]
) -> list[InvoiceLine]:
    """What a contract asks beyond fees and usage, and what is or was invoiced in advance."""
    contract = plan.contract
    assert contract is not None

    def least_micro(month: int) -> int:
        fee_usd = _fee(name, plan, keys, month).amount_micro_usd / MICRO_PER_USD
        return int(contracts.least_micro(plan, np.array([fee_usd]), np.ones(1, dtype=np.int64))[0])

    prepaid = contract.prepaid_months
    begun = now - (now - signed) % prepaid if prepaid else now  # when the running prepaid time began
    ahead = least_micro(begun) if prepaid else 0
    amounts = (least_micro(now), ahead, sum(line.amount_micro_usd for line in so_far))
    least, paid, owed = (np.array([amount], dtype=np.int64) for amount in amounts)
    beyond = int(contracts.commitment_micro(least, paid, owed)[0])
    lines = [InvoiceLine("commitment", name, beyond)] if beyond else []
    if ahead and begun == now:
        lines.append(InvoiceLine("advance", name, prepaid * ahead, prepaid, ahead))
    return [*lines, InvoiceLine("drawn", name, -ahead)] if ahead else lines


def _runs_since(plan: Plan, keys: Sequence[ApiKey], first: int, paying: int, now: int) -> int | None:
    """Month since which the subscription runs without interruption; None if it does not run this month.

    It runs while a key is valid, and on to the end of the contract's term that then runs.
    """
    spans = [(first_month(key), last_month(key)) for key in keys]
    begun, last = None, first
    for month in range(first, now + 1):
        if any(start <= month <= end for start, end in spans):
            begun, last = month if begun is None else begun, month
        elif begun is not None and not _is_bound(plan, max(begun, paying), last, month):
            begun = None
    return begun


def _is_bound(plan: Plan, signed: int, last: int, month: int) -> bool:
    """Whether the contract's term in which the last key was good still runs."""
    if plan.contract is None or last < signed:
        return False
    terms_begun = (last - signed) // plan.contract.months + 1
    return month < signed + terms_begun * plan.contract.months


def _most_at_once(keys: Sequence[ApiKey], month: int) -> int:
    """The most keys that were good at the same moment of a month."""
    start_s, end_s = month_bounds_s(f"{month // 12:04d}-{month % 12 + 1:02d}")
    spans = [(max(key.created_s, start_s), min(key.ends_s, end_s)) for key in keys]
    changes = sorted(
        change for begin, end in spans if begin < end for change in ((begin, 1), (end, -1))
    )  # of a moment's changes the ends come first
    good = most = 0
    for _, change in changes:
        good += change
        most = max(most, good)
    return most
