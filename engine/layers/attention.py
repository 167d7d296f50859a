"""Attention over a paged KV cache, behind transformers' own modelling code.

A step's tokens are packed into one sequence [1, tokens]; each layer of transformers calls the function registered here
instead of its own attention. New keys and values are written to their slots in the cache. Then all decoding requests
attend together, by a compiled kernel or by torch, which takes them in groups of similar length to limit padding, and
each prefill chunk attends to its context and causally to itself. softmax(QKᵀ/√d)V as in Vaswani et al. 2017; grouped
queries (Ainslie et al. 2023) share keys and values without repeating them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from engine.kernels import cpu_decode
from engine.layers.linear import has_packed_products, product

IMPLEMENTATION = "flywheel_paged"
_GROUP_WASTE = 1.25  # a group of decoding requests may read this much more than its members need
# What a group gathers on a CPU stays in its second-level cache, and in memory that the allocator keeps.
_GROUP_BYTES_CPU = 2 << 20
_TILE = 128  # queries of a prefill chunk that attend together on a CPU


@dataclass
class PagedCache:
    """Keys and values of every layer, each [blocks, block_tokens, kv_heads, head_dim]."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]


@dataclass
class DecodeGroup:
    """Decoding requests of similar length in consecutive rows of the packed batch, one token each."""

    first_row: int
    blocks: torch.Tensor | slice  # as `block_rows` gives them
    positions: torch.Tensor  # [requests] position of the asking token
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)  # by sliding window


@dataclass
class PrefillChunk:
    """Consecutive tokens of one request: rows first_row … first_row + tokens of the packed batch."""

    first_row: int
    tokens: int
    start: int  # tokens in the cache before the chunk
    blocks: torch.Tensor | slice  # as `block_rows` gives them
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)


