"""Runs in the background: simulations on worker threads, kept by the content of their inputs.

A page asks for a run and draws what is there; it never waits for a simulation. Equal inputs (canonical scenario,
seed, profile) are one job for all visitors.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

import streamlit as st

from engine.profile import Profile
from sim.paths import resolve_profile

if TYPE_CHECKING:
    from sim.company import Result
    from sim.scenario import Scenario

_WORKERS = 2
_KEPT_RUNS = 24  # finished runs kept in memory, the longest unused leaves first


@dataclass
class Job:
    """One run: how far it is, what it does, and its outcome once `future` is done."""

    fraction: float = 0.0
    doing: str = "starting"
    future: Future[Result] = field(default_factory=Future)

    def tell(self, fraction: float, doing: str) -> None:
        """Progress of the run; called from its thread."""
        self.fraction, self.doing = min(max(fraction, 0.0), 1.0), doing


class Bench:
    """The worker threads and the runs they made."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="run")
        self._jobs: OrderedDict[tuple[str, int, str], Job] = OrderedDict()
        self._lock = Lock()

    def job(self, scenario: Scenario, seed: int, patience_s: float = 0.0) -> Job:
        """The run of a scenario: found or started, and waited for up to `patience_s`.

        Raises:
            InputError: there is no usable profile of the scenario's model.
        """
        model = scenario.deployment.model
        profile = _profile(model)
        key = (scenario.canonical_json(), seed, profile.content_hash)
        with self._lock:
            job = self._jobs.get(key)
            if job is None:  # one that failed is kept: the same inputs would only fail again, and again
                job = self._jobs[key] = Job()
                job.future = self._pool.submit(_simulate, scenario, seed, profile, job)
            self._jobs.move_to_end(key)
            while len(self._jobs) > _KEPT_RUNS:
                self._jobs.popitem(last=False)
        wait_for([job.future], timeout=patience_s)
        return job


@st.cache_resource(show_spinner=False)
def bench() -> Bench:
    """The one bench of this server."""
    return Bench()


def _profile(model: str) -> Profile:
    path = resolve_profile(model)
    return _load(str(path), path.stat().st_mtime_ns).require_model(model, path)


@st.cache_resource(show_spinner=False, max_entries=8)
def _load(path: str, changed_ns: int) -> Profile:
    return Profile.load(path)


def _simulate(scenario: Scenario, seed: int, profile: Profile, job: Job) -> Result:
    from sim.company import simulate

    return simulate(scenario, seed=seed, profile=profile, progress=job.tell)
