"""Optimise: the price, plan mix, fleet, model, cadence or hiring that is best for one or several goals.

Optuna proposes candidates and learns from them: TPE (Bergstra et al. 2011) for one goal, NSGA-II (Deb et al. 2002)
for several, both with constraints. Every candidate runs at the same seeds and draws (common random numbers). The
best of many noisy candidates is overestimated, so what is chosen is run again at fresh seeds, which the search has not
used: both numbers are reported, and only the fresh ones are an unbiased forecast.

Candidates are proposed in batches of a fixed size, so a search depends on its inputs alone, not on the number of
workers, nor on being interrupted and resumed from its folder.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from engine.errors import InputError
from engine.utils.message import Message
from sim.scenario.conditions import Condition, Goal, Measure, parse_condition, parse_goal, require_outcomes
from sim.study.candidates import Candidates, common_points, first_error
from sim.study.estimates import estimate, half_width
from sim.study.levers import Lever, parse_lever
from sim.study.runs.options import DEFAULT_OPTIONS, RunOptions

if TYPE_CHECKING:
    import optuna

    from sim.scenario.scenario import Scenario

Evaluate = Callable[[Sequence[dict[str, Any]]], list[pd.DataFrame]]
BATCH = 8  # candidates proposed at once: enough work for several cores, few enough for the sampler to learn
_FAR = 1e6  # largest violation given to the sampler, in units of a condition's number
_SHOWN = 12  # most candidates of a front that are run again at fresh seeds


@dataclass(frozen=True)
class Optimum:
    """The result of `optimise`.

    `trials`: one row per candidate in the order tried: trial, the levers by key, the goals by text (NaN where it
    can't be run), violation (0 where all conditions hold), feasible, chosen, error.
    `chosen`: the best candidate (one goal) or the Pareto front (several; at most 12, spread along it), one row each:
    trial, the levers, and for each goal "GOAL (search)", "GOAL", "GOAL low", "GOAL high": in the search, and
    at fresh seeds with its 95 % interval; "GOAL gain", "GOAL gain low", "GOAL gain high": its difference to
    today's outcome, paired by seed (narrower than the level's interval); "holds" and for each condition its
    text: whether it holds at fresh seeds. Empty when no candidate met the conditions; `nearest` is then the one
    that came nearest.
    `today`: the scenario as it is, at the same fresh seeds, in the same columns.
    """

    levers: tuple[str, ...]
    goals: tuple[str, ...]
    conditions: tuple[str, ...]
    seeds: int
    fresh_seeds: int
    trials: pd.DataFrame
    chosen: pd.DataFrame
    today: pd.DataFrame
    nearest: pd.DataFrame
    method: str
    runs: int


def search(
    evaluate: Evaluate,
    levers: Sequence[Lever],
    goals: Sequence[Goal],
    conditions: Sequence[Condition] = (),
    *,
    trials: int,
    seed: int = 0,
    batch: int = BATCH,
    start: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Candidates tried, one row each: the table `Optimum.trials`, without `chosen`.

    Args:
        evaluate: the runs of each candidate of a batch (frames as of `run_points`).
        levers: assumptions to change.
        goals: one or several.
        conditions: constraints on a candidate.
        trials: number of candidates.
        seed: of the search; equal seeds propose equal candidates.
        batch: candidates proposed at once.
        start: a candidate to try first, if it lies within the levers.
    """
    import optuna

    with _quiet_optuna():
        sampler = _sampler(len(goals), trials, seed)
        better = optuna.study.StudyDirection
        directions = [better.MAXIMIZE if goal.direction == "max" else better.MINIMIZE for goal in goals]
        study = optuna.create_study(directions=directions, sampler=sampler)
        if start is not None:
            study.enqueue_trial(dict(start))
        rows: list[dict[str, Any]] = []
        while len(rows) < trials:
            asked = [study.ask() for _ in range(min(batch, trials - len(rows)))]
            candidates = [{lever.key: _suggest(trial, lever) for lever in levers} for trial in asked]
            for trial, candidate, runs in zip(asked, candidates, evaluate(candidates), strict=True):
                rows.append(_row(len(rows), candidate, runs, goals, conditions))
                _report(study, trial, rows[-1], goals, conditions, runs)
    return pd.DataFrame(rows)


