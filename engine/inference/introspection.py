"""Inspect a served model: attention weights, next-token probabilities, and the loss of a text.

Computed by the served model itself: its own layers pass their queries and keys (rotated, normalised, grouped, as
when serving) to a plain attention over the whole prompt instead of the paged cache:

    weights = softmax(Q Kᵀ / √d_k + mask)        (Vaswani et al. 2017, equation 1)

where the mask is causal, includes ALiBi's biases and sliding windows where the model has them, and scores are capped
where the model caps them. The loss is the mean negative log likelihood of each token given those before it: what
`model(input_ids, labels=input_ids)` computes in transformers, since labels are shifted by one place there. Perplexity
is its exponential (Jelinek et al. 1977).

The KV cache is not used. Memory grows with heads · tokens², so prompts are limited.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.errors import InputError
from engine.layers.attention import Attention, attending

if TYPE_CHECKING:
    from engine.inference.llm import LLM

MAX_TOKENS = 512  # a layer's scores of 32 heads: 34 MB in float32


@dataclass(frozen=True)
class NextToken:
    """A candidate for the next token."""

    token_id: int
    text: str  # as the tokenizer decodes it; "#17" for a model without one
    probability: float  # after the temperature
    logit: float


@dataclass(frozen=True)
class TextLoss:
    """Loss of a text under the model."""

    loss_nats: float  # mean over the tokens from the second on
    token_losses_nats: tuple[float, ...]  # −log p of each token given those before; the first has none

    @property
    def perplexity(self) -> float:
        """exp(loss): the number of equally likely tokens with the same uncertainty."""
        return math.exp(self.loss_nats)


def attention_weights(llm: LLM, tokens: Sequence[int], layer: int) -> NDArray[np.float32]:
    """Attention weights of one layer over a prompt.

    Args:
        llm: a loaded model.
        tokens: token ids of the prompt, at most `MAX_TOKENS`.
        layer: from 0, the first above the embedding.

    Returns:
        Weights [heads, n, n]: row i has the weights of token i as query; it sums to 1 and is 0 after the diagonal.

    Raises:
        InputError: no tokens, too many, an id outside the vocabulary, or a layer that the model does not have.
    """
    layers = llm.shape.layers
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < layers:
        raise InputError(f"layer: found {layer!r}, allowed is 0 to {layers - 1}")
    watching = _PlainAttention(watched_layer=layer)
    _forward(llm, tokens, watching)
    assert watching.weights is not None
    return watching.weights.float().cpu().numpy()


def next_tokens(
    llm: LLM, tokens: Sequence[int], count: int = 10, temperature: float = 1.0
) -> list[NextToken]:
    """The most likely next tokens of a prompt, the best first.

    Args:
        llm: a loaded model.
        tokens: token ids of the prompt, at most `MAX_TOKENS`.
        count: how many, at least 1.
        temperature: divides the logits before the softmax; 0 gives the best token probability 1.

    Raises:
        InputError: as `attention_weights`, or `count` or `temperature` is out of range.
    """
    vocabulary = llm.shape.vocab_size
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= vocabulary:
        raise InputError(f"count: found {count!r}, allowed is 1 to {vocabulary}")
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature: found {temperature!r}, allowed is a finite number ≥ 0")
    logits = _forward(llm, tokens, _PlainAttention(), keep=1)[-1]
    best, ids = logits.topk(count)
    if temperature > 0:
        # In double precision a small temperature overflows nothing: the best is taken off first.
        scaled = ((logits - best[0]).double() / temperature).exp()
        probabilities = (scaled[ids] / scaled.sum()).tolist()
    else:
        probabilities = [1.0] + [0.0] * (count - 1)
    return [
        NextToken(token, token_text(llm, token), probability, logit)
        for token, probability, logit in zip(ids.tolist(), probabilities, best.tolist(), strict=True)
    ]


def text_loss(llm: LLM, tokens: Sequence[int]) -> TextLoss:
    """Loss of a text with labels = inputs, in nats per token, and of each of its tokens.

    Raises:
        InputError: as `attention_weights`, or fewer than two tokens.
    """
    if len(tokens) < 2:
        raise InputError(f"text: found {len(tokens)} tokens, allowed are two or more: the first is given")
    logits = _forward(llm, tokens, _PlainAttention(), keep=len(tokens))
    targets = torch.tensor(list(tokens[1:]), device=logits.device)
    chosen = logits[:-1].log_softmax(-1).gather(1, targets.unsqueeze(1))[:, 0]
    losses = (-chosen).double()
    return TextLoss(float(losses.mean()), tuple(losses.tolist()))


def token_text(llm: LLM, token: int) -> str:
    """Text of a token; of part of a character a replacement character."""
    return f"#{token}" if llm.tokenizer is None else str(llm.tokenizer.decode([token]))


class _PlainAttention:
    """Attention over a whole prompt without a cache; keeps the weights of one layer. A `layers.attention.Plan`."""

    def __init__(self, watched_layer: int | None = None) -> None:
        self.watched_layer = watched_layer
        self.weights: torch.Tensor | None = None  # [heads, tokens, tokens]

    def attend(
        self, how: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """As `layers.attention.attend`: query [tokens, heads, head_dim], key and value [tokens, kv_heads, head_dim]."""
        shared = query.shape[1] // key.shape[1]  # queries that share a head of keys
        key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
        scale = query.shape[-1] ** -0.5 if how.scaling is None else how.scaling
        scores = torch.einsum("qhd,khd->hqk", query, key) * scale
        if how.softcap is not None:
            scores = how.softcap * (scores / how.softcap).tanh()
        places = torch.arange(query.shape[0], device=query.device)
        distance = places[:, None] - places  # [asking, looked at]
        seen = distance >= 0
        if how.window is not None:
            seen &= distance < how.window
        if how.slopes is not None:
            scores = scores - how.slopes[:, None, None] * distance
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1, dtype=torch.float32)
        if how.layer == self.watched_layer:
            self.weights = weights
        return torch.einsum("hqk,khd->qhd", weights.to(value.dtype), value).contiguous()


@torch.inference_mode()
def _forward(llm: LLM, tokens: Sequence[int], plan: _PlainAttention, keep: int = 1) -> torch.Tensor:
    """Logits [keep, vocab] in float32 after the last `keep` tokens."""
    n, vocabulary = len(tokens), llm.shape.vocab_size
    most = min(MAX_TOKENS, llm.shape.max_context_tokens)
    if not 1 <= n <= most:
        raise InputError(f"prompt: found {n} tokens, allowed are 1 to {most}")
    for token in tokens:
        if not (isinstance(token, int) and 0 <= token < vocabulary):
            raise InputError(f"prompt: found token {token!r}, allowed are 0 to {vocabulary - 1}")
    device: Any = llm.runner.device
    with attending(plan):
        output = llm.model(
            input_ids=torch.tensor([list(tokens)], device=device),
            position_ids=torch.arange(n, device=device).unsqueeze(0),
            logits_to_keep=torch.arange(n - keep, n, device=device),
            use_cache=False,
        )
    logits: torch.Tensor = output.logits[0].float()
    return logits
