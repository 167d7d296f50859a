"""Training text in hand, by where it came from: what arrives, what goes stale, what is taken away.

`effective_tokens` weighs each token by what it teaches. Totals are kept beside the holdings, so that a month
costs the same with one source or a hundred.
"""

from __future__ import annotations

from dataclasses import dataclass, field

INITIAL, FEEDBACK, LABELS = "(initial)", "(feedback)", "(labels)"  # holdings that no source brought


@dataclass
class Holding:
    """Text from one source: tokens as they are read, and what they teach today."""

    tokens: float = 0.0
    effective_tokens: float = 0.0


@dataclass
class Pool:
    """All training text; `preference_pairs` are comparisons of answers, which only reinforcement uses."""

    tokens: float = 0.0
    effective_tokens: float = 0.0
    preference_pairs: float = 0.0
    held: dict[str, Holding] = field(default_factory=dict)

    def add(self, source: str, tokens: float, effective_tokens: float) -> None:
        """Take text in."""
        self.tokens += tokens
        self.effective_tokens += effective_tokens
        holding = self.held.setdefault(source, Holding())
        holding.tokens += tokens
        holding.effective_tokens += effective_tokens

    def fade(self, source: str, half_life_months: float | None) -> None:
        """Let one month pass over a source's text: it teaches 2^(−1/half-life) of what it did."""
        holding = self.held.get(source)
        if holding is None or half_life_months is None:
            return
        lost = holding.effective_tokens * (1 - 0.5 ** (1 / half_life_months))
        holding.effective_tokens -= lost
        self.effective_tokens = max(0.0, self.effective_tokens - lost)

    def drop(self, source: str) -> float:
        """Take all text of a source out; gives its tokens."""
        holding = self.held.pop(source, Holding())
        self.tokens = max(0.0, self.tokens - holding.tokens)
        self.effective_tokens = max(0.0, self.effective_tokens - holding.effective_tokens)
        return holding.tokens
