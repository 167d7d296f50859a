"""Attention of decoding requests: one query per request against its whole context, read from a paged cache.

Bound by the cache's bytes. The queries that share a KV head are one tile, so each key and value is read once. A
context is cut into splits that run side by side and are joined by a second kernel (flash-decoding, Dao et al. 2023),
or a single long request would keep a few of the GPU's multiprocessors busy only. The grid depends on shapes alone,
never on lengths: the launch can be captured in a CUDA graph and replayed as contexts grow.
"""

# mypy: disable-error-code="no-untyped-def"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engine.kernels.softmax import (
    PLAIN,
    Options,
    attend_tiles,
    check,
    normalised,
    padded,
)

_PROGRAMS_PER_MULTIPROCESSOR = 3  # what its shared memory holds
_MOST_SPLITS = 128
_MOST_QUERIES = 64  # of one KV head in one tile


@dataclass
class DecodeWorkspace:
    """Buffers for the results of the splits; one serves all layers, and every batch of at most as many requests."""

    mixed: torch.Tensor  # [requests, heads, splits, head_dim] float32
    weight: torch.Tensor  # [requests, heads, splits] float32: log2 of the sum of weights

    @classmethod
    def allocate(
        cls, requests: int, heads: int, kv_heads: int, head_dim: int, most_tokens: int, device: torch.device
    ) -> "DecodeWorkspace":
        """Allocate for `requests` of at most `most_tokens` each; fixes the number of splits."""
        shape = (requests, heads, decode_splits(requests, heads, kv_heads, most_tokens, device))
        return cls(
            torch.empty(*shape, head_dim, dtype=torch.float32, device=device),
            torch.empty(shape, dtype=torch.float32, device=device),
        )


def decode_splits(requests: int, heads: int, kv_heads: int, most_tokens: int, device: torch.device) -> int:
    """Number of splits of each context that fills the device and leaves each split enough tokens to read.

    A power of two, because each number is a kernel to compile.
    """
    multiprocessors = 1
    if device.type == "cuda":
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    shared = heads // kv_heads
    programs = requests * kv_heads * triton.cdiv(shared, min(_MOST_QUERIES, padded(shared)))
    wanted = triton.cdiv(_PROGRAMS_PER_MULTIPROCESSOR * multiprocessors, programs)
    return triton.next_power_of_2(max(1, min(wanted, triton.cdiv(most_tokens, 64), _MOST_SPLITS)))


def paged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    context_lengths: torch.Tensor,
    options: Options = PLAIN,
    out: torch.Tensor | None = None,
    workspace: DecodeWorkspace | None = None,
) -> torch.Tensor:
    """Attend one query per request to its context; the query's own key and value are in the cache already.

    query, out and result [requests, heads, head_dim]; keys, values [blocks, block_tokens, kv_heads, head_dim];
    block_tables [requests, most_blocks] int32; context_lengths [requests] int32, the query's token included, 0 for a
    row of padding (its result is 0). Lengths stay on the device.

    Raises:
        ValueError: shapes do not match.
    """
    requests, heads, head_dim = query.shape
    block_tokens, kv_heads = keys.shape[1:3]
    check(query, keys, values, block_tables, options)
    if out is None:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
    if workspace is None:
        most_tokens = block_tables.shape[1] * block_tokens
        workspace = DecodeWorkspace.allocate(requests, heads, kv_heads, head_dim, most_tokens, query.device)
    if len(workspace.mixed) < requests or workspace.mixed.shape[1::2] != query.shape[1:]:
        raise ValueError(f"workspace {tuple(workspace.mixed.shape)} is too small for {tuple(query.shape)}")
    splits = workspace.mixed.shape[2]
    shared = heads // kv_heads
    queries, block_dim = min(_MOST_QUERIES, padded(shared)), padded(head_dim)
    head_tiles = triton.cdiv(shared, queries)
    _decode_kernel[(kv_heads * head_tiles, splits, requests)](
        query,
        keys,
        values,
        block_tables,
        context_lengths,
        options.slopes,
        options.sinks,
        out,
        workspace.mixed,
        workspace.weight,
        *query.stride()[:2],
        *keys.stride()[:3],
        *out.stride()[:2],
        block_tables.stride(0),
        **options.constants(head_dim),
        SHARED=shared,
        HEAD_TILES=head_tiles,
        HEADS=heads,
        SPLITS=splits,
        HEAD_DIM=head_dim,
        BLOCK_M=queries,
        BLOCK_D=block_dim,
        BLOCK_N=64 if block_dim * query.element_size() <= 256 else 32,
        BLOCK_TOKENS=block_tokens,
        ALIBI=options.slopes is not None,
        SINKS=options.sinks is not None,
        num_warps=4,
        num_stages=5,  # two of them go to looking up blocks
    )
    if splits > 1:
        _join_kernel[(heads, requests)](
            workspace.mixed,
            workspace.weight,
            options.sinks,
            out,
            *out.stride()[:2],
            HEADS=heads,
            SPLITS=splits,
            BLOCK_S=triton.next_power_of_2(splits),
            HEAD_DIM=head_dim,
            BLOCK_D=block_dim,
            SINKS=options.sinks is not None,
            num_warps=8 if splits > 32 else 4,
        )
    return out


