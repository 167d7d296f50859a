"""Sampling: the parameters of a request, and one batched draw for all requests of a step.

Models the sampling parameters of an OpenAI-compatible service. A row of logits is changed in this order: logit_bias;
repetition penalty over prompt and output (Keskar et al. 2019, CTRL); frequency and presence penalties over the output;
min_tokens; JSON mode (`engine.sampling.json_grammar`). Then greedy decoding takes the highest, and a draw divides by
the temperature, keeps the top_k highest, of these the fewest that reach the probability mass top_p (nucleus sampling,
Holtzman et al. 2020), and of these the ones at least min_p times as likely as the most likely (Nguyen et al. 2024).

The drawn token is where the cumulative distribution exceeds a uniform number that depends only on the request's key
and the position in its output. So the same seed gives the same tokens whatever else is in the batch, and a request
that is computed again, after a preemption or a rejected draft, draws the same number again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import torch

from engine.errors import InputError
from engine.sampling.json_grammar import JsonAnswer

_NUCLEUS_WIDTH_CPU = 1024  # most nuclei are smaller; sorting all of a vocabulary takes ten times as long


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of a request.

    temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 keep all tokens. `n` outputs are sampled for one prompt.
    With a `seed` a request gives the same tokens whatever else is in the batch. `stop` strings end the text before
    their first occurrence; `stop_token_ids` and the model's end tokens (unless `ignore_eos`) end it too; none of them
    within the first `min_tokens`. Penalties and `logit_bias` (by token id) change the logits, as OpenAI documents
    them; the repetition penalty is that of transformers. `logprobs` requests the log probability of each output token
    and of that many most likely alternatives, under the model's own distribution before the changes above; None is
    off. With `json_object` the text is a JSON object, complete unless a stop cuts it, and ends with its closing brace.

    Raises:
        InputError: a value that is not allowed.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    seed: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    logprobs: int | None = None
    n: int = 1
    json_object: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name, lowest in (("max_tokens", 1), ("top_k", 0), ("min_tokens", 0), ("n", 1)):
            self._require(name, _is_whole(getattr(self, name), lowest), f"a whole number ≥ {lowest}")
        self._require("min_tokens", self.min_tokens <= self.max_tokens, f"≤ max_tokens, {self.max_tokens}")
        self._require("temperature", _is_within(self.temperature, 0), "a finite number ≥ 0")
        self._require("top_p", _is_within(self.top_p, 0, 1) and self.top_p > 0, "a number in (0, 1]")
        self._require("min_p", _is_within(self.min_p, 0, 1), "a number in [0, 1]")
        positive = _is_within(self.repetition_penalty, 0) and self.repetition_penalty > 0
        self._require("repetition_penalty", positive, "a finite number > 0")
        for name in ("presence_penalty", "frequency_penalty"):
            self._require(name, _is_within(getattr(self, name), -2, 2), "a number from -2 to 2")
        for name in ("ignore_eos", "json_object"):
            self._require(name, isinstance(getattr(self, name), bool), "true or false")
        self._require("seed", self.seed is None or _is_whole(self.seed), "a whole number, or none")
        self._require("logprobs", self.logprobs is None or _is_whole(self.logprobs, 0), "a whole number ≥ 0")
        texts = _is_list(self.stop) and all(isinstance(text, str) and text for text in self.stop)
        self._require("stop", texts, "texts that are not empty")
        ids = _is_list(self.stop_token_ids) and all(_is_whole(token, 0) for token in self.stop_token_ids)
        self._require("stop_token_ids", ids, "token ids")
        biases = isinstance(self.logit_bias, Mapping) and all(
            _is_whole(token, 0) and _is_within(bias, -100, 100) for token, bias in self.logit_bias.items()
        )
        self._require("logit_bias", biases, "numbers from -100 to 100 by token id")

    def check_vocabulary(self, size: int) -> None:
        """Raise InputError for token ids outside a vocabulary of this size."""
        for name in ("stop_token_ids", "logit_bias"):
            for token in getattr(self, name):
                if token >= size:
                    raise InputError(f"found token {token}, allowed are 0 to {size - 1}", key=name)
        self._require("logprobs", (self.logprobs or 0) <= size, f"at most the vocabulary, {size}")

    @cached_property
    def changes_logits(self) -> bool:
        """Logits are changed before temperature and cuts."""
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return bool(penalties or self.logit_bias or self.min_tokens or self.json_object)

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise InputError(f"found {getattr(self, name)!r}, allowed is {allowed}", key=name)


@dataclass(slots=True)
class SamplingState:
    """What a request's next token depends on, besides the logits."""

    params: SamplingParams
    key: bytes  # of its random numbers (see `random_key`)
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    end_token_ids: Sequence[int] = ()  # not to be picked within the first min_tokens
    json_answer: JsonAnswer | None = None  # knows which tokens JSON can't go on with


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probabilities (natural) of a token and of the most likely ones, by token id, the best first."""

    token_id: int
    logprob: float
    top: dict[int, float]


def sample(logits: torch.Tensor, states: Sequence[SamplingState]) -> list[int]:
    """Sample the next token of each request, from logits [requests, vocab], which are not changed."""
    changed = [row for row, state in enumerate(states) if state.params.changes_logits]
    drawn = [row for row, state in enumerate(states) if state.params.temperature > 0]
    if changed:
        logits = logits.to(torch.float32, copy=True)
        _change(logits, [(row, states[row]) for row in changed])
    if len(drawn) == len(states):
        return _draw(logits, states).tolist()
    tokens = logits.argmax(dim=-1)
    if drawn:
        tokens[drawn] = _draw(logits[drawn], [states[row] for row in drawn])
    return tokens.tolist()


def token_logprobs(
    logits: torch.Tensor, states: Sequence[SamplingState], tokens: Sequence[int]
) -> list[TokenLogprobs | None]:
    """Log probabilities of each sampled token by logits [requests, vocab]; None for requests without `logprobs`."""
    found: list[TokenLogprobs | None] = [None] * len(states)
    rows = [row for row, state in enumerate(states) if state.params.logprobs is not None]
    if not rows:
        return found
    logprobs = logits[rows].float().log_softmax(dim=-1)
    chosen = logprobs.gather(1, torch.tensor([[tokens[row]] for row in rows], device=logits.device))
    counts = [states[row].params.logprobs or 0 for row in rows]
    best = logprobs.topk(max(counts), dim=-1)
    alternatives = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    for row, count, (logprob,), (ids, values) in zip(
        rows, counts, chosen.tolist(), alternatives, strict=True
    ):
        top = dict(zip(ids[:count], values[:count], strict=True))
        found[row] = TokenLogprobs(tokens[row], logprob, top)
    return found


def random_key(*parts: Any) -> bytes:
    """A key for random numbers, different whenever one of the parts is."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


