"""Plan against actual: the plan's run, the actual books, calibrated assumptions, and the forecast.

Models a month-end review. The plan is a run of the scenario; the actual months stand in books of the same chart
(`sim.actuals.books`); their difference is explained (`sim.actuals.variance`); the scenario is calibrated from what was
measured (`sim.actuals.calibration`) and goes on from the month after, with the customers and the money that are there
(`sim.actuals.rebase`). The forecast is one run of it and, where asked for, many runs over its uncertainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from engine.errors import InputError
from engine.utils.message import Message
from engine.utils.progress import Progress, no_progress, part_of
from sim.accounting.ledger import MICRO_PER_USD
from sim.actuals.books import RENTED, Books, keep_books
from sim.actuals.calibration import Calibration, calibrate
from sim.actuals.estimates import ratio
from sim.actuals.measured import Measured
from sim.actuals.meter import Metered, read_meter
from sim.actuals.rebase import rebased, segment_key
from sim.actuals.subscriptions import Subscriptions, read_subscriptions
from sim.actuals.tables import account_table, by_month, fan_columns, revenue_table, usage_table
from sim.actuals.traffic import Traffic, read_traffic
from sim.billing.charges import month_index, plans_of
from sim.scenario.plans import split_key

if TYPE_CHECKING:
    from engine.profile.profile import Profile
    from sim.actuals.bank import Bank
    from sim.capacity.surface import CapacitySurface
    from sim.company.simulate import Result
    from sim.scenario.scenario import Scenario
    from sim.study.monte_carlo import MonteCarlo

AHEAD_MONTHS = 12  # of a forecast, when the plan's own months are over


@dataclass(frozen=True)
class Actuals:
    """Comparison of a plan with actual months.

    `months`: one row for each month and measure: month, measure, planned, actual, forecast, forecast_low,
    forecast_high (5 and 95 % of the runs), NaN where there is nothing. `accounts`: as `account_variance`. `revenue` and
    `usage`: one row per month with planned, actual and the causes between them, in micro-dollars and tokens. `notes`:
    what was assumed or left out, in plain English.
    """

    plan: Result
    first: int  # the plan's month that is the first of the comparison
    metered: Metered
    books: Books
    subscriptions: Subscriptions
    traffic: Traffic
    calibration: Calibration
    calibrated: Scenario
    forecast: Result
    study: MonteCarlo | None
    months: pd.DataFrame
    accounts: pd.DataFrame
    revenue: pd.DataFrame
    usage: pd.DataFrame
    notes: tuple[str, ...]


def plan_against_actual(
    scenario: Scenario,
    database: str,
    bank: Bank | None = None,
    *,
    months: str | None = None,
    now_s: float,
    default_plan: str | None = None,
    inactive_months: int = 1,
    ahead_months: int | None = None,
    runs: int = 0,
    workers: int | None = None,
    profile: Profile | None = None,
    surface: CapacitySurface | None = None,
    progress: Progress | None = None,
) -> Actuals:
    """Compare a plan with the meter and the bank, calibrate it, and forecast from the last actual month.

    Args:
        scenario: the plan.
        database: URL of the usage database.
        bank: rows of the bank; None: only what is metered is compared.
        months: "2026-08..2026-11"; None: from the first request to the last month that is over.
        now_s: unix time [s].
        default_plan: of keys that name none.
        inactive_months: whole months without a request after which a customer of a plan without a fee counts as lost.
        ahead_months: length of the forecast; None: to the end of the plan, at least 12 months.
        runs: of the forecast over its uncertainty; 0: one run and no band.
        workers: processes for those.
        profile, surface: as of `sim.company.simulate.simulate`, of the plan.
        progress: called with (fraction done, what is being done).

    Raises:
        InputError: months that the plan doesn't have, a wrong option, an unusable database or key.
    """
    from sim.company.simulate import simulate
    from sim.study.monte_carlo import monte_carlo
    from sim.study.runs.options import RunOptions

    report = progress or no_progress
    _check(inactive_months, ahead_months, runs)
    metered = read_meter(database, months, now_s=now_s, progress=part_of(report, 0.0, 0.3))
    first = _first(scenario, metered)
    plan = simulate(scenario, profile=profile, surface=surface, progress=part_of(report, 0.3, 0.4))
    report(0.4, Message("keeping the books"))
    opening = round(_cash_before(plan, first) * MICRO_PER_USD)
    books = keep_books(metered, scenario, bank, planned_opening_micro=opening, default_plan=default_plan)
    subscriptions = read_subscriptions(
        metered, scenario, inactive_months=inactive_months, default_plan=default_plan
    )
    report(0.45, Message("calibrating"))
    traffic = read_traffic(metered.by_hour, metered.start_s, metered.sample, scenario.market.traffic)
    measured = Measured(metered, subscriptions, books, traffic, plan, first)
    calibration = calibrate(measured)
    calibrated, notes = _calibrated(measured, calibration, ahead_months)
    report(0.5, Message("forecasting"))
    same_load = dict(calibrated.market.traffic) == dict(scenario.market.traffic)
    forecast = simulate(
        calibrated, profile=plan.profile, surface=plan.surface if same_load else None,
        progress=part_of(report, 0.5, 0.6),
    )  # fmt: skip
    priced = _machine_price(measured, calibrated, forecast)
    if priced is not None:
        calibrated = priced
        forecast = simulate(calibrated, profile=plan.profile, surface=forecast.surface)
    study = None
    if runs:
        study = monte_carlo(
            calibrated,
            runs=runs,
            fans=fan_columns(),
            options=RunOptions(plan.profile, workers, progress=part_of(report, 0.6, 1.0)),
        )
    report(1.0, Message("done"))
    return Actuals(
        plan=plan,
        first=first,
        metered=metered,
        books=books,
        subscriptions=subscriptions,
        traffic=traffic,
        calibration=calibration,
        calibrated=calibrated,
        forecast=forecast,
        study=study,
        months=by_month(measured, forecast, study),
        accounts=account_table(measured),
        revenue=revenue_table(measured),
        usage=usage_table(measured),
        notes=(*_notes(measured, bank), *notes),
    )


def _check(inactive_months: int, ahead_months: int | None, runs: int) -> None:
    for name, value, low, high in (
        ("inactive-months", inactive_months, 1, 24),
        ("ahead", AHEAD_MONTHS if ahead_months is None else ahead_months, 1, 240),
        ("runs", runs, 0, 1_000_000),
    ):
        if not low <= value <= high:
            raise InputError(f"{name}: found {value}, allowed: {low} to {high:,}")


def _first(scenario: Scenario, metered: Metered) -> int:
    first = month_index(metered.months[0]) - month_index(scenario.start_month)
    if first < 0 or first + len(metered.months) > scenario.horizon_months:
        raise InputError(
            f"months: found {metered.months[0]}..{metered.months[-1]}, allowed: months of the plan, which has "
            f"{scenario.horizon_months} from {scenario.start_month} on (--months, or --set start_month=YYYY-MM)"
        )
    return first


def _cash_before(plan: Result, month: int) -> float:
    """The plan's cash [USD] when a month begins."""
    if month == 0:
        return plan.scenario.finance.initial_cash_usd
    return float(plan.monthly["cash_usd"].iloc[month - 1])


