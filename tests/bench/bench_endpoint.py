"""A profile from outside beside the one from inside, of the same machine, model and dtype: how far capacity differs.

    python tests/bench/bench_endpoint.py [model, default smollm2-135m] [dtype, default float32] [seconds, default 240]

The inside profile is `flywheel profile`'s; then `flywheel serve` serves the same model, and the endpoint is measured
over HTTP from another process on the same cores, as `flywheel profile --endpoint` does. Both go through the same
capacity surface. The goal is 10 %. The outside pays for what the inside doesn't time: the server, HTTP, and the client
on the same cores. A machine that changes its speed in between shows here as well: the inside is measured twice, before
and after, and how far these two differ is printed beside.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from engine.endpoint_profile import Known, measure_endpoint
from engine.errors import InputError
from engine.openai_client import Endpoint
from engine.profile import Profile
from sim.capacity import Objective, capacity_surface
from sim.cli_endpoint import checked_with_backlog

SERVE = "from sim.cli import main; main()"
TRAFFIC = {"chat": 1.0}


def inside(model: str, dtype: str, budget_s: float, path: Path) -> Profile:
    """In a process of its own, so that its threads and memory are gone when the server begins."""
    code = (
        "import sys; from engine.profiler import measure_profile; "
        "measure_profile(sys.argv[1], dtype=sys.argv[2], budget_s=float(sys.argv[3]), training=False).save(sys.argv[4])"
    )
    subprocess.run([sys.executable, "-c", code, model, dtype, str(budget_s), str(path)], check=True)
    return Profile.load(path)


def outside(model: str, dtype: str, budget_s: float, price: float, parameters: int) -> Profile:
    words = [sys.executable, "-c", SERVE, "serve", model, "--dtype", dtype, "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            url = ""
            for line in server.stdout:
                url = url or next((word for word in line.split() if word.startswith("http://")), "")
                if "ready" in line:
                    break
            with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
                assert answer.status == 200
            endpoint = Endpoint(url)
            known = Known(price_usd_per_hour=price, parameters=parameters)
            found = measure_endpoint(endpoint, known, budget_s=budget_s, max_concurrency=128)
            return checked_with_backlog(found, endpoint, budget_s / 2)
        finally:
            server.terminate()


def objective_for(profile: Profile) -> Objective:
    """A goal that leaves room for a queue and a batch on a machine of any speed."""
    step = profile.scheduler_config().max_step_tokens
    prompt_s = sum(profile.step_time([(min(step, 4096 - start), start)]) for start in range(0, 4096, step))
    mixed_s = profile.step_time([(step // 2, 1024)], [1024] * 16)
    return Objective(3 * prompt_s, 2 * mixed_s)


def capacity(profile: Profile, objective: Objective) -> float:
    """Requests per second; NaN if not even one alone keeps the goal."""
    with tempfile.TemporaryDirectory() as cache:
        try:
            return capacity_surface(profile, TRAFFIC, objective, cache_dir=Path(cache)).capacity_rps
        except InputError as error:
            print(f"  {error}")
            return float("nan")


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
    dtype = sys.argv[2] if len(sys.argv) > 2 else "float32"
    budget_s = float(sys.argv[3]) if len(sys.argv) > 3 else 240.0
    with tempfile.TemporaryDirectory() as folder:
        before = inside(model, dtype, budget_s / 2, Path(folder) / "before.json")
        goal = objective_for(before)
        print(
            f"goal: p95 of TTFT {goal.ttft_p95_s:.2f} s, of TPOT {goal.tpot_p95_s:.3f} s, traffic {TRAFFIC}"
        )
        print(f"inside, before: {capacity(before, goal):.3f} requests/s", flush=True)
        seen = outside(model, dtype, budget_s, before.hardware.price_usd_per_hour, before.model.parameters)
        print(f"outside:        {capacity(seen, goal):.3f} requests/s; limits {seen.scheduler}", flush=True)
        after = inside(model, dtype, budget_s / 2, Path(folder) / "after.json")
        print(f"inside, after:  {capacity(after, goal):.3f} requests/s")
    first, last = capacity(before, goal), capacity(after, goal)
    print(
        f"outside / inside − 1 = {capacity(seen, goal) / ((first + last) / 2) - 1:+.1%} (goal ±10 %); "
        f"after / before − 1 = {last / first - 1:+.1%} (the machine)"
    )
    for name, prefill, contexts in (
        ("decode 1", [], [200]),
        ("decode 16", [], [200] * 16),
        ("decode 64", [], [200] * 64),
        ("prefill 256", [(256, 0)], []),
        ("256 beside 32", [(256, 0)], [200] * 32),
    ):
        times = [profile.step_time(prefill, contexts) * 1e3 for profile in (before, seen, after)]
        print(
            f"  {name:<14} {times[0]:8.1f} | {times[1]:8.1f} | {times[2]:8.1f} ms inside | outside | inside"
        )
    print(f"check with a backlog: {seen.method['check']}")
    print(
        f"held-out error inside {before.fit.median_relative_error:.1%}, outside {seen.fit.median_relative_error:.1%}"
    )
    for name, source in seen.method["sources"].items():
        print(f"  {name}: {source}")
    for note in seen.method["notes"]:
        print(f"  note: {note}")


if __name__ == "__main__":
    main()
