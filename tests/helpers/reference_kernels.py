"""What the kernels compute, written down in plain torch. Triton must be there: `Options` lies beside the kernels."""

from __future__ import annotations

import torch

from engine.kernels.softmax import PLAIN, Options


def reference_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor, options: Options
) -> torch.Tensor:
    """Attention written down plainly, in float32.

    query [tokens, heads, head_dim] at `positions` [tokens], key and value [length, kv_heads, head_dim] at positions
    0 … length − 1; returns [tokens, heads, head_dim] of query's type.
    """
    shared = query.shape[1] // key.shape[1]
    key, value = (part.float().repeat_interleave(shared, dim=1) for part in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.float(), key) * (options.scaling or query.shape[2] ** -0.5)
    if options.softcap:
        scores = options.softcap * (scores / options.softcap).tanh()
    distance = torch.arange(len(key), device=query.device) - positions[:, None]
    if options.slopes is not None:
        scores = scores + options.slopes.float()[:, None, None] * distance
    hidden = distance > 0
    if options.window:
        hidden |= distance <= -options.window
    scores = scores.masked_fill(hidden, float("-inf"))
    if options.sinks is not None:
        sink = options.sinks.float()[:, None, None].expand(-1, len(query), 1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = scores.softmax(dim=-1)[..., : len(key)]
    return torch.einsum("hqk,khd->qhd", weights, value).to(query.dtype)


def gathered(cache: torch.Tensor, table: torch.Tensor, length: int) -> torch.Tensor:
    """The first `length` tokens of the blocks in `table`, [length, kv_heads, head_dim]."""
    return cache[table.long()].flatten(0, 1)[:length]


def reference_paged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    context_lengths: torch.Tensor,
    options: Options = PLAIN,
) -> torch.Tensor:
    """What `paged_decode` returns, request by request in plain torch."""
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    for request, length in enumerate(context_lengths.tolist()):
        if length:
            out[request] = reference_attention(
                query[request : request + 1],
                gathered(keys, block_tables[request], length),
                gathered(values, block_tables[request], length),
                torch.tensor([length - 1], device=query.device),
                options,
            )[0]
    return out


def reference_paged_prefill(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    first_rows: torch.Tensor,
    starts: torch.Tensor,
    options: Options = PLAIN,
) -> torch.Tensor:
    """What `paged_prefill` returns, chunk by chunk in plain torch; rows of no chunk are 0."""
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    rows = first_rows.tolist()
    for chunk, start in enumerate(starts.tolist()):
        first, end = rows[chunk : chunk + 2]
        length = start + end - first
        out[first:end] = reference_attention(
            query[first:end],
            gathered(keys, block_tables[chunk], length),
            gathered(values, block_tables[chunk], length),
            torch.arange(start, length, device=query.device),
            options,
        )
    return out


def reference_write_cache(
    key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor
) -> None:
    """What `write_cache` does, in plain torch."""
    real = slots >= 0
    keys.flatten(0, 1)[slots[real].long()] = key[real].to(keys.dtype)
    values.flatten(0, 1)[slots[real].long()] = value[real].to(values.dtype)
