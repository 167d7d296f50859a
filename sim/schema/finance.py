"""The money of a scenario: people, terms, funding, capital."""

from __future__ import annotations

from pydantic import Field

from sim.schema.base import Section, fraction, option, quantity
from sim.schema.capital import Equipment, FundingRound, Lease, Loan, Taxes
from sim.schema.people import Location, Role


class Finance(Section):
    """People, other cost, payment terms, funding, and what the company owns and owes."""

    initial_cash_usd: float = quantity(1e6, "USD", "in the bank at the start", ge=0)
    funding: dict[str, FundingRound] = Field(default_factory=dict, description="funding rounds by name")
    people: dict[str, Role] = Field(default_factory=dict, description="people by role")
    other_opex_usd_per_month: float = quantity(
        10_000.0, "USD per month", "office, software, legal, insurance", ge=0
    )
    customer_payment_days: float = quantity(
        0.0, "days", "from invoice to money: 0 cards, 30 companies", ge=0, le=365
    )
    supplier_payment_days: float = quantity(
        30.0, "days", "from a supplier's bill to its payment", ge=0, le=365
    )
    payment_fee_share: float = fraction(0.029, "of each invoice kept by the payment processor")
    payment_fee_usd: float = quantity(
        0.30, "USD per paying customer and month", "fixed part of the fee", ge=0
    )
    cash_interest_per_year: float = option(0.0, "fraction per year", "earned on cash in the bank", ge=0, le=1)
    locations: dict[str, Location] = Field(
        default_factory=dict, description="places of work by name", json_schema_extra={"optional": True}
    )
    loans: dict[str, Loan] = Field(
        default_factory=dict, description="debt by name", json_schema_extra={"optional": True}
    )
    equipment: dict[str, Equipment] = Field(
        default_factory=dict,
        description="machines bought, by name (capital expenditure)",
        json_schema_extra={"optional": True},
    )
    leases: dict[str, Lease] = Field(
        default_factory=dict, description="operating leases by name", json_schema_extra={"optional": True}
    )
    taxes: Taxes | None = Field(default=None, description="income tax; null: none is computed")
