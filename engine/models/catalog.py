"""Published model configurations, and the bytes and operations that follow from them.

`engine/models/catalog.json` holds what the models' own `config.json` says (layers, widths, heads, experts, latent
attention), each row with its source. From it follow parameters, bytes of weights at a precision, bytes of keys
and values per token and operations per token, which is all that a roofline needs of a model.

Parameters are counted as matrices (norms and biases are left out: under 0.1 %). A linear-attention layer keeps a
state of fixed size instead of keys and values, a sliding-window layer at most its window, a latent-attention (MLA)
layer one compressed vector for all heads.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from engine.errors import InputError
from engine.profile.hardware import squeezed
from engine.profile.model_shape import ModelShape
from engine.utils.json_file import build, read_json_object

CATALOG_FILE = Path(__file__).with_name("catalog.json")

# Bytes per weight: (routed experts, other matrices of a mixture of experts, matrices of a dense model). Four-bit
# formats carry a scale per 16 (nvfp4) or 32 (mxfp4, int4) weights; checkpoints of mixtures of experts quantise only
# the experts to four bits. Embedding and vocabulary projection stay bfloat16.
WEIGHT_BYTES = {
    "bf16": (2.0, 2.0, 2.0),
    "fp8": (1.0, 1.0, 1.0),
    "fp4": (0.5625, 2.0, 0.5625),
    "int4": (0.5625, 2.0, 0.5625),
}
# Bytes per cached key or value element, as the engines' recipes set it for each precision of the weights.
KV_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp4": 1.0, "int4": 2.0}


@dataclass(frozen=True)
class CatalogModel:
    """One published model; counts of matrices' entries, tokens in `max_context_tokens` and `window_tokens`."""

    name: str
    architecture: str
    layers: int
    hidden_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int  # of a dense layer's feed-forward part
    vocab_size: int
    max_context_tokens: int
    source: str
    certain: bool = True  # False: some number was not read from the publisher
    aliases: tuple[str, ...] = ()
    tied_embeddings: bool = False
    gated: bool = True  # feed-forward of three matrices (SwiGLU) instead of two
    dense_layers: int = 0  # layers with a dense feed-forward part in a mixture of experts
    experts: int = 0
    active_experts: int = 0
    shared_experts: int = 0
    expert_size: int = 0
    q_lora_rank: int = 0  # multi-head latent attention from here
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    sliding_layers: int = 0
    window_tokens: int = 0
    linear_layers: int = 0  # gated delta-net layers
    linear_key_heads: int = 0
    linear_value_heads: int = 0
    linear_head_dim: int = 0
    sparse_tokens: int = 0  # keys that sparse attention reads per query, 0: all of them

    @property
    def moe_layers(self) -> int:
        """Layers whose feed-forward part is a mixture of experts."""
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def attention_parameters(self) -> int:
        """Parameters of the projections of all attention layers, softmax and linear."""
        h = self.hidden_size
        if self.kv_lora_rank:
            query = self.q_lora_rank or h
            head = self.qk_nope_head_dim + self.qk_rope_head_dim
            one = (
                (h * self.q_lora_rank if self.q_lora_rank else 0)
                + query * self.attention_heads * head
                + h * (self.kv_lora_rank + self.qk_rope_head_dim)
                + self.kv_lora_rank * self.attention_heads * (self.qk_nope_head_dim + self.v_head_dim)
                + self.attention_heads * self.v_head_dim * h
            )
        else:
            one = h * self.head_dim * 2 * (self.attention_heads + self.kv_heads)
        wide = self.linear_head_dim
        linear = h * wide * (2 * self.linear_key_heads + 3 * self.linear_value_heads)
        return (self.layers - self.linear_layers) * one + self.linear_layers * linear

    @property
    def expert_parameters(self) -> int:
        """Parameters of one routed (or shared) expert of one layer."""
        return (3 if self.gated else 2) * self.hidden_size * self.expert_size

    @property
    def routed_parameters(self) -> int:
        """Parameters of all routed experts of all layers."""
        return self.moe_layers * self.experts * self.expert_parameters

    @property
    def always_parameters(self) -> int:
        """Parameters that every token uses, without the vocabulary: attention, dense parts, shared experts."""
        dense = self.dense_layers if self.experts else self.layers
        ffn = dense * (3 if self.gated else 2) * self.hidden_size * self.intermediate_size
        shared = self.moe_layers * (
            self.shared_experts * self.expert_parameters + self.hidden_size * self.experts
        )
        return self.attention_parameters + ffn + shared

    @property
    def head_parameters(self) -> int:
        """Parameters of the vocabulary projection, as large as the embedding."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """Total parameters."""
        return (
            self.always_parameters
            + self.routed_parameters
            + self.head_parameters * (1 if self.tied_embeddings else 2)
        )

    @property
    def active_parameters(self) -> int:
        """Parameters used per token (embedding look-up excluded)."""
        routed = self.moe_layers * self.active_experts * self.expert_parameters
        return self.always_parameters + routed + self.head_parameters

    def touched_experts(self, tokens: float) -> float:
        """Expected number of distinct experts per layer in a batch of `tokens`, for even, independent routing."""
        if not self.experts or tokens <= 0:
            return 0.0
        return self.experts * (1.0 - (1.0 - self.active_experts / self.experts) ** tokens)

    def always_bytes(self, precision: str) -> float:
        """Bytes of the weights that every step reads, without the vocabulary."""
        return self.always_parameters * WEIGHT_BYTES[precision][1 if self.experts else 2]

    def expert_bytes(self, precision: str) -> float:
        """Bytes of one routed expert of one layer."""
        return self.expert_parameters * WEIGHT_BYTES[precision][0]

    def weight_bytes(self, precision: str) -> int:
        """Bytes of all weights; embedding and vocabulary projection in bfloat16."""
        vocabulary = 2 * self.head_parameters * (1 if self.tied_embeddings else 2)
        routed = self.moe_layers * self.experts * self.expert_bytes(precision)
        return round(self.always_bytes(precision) + routed + vocabulary)

    @property
    def full_layers(self) -> int:
        """Softmax-attention layers that see the whole context."""
        return self.layers - self.linear_layers - self.sliding_layers

    @property
    def kv_elements_per_layer(self) -> int:
        """Cached numbers per token of one softmax-attention layer."""
        if self.kv_lora_rank:
            return self.kv_lora_rank + self.qk_rope_head_dim
        return 2 * self.kv_heads * self.head_dim

    def kv_bytes_per_token(self, precision: str) -> int:
        """Bytes in the cache per token of context (window layers, soon full, are left out)."""
        return round(self.full_layers * self.kv_elements_per_layer * KV_BYTES[precision])

    def kv_shards(self, tensor_parallel: int) -> int:
        """Number of parts into which tensor parallelism splits keys and values: by heads; a latent is not split."""
        return 1 if self.kv_lora_rank else min(tensor_parallel, self.kv_heads)

    @property
    def pair_flops(self) -> float:
        """Operations of prefill attention per query-key pair, over the layers that see the whole context."""
        if self.kv_lora_rank:
            head = self.qk_nope_head_dim + self.qk_rope_head_dim + self.v_head_dim
        else:
            head = 2 * self.head_dim
        return 2.0 * self.full_layers * self.attention_heads * head

    def shape(
        self, dtype: str, weight_bytes: int, kv_bytes_per_token: int, max_context_tokens: int | None = None
    ) -> ModelShape:
        """Shape at a precision; a server may allow less context than the model."""
        longest = min(max_context_tokens or self.max_context_tokens, self.max_context_tokens)
        return ModelShape(
            name=self.name,
            architecture=self.architecture,
            parameters=self.parameters,
            layers=self.layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.expert_size or self.intermediate_size,
            attention_heads=self.attention_heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            max_context_tokens=longest,
            dtype=dtype,
            weight_bytes=weight_bytes,
            kv_bytes_per_token=kv_bytes_per_token,
        )


@cache
def catalog() -> dict[str, CatalogModel]:
    """The shipped models by name, in the file's order."""
    rows = read_json_object(CATALOG_FILE)["models"]
    models = [build(CatalogModel, row, CATALOG_FILE.name, f"models[{i}]") for i, row in enumerate(rows)]
    return {model.name: model for model in models}


def find_model(name: str) -> CatalogModel:
    """The model of the catalog with this name, hub id or alias; case and punctuation are ignored.

    Raises:
        InputError: no such model (names the nearest).
    """
    by_key = {squeezed(key): model for model in catalog().values() for key in (model.name, *model.aliases)}
    found = by_key.get(squeezed(name)) or by_key.get(squeezed(name.rpartition("/")[2]))
    if found is not None:
        return found
    near = difflib.get_close_matches(squeezed(name), list(by_key), n=1, cutoff=0.5)
    hint = f"nearest is {by_key[near[0]].name!r}; " if near else ""
    raise InputError(f"model {name!r} is not in the catalog: {hint}allowed: {', '.join(catalog())}")
