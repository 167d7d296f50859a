"""How fast the request level simulates: the real conversation trace, and a capacity surface from scratch.

    python tests/bench/bench_replay.py [TRACE.csv]

Prints simulated requests per second, the error of Little's law, and how many events a request cost. The step
times are those of the shipped profile of SmolLM2-135M, on as many replicas as the trace needs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from engine.profile import Profile
from sim.capacity import Objective, capacity_surface
from sim.paths import resolve_profile
from sim.serving import littles_law_error, replay_with_stats, summary
from sim.workload import read_trace

TRACE = Path(__file__).resolve().parents[3] / "shared" / "traces" / "azure_2023_conv.csv"
REPLICAS = (40, 100)


def main() -> None:
    """Run both benchmarks."""
    trace = Path(sys.argv[1]) if len(sys.argv) > 1 else TRACE
    if not trace.is_file():
        print(f"skipped: no trace at {trace}; give one as argument")
        return
    profile = Profile.load(resolve_profile("smollm2-135m"))
    print(f"profile {profile.content_hash[:12]} of {profile.model.name} on {profile.hardware.name}")
    requests = read_trace(trace)
    for replicas in REPLICAS:
        started = time.perf_counter()
        frame, stats = replay_with_stats(
            requests, profile.step_time_model(), profile.scheduler_config(), replicas
        )
        wall_s = time.perf_counter() - started
        found = summary(frame, stats)
        print(
            f"{trace.name} on {replicas} replicas: {len(frame):,} requests in {wall_s:.2f} s = "
            f"{len(frame) / wall_s:,.0f} requests/s; {stats.events.sum() / len(frame):.1f} events and "
            f"{stats.steps.sum() / len(frame):.0f} steps per request; finished {frame['finished_s'].notna().sum():,}; "
            f"Little's law error {littles_law_error(frame, stats):.1e}; TTFT p95 {found['ttft_p95_s']:.2f} s, "
            f"TPOT p95 {found['tpot_p95_s']:.3f} s, busy {found['busy_fraction']:.0%}"
        )
    with tempfile.TemporaryDirectory() as empty:
        for what in ("uncached", "cached"):
            started = time.perf_counter()
            surface = capacity_surface(
                profile, {"chat": 1.0}, Objective(ttft_p95_s=10.0, tpot_p95_s=0.5), cache_dir=Path(empty)
            )
            wall_s = time.perf_counter() - started
            print(
                f"capacity surface {what}: {wall_s * 1000:,.1f} ms; capacity {surface.capacity_rps:.3f} of "
                f"{surface.saturation_rps:.3f} requests/s"
            )


if __name__ == "__main__":
    main()