def pareto(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Mask [rows] of the Pareto front: no other row is at least as large in every column and larger in one."""
    at_least = (values[:, None, :] >= values[None, :, :]).all(axis=2)
    better = (values[:, None, :] > values[None, :, :]).any(axis=2)
    return np.asarray(~(at_least & better).any(axis=0))


def optimise(
    scenario: Scenario,
    levers: Sequence[Lever | str],
    goals: Sequence[Goal | str],
    conditions: Sequence[Condition | str] = (),
    *,
    trials: int = 100,
    seeds: int = 4,
    fresh_seeds: int = 16,
    seed: int = 0,
    options: RunOptions = DEFAULT_OPTIONS,
) -> Optimum:
    """Find the best setting of a company's levers.

    Args:
        scenario: the company as it is.
        levers: assumptions to change: "market.price_usd_per_mtok_output=0.2..3 log", "deployment.model=a,b".
        goals: such as "max cash_usd_end", "min p(ruined)"; several give a Pareto front.
        conditions: such as "cash_usd_min >= 0" (in every run) or "p(ruined) <= 5%".
        trials: number of candidates.
        seeds: runs per candidate, at points common to all.
        fresh_seeds: runs of the chosen candidates, at seeds that the search has not used.
        seed: of the search.
        options: of the runs.

    Raises:
        InputError: a malformed lever, goal or condition, or no candidate that can be run.
    """
    turned = [parse_lever(one, scenario) if isinstance(one, str) else one for one in levers]
    wanted = [parse_goal(one) if isinstance(one, str) else one for one in goals]
    held = [parse_condition(one) if isinstance(one, str) else one for one in conditions]
    _check(turned, wanted, trials, fresh_seeds)
    require_outcomes([*(goal.measure for goal in wanted), *(one.measure for one in held)])
    with Candidates(scenario, common_points(scenario, seeds, drawn=True), options, "search") as candidates:
        done = 0

        def evaluate(batch: Sequence[dict[str, Any]]) -> list[pd.DataFrame]:
            nonlocal done
            share = 0.9 / trials
            span = (share * done, share * (done + len(batch)))
            done += len(batch)
            return candidates.runs(
                batch, span=span, doing=Message("candidate {number} of {total}", number=done, total=trials)
            )

        tried = search(
            evaluate, turned, wanted, held, trials=trials, seed=seed, start=_today(scenario, turned)
        )
    if (tried["error"] != "").all():
        raise InputError(f"no candidate can be run: {tried['error'].iloc[0]}")
    tried["chosen"] = _choose(tried, wanted)
    fresh_points = common_points(scenario, fresh_seeds, drawn=True, fresh_after=seeds)
    with Candidates(scenario, fresh_points, options, "fresh") as again:
        best = _spread(tried[tried["chosen"]], wanted)
        settings = [_setting(row, turned) for row in best.to_dict(orient="records")]
        frames = again.runs([*settings, {}], span=(0.9, 1.0), doing=Message("fresh seeds"))
    fresh = [_fresh_row(runs, frames[-1], wanted, held) for runs in frames]
    searched = best[["trial", *(lever.key for lever in turned)]].reset_index(drop=True)
    for goal in wanted:
        searched[f"{goal} (search)"] = best[str(goal)].to_numpy()
    return Optimum(
        levers=tuple(str(lever) for lever in turned),
        goals=tuple(str(goal) for goal in wanted),
        conditions=tuple(str(condition) for condition in held),
        seeds=seeds,
        fresh_seeds=fresh_seeds,
        trials=tried,
        chosen=pd.concat([searched, pd.DataFrame(fresh[:-1], index=searched.index)], axis=1),
        today=pd.DataFrame([fresh[-1]]),
        nearest=_nearest(tried),
        method="TPE" if len(wanted) == 1 else "NSGA-II",
        runs=trials * seeds + len(frames) * fresh_seeds,
    )


def _check(levers: list[Lever], goals: list[Goal], trials: int, fresh_seeds: int) -> None:
    if not levers or not goals:
        raise InputError("optimise: found no lever or no goal, allowed: at least one of each")
    keys = [lever.key for lever in levers]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise InputError(f"lever {twice}: found twice, allowed: once")
    if trials < 1 or fresh_seeds < 2:
        raise InputError(f"trials, fresh seeds: found {trials}, {fresh_seeds}, allowed: at least 1 and 2")


def _sampler(goals: int, trials: int, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    if goals == 1:
        # Multivariate: levers interact. Running candidates count as bad, so that a batch spreads.
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=max(BATCH, min(trials // 4, 24)),
            multivariate=True,
            group=True,
            constant_liar=True,
        )
    population = max(BATCH, min(48, trials // 6 // BATCH * BATCH))
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=population)


class _quiet_optuna:
    """Silences Optuna's log lines and its warnings on experimental features."""

    def __enter__(self) -> None:
        import optuna

        self._before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *error: object) -> None:
        import optuna

        self._warnings.__exit__(None, None, None)
        optuna.logging.set_verbosity(self._before)


def _suggest(trial: optuna.Trial, lever: Lever) -> Any:
    if lever.choices:
        return trial.suggest_categorical(lever.key, lever.choices)
    if lever.whole:
        return trial.suggest_int(lever.key, int(lever.low), int(lever.high), log=lever.log)
    return trial.suggest_float(lever.key, lever.low, lever.high, log=lever.log)


def _today(scenario: Scenario, levers: Sequence[Lever]) -> dict[str, Any] | None:
    """The present setting, as the first candidate, if it lies within all levers; else None."""
    from sim.scenario.fields import leaves

    values = {key: value for key, value, _ in leaves(scenario)}
    present = {}
    for lever in levers:
        value = values.get(lever.key)
        if lever.choices:
            inside = value in lever.choices
        else:
            inside = isinstance(value, (int, float)) and lever.low <= value <= lever.high
        if not inside:
            return None
        present[lever.key] = value
    return present


