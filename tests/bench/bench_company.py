"""How long a company takes: 36 months of the default scenario, and from the shell to the report.

Run on an idle machine: `python tests/bench/bench_company.py`. Goals: company level ≤ 0.5 s, shell to report ≤ 3 s
with the profile and the capacity surface in the cache.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sim import Scenario, simulate
from sim.report import write_outputs

ROOT = Path(__file__).resolve().parents[2]
REPEATS = 5


def median_s(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    scenario = Scenario.load(ROOT / "scenarios" / "api_startup.yaml")
    result = simulate(scenario)  # fills the cache
    surface = result.surface
    decade = scenario.override({"horizon_months": 120})
    with tempfile.TemporaryDirectory() as folder:
        shell = [sys.executable, "-m", "sim.cli", "run", "api_startup", "--out", folder]
        rows = {
            "company level, 36 months": median_s(lambda: simulate(scenario, surface=surface)),
            "company level, 120 months": median_s(lambda: simulate(decade, surface=surface)),
            "report, CSV, Parquet and JSON": median_s(lambda: write_outputs(result, folder)),
            "shell to report": median_s(
                lambda: subprocess.run(shell, cwd=ROOT, check=True, capture_output=True)
            ),
        }
    for name, seconds in rows.items():
        print(f"{name:32} {seconds:7.3f} s")


if __name__ == "__main__":
    main()
