"""Build a new Transformer by name, layers and width, with random weights, from transformers' own modelling code."""

from __future__ import annotations

from typing import Any

from engine.errors import InputError

ARCHITECTURES = ("llama", "bloom", "gpt2")
HEAD_DIM = 64  # what most published models of these families use; the nearest divisor of the width is taken


def build_model(
    architecture: str,
    *,
    layers: int,
    hidden_size: int,
    vocab_size: int,
    context_tokens: int,
    eos_token_id: int | None = None,
    attention_heads: int | None = None,
) -> Any:
    """A causal language model of transformers in float32; its weights depend on torch's seed.

    Embeddings are tied, dropout is off (one pass over the data needs none), the feed-forward width is that of the
    family: 4 times the hidden size for BLOOM and GPT-2, 8/3 of it in Llama's gated form.

    Raises:
        InputError: an architecture that is not in `ARCHITECTURES`, or heads that do not divide the width.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture {architecture!r}: allowed are {', '.join(ARCHITECTURES)}")
    heads = attention_heads or default_heads(hidden_size)
    if hidden_size % (2 * heads):
        raise InputError(
            f"hidden_size {hidden_size} with {heads} heads: allowed are multiples of {2 * heads}"
        )
    common: dict[str, Any] = {"vocab_size": vocab_size, "tie_word_embeddings": True}
    common |= {"eos_token_id": eos_token_id, "bos_token_id": eos_token_id, "pad_token_id": eos_token_id}
    by_family: dict[str, dict[str, Any]] = {
        "llama": {
            "hidden_size": hidden_size,
            "intermediate_size": -(-hidden_size * 8 // 3 // 32) * 32,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": context_tokens,
        },
        # BLOOM has no positions to learn (ALiBi); `seq_length` is what it says its context is.
        "bloom": {
            "hidden_size": hidden_size,
            "n_layer": layers,
            "n_head": heads,
            "seq_length": context_tokens,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
        "gpt2": {
            "n_embd": hidden_size,
            "n_layer": layers,
            "n_head": heads,
            "n_positions": context_tokens,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    }
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture, **common, **by_family[architecture])
    )


def default_heads(hidden_size: int) -> int:
    """The number of heads that divides `hidden_size` into even head sizes nearest to 64.

    Raises:
        InputError: `hidden_size` is not a positive even number.
    """
    if hidden_size < 2 or hidden_size % 2:
        raise InputError(f"hidden_size is {hidden_size}; allowed is a positive even number")
    divisors = [heads for heads in range(1, hidden_size // 2 + 1) if hidden_size % (2 * heads) == 0]
    return min(divisors, key=lambda heads: abs(hidden_size / heads - HEAD_DIM))


def parameters_in_products(model: Any) -> int:
    """Parameters that take part in matrix products: all but an untied input embedding, which is looked up."""
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    return int(total if tied else total - embedding.weight.numel())