def _row(
    number: int,
    candidate: dict[str, Any],
    runs: pd.DataFrame,
    goals: Sequence[Goal],
    conditions: Sequence[Condition],
) -> dict[str, Any]:
    error = first_error(runs)
    values = {str(goal): math.nan if error else goal.measure.of(runs) for goal in goals}
    holds = not error and all(condition.holds(runs) for condition in conditions)
    # Distances are in units of each condition's own number, so that dollars and seconds can be added.
    far = sum(_distance(condition, runs) for condition in conditions) if not error else math.inf
    return {"trial": number, **candidate, **values, "violation": far, "feasible": holds, "error": error}


def _distance(condition: Condition, runs: pd.DataFrame) -> float:
    return condition.violation(runs) / (abs(condition.value) or 1.0)


def _report(
    study: optuna.Study,
    trial: optuna.Trial,
    row: dict[str, Any],
    goals: Sequence[Goal],
    conditions: Sequence[Condition],
    runs: pd.DataFrame,
) -> None:
    """Report a candidate to Optuna; one that can't be run violates a constraint of its own."""
    values = [row[str(goal)] for goal in goals]
    able = bool(np.isfinite(values).all())
    trial.set_constraint("can be run", 0.0 if able else 1.0)
    for condition in conditions:
        trial.set_constraint(str(condition), min(_distance(condition, runs), _FAR) if able else _FAR)
    study.tell(trial, values if able else [0.0] * len(values))


def _choose(tried: pd.DataFrame, goals: Sequence[Goal]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Mask of the best candidate, or of the Pareto front, among those that meet every condition."""
    upward = np.column_stack(
        [tried[str(goal)].to_numpy(float) * (1 if goal.direction == "max" else -1) for goal in goals]
    )
    able = tried["feasible"].to_numpy(bool) & np.isfinite(upward).all(axis=1)
    chosen = np.zeros(len(tried), dtype=bool)
    where = np.flatnonzero(able)
    if not len(where):
        return chosen
    if len(goals) == 1:
        chosen[where[np.argmax(upward[where, 0])]] = True
        return chosen
    _, first = np.unique(upward[where], axis=0, return_index=True)  # of equals, the first one tried
    where = where[np.sort(first)]
    chosen[where[pareto(upward[where])]] = True
    return chosen


def _spread(front: pd.DataFrame, goals: Sequence[Goal]) -> pd.DataFrame:
    """A front in the order of its first goal, thinned evenly to `_SHOWN` rows."""
    ordered = front.sort_values(str(goals[0]), ascending=goals[0].direction == "min")
    if len(ordered) <= _SHOWN:
        return ordered
    kept = np.linspace(0, len(ordered) - 1, _SHOWN).round().astype(int)
    return ordered.iloc[kept]


def _setting(row: Mapping[Any, Any], levers: Sequence[Lever]) -> dict[str, Any]:
    """A candidate's levers as the schema requires: whole numbers as int, which a table's column keeps as float."""
    return {lever.key: int(row[lever.key]) if lever.whole else row[lever.key] for lever in levers}


def _fresh_row(
    runs: pd.DataFrame, today: pd.DataFrame, goals: Sequence[Goal], conditions: Sequence[Condition]
) -> dict[str, float | bool]:
    row: dict[str, float | bool] = {}
    good = not first_error(runs)
    for goal in goals:
        found = estimate(goal.measure, runs)
        row |= {str(goal): found.value, f"{goal} low": found.low, f"{goal} high": found.high}
        row |= {f"{goal} gain{end}": value for end, value in _gain(goal.measure, runs, today).items()}
    kept = {str(condition): good and condition.holds(runs) for condition in conditions}
    return {**row, "holds": good and all(kept.values()), **kept}


def _gain(measure: Measure, runs: pd.DataFrame, today: pd.DataFrame) -> dict[str, float]:
    """Difference of a setting to the company as it is; its interval is that of pairs with common seeds."""
    if first_error(runs) or first_error(today):
        return {"": math.nan, " low": math.nan, " high": math.nan}
    with np.errstate(invalid="ignore"):
        gain = measure.of(runs) - measure.of(today)
        apart = measure.each(runs) - measure.each(today)
    pairs = measure.statistic in ("each", "mean", "probability") and bool(np.isfinite(apart).all())
    half = half_width(apart) if pairs else math.nan
    return {"": gain, " low": gain - half, " high": gain + half}


def _nearest(tried: pd.DataFrame) -> pd.DataFrame:
    """The candidate nearest to meeting the conditions, where none meets them."""
    if tried["feasible"].any():
        return tried.iloc[:0]
    runnable = tried[tried["error"] == ""]
    return runnable.sort_values("violation", kind="stable").head(1)
