"""The money of a scenario: people, terms, funding."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sim.schema.base import Section, fraction, quantity


class Role(Section):
    """People of one kind."""

    function: Literal["research", "sales", "general"] = quantity(
        "general", "research, sales or general", "where the salary shows in the books"
    )
    headcount: float = quantity(1.0, "people", "at the start", ge=0, le=1e6)
    hires_per_year: float = quantity(
        0.0, "people per year", "steady growth (negative: reduction)", ge=-1e6, le=1e6
    )
    cost_usd_per_year: float = quantity(
        120_000.0, "USD per person and year", "salary with everything the employer pays", ge=0
    )


class FundingRound(Section):
    """Money paid in for shares."""

    month: int = quantity(0, "month of the run, 0 is the first", "when it is paid in", ge=0, le=600)
    amount_usd: float = quantity(0.0, "USD", "paid in", ge=0)


class Finance(Section):
    """People, other cost, payment terms and funding."""

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
