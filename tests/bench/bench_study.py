"""How long a study takes, how well it uses a second core, and how much memory many runs need.

Run on an idle machine: `python tests/bench/bench_study.py` (about 2 minutes), with `--memory` also 10,000 runs (about
5 minutes more). Goals: 1,000 runs of the default scenario ≤ 60 s on two cores, ≥ 90 % parallel efficiency from one
to two workers, 10,000 runs in ≤ 1 GB, workers included.

Efficiency compares whole calls, start of the workers included: t(1 worker) / (2 · t(2 workers)).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from sim import Scenario
from sim.study.monte_carlo import monte_carlo
from sim.study.runs.options import RunOptions

RUNS = 1000


@contextmanager
def peak_memory_mb() -> Iterator[list[float]]:
    """The most that this process and all below it held at once (resident; shared pages counted in each)."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not done.wait(0.2):
            held = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    held += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak[0] = max(peak[0], held / 2**20)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def main() -> None:
    scenario = Scenario.load("api_startup")
    monte_carlo(scenario, runs=8, options=RunOptions(workers=0))  # fills the cache of capacity surfaces
    took = {}
    for workers in (1, 2):
        with peak_memory_mb() as peak:
            started = time.perf_counter()
            monte_carlo(scenario, runs=RUNS, options=RunOptions(workers=workers))
            took[workers] = time.perf_counter() - started
        print(f"{RUNS:,} runs, {workers} worker(s) {took[workers]:10.1f} s {peak[0]:10.0f} MB")
    print(f"{'parallel efficiency':24} {took[1] / (2 * took[2]):10.1%}")
    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        monte_carlo(scenario, runs=RUNS, options=RunOptions(workers=2, folder=Path(folder) / "study"))
        print(f"{'the same into a folder':24} {time.perf_counter() - started:10.1f} s")
    if "--memory" in sys.argv:
        with TemporaryDirectory() as folder, peak_memory_mb() as peak:
            started = time.perf_counter()
            monte_carlo(scenario, runs=10_000, options=RunOptions(workers=2, folder=Path(folder) / "study"))
            print(f"10,000 runs, 2 workers {time.perf_counter() - started:12.1f} s {peak[0]:10.0f} MB")


if __name__ == "__main__":
    main()
