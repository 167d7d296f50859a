"""People of a scenario: roles, when they are hired, and where they work."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from sim.schema.base import Section, option, quantity

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
