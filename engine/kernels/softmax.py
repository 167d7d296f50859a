"""Softmax attention one tile of keys at a time, shared by decode and prefill.

The running maximum and sum of Milakov & Gimelshein 2018, as in FlashAttention (Dao et al. 2022): no row of scores is
ever whole. Scores are kept in powers of two, because a GPU has exp2 in hardware. Everything is summed in float32.

Scores are s = scaling · q·k; a soft cap makes them softcap · tanh(s / softcap) (Gemma 2); ALiBi adds
slope · (key position − query position) (Press et al. 2022); a sink is one more score per head whose value is nothing
(GPT-OSS).
"""

# mypy: disable-error-code="no-untyped-def"
# No `from __future__ import annotations`: Triton reads the annotations of its functions.

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Options:
    """Options of attention besides softmax(q·kᵀ)·v."""

    scaling: float | None = None  # none: head_dim^-1/2
    window: int | None = None  # tokens that a token sees, itself included
    softcap: float | None = None
    slopes: torch.Tensor | None = None  # ALiBi's [heads], float32
    sinks: torch.Tensor | None = None  # [heads]

    def constants(self, head_dim: int) -> dict[str, float | int]:
        """Kernel arguments: `factor` turns a product into a power of two, or with a soft cap into 2s/softcap."""
        factor = (self.scaling or head_dim**-0.5) * LOG2_E
        return {
            "factor": factor * 2 / self.softcap if self.softcap else factor,
            "CAP": self.softcap * LOG2_E if self.softcap else 0.0,
            "WINDOW": self.window or 0,
        }


PLAIN = Options()


def check(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tables: torch.Tensor, options: Options
) -> None:
    """Raise ValueError if shapes or layouts are not what the kernels read."""
    if keys.shape != values.shape or keys.stride() != values.stride():
        raise ValueError(f"keys {tuple(keys.shape)} and values {tuple(values.shape)} must be laid out alike")
    if query.shape[2] != keys.shape[3] or query.shape[1] % keys.shape[2]:
        raise ValueError(f"query {tuple(query.shape)} doesn't fit a cache {tuple(keys.shape)}")
    if query.dtype != keys.dtype or keys.dtype != values.dtype:
        raise ValueError(
            f"query, keys, values must have one type, not {query.dtype}, {keys.dtype}, {values.dtype}"
        )
    if any(part.stride(-1) != 1 for part in (query, keys, tables)):
        raise ValueError("query, cache and block tables must be contiguous in their last dimension")
    for name, part in (("slopes", options.slopes), ("sinks", options.sinks)):
        if part is not None and (part.shape != query.shape[1:2] or not part.is_contiguous()):
            raise ValueError(f"{name} must be contiguous and one per head, not {tuple(part.shape)}")


def padded(size: int) -> int:
    """Smallest power of two, 16 at least, that holds `size`: the dimensions of tl.dot."""
    return max(16, triton.next_power_of_2(size))


@triton.jit
def attend_tiles(
    best,  # [M] largest score so far, a power of two
    total,  # [M] sum of 2^(score − best)
    mixed,  # [M, BLOCK_D] sum of 2^(score − best) · value
    query,  # [M, BLOCK_D]
    positions,  # [M] position of each query
    slopes,  # [M] ALiBi's, as a power of two; read if ALIBI
    keys,  # of this head, and values likewise
    values,
    table,  # blocks of this request
    first,  # key positions first … end
    end,
    block_stride,
    token_stride,
    factor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    ALIBI: tl.constexpr,
    MASKED: tl.constexpr,  # false: every query sees every key from first, a multiple of BLOCK_N away from end
):
    """Attend a tile of queries to the keys at positions first … end; returns best, total, mixed."""
    dims = tl.arange(0, BLOCK_D)
    for tile in range(first, end, BLOCK_N):
        columns = tile + tl.arange(0, BLOCK_N)
        block = tl.load(table + columns // BLOCK_TOKENS, mask=columns < end, other=0).to(tl.int64)
        rows = block * block_stride + (columns % BLOCK_TOKENS) * token_stride
        offsets = rows[:, None] + dims[None, :]
        if MASKED or HEAD_DIM != BLOCK_D:
            exists = (columns < end)[:, None] & (dims < HEAD_DIM)[None, :]
            key = tl.load(keys + offsets, mask=exists, other=0.0)
            value = tl.load(values + offsets, mask=exists, other=0.0)
        else:
            key = tl.load(keys + offsets)
            value = tl.load(values + offsets)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * factor
        if CAP > 0:
            scores = CAP * (1 - 2 / (1 + tl.exp2(scores)))  # tanh that can't overflow
        if ALIBI:
            scores += slopes[:, None] * (columns[None, :] - positions[:, None])
        if MASKED:
            seen = columns[None, :] <= positions[:, None]
            if WINDOW > 0:
                seen = seen & (columns[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, 1))
        anchor = new_best
        if MASKED and WINDOW > 0:  # a query may see nothing of a tile, and nothing yet
            anchor = tl.where(new_best == float("-inf"), 0.0, new_best)
        shrink = tl.exp2(best - anchor)
        weights = tl.exp2(scores - anchor[:, None])
        total = total * shrink + tl.sum(weights, 1)
        mixed = tl.dot(weights.to(value.dtype), value, acc=mixed * shrink[:, None], input_precision="ieee")
        best = new_best
    return best, total, mixed


@triton.jit
def normalised(best, total, mixed, sinks, heads, valid, SINKS: tl.constexpr):
    """mixed / total, with the sinks of `heads` [M]; zero for rows that attend to nothing."""
    scale = tl.full(best.shape, 1.0, tl.float32)
    if SINKS:
        sink = tl.load(sinks + heads, mask=valid, other=0.0).to(tl.float32) * 1.4426950408889634
        top = tl.maximum(best, sink)
        scale = tl.exp2(best - top)
        total = total * scale + tl.exp2(sink - top)
    return mixed * (scale / tl.where(total == 0, 1.0, total))[:, None]
