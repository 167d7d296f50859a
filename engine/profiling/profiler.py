"""Measure a model on this machine and fit its step-time model: the `flywheel profile` command.

A step is what the engine does from one `LLM.step` to the next: it runs the packed batch and picks the next token
greedily; what its host does besides (decide, pack up, book) is timed on its own and added. Steps over a grid of prefill
chunks × context, decode batch × context and mixtures of both are timed on the real runner, with block tables scattered
over the cache as they are after hours of serving.

Method: passes over the whole grid, each in a new random order, so that a machine that slows down or speeds up
biases no corner of the grid; the first run of a short step is thrown away; the median of a point's repeats counts
(it ignores interruptions, while a minimum would describe an undisturbed machine). Every fourth point is held
out of the fit and only judges it. At last a few optimizer steps are timed (`engine.profiling.training_steps`).
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import InputError
from engine.profile.cost import cost_table
from engine.profile.hardware import HardwareInfo, detect
from engine.profile.profile import SCHEMA_VERSION, Measurement, Profile, TrainingPoint
from engine.profiling.fit import FIT_METHOD, fit_and_judge
from engine.profiling.grid import GridPoint, default_grid, is_held_out, measurement
from engine.profiling.perplexity import measure_quality
from engine.profiling.power import PowerMeter
from engine.utils.message import Message
from engine.utils.progress import Progress, no_progress

if TYPE_CHECKING:
    import torch

    from engine.batch import BatchChunk
    from engine.inference.llm import LLM
    from engine.inference.model_runner import ModelRunner


_MIN_PASSES, _MAX_PASSES = 2, 15
_MIN_POINTS = 24
_SHORT_S = 0.1
_HOST_STEPS = 8
_HOST_SHARE = 0.03  # of the budget
_TRAINING_SHARE = 0.125  # of the budget


def measure_profile(
    model: str = "smollm2-135m",
    device: str = "cpu",
    dtype: str = "float32",
    price_usd_per_hour: float | None = None,
    budget_s: float = 50.0,
    seed: int = 0,
    progress: Progress | None = None,
    grid: Sequence[GridPoint] | None = None,
    training: bool = True,
) -> Profile:
    """Load `model`, time its steps for about `budget_s` seconds, fit, and price the tokens.

    Args:
        model: whatever `engine.LLM` loads.
        device: "cpu" or "cuda".
        dtype: "float32", "bfloat16" or "float16"; weights only: "int8" on a CPU, "fp8" on CUDA.
        price_usd_per_hour: of this machine; None takes the catalog's.
        budget_s: seconds of measuring, after loading; exceeded only where one look at 24 points takes longer.
        seed: order of the measurements.
        progress: called with (fraction done, what is being done).
        grid: other points than `default_grid`.
        training: spend an eighth of the budget on optimizer steps.

    Raises:
        InputError: bad argument, unknown model or device.
    """
    if not 0 < budget_s < float("inf"):
        raise InputError(f"budget_s {budget_s}: a positive number of seconds is allowed")
    training_s = _TRAINING_SHARE * budget_s if training else 0.0
    report = progress or no_progress
    hardware = detect(device, price_usd_per_hour)
    report(0.0, Message("loading the model"))
    with PowerMeter(device) as idle:
        time.sleep(0.5)  # what the machine draws before it works
    from engine.inference.llm import LLM

    started = time.perf_counter()
    llm = LLM(model, device=device, dtype=dtype, seed=seed)
    load_s = time.perf_counter() - started
    points = list(grid) if grid is not None else default_grid(llm.config, llm.shape.max_context_tokens)
    planned = len(points)
    report(0.15, Message("measuring peak speed"))
    fill_cache(llm)
    flops, bandwidth = measure_peaks(device, dtype)
    quality = measure_quality(llm, model)
    host_step_s, host_request_s = measure_host(llm, _HOST_SHARE * budget_s)
    with PowerMeter(device) as load:
        measured = _measure(llm, points, (host_step_s, host_request_s), budget_s - training_s, seed, report)
    coefficients, fit = fit_and_judge(measured)
    hardware = _complete(hardware, flops, bandwidth, idle, load)
    shape, config, memory = llm.shape, llm.config, _memory(llm, device)
    method: dict[str, Any] = {}
    steps: tuple[TrainingPoint, ...] = ()
    if training:
        from engine.profiling.training_steps import measure_training

        report(1 - 0.8 * _TRAINING_SHARE, Message("measuring training steps"))
        del llm  # training needs its memory
        steps, reason = measure_training(
            model, shape, device, budget_s=training_s, machine_flops=flops, seed=seed
        )
        if reason is not None:
            method["training"] = reason
    report(1.0, Message("done"))
    return Profile(
        schema_version=SCHEMA_VERSION,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        kind="measured",
        model=shape,
        hardware=hardware,
        software=software_versions(),
        method=method
        | {
            "seed": seed,
            "budget_s": budget_s,
            "grid_points_planned": planned,
            "grid_points": len(measured),
            "repeats_median": int(statistics.median(point.repeats for point in measured)),
            "statistic": "median of repeats in randomised passes",
            **FIT_METHOD,
            "load_s": round(load_s, 3),
            "host_step_s": round(host_step_s, 7),
            "host_request_s": round(host_request_s, 7),
        },
        scheduler=asdict(config),
        coefficients=coefficients,
        fit=fit,
        cost=cost_table(coefficients, hardware.price_usd_per_hour, config, shape.max_context_tokens),
        memory=memory,
        power={"mean_w": load.mean_w, "idle_w": idle.mean_w, "source": load.source, "reason": load.reason},
        measurements=tuple(measured),
        quality=quality,
        training=steps,
    )


def _measure(
    llm: LLM,
    points: Sequence[GridPoint],
    host_s: tuple[float, float],
    budget_s: float,
    seed: int,
    report: Progress,
) -> list[Measurement]:
    """The points that the budget allowed, in grid order. `host_s`: as `measure_host` returns it, added to each step."""
    rng = random.Random(seed)
    batches = [build_batch(llm, point, rng) for point in points]
    samples: list[list[float]] = [[] for _ in points]
    between = next(
        (batch for point, batch in zip(points, batches, strict=True) if not point.prefill), batches[0]
    )
    # Allocators and caches meet their largest and smallest step before anything is counted.
    for batch in (batches[0], max(batches, key=lambda chunks: sum(len(chunk.token_ids) for chunk in chunks))):
        time_step(llm, batch)
    began = time.perf_counter()
    order = list(range(len(points)))
    for number in range(_MAX_PASSES):
        rng.shuffle(order)
        for index in order:
            spent = time.perf_counter() - began
            if spent > budget_s and sum(map(bool, samples)) >= _MIN_POINTS:
                break  # a machine so slow that one pass takes longer, or two: the rest of the grid is left out
            report(
                0.17 + 0.8 * (1 - _TRAINING_SHARE) * min(1.0, spent / budget_s),
                Message("measuring steps, pass {number}", number=number + 1),
            )
            first_s = time_step(llm, batches[index])
            if first_s >= _SHORT_S:
                samples[index].append(first_s)
                continue
            # A short step is cheap to repeat and suffers the most from a cold cache: its first run doesn't count. But a
            # prompt's chunk never runs twice in a row when serving: it finds the caches as decodes leave them.
            for _ in range(3):
                if points[index].prefill:
                    time_step(llm, between)
                samples[index].append(time_step(llm, batches[index]))
        spent = time.perf_counter() - began
        if number + 1 >= _MIN_PASSES and spent * (number + 2) / (number + 1) > budget_s:
            break
    step_s, request_s = host_s
    kept = [(point, times) for point, times in zip(points, samples, strict=True) if times]
    return [
        measurement(
            point, [seconds + step_s + request_s * point.requests for seconds in times], is_held_out(i)
        )
        for i, (point, times) in enumerate(kept)
    ]


def fill_cache(llm: LLM) -> None:
    """Write the whole KV cache, as hours of serving do: memory that was never written is read too fast."""
    for part in (*llm.runner.cache.keys, *llm.runner.cache.values):
        part.fill_(0.5)


def build_batch(llm: LLM, point: GridPoint, rng: random.Random) -> list[BatchChunk]:
    """The engine's input for one point: random tokens, blocks scattered over the cache, decodes first.

    What the cache holds doesn't matter for time. Points larger than the cache share blocks.
    """
    from engine.batch import BatchChunk

    size, count = llm.config.block_tokens, llm.config.num_blocks
    scattered = rng.sample(range(count), count)
    used = 0
    chunks = []
    requests = [(1, context) for context in point.decode_contexts] + list(point.prefill)
    for tokens, start in requests:
        blocks = -(-(start + tokens) // size)
        table = [scattered[(used + i) % count] for i in range(blocks)]
        used += blocks
        ids = [rng.randrange(llm.shape.vocab_size) for _ in range(tokens)]
        chunks.append(BatchChunk(token_ids=ids, start=start, block_table=table))
    return chunks


def time_step(llm: LLM, chunks: list[BatchChunk]) -> float:
    """Seconds of one step on the real runner, until the greedy tokens are on the host."""
    start = time.perf_counter()
    logits: torch.Tensor = llm.runner.run(chunks)
    logits.argmax(dim=-1).tolist()  # on a GPU this waits for the device
    return time.perf_counter() - start


def measure_host(llm: LLM, budget_s: float) -> tuple[float, float]:
    """Seconds that `LLM.step` takes besides what `time_step` times: (per step, per request in it).

    Timed on real decode steps of several batches, from the smallest on until the budget is spent: after the device's
    work the host's caches are cold, and only then does its own work cost what it costs when serving. The engine must
    have nothing to do.
    """
    from typing import cast

    from engine.sampling.sampler import SamplingParams

    most = min(llm.config.max_running_requests, llm.config.max_step_tokens, llm.config.num_blocks // 2)
    timed = _TimedRunner(llm.runner)
    runner, llm.runner = llm.runner, cast("Any", timed)
    spent: dict[int, float] = {}
    began = time.perf_counter()
    try:
        for batch in sorted({1, max(1, most // 4), most}):
            if spent and time.perf_counter() - began > budget_s:
                break
            params = SamplingParams(max_tokens=_HOST_STEPS + 2, ignore_eos=True)
            ids = [llm.add_request([0], params) for _ in range(batch)]
            times = []
            for _ in range(_HOST_STEPS):
                start = time.perf_counter()
                llm.step()
                times.append(time.perf_counter() - start - timed.seconds)
            spent[batch] = statistics.median(times[1:])  # the first is no decode
            for request_id in ids:
                llm.cancel(request_id)
    finally:
        llm.runner = runner
    if len(spent) == 1:
        return next(iter(spent.values())), 0.0
    per_request_s, per_step_s = np.polyfit(list(spent), list(spent.values()), 1)
    return max(0.0, float(per_step_s)), max(0.0, float(per_request_s))


class _TimedRunner:
    """A runner that times itself and a greedy pick, and then leaves the engine next to nothing to pick from."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner, self.seconds = runner, 0.0

    def run(self, chunks: Sequence[BatchChunk]) -> torch.Tensor:
        """The logits of the first two tokens."""
        start = time.perf_counter()
        logits = self.runner.run(chunks)
        logits.argmax(dim=-1).tolist()
        self.seconds = time.perf_counter() - start
        return logits[:, :2]


