"""Candidates of a study under common random numbers: each runs at the same seeds and draws of uncertain assumptions.

The noise of a difference between two candidates is then that of the difference alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pandas as pd

from engine.errors import InputError
from engine.utils.progress import no_progress
from sim.study.runs.options import RunOptions
from sim.study.runs.run_points import Point, run_points
from sim.study.runs.workers import Place, place
from sim.study.sampling import draw
from sim.study.shares import with_shares_kept

if TYPE_CHECKING:
    from sim.scenario.scenario import Scenario

Candidate = Mapping[str, Any]  # {dotted key: value}


class Candidates:
    """Runs batches of candidates at common points; as a context manager it keeps its workers between batches.

    With a folder each batch is kept, and an interrupted one is resumed.

    Args:
        scenario: what the candidates change.
        points: (drawn assumptions, seed) of each run, the same for every candidate.
        options: of the runs.
        name: prefix of the batches' folders.
    """

    def __init__(
        self, scenario: Scenario, points: Sequence[Point], options: RunOptions, name: str = "batch"
    ) -> None:
        self.scenario = scenario
        self.points = list(points)
        self._options = options
        self._name = name
        self._batches = 0
        self._started: Place | None = None

    def __enter__(self) -> Candidates:
        if self._options.place is None:
            many = os.cpu_count() or 1  # batches: enough to be worth a process for each core
            self._started = place(self._options.workers, self._options.ray_address, many)
            self._options = replace(self._options, place=self._started)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started is not None:
            self._started.__exit__(kind, error, trace)

    def runs(
        self,
        candidates: Sequence[Candidate],
        *,
        monthly: Sequence[str] = (),
        span: tuple[float, float] = (0.0, 1.0),
        doing: str = "",
    ) -> list[pd.DataFrame]:
        """The runs of each candidate, one row per common point, as `run_points` gives them.

        Args:
            candidates: what to change; shares that must add up are completed.
            monthly: columns of the monthly table to keep.
            span: the fractions of the study's progress between which this batch lies.
            doing: reported with the progress; "" reports how many runs are done.

        Raises:
            InputError: the folder holds another study, or as `run_points`.
        """
        points = []
        for candidate in candidates:
            try:
                changes = with_shares_kept(self.scenario, candidate)
            except InputError:  # shares that come to more than one: the error appears in the run's row
                changes = dict(candidate)
            points += [Point({**point.overrides, **changes}, point.seed) for point in self.points]
        self._batches += 1
        folder, progress = self._options.folder, self._options.progress or no_progress
        low, high = span
        options = replace(
            self._options,
            folder=folder / f"{self._name}-{self._batches:04d}" if folder else None,
            progress=lambda part, what: progress(low + (high - low) * part, doing or what),
        )
        frame = run_points(self.scenario, points, options, monthly=monthly)
        each = len(self.points)
        return [
            frame.iloc[start : start + each].reset_index(drop=True) for start in range(0, len(frame), each)
        ]


def common_points(
    scenario: Scenario, seeds: int, *, drawn: bool = False, fresh_after: int = 0
) -> list[Point]:
    """The seeds, and drawn assumptions, at which every candidate of a study is run.

    Args:
        scenario: its own seed is the first.
        seeds: number of points.
        drawn: draw the uncertain assumptions too (a Latin hypercube); else they stay at their medians.
        fresh_after: number of seeds used before, which are left out; other draws are taken then.

    Raises:
        InputError: fewer than one seed.
    """
    if seeds < 1:
        raise InputError(f"seeds: found {seeds}, allowed: 1 or more")
    numbers = [scenario.seed + fresh_after + n for n in range(seeds)]
    if not drawn or not scenario.uncertain:
        return [Point({}, number) for number in numbers]
    draws = draw(scenario, seeds, seed=scenario.seed, batch=1 if fresh_after else 0)
    return [Point(point.overrides, number) for point, number in zip(draws, numbers, strict=True)]


def first_error(frame: pd.DataFrame) -> str:
    """Why the first failed run failed; "" when none failed."""
    failed = frame["error"][frame["error"] != ""]
    return str(failed.iloc[0]) if len(failed) else ""
