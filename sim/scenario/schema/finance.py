"""The money of a scenario: people and where they work, payment terms, shares, loans, equipment, leases, taxes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from sim.scenario.schema.base import Section, fraction, option, quantity

Month = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,3}$")]


class Location(Section):
    """A place of work."""

    cost_factor: float = quantity(1.0, "factor", "on what a person of any role costs", gt=0, le=10)
    office_usd_per_month: float = quantity(
        0.0, "USD per person and month", "desk, equipment, travel; booked as other operating expense", ge=0
    )


class Role(Section):
    """People of one kind."""

    function: Literal["research", "sales", "general", "support"] = quantity(
        "general", "research, sales, general or support", "where the salary shows in the books"
    )
    headcount: float = quantity(1.0, "people", "at the start", ge=0, le=1e6)
    hires_per_year: float = quantity(
        0.0, "people per year", "steady growth (negative: reduction)", ge=-1e6, le=1e6
    )
    cost_usd_per_year: float = quantity(
        120_000.0, "USD per person and year", "salary with everything the employer pays", ge=0
    )
    hiring_plan: dict[Month, float] = Field(
        default_factory=dict,
        description='people who join (negative: leave) by month of the run, besides hires_per_year: {"6": 2}',
        json_schema_extra={"unit": "people", "optional": True},
    )
    raise_per_year: float = option(0.0, "fraction per year", "how pay grows", gt=-1, le=1)
    ramp_months: float = option(
        0.0, "months", "until a new person works at full strength (matters in sales)", ge=0, le=60
    )
    hiring_cost_usd: float = option(0.0, "USD per hire", "recruiters, advertisements, signing", ge=0)
    severance_months: float = option(0.0, "months of pay", "given to a person who has to leave", ge=0, le=60)
    location: str | None = option(None, "name", "place of work, of finance.locations; null: none")
    sells_to: str | None = option(
        None, "name", "segment that salespeople of this role serve; null: all segments in equal parts"
    )


TCJA = "26 U.S.C. 172(a)(2): losses offset at most 80 % of taxable income"


class FundingRound(Section):
    """Money paid in for shares."""

    month: int = quantity(0, "month of the run, 0 is the first", "when it is paid in", ge=0, le=600)
    amount_usd: float = quantity(0.0, "USD", "paid in", ge=0)
    pre_money_usd: float = option(
        0.0, "USD", "what the company is held to be worth before; 0: no dilution is computed", ge=0
    )
    runway_below_months: float | None = option(
        None, "months", "waits, from `month` on, until the cash lasts less than this; null: no waiting", gt=0
    )
    chance_per_month: float = option(
        1.0,
        "fraction",
        "that investors close in a month once the round is sought (a downturn: below 1)",
        ge=0,
        le=1,
    )
    fee_share: float = option(0.0, "fraction", "of the amount kept by lawyers and banks", ge=0, le=1)
    option_pool_share: float = option(
        0.0, "fraction of all shares after the round", "new shares set aside for staff", ge=0, lt=1
    )


class Loan(Section):
    """Debt with interest, paid back in equal parts after a time of interest only."""

    month: int = quantity(0, "month of the run, 0 is the first", "when it is drawn", ge=0, le=600)
    amount_usd: float = quantity(0.0, "USD", "drawn", ge=0)
    interest_per_year: float = quantity(0.12, "fraction per year", "paid monthly on what is owed", ge=0, le=2)
    interest_only_months: int = quantity(0, "months", "before repayment begins", ge=0, le=600)
    term_months: int = quantity(36, "months", "from the draw to the last repayment", ge=1, le=600)
    fee_share: float = fraction(0.0, "of the amount kept by the lender at the draw")


class Equipment(Section):
    """Machines that the company buys: an asset, worn off in a straight line."""

    month: int = quantity(
        0, "month of the run, 0 is the first", "when they are bought and paid", ge=0, le=600
    )
    units: float = quantity(1.0, "units", "machines bought", ge=0, le=1e6)
    price_usd: float = quantity(0.0, "USD per unit", "with installation", ge=0)
    life_months: int = quantity(48, "months", "over which the cost is spread in equal parts", ge=1, le=600)
    salvage_share: float = fraction(0.0, "of the price still there at the end of its life; sold for it then")
    use: Literal["serving", "training", "general"] = quantity(
        "general", "serving, training or general", "where its depreciation shows in the books"
    )
    capacity: float = quantity(
        0.0, "replicas (serving) or accelerators (training) per unit", "what the company need not rent", ge=0
    )
    upkeep_usd_per_month: float = quantity(0.0, "USD per unit and month", "hosting, power, repairs", ge=0)


class Lease(Section):
    """A fixed rent over a term (office, machines): an operating lease of ASC 842."""

    month: int = quantity(0, "month of the run, 0 is the first", "when it begins", ge=0, le=600)
    payment_usd_per_month: float = quantity(0.0, "USD per month", "paid at the end of each month", ge=0)
    term_months: int = quantity(36, "months", "how long it binds", ge=1, le=600)
    discount_per_year: float = quantity(
        0.08, "fraction per year", "rate at which the payments are put on the balance sheet", ge=0, le=2
    )
    deposit_usd: float = quantity(0.0, "USD", "left with the landlord until the end", ge=0)
    use: Literal["serving", "training", "general"] = quantity(
        "general", "serving, training or general", "where the rent shows in the books"
    )
    capacity: float = quantity(
        0.0, "replicas (serving) or accelerators (training)", "what the company need not rent", ge=0
    )


class Taxes(Section):
    """Corporate income tax with losses carried forward."""

    income_tax_rate: float = quantity(
        0.21, "fraction of taxable income", "on profit", source="26 U.S.C. 11(b)", date="2018", ge=0, le=1
    )
    loss_offset_limit: float = quantity(
        0.8,
        "fraction of taxable income",
        "that earlier losses may offset",
        source=TCJA,
        date="2021",
        ge=0,
        le=1,
    )
    losses_brought_forward_usd: float = quantity(0.0, "USD", "losses of the years before the run", ge=0)
    payment_months: int = quantity(
        4, "months", "from the end of a year of the run to the payment of its tax", ge=1, le=24
    )


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
