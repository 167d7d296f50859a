"""A worker of a study: it reads the company and its profiles once, then turns points into outcomes.

`python -m sim.study.runs.worker` is a worker process: it reads JSON lines on standard input and answers each list of
points with one line, until its input ends; so it ends with its parent, also when that is killed. Capacity surfaces
depend on the profile, the traffic and the latency objectives alone; a worker caches them. JSON keeps the bits of a
float as Python writes it.
"""

from __future__ import annotations

import difflib
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from engine.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from engine.profile.profile import Profile
    from sim.capacity.surface import CapacitySurface
    from sim.scenario.scenario import Scenario

# out: {outcome: value}, month: {column: values}, error: text; or refused: an error of the whole study.
Row = dict[str, Any]
_SURFACES = 256  # kept in memory, of a few kilobytes each


class Worker:
    """Runs the points of one study.

    Args:
        task: `scenario` (values), `file` (its name, for messages), `profiles` ({model: profile, or the reason why
            there is none}), `monthly` (columns wanted), as plain JSON values.
    """

    def __init__(self, task: Mapping[str, Any]) -> None:
        from engine.profile.profile import Profile
        from engine.utils.json_file import build
        from sim.scenario.scenario import Scenario

        self.scenario: Scenario = Scenario.parse(task["scenario"], file=task["file"])
        self.monthly: list[str] = list(task["monthly"])
        self.profiles: dict[str, Profile | str] = {
            model: entry if isinstance(entry, str) else build(Profile, entry, f"profile of {model}")
            for model, entry in task["profiles"].items()
        }
        self.surfaces: dict[str, CapacitySurface] = {}

    def rows(self, points: Sequence[tuple[Mapping[str, Any], int]]) -> list[Row]:
        """The row of each point (overrides, seed); the row of a point that can't be run holds the error."""
        return [self._row(overrides, seed) for overrides, seed in points]

    def _row(self, overrides: Mapping[str, Any], seed: int) -> Row:
        from sim.company.simulate import simulate
        from sim.study.runs.outcomes import outcomes_of

        try:
            scenario = self.scenario.override(overrides) if overrides else self.scenario
            profile = self._profile(scenario.deployment.model)
            result = simulate(scenario, seed=seed, profile=profile, surface=self._surface(scenario, profile))
            out = outcomes_of(result)
        except InputError as error:
            return {"out": {}, "month": {}, "error": str(error)}
        except Exception as error:  # one impossible point must not end the other runs
            return {"out": {}, "month": {}, "error": f"{type(error).__name__}: {error}"}
        for name in self.monthly:
            if name not in result.monthly or result.monthly[name].dtype.kind not in "fi":
                return {"refused": _unknown_column(name, result.monthly)}
        month = {name: result.monthly[name].to_numpy().astype(float).tolist() for name in self.monthly}
        return {"out": out, "month": month, "error": ""}

    def _profile(self, model: str) -> Profile:
        found = self.profiles.get(model, f"no profile of {model!r} in this study")
        if isinstance(found, str):
            raise InputError(found)
        return found

    def _surface(self, scenario: Scenario, profile: Profile) -> CapacitySurface:
        from sim.capacity.goals import Objective
        from sim.capacity.surface import capacity_surface

        deployment, traffic = scenario.deployment, scenario.market.traffic
        objective = Objective(ttft_p95_s=deployment.ttft_p95_s, tpot_p95_s=deployment.tpot_p95_s)
        key = json.dumps([deployment.model, asdict(objective), traffic])
        found = self.surfaces.pop(key, None) or capacity_surface(profile, traffic, objective)
        self.surfaces[key] = found  # least recently used first
        if len(self.surfaces) > _SURFACES:
            del self.surfaces[next(iter(self.surfaces))]
        return found


def _unknown_column(name: str, table: pd.DataFrame) -> str:
    numbers = [str(column) for column in table if table[column].dtype.kind in "fi"]
    near = difflib.get_close_matches(name, numbers, n=1, cutoff=0.0)
    return f"monthly: found {name!r}, allowed: a column of numbers of the monthly table; nearest is {near[0]}"


@lru_cache(maxsize=4)
def _worker(task: str) -> Worker:
    return Worker(json.loads(task))


def run_chunk(task: str, points: str) -> list[Row]:
    """Rows of a chunk of points, task and points as JSON; the process keeps the worker of the task."""
    return _worker(task).rows(json.loads(points))


def main() -> None:
    """Answer standard input line by line: an object is a new task, a list is points of the present task."""
    # Ctrl-C reaches the whole process group; the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    task = ""
    for line in sys.stdin:
        if line.startswith("{"):
            task = line
            continue
        print(json.dumps(run_chunk(task, line)), flush=True)


if __name__ == "__main__":
    main()
