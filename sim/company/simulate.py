"""The company: four stages and its finances in one SimPy environment, month after month, every dollar posted.

    data → training → deployment → market → data …

The stages (`sim.stages`) share a `World`; the request level enters only through the capacity surface of the
measured model, so months take milliseconds. What a run reports is read from the ledger and the stages'
records.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from simpy.events import ProcessGenerator

from engine.utils.message import Message
from engine.utils.progress import Progress, no_progress, part_of
from sim.accounting.ledger import HOURS_PER_MONTH, Ledger
from sim.accounting.statements import Statements
from sim.company import tables
from sim.company.assumptions import Assumption, assumptions
from sim.company.monthly_table import headline, month_labels, monthly_table
from sim.company.tables import Facts
from sim.i18n.event_messages import event_in_words
from sim.i18n.translate import speaking
from sim.stages.data import stage as data
from sim.stages.deployment import rollout
from sim.stages.deployment import stage as deployment
from sim.stages.finance import stage as finance
from sim.stages.finance.funding import cap_table
from sim.stages.market import stage as market
from sim.stages.training import stage as training
from sim.stages.world import World

if TYPE_CHECKING:
    from engine.profile.profile import Profile
    from sim.capacity.surface import CapacitySurface
    from sim.scenario.scenario import Scenario

_SURFACE_SHARE = 0.8  # of the progress bar: the surface may take seconds, the months take a fraction of one


@dataclass(frozen=True)
class Result:
    """One run of one company.

    `monthly`: one row per month, units in the column names. `events`: month_index, day, stage, what (an English
    sentence), kind and values (numbers and names, a dict), see `sim.i18n.event_messages.EVENTS`.
    `daily_fleet`: month_index, hour_of_day, demand_rps, replicas_reserved, replicas_on_demand, utilisation
    (mean over the week). `loop`: totals of the flywheel over the whole run, see `_loop`. The tables of
    `sim.company.tables` are made when first asked for.
    """

    scenario: Scenario
    seed: int
    profile: Profile
    surface: CapacitySurface
    monthly: pd.DataFrame
    ledger: Ledger
    statements: Statements
    events: pd.DataFrame
    headline: dict[str, float | str]
    loop: dict[str, float]
    daily_fleet: pd.DataFrame
    assumptions: list[Assumption]
    facts: Facts

    @cached_property
    def cohorts(self) -> pd.DataFrame:
        """Customers kept of each month's signups, and their revenue: `sim.company.tables.cohort_table`."""
        return tables.cohort_table(self.facts)

    @cached_property
    def segments(self) -> pd.DataFrame:
        """Customers, revenue and marketing by segment and month: `sim.company.tables.segment_table`."""
        return tables.segment_table(self.facts)

    @cached_property
    def unit_economics(self) -> pd.DataFrame:
        """Per plan over the last 12 months, per customer and million tokens: `sim.company.tables.unit_economics`."""
        return tables.unit_economics(self.facts)

    @cached_property
    def cogs_by_cause(self) -> pd.DataFrame:
        """Cost of goods by month and cause: `sim.company.tables.cogs_by_cause`."""
        return tables.cogs_by_cause(self.facts)

    @cached_property
    def ageing(self) -> pd.DataFrame:
        """Open bills and invoices by how long they are overdue: `sim.company.tables.ageing`."""
        return tables.ageing(self.facts)

    @cached_property
    def cap_table(self) -> pd.DataFrame:
        """Ownership of the company after each round: `sim.stages.finance.funding.cap_table`."""
        return cap_table(self.facts.rounds, self.facts.labels)


