"""Places where a study's runs are made: this process, worker processes of this machine, or a Ray cluster.

A place takes numbered chunks of points and yields (number, rows) as they are done, in any order; None in between
means that time passed, so that the caller can report progress or cancel. A run depends on its point alone, so the
rows are the same bits at any place.

Worker processes are started as `python -m sim.study.runs.worker` and use pipes: multiprocessing would import
the caller's main script again in each of them, which is a web app in one case and an unguarded script in another.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from engine.errors import InputError
from sim.study.runs.worker import Row, run_chunk

Chunk = tuple[int, str]  # number, points as JSON
Done = tuple[int, list[Row]]
_POLL_S = 0.3  # longest time between two yields
_RAY_STORE_BYTES = 100 * 2**20  # chunks are kilobytes


class Place(Protocol):
    """Runs the chunks of a task; as a context manager it ends what it started."""

    def run(self, task: str, chunks: Iterable[Chunk]) -> Iterator[Done | None]:
        """Yield (number, rows) of each chunk when done, None while waiting; closing the iterator ends the work."""

    def __enter__(self) -> Place: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def place(workers: int | None, ray_address: str | None, chunks: int) -> Place:
    """The place for this many chunks: 0 workers are this process, None takes one for each core.

    Raises:
        InputError: a negative number of workers, no Ray, or no cluster at the address.
    """
    if workers is not None and workers < 0:
        raise InputError(f"workers: found {workers}, allowed: 0 (this process) or more")
    if ray_address is not None:
        return RayCluster(ray_address, workers)
    if workers is None:
        # A process takes about as long to start as one chunk takes to run.
        workers = min(os.cpu_count() or 1, chunks) if chunks > 1 else 0
    return LocalProcesses(workers) if workers else ThisProcess()


class _Place:
    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what was started."""


class ThisProcess(_Place):
    """Runs one chunk after the other in this process."""

    def run(self, task: str, chunks: Iterable[Chunk]) -> Iterator[Done | None]:
        """See `Place.run`."""
        for number, points in chunks:
            yield number, run_chunk(task, points)


class LocalProcesses(_Place):
    """Worker processes on this machine, each fed by a thread, kept from one task to the next."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.processes: list[subprocess.Popen[str]] = []

    def run(self, task: str, chunks: Iterable[Chunk]) -> Iterator[Done | None]:
        """See `Place.run`.

        Raises:
            InputError: a worker was killed (often for lack of memory).
        """
        while len(self.processes) < self.workers:
            self.processes.append(_start())
        waiting, lock = iter(chunks), threading.Lock()
        results: queue.Queue[Done | BaseException | None] = queue.Queue()

        def feed(process: subprocess.Popen[str]) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(task + "\n")
                while True:
                    with lock:
                        chunk = next(waiting, None)
                    if chunk is None:
                        break
                    process.stdin.write(chunk[1] + "\n")
                    process.stdin.flush()
                    answer = process.stdout.readline()
                    if not answer.endswith("\n"):
                        raise BrokenPipeError
                    results.put((chunk[0], json.loads(answer)))
                results.put(None)
            except (OSError, ValueError) as error:  # ValueError: a pipe that was closed
                results.put(error)

        for process in self.processes:
            threading.Thread(target=feed, args=(process,), daemon=True).start()
        busy = len(self.processes)
        try:
            while busy:
                try:
                    found = results.get(timeout=_POLL_S)
                except queue.Empty:
                    yield None
                    continue
                if isinstance(found, BaseException):
                    raise InputError(self._exit_message()) from found
                if found is None:
                    busy -= 1
                else:
                    yield found
        finally:
            if busy:  # cancelled: the chunks in work are not needed
                self.close()

    def close(self) -> None:
        """End the processes at once."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                # Data for a process that has ended can't be flushed.
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()
        self.processes = []

    def _exit_message(self) -> str:
        for process in self.processes:
            try:
                status = process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                continue
            return (
                f"a worker of the study ended with status {status} (−9 is often a lack of memory), allowed: "
                "run it again with fewer --workers; in a folder, what is finished stays"
            )
        return "a worker of the study closed its output"


def _start() -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[3])
    # One core each: threads of numpy's libraries would compete for the cores.
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    path = [root, os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [root]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "sim.study.runs.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, **one, "PYTHONPATH": os.pathsep.join(path), "PYTHONUTF8": "1"},
    )


class RayCluster(_Place):
    """A Ray cluster: "auto" is the one this machine belongs to, "local" one started here, else an address.

    Every node needs this program installed in the same version.
    """

    def __init__(self, address: str, workers: int | None) -> None:
        try:
            import ray
        except ImportError:
            raise InputError(
                "--ray: Ray is not installed, allowed: pip install 'model-flywheel[ray]'"
            ) from None
        self.ray = ray
        self.started = not ray.is_initialized()
        if not self.started:
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address == "local":
            options |= {
                "address": "local",
                "num_cpus": workers or os.cpu_count(),
                "include_dashboard": False,
                "object_store_memory": _RAY_STORE_BYTES,
            }
        else:
            options["address"] = address
        try:
            ray.init(**options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"--ray {address}: {reason}; allowed: auto, local, or a cluster's address"
            ) from None

    def run(self, task: str, chunks: Iterable[Chunk]) -> Iterator[Done | None]:
        """See `Place.run`."""
        ray = self.ray
        remote = ray.remote(num_cpus=1)(run_chunk)
        known = ray.put(task)  # once, not with every chunk
        most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting = iter(chunks)
        flying: dict[Any, int] = {}
        try:
            while True:
                while len(flying) < most and (chunk := next(waiting, None)) is not None:
                    flying[remote.remote(known, chunk[1])] = chunk[0]
                if not flying:
                    return
                ready, _ = ray.wait(list(flying), timeout=_POLL_S)
                if not ready:
                    yield None
                for reference in ready:
                    yield flying.pop(reference), ray.get(reference)
        finally:
            for reference in flying:
                ray.cancel(reference, force=True)

    def close(self) -> None:
        """Disconnect from the cluster, if this connected to it."""
        if self.started:
            self.ray.shutdown()
