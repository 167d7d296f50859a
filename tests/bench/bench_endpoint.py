"""A profile from outside beside the one from inside, of the same machine, model and dtype: how far capacity differs.

    python tests/bench/bench_endpoint.py [model, default smollm2-135m] [dtype, default float32] [seconds, default 240]

The server that is measured over HTTP, as `flywheel profile --endpoint` does from another process on the same cores,
notes each step that its engine runs. A step-time model fitted to these is the inside of the very same minutes: the
goal of 10 % is on the capacity against it, through the same capacity surface. `flywheel profile`'s own way, before and
after, is told as well; on a machine that others use these two differ by more than 10 % from each other.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.errors import InputError
from engine.loadtest.client import Endpoint
from engine.profile.profile import Measurement, Profile
from engine.profiling.endpoint import measure_endpoint
from engine.profiling.endpoint_options import Known, SurveyOptions
from engine.profiling.fit import fit_and_judge
from sim.capacity.goals import Objective
from sim.capacity.surface import capacity_surface
from sim.cli.load import checked_with_backlog

TRAFFIC = {"chat": 1.0}


def inside(model: str, dtype: str, budget_s: float, path: Path) -> Profile:
    """In a process of its own, so that its threads and memory are gone when the server begins."""
    code = (
        "import sys; from engine.profiling.profiler import measure_profile; "
        "measure_profile(sys.argv[1], dtype=sys.argv[2], budget_s=float(sys.argv[3]), training=False).save(sys.argv[4])"
    )
    subprocess.run([sys.executable, "-c", code, model, dtype, str(budget_s), str(path)], check=True)
    return Profile.load(path)


def serve(model: str, dtype: str, path: Path) -> None:
    """`flywheel serve` in short, that notes each step of its engine in a file."""
    from engine import LLM
    from engine.batch import Step
    from engine.server.server import Server, ServerConfig

    noted: list[object] = []
    with path.open("w", buffering=1) as file:

        def make() -> LLM:
            llm = LLM(model, dtype=dtype)
            step = llm.step

            def timed() -> list[object]:
                noted.clear()
                begun_s = time.perf_counter()
                outputs = step()
                print(json.dumps([*noted, time.perf_counter() - begun_s]), file=file)
                return outputs  # type: ignore[return-value]

            llm.step = timed  # type: ignore[assignment]
            return llm

        server = Server(make, ServerConfig(port=0), name=model)
        note = server.engine._note

        def noting(step: Step) -> None:
            noted.append([(chunk.tokens, chunk.start) for chunk in step.prefills])
            noted.append([request.computed_tokens for request in step.decodes])
            note(step)

        server.engine._note = noting  # type: ignore[method-assign]
        server.run(on_ready=lambda _: print(server.url, flush=True))


def noted_steps(path: Path) -> list[Measurement]:
    """The steps that the server noted: the median of those with the same chunks and about the same contexts."""
    seconds: dict[tuple[tuple[tuple[int, int], ...], int, int], list[tuple[float, float]]] = defaultdict(list)
    for line in path.read_text().splitlines():
        prefill, contexts, took_s = json.loads(line)
        context = float(np.mean(contexts)) if contexts else 0.0
        chunks = tuple((tokens, start) for tokens, start in prefill)
        seconds[chunks, len(contexts), round(context / 64)].append((context, took_s))
    points = []
    for (chunks, decodes, _), rows in seconds.items():
        context, took_s = np.median(np.array(rows), axis=0)
        kind = "mixed" if chunks and decodes else "prefill" if chunks else "decode"
        points.append(
            Measurement(kind, chunks, (round(context),) * decodes, float(took_s), 0.0, len(rows), False)
        )
    return points


def outside(
    model: str, dtype: str, budget_s: float, price: float, parameters: int, path: Path
) -> tuple[Profile, Profile]:
    """The endpoint's profile, and the same profile with the step times that the server noted meanwhile."""
    words = [sys.executable, __file__, model, dtype, "--serve", str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            endpoint = Endpoint(server.stdout.readline().strip())
            known = Known(price_usd_per_hour=price, parameters=parameters)
            found = measure_endpoint(endpoint, known, SurveyOptions(budget_s, max_concurrency=128))
            coefficients, fit = fit_and_judge(noted_steps(path))
            own = replace(found, coefficients=coefficients, fit=fit)
            return checked_with_backlog(found, endpoint, budget_s / 2), own
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
    if "--serve" in sys.argv:
        serve(sys.argv[1], sys.argv[2], Path(sys.argv[4]))
        return
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
    dtype = sys.argv[2] if len(sys.argv) > 2 else "float32"
    budget_s = float(sys.argv[3]) if len(sys.argv) > 3 else 240.0
    with tempfile.TemporaryDirectory() as folder:
        before = inside(model, dtype, budget_s / 2, Path(folder) / "before.json")
        goal = objective_for(before)
        print(
            f"goal: p95 of TTFT {goal.ttft_p95_s:.2f} s, of TPOT {goal.tpot_p95_s:.3f} s, traffic {TRAFFIC}"
        )
        print(f"profile before:  {capacity(before, goal):.3f} requests/s", flush=True)
        price, parameters = before.hardware.price_usd_per_hour, before.model.parameters
        seen, own = outside(model, dtype, budget_s, price, parameters, Path(folder) / "steps")
        print(f"outside:         {capacity(seen, goal):.3f} requests/s; limits {seen.scheduler}")
        print(f"its own steps:   {capacity(own, goal):.3f} requests/s", flush=True)
        after = inside(model, dtype, budget_s / 2, Path(folder) / "after.json")
        print(f"profile after:   {capacity(after, goal):.3f} requests/s")
    first, last = capacity(before, goal), capacity(after, goal)
    print(
        f"outside / its own steps − 1 = {capacity(seen, goal) / capacity(own, goal) - 1:+.1%} (goal ±10 %); "
        f"outside / profiles − 1 = {capacity(seen, goal) / ((first + last) / 2) - 1:+.1%}; "
        f"after / before − 1 = {last / first - 1:+.1%} (the machine)"
    )
    print("                  before | outside | own steps | after, ms")
    for name, prefill, contexts in (
        ("decode 1", [], [200]),
        ("decode 16", [], [200] * 16),
        ("decode 64", [], [200] * 64),
        ("prefill 256", [(256, 0)], []),
        ("256 beside 32", [(256, 0)], [200] * 32),
    ):
        times = [profile.step_time(prefill, contexts) * 1e3 for profile in (before, seen, own, after)]
        print(f"  {name:<14}" + " |".join(f" {each:8.1f}" for each in times))
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
