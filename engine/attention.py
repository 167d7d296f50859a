"""Attention over a paged KV cache, behind transformers' own modelling code.

A step's tokens are packed into one sequence [1, tokens]; transformers calls the function registered here in each
layer instead of its own attention. New keys and values are written to their slots in the cache; then decoding
requests attend together, grouped by length so that little is padded, and each prefill chunk attends to its
context and causally to itself. softmax(QKᵀ/√d)V as in Vaswani et al. 2017; grouped queries (Ainslie et al. 2023)
share keys and values without repeating them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

IMPLEMENTATION = "flywheel_paged"
_GROUP_WASTE = 1.25  # a group of decoding requests may read this much more than its members need
# What a group gathers on a CPU stays in its second-level cache, and in memory that the allocator keeps.
_GROUP_BYTES_CPU = 1 << 20


@dataclass
class PagedCache:
    """Keys and values of every layer, each [blocks, block_tokens, kv_heads, head_dim]."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]


@dataclass
class DecodeGroup:
    """Decoding requests of similar length; each row of the packed batch asks for one token."""

    rows: torch.Tensor  # [requests] positions in the packed batch
    blocks: torch.Tensor  # [requests, blocks] padded with block 0
    positions: torch.Tensor  # [requests] position of the asking token
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)  # by sliding window


@dataclass
class PrefillChunk:
    """Consecutive tokens of one request: rows first_row … first_row + tokens of the packed batch."""

    first_row: int
    tokens: int
    start: int  # tokens in the cache before the chunk
    blocks: torch.Tensor  # [blocks]
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)


@dataclass
class StepPlan:
    """Where each token of a packed step is written and what it attends to."""

    cache: PagedCache
    slots: torch.Tensor  # [tokens] slot of each token: block · block_tokens + offset
    decode_groups: list[DecodeGroup]
    prefill_chunks: list[PrefillChunk]


_current: ContextVar[StepPlan | None] = ContextVar("step plan", default=None)


@contextmanager
def attending(plan: StepPlan) -> Iterator[None]:
    """Make `plan` the one that the model's attention layers follow."""
    token = _current.set(plan)
    try:
        yield
    finally:
        _current.reset(token)


def group_decodes(
    rows: Sequence[int], tables: Sequence[Sequence[int]], positions: Sequence[int], cache: PagedCache
) -> list[DecodeGroup]:
    """Group decoding requests by the length of their block tables."""
    device = cache.keys[0].device
    most_blocks = len(rows) * max(map(len, tables), default=0)
    if device.type == "cpu":
        most_blocks = _GROUP_BYTES_CPU // cache.keys[0][0].nbytes
    order = sorted(range(len(rows)), key=lambda i: len(tables[i]))
    groups: list[list[int]] = []
    needed = 0  # blocks of the last group without padding
    for i in order:
        length = len(tables[i])
        padded = length * (len(groups[-1]) + 1) if groups else 0
        if groups and padded <= min(most_blocks, _GROUP_WASTE * (needed + length)):
            groups[-1].append(i)
            needed += length
        else:
            groups.append([i])
            needed = length
    result = []
    for members in groups:
        width = len(tables[members[-1]])
        blocks = [list(tables[i]) + [0] * (width - len(tables[i])) for i in members]
        result.append(
            DecodeGroup(
                rows=torch.tensor([rows[i] for i in members], device=device),
                blocks=torch.tensor(blocks, device=device),
                positions=torch.tensor([positions[i] for i in members], device=device),
            )
        )
    return result


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    alibi_slopes: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """One layer's attention of a packed step; the signature is that of transformers' `AttentionInterface`.

    query [1, heads, tokens, head_dim], key and value [1, kv_heads, tokens, head_dim], alibi_slopes [heads] or none;
    returns [1, tokens, heads, head_dim].
    """
    plan = _current.get()
    if plan is None:
        raise RuntimeError("paged attention runs inside engine.attention.attending(plan) only")
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise NotImplementedError(f"{type(module).__name__}: attention soft caps and sinks are not served")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    keys, values = plan.cache.keys[layer], plan.cache.values[layer]
    q = query[0].transpose(0, 1)  # [tokens, heads, head_dim]
    real = len(plan.slots)  # the runner may have padded the batch
    keys.flatten(0, 1)[plan.slots] = key[0, :, :real].transpose(0, 1)
    values.flatten(0, 1)[plan.slots] = value[0, :, :real].transpose(0, 1)
    out = torch.zeros_like(q)
    for group in plan.decode_groups:
        out[group.rows] = _attend_decodes(
            q[group.rows], keys, values, group, scaling, sliding_window, alibi_slopes
        )
    for chunk in plan.prefill_chunks:
        rows = slice(chunk.first_row, chunk.first_row + chunk.tokens)
        out[rows] = _attend_chunk(q[rows], keys, values, chunk, scaling, sliding_window, alibi_slopes)
    return out.unsqueeze(0), None