def measure_peaks(device: str, dtype: str) -> tuple[float, float]:
    """Measured peaks of the machine: (FLOP/s of the best large matrix product, bytes/s of reading memory)."""
    import torch

    from engine.layers.linear import COMPUTE_DTYPES, PackedLinear, has_packed_products

    number = getattr(torch, COMPUTE_DTYPES.get(dtype, dtype))
    side, length = (8192, 2**30) if device == "cuda" else (1536, 2**26)
    a = torch.randn(side, side, device=device, dtype=number)
    data = torch.ones(length, device=device, dtype=torch.float32 if device == "cpu" else number)

    def best_s(work: Callable[[], torch.Tensor]) -> float:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            work().flatten()[0].item()  # waits for the device
            times.append(time.perf_counter() - start)
        return min(times[1:])

    products: list[Callable[[], torch.Tensor]] = [lambda: a @ a]
    if has_packed_products(a):
        packed = PackedLinear(a)
        products.append(lambda: packed(a))
    with torch.inference_mode():
        flops = 2 * side**3 / min(best_s(product) for product in products)
    bandwidth = data.numel() * data.element_size() / best_s(lambda: data.sum())
    return flops, bandwidth


def software_versions() -> dict[str, str]:
    """Versions of the software that the times depend on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "system": platform.platform()}
    for package in ("model-flywheel", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _complete(
    hardware: HardwareInfo, flops: float, bandwidth: float, idle: PowerMeter, load: PowerMeter
) -> HardwareInfo:
    """The machine with what was measured on it; measured peaks replace those of a data sheet."""
    import torch

    return replace(
        hardware,
        threads=torch.get_num_threads(),
        peak_flops=flops,
        memory_bandwidth_bytes_per_s=bandwidth,
        peak_source=Message("measured here: best large matrix product, best sum over a large array"),
        idle_w=idle.mean_w,
        load_w=load.mean_w,
    )


def _memory(llm: LLM, device: str) -> dict[str, int]:
    import torch

    from engine.utils.memory import peak_memory_bytes

    found = {
        "weight_bytes": llm.shape.weight_bytes,
        "kv_bytes_per_token": llm.shape.kv_bytes_per_token,
        "kv_cache_bytes": llm.shape.kv_bytes_per_token * llm.config.cache_tokens,
        "peak_rss_bytes": peak_memory_bytes(torch.device("cpu")),
    }
    if device == "cuda":
        found["peak_device_bytes"] = peak_memory_bytes(torch.device(device))
    return found
