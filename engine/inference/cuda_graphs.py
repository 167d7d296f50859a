"""Steps on a GPU: one copy for all numbers of a step, attention in Triton, decode steps as CUDA graphs.

A decode step of a large model launches some thousand kernels, each of which takes the host longer than the device;
a graph launches them at once. A graph has fixed shapes, so there is one for each of several batch sizes, captured at
its first use; unused rows of a batch write to no slot and attend to nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from engine.batch import SchedulerConfig
from engine.kernels.cache_write import write_cache
from engine.kernels.paged_decode import DecodeWorkspace, paged_decode
from engine.kernels.paged_prefill import paged_prefill
from engine.kernels.softmax import Options
from engine.layers.attention import Attention, PagedCache, attending, padded_tables
from engine.profile.model_shape import ModelShape

if TYPE_CHECKING:
    from engine.batch import BatchChunk

_LADDER = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # requests


@dataclass
class DevicePlan:
    """Slots and attention of each token of a packed step, on the device: decodes first, then chunks."""

    cache: PagedCache
    slots: torch.Tensor  # [tokens] int32, −1 for padding
    tables: torch.Tensor  # [decodes, blocks] int32
    lengths: torch.Tensor  # [decodes] int32, 0 for padding
    workspace: DecodeWorkspace | None
    chunk_tables: torch.Tensor  # [chunks, blocks] int32
    first_rows: torch.Tensor  # [chunks + 1] int32
    starts: torch.Tensor  # [chunks] int32
    longest_chunk: int

    def attend(
        self, how: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """See `engine.layers.attention.attend`."""
        keys, values = self.cache.keys[how.layer], self.cache.values[how.layer]
        options = Options(how.scaling, how.window, how.softcap, how.slopes)
        write_cache(key, value, keys, values, self.slots)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        decodes = len(self.lengths)
        if decodes:
            paged_decode(
                query[:decodes],
                keys,
                values,
                self.tables,
                self.lengths,
                options,
                out[:decodes],
                self.workspace,
            )
        if len(self.starts):
            paged_prefill(
                query,
                keys,
                values,
                self.chunk_tables,
                self.first_rows,
                self.starts,
                self.longest_chunk,
                options,
                out,
            )
        return out


@dataclass
class _Graph:
    """A captured decode step of `size` requests, and the buffers that it reads."""

    graph: torch.cuda.CUDAGraph
    numbers: torch.Tensor  # [4 · size] int32: tokens, positions, slots, lengths
    tables: torch.Tensor  # [size, most blocks] int32
    logits: torch.Tensor  # [size, vocab]


class DeviceSteps:
    """Runs packed steps of a model on a GPU."""

    def __init__(self, model: Any, cache: PagedCache, config: SchedulerConfig, shape: ModelShape) -> None:
        self.model, self.cache, self.config, self.shape = model, cache, config, shape
        self.device = cache.keys[0].device
        self.most_blocks = min(config.num_blocks, -(-shape.max_context_tokens // config.block_tokens))
        self._graphs: dict[int, _Graph] = {}
        self._pool: Any = None  # memory that the graphs share: one runs at a time

    def run(
        self,
        packed: Sequence[BatchChunk],
        tokens: list[int],
        positions: list[int],
        slots: list[int],
        wanted: list[int],
    ) -> torch.Tensor:
        """Logits [wanted, vocab] of a packed step, decodes (chunks of one token) first.

        `tokens`, `positions` and `slots` are those of its rows.
        """
        tables, starts = [chunk.block_table for chunk in packed], [chunk.start for chunk in packed]
        counts = [len(chunk.token_ids) for chunk in packed]
        decodes = counts.count(1)
        rung = next((rung for rung in _LADDER if rung >= decodes), None)
        if decodes == len(counts) and rung is not None and self.device.type == "cuda":
            return self._replay(rung, tables, starts, tokens, positions, slots, wanted)
        lengths = [start + 1 for start in starts[:decodes]]
        first_rows = [decodes]
        for count in counts[decodes:]:
            first_rows.append(first_rows[-1] + count)
        numbers = self._copied([tokens, positions, slots, wanted, lengths, first_rows, starts[decodes:]])
        token_ids, position_ids, slots_there, rows, lengths_there, first_rows_there, starts_there = numbers
        plan = DevicePlan(
            self.cache,
            slots_there,
            self._tables(tables[:decodes]),
            lengths_there,
            self._workspace(decodes) if decodes else None,
            self._tables(tables[decodes:]),
            first_rows_there,
            starts_there,
            max(counts),
        )
        return self._forward(plan, token_ids, position_ids, rows)

    def _replay(
        self,
        rung: int,
        tables: Sequence[Sequence[int]],
        starts: Sequence[int],
        tokens: list[int],
        positions: list[int],
        slots: list[int],
        wanted: list[int],
    ) -> torch.Tensor:
        captured = self._graphs.get(rung)
        if captured is None:
            captured = self._graphs[rung] = self._capture(rung)
        rest = rung - len(starts)
        zeros = [0] * rest
        rows = [
            *tokens,
            *zeros,
            *positions,
            *zeros,
            *slots,
            *[-1] * rest,
            *(start + 1 for start in starts),
            *zeros,
        ]
        here, order = self._copied([rows, wanted])
        captured.numbers.copy_(here)
        there = self._tables(tables)
        captured.tables[: len(tables), : there.shape[1]].copy_(there)
        captured.graph.replay()
        return captured.logits.index_select(0, order)

    def _capture(self, rung: int) -> _Graph:
        numbers = torch.zeros(4 * rung, dtype=torch.int32, device=self.device)
        token_ids, position_ids, slots, lengths = numbers.view(4, rung)
        slots.fill_(-1)
        tables = torch.zeros(rung, self.most_blocks, dtype=torch.int32, device=self.device)
        none = torch.zeros(0, dtype=torch.int32, device=self.device)
        plan = DevicePlan(
            self.cache, slots, tables, lengths, self._workspace(rung), none.view(0, 1), none, none, 0
        )
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are compiled and libraries set up outside of the capture
            for _ in range(2):
                self._forward(plan, token_ids, position_ids, None)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._forward(plan, token_ids, position_ids, None)
        self._pool = graph.pool()
        return _Graph(graph, numbers, tables, logits)

    def _forward(
        self,
        plan: DevicePlan,
        token_ids: torch.Tensor,
        position_ids: torch.Tensor,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        with attending(plan):
            output = self.model(
                input_ids=token_ids.unsqueeze(0),
                position_ids=position_ids.unsqueeze(0),
                logits_to_keep=0 if rows is None else rows,  # 0: all
                use_cache=False,
            )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _workspace(self, requests: int) -> DecodeWorkspace:
        shape = self.shape
        most_tokens = self.most_blocks * self.config.block_tokens
        return DecodeWorkspace.allocate(
            requests, shape.attention_heads, shape.kv_heads, shape.head_dim, most_tokens, self.device
        )

    def _tables(self, tables: Sequence[Sequence[int]]) -> torch.Tensor:
        """Block tables as one array, padded with block 0."""
        rows = padded_tables(tables)
        (flat,) = self._copied([list(itertools.chain.from_iterable(rows))])
        return flat.view(len(rows), len(rows[0]) if rows else 1)

    def _copied(self, parts: Sequence[list[int]]) -> tuple[torch.Tensor, ...]:
        """Lists of numbers as int32 on the device, by one asynchronous copy."""
        here = torch.tensor(list(itertools.chain.from_iterable(parts)), dtype=torch.int32)
        if self.device.type == "cuda":
            here = here.pin_memory()
        there = here.to(self.device, non_blocking=True)
        return there.split([len(part) for part in parts])
