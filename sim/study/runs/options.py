"""How the runs of a study are made: the one object that every study takes and hands down to `run_points`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.utils.progress import Progress

if TYPE_CHECKING:
    from engine.profile.profile import Profile
    from sim.study.runs.workers import Place


@dataclass(frozen=True)
class RunOptions:
    """What a study runs on; of these only the profile changes an outcome.

    Attributes:
        profile: of the served model; by default resolved as `simulate` does.
        workers: processes; 0 runs in this process, None takes one for each core.
        ray_address: of a Ray cluster, "auto" for the one this machine belongs to, "local" to start one.
        folder: keeps finished runs; the same study again resumes from it.
        progress: called with (fraction done, what is being done); an exception in it ends the workers and propagates.
        place: workers to use and to leave running (`sim.study.runs.workers.place`), in place of the two above.
    """

    profile: Profile | None = None
    workers: int | None = None
    ray_address: str | None = None
    folder: Path | None = None
    progress: Progress | None = None
    place: Place | None = None


DEFAULT_OPTIONS = RunOptions()
