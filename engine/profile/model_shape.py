"""What the size of a model means for time and memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """What the size of a model means for time and memory."""

    name: str  # "smollm2-135m"
    architecture: str  # "LlamaForCausalLM"
    parameters: int
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_context_tokens: int
    dtype: str  # "float32", "bfloat16" or "float16"
    weight_bytes: int
    kv_bytes_per_token: int
