"""How near the Triton attention kernels come to a GPU's limits, at the shape of one layer of an 8B Llama.

    python tests/bench/bench_kernels.py

Decode in bytes of keys and values read per second against 4.3 TB/s, eager and from a CUDA graph; prefill in FLOP/s
against 788 TFLOP/s and beside torch's own attention on contiguous tensors. Both limits are those of issue 3 for an
H200. Each time is a median with the cache's blocks in random order.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

HEADS, KV_HEADS, HEAD_DIM, BLOCK_TOKENS = 32, 8, 128, 16
BYTES_PER_S, FLOP_PER_S = 4.3e12, 788e12
BATCHES = (1, 4, 16, 64, 256)
CONTEXTS = (1024, 2048, 4096, 8192)
CHUNKS = (512, 2048, 8192)
_LEAST_READ_BYTES = 1 << 30  # a step reads another layer's cache each time; a warm L2 would flatter


def paged(requests: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, values and block tables of `requests` with `tokens` each, blocks in random order."""
    blocks = requests * tokens // BLOCK_TOKENS
    shape = (blocks, BLOCK_TOKENS, KV_HEADS, HEAD_DIM)
    keys, values = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in "kv")
    tables = torch.randperm(blocks, device="cuda").to(torch.int32).view(requests, -1)
    return keys, values, tables


def captured(step: Callable[[], object]) -> Callable[[], object]:
    """`step` as a CUDA graph."""
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def median_s(step: Callable[[], object]) -> float:
    """Seconds of one `step`."""
    from triton.testing import do_bench

    return float(do_bench(step, warmup=50, rep=200, return_mode="median")) / 1e3


def bench_decode() -> None:
    """Print a row per batch size and context length."""
    from engine.kernels.paged_decode import DecodeWorkspace, paged_decode

    print(
        f"{'decode batch':>12} {'context':>8} {'splits':>6} {'graph µs':>9} {'eager µs':>9} {'TB/s':>6} {'of limit':>8}"
    )
    for batch in BATCHES:
        for context in CONTEXTS:
            read_bytes = batch * context * KV_HEADS * HEAD_DIM * 2 * 2
            layers = max(1, min(32, -(-_LEAST_READ_BYTES // read_bytes)))
            caches = [paged(batch, context) for _ in range(layers)]
            query = torch.randn(batch, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
            lengths = torch.full((batch,), context, dtype=torch.int32, device="cuda")
            workspace = DecodeWorkspace.allocate(batch, HEADS, KV_HEADS, HEAD_DIM, context, query.device)
            out = torch.empty_like(query)

            def step(
                caches: list = caches,
                query: torch.Tensor = query,
                lengths: torch.Tensor = lengths,
                workspace: DecodeWorkspace = workspace,
                out: torch.Tensor = out,
            ) -> None:
                for keys, values, tables in caches:
                    paged_decode(query, keys, values, tables, lengths, out=out, workspace=workspace)

            graph_s, eager_s = (median_s(run) / layers for run in (captured(step), step))
            rate = read_bytes / graph_s
            print(
                f"{batch:12} {context:8} {workspace.mixed.shape[2]:6} {graph_s * 1e6:9.1f} {eager_s * 1e6:9.1f} "
                f"{rate / 1e12:6.2f} {rate / BYTES_PER_S:8.0%}",
                flush=True,
            )


def bench_prefill() -> None:
    """Print a row per chunk of an 8k context; causal operations only are counted."""
    from engine.kernels.paged_prefill import paged_prefill

    total = max(CHUNKS)
    keys, values, tables = paged(1, total)
    key, value = (
        cache[tables[0].long()].flatten(0, 1).transpose(0, 1).unsqueeze(0).contiguous()
        for cache in (keys, values)
    )
    print(
        f"{'prefill chunk':>13} {'start':>6} {'µs':>8} {'TFLOP/s':>8} {'of limit':>8} {'torch SDPA TFLOP/s':>19}"
    )
    for tokens, start in [*((tokens, 0) for tokens in CHUNKS), (512, total - 512)]:
        query = torch.randn(tokens, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        rows = torch.tensor([0, tokens], dtype=torch.int32, device="cuda")
        starts = torch.tensor([start], dtype=torch.int32, device="cuda")
        flops = 4 * HEADS * HEAD_DIM * (tokens * start + tokens * (tokens + 1) / 2)
        ours_s = median_s(
            lambda query=query, rows=rows, starts=starts, tokens=tokens: paged_prefill(
                query, keys, values, tables, rows, starts, tokens
            )
        )
        beside = "-"  # torch's fast kernels know no causal mask with a context before it
        if not start:
            packed = query.transpose(0, 1).unsqueeze(0).contiguous()
            theirs_s = median_s(
                lambda packed=packed, tokens=tokens: scaled_dot_product_attention(
                    packed, key[:, :, :tokens], value[:, :, :tokens], is_causal=True, enable_gqa=True
                )
            )
            beside = f"{flops / theirs_s / 1e12:.0f}"
        rate = flops / ours_s
        print(
            f"{tokens:13} {start:6} {ours_s * 1e6:8.1f} {rate / 1e12:8.0f} {rate / FLOP_PER_S:8.0%} {beside:>19}",
            flush=True,
        )


def main() -> None:
    """Run both benchmarks."""
    if not torch.cuda.is_available():
        print("skipped: the kernels' benchmark needs a CUDA device")
        sys.exit(0)
    device = torch.cuda.get_device_properties(0)
    print(
        f"{device.name}, torch {torch.__version__}; limits {BYTES_PER_S / 1e12} TB/s, {FLOP_PER_S / 1e12:.0f} TFLOP/s"
    )
    torch.manual_seed(0)
    bench_decode()
    bench_prefill()


if __name__ == "__main__":
    main()