def simulate(
    scenario: Scenario,
    seed: int | None = None,
    profile: Profile | None = None,
    progress: Progress | None = None,
    *,
    surface: CapacitySurface | None = None,
) -> Result:
    """Run the company of a scenario through its months.

    Args:
        scenario: the assumptions.
        seed: of the random streams; the scenario's own by default. The same seed gives the same ledger hash.
        profile: of the served model; by default this machine's own measurement, else the shipped one.
        progress: called with (fraction done, what is being done).
        surface: capacity of one replica, when already known; by default computed from the profile (and
        cached).

    Raises:
        InputError: no profile of the model, a profile of another model, or an objective that cannot be met.
    """
    report = progress or no_progress
    profile = _profile_for(scenario, profile)
    if surface is None:
        surface = _surface_for(scenario, profile, part_of(report, 0.0, _SURFACE_SHARE))
    world = World(
        scenario=scenario,
        profile=profile,
        surface=surface,
        week_shape=_week_shape(),
        seed=scenario.seed if seed is None else seed,
        live=training.first_version(scenario.training, float(profile.model.parameters)),
    )
    stages = (
        finance.run,
        data.run,
        market.run,
        deployment.run,
        deployment.roll_out,
        training.run,
    )
    for stage in stages:
        world.env.process(stage(world))
    if progress is not None:
        world.env.process(_report_progress(world, report))
    world.env.run(until=world.months * HOURS_PER_MONTH)
    statements = Statements(world.ledger, month_labels(scenario.start_month, world.months))
    table = monthly_table(world, statements)
    report(1.0, Message("done"))
    return Result(
        scenario=scenario,
        seed=world.seed,
        profile=profile,
        surface=surface,
        monthly=table,
        ledger=world.ledger,
        statements=statements,
        events=_events(world),
        headline=headline(table, world),
        loop=_loop(world),
        daily_fleet=_daily_fleet(world),
        assumptions=assumptions(scenario, profile, surface),
        facts=Facts(
            market=scenario.market,
            ledger=world.ledger,
            labels=statements.labels,
            billed=world.billed,
            plan_records=world.plan_records,
            open_items=world.open_items,
            rounds=world.rounds,
        ),
    )


def _profile_for(scenario: Scenario, profile: Profile | None) -> Profile:
    from engine.profile.profile import Profile as ProfileType
    from sim.utils.paths import resolve_profile

    model = scenario.deployment.model
    if profile is not None:
        return profile.require_model(model)
    path = resolve_profile(model)
    return ProfileType.load(path).require_model(model, path)


def _surface_for(scenario: Scenario, profile: Profile, progress: Progress) -> CapacitySurface:
    from sim.capacity.goals import Objective
    from sim.capacity.surface import capacity_surface

    deployment_ = scenario.deployment
    objective = Objective(ttft_p95_s=deployment_.ttft_p95_s, tpot_p95_s=deployment_.tpot_p95_s)
    return capacity_surface(profile, scenario.market.traffic, objective, progress=progress)


def _week_shape() -> np.ndarray[Any, np.dtype[np.float64]]:
    from sim.workload.arrivals import hourly_shape

    shape = np.asarray(hourly_shape(), dtype=np.float64).reshape(-1)
    return shape / shape.mean()


def _report_progress(world: World, report: Progress) -> ProcessGenerator:
    for month in range(world.months):
        yield world.until(month, 0)
        done = _SURFACE_SHARE + (1 - _SURFACE_SHARE) * month / world.months
        report(done, Message("month {month} of {months}", month=month + 1, months=world.months))


def _events(world: World) -> pd.DataFrame:
    with speaking("en"):
        rows = [
            (
                int(hour // HOURS_PER_MONTH),
                int(hour % HOURS_PER_MONTH // 24) + 1,
                stage,
                event_in_words(kind, values),
                kind,
                values,
            )
            for hour, stage, kind, values in world.events
        ]
    return pd.DataFrame(rows, columns=["month_index", "day", "stage", "what", "kind", "values"])


def _daily_fleet(world: World) -> pd.DataFrame:
    hours = np.concatenate(world.fleet_by_hour)
    frame = pd.DataFrame(hours, columns=list(deployment.FLEET_COLUMNS))
    frame.insert(0, "month_index", np.repeat(np.arange(world.months), 24))
    frame.insert(0, "hour_of_day", np.tile(np.arange(24), world.months))
    return frame


def _loop(world: World) -> dict[str, float]:
    """Totals of the run round the flywheel, in the order of the flow; units stand in the names."""
    first = training.first_version(world.scenario.training, float(world.profile.model.parameters))

    def total(name: str) -> float:
        return float(world.records[name].sum()) if name in world.records else 0.0

    return {
        "customers_new": total("new_customers"),
        "requests": total("requests"),
        "served_tokens": total("prompt_tokens") + total("output_tokens"),
        "opted_in_tokens": total("opted_in_tokens"),
        "feedback_tokens": total("feedback_tokens"),
        "source_tokens": total("source_tokens"),
        "source_tokens_kept": total("source_tokens_kept"),
        "initial_pool_tokens": world.scenario.data.initial_pool_tokens,
        "pool_tokens": world.pool.tokens,
        "pool_effective_tokens": world.pool.effective_tokens,
        "trained_tokens": total("trained_tokens"),
        "training_flop": total("training_flop"),
        "releases": total("releases"),
        "failed_gates": total("failed_gates"),
        "quality_start": rollout.served(world, first).quality,
        "quality_end": world.live.quality,
        "competitor_quality_end": float(world.records["competitor_quality"][-1]),
        "customers_end": float(world.records["customers"][-1]),
        "churned_customers": total("churned_customers"),
    }