def uniform(key: bytes, position: int) -> float:
    """The uniform number in [0, 1) of a position: a keyed hash (BLAKE2b) of it."""
    drawn = hashlib.blake2b(position.to_bytes(8, "little"), key=key, digest_size=6).digest()
    return int.from_bytes(drawn, "little") / 2**48


def _draw(logits: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor:
    """One token per row, drawn after temperature and cuts by inverting the cumulative distribution."""
    device = logits.device
    heat = torch.tensor([[state.params.temperature] for state in states], device=device)
    scores = logits.float()
    # With the highest at 0, no temperature is too low for floating point.
    scores = scores - scores.amax(dim=-1, keepdim=True)
    scores.div_(heat.clamp_min(torch.finfo(torch.float32).tiny))
    cut = [row for row, state in enumerate(states) if _cuts(state.params)]
    if len(cut) == len(states):
        scores = _cut(scores, [state.params for state in states])
    elif cut:
        scores[cut] = _cut(scores[cut], [states[row].params for row in cut])
    # In the order of the vocabulary, which, unlike an order by score, small errors don't change.
    passed = scores.exp_().cumsum_(dim=-1)
    total = passed[:, -1:]
    numbers = [[uniform(state.key, len(state.output_token_ids))] for state in states]
    at = (torch.tensor(numbers, dtype=torch.float64, device=device) * total).float()
    at = torch.minimum(at, total.nextafter(torch.zeros_like(total)))
    tokens = torch.searchsorted(passed, at, right=True).squeeze(1)
    return tokens.clamp_max(logits.shape[1] - 1)  # even if the model gave NaN


def _cuts(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1 or params.min_p > 0


def _cut(scores: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Scores [rows, vocab] whose highest is 0, with -inf where top_k, top_p or min_p leave a token out."""
    vocab = scores.shape[1]
    width = max(min(p.top_k, vocab) for p in params)
    if any(p.top_p < 1 for p in params):
        width = vocab if scores.is_cuda else max(width, min(_NUCLEUS_WIDTH_CPU, vocab))
    lowest = _lowest_kept(scores, params, width) if width else torch.full_like(scores[:, :1], -math.inf)
    floors = [[math.log(p.min_p) if p.min_p else -math.inf] for p in params]
    lowest = torch.maximum(lowest, torch.tensor(floors, device=scores.device))
    return scores.masked_fill_(scores < lowest, -math.inf)


def _lowest_kept(scores: torch.Tensor, params: Sequence[SamplingParams], width: int) -> torch.Tensor:
    """The lowest score [rows, 1] that top_k and top_p keep, found among the `width` highest where these do."""
    device, vocab = scores.device, scores.shape[1]
    best = scores.topk(width, dim=-1).values
    ks = torch.tensor([[min(p.top_k or vocab, vocab)] for p in params], device=device)
    lowest = best.gather(1, ks.clamp_max(width) - 1).masked_fill(ks == vocab, -math.inf)
    if all(p.top_p == 1 for p in params):
        return lowest
    kept = best.masked_fill(best < lowest, -math.inf)
    mass = torch.where(ks < vocab, kept.logsumexp(-1, keepdim=True), scores.logsumexp(-1, keepdim=True))
    probabilities = (kept - mass).exp().double()
    before = probabilities.cumsum(dim=-1) - probabilities
    shares = torch.tensor([[p.top_p] for p in params], dtype=torch.float64, device=device)
    count = (before < shares).sum(dim=-1, keepdim=True).clamp_min(1)
    nucleus = best.gather(1, count - 1).masked_fill(shares == 1, -math.inf)
    lowest = torch.maximum(lowest, nucleus)
    if width < vocab:
        wider = ((count == width) & (shares < 1) & (ks > width)).squeeze(1).nonzero().squeeze(1).tolist()
        if wider:
            more = min(8 * width, vocab)
            lowest[wider] = _lowest_kept(scores[wider], [params[row] for row in wider], more)
    return lowest


def _change(logits: torch.Tensor, states: Sequence[tuple[int, SamplingState]]) -> None:
    """Bias, penalties, min_tokens and JSON, in place, on the given rows of logits [rows, vocab]."""
    each = [(row, state, state.params) for row, state in states]
    biased = [(row, list(p.logit_bias), list(p.logit_bias.values())) for row, _, p in each if p.logit_bias]
    rows, tokens, values = _places(biased, logits)
    logits[rows, tokens] += values
    repeated = [
        (row, [*s.prompt_token_ids, *s.output_token_ids], p.repetition_penalty)
        for row, s, p in each
        if p.repetition_penalty != 1
    ]
    rows, tokens, values = _places(repeated, logits)
    found = logits[rows, tokens]
    logits[rows, tokens] = torch.where(found > 0, found / values, found * values)
    frequent = [(r, s.output_token_ids, p.frequency_penalty) for r, s, p in each if p.frequency_penalty]
    rows, tokens, values = _places(frequent, logits)
    logits.index_put_((rows, tokens), -values, accumulate=True)  # for every time that a token stands there
    present = [(r, s.output_token_ids, p.presence_penalty) for r, s, p in each if p.presence_penalty]
    rows, tokens, values = _places(present, logits)
    logits[rows, tokens] = logits[rows, tokens] - values  # once
    early = [(r, s.end_token_ids, 0.0) for r, s, p in each if len(s.output_token_ids) < p.min_tokens]
    rows, tokens, _ = _places(early, logits)
    logits[rows, tokens] = -math.inf
    for row, state, _ in each:
        if state.json_answer is not None:
            forbidden = torch.from_numpy(state.json_answer.forbidden(state.output_token_ids))
            logits[row].masked_fill_(forbidden.to(logits.device), -math.inf)


def _places(
    wanted: Iterable[tuple[int, Sequence[int], float | Sequence[float]]], like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(row, tokens, a value for all or for each) flattened to rows, tokens and values, one entry per token."""
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    for row, tokens, value in wanted:
        rows += [row] * len(tokens)
        columns += tokens
        values += value if isinstance(value, Sequence) else [value] * len(tokens)
    device = like.device
    return (
        torch.tensor(rows, dtype=torch.long, device=device),
        torch.tensor(columns, dtype=torch.long, device=device),
        torch.tensor(values, dtype=like.dtype, device=device),
    )


def _is_whole(value: Any, lowest: int | None = None) -> bool:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and (lowest is None or value >= lowest)


def _is_within(value: Any, lowest: float, highest: float = math.inf) -> bool:
    """A finite number in that range (NaN is in none)."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and math.isfinite(value) and lowest <= value <= highest


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes)
