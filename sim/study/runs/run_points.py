"""Many runs of one company: one row of outcomes per point, in the order of the points.

A point is a set of changed assumptions and a seed. Runs are independent, so they are made in chunks by parallel
workers (`sim.study.runs.workers`), and the frame is the same bits for any number of workers and on a Ray cluster.
With a folder every finished chunk is saved (`sim.study.runs.run_folder`): a study killed at any moment can be resumed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from engine.errors import InputError
from engine.utils.message import Message
from engine.utils.progress import Progress, no_progress
from sim.scenario.metrics import OUTCOMES
from sim.study.runs.options import DEFAULT_OPTIONS, RunOptions
from sim.study.runs.run_folder import RunFolder
from sim.study.runs.worker import Row
from sim.study.runs.workers import Chunk, Place, place

if TYPE_CHECKING:
    from engine.profile.profile import Profile
    from sim.scenario.scenario import Scenario

CHUNK = 8  # runs: about half a second, so a kill loses little and workers end almost together


@dataclass(frozen=True)
class Point:
    """One run to make: {dotted key: value} of changed assumptions, and the seed of its random streams."""

    overrides: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


def run_points(
    scenario: Scenario,
    points: Iterable[Point],
    options: RunOptions = DEFAULT_OPTIONS,
    *,
    monthly: Sequence[str] = (),
    stop: Callable[[pd.DataFrame], bool] | None = None,
    stop_every: int = CHUNK,
    about: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Run a company at many points.

    Args:
        scenario: the company; assumptions with a distribution take their median unless a point sets them.
        points: the runs to make.
        options: profile, workers, folder and progress of the runs.
        monthly: columns of `Result.monthly` to keep of each run.
        stop: called with the first n runs once they are complete, for each multiple n of `stop_every`; true ends
            the study after them, so its length depends on the runs alone.
        stop_every: runs between two such calls, a multiple of `CHUNK`.
        about: more that defines the study in a folder (plain values), for instance what `stop` tests.

    Returns:
        One row per point: run, seed, in.KEY for each overridden key, out.NAME for each outcome, error ("" when
        fine, else why the point can't be run; its outcomes are NaN), month.COLUMN (array [months]) for each column
        of `monthly`.

    Raises:
        InputError: a folder with another study, an unknown monthly column, no Ray, or a worker that was killed.
    """
    asked = [Point(_plain(dict(point.overrides)), int(point.seed)) for point in points]
    monthly = list(dict.fromkeys(monthly))
    task, inputs = _task(scenario, asked, options.profile, monthly, about)
    starts = range(0, len(asked), CHUNK)
    progress = options.progress or no_progress
    store = None if options.folder is None else RunFolder(options.folder, inputs)
    if store is not None and (known := store.finished()) is not None:
        progress(1.0, Message("{count:,} runs known", count=len(known)))
        return _typed(known, monthly)
    collected = _Collected(asked, monthly, stop, stop_every)
    if store is not None:
        for number in range(len(starts)):
            part = store.part(number)
            if part is not None and len(part) == len(asked[starts[number] : starts[number] + CHUNK]):
                collected.add(number, _typed(part, monthly))
    chunks = [
        (number, json.dumps([(point.overrides, point.seed) for point in asked[start : start + CHUNK]]))
        for number, start in enumerate(starts)
        if number not in collected.parts
    ]
    collected.report(progress)
    if chunks and not collected.enough:
        if options.place is not None:
            _collect(options.place, task, chunks, collected, store, progress)
        else:
            with place(options.workers, options.ray_address, len(chunks)) as started:
                _collect(started, task, chunks, collected, store, progress)
    runs = collected.frame()
    if store is not None:
        store.finish(runs)
    progress(1.0, Message("{count:,} runs", count=len(runs)))
    return runs


class _Collected:
    """Finished chunks, and how many of them in order have no gap."""

    def __init__(
        self,
        points: list[Point],
        monthly: list[str],
        stop: Callable[[pd.DataFrame], bool] | None,
        stop_every: int,
    ) -> None:
        self.points, self.monthly, self.stop, self.stop_every = points, monthly, stop, stop_every
        self.inputs = _inputs(points)
        self.parts: dict[int, pd.DataFrame] = {}
        self.reach = 0  # chunks in order without a gap
        self.enough = False

    def report(self, progress: Progress) -> None:
        if self.points:
            done, total = sum(len(part) for part in self.parts.values()), len(self.points)
            progress(done / total, Message("{done:,} of {total:,} runs", done=done, total=total))

    def add(self, number: int, part: pd.DataFrame) -> None:
        self.parts[number] = part
        while not self.enough and self.reach in self.parts:
            self.reach += 1
            if self.stop is not None and self.reach * CHUNK % self.stop_every == 0:
                self.enough = self.stop(self._upto(self.reach))

    def part(self, number: int, rows: list[Row]) -> pd.DataFrame:
        """The frame of a chunk's rows."""
        start = number * CHUNK
        stop = start + len(rows)
        columns: dict[str, Any] = {
            "run": np.arange(start, stop, dtype=np.int64),
            "seed": np.array([point.seed for point in self.points[start:stop]], dtype=np.int64),
        }
        for name, values in self.inputs.items():
            columns[name] = values[start:stop]
        for name in OUTCOMES:
            columns[f"out.{name}"] = np.array([row["out"].get(name, math.nan) for row in rows])
        columns["error"] = np.array([row["error"] for row in rows], dtype=object)
        for name in self.monthly:
            columns[f"month.{name}"] = _lists([row["month"].get(name, []) for row in rows])
        return pd.DataFrame(columns)

    def frame(self) -> pd.DataFrame:
        return self._upto(self.reach if self.enough else len(self.parts))

    def _upto(self, chunks: int) -> pd.DataFrame:
        if not chunks:
            return self.part(0, [])
        return pd.concat([self.parts[number] for number in range(chunks)], ignore_index=True)


