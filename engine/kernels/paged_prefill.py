"""Attention of prefill chunks: many queries per request, causal, against what is in the paged cache.

Bound by arithmetic. Chunks of different start and length share one launch, described by cumulated lengths as in
FlashAttention-2's varlen interface (Dao 2023). The query heads that share a KV head are packed into the rows of one
tile, so that short chunks fill it too and keys are fetched once for all of them. Only tiles on the diagonal, or on a
window's edge, are masked.
"""

# mypy: disable-error-code="no-untyped-def"

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


def paged_prefill(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    first_rows: torch.Tensor,
    starts: torch.Tensor,
    most_tokens: int,
    options: Options = PLAIN,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend each chunk to its context and causally to itself; the chunk's keys and values are in the cache already.

    query, out and result [tokens, heads, head_dim]; keys, values [blocks, block_tokens, kv_heads, head_dim];
    block_tables [chunks, most_blocks] int32; first_rows [chunks + 1] int32: chunk i is rows first_rows[i] …
    first_rows[i + 1] of query (none: padding); starts [chunks] int32: tokens in the cache before the chunk;
    most_tokens: length of the longest chunk or more. Rows of no chunk are not written to `out`.

    Raises:
        ValueError: shapes do not match.
    """
    heads, head_dim = query.shape[1:]
    block_tokens, kv_heads = keys.shape[1:3]
    check(query, keys, values, block_tables, options)
    if len(first_rows) != len(starts) + 1 or len(block_tables) != len(starts):
        raise ValueError(
            f"first_rows {len(first_rows)}, starts {len(starts)}, tables {len(block_tables)} disagree"
        )
    if out is None:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
    shared = heads // kv_heads
    block_m, block_n, stages = _tiles(padded(head_dim), query.element_size())
    _prefill_kernel[(triton.cdiv(most_tokens * shared, block_m), kv_heads, len(starts))](
        query,
        keys,
        values,
        block_tables,
        first_rows,
        starts,
        options.slopes,
        options.sinks,
        out,
        *query.stride()[:2],
        *keys.stride()[:3],
        *out.stride()[:2],
        block_tables.stride(0),
        **options.constants(head_dim),
        SHARED=shared,
        HEAD_DIM=head_dim,
        BLOCK_M=block_m,
        BLOCK_D=padded(head_dim),
        BLOCK_N=block_n,
        BLOCK_TOKENS=block_tokens,
        ALIBI=options.slopes is not None,
        SINKS=options.sinks is not None,
        num_warps=8,
        num_stages=stages,
    )
    return out


def _tiles(block_dim: int, element_bytes: int) -> tuple[int, int, int]:
    """Rows, keys and pipeline stages that fit a Hopper multiprocessor's registers and 227 KiB of shared memory."""
    if element_bytes == 4:  # exact float32 has no tensor cores: small tiles
        return (64, 32, 2) if block_dim <= 64 else (32, 16, 2)
    if block_dim <= 64:
        return 128, 128, 3
    return (128, 64, 3) if block_dim <= 128 else (128, 32, 2)


# Slices of a step's arrays begin anywhere: no kernel of its own for those that begin at a multiple of 16 bytes.
@triton.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["tables", "first_rows", "starts"],
)
def _prefill_kernel(
    query,
    keys,
    values,
    tables,
    first_rows,
    starts,
    slopes,
    sinks,
    out,
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
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
):
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M  # the longest work first
    kv_head = tl.program_id(1)
    chunk = tl.program_id(2).to(tl.int64)
    chunk_row = tl.load(first_rows + chunk)
    tokens = tl.load(first_rows + chunk + 1) - chunk_row
    first_token = first_row // SHARED
    if first_token >= tokens:
        return

    packed = first_row + tl.arange(0, BLOCK_M)
    token = packed // SHARED
    head = kv_head * SHARED + packed % SHARED
    valid = token < tokens
    dims = tl.arange(0, BLOCK_D)
    stored = valid[:, None] & (dims < HEAD_DIM)[None, :]
    row = (chunk_row + token).to(tl.int64)
    asked = tl.load(
        query + row[:, None] * query_stride + head[:, None] * query_head_stride + dims[None, :],
        mask=stored,
        other=0.0,
    )
    slope = tl.zeros([BLOCK_M], tl.float32)
    if ALIBI:
        slope = tl.load(slopes + head, mask=valid, other=0.0).to(tl.float32) * 1.4426950408889634

    start = tl.load(starts + chunk)
    nearest = start + first_token  # positions of the tile's first and last query
    farthest = start + tl.minimum((first_row + BLOCK_M - 1) // SHARED, tokens - 1)
    end = farthest + 1
    position = start + token
    own_keys = keys + kv_head * head_stride
    own_values = values + kv_head * head_stride
    table = tables + chunk * table_stride
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    # Keys full … full_end are seen by every query of the tile; those before are on the window's edge.
    full = nearest * 0
    if WINDOW > 0:
        begin = tl.maximum(nearest - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
        full = tl.minimum(tl.cdiv(tl.maximum(farthest - WINDOW + 1, 0), BLOCK_N) * BLOCK_N, end)
        best, total, mixed = attend_tiles(
            best, total, mixed, asked, position, slope, own_keys, own_values, table, begin, full,
            block_stride, token_stride, factor,
            HEAD_DIM, BLOCK_D, BLOCK_N, BLOCK_TOKENS, CAP, WINDOW, ALIBI, True,
        )  # fmt: skip
    full_end = tl.maximum((nearest + 1) // BLOCK_N * BLOCK_N, full)
    best, total, mixed = attend_tiles(
        best, total, mixed, asked, position, slope, own_keys, own_values, table, full, full_end,
        block_stride, token_stride, factor,
        HEAD_DIM, BLOCK_D, BLOCK_N, BLOCK_TOKENS, CAP, WINDOW, ALIBI, False,
    )  # fmt: skip
    best, total, mixed = attend_tiles(
        best, total, mixed, asked, position, slope, own_keys, own_values, table, full_end, end,
        block_stride, token_stride, factor,
        HEAD_DIM, BLOCK_D, BLOCK_N, BLOCK_TOKENS, CAP, WINDOW, ALIBI, True,
    )  # fmt: skip
    result = normalised(best, total, mixed, sinks, head, valid, SINKS)
    target = out + row[:, None] * out_stride + head[:, None] * out_head_stride + dims[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=stored)
