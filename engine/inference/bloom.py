"""BLOOM over the paged KV cache: its modelling code has no attention interface, so its attention is replaced.

BLOOM (Scao et al. 2022) has no position embedding: ALiBi (Press et al. 2022) adds slope · key position to each
score instead. A softmax is invariant to a constant added to a whole row, so positions may count from the first key.
Everything but the attention itself is transformers' own.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import torch

from engine.layers.attention import IMPLEMENTATION, paged_attention


def serve_bloom(model: Any) -> None:
    """Make the attention layers of a loaded BLOOM model follow the engine's step plan."""
    from transformers.models.bloom.modeling_bloom import BloomAttention

    model.config._attn_implementation = IMPLEMENTATION  # so that no mask is built
    for module in model.modules():
        if isinstance(module, BloomAttention):
            module.alibi_slopes = alibi_slopes(module.num_heads).to(model.device)
            module.forward = MethodType(_forward, module)


def alibi_slopes(heads: int) -> torch.Tensor:
    """ALiBi's slopes [heads]: a geometric sequence from 2^(-8/n) for the largest power of two n ≤ heads, the rest
    taken from every second slope of the sequence for 2n (Press et al. 2022, as published with their code)."""
    power = 2 ** math.floor(math.log2(heads))
    base = 2.0 ** (-8.0 / power)
    between = 2.0 ** (-4.0 / power)
    slopes = [base ** (i + 1) for i in range(power)]
    slopes += [between ** (2 * i + 1) for i in range(heads - power)]
    return torch.tensor(slopes, dtype=torch.float32)


def _forward(
    self: Any, hidden_states: torch.Tensor, residual: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    """Attention of one layer on a packed step: hidden_states and residual [1, tokens, hidden]."""
    fused = self.query_key_value(hidden_states)
    query, key, value = fused.unflatten(-1, (self.num_heads, 3, self.head_dim)).permute(3, 0, 2, 1, 4)
    context, _weights = paged_attention(
        self, query, key, value, None, scaling=self.inv_norm_factor, alibi_slopes=self.alibi_slopes
    )
    return residual + self.dense(context.flatten(2)), None
