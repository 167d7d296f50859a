"""`LLM`: prompts in, tokens out, by continuous batching.

`step` is the whole engine: the scheduler plans the step, the runner computes it, one token is sampled for each request
whose known tokens are all computed, and the scheduler updates its counts. Requests may be added and cancelled between
any two steps. The n samples of a prompt are n requests; the other n - 1 are queued when the first has its first token,
so that they find the prompt's full blocks in the prefix cache instead of computing them again.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from numbers import Integral, Real
from typing import Any, TypedDict, Unpack, cast

from engine.batch import BatchChunk, Request, SchedulerConfig, Step
from engine.errors import InputError, TooLongError
from engine.inference.compatibility import require_servable
from engine.inference.model_runner import BLOCK_TOKENS, ModelRunner, cache_blocks
from engine.inference.request import Generation, RequestMetrics, RequestOutput, block_hashes
from engine.layers.linear import COMPUTE_DTYPES, require_weights, weight_bytes
from engine.models.load import DTYPES, load_model, load_tokenizer, shape_of
from engine.profile.model_shape import ModelShape
from engine.sampling.json_grammar import JsonAnswer, JsonTokens
from engine.sampling.sampler import (
    SamplingParams,
    SamplingState,
    TokenLogprobs,
    random_key,
    sample,
    token_logprobs,
)
from engine.sampling.token_bytes import token_bytes
from engine.scheduler import Scheduler

_LIMITS = {"cpu": (64, 512), "cuda": (256, 8192)}  # requests, tokens of a step

Prompt = str | list[int]


class RequestOptions(TypedDict, total=False):
    """How a request is scheduled.

    priority: lower is served first (see `engine.scheduler` for what is guaranteed); 0 if missing.
    timeout_s: seconds from now after which the request ends with the tokens that it has by then; none if missing.
    streams: keep the output's text up to date while it runs; not if missing.
    """

    priority: int
    timeout_s: float | None
    streams: bool


class LLM:
    """A causal language model that serves many requests at a time on one device."""

    def __init__(
        self,
        model: str = "smollm2-135m",
        device: str = "cpu",
        dtype: str = "float32",
        *,
        max_running_requests: int | None = None,
        max_step_tokens: int | None = None,
        kv_cache_tokens: int | None = None,
        prefix_caching: bool = True,
        max_waiting_requests: int | None = None,
        draft_tokens: int = 0,
        seed: int = 0,
    ) -> None:
        """Load `model` (see `engine.models.load`) and allocate its KV cache.

        Args:
            model: "smollm2-135m", a path, a hub id, or "NAME@dummy".
            device: "cpu" or "cuda".
            dtype: "float32", "bfloat16" or "float16"; weights only: "int8" on a CPU, "fp8" on CUDA.
            max_running_requests: most requests that decode together; None: 64 on a CPU, 256 on CUDA.
            max_step_tokens: token budget of one step, decodes and prompt chunks together; None: 512 on a CPU, 8192 on
                CUDA.
            kv_cache_tokens: tokens that the KV cache holds; None takes a share of the free memory.
            prefix_caching: share the KV blocks of common prompt prefixes.
            max_waiting_requests: most requests in the queue, beyond which they are refused; None: no limit.
            draft_tokens: most tokens drafted per step and request by prompt lookup (`engine.sampling.speculation`);
                the output stays the same.
            seed: for the random weights of "NAME@dummy", and for requests without their own.

        Raises:
            InputError: unknown model or device, an architecture that cannot be served, or too little memory.
        """
        most_requests, most_tokens = _LIMITS["cpu" if device == "cpu" else "cuda"]
        max_running_requests = most_requests if max_running_requests is None else max_running_requests
        max_step_tokens = most_tokens if max_step_tokens is None else max_step_tokens
        require_weights(dtype, device)
        compute, weights = COMPUTE_DTYPES.get(dtype, dtype), dtype if dtype in COMPUTE_DTYPES else None
        self.model = load_model(model, compute, device, seed)
        require_servable(self.model, model)
        self.shape: ModelShape = replace(
            shape_of(self.model, model, compute), dtype=dtype, weight_bytes=weight_bytes(self.model, weights)
        )
        self.tokenizer: Any = None
        if not model.endswith("@dummy") or self.shape.vocab_size >= 49_152:
            self.tokenizer = load_tokenizer(model)
        self.config = SchedulerConfig(
            max_running_requests=max_running_requests,
            max_step_tokens=max_step_tokens,
            block_tokens=BLOCK_TOKENS,
            num_blocks=cache_blocks(self.shape, device, max_running_requests, kv_cache_tokens),
            prefix_caching=prefix_caching,
            max_waiting_requests=max_waiting_requests,
        )
        self.scheduler = Scheduler(self.config)
        self.runner = ModelRunner(self.model, self.shape, self.config, device, DTYPES[compute], weights)
        if isinstance(draft_tokens, bool) or not isinstance(draft_tokens, int) or draft_tokens < 0:
            raise InputError(f"draft_tokens: found {draft_tokens!r}, allowed is a whole number ≥ 0")
        self.draft_tokens = draft_tokens
        self.on_step: Callable[[Step], None] | None = None  # called with each step before it runs
        self.seed = seed
        self._ids = itertools.count()
        self._generations: dict[Any, Generation] = {}  # those in the scheduler, by request id
        self._deadlines: list[tuple[float, int]] = []  # a heap of (time, request id)
        self._end_tokens = _end_tokens(self.model)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts (texts or lists of token ids) in shared batches; one output per prompt, in order.

        With n > 1 the output is the first sample, and its `samples` are all of them. An error or Ctrl-C leaves
        nothing queued. `priority` and `timeout_s`: see `RequestOptions`.

        Raises:
            InputError: an empty prompt, a token id outside the vocabulary, or `params` of another length than
                `prompts`; before anything runs.
            TooLongError: more tokens than the model's context or the KV cache holds; before anything runs.
            QueueFullError: more prompts than may wait.
        """
        alone = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        batch = cast("list[Prompt]", [prompts] if alone else list(prompts))
        each = [params or SamplingParams()] * len(batch) if not isinstance(params, Sequence) else params
        if len(each) != len(batch):
            raise InputError(
                f"params: found {len(each)} for {len(batch)} prompts; allowed is one, or one each"
            )
        prepared = [
            self._prepare(prompt, its, priority=priority, timeout_s=timeout_s)
            for prompt, its in zip(batch, each, strict=True)
        ]
        wanted = [generation.output for generation in prepared]
        try:
            for generation in prepared:
                self._enqueue(generation)
            for output in wanted:
                while any(sample.finish_reason is None for sample in output.samples):
                    self.step()
        finally:
            for output in wanted:
                self.cancel(output.request_id)
        return wanted

    def chat(self, messages: Sequence[dict[str, str]], params: SamplingParams | None = None) -> RequestOutput:
        """Generate the next message of a conversation ([{"role": …, "content": …}]), by the model's chat template."""
        return self.generate(self.chat_prompt(messages), params)[0]

    def chat_prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, with the prompt for the model's next message at the end.

        Raises:
            InputError: the model has no chat template.
        """
        if self.tokenizer is None or not self.tokenizer.chat_template:
            raise InputError(f"model {self.shape.name!r} has no chat template")
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> Iterator[RequestOutput]:
        """Yield the request's output after each token of any of its samples; leaving the loop cancels the request.

        `text` only grows: part of a character, and what may become a stop string, are held back.
        """
        generation = self._prepare(prompt, params, priority=priority, timeout_s=timeout_s, streams=True)
        samples = generation.output.samples
        try:
            self._enqueue(generation)
            while any(output.finish_reason is None for output in samples):
                for progressed in self.step():
                    if any(progressed is output for output in samples):
                        yield progressed
        finally:
            self.cancel(generation.output.request_id)

    def add_request(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[RequestOptions]
    ) -> int:
        """Queue a prompt (text or token ids) and return its request id; `step` computes it.

        Raises:
            InputError: as `generate`.
            QueueFullError: `max_waiting_requests` are waiting already.
        """
        return self.submit(prompt, params, **options).request_id

    def submit(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[RequestOptions]
    ) -> RequestOutput:
        """Queue a prompt as `add_request` does and return its output, which fills while steps run."""
        generation = self._prepare(prompt, params, **options)
        self._enqueue(generation)
        return generation.output

    def step(self) -> list[RequestOutput]:
        """Run one step; returns the outputs that got a token or timed out, an empty list without work."""
        late = self._drop_late()
        if self.draft_tokens:
            for generation in self._generations.values():
                generation.draft(self.draft_tokens)
        step = self.scheduler.schedule()
        if step is None:
            return late
        if self.on_step is not None:
            self.on_step(step)
        each = [(self._generations[chunk.request.request_id], chunk) for chunk in step.chunks]
        sampling = [(generation, chunk) for generation, chunk in each if chunk.samples]
        logits = self.runner.run(
            [
                BatchChunk(
                    generation.tokens(chunk),
                    chunk.start,
                    chunk.request.block_table,
                    1 + chunk.request.draft_tokens if chunk.samples else 0,
                )
                for generation, chunk in each
            ]
        )
        states = [state for generation, chunk in sampling for state in generation.states(chunk)]
        tokens = sample(logits, states) if states else []
        picked = list(zip(tokens, token_logprobs(logits, states, tokens), strict=True))
        new: list[list[tuple[int, TokenLogprobs | None]]] = []
        kept: dict[Request, int] = {}
        for generation, chunk in sampling:
            checked = 1 + chunk.request.draft_tokens
            kept[chunk.request] = generation.keep(chunk, [token for token, _ in picked[:checked]])
            new.append(picked[: 1 + kept[chunk.request]])
            del picked[:checked]
        self.scheduler.complete(step, kept)
        now_s = time.perf_counter()
        for (generation, _), its in zip(sampling, new, strict=True):
            if any(generation.append(token, logprobs, now_s) for token, logprobs in its):
                self.scheduler.finish(generation.request)
                del self._generations[generation.output.request_id]
            if generation.held:
                self._release_held(generation)
        return late + [generation.output for generation, _ in sampling]

    def cancel(self, request_id: int) -> None:
        """Cancel a request and free its KV blocks; finished samples keep their output.

        The id from `add_request` cancels all samples of its prompt, the id of a further sample that sample alone.
        """
        self._drop(request_id, "cancelled")

    @cached_property
    def json_tokens(self) -> JsonTokens:
        """Token masks of JSON for this vocabulary; the first access takes about a second.

        Raises:
            InputError: the model has no tokenizer, or one whose tokens cannot write every JSON text.
        """
        if self.tokenizer is None:
            raise InputError(f"model {self.shape.name!r} has no tokenizer: it can't be held to JSON")
        return JsonTokens(token_bytes(self.tokenizer, self.shape.vocab_size))

    def _prepare(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        *,
        priority: int = 0,
        timeout_s: float | None = None,
        streams: bool = False,
    ) -> Generation:
        """Check a request and make its generation, without queueing it."""
        params = params or SamplingParams()
        params.check_vocabulary(self.shape.vocab_size)
        if params.stop and self.tokenizer is None:
            raise InputError(f"model {self.shape.name!r} has no tokenizer: give stop_token_ids, not stop")
        if isinstance(priority, bool) or not isinstance(priority, Integral):
            raise InputError(f"priority: found {priority!r}, allowed is a whole number")
        number = isinstance(timeout_s, Real) and not isinstance(timeout_s, bool)
        if timeout_s is not None and not (number and 0 < timeout_s < math.inf):
            raise InputError(f"timeout_s: found {timeout_s!r}, allowed is a number of seconds > 0")
        token_ids = self._encode(prompt)
        total = len(token_ids) + params.max_tokens
        first = next(self._ids)
        if total > self.shape.max_context_tokens:
            raise TooLongError(
                f"{len(token_ids)} prompt and {params.max_tokens} output tokens are "
                f"{total - self.shape.max_context_tokens} more than the model's context "
                f"({self.shape.max_context_tokens})",
                request_id=first,
            )
        now_s = time.perf_counter()
        hashes = block_hashes(token_ids, self.config.block_tokens) if self.config.prefix_caching else ()
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else self._end_tokens)}
        made = []
        for index in range(params.n):
            request_id = next(self._ids) if index else first
            request = Request(request_id, len(token_ids), params.max_tokens, now_s, hashes, priority)
            seed = (self.seed, first) if params.seed is None else (params.seed,)
            output = RequestOutput(request_id, token_ids, metrics=RequestMetrics(now_s))
            if params.logprobs is not None:
                output.logprobs, output.cumulative_logprob = [], 0.0
            answer = JsonAnswer(self.json_tokens, params.max_tokens) if params.json_object else None
            key = random_key(seed, index)
            state = SamplingState(params, key, token_ids, output.token_ids, tuple(ends), answer)
            deadline_s = None if timeout_s is None else now_s + timeout_s
            made.append(Generation(request, state, output, self.tokenizer, first, streams, deadline_s))
        self.scheduler.check_fit(made[0].request)
        made[0].held = made[1:]
        made[0].output.others = [generation.output for generation in made[1:]]
        return made[0]

    def _enqueue(self, generation: Generation) -> None:
        is_first = generation.first_id == generation.output.request_id
        self.scheduler.add(generation.request, counts=is_first)
        self._generations[generation.request.request_id] = generation
        if generation.deadline_s is not None:
            heapq.heappush(self._deadlines, (generation.deadline_s, generation.output.request_id))
        if not self.config.prefix_caching:
            self._release_held(generation)

    def _release_held(self, generation: Generation) -> None:
        """Queue the other samples of a prompt, with its time of arrival."""
        held, generation.held = generation.held, []
        for other in held:
            if other.output.finish_reason is None:  # not cancelled in the meantime
                self._enqueue(other)

    def _drop_late(self) -> list[RequestOutput]:
        late: list[RequestOutput] = []
        while self._deadlines and self._deadlines[0][0] <= time.perf_counter():
            late += self._drop(heapq.heappop(self._deadlines)[1], "timeout")
        return late

    def _drop(self, request_id: int, reason: str) -> list[RequestOutput]:
        """End a request and its samples in any state; returns the outputs that this ended."""
        now_s = time.perf_counter()
        candidates = [each for known in self._generations.values() for each in (known, *known.held)]
        dropped = [each for each in candidates if request_id in (each.output.request_id, each.first_id)]
        for generation in dropped:
            if self._generations.pop(generation.output.request_id, None):
                self.scheduler.finish(generation.request)
            generation.finish(reason, now_s)
        return [generation.output for generation in dropped]

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


def _end_tokens(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id if model.generation_config else model.config.eos_token_id
    if ends is None:
        return set()
    return {ends} if isinstance(ends, int) else set(ends)
