"""Many runs of one company: points in, one row of outcomes each, in their order.

A point is a set of changed assumptions and a seed. Runs are independent, so they are done in chunks wherever there is
a free core (`sim.study.runs.workers`), and the frame is the same bits for any number of workers and on a Ray cluster.
With a folder every finished chunk is kept as it goes (`sim.study.runs.run_folder`): a study killed at any moment goes
on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from engine.errors import InputError
from engine.utils.progress import Progress
from sim.scenario.metrics import OUTCOMES
from sim.study.runs.run_folder import RunFolder
from sim.study.runs.worker import Row
from sim.study.runs.workers import Place, place

if TYPE_CHECKING:
    from engine.profile.profile import Profile
    from sim.scenario.scenario import Scenario

CHUNK = 8  # runs: about half a second, so little is lost by a kill, and workers end almost together


@dataclass(frozen=True)
class Point:
    """One run asked for: {dotted key: value} of changed assumptions, and the seed of its random streams."""

    overrides: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


def run_points(
    scenario: Scenario,
    points: Iterable[Point],
    *,
    profile: Profile | None = None,
    monthly: Sequence[str] = (),
    workers: int | None = None,
    ray_address: str | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
    stop: Callable[[pd.DataFrame], bool] | None = None,
    stop_every: int = CHUNK,
    about: Mapping[str, Any] | None = None,
    at: Place | None = None,
) -> pd.DataFrame:
    """Run a company at many points.

    Args:
        scenario: the company; assumptions that it gives a distribution take their median unless a point sets them.
        points: what to run.
        profile: of the served model; by default resolved as `simulate` does.
        monthly: columns of `Result.monthly` to keep of each run.
        workers: processes; 0 runs here, None takes one for each core.
        ray_address: of a Ray cluster, "auto" for the one this machine belongs to, "local" to start one.
        folder: keeps finished runs; the same call again goes on where the last one ended.
        progress: called with (fraction done, what was done); an exception in it ends the workers and goes on up.
        stop: called with the first n runs once they are all there, for each multiple n of `stop_every`; true ends
            the study there, so where it ends depends on the runs alone.
        stop_every: runs between two such looks, a multiple of `CHUNK`.
        about: more that defines the study in a folder (plain values), for instance what `stop` asks.
        at: workers to use and to leave running (`sim.study.runs.workers.place`), for many calls in a row.

    Returns:
        One row per point: run, seed, in.KEY for each overridden key, out.NAME for each outcome, error ("" when
        fine, else why the point can't be run; its outcomes are NaN), month.COLUMN (array [months]) for each column
        of `monthly`.

    Raises:
        InputError: a folder with another study, an unknown monthly column, no Ray, or a worker that was killed.
    """
    asked = [Point(_plain(dict(point.overrides)), int(point.seed)) for point in points]
    monthly = list(dict.fromkeys(monthly))
    task, inputs = _task(scenario, asked, profile, monthly, about)
    starts = range(0, len(asked), CHUNK)
    store = None if folder is None else RunFolder(Path(folder), inputs)
    if store is not None and (known := store.finished()) is not None:
        if progress is not None:
            progress(1.0, f"{len(known):,} runs known")
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
    _tell(progress, collected, len(asked))
    if chunks and not collected.enough:
        if at is not None:
            _collect(at, task, chunks, collected, store, progress, len(asked))
        else:
            with place(workers, ray_address, len(chunks)) as here:
                _collect(here, task, chunks, collected, store, progress, len(asked))
    runs = collected.frame()
    if store is not None:
        store.finish(runs)
    if progress is not None:
        progress(1.0, f"{len(runs):,} runs")
    return runs


class _Collected:
    """Finished chunks, and how far they reach without a gap."""

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

    @property
    def runs(self) -> int:
        return sum(len(part) for part in self.parts.values())

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
    here: Place,
    task: str,
    chunks: list[tuple[int, str]],
    collected: _Collected,
    store: RunFolder | None,
    progress: Progress | None,
    total: int,
) -> None:
    work = here.run(task, chunks)
    try:
        for found in work:
            if found is not None:
                number, rows = found
                for row in rows:
                    if "refused" in row:  # what is wrong with the study, not with a point
                        raise InputError(row["refused"])
                part = collected.part(number, rows)
                if store is not None:
                    store.add(number, part)
                collected.add(number, part)
            _tell(progress, collected, total)
            if collected.enough:
                return
    finally:
        work.close()  # type: ignore[attr-defined]  # a generator


def _tell(progress: Progress | None, collected: _Collected, total: int) -> None:
    if progress is not None and total:
        done = collected.runs
        progress(done / total, f"{done:,} of {total:,} runs")


def _task(
    scenario: Scenario,
    points: list[Point],
    profile: Profile | None,
    monthly: list[str],
    about: Mapping[str, Any] | None,
) -> tuple[str, dict[str, Any]]:
    """What every worker needs (as JSON), and what defines the study."""
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
    """The profile of a model, or the reason why there is none."""
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
    """Numpy's numbers as Python's, tuples as lists: what JSON gives back as it was."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    return value


def _typed(runs: pd.DataFrame, monthly: list[str]) -> pd.DataFrame:
    """Columns as they are before they go through a file."""
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
