"""Sensitivity: the influence of each assumption on an outcome.

Tornado: each assumption alone to its low and its high value, at the same seeds as the company as it is, so that
noise largely cancels in the differences; the rest is in their intervals. Morris and Sobol' (see `indices.py`)
move all together, over the scenario's distributions; each point is the mean over the same seeds, so the indices
measure the assumptions, not chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from engine.errors import InputError
from engine.utils.message import Message
from sim.i18n.translate import mark
from sim.scenario.conditions import Measure, parse_measure, require_outcomes
from sim.study.candidates import Candidates, common_points, first_error
from sim.study.estimates import Estimate, estimate, half_width
from sim.study.indices import FloatArray, morris, sobol
from sim.study.inputs import SWING, Input, inputs_of
from sim.study.runs.options import DEFAULT_OPTIONS, RunOptions

if TYPE_CHECKING:
    from sim.scenario.scenario import Scenario

Method = Literal["tornado", "morris", "sobol"]
MOST_SOBOL_INPUTS = 10  # of a scenario without distributions: those that a quick tornado finds largest
ONE_SEED = mark("All runs share one seed: what chance would do at another one is not in these numbers.")
ALONE = mark("Each assumption moves alone, also those that the scenario correlates.")
INDEPENDENT = mark("Assumptions are taken as independent, also those that the scenario correlates.")
NO_DISTRIBUTION = mark(
    "Assumptions without a distribution are varied alike, up and down by the same share, however well they are known."
)
DEFAULT_SEEDS = {"tornado": 4, "morris": 1, "sobol": 1}


@dataclass(frozen=True)
class Sensitivity:
    """The result of `sensitivity`, the most important assumption first.

    `table`, for every method: rank, key, meaning, unit, origin (of the range), base, low, high, whole,
    source (of the value, "" when it is assumed). Then
    - tornado: outcome_low, outcome_high (mean outcome at the low and the high value), effect (largest less smallest of
      the outcomes at low, base and high), effect_low, effect_high (95 % interval of that paired difference), in_noise
      (the interval holds 0), error (why an end of the range can't be run);
    - morris and sobol: the columns of `sim.study.indices`, and in_noise (the interval of mu_star, or of st, holds 0).
    `skipped`: key and why it was not varied. `base`: the outcome of the company as it is. `notes`: limits of the
    numbers, as sentences (translated by `tr`).
    """

    outcome: str
    method: Method
    seeds: int
    base: Estimate
    table: pd.DataFrame
    skipped: pd.DataFrame
    notes: tuple[str, ...]
    runs: int


def sensitivity(
    scenario: Scenario,
    outcome: str,
    *,
    method: Method = "tornado",
    keys: Sequence[str] | None = None,
    seeds: int | None = None,
    samples: int = 64,
    swing: float = SWING,
    seed: int = 0,
    options: RunOptions = DEFAULT_OPTIONS,
) -> Sensitivity:
    """Rank the assumptions of a company by their influence on an outcome.

    Args:
        scenario: the company.
        outcome: of a run, or a statistic over the seeds: "cash_usd_end", "p(ruined)".
        method: tornado (2 runs per assumption and seed), morris or sobol.
        keys: assumptions, or prefixes of keys. By default every number for a tornado; for the others those that
            have a distribution, or else every number (morris) and the ten largest of a quick tornado (sobol).
        seeds: runs per point, common to all; by default 4 for a tornado, 1 else.
        samples: trajectories (morris; 64 are many) or size of the base sample (sobol; a power of two).
        swing: relative change of assumptions without a distribution.
        seed: of the design of morris and sobol.
        options: of the runs.

    Raises:
        InputError: an unknown outcome, key or method, or an outcome that is undefined at some point.
    """
    if method not in DEFAULT_SEEDS:
        raise InputError(f"method: found {method!r}, allowed: {', '.join(DEFAULT_SEEDS)}")
    measure = parse_measure(outcome)
    require_outcomes([measure])
    seeds = DEFAULT_SEEDS[method] if seeds is None else seeds
    if keys is None and method != "tornado" and scenario.uncertain:
        keys = list(scenario.uncertain)
    inputs, skipped = inputs_of(scenario, keys, swing=swing)
    if not inputs:
        raise InputError("sensitivity: no assumption is left to vary")
    with Candidates(scenario, common_points(scenario, seeds), options) as candidates:
        span = (0.0, 1.0)
        if method == "sobol" and keys is None and len(inputs) > MOST_SOBOL_INPUTS:
            once = Candidates(scenario, common_points(scenario, 1), options, "screening")
            largest = _tornado(inputs, measure, once, (0.0, 0.1))["key"].head(MOST_SOBOL_INPUTS).tolist()
            dropped = [one.key for one in inputs if one.key not in largest]
            note = pd.DataFrame({"key": dropped, "why": "not among the ten largest of a tornado at one seed"})
            skipped = pd.concat([skipped, note], ignore_index=True)
            inputs = [one for one in inputs if one.key in largest]
            span = (0.1, 1.0)
        base = candidates.runs([{}], span=(span[0], span[0]))[0]
        if error := first_error(base):
            raise InputError(error)
        if method == "tornado":
            table = _tornado(inputs, measure, candidates, span, base)
        else:
            table = _global(inputs, measure, candidates, span, method, samples, seed)
    facts = pd.DataFrame([_facts(one) for one in inputs])
    table = facts.merge(table, on="key").set_index("key").loc[table["key"]].reset_index()
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    points = 2 * len(inputs) if method == "tornado" else _points(len(inputs), method, samples)
    return Sensitivity(
        outcome=str(measure),
        method=method,
        seeds=seeds,
        base=estimate(measure, base),
        table=table,
        skipped=skipped,
        notes=_notes(scenario, inputs, method, seeds),
        runs=seeds * (points + 1),
    )


def _notes(scenario: Scenario, inputs: Sequence[Input], method: Method, seeds: int) -> tuple[str, ...]:
    notes = []
    if seeds == 1:
        notes.append(ONE_SEED)
    varied = {one.key for one in inputs}
    if any(set(pair.between) <= varied for pair in scenario.uncertainty.correlations):
        notes.append(ALONE if method == "tornado" else INDEPENDENT)
    if any(one.distribution is None for one in inputs):
        notes.append(NO_DISTRIBUTION)
    return tuple(notes)


def _tornado(
    inputs: Sequence[Input],
    measure: Measure,
    candidates: Candidates,
    span: tuple[float, float],
    base: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Effects of each input alone, the largest first; those whose ends can't be run last."""
    ends = [{one.key: _whole(one, value)} for one in inputs for value in (one.low, one.high)]
    frames = candidates.runs(
        ends if base is not None else [*ends, {}], span=span, doing=Message("low and high")
    )
    base = frames[-1] if base is None else base
    rows = []
    for index, one in enumerate(inputs):
        low, high = frames[2 * index : 2 * index + 2]
        rows.append({"key": one.key, **_effect(measure, low, base, high)})
    table = pd.DataFrame(rows)
    order = table["effect"].abs().fillna(-1.0).sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def _effect(measure: Measure, low: pd.DataFrame, base: pd.DataFrame, high: pd.DataFrame) -> dict[str, Any]:
    """The largest difference among the outcomes at low, base and high, paired by seed."""
    error = first_error(low) or first_error(high)
    if error:
        undefined = dict.fromkeys(
            ("outcome_low", "outcome_high", "effect", "effect_low", "effect_high"), np.nan
        )
        return {**undefined, "in_noise": True, "error": error}
    runs = (low, base, high)
    values = [measure.of(frame) for frame in runs]
    top, bottom = int(np.argmax(values)), int(np.argmin(values))
    effect = values[top] - values[bottom] if np.isfinite(values).all() else np.nan
    if measure.statistic in ("each", "mean", "probability"):
        with np.errstate(invalid="ignore"):
            half = half_width(measure.each(runs[top]) - measure.each(runs[bottom]))
    else:
        half = float("nan")  # percentiles and extremes are not differences of pairs
    return {
        "outcome_low": values[0],
        "outcome_high": values[2],
        "effect": effect,
        "effect_low": effect - half,
        "effect_high": effect + half,
        # With one seed the noise is unknown (the comparison with NaN is False); no effect counts as noise.
        "in_noise": not effect > 0 or effect - half <= 0,
        "error": "",
    }


def _global(
    inputs: Sequence[Input],
    measure: Measure,
    candidates: Candidates,
    span: tuple[float, float],
    method: Method,
    samples: int,
    seed: int,
) -> pd.DataFrame:
    def function(shares: FloatArray) -> FloatArray:
        points = [
            {one.key: one.at(share) for one, share in zip(inputs, row, strict=True)}
            for row in shares.tolist()
        ]
        frames = candidates.runs(points, span=span, doing=method)
        for frame in frames:
            if error := first_error(frame):
                raise InputError(f"{method}: a point of the design can't be run: {error}")
        return np.array([measure.of(frame) for frame in frames])

    names = [one.key for one in inputs]
    if method == "morris":
        table = morris(function, names, samples, seed)
        return table.assign(in_noise=table["mu_star_low"] <= 0)
    table = sobol(function, names, samples, seed)
    return table.assign(in_noise=~(table["st_low"] > 0))


def _points(inputs: int, method: Method, samples: int) -> int:
    return samples * (inputs + (1 if method == "morris" else 2))


def _whole(one: Input, value: float) -> float | int:
    return round(value) if one.whole else value


def _facts(one: Input) -> dict[str, Any]:
    return {
        "key": one.key,
        "meaning": one.meaning,
        "unit": one.unit,
        "origin": one.origin,
        "base": one.base,
        "low": one.low,
        "high": one.high,
        "whole": one.whole,
        "source": one.source,
    }
