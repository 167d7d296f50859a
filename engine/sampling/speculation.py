"""Prompt lookup: draft the next tokens from repetitions in the text, and verify the drafts in one step.

Texts repeat themselves: an answer quotes its prompt, code its names. If the last tokens occurred before, the tokens
that followed them then are the draft (Saxena 2023; verifying several drafted tokens in one step is Leviathan et al.
2023). The step computes the logits after each draft token, which is accepted as long as it is the token that would
have been sampled anyway, so the output is the same with and without.
"""

from __future__ import annotations

from collections.abc import Sequence

_NGRAMS = (4, 3, 2)  # tokens that must have stood there before; the longest match counts


class PromptLookup:
    """Last position of each short sequence of tokens in a growing text."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        # Of each, the position after the latest one but the very end of the text.
        self._last: dict[tuple[int, ...], int] = {}
        self._match: int | None = None  # position after what matches the end of the text

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """Draft up to `most` tokens after `tokens`, which extend those of the last call; often none."""
        for token in tokens[len(self._tokens) :]:
            self._tokens.append(token)
            end = len(self._tokens)
            ngrams = [tuple(self._tokens[end - size :]) for size in _NGRAMS if size <= end]
            self._match = next((self._last[ngram] for ngram in ngrams if ngram in self._last), None)
            self._last.update(dict.fromkeys(ngrams, end))
        if self._match is None:
            return []
        guess: list[int] = []
        for position in range(self._match, self._match + most):  # past the end it repeats itself
            beyond = position - len(self._tokens)
            guess.append(self._tokens[position] if beyond < 0 else guess[beyond])
        return guess


def count_kept(drafts: Sequence[int], picked: Sequence[int]) -> int:
    """How many drafts are accepted: those equal to the tokens sampled in their places, up to the first that differs."""
    kept = 0
    while kept < len(drafts) and drafts[kept] == picked[kept]:
        kept += 1
    return kept
