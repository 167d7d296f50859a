"""Work in the background: kept by the content of its inputs in one bench of the server, so that no page waits.

A page asks for work by key and draws what is there; equal keys are one job for all visitors, and a page that is
left and opened again finds its job where it was. Runs of a company (well under a second), requested work (studies,
reports, measurements) and work that no visitor waits for have lanes of their own, so that no study delays a changed
price. Within a lane the visitor with the least work under way comes first: ten studies of one visitor delay no other
visitor's first.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from threading import Condition, Event, Thread
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar
from uuid import uuid4

import streamlit as st

from engine.errors import InputError
from engine.profile.profile import Profile
from engine.utils.progress import Progress
from sim.i18n.translate import language, mark, speaking
from sim.utils.paths import resolve_profile

if TYPE_CHECKING:
    from sim.company.simulate import Result
    from sim.scenario.scenario import Scenario

T = TypeVar("T")
Lane = Literal["run", "study", "idle", "engine"]

_WORKERS: dict[Lane, int] = {"run": 2, "study": 2, "idle": 1, "engine": 1}
_KEPT_JOBS = 48  # finished jobs kept in memory, the least recently used is dropped first
_SURE_AFTER_S = 1.0  # an estimate of the time left from less than this would jump about
_log = logging.getLogger(__name__)


class Cancelled(Exception):
    """The job was cancelled."""


class Job(Generic[T]):
    """Background work: its progress, and its outcome once `future` is done.

    `fraction` runs from 0 to 1; `place` is the number of jobs before it in the queue, 0 once it has begun.
    """

    def __init__(self, key: Hashable, visitor: str) -> None:
        self.key, self.visitor = key, visitor
        self.fraction, self.doing = 0.0, str(mark("starting"))
        self.place = 0
        self.future: Future[T] = Future()
        self.started_s: float | None = None  # on the monotonic clock
        self._cancelled = Event()

    def report(self, fraction: float, doing: str) -> None:
        """Record the progress of the work; called from its thread.

        Args:
            fraction: done so far, 0 to 1.
            doing: what is being done.

        Raises:
            Cancelled: the job was cancelled.
        """
        if self._cancelled.is_set():
            raise Cancelled
        self.fraction, self.doing = min(max(fraction, 0.0), 1.0), doing

    def cancel(self) -> None:
        """Cancel the job: at once while it waits, else at its next report of progress."""
        self._cancelled.set()
        if self.started_s is None:
            self._finish(error=Cancelled())

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled; its thread may still run until its next report of progress."""
        return self._cancelled.is_set()

    @property
    def left_s(self) -> float | None:
        """Estimated seconds left, extrapolated from the fraction done; None without enough progress."""
        if self.started_s is None or self.future.done() or self.fraction <= 0.01:
            return None
        spent_s = time.monotonic() - self.started_s
        return None if spent_s < _SURE_AFTER_S else spent_s * (1 - self.fraction) / self.fraction

    def _finish(self, outcome: T | None = None, error: BaseException | None = None) -> None:
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.fraction = 1.0
            self.future.set_result(outcome)  # type: ignore[arg-type]


