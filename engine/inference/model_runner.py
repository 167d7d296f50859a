"""Runs one batch on the device: packs its tokens, lets the model write and read the paged cache, returns logits."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import Any

import torch

from engine import kernels
from engine.batch import BatchChunk, SchedulerConfig
from engine.errors import InputError
from engine.kernels import cpu_decode
from engine.layers.attention import PagedCache, PrefillChunk, StepPlan, attending, block_rows
from engine.layers.fused_layer import fuse_layers
from engine.layers.linear import prepare_products
from engine.models.load import free_bytes
from engine.profile.model_shape import ModelShape

BLOCK_TOKENS = 16  # of a KV block
_MOST_CACHE_TOKENS_CPU = 32_768  # more than the batch of a CPU ever fills
_FREE_MEMORY_SHARE = {"cpu": 0.3, "cuda": 0.8}  # for the KV cache
_CPU_ROWS = 4


class ModelRunner:
    """A model with its KV cache on a device."""

    def __init__(
        self,
        model: Any,
        shape: ModelShape,
        config: SchedulerConfig,
        device: str,
        dtype: torch.dtype,
        weights: str | None = None,
    ) -> None:
        fuse_layers(model)
        if device == "cpu" or weights:
            prepare_products(model, weights)
        self.model = model
        self.config = config
        self.device = torch.device(device)
        size = (config.num_blocks, config.block_tokens, shape.kv_heads, shape.head_dim)

        def blocks() -> list[torch.Tensor]:
            return [_zeros(size, dtype, self.device) for _ in range(shape.layers)]

        self.cache = PagedCache(keys=blocks(), values=blocks())
        self.kernel = None
        if device == "cpu":
            shared = shape.attention_heads // shape.kv_heads
            self.kernel = cpu_decode.decode_kernel(shared, shape.head_dim, config.block_tokens, dtype)
        self.device_steps: Any = None
        if kernels.available(self.device):
            from engine.inference.cuda_graphs import DeviceSteps

            self.device_steps = DeviceSteps(model, self.cache, config, shape)

    @torch.inference_mode()
    def run(self, chunks: Sequence[BatchChunk]) -> torch.Tensor:
        """Run all chunks in one forward pass.

        Returns:
            Logits [Σ sample, vocab] after the last `sample` tokens of each chunk, in the order of the chunks; only
            these positions are projected to the vocabulary.
        """
        # In the packed batch decodes come first, by length: those that attend together are neighbours.
        order = sorted(range(len(chunks)), key=lambda i: _packing_key(chunks[i]))
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        size = self.config.block_tokens
        ends = [0] * len(chunks)
        for i in order:
            chunk = chunks[i]
            tokens += chunk.token_ids
            places = range(chunk.start, chunk.start + len(chunk.token_ids))
            positions += places
            slots += [chunk.block_table[place // size] * size + place % size for place in places]
            ends[i] = len(tokens)
        wanted = [
            row for chunk, end in zip(chunks, ends, strict=True) for row in range(end - chunk.sample, end)
        ]
        packed = [chunks[i] for i in order]
        if self.device_steps is not None:
            found: torch.Tensor = self.device_steps.run(packed, tokens, positions, slots, wanted)
            return found
        with attending(self._plan(packed, slots)):
            output = self.model(
                input_ids=self._rows(tokens).unsqueeze(0),
                position_ids=self._rows(positions).unsqueeze(0),
                logits_to_keep=self._rows(wanted),
                use_cache=False,
            )
        logits: torch.Tensor = output.logits[0, : len(wanted)]
        return logits

    def _rows(self, numbers: list[int]) -> torch.Tensor:
        """The numbers as a tensor; on a CPU padded with zeros to a row count at which its matrix products are fast.

        A product with 2, 3 or 7 rows takes up to 40 % longer than one with 4 or 8 (oneMKL 2024.2, AVX-512). Rows are
        independent of each other, and the attention ignores the padded ones.
        """
        count = len(numbers)
        if self.device.type == "cpu" and count > 1:
            count = -(-count // _CPU_ROWS) * _CPU_ROWS
        return self._tensor(numbers + [0] * (count - len(numbers)))

    def _plan(self, packed: Sequence[BatchChunk], slots: list[int]) -> StepPlan:
        size = self.config.block_tokens
        decodes = [chunk for chunk in packed if len(chunk.token_ids) == 1]
        prefills: list[PrefillChunk] = []
        first_row = len(decodes)
        for chunk in packed[len(decodes) :]:
            count = len(chunk.token_ids)
            blocks = block_rows([chunk.block_table[: -(-(chunk.start + count) // size)]], self.device)
            prefills.append(PrefillChunk(first_row, count, chunk.start, blocks))
            first_row += count
        return StepPlan(
            self.cache,
            self._tensor(slots),
            [chunk.block_table[: chunk.start // size + 1] for chunk in decodes],
            [chunk.start for chunk in decodes],
            prefills,
            self.kernel,
        )

    def _tensor(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)


def cache_blocks(shape: ModelShape, device: str, max_running: int, tokens: int | None) -> int:
    """Number of KV blocks for `tokens` tokens; None: for a share of the memory that is free after loading.

    Raises:
        InputError: too little free memory.
    """
    free = free_bytes(device)
    usable = int(free * (1.0 if tokens else _FREE_MEMORY_SHARE[device.partition(":")[0]]))
    affordable = usable // shape.kv_bytes_per_token
    if tokens is None:
        tokens = min(affordable, max_running * shape.max_context_tokens)
        if device == "cpu":
            tokens = min(tokens, _MOST_CACHE_TOKENS_CPU)
    if affordable < max(tokens, BLOCK_TOKENS):
        short = max(tokens, BLOCK_TOKENS) * shape.kv_bytes_per_token - usable
        raise InputError(
            f"KV cache of {tokens} tokens: {short / 1e9:.1f} GB more than the {usable / 1e9:.1f} GB that are free"
        )
    return -(-tokens // BLOCK_TOKENS)


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU in huge pages that the system allocates when they are first written.

    Blocks are scattered over the cache: with pages of 4 KB, looking up their addresses takes longer than reading them.
    """
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(size) * dtype.itemsize)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(size)


def _packing_key(chunk: BatchChunk) -> tuple[bool, int]:
    decodes = len(chunk.token_ids) == 1
    return (not decodes, chunk.start if decodes else 0)
