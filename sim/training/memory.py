"""Memory that training a Transformer takes, and what a checkpoint of it weighs.

Mixed-precision training with Adam keeps per parameter (Rajbhandari et al. 2020, "ZeRO", arXiv:1910.02054, section 3):
the weight in 16 bits, its gradient in 16 bits (32 bits where gradients are accumulated in float32, as Megatron-LM
and BLOOM did: 18 bytes in all), and in float32 a master copy of the weight and two moments: 2 + 2 + 12 = 16 bytes.
ZeRO shards them over n data-parallel accelerators: stage 1 the optimizer's 12 bytes, stage 2 also the gradients,
stage 3 (PyTorch's FSDP) also the weights. A checkpoint holds all but the gradients: 14 bytes per parameter.

Activations of a layer for `tokens` tokens, in 16 bits (Korthikanti et al. 2022, arXiv:2205.05198, equations 1 to 6):
tokens·h·(34 + 5·a·s/h) bytes when all are kept, 34·tokens·h when the attention matrix is not (selective
recomputation, and FlashAttention), 2·tokens·h when only the layer's input is kept and the rest recomputed, which
needs one layer's full set for a moment. The logits take 4 bytes per token and word. The 34 is of GPT's layer
(feed-forward width 4·h, as many key heads as heads); Llama's is within some 20 %.
"""

from __future__ import annotations

from typing import Literal

from engine.errors import InputError

Recompute = Literal["none", "selective", "full"]

WEIGHT_BYTES = 2.0  # bfloat16
OPTIMIZER_BYTES = 12.0  # float32 master weight and two moments
CHECKPOINT_BYTES = WEIGHT_BYTES + OPTIMIZER_BYTES
USABLE_SHARE = 0.9  # of an accelerator's memory; the rest is the driver's, NCCL's buffers and fragmentation


def checkpoint_bytes(parameters: float) -> float:
    """Bytes of a checkpoint from which training can go on: 14 per parameter."""
    return CHECKPOINT_BYTES * parameters


def checkpoint_write_s(size_bytes: float, storage_bytes_per_s: float) -> float:
    """Seconds to write a checkpoint.

    Raises:
        InputError: a speed that is not above 0.
    """
    if storage_bytes_per_s <= 0:
        raise InputError(f"storage_bytes_per_s is {storage_bytes_per_s:g}; allowed is a speed above 0")
    return size_bytes / storage_bytes_per_s


def state_bytes_per_parameter(gradient_bytes: float = 2.0) -> float:
    """Bytes of weight, gradient and Adam's state per parameter: 16, or 18 with float32 gradients."""
    return WEIGHT_BYTES + gradient_bytes + OPTIMIZER_BYTES


def zero_bytes(parameters: float, accelerators: float, stage: int = 3, gradient_bytes: float = 2.0) -> float:
    """Bytes of weights, gradients and optimizer state on each of `accelerators` (ZeRO, table 1).

    Args:
        parameters: all of them, of all experts too.
        accelerators: that share by data parallelism.
        stage: 0 (every accelerator holds all) to 3 (everything is sharded).
        gradient_bytes: per parameter, 2 or 4.

    Raises:
        InputError: another stage, or fewer than one accelerator.
    """
    if stage not in (0, 1, 2, 3):
        raise InputError(f"ZeRO stage {stage}: allowed are 0, 1, 2, 3")
    if accelerators < 1:
        raise InputError(f"accelerators is {accelerators}; allowed is 1 or more")
    parts = (OPTIMIZER_BYTES, gradient_bytes, WEIGHT_BYTES)
    sharded = sum(parts[:stage])
    return parameters * (sum(parts) - sharded + sharded / accelerators)


def activation_bytes(
    tokens: float,
    *,
    layers: int,
    hidden_size: int,
    attention_heads: int,
    sequence_tokens: int,
    vocab_size: int = 0,
    recompute: Recompute = "selective",
) -> float:
    """Activation bytes for the backward pass of `tokens` tokens (sequences × length) in flight on one accelerator."""
    kept = tokens * hidden_size * 34.0
    if recompute == "none":
        kept += tokens * 5.0 * attention_heads * sequence_tokens
    total = layers * kept if recompute != "full" else layers * tokens * hidden_size * 2.0 + kept
    return total + 4.0 * vocab_size * tokens


def least_accelerators(
    parameters: float,
    memory_bytes: float,
    activations: float,
    *,
    stage: int = 3,
    gradient_bytes: float = 2.0,
    layer_parameters: float = 0.0,
) -> int | None:
    """Fewest accelerators whose memory holds the sharded state, the activations and one gathered layer.

    Args:
        parameters: of the model.
        memory_bytes: of one accelerator; `USABLE_SHARE` of it counts.
        activations: bytes on each, whatever their number.
        stage: of ZeRO.
        gradient_bytes: per parameter.
        layer_parameters: of the largest layer, gathered in 16 bits when stage 3 comes to it (twice: the next one is
            on its way).

    Returns:
        The number, or None where no number is enough (what is not sharded does not fit).
    """
    gathered = 2 * WEIGHT_BYTES * layer_parameters if stage == 3 else 0.0
    room = USABLE_SHARE * memory_bytes - activations - gathered
    parts = (OPTIMIZER_BYTES, gradient_bytes, WEIGHT_BYTES)
    sharded = parameters * sum(parts[:stage])
    room -= parameters * sum(parts[stage:])
    if room <= 0:
        return None
    whole = int(sharded // room)
    return max(1, whole if whole * room >= sharded else whole + 1)
