"""What the stages of one company share: the clock, the books, the model in use, and what they hand to each
other.

Time is simulated hours; a month is 730 hours. Within a month the stages act at fixed hours, so that cause
comes before effect: text and customers arrive (0), the fleet serves (1), people are paid (365), bills and
invoices go out and customers leave (729).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import simpy
from numpy.typing import NDArray

from sim.ledger import HOURS_PER_MONTH, Ledger
from sim.randomness import streams

if TYPE_CHECKING:
    from engine.profile import Profile
    from sim.capacity import CapacitySurface
    from sim.scenario import Scenario

FloatArray = NDArray[np.float64]

OPENING_HOUR = 0
SERVING_HOUR = 1
PAYDAY_HOUR = 365
CLOSING_HOUR = 729


@dataclass
class Pool:
    """Training text in hand: `effective_tokens` weighs each token by what it teaches."""

    tokens: float = 0.0
    effective_tokens: float = 0.0


@dataclass(frozen=True)
class ModelVersion:
    """A released model: its loss (nats per token) and quality index (0 to 1)."""

    version: int
    loss: float
    quality: float


@dataclass(frozen=True)
class Service:
    """How the fleet served one month: share of requests served, and p95 latency over its objective (≥ 1)."""

    served_fraction: float = 1.0
    slowness: float = 1.0


@dataclass
class World:
    """One company in one SimPy environment: stages record quantities here and money in the ledger."""

    scenario: Scenario
    profile: Profile
    surface: CapacitySurface
    week_shape: FloatArray  # demand by hour of the week [168], mean 1
    seed: int
    live: ModelVersion
    env: simpy.Environment = field(default_factory=simpy.Environment)
    ledger: Ledger = field(default_factory=Ledger)
    pool: Pool = field(default_factory=Pool)
    demand_rps: float = 0.0  # mean of the current month, from the market to the fleet
    service: Service = field(default_factory=Service)  # of the current month, from the fleet to the market
    records: dict[str, FloatArray] = field(default_factory=dict)
    fleet_by_hour: list[FloatArray] = field(default_factory=list)  # per month [24, 4], see FLEET_COLUMNS
    billed: dict[tuple[str, int], FloatArray] = field(
        default_factory=dict
    )  # customers by plan and cohort [months]
    events: list[tuple[float, str, str]] = field(default_factory=list)  # hour, stage, what

    def __post_init__(self) -> None:
        self.releases = simpy.Store(self.env)  # versions that passed the gate, on their way to users
        self.random = streams(self.seed)

    @property
    def months(self) -> int:
        """Length of the run."""
        return self.scenario.horizon_months

    @property
    def month(self) -> int:
        """Index of the current month."""
        return int(self.env.now // HOURS_PER_MONTH)

    @property
    def years(self) -> float:
        """Years since the start, at the beginning of the current month."""
        return self.month / 12

    def until(self, month: int, hour: float) -> simpy.Timeout:
        """Wait for an hour of a month."""
        return self.env.timeout(month * HOURS_PER_MONTH + hour - self.env.now)

    def record(self, name: str, value: float) -> None:
        """Add to a physical quantity of the current month."""
        if name not in self.records:
            self.records[name] = np.zeros(self.months)
        self.records[name][self.month] += value

    def note(self, stage: str, what: str) -> None:
        """Remember something that happened, for the report's list of events."""
        self.events.append((self.env.now, stage, what))