@dataclass
class StepPlan:
    """Slots and attention of each token of a packed step: decodes first, then prefill chunks."""

    cache: PagedCache
    slots: torch.Tensor  # [tokens] slot of each token: block · block_tokens + offset
    decode_tables: list[Sequence[int]]  # by length
    decode_positions: list[int]
    prefill_chunks: list[PrefillChunk]
    kernel: cpu_decode.Kernel | None = None  # for the decodes

    @cached_property
    def decode_groups(self) -> list[DecodeGroup]:
        """Decodes for torch, grouped by length."""
        return group_decodes(self.decode_tables, self.decode_positions, self.cache)

    @cached_property
    def decode_arrays(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Decodes for the kernel: tables [decodes, blocks] and lengths [decodes], int32."""
        lengths = torch.tensor(self.decode_positions, dtype=torch.int32).add_(1)
        return torch.tensor(padded_tables(self.decode_tables), dtype=torch.int32), lengths

    def attend(
        self, how: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """See `attend`."""
        keys, values = self.cache.keys[how.layer], self.cache.values[how.layer]
        real = len(self.slots)  # the runner may have padded the batch
        if real < len(key):
            key, value = key[:real], value[:real]
        keys.flatten(0, 1).index_copy_(0, self.slots, key)
        values.flatten(0, 1).index_copy_(0, self.slots, value)
        decodes = len(self.decode_positions)
        if decodes and decodes == len(query):
            return self._attend_decodes(how, query, keys, values)
        out = torch.zeros_like(query, memory_format=torch.contiguous_format)
        if decodes:
            out[:decodes] = self._attend_decodes(how, query[:decodes], keys, values)
        for chunk in self.prefill_chunks:
            rows = slice(chunk.first_row, chunk.first_row + chunk.tokens)
            out[rows] = _attend_chunk(how, query[rows], keys, values, chunk)
        return out

    def _attend_decodes(
        self, how: Attention, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        if self.kernel is not None and how.softcap is None:
            arrays = self.decode_arrays
            return cpu_decode.paged_decode(
                self.kernel, query, keys, values, *arrays, how.scaling, how.window, how.slopes
            )
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for group in self.decode_groups:
            rows = slice(group.first_row, group.first_row + len(group.positions))
            out[rows] = _attend_group(how, query[rows], keys, values, group)
        return out


@dataclass(frozen=True)
class Attention:
    """Parameters of an attention layer besides queries, keys and values."""

    layer: int
    scaling: float | None = None
    window: int | None = None  # tokens that a token sees, itself included
    softcap: float | None = None  # scores s become softcap·tanh(s / softcap)
    slopes: torch.Tensor | None = None  # ALiBi's [heads]


class AttentionPlan(Protocol):
    """Computes the attention of one step: `StepPlan` in torch, `cuda_graphs.DevicePlan` in Triton."""

    def attend(
        self, how: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """See `engine.layers.attention.attend`."""
        ...


_current: ContextVar[AttentionPlan | None] = ContextVar("step plan", default=None)


@contextmanager
def attending(plan: AttentionPlan) -> Iterator[None]:
    """Context in which the model's attention layers follow `plan`."""
    token = _current.set(plan)
    try:
        yield
    finally:
        _current.reset(token)


def group_decodes(
    tables: Sequence[Sequence[int]], positions: Sequence[int], cache: PagedCache
) -> list[DecodeGroup]:
    """Split decoding requests, sorted by the length of their block tables, into groups that are computed together."""
    device = cache.keys[0].device
    most_blocks = len(tables) * max(map(len, tables), default=0)
    if device.type == "cpu":
        most_blocks = _GROUP_BYTES_CPU // cache.keys[0][0].nbytes
    firsts: list[int] = []
    needed = 0  # blocks of the last group without padding
    for row, table in enumerate(tables):
        padded = len(table) * (row + 1 - firsts[-1]) if firsts else 0
        if firsts and padded <= min(most_blocks, _GROUP_WASTE * (needed + len(table))):
            needed += len(table)
        else:
            firsts.append(row)
            needed = len(table)
    groups = []
    for first, end in pairwise([*firsts, len(tables)]):
        groups.append(
            DecodeGroup(
                first_row=first,
                blocks=block_rows(tables[first:end], device),
                positions=torch.tensor(positions[first:end], device=device),
            )
        )
    return groups


def block_rows(tables: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor | slice:
    """Block tables [requests, blocks], padded; a single one with consecutive blocks as a slice, which needs no copy."""
    only = tables[0]
    if len(tables) == 1 and only[-1] - only[0] == len(only) - 1 and list(only) == sorted(only):
        return slice(only[0], only[-1] + 1)
    return torch.tensor(padded_tables(tables), device=device)


def padded_tables(tables: Sequence[Sequence[int]]) -> list[list[int]]:
    """Block tables, padded with block 0 to the length of the longest."""
    width = max(map(len, tables), default=1)
    return [[*table, *[0] * (width - len(table))] for table in tables]


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    alibi_slopes: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """One layer's attention of a packed step; the signature is that of transformers' `AttentionInterface`.

    query [1, heads, tokens, head_dim], key and value [1, kv_heads, tokens, head_dim], alibi_slopes [heads] or none;
    returns [1, tokens, heads, head_dim].
    """
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    out = attend(
        Attention(layer, scaling, sliding_window, softcap, alibi_slopes),
        *(part[0].transpose(0, 1) for part in (query, key, value)),
    )
    return out.unsqueeze(0), None


def attend(how: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Write the step's new keys and values, then attend.

    query and result [tokens, heads, head_dim]; key and value [tokens, kv_heads, head_dim].
    """
    plan = _current.get()
    if plan is None:
        raise RuntimeError("paged attention runs inside engine.layers.attention.attending(plan) only")
    return plan.attend(how, query, key, value)


def _attend_group(
    how: Attention, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: DecodeGroup
) -> torch.Tensor:
    requests, heads, head_dim = query.shape
    kv_heads = keys.shape[2]
    key, value = (_gather(cache, group.blocks).transpose(1, 2) for cache in (keys, values))
    if how.window not in group.masks:
        mask = _visible(group.positions.view(-1, 1, 1, 1), key.shape[2], how, query)
        if how.slopes is not None:  # a bias for each head
            mask = mask.reshape(requests, kv_heads, heads // kv_heads, -1)
        group.masks[how.window] = mask
    # The queries that share a key head take the place of query positions: nothing is repeated.
    query = query.reshape(requests, kv_heads, heads // kv_heads, head_dim)
    out = _softmax_attention(how, query, key, value, group.masks[how.window])
    return out.reshape(requests, heads, head_dim)


def _attend_chunk(
    how: Attention, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, chunk: PrefillChunk
) -> torch.Tensor:
    length = chunk.start + chunk.tokens
    key, value = (_gather(cache, chunk.blocks)[0, :length] for cache in (keys, values))
    everything = how.slopes is None and how.softcap is None and (how.window is None or length <= how.window)
    if everything and length >= 2 * _TILE and has_packed_products(query):
        return _attend_in_tiles(query * (how.scaling or query.shape[-1] ** -0.5), key, value, chunk.start)
    plain = everything and chunk.start == 0
    if how.window not in chunk.masks:
        positions = torch.arange(chunk.start, length, device=query.device).view(-1, 1)
        chunk.masks[how.window] = None if plain else _visible(positions, length, how, query)
    query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in (query, key, value))
    out = _softmax_attention(
        how,
        query,
        key,
        value,
        chunk.masks[how.window],
        is_causal=plain,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[0].transpose(0, 1)


def _attend_in_tiles(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
    """Causal attention of a chunk by oneDNN's products, _TILE queries at a time so that little above the diagonal is
    computed; on a CPU about twice as fast as torch's own. query [tokens, heads, head_dim] is scaled already."""
    tokens, heads, head_dim = query.shape
    shared = heads // key.shape[1]
    out = torch.empty_like(query)
    ahead = torch.full((_TILE, _TILE), float("-inf"), dtype=query.dtype).triu(1).unsqueeze(1)
    for kv_head in range(key.shape[1]):
        its_heads = slice(kv_head * shared, (kv_head + 1) * shared)
        its_keys = key[:, kv_head].contiguous()
        for first in range(0, tokens, _TILE):
            rows = slice(first, min(first + _TILE, tokens))
            count, end = rows.stop - first, start + rows.stop
            scores = product(query[rows, its_heads].reshape(-1, head_dim), its_keys[:end])
            scores = scores.view(count, shared, end)
            scores[:, :, start + first :] += ahead[:count, :, :count]
            # The product wants its second factor [out, in], in one piece.
            mixed = product(scores.softmax(-1).view(-1, end), value[:end, kv_head].t().contiguous())
            out[rows, its_heads] = mixed.view(count, shared, head_dim)
    return out


def _softmax_attention(
    how: Attention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """softmax(query·keyᵀ·scaling + mask)·value over [batch, heads, positions, head_dim]."""
    if how.softcap is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=is_causal, scale=how.scaling, enable_gqa=enable_gqa
        )
    assert mask is not None  # capped scores are always masked
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    scores = (query * (how.scaling or query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)
    scores = (scores / how.softcap).tanh() * how.softcap + mask
    return scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value


def _gather(cache: torch.Tensor, blocks: torch.Tensor | slice) -> torch.Tensor:
    """The content of blocks [requests, blocks] of a cache, [requests, tokens, kv_heads, head_dim]."""
    if isinstance(blocks, slice):
        return cache[blocks].flatten(0, 1).unsqueeze(0)
    # Whole blocks as rows: many times faster on a CPU than indexing with a matrix.
    rows = cache.flatten(1).index_select(0, blocks.flatten())
    return rows.view(len(blocks), -1, *cache.shape[2:])


def _visible(positions: torch.Tensor, length: int, how: Attention, like: torch.Tensor) -> torch.Tensor:
    """Additive mask [..., length]: -inf where a token at `positions` may not look, else 0 or ALiBi's bias.

    With slopes [heads] the mask has the heads before its last two dimensions.
    """
    columns = torch.arange(length, device=like.device)
    allowed = columns <= positions
    if how.window is not None:
        allowed &= columns > positions - how.window
    if how.slopes is None:
        bias = torch.zeros(allowed.shape, dtype=like.dtype, device=like.device)
    else:
        by_head = (how.slopes[:, None, None] * columns).to(like.dtype)
        bias = by_head.expand(*allowed.shape[:-3], -1, *allowed.shape[-2:])
    return bias.masked_fill(~allowed, float("-inf"))


# No mask function is registered under this name, so transformers builds none.
AttentionInterface.register(IMPLEMENTATION, paged_attention)