def _collect(
    workers: Place,
    task: str,
    chunks: list[Chunk],
    collected: _Collected,
    store: RunFolder | None,
    progress: Progress,
) -> None:
    work = workers.run(task, chunks)
    try:
        for found in work:
            if found is not None:
                number, rows = found
                for row in rows:
                    if "refused" in row:  # an error of the study, not of a point
                        raise InputError(row["refused"])
                part = collected.part(number, rows)
                if store is not None:
                    store.add(number, part)
                collected.add(number, part)
            collected.report(progress)
            if collected.enough:
                return
    finally:
        work.close()  # type: ignore[attr-defined]  # a generator


def _task(
    scenario: Scenario,
    points: list[Point],
    profile: Profile | None,
    monthly: list[str],
    about: Mapping[str, Any] | None,
) -> tuple[str, dict[str, Any]]:
    """The task of every worker (as JSON), and the definition of the study for its folder."""
    from sim.company.provenance import program_version

    base = scenario.deployment.model
    models = {base, *(str(point.overrides.get("deployment.model", base)) for point in points)}
    profiles = {model: _profile_of(model, profile) for model in sorted(models)}
    if isinstance(profiles[base], str):
        raise InputError(str(profiles[base]))
    described = {
        model: found if isinstance(found, str) else json.loads(found.canonical_json())
        for model, found in profiles.items()
    }
    # Not the canonical JSON: noise is drawn in the order in which the scenario names its plans.
    values = scenario.plain()
    task = {"scenario": values, "file": scenario._file, "profiles": described, "monthly": monthly}
    asked = json.dumps([(point.overrides, point.seed) for point in points], sort_keys=True)
    inputs = {
        "program": program_version(),
        "scenario": values,
        "profiles": {
            model: found if isinstance(found, str) else found.content_hash
            for model, found in profiles.items()
        },
        "runs": len(points),
        "points": hashlib.sha256(asked.encode()).hexdigest(),
        "monthly": monthly,
        "about": _plain(dict(about or {})),
    }
    return json.dumps(task), inputs


def _profile_of(model: str, profile: Profile | None) -> Profile | str:
    """The profile of a model, or the error text without one."""
    from engine.profile.profile import Profile as ProfileType
    from sim.utils.paths import resolve_profile

    try:
        if profile is not None:
            return profile.require_model(model)
        path = resolve_profile(model)
        return ProfileType.load(path).require_model(model, path)
    except InputError as error:
        return str(error)


def _inputs(points: list[Point]) -> dict[str, np.ndarray[Any, Any]]:
    """in.KEY of all points: numbers where all are numbers (NaN where a point doesn't set it), else texts."""
    keys = dict.fromkeys(key for point in points for key in point.overrides)
    columns = {}
    for key in keys:
        values = [point.overrides.get(key, math.nan) for point in points]
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            columns[f"in.{key}"] = np.array(values, dtype=np.float64)
        else:
            texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
            columns[f"in.{key}"] = np.array(texts, dtype=object)
    return columns


def _plain(value: Any) -> Any:
    """Numpy's numbers as Python's, tuples as lists: values that JSON restores unchanged."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    return value


def _typed(runs: pd.DataFrame, monthly: list[str]) -> pd.DataFrame:
    """Column types as before they were written to a file."""
    runs = runs.copy()
    for name in runs.columns:
        if runs[name].dtype.kind not in "fi":
            runs[name] = (
                _lists(runs[name].tolist())
                if name in {f"month.{column}" for column in monthly}
                else np.array(runs[name].tolist(), dtype=object)
            )
    return runs


def _lists(rows: Sequence[Any]) -> np.ndarray[Any, Any]:
    """An object array of float arrays, whatever their lengths."""
    cells = np.empty(len(rows), dtype=object)
    for index, row in enumerate(rows):
        cells[index] = np.asarray(row, dtype=np.float64)
    return cells