# Slices of a step's arrays begin anywhere: no kernel of its own for those that begin at a multiple of 16 bytes.
@triton.jit(do_not_specialize=["table_stride"], do_not_specialize_on_alignment=["tables", "lengths"])
def _decode_kernel(
    query,
    keys,
    values,
    tables,
    lengths,
    slopes,
    sinks,
    out,
    split_mixed,
    split_weight,
    query_stride,
    query_head_stride,
    block_stride,
    token_stride,
    head_stride,
    out_stride,
    out_head_stride,
    table_stride,
    factor,
    CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    SHARED: tl.constexpr,
    HEAD_TILES: tl.constexpr,
    HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
):
    kv_head = tl.program_id(0) // HEAD_TILES
    split = tl.program_id(1)
    request = tl.program_id(2).to(tl.int64)
    member = tl.program_id(0) % HEAD_TILES * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = member < SHARED
    head = kv_head * SHARED + member
    dims = tl.arange(0, BLOCK_D)
    stored = valid[:, None] & (dims < HEAD_DIM)[None, :]

    length = tl.load(lengths + request)
    begin = tl.maximum(length - WINDOW, 0) // BLOCK_N * BLOCK_N if WINDOW > 0 else 0
    tiles = tl.cdiv(length - begin, BLOCK_N)
    first = begin + tiles * split // SPLITS * BLOCK_N
    end = tl.minimum(begin + tiles * (split + 1) // SPLITS * BLOCK_N, length)

    asked = tl.load(
        query + request * query_stride + head[:, None] * query_head_stride + dims[None, :],
        mask=stored,
        other=0.0,
    )
    slope = tl.zeros([BLOCK_M], tl.float32)
    if ALIBI:
        slope = tl.load(slopes + head, mask=valid, other=0.0).to(tl.float32) * 1.4426950408889634
    best, total, mixed = attend_tiles(
        tl.full([BLOCK_M], float("-inf"), tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
        tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
        asked,
        tl.zeros([BLOCK_M], tl.int32) + (length - 1),
        slope,
        keys + kv_head * head_stride,
        values + kv_head * head_stride,
        tables + request * table_stride,
        first,
        end,
        block_stride,
        token_stride,
        factor,
        HEAD_DIM,
        BLOCK_D,
        BLOCK_N,
        BLOCK_TOKENS,
        CAP,
        WINDOW,
        ALIBI,
        True,
    )
    if SPLITS == 1:
        result = normalised(best, total, mixed, sinks, head, valid, SINKS)
        target = out + request * out_stride + head[:, None] * out_head_stride + dims[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=stored)
    else:
        row = (request * HEADS + head) * SPLITS + split
        result = normalised(best, total, mixed, sinks, head, valid, False)
        if first < end:  # a part without tokens leaves its weight only; the join doesn't read the rest
            tl.store(split_mixed + row[:, None] * HEAD_DIM + dims[None, :], result, mask=stored)
        tl.store(split_weight + row, best + tl.log2(total), mask=valid)


@triton.jit
def _join_kernel(
    split_mixed,
    split_weight,
    sinks,
    out,
    out_stride,
    out_head_stride,
    HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SINKS: tl.constexpr,
):
    head = tl.program_id(0)
    request = tl.program_id(1).to(tl.int64)
    split = tl.arange(0, BLOCK_S)
    dims = tl.arange(0, BLOCK_D)
    row = (request * HEADS + head) * SPLITS + split
    weight = tl.load(split_weight + row, mask=split < SPLITS, other=float("-inf"))
    used = weight > float("-inf")
    mixed = tl.load(
        split_mixed + row[:, None] * HEAD_DIM + dims[None, :],
        mask=used[:, None] & (dims < HEAD_DIM)[None, :],
        other=0.0,
    )
    top = tl.max(weight, 0)
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
        top = tl.maximum(top, sink)
    top = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.exp2(weight - top)
    total = tl.sum(weight, 0)
    if SINKS:
        total += tl.exp2(sink - top)
    result = tl.sum(mixed * weight[:, None], 0) / tl.where(total == 0, 1.0, total)
    target = out + request * out_stride + head * out_head_stride + dims
    tl.store(target, result.to(out.dtype.element_ty), mask=dims < HEAD_DIM)
