"""A request in the engine: its output, its tokens, and the incremental detokenization of its text.

Text is decoded a few tokens at a time. A token may be only part of a character, and a decoder may treat the first
token of a text specially (SentencePiece drops its leading space), so new tokens are decoded together with those just
before them, and the text of these is removed. What may still change is held back: part of a character, and the
beginning of a possible stop string.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.batch import Chunk, Request, State
from engine.sampling.sampler import SamplingParams, SamplingState, TokenLogprobs
from engine.sampling.speculation import PromptLookup, count_kept

_HALF_CHARACTER = "\N{REPLACEMENT CHARACTER}"


@dataclass
class RequestMetrics:
    """Times of a request, in seconds of `time.perf_counter`, and counts of the scheduler."""

    arrived_s: float
    first_token_s: float | None = None
    finished_s: float | None = None
    cached_tokens: int = 0
    preemptions: int = 0
    draft_tokens: int = 0  # drafted by prompt lookup
    kept_draft_tokens: int = 0  # of them accepted

    @property
    def acceptance_rate(self) -> float | None:
        """Share of the drafted tokens that were accepted; None without drafts."""
        return self.kept_draft_tokens / self.draft_tokens if self.draft_tokens else None


@dataclass
class RequestOutput:
    """Output of a request so far.

    `finish_reason` is "stop", "length", "timeout", "cancelled", or None while it runs. `text` is set when the request
    finishes; before that too, if it streams or has stop strings: then it only grows. `logprobs` has an entry per token,
    and `cumulative_logprob` is their sum, if requested. With n > 1 `others` are the second to the last sample, each an
    output with a request id of its own.
    """

    request_id: int
    prompt_token_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    metrics: RequestMetrics = field(default_factory=lambda: RequestMetrics(0.0))
    logprobs: list[TokenLogprobs] | None = None
    cumulative_logprob: float | None = None
    others: list[RequestOutput] = field(default_factory=list)

    @property
    def samples(self) -> list[RequestOutput]:
        """All n outputs of the prompt, this one first."""
        return [self, *self.others]


class Generation:
    """One output in progress: its request in the scheduler, its sampling state and its output."""

    def __init__(
        self,
        request: Request,
        state: SamplingState,
        output: RequestOutput,
        tokenizer: Any,
        first_id: int,
        streams: bool = False,
        deadline_s: float | None = None,
    ) -> None:
        """`first_id`: of the prompt's first sample. `deadline_s`: when to give up, by `time.perf_counter`."""
        self.request, self.state, self.output = request, state, output
        self.params: SamplingParams = state.params
        self.first_id = first_id
        self.deadline_s = deadline_s
        # Samples of the same prompt that wait until its blocks can be shared.
        self.held: list[Generation] = []
        self._lookup = PromptLookup()
        self._drafts: list[int] = []
        self._ends = frozenset(state.end_token_ids)
        self._reader = TextReader(tokenizer, self.params.stop, self.params.min_tokens)
        self._reads = streams or bool(self.params.stop)

    def draft(self, most: int) -> None:
        """Draft up to `most` tokens for the next step, if it is a decode."""
        request = self.request
        if self.state.json_answer is not None:
            return  # what may follow a guess is not known before it is taken
        decodes = request.output_tokens and request.computed_tokens + 1 == request.total_tokens
        if decodes and request.state is State.RUNNING:
            known = self.output.prompt_token_ids + self.output.token_ids
            self._drafts = self._lookup.guess(known, most)
            request.draft_tokens = len(self._drafts)

    def tokens(self, chunk: Chunk) -> list[int]:
        """Token ids of a chunk, of prompt, output and drafts."""
        start, end, prompt = chunk.start, chunk.start + chunk.tokens, self.output.prompt_token_ids
        if end <= len(prompt):
            return prompt[start:end]
        if chunk.tokens == 1:
            return [self.output.token_ids[start - len(prompt)]]
        return (prompt + self.output.token_ids + self._drafts)[start:end]

    def states(self, chunk: Chunk) -> list[SamplingState]:
        """Sampling state of each token that the chunk may produce: after the last known token, and after each draft."""
        known = self.state.output_token_ids
        guessed = (
            replace(self.state, output_token_ids=[*known, *self._drafts[: i + 1]])
            for i in range(chunk.request.draft_tokens)
        )
        return [self.state, *guessed]

    def keep(self, chunk: Chunk, picked: Sequence[int]) -> int:
        """How many of the chunk's drafts are accepted: equal to the tokens sampled in their places."""
        drafts = self._drafts[: chunk.request.draft_tokens]
        kept = count_kept(drafts, picked)
        self.output.metrics.draft_tokens += len(drafts)
        self.output.metrics.kept_draft_tokens += kept
        return kept

    def append(self, token: int, logprobs: TokenLogprobs | None, now_s: float) -> bool:
        """Append the next token; True if the request is finished."""
        output = self.output
        output.token_ids.append(token)
        if output.metrics.first_token_s is None:
            output.metrics.first_token_s = now_s
        if logprobs is not None and output.logprobs is not None:
            output.logprobs.append(logprobs)
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + logprobs.logprob
        if self._reads:
            self._reader.read(output.token_ids)
        answer = self.state.json_answer
        closed = answer is not None and answer.is_complete(output.token_ids)
        if self._reader.stopped or token in self._ends or closed:
            self.finish("stop", now_s)
        elif len(output.token_ids) == self.params.max_tokens:
            self.finish("length", now_s)
        else:
            output.text = self._reader.text
        return output.finish_reason is not None

    def finish(self, reason: str, now_s: float) -> None:
        """Finish the output: the rest of its text, its finish reason, and the counts of the scheduler."""
        output = self.output
        self._reader.read(output.token_ids, is_last=True)
        output.text = self._reader.text
        output.finish_reason = "stop" if self._reader.stopped else reason
        output.metrics.finished_s = now_s
        output.metrics.cached_tokens = self.request.cached_tokens
        output.metrics.preemptions = self.request.preemptions