def _calibrated(
    measured: Measured, calibration: Calibration, ahead_months: int | None
) -> tuple[Scenario, list[str]]:
    """The scenario of the months to come, and what is left out of it."""
    from sim.scenario.scenario import Scenario

    plan, behind = measured.plan, measured.first + measured.months
    changes, left_out = rebased(plan, behind)
    changes |= calibration.changes
    ahead = ahead_months or max(AHEAD_MONTHS, plan.scenario.horizon_months - behind)
    changes["horizon_months"] = ahead
    opening, customers = _opening_cash(measured), _customers_left(measured)
    counted = {}  # where the scenario holds the customers of each plan
    for name, count in customers.items():
        segment, short = split_key(plan.scenario.market, name)
        counted[f"{segment_key(segment)}.plans.{short}.initial_customers"] = count
    changes |= counted
    changes["finance.initial_cash_usd"] = max(0.0, round(opening, 6))
    # Comments of the file are about the plan; a copy without them has each key's meaning instead.
    start = Scenario.parse(plan.scenario.plain(), file=f"{plan.scenario.name}, calibrated")
    scenario = start.override({key: _rounded(value) for key, value in changes.items()})
    span = f"{measured.metered.months[0]}…{measured.metered.months[-1]}"
    sources = dict(scenario.sources) | {
        key: f"measured: meter {span}" for key in calibration.changes if not key.startswith("finance.")
    }
    sources |= {key: f"measured: bank {span}" for key in calibration.changes if key.startswith("finance.")}
    money = (
        f"bank {span}, with what customers owe and less what is owed"
        if measured.books.has_bank
        else "the plan"
    )
    sources["finance.initial_cash_usd"] = (
        f"measured: {money}" if measured.books.has_bank else "the plan: no bank rows"
    )
    for at in counted:
        sources[at] = f"measured: meter {measured.metered.months[-1]}, less the churn expected at its end"
    scenario = scenario.override({"sources": sources})
    notes = [
        f"The forecast leaves out {key}: it was begun before and can't be begun again." for key in left_out
    ]
    if opening < 0:
        notes.append(
            f"More is owed than there is in the bank ({opening:,.2f} USD): the forecast begins with nothing."
        )
    notes.append("The model's quality, rivals and prices elsewhere are the plan's: no meter sees them.")
    return scenario, notes


