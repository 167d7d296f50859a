"""`LLM`: prompts in, tokens out, by continuous batching.

`step` is the whole engine: the scheduler says what runs, the runner runs it, one token is picked for each request
whose known tokens are all computed, and the scheduler books what happened. Requests join and leave at any step.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from engine.errors import InputError
from engine.model import DTYPES, free_bytes, load_model, load_tokenizer, shape_of
from engine.profile import ModelShape
from engine.runner import BatchChunk, ModelRunner
from engine.sampling import SamplingParams, sample
from engine.scheduler import Chunk, Request, Scheduler, SchedulerConfig, State
from engine.support import require_servable

_BLOCK_TOKENS = 16
_MOST_CACHE_TOKENS_CPU = 32_768  # more than the batch of a CPU ever fills
_FREE_MEMORY_SHARE = {"cpu": 0.3, "cuda": 0.8}

Prompt = str | list[int]


@dataclass
class RequestMetrics:
    """When things happened to a request, in seconds of `time.perf_counter`, and what the scheduler saw."""

    arrived_s: float
    first_token_s: float | None = None
    finished_s: float | None = None
    cached_tokens: int = 0
    preemptions: int = 0


@dataclass
class RequestOutput:
    """A request and what it has produced so far; `finish_reason` is "stop", "length", or None while it runs."""

    request_id: int
    prompt_token_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    metrics: RequestMetrics = field(default_factory=lambda: RequestMetrics(0.0))


@dataclass
class _Sequence:
    request: Request
    params: SamplingParams
    output: RequestOutput
    generator: torch.Generator | None

    def tokens(self, chunk: Chunk) -> list[int]:
        start, end, prompt = chunk.start, chunk.start + chunk.tokens, self.output.prompt_token_ids
        if end <= len(prompt):
            return prompt[start:end]
        if chunk.tokens == 1:
            return [self.output.token_ids[start - len(prompt)]]
        return (prompt + self.output.token_ids)[start:end]


class LLM:
    """A causal language model that serves many requests at once on one device."""

    def __init__(
        self,
        model: str = "smollm2-135m",
        device: str = "cpu",
        dtype: str = "float32",
        *,
        max_running_requests: int = 64,
        max_step_tokens: int = 512,
        kv_cache_tokens: int | None = None,
        prefix_caching: bool = True,
        seed: int = 0,
    ) -> None:
        """Load `model` (see `engine.model`) and allocate its KV cache.

        Args:
            model: "smollm2-135m", a path, a hub id, or "NAME@dummy".
            device: "cpu" or "cuda".
            dtype: "float32", "bfloat16" or "float16".
            max_running_requests: most requests decoding together.
            max_step_tokens: token budget of one step, decodes and prompt chunks together.
            kv_cache_tokens: tokens that the KV cache holds; None takes a share of the free memory.
            prefix_caching: share the blocks of equal prompt beginnings.
            seed: of the random weights of "NAME@dummy", and of requests without their own.

        Raises:
            InputError: no such model or device, an architecture that can't be served, too little memory.
        """
        self.model = load_model(model, dtype, device, seed)
        require_servable(self.model, model)
        self.shape: ModelShape = shape_of(self.model, model, dtype)
        self.tokenizer: Any = None
        if not model.endswith("@dummy") or self.shape.vocab_size >= 49_152:
            self.tokenizer = load_tokenizer(model)
        self.config = SchedulerConfig(
            max_running_requests=max_running_requests,
            max_step_tokens=max_step_tokens,
            block_tokens=_BLOCK_TOKENS,
            num_blocks=_cache_blocks(self.shape, device, max_running_requests, kv_cache_tokens),
            prefix_caching=prefix_caching,
        )
        self.scheduler = Scheduler(self.config)
        self.runner = ModelRunner(self.model, self.shape, self.config, device, DTYPES[dtype])
        self.seed = seed
        self._ids = itertools.count()
        self._sequences: dict[Any, _Sequence] = {}
        self._end_tokens = _end_tokens(self.model)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Finish all prompts (texts, or lists of token ids), batched; outputs in the order of the prompts.

        Raises:
            InputError: an empty or too long prompt, a token id outside the vocabulary, params of another length.
        """
        alone = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        batch = cast("list[Prompt]", [prompts] if alone else list(prompts))
        each = [params or SamplingParams()] * len(batch) if not isinstance(params, Sequence) else params
        if len(each) != len(batch):
            raise InputError(
                f"params: found {len(each)} for {len(batch)} prompts; allowed is one, or one each"
            )
        ids = [self.add_request(prompt, its) for prompt, its in zip(batch, each, strict=True)]
        wanted = [self._sequences[request_id].output for request_id in ids]
        while any(output.finish_reason is None for output in wanted):
            self.step()
        return wanted

    def chat(self, messages: Sequence[dict[str, str]], params: SamplingParams | None = None) -> RequestOutput:
        """Answer a conversation ([{"role": …, "content": …}]) by the model's chat template."""
        return self.generate(self.chat_prompt(messages), params)[0]

    def chat_prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the model is to answer.

        Raises:
            InputError: the model has no chat template.
        """
        if self.tokenizer is None or not self.tokenizer.chat_template:
            raise InputError(f"model {self.shape.name!r} has no chat template")
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Yield the request's output after each token; leaving the loop early cancels it."""
        request_id = self.add_request(prompt, params)
        output = self._sequences[request_id].output
        try:
            while output.finish_reason is None:
                if any(progressed is output for progressed in self.step()):
                    output.text = self._decode(output.token_ids) if self.tokenizer else ""
                    yield output
        finally:
            self.cancel(request_id)

    def add_request(self, prompt: Prompt, params: SamplingParams | None = None) -> int:
        """Queue a prompt and give its id; `step` then moves it on (see `generate` for the errors)."""
        params = params or SamplingParams()
        token_ids = self._encode(prompt)
        request_id = next(self._ids)
        total = len(token_ids) + params.max_tokens
        if total > self.shape.max_context_tokens:
            raise InputError(
                f"request {request_id}: {len(token_ids)} prompt and {params.max_tokens} output tokens are "
                f"{total - self.shape.max_context_tokens} more than the model's context "
                f"({self.shape.max_context_tokens})"
            )
        request = Request(
            request_id,
            len(token_ids),
            params.max_tokens,
            time.perf_counter(),
            _block_hashes(token_ids, self.config.block_tokens) if self.config.prefix_caching else (),
        )
        self.scheduler.add(request)
        generator = None
        if params.temperature > 0:
            generator = torch.Generator(self.runner.device)
            generator.manual_seed(params.seed if params.seed is not None else hash((self.seed, request_id)))
        output = RequestOutput(request_id, token_ids, metrics=RequestMetrics(request.arrived_s))
        self._sequences[request_id] = _Sequence(request, params, output, generator)
        return request_id

    def step(self) -> list[RequestOutput]:
        """Run one batch; gives the outputs that got a token. Nothing to do gives an empty list."""
        step = self.scheduler.schedule()
        if step is None:
            return []
        chunks = step.chunks
        sequences = [self._sequences[chunk.request.request_id] for chunk in chunks]
        logits = self.runner.run(
            [
                BatchChunk(sequence.tokens(chunk), chunk.start, chunk.request.block_table, chunk.samples)
                for chunk, sequence in zip(chunks, sequences, strict=True)
            ]
        )
        sampling = [s for s, chunk in zip(sequences, chunks, strict=True) if chunk.samples]
        tokens = self._pick(logits, sampling)
        self.scheduler.complete(step)
        now = time.perf_counter()
        for sequence, token in zip(sampling, tokens, strict=True):
            self._append(sequence, token, now)
        return [sequence.output for sequence in sampling]

    def cancel(self, request_id: int) -> None:
        """Drop a request and free its blocks at once; one that has finished already is left alone."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self.scheduler.finish(sequence.request)

    def _pick(self, logits: torch.Tensor, sequences: list[_Sequence]) -> list[int]:
        greedy = logits.argmax(dim=-1).tolist()  # one transfer for the whole batch
        return [
            sample(logits[row], s.params, s.generator) if s.params.temperature else token
            for row, (s, token) in enumerate(zip(sequences, greedy, strict=True))
        ]

    def _append(self, sequence: _Sequence, token: int, now: float) -> None:
        request, params, output = sequence.request, sequence.params, sequence.output
        output.token_ids.append(token)
        if output.metrics.first_token_s is None:
            output.metrics.first_token_s = now
        ends = token in params.stop_token_ids or (token in self._end_tokens and not params.ignore_eos)
        cut = self._stop_string(output.token_ids, params)
        if ends or cut is not None:
            output.finish_reason = "stop"
            self.scheduler.finish(request)
        elif request.state is State.FINISHED:
            output.finish_reason = "length"
        else:
            return
        output.text = cut if cut is not None else self._decode(output.token_ids) if self.tokenizer else ""
        output.metrics.finished_s = now
        output.metrics.cached_tokens = request.cached_tokens
        output.metrics.preemptions = request.preemptions
        del self._sequences[output.request_id]

    def _stop_string(self, token_ids: list[int], params: SamplingParams) -> str | None:
        """The text before the first stop string, None if there is none yet."""
        if not params.stop or self.tokenizer is None:
            return None
        text = self._decode(token_ids)
        found = [text.find(stop) for stop in params.stop]
        return text[: min(at for at in found if at >= 0)] if max(found) >= 0 else None

    def _decode(self, token_ids: list[int]) -> str:
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise InputError(f"model {self.shape.name!r} has no tokenizer: give the prompt as token ids")
            prompt = list(self.tokenizer(prompt)["input_ids"])
        if not prompt:
            raise InputError("prompt: found no tokens, allowed is at least one")
        for token in prompt:
            if not (isinstance(token, int) and 0 <= token < self.shape.vocab_size):
                raise InputError(
                    f"prompt: found token {token!r}, allowed are 0 to {self.shape.vocab_size - 1}"
                )
        return list(prompt)


def _block_hashes(token_ids: Sequence[int], block_tokens: int) -> list[bytes]:
    """For each full block of a prompt, a hash of everything up to its end."""
    hashes: list[bytes] = []
    previous = b""
    for end in range(block_tokens, len(token_ids) + 1, block_tokens):
        block = b"".join(token.to_bytes(4, "little") for token in token_ids[end - block_tokens : end])
        previous = hashlib.blake2b(previous + block, digest_size=16).digest()
        hashes.append(previous)
    return hashes


def _end_tokens(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id if model.generation_config else model.config.eos_token_id
    if ends is None:
        return set()
    return {ends} if isinstance(ends, int) else set(ends)


def _cache_blocks(shape: ModelShape, device: str, max_running: int, tokens: int | None) -> int:
    """Blocks of the KV cache: those asked for, else a share of the memory that is free after loading."""
    free = free_bytes(device)
    usable = int(free * (1.0 if tokens else _FREE_MEMORY_SHARE[device.partition(":")[0]]))
    affordable = usable // shape.kv_bytes_per_token
    if tokens is None:
        tokens = min(affordable, max_running * shape.max_context_tokens)
        if device == "cpu":
            tokens = min(tokens, _MOST_CACHE_TOKENS_CPU)
    if affordable < max(tokens, _BLOCK_TOKENS):
        short = max(tokens, _BLOCK_TOKENS) * shape.kv_bytes_per_token - usable
        raise InputError(
            f"KV cache of {tokens} tokens: {short / 1e9:.1f} GB more than the {usable / 1e9:.1f} GB that are free"
        )
    return -(-tokens // _BLOCK_TOKENS)
