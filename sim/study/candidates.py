"""Candidates compared fairly: each is run at the same seeds and the same draws of the uncertain assumptions.

These are common random numbers: what chance does is the same for all, so a difference between two candidates is
theirs, and its noise is that of the difference alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict

from engine.errors import InputError
from engine.utils.progress import Progress
from sim.study.shares import with_shares_kept

if TYPE_CHECKING:
    import pandas as pd

    from engine.profile.profile import Profile
    from sim.scenario.scenario import Scenario
    from sim.study.runs.run_points import Point
    from sim.study.runs.workers import Place

Candidate = Mapping[str, Any]  # {dotted key: value}


class RunOptions(TypedDict, total=False):
    """Where and how a study's runs are made: as in `sim.study.runs.run_points.run_points`."""

    profile: Profile | None
    workers: int | None
    ray_address: str | None
    folder: Path | None
    progress: Progress | None


class Candidates:
    """Runs batches of candidates under the same luck, at workers that stay from one batch to the next (use `with`).

    With a folder each batch is kept, and goes on where it was broken off.

    Args:
        scenario: what the candidates change.
        luck: (drawn assumptions, seed) of each run, the same for every candidate.
        options: of the runs.
        name: of this evaluator's part of the folder.
    """

    def __init__(
        self, scenario: Scenario, luck: Sequence[Point], options: RunOptions, name: str = "batch"
    ) -> None:
        self.scenario = scenario
        self.luck = list(luck)
        self._options = options
        self._name = name
        self._batches = 0
        self._place: Place | None = None

    def __enter__(self) -> Candidates:
        from sim.study.runs.workers import place

        many = os.cpu_count() or 1  # batches: enough to be worth a process for each core
        self._place = place(self._options.get("workers"), self._options.get("ray_address"), many)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._place is not None:
            self._place.__exit__(kind, error, trace)

    def runs(
        self,
        candidates: Sequence[Candidate],
        *,
        monthly: Sequence[str] = (),
        span: tuple[float, float] = (0.0, 1.0),
        doing: str = "",
    ) -> list[pd.DataFrame]:
        """The runs of each candidate, one row per chance, as `run_points` gives them.

        Args:
            candidates: what to change; shares that must add up are completed.
            monthly: columns of the monthly table to keep.
            span: part of the progress that this batch is.
            doing: said with the progress.

        Raises:
            InputError: the folder holds another study, or as `run_points`.
        """
        from sim.study.runs.run_points import Point, run_points

        points = []
        for candidate in candidates:
            try:
                changes = with_shares_kept(self.scenario, candidate)
            except InputError:  # of shares that come to more than one: the run says so in its row
                changes = dict(candidate)
            points += [Point({**luck.overrides, **changes}, luck.seed) for luck in self.luck]
        folder, tell = self._options.get("folder"), self._options.get("progress")
        self._batches += 1
        report: Progress | None = None
        if tell is not None:
            low, high = span

            def report(fraction: float, what: str) -> None:
                tell(low + (high - low) * fraction, doing or what)

        frame = run_points(
            self.scenario,
            points,
            profile=self._options.get("profile"),
            monthly=monthly,
            workers=self._options.get("workers"),
            ray_address=self._options.get("ray_address"),
            folder=folder / f"{self._name}-{self._batches:04d}" if folder else None,
            progress=report,
            at=self._place,
        )
        each = len(self.luck)
        return [
            frame.iloc[start : start + each].reset_index(drop=True) for start in range(0, len(frame), each)
        ]


def luck_of(scenario: Scenario, seeds: int, *, drawn: bool = False, fresh_after: int = 0) -> list[Point]:
    """What chance does in `seeds` runs.

    Args:
        scenario: its own seed is the first.
        seeds: how many.
        drawn: draw the uncertain assumptions too (a Latin hypercube); else they stay at their medians.
        fresh_after: seeds already looked at, which are left out, and other draws are taken.

    Raises:
        InputError: fewer than one seed.
    """
    from sim.study.runs.run_points import Point
    from sim.study.sampling import draw

    if seeds < 1:
        raise InputError(f"seeds: found {seeds}, allowed: 1 or more")
    numbers = [scenario.seed + fresh_after + n for n in range(seeds)]
    if not drawn or not scenario.uncertain:
        return [Point({}, number) for number in numbers]
    draws = draw(scenario, seeds, seed=scenario.seed, batch=1 if fresh_after else 0)
    return [Point(point.overrides, number) for point, number in zip(draws, numbers, strict=True)]


def first_error(frame: pd.DataFrame) -> str:
    """Why the first failed run failed, "" when all are fine."""
    failed = frame["error"][frame["error"] != ""]
    return str(failed.iloc[0]) if len(failed) else ""
