"""What a token brought and what it cost, and what the bank says of other cost."""

from __future__ import annotations

from sim.actuals_estimates import mean, ratio
from sim.actuals_seen import Estimate, Seen, estimated
from sim.language import mark

PRICE = mark("Price realised per million tokens")
COST = mark("Measured serving cost per million tokens")
OPEX = mark("Other operating expense per month")
PERSON = mark("Cost of a person per year")


def realised_price(seen: Seen, name: str) -> list[Estimate]:
    """Revenue without onboarding over tokens, customer by customer."""
    revenue: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for bill in seen.books.bills:
        for invoice in bill.invoices:
            lines = [
                line for line in invoice.lines if line.plan == name and line.kind not in ("onboarding", "tax")
            ]
            if any(line.kind == "trial" for line in lines):
                continue
            for line in lines:
                if line.kind not in ("advance", "drawn"):
                    revenue[invoice.customer] = revenue.get(invoice.customer, 0) + line.amount_micro_usd
                if line.kind in ("prompt", "cached", "output"):
                    tokens[invoice.customer] = tokens.get(invoice.customer, 0) + line.quantity
    customers = sorted(revenue)
    found = ratio([revenue[one] for one in customers], [tokens.get(one, 0) for one in customers])
    return estimated(PRICE, name, "USD per million tokens", found, len(customers))


def serving_cost(seen: Seen) -> list[Estimate]:
    """What the meter says that a token costs, day by day."""
    days = seen.metered.by_day
    return estimated(
        COST, "", "USD per million tokens", ratio(days["cost_micro_usd"], days["tokens"]), len(days)
    )


def other_cost(seen: Seen) -> list[Estimate]:
    """What the bank says of other cost: months are the groups."""
    if not seen.books.has_bank:
        return []
    finance = seen.plan.scenario.finance
    paid, planned = seen.books.statements.income(), seen.plan.statements.income()
    planned = planned.iloc[seen.first : seen.first + seen.months]
    found = estimated(
        OPEX, "", "USD per month", mean(paid["other_opex"]), seen.months,
        "finance.other_opex_usd_per_month", finance.other_opex_usd_per_month,
    )  # fmt: skip
    for name, role in finance.people.items():
        account = f"people_{role.function}"
        factor = ratio(paid[account], planned[account])
        if factor is not None:
            cost = factor.through(lambda value, usd=role.cost_usd_per_year: value * usd)  # type: ignore[misc]
            found += estimated(
                PERSON, name, "USD per person and year", cost, seen.months,
                f"finance.people.{name}.cost_usd_per_year", role.cost_usd_per_year,
            )  # fmt: skip
    return found
