"""The sections of a scenario: every assumption about the company, with unit, meaning, bounds and source."""

from __future__ import annotations

from pydantic import Field

from sim.scenario.schema.base import BESIROGLU, NEBIUS, Section, fraction, option, quantity
from sim.scenario.schema.data import Data, DataSource, Loop
from sim.scenario.schema.deployment import Deployment
from sim.scenario.schema.finance import Equipment, Finance, FundingRound, Lease, Loan, Location, Role, Taxes
from sim.scenario.schema.market import (
    CacheDiscount,
    Competitor,
    Contract,
    FineTuningService,
    Market,
    Plan,
    Seats,
    Segment,
    Terms,
    Trial,
)
from sim.scenario.schema.training import Training
from sim.scenario.schema.uncertainty import Correlation, Uncertainty

__all__ = [
    "BESIROGLU",
    "NEBIUS",
    "CacheDiscount",
    "Competitor",
    "Contract",
    "Correlation",
    "Data",
    "DataSource",
    "Deployment",
    "Equipment",
    "Finance",
    "FineTuningService",
    "FundingRound",
    "Lease",
    "Loan",
    "Location",
    "Loop",
    "Market",
    "Plan",
    "Role",
    "ScenarioFields",
    "Seats",
    "Section",
    "Segment",
    "Taxes",
    "Terms",
    "Training",
    "Trial",
    "Uncertainty",
    "fraction",
    "option",
    "quantity",
]


class ScenarioFields(Section):
    """A whole company: its four stages, its market and its money."""

    name: str = quantity("A company", "text", "title shown in reports", min_length=1, max_length=120)
    start_month: str = quantity(
        "2026-01", "YYYY-MM", "first month of the run", pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])$"
    )
    horizon_months: int = quantity(36, "months", "how long to run", ge=1, le=240)
    seed: int = quantity(0, "integer", "of the random streams", ge=0, le=2**63 - 1)
    data: Data = Field(default_factory=Data, description="stage 1: training text")
    training: Training = Field(default_factory=Training, description="stage 2: model versions")
    deployment: Deployment = Field(default_factory=Deployment, description="stage 3: the serving fleet")
    market: Market = Field(description="stage 4: customers and prices")
    finance: Finance = Field(default_factory=Finance, description="people, terms, funding")
    loop: Loop = Field(default_factory=Loop, description="usage that flows back into training")
    uncertainty: Uncertainty = Field(
        default_factory=Uncertainty, description="for studies: what moves together, what is aimed at"
    )
    sources: dict[str, str] = Field(
        default_factory=dict,
        description='where values come from: {dotted key: "source, date"}',
        json_schema_extra={"unit": "source, date"},
    )
