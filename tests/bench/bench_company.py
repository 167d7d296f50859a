"""How long a company takes: one segment and three, 36 and 120 months, and from the shell to the report.

Run on an idle machine: `python tests/bench/bench_company.py`. Goals: three segments ≤ 0.25 s over 36 months and
≤ 1 s over 120, memory ≤ 300 MB; shell to report ≤ 3 s with the profile and the capacity surface in the cache.
Three segments are `scenarios/platform.yaml`, and the company of the tests with every market and finance feature.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from sim import Scenario, simulate
from sim.outputs import write_outputs
from tests.helpers.market import THREE_SEGMENTS
from tests.helpers.places import ROOT

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
    companies = {
        "one segment": scenario,
        "three segments": Scenario.load(ROOT / "scenarios" / "platform.yaml"),
        "every feature": Scenario.parse(THREE_SEGMENTS),
    }
    for name, company in companies.items():
        surface = simulate(company).surface
        for months in (36, 120):
            run = company.override({"horizon_months": months})
            seconds = median_s(lambda run=run, surface=surface: simulate(run, surface=surface))
            print(f"{f'{name}, {months} months':32} {1000 * seconds:7.0f} ms")
    print(
        f"{'largest memory of this process':32} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:7.0f} MB"
    )
    with tempfile.TemporaryDirectory() as folder:
        shell = [sys.executable, "-m", "sim.cli", "run", "api_startup", "--out", folder]
        outputs = median_s(lambda: write_outputs(result, folder))
        whole = median_s(lambda: subprocess.run(shell, cwd=ROOT, check=True, capture_output=True))
    print(f"{'report, CSV, Parquet and JSON':32} {1000 * outputs:7.0f} ms")
    print(f"{'shell to report':32} {1000 * whole:7.0f} ms")


if __name__ == "__main__":
    main()