class Bench:
    """The worker threads, the jobs that wait for them, and what was made."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[Hashable, Job[Any]] = OrderedDict()
        self._waiting: dict[Lane, list[tuple[Job[Any], Callable[[], None]]]] = {lane: [] for lane in _WORKERS}
        self._busy: dict[Lane, Counter[str]] = {lane: Counter() for lane in _WORKERS}
        self._changed = Condition()
        for lane, workers in _WORKERS.items():
            for number in range(workers):
                Thread(target=self._serve, args=(lane,), name=f"{lane}-{number}", daemon=True).start()

    def start(
        self, key: Hashable, work: Callable[[Progress], T], *, patience_s: float = 0.0, lane: Lane = "study"
    ) -> Job[T]:
        """The job of this key: found, or started with `work(progress)`; waited for up to `patience_s`.

        The key names all inputs, the language too where the outcome has words. The work speaks the language of the
        page that started it and must not call Streamlit. A failed or cancelled job is found like any other:
        the same inputs would fail again; `forget` it to try once more.
        """
        with self._changed:
            job = self._jobs.get(key)
            if job is None:
                job = self._jobs[key] = Job(key, _visitor())
                self._waiting[lane].append((job, _task(job, work, language())))
                self._line_up(lane)
                self._changed.notify_all()
            self._jobs.move_to_end(key)
            self._tidy()
        if patience_s:
            wait_for([job.future], timeout=patience_s)
        return job

    def find(self, key: Hashable) -> Job[Any] | None:
        """The job of this key, if it was ever started and is still kept."""
        return self._jobs.get(key)

    def forget(self, key: Hashable) -> None:
        """Cancel the job of this key and drop its outcome; the next `start` begins anew."""
        with self._changed:
            job = self._jobs.pop(key, None)
        if job is not None:
            job.cancel()

    def run(self, scenario: Scenario, seed: int, *, patience_s: float = 0.0) -> Job[Result]:
        """The run of a scenario: found or started.

        Raises:
            InputError: there is no usable profile of the scenario's model.
        """
        profile = profile_of(scenario.deployment.model)

        def simulated(progress: Progress) -> Result:
            from sim.company.simulate import simulate

            return simulate(scenario, seed=seed, profile=profile, progress=progress)

        key = ("run", scenario.canonical_json(), seed, profile.content_hash)
        return self.start(key, simulated, patience_s=patience_s, lane="run")

    def _serve(self, lane: Lane) -> None:
        while True:
            with self._changed:
                while not self._waiting[lane]:
                    self._changed.wait()
                job, task = self._waiting[lane].pop(0)
                self._busy[lane][job.visitor] += 1
                if not job.cancelled:
                    job.started_s = time.monotonic()
                self._line_up(lane)
            task()
            with self._changed:
                self._busy[lane][job.visitor] -= 1
                self._line_up(lane)

    def _line_up(self, lane: Lane) -> None:
        """Put the waiting jobs in the order in which they will be begun."""
        asked: Counter[str] = Counter(self._busy[lane])
        order: list[tuple[int, int, Job[Any], Callable[[], None]]] = []
        for job, task in self._waiting[lane]:  # in turn: each visitor's first, each visitor's second …
            order.append((asked[job.visitor], len(order), job, task))
            asked[job.visitor] += 1
        self._waiting[lane] = [(job, task) for _, _, job, task in sorted(order, key=lambda entry: entry[:2])]
        all_busy = sum(self._busy[lane].values()) >= _WORKERS[lane]
        for place, (job, _) in enumerate(self._waiting[lane]):
            job.place = place + all_busy

    def _tidy(self) -> None:
        done = [key for key, job in self._jobs.items() if job.future.done()]
        for key in done[: max(len(self._jobs) - _KEPT_JOBS, 0)]:
            del self._jobs[key]


@st.cache_resource(show_spinner=False)
def bench() -> Bench:
    """The one bench of this server."""
    return Bench()


def profile_of(model: str) -> Profile:
    """The profile that a run of this model uses; read again when its file has changed.

    Raises:
        InputError: nothing was measured or shipped for this model.
    """
    path = resolve_profile(model)
    return _load(str(path), path.stat().st_mtime_ns).require_model(model, path)


@st.cache_resource(show_spinner=False, max_entries=8)
def _load(path: str, changed_ns: int) -> Profile:
    return Profile.load(path)


def _task(job: Job[T], work: Callable[[Progress], T], code: str) -> Callable[[], None]:
    def task() -> None:
        try:
            with speaking(code):
                job.report(0.0, job.doing)
                job._finish(work(job.report))
        except (Cancelled, InputError) as error:
            job._finish(error=error)
        except Exception as error:  # the page says it in one line; the log has the traceback
            _log.exception("background work failed: %s", job.key if isinstance(job.key, str) else "")
            job._finish(error=error)

    return task


def _visitor() -> str:
    """Identifier of the browser tab."""
    name: str = st.session_state.setdefault("visitor", uuid4().hex)
    return name