def _rounded(value: Any) -> Any:
    """To the digits that a file keeps, so that the saved scenario is this one."""
    return float(f"{value:.12g}") if isinstance(value, float) else value


def _opening_cash(measured: Measured) -> float:
    """Cash [USD] at the end, as if what customers owe and what is owed were settled: a run begins without either."""
    if not measured.books.has_bank:
        return _cash_before(measured.plan, measured.first + measured.months)
    ledger = measured.books.ledger
    settled = sum(
        ledger.balance_micro(account) for account in ("cash", "receivable", "payable", "sales_tax_payable")
    )
    return settled / MICRO_PER_USD


def _customers_left(measured: Measured) -> dict[str, int]:
    """Customers of each plan after the last month: those of that month, less the churn expected at its end."""
    left = {}
    for name, (_, settings) in plans_of(measured.plan.scenario).items():
        there = [
            subscription
            for subscription in measured.subscriptions.of(name)
            if subscription.is_there(measured.months - 1)
        ]
        if there and there[0].by_fee:
            left[name] = sum(not subscription.ended for subscription in there)
            continue
        gone, cases = measured.subscriptions.churn(name, settings)
        churn = (gone + 0.5) / (cases + 1) if cases else settings.churn_per_month
        left[name] = round(sum(not subscription.ended for subscription in there) * (1 - churn))
    return left


def _machine_price(measured: Measured, calibrated: Scenario, forecast: Result) -> Scenario | None:
    """The price of a machine at which the forecast's serving costs what serving did cost, per token.

    The fleet doesn't depend on its price, so one run is enough. Computed only with bank rows of machines: the meter has
    the cost of busy machines alone.
    """
    income = measured.books.statements.income()
    if not measured.books.has_bank or float(income["serving_reserved"].sum()) <= 0:
        return None
    tokens = [sum(one.prompt_tokens + one.output_tokens for one in used) for used in measured.metered.used]
    paid = ratio(sum(income[account] for account in RENTED), np.array(tokens) / 1e6)
    modelled = float(forecast.monthly["serving_cost_usd_per_mtok"].iloc[0])
    if paid is None or not modelled > 0:
        return None
    price = calibrated.deployment.replica_price_usd_per_hour
    if price is None:
        price = forecast.profile.hardware.price_usd_per_hour
    key = "deployment.replica_price_usd_per_hour"
    usual = float(price)
    changed = calibrated.override({key: paid.through(lambda value: value / modelled * usual).text()})
    span = f"{measured.metered.months[0]}…{measured.metered.months[-1]}"
    return changed.override({"sources": dict(changed.sources) | {key: f"measured: bank and meter {span}"}})


def _notes(measured: Measured, bank: Bank | None) -> list[str]:
    notes, subscriptions = [], measured.subscriptions
    if bank is None:
        notes.append(
            "No bank rows: cash and cost other than serving are not compared; opening cash is the plan's. "
            "The meter's cost is that of busy machines alone, the plan's that of all of them."
        )
    else:
        if measured.books.opening_is_planned:
            notes.append(
                f"{bank.file} has no row {'opening_cash'!r}: what was in the bank before is the plan's cash."
            )
        if bank.repeated_lines:
            notes.append(f"Left out as repeated: {_lines(bank.repeated_lines)} of {bank.file}.")
        if measured.books.outside_lines:
            notes.append(
                f"Left out as outside of these months: {_lines(measured.books.outside_lines)} of {bank.file}."
            )
    if measured.metered.is_preliminary:
        notes.append(f"{measured.metered.months[-1]} is still running: its numbers are preliminary.")
    unknown = sum(len(bill.unassigned) for bill in measured.books.bills)
    if unknown:
        notes.append(
            "Usage of keys that the database doesn't know is in cost and tokens, and billed to nobody."
        )
    if subscriptions.unknown_keys:
        notes.append(
            f"{subscriptions.unknown_keys} keys are on no plan of the scenario and count as no customer."
        )
    if subscriptions.never_used:
        notes.append(
            f"{subscriptions.never_used} customers without a fee signed up and never asked: they count as none."
        )
    rule = "month" if subscriptions.inactive_months == 1 else f"{subscriptions.inactive_months} months"
    notes.append(f"Lost: a customer without a fee who asks nothing for a whole {rule}, or whose keys end.")
    return notes


def _lines(lines: Sequence[int]) -> str:
    shown = ", ".join(f"{line:,}" for line in lines[:5])
    return f"line{'s' if len(lines) > 1 else ''} {shown}{', …' if len(lines) > 5 else ''} ({len(lines):,} in all)"