def _attend_decodes(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    group: DecodeGroup,
    scaling: float | None,
    window: int | None,
    slopes: torch.Tensor | None,
) -> torch.Tensor:
    requests, heads, head_dim = query.shape
    kv_heads = keys.shape[2]
    if window not in group.masks:
        length = group.blocks.shape[1] * keys.shape[1]
        group.masks[window] = _visible(group.positions.view(-1, 1, 1, 1), length, window, slopes, query)
    # The queries that share a key head take the place of query positions: nothing is repeated.
    out = scaled_dot_product_attention(
        query.view(requests, kv_heads, heads // kv_heads, head_dim),
        keys[group.blocks].flatten(1, 2).transpose(1, 2),
        values[group.blocks].flatten(1, 2).transpose(1, 2),
        attn_mask=group.masks[window],
        scale=scaling,
    )
    return out.reshape(requests, heads, head_dim)


def _attend_chunk(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    chunk: PrefillChunk,
    scaling: float | None,
    window: int | None,
    slopes: torch.Tensor | None,
) -> torch.Tensor:
    length = chunk.start + chunk.tokens
    plain = chunk.start == 0 and slopes is None and (window is None or length <= window)
    if window not in chunk.masks:
        positions = torch.arange(chunk.start, length, device=query.device).view(-1, 1)
        chunk.masks[window] = None if plain else _visible(positions, length, window, slopes, query)
    out = scaled_dot_product_attention(
        query.transpose(0, 1).unsqueeze(0),
        keys[chunk.blocks].flatten(0, 1)[:length].transpose(0, 1).unsqueeze(0),
        values[chunk.blocks].flatten(0, 1)[:length].transpose(0, 1).unsqueeze(0),
        attn_mask=chunk.masks[window],
        is_causal=plain,
        scale=scaling,
        enable_gqa=query.shape[1] != keys.shape[2],
    )
    return out[0].transpose(0, 1)


def _visible(
    positions: torch.Tensor,
    length: int,
    window: int | None,
    slopes: torch.Tensor | None,
    like: torch.Tensor,
) -> torch.Tensor:
    """Additive mask [..., length]: -inf where a token at `positions` may not look, else 0 or ALiBi's bias.

    With slopes [heads] the mask has the heads before its last two dimensions.
    """
    columns = torch.arange(length, device=like.device)
    allowed = columns <= positions
    if window is not None:
        allowed &= columns > positions - window
    if slopes is None:
        bias = torch.zeros(allowed.shape, dtype=like.dtype, device=like.device)
    else:
        bias = (
            (slopes[:, None, None] * columns)
            .to(like.dtype)
            .expand(*allowed.shape[:-3], -1, *allowed.shape[-2:])
        )
    return bias.masked_fill(~allowed, float("-inf"))


# No mask function is registered under this name, so transformers builds none.
AttentionInterface.register(IMPLEMENTATION, paged_attention)
