"""What the stages of one company share: the clock, the books, the model in use, and what they hand to each
other.

Time is simulated hours; a month is 730 hours. Within a month the stages act at fixed hours, so that cause
comes before effect: text and customers arrive (0), the fleet serves (1), people are paid (365), bills and
invoices go out and customers leave (729), depreciation, interest and tax are booked (729.5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import simpy
from numpy.typing import NDArray

from sim.accounting.ledger import HOURS_PER_MONTH, Ledger, micro
from sim.stages.text_pool import Pool
from sim.utils.randomness import streams

if TYPE_CHECKING:
    from engine.profile.profile import Profile
    from sim.capacity.surface import CapacitySurface
    from sim.scenario.scenario import Scenario


FloatArray = NDArray[np.float64]

OPENING_HOUR = 0
SERVING_HOUR = 1
PAYDAY_HOUR = 365
CLOSING_HOUR = 729
BOOKS_HOUR = 729.5


@dataclass(frozen=True)
class ModelVersion:
    """A released model: its loss (nats per token) and quality index (0 to 1).

    `gain`: of tuning and reinforcement, nats per token, beside the loss on text.
    """

    version: int
    loss: float
    quality: float
    gain: float = 0.0


@dataclass(frozen=True)
class Service:
    """How the fleet served one month: share of requests served, and p95 latency over its objective (≥ 1).

    `credit_share`: fraction of the month's invoices given back for outages.
    """

    served_fraction: float = 1.0
    slowness: float = 1.0
    credit_share: float = 0.0


@dataclass
class Spare:
    """Machines of the fleet for other work this month; the fleet's prices are those of this month."""

    idle_h: float = 0.0  # replica-hours reserved, not used by demand or by other work so far
    reserved_usd_per_h: float = 0.0
    on_demand_usd_per_h: float = 0.0
    output_tokens_per_h: float = 1.0  # what one replica writes flat out


@dataclass(frozen=True)
class OpenItem:
    """A bill to pay or an invoice to collect; hours since the start, amount in micro-dollars."""

    account: Literal["payable", "receivable"]
    booked_h: float
    due_h: float
    settled_h: float  # paid, or written off
    amount_micro: int


@dataclass(frozen=True)
class ClosedRound:
    """Shares sold: month, USD, and the fractions of the company that investors and staff got."""

    name: str
    month: int
    amount_usd: float
    pre_money_usd: float
    investor_share: float
    staff_share: float


class Event(NamedTuple):
    """Something that happened: the hour, the stage, what kind of event, and its numbers and names.

    `sim.i18n.event_messages` has a sentence for each kind.
    """

    hour: float
    stage: str
    kind: str
    values: dict[str, Any]


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
    requests_by_plan: dict[str, float] = field(default_factory=dict)  # asked this month, from the market
    spare: Spare = field(default_factory=Spare)  # from the fleet to data and training
    scarcity: FloatArray | None = (
        None  # 1 in months of a shortage of accelerators [months]; None: no such scenario
    )
    service: Service = field(default_factory=Service)  # of the current month, from the fleet to the market
    records: dict[str, FloatArray] = field(default_factory=dict)
    fleet_by_hour: list[FloatArray] = field(default_factory=list)  # per month [24, 5], see FLEET_COLUMNS
    billed: dict[str, FloatArray] = field(default_factory=dict)  # customers by plan [month of joining, month]
    events: list[Event] = field(default_factory=list)  # in order of time
    plan_records: dict[tuple[str, str], FloatArray] = field(default_factory=dict)  # plan, what [months]
    open_items: list[OpenItem] = field(default_factory=list)  # every bill and invoice, paid or not
    rounds: list[ClosedRound] = field(default_factory=list)  # who bought shares, in order of time
    sales_people: dict[str, float] = field(default_factory=dict)  # ramped, by segment, this month
    owned_replicas: float = 0.0  # bought or leased by finance: the fleet rents only what is beyond them
    owned_accelerators: float = 0.0  # the same for training

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
        """Event of an hour of a month, to be waited for."""
        return self.env.timeout(month * HOURS_PER_MONTH + hour - self.env.now)

    def record(self, name: str, value: float) -> None:
        """Add to a physical quantity of the current month."""
        if name not in self.records:
            self.records[name] = np.zeros(self.months)
        self.records[name][self.month] += value

    def recorded(self, name: str) -> float:
        """Sum of a physical quantity recorded in the current month so far."""
        return float(self.records[name][self.month]) if name in self.records else 0.0

    @property
    def is_scarce(self) -> bool:
        """Whether accelerators are short this month."""
        return self.scarcity is not None and bool(self.scarcity[min(self.month, self.months - 1)])

    def record_plan(self, plan: str, name: str, value: float) -> None:
        """Add to a physical quantity of a plan in the current month."""
        if (plan, name) not in self.plan_records:
            self.plan_records[plan, name] = np.zeros(self.months)
        self.plan_records[plan, name][self.month] += value

    def note(self, stage: str, kind: str, /, **values: Any) -> None:
        """Add an event of a kind of `sim.i18n.event_messages.EVENTS`, which names its values, at this hour."""
        self.events.append(Event(self.env.now, stage, kind, values))


def use_idle(world: World, hours: float, account: str, memo: str) -> float:
    """Use up to `hours` idle replica-hours of this month; their cost moves to `account`. Returns the hours used."""
    spare = world.spare
    used = min(max(hours, 0.0), spare.idle_h)
    spare.idle_h -= used
    amount = micro(used * spare.reserved_usd_per_h)
    if amount:
        entries = [(account, amount), ("serving_reserved", -amount)]
        world.ledger.post(world.env.now, memo, entries, "own fleet")
    world.record("idle_replica_h_used", used)
    return used
