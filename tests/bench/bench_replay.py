"""How fast the request level simulates, and in how much memory.

    python tests/bench/bench_replay.py

The job is that of the best-known open simulator (Vidur, CodeLlama-34B on two A100, conversation lengths, 6.45
requests/s, chunk 512, batch ≤ 128), whose own run of it took 5.95 s of wall time on two cores (336 requests/s, start
excluded; `../shared/measured`). A fresh process does the job here, so that start and memory count; then a day of a
million requests over 32 replicas, 10⁴ to 10⁶ requests on one, a real trace, and a capacity surface from scratch. The
readable replicas (`sim/serving/replica.py`) run beside the compiled ones.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from engine.batch import SchedulerConfig
from engine.profile.profile import Profile
from engine.profile.step_time import RooflineStepTime
from sim.serving.fleet_config import Fleet
from sim.serving.metrics import littles_law_error, summary
from sim.serving.replay import equal_replicas, replay_fleet
from sim.utils.paths import resolve_profile
from tests.helpers.places import SHARED

PEER_S, PEER_REQUESTS = 5.95, 2000
LIMITS = SchedulerConfig(128, 512, 16, 27_904, prefix_caching=False)
# Fitted to the peer's own table of step times (CodeLlama-34B, two A100); the table itself is in ../shared/measured.
STEP_S = RooflineStepTime(
    constant_s=0.0314,
    token_knots=(0, 16, 64, 256),
    token_slopes_s=(0.0, 3.2e-5, 1.41e-4, 1.69e-4),
    request_knots=(0,),
    request_slopes_s=(0.0,),
    decode_context_s=4.98e-8,
    chunk_s=2.27e-3,
    prefill_pair_s=6.34e-9,
    prefill_context_s=0.0,
)
ONE = equal_replicas(STEP_S, LIMITS)


def conversation(requests: int, rate_rps: float) -> pd.DataFrame:
    """Requests with the lengths of the Azure conversation trace 2023 (lognormal by median and mean)."""
    from sim.workload.generate import generate

    return generate({"chat": 1.0}, rate_rps, requests=requests, rng=0, max_context_tokens=4096)


def timed(requests: pd.DataFrame, fleet: Fleet = ONE, reference: bool = False) -> str:
    """Requests per second of wall time, and what shows that the work was done."""
    started = time.perf_counter()
    frame, stats = replay_fleet(requests, fleet, reference=reference)
    wall_s = time.perf_counter() - started
    return (
        f"{len(frame):>9,} requests in {wall_s:6.2f} s = {len(frame) / wall_s:>8,.0f} requests/s; "
        f"{stats.events.sum() / len(frame):.1f} events and {stats.steps.sum() / len(frame):.0f} steps per request; "
        f"busy {stats.busy_fraction:.0%}, batch {stats.batch_mean:.1f}; Little's law off by "
        f"{littles_law_error(frame, stats):.0e}"
    )


def fresh_process() -> None:
    """The peer's job from the start of a process: what `main` runs as a child."""
    began = time.perf_counter()
    requests = conversation(PEER_REQUESTS, 6.45)
    replay_fleet(requests.iloc[:1], ONE)
    ready_s = time.perf_counter() - began
    times = []
    for _ in range(5):
        started = time.perf_counter()
        replay_fleet(requests, ONE)
        times.append(time.perf_counter() - started)
    wall_s = sorted(times)[2]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate, peer = PEER_REQUESTS / wall_s, PEER_REQUESTS / PEER_S
    print(
        f"  {rate:,.0f} requests/s, {rate / peer:,.0f} times the peer's {peer:,.0f}; peak {peak_mb:.0f} MB; "
        f"compiled code and first request ready {ready_s:.2f} s after the imports"
    )


def main() -> None:
    """Run everything."""
    for what in ("cold (the C code is compiled first)", "warm"):
        print(f"the peer's job in a fresh process, {what}")
        folder = tempfile.mkdtemp() if what != "warm" else None
        environment = os.environ | ({"FLYWHEEL_CACHE": folder} if folder else {})
        started = time.perf_counter()
        subprocess.run([sys.executable, __file__, "--child"], env=environment, check=True)
        print(f"  whole process {time.perf_counter() - started:.2f} s (five runs of the job)")
    print("readable replicas: ", timed(conversation(PEER_REQUESTS, 6.45), reference=True))
    for count in (10_000, 100_000, 1_000_000):
        print("one replica:       ", timed(conversation(count, 6.45)))
    day = conversation(1_000_000, 1_000_000 / 86_400)
    for router in ("least_outstanding", "power_of_two"):
        print(f"a day, 32 replicas, {router}: ", timed(day, equal_replicas(STEP_S, LIMITS, 32, router)))
    _real_trace()
    _surface()


def _real_trace() -> None:
    from sim.traces.read import read_trace

    path = SHARED / "traces" / "azure_2023_conv.csv"
    if not path.is_file():
        print(f"skipped: no trace at {path}")
        return
    profile = Profile.load(resolve_profile("smollm2-135m"))
    requests = read_trace(path)
    for replicas in (40, 100):
        started = time.perf_counter()
        frame, stats = replay_fleet(
            requests, equal_replicas(profile.step_time_model(), profile.scheduler_config(), replicas)
        )
        wall_s = time.perf_counter() - started
        found = summary(frame, stats)
        print(
            f"{path.name} on {replicas} replicas of {profile.model.name}: {len(frame) / wall_s:,.0f} requests/s; "
            f"TTFT p95 {found['ttft_p95_s']:.2f} s, TPOT p95 {found['tpot_p95_s']:.3f} s"
        )


def _surface() -> None:
    from sim.capacity.goals import Objective
    from sim.capacity.surface import capacity_surface

    profile = Profile.load(resolve_profile("smollm2-135m"))
    objective = Objective(ttft_p95_s=10.0, tpot_p95_s=0.5)
    with tempfile.TemporaryDirectory() as empty:
        for what in ("uncached", "cached"):
            started = time.perf_counter()
            surface = capacity_surface(profile, {"chat": 1.0}, objective, cache_dir=Path(empty))
            wall_s = time.perf_counter() - started
            print(
                f"capacity surface {what}: {wall_s * 1000:,.1f} ms; capacity {surface.capacity_rps:.3f} of "
                f"{surface.saturation_rps:.3f} requests/s"
            )


if __name__ == "__main__":
    if "--child" in sys.argv:
        fresh_process()
    else:
        main()