class TextReader:
    """Text of a growing list of token ids, up to the first stop string; text once shown never changes."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (), min_tokens: int = 0) -> None:
        """`stops` are not searched for in the text of the first `min_tokens` tokens."""
        self.text = ""  # that may be shown
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = stops
        self._min_tokens = min_tokens
        self._decoded = ""  # may end in the beginning of a stop string
        self._context = self._read = 0  # tokens before the context are done with; before the other decoded
        self._searched = 0  # characters in which no stop string begins

    def read(self, token_ids: list[int], is_last: bool = False) -> None:
        """Decode the new tokens; `is_last`: also what was held back."""
        if self._tokenizer is None or self.stopped:
            return
        context = self._decode(token_ids[self._context : self._read])
        window = self._decode(token_ids[self._context :])
        if is_last or (len(window) > len(context) and not window.endswith(_HALF_CHARACTER)):
            self._decoded += window[len(context) :]
            self._context, self._read = self._read, len(token_ids)
            if len(token_ids) <= self._min_tokens:
                self._searched = len(self._decoded)
        found = [at for stop in self._stops if (at := self._decoded.find(stop, self._searched)) >= 0]
        self.stopped = bool(found)
        end = min(found) if found else len(self._decoded)
        if not found and self._stops:
            held = self._begun_stop()
            self._searched = end - held
            end = end if is_last else end - held
        self.text = self._decoded[:end]

    def _begun_stop(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        longest = min(max(map(len, self._stops)) - 1, len(self._decoded) - self._searched)
        for length in range(longest, 0, -1):
            end = self._decoded[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0

    def _decode(self, token_ids: list[int]) -> str:
        if not token_ids:
            return ""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))


def block_hashes(token_ids: Sequence[int], block_tokens: int) -> list[bytes]:
    """For each full block of a prompt, a hash of everything up to its end."""
    hashes: list[bytes] = []
    previous = b""
    for end in range(block_tokens, len(token_ids) + 1, block_tokens):
        block = b"".join(token.to_bytes(4, "little") for token in token_ids[end - block_tokens : end])
        previous = hashlib.blake2b(previous + block, digest_size=16).digest()
        hashes.append(previous)
    return hashes
