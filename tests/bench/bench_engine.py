"""The engine beside transformers, in one run: same weights, same prompts, same machine.

    python tests/bench/bench_engine.py [--model smollm2-135m] [--device cpu] [--dtypes float32,bfloat16,int8] [--quick]

First 64 requests at once, prompts of 16–256 tokens (uniform, seed 0), 64 output tokens each: the engine against
transformers' continuous batching (`generate_batch`). Then steps: decoding at several batch sizes against the static
`generate`, and a full prefill step. A floor is what the machine's measured peaks allow: bytes of weights and KV read
over the bandwidth for decoding, operations over the best product's rate for the 64 requests and for prefill; the
vocabulary's product counts only where a token is sampled. Run it on an idle machine; `--quick` leaves the peer out.
"""

from __future__ import annotations

import argparse
import gc
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from engine import LLM, SamplingParams
from engine.batch import BatchChunk
from engine.models.load import load_model
from engine.profiling.profiler import fill_cache, measure_peaks, time_step

REQUESTS, OUTPUT_TOKENS = 64, 64
STATIC_BATCHES = (1, 8, 32)
CONTEXT_TOKENS = {"cpu": 128, "cuda": 1024}
CHUNK_TOKENS = {"cpu": 512, "cuda": 8192}
BATCHES = {"cpu": (1, 8, 32, 64), "cuda": (1, 32, 128, 256)}


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtypes", default=None, help="comma-separated; the peer runs in the first")
    parser.add_argument("--quick", action="store_true", help="leave the peer out")
    options = parser.parse_args()
    device = options.device
    dtypes = (options.dtypes or ("float32,bfloat16,int8" if device == "cpu" else "bfloat16,fp8")).split(",")
    flops, bandwidth = measure_peaks(device, dtypes[0])
    console = Console()
    console.print(
        f"{options.model} on {device}, {torch.get_num_threads()} threads, torch {torch.__version__}; measured in "
        f"{dtypes[0]}: {flops / 1e9:,.0f} GFLOP/s, reading {bandwidth / 1e9:,.1f} GB/s"
    )
    if device == "cpu":
        console.print(f"load to first token, fresh process: {load_to_first_token_s(options.model):.1f} s")
    rng = random.Random(0)
    lengths = [rng.randint(16, 256) for _ in range(REQUESTS)]

    peers: dict[str, float] = {}
    tokens: list[list[int]] | None = None
    if not options.quick:
        # In a process of its own: what it leaves behind (threads, memory) must not slow the engine down.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            job = process.submit(measure_transformers, options.model, device, dtypes[0], lengths)
            peers, tokens = job.result()

    whole = Table(
        "64 requests", "seconds", "output tok/s", "against generate_batch", "of the floor", "same tokens"
    )
    steps = Table("step", "ms", "tok/s", "against generate", "of the floor")
    if peers:
        seconds = peers["requests"]
        whole.add_row(
            "transformers generate_batch", f"{seconds:.1f}", f"{REQUESTS * OUTPUT_TOKENS / seconds:,.0f}"
        )
    for dtype in dtypes:
        llm = LLM(options.model, device, dtype, max_running_requests=max(BATCHES[device]),
                  max_step_tokens=CHUNK_TOKENS[device])  # fmt: skip
        shape = llm.shape
        prompts = make_prompts(lengths, shape.vocab_size)
        in_products = parameters_in_layers(llm)
        head = shape.vocab_size * shape.hidden_size
        run = lambda llm=llm, prompts=prompts: llm.generate(  # noqa: E731
            prompts, SamplingParams(max_tokens=OUTPUT_TOKENS, ignore_eos=True)
        )
        llm.generate(prompts[:4], SamplingParams(max_tokens=2, ignore_eos=True))  # warm up
        seconds, outputs = timed(run)
        computed = sum(lengths) + REQUESTS * (OUTPUT_TOKENS - 1)
        floor_s = 2 * (in_products * computed + head * REQUESTS * OUTPUT_TOKENS) / flops
        same = "" if tokens is None else f"{agreement([o.token_ids for o in outputs], tokens):.0%}"
        whole.add_row(
            f"engine, {dtype}", f"{seconds:.1f}", f"{REQUESTS * OUTPUT_TOKENS / seconds:,.0f}",
            f"{peers['requests'] / seconds:.1f}×" if peers else "",
            f"{floor_s / seconds:.0%}" if dtype == dtypes[0] else "", same,
        )  # fmt: skip
        fill_cache(llm)
        context = CONTEXT_TOKENS[device]
        for batch in BATCHES[device]:
            step_s = best_step_s(llm, decode_batch(llm, batch, context))
            floor_s = (shape.weight_bytes + batch * context * shape.kv_bytes_per_token) / bandwidth
            peer = peers.get(f"decode {batch}")
            steps.add_row(
                f"decode {batch} at {context}, {dtype}", f"{step_s * 1e3:.1f}", f"{batch / step_s:,.0f}",
                f"{batch / step_s / peer:.1f}×" if peer else "", f"{floor_s / step_s:.0%}",
            )  # fmt: skip
        chunk = CHUNK_TOKENS[device]
        blocks = range(-(-chunk // llm.config.block_tokens))
        step_s = best_step_s(llm, [BatchChunk([5] * chunk, 0, blocks)])
        attention = 2 * shape.layers * shape.attention_heads * shape.head_dim * chunk**2  # causal: half of it
        floor_s = (2 * in_products * chunk + attention + 2 * head) / flops
        steps.add_row(
            f"prefill {chunk}, {dtype}", f"{step_s * 1e3:.1f}", f"{chunk / step_s:,.0f}", "",
            f"{floor_s / step_s:.0%}" if dtype == dtypes[0] else "",
        )  # fmt: skip
        del llm, run
        gc.collect()
    console.print(whole)
    console.print(steps)


def measure_transformers(
    name: str, device: str, dtype: str, lengths: list[int]
) -> tuple[dict[str, float], list[list[int]]]:
    """Seconds of `generate_batch` for all requests, decoded tokens per second of `generate` by batch; its tokens."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = load_model(name, dtype, device)
    prompts = make_prompts(lengths, model.config.vocab_size)
    greedy = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    found: dict[str, float] = {}
    for batch in STATIC_BATCHES:
        ids = torch.tensor([prompts[-1][:1] * CONTEXT_TOKENS[device]] * batch, device=device)

        def decode(new: int, ids: torch.Tensor = ids) -> float:
            return timed(
                lambda: model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
                    do_sample=False, pad_token_id=0,
                )
            )[0]  # fmt: skip

        decode(2)
        found[f"decode {batch}"] = batch * 16 / (decode(17) - decode(1))
    config = GenerationConfig(max_new_tokens=OUTPUT_TOKENS, **greedy)
    seconds, outputs = timed(
        lambda: model.generate_batch(
            prompts,
            generation_config=config,
            continuous_batching_config=ContinuousBatchingConfig(),
            warmup=False,
        )
    )
    found["requests"] = seconds
    by_prompt = {tuple(output.prompt_ids): list(output.generated_tokens) for output in outputs.values()}
    return found, [by_prompt[tuple(prompt)] for prompt in prompts]


def make_prompts(lengths: list[int], vocabulary: int) -> list[list[int]]:
    """Random tokens: nothing is shared, nothing ends early."""
    rng = random.Random(1)
    return [[rng.randrange(100, vocabulary) for _ in range(length)] for length in lengths]


def load_to_first_token_s(model: str) -> float:
    """Seconds of a fresh process from its start to the first token."""
    code = f"from engine import LLM, SamplingParams; LLM({model!r}).generate([[5]], SamplingParams(max_tokens=1))"
    return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True))[0]


def decode_batch(llm: LLM, batch: int, context: int) -> list[BatchChunk]:
    """One token of each of `batch` requests with `context` tokens in the cache."""
    size, blocks = llm.config.block_tokens, llm.config.num_blocks
    each = context // size + 1
    return [BatchChunk([5], context, [(i * each + j) % blocks for j in range(each)]) for i in range(batch)]


def best_step_s(llm: LLM, chunks: list[BatchChunk]) -> float:
    """The best of several repeats of one step: what the program does when nothing else disturbs it."""
    time_step(llm, chunks)
    return min(time_step(llm, chunks) for _ in range(10))


def parameters_in_layers(llm: LLM) -> int:
    """Parameters that every token is multiplied with: all but the embeddings, read from a plain copy's shape."""
    shape = llm.shape
    tied = llm.model.config.tie_word_embeddings
    return shape.parameters - shape.vocab_size * shape.hidden_size * (1 if tied else 2)


def agreement(found: list[list[int]], wanted: list[list[int]]) -> float:
    """Share of requests whose tokens are all the same."""
    return sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


if __name__ == "__main__":
    main()
