"""Value of the loop: usage → consented text → better model → more customers who stay → usage.

Two questions, both answered by runs that share their random numbers, so that the difference is the loop's:
- The whole loop: the same company with and without it (`loop.cut`).
- One more user through the loop: the text that users send is scaled up and down by a share s, while their
  number, revenue and load stay. That is the text of s × users more or fewer, so
  value of one more user = (V(1 + s) − V(1 − s)) / (2 s × users), V the gross profit of the run.
Whole customers make single runs jump; the mean over several seeds and its standard error are reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import InputError
from sim.accounting.saas_metrics import FloatArray
from sim.company.simulate import Result, simulate

if TYPE_CHECKING:
    from engine.profile.profile import Profile
    from sim.capacity.surface import CapacitySurface
    from sim.scenario.scenario import Scenario


@dataclass(frozen=True)
class LoopValue:
    """Means over seeds; `_se` are standard errors of the mean (NaN with one seed).

    Per-user values are of one more user (of the company's mean mix of plans) through the whole run, by the
    text alone: the revenue and cost of that user are not in them.
    """

    seeds: int
    users_mean: float  # billed, free and trial users
    gross_profit_usd_per_user: float
    gross_profit_usd_per_user_se: float
    arr_end_usd_per_user: float
    customers_end_per_user: float
    worth_gross_profit_usd: float  # of the whole loop: with it, less without
    worth_gross_profit_usd_se: float
    worth_arr_end_usd: float
    worth_customers_end: float
    worth_quality_end: float


def loop_value(
    scenario: Scenario,
    *,
    seeds: int = 8,
    share: float = 0.2,
    profile: Profile | None = None,
    surface: CapacitySurface | None = None,
) -> LoopValue:
    """Value of the loop, and of one more user through it, in a scenario (4 runs per seed).

    Args:
        scenario: the company; its own seed is the first of the seeds.
        seeds: runs to average over.
        share: of the users' text by which it is scaled up and down, between 0 and 1.
        profile: as in `simulate`.
        surface: as in `simulate`.

    Raises:
        InputError: seeds or share out of bounds, or as `simulate`.
    """
    if seeds < 1:
        raise InputError(f"seeds: found {seeds}, allowed: 1 or more")
    if not 0 < share < 1:
        raise InputError(f"share: found {share:g}, allowed: between 0 and 1")
    kept = scenario.data.feedback_yield
    more, fewer = min(1.0, kept * (1 + share)), kept * (1 - share)
    step = (more - fewer) / kept if kept > 0 else math.nan  # smaller where all text is kept already

    def runs(changes: dict[str, object]) -> list[Result]:
        changed = scenario.override(changes)
        return [simulate(changed, scenario.seed + n, profile, surface=surface) for n in range(seeds)]

    whole, cut = runs({}), runs({"loop.cut": True})
    up, down = runs({"data.feedback_yield": more}), runs({"data.feedback_yield": fewer})
    users = np.array([_users(result) for result in whole])
    profit = _gain(up, down, _gross_profit) / (step * users)
    worth = _gain(whole, cut, _gross_profit)
    return LoopValue(
        seeds=seeds,
        users_mean=float(users.mean()),
        gross_profit_usd_per_user=float(profit.mean()),
        gross_profit_usd_per_user_se=_standard_error(profit),
        arr_end_usd_per_user=float((_gain(up, down, _arr) / (step * users)).mean()),
        customers_end_per_user=float((_gain(up, down, _customers) / (step * users)).mean()),
        worth_gross_profit_usd=float(worth.mean()),
        worth_gross_profit_usd_se=_standard_error(worth),
        worth_arr_end_usd=float(_gain(whole, cut, _arr).mean()),
        worth_customers_end=float(_gain(whole, cut, _customers).mean()),
        worth_quality_end=float(_gain(whole, cut, lambda result: result.loop["quality_end"]).mean()),
    )


def _gain(with_: list[Result], without: list[Result], value: Callable[[Result], float]) -> FloatArray:
    return np.array([value(a) - value(b) for a, b in zip(with_, without, strict=True)])


def _gross_profit(result: Result) -> float:
    return float(result.monthly["gross_profit_usd"].sum())


def _arr(result: Result) -> float:
    return float(result.monthly["arr_usd"].iloc[-1])


def _customers(result: Result) -> float:
    return float(result.monthly["customers"].iloc[-1])


def _users(result: Result) -> float:
    return float(result.monthly[["customers", "customers_free", "trial_customers"]].sum(axis=1).mean())


def _standard_error(values: FloatArray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
