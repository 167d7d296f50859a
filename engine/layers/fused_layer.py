"""The decoder layer of the Llama family in as few operations as possible.

A step of a small model on a CPU spends much of its time between the products: transformers' layer makes some 60 calls
where 20 suffice. Replaced are layers that compute exactly

    h = x + o(attention(rotate(q, k), v)),  (q, k, v) = qkv(norm(x))
    x = h + down(silu(gate) · up),          (gate, up) = gate_up(norm(h))

with RMSNorm (Zhang & Sennrich 2019) and rotary positions (Su et al. 2021): one product for q, k and v, one for gate
and up, one rotation for q and k. Everything around the layers is transformers' own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import rms_norm, silu

from engine.layers.attention import Attention, attend

# Their layers are the equations above; q_norm and k_norm are Qwen3's.
_CLASSES = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")


def fuse_layers(model: Any) -> None:
    """Replace the decoder layers of a model of this family, one by one; any other model is not changed."""
    for module in list(model.modules()):
        layers = getattr(module, "layers", None)
        if isinstance(layers, torch.nn.ModuleList) and all(_is_served(layer) for layer in layers):
            for i, layer in enumerate(layers):
                layers[i] = FusedLayer(layer)
            module.rotary_emb = _Rotation(module.rotary_emb)


def _is_served(layer: Any) -> bool:
    return type(layer).__name__ in _CLASSES and type(layer.mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")


class FusedLayer(torch.nn.Module):
    """One decoder layer, built from transformers'."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = _stacked(attention.q_proj, attention.k_proj, attention.v_proj)
        self.o = attention.o_proj
        self.gate_up = _stacked(mlp.gate_proj, mlp.up_proj)
        self.down = mlp.down_proj
        self.attention_norm = layer.input_layernorm
        self.mlp_norm = layer.post_attention_layernorm
        self.query_norm = getattr(attention, "q_norm", None)
        self.key_norm = getattr(attention, "k_norm", None)
        self.head_dim = attention.head_dim
        self.heads = attention.q_proj.out_features // attention.head_dim
        self.kv_heads = attention.k_proj.out_features // attention.head_dim
        window = getattr(attention, "sliding_window", None)
        if type(attention).__name__ == "MistralAttention":
            window = attention.config.sliding_window
        self.how = Attention(attention.layer_idx, attention.scaling, window)
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Output of the layer; hidden_states [1, tokens, hidden], the rotation from `_Rotation`."""
        assert position_embeddings is not None
        rows = hidden_states[0]
        mixed = self.qkv(_normalized(self.attention_norm, rows)).view(len(rows), -1, self.head_dim)
        asked, value = mixed.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        if self.query_norm is not None:
            query, key = asked.split((self.heads, self.kv_heads), dim=1)
            asked = torch.cat((_normalized(self.query_norm, query), _normalized(self.key_norm, key)), dim=1)
        query, key = _rotated(asked, *position_embeddings).split((self.heads, self.kv_heads), dim=1)
        context = attend(self.how, query, key, value)
        rows = self.o(context.flatten(1)).add_(rows)
        gate, up = self.gate_up(_normalized(self.mlp_norm, rows)).chunk(2, dim=-1)
        return self.down(silu(gate).mul_(up)).add_(rows).unsqueeze(0)


class _Rotation(torch.nn.Module):
    """A rotary embedding that gives, once a step, what every layer's rotation is made of."""

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """cosines and sines [tokens, 1, head_dim], the first half of the sines negated."""
        cosines, sines = (part[0].unsqueeze(1) for part in self.embedding(*args, **kwargs))
        left, right = sines.chunk(2, dim=-1)
        return cosines, torch.cat((-left, right), dim=-1)


def _rotated(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotate [tokens, heads, head_dim] in the planes (i, i + head_dim/2)."""
    return (heads * cosines).addcmul_(heads.roll(heads.shape[-1] // 2, -1), sines)


def _normalized(norm: Any, rows: torch.Tensor) -> torch.Tensor:
    """RMSNorm over the last dimension."""
    weight, size = norm.weight, norm.weight.shape
    if rows.is_cuda or rows.dtype != torch.float32:
        return rms_norm(rows, size, weight, norm.variance_epsilon)
    # √(mean x² + ε) = hypot(‖x‖, √(size·ε)) / √size: half the time of torch's own on a few rows.
    length = torch.linalg.vector_norm(rows, 2, -1, keepdim=True)
    length = length.mul_(size[0] ** -0.5).hypot_(length.new_tensor(norm.variance_epsilon**0.5))
    return (rows / length).mul_(weight)


def _stacked(*linears: torch.nn.Linear) -> torch.nn.Linear:
    """One linear layer with the outputs of several after each other."""
    weight = torch.cat([linear.weight for linear in linears])
    with torch.device("meta"):
        stacked = torch.nn.Linear(weight.shape[1], len(weight), bias=linears[0].bias is not None)
    stacked.weight = torch.nn.Parameter(weight, requires_grad=False)
    if linears[0].bias is not None:
        stacked.bias = torch.nn.Parameter(torch.cat([linear.bias for linear in linears]), requires_grad=False)
    return stacked
