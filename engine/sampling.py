"""How the next token is picked from a row of logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SamplingParams:
    """What a request asks for.

    temperature 0 is greedy. top_k 0 and top_p 1 leave everything in. With a `seed` a request gives the same
    tokens whatever else is in the batch. `stop` strings end the text before their first occurrence.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        self._require("max_tokens", self.max_tokens >= 1, "a whole number ≥ 1")
        self._require("temperature", 0 <= self.temperature < math.inf, "a finite number ≥ 0")
        self._require("top_k", self.top_k >= 0, "a whole number ≥ 0, 0 for all")
        self._require("top_p", 0 < self.top_p <= 1, "a number in (0, 1]")
        self._require("stop", all(self.stop), "texts that are not empty")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise InputError(f"{name}: found {getattr(self, name)!r}, allowed is {allowed}")


def sample(logits: torch.Tensor, params: SamplingParams, generator: torch.Generator | None) -> int:
    """The next token from logits [vocab]: greedy, or drawn after temperature, then top-k, then top-p.

    top-p (nucleus sampling, Holtzman et al. 2020) keeps the fewest tokens whose probabilities reach top_p.
    """
    import torch

    if params.temperature == 0:
        return int(logits.argmax())
    scores, tokens = (logits.float() / params.temperature).sort(descending=True)
    if params.top_k:
        scores, tokens = scores[: params.top_k], tokens[: params.top_k]
    probabilities = scores.softmax(dim=-1)
    if params.top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= params.top_p, 0.0)
    choice = torch.multinomial(probabilities, 1, generator=generator)
    return int(tokens[choice])
