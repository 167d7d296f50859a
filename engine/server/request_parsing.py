"""From request bodies to token ids and sampling parameters, off the event loop."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from engine.errors import InputError
from engine.inference.llm import LLM
from engine.sampling.sampler import SamplingParams
from engine.server import schema
from engine.server.engine_thread import EngineThread
from engine.server.errors import ApiError, bad
from engine.server.lifecycle import RequestLifecycle
from engine.server.responses import Vocabulary

_T = TypeVar("_T")
_CHARACTERS_PER_TOKEN = 8  # of a text with more, a part is tokenized first, to see whether it can fit
_CUT_TOKENS = 64  # more than a cut in the middle of a text adds


@dataclass
class ServedModel:
    """The served model as the routes use it: engine, tokenizer, limits, lifecycle."""

    engine: EngineThread
    lifecycle: RequestLifecycle
    model: str
    max_output_tokens: int | None
    log_prompts: bool
    needs_key: bool
    draining: Callable[[], bool]

    def __post_init__(self) -> None:
        self._tokenizing = ThreadPoolExecutor(2, thread_name_prefix="tokenizer")
        self.created = int(time.time())

    @property
    def llm(self) -> LLM:
        """The loaded model; requests are refused before it is loaded."""
        assert self.engine.llm is not None
        return self.engine.llm

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """Tokenizer of the event loop's side; the engine's thread uses its own copy."""
        if self.llm.tokenizer is None:
            return None
        copied = copy.deepcopy(self.llm.tokenizer)
        copied("once")  # the first call may set it up; from then on threads may share it
        return Vocabulary(copied, self.llm.shape.vocab_size)

    def require_tokenizer(self) -> Vocabulary:
        """The tokenizer; 400 for a model without one."""
        if self.vocabulary is None:
            raise bad("this model has no tokenizer: give token ids")
        return self.vocabulary

    @property
    def longest(self) -> int:
        """Maximum tokens of a request, output included."""
        return min(self.llm.shape.max_context_tokens, self.llm.config.cache_tokens)

    async def in_thread(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run `work` in a thread, so that a long text does not block the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, work, *arguments)

    def require_model(self, name: str | None) -> None:
        """Raise 404 unless `name` is the served model."""
        if name is not None and name != self.model:
            raise ApiError(
                404, f"The model {name[:200]!r} does not exist; this server has {self.model!r}",
                code="model_not_found", param="model",
            )  # fmt: skip

    def encode(self, text: str, special: bool, refuses: bool = True) -> list[int]:
        """Token ids of a text.

        `refuses`: raise ApiError 400 for a text that is far too long before all of it is tokenized.
        """
        tokenizer = self.require_tokenizer().tokenizer
        part = text[: _CHARACTERS_PER_TOKEN * self.longest]
        if refuses and len(part) < len(text):
            least = len(tokenizer(part, add_special_tokens=special)["input_ids"]) - _CUT_TOKENS
            if least > self.longest:
                raise bad(
                    f"This model's maximum context length is {self.longest} tokens; you sent more than {least}",
                    code="context_length_exceeded",
                )
        return [int(token) for token in tokenizer(text, add_special_tokens=special)["input_ids"]]

    def prompts(self, given: Any, param: str) -> list[list[int]]:
        """Token ids of one prompt or of several, each a text or token ids."""
        several = isinstance(given, list) and isinstance(given[0], str | list)
        found = []
        for each in given if several else [given]:
            if isinstance(each, str):
                each = self.encode(each, special=True)
            for token in each:
                if token >= self.llm.shape.vocab_size:
                    raise bad(
                        f"{param}: found token {token}, allowed are 0 to {self.llm.shape.vocab_size - 1}",
                        param,
                    )
            if not each:
                raise bad(f"{param}: found no tokens, allowed is at least one", param)
            found.append(each)
        return found

    def conversation(self, messages: list[schema.ChatMessage]) -> list[int]:
        """Token ids of a conversation."""
        tokenizer = self.require_tokenizer().tokenizer
        if not tokenizer.chat_template:
            raise bad(f"the model {self.model!r} has no chat template: use /v1/completions", "messages")
        turns = [
            {"role": "system" if turn.role == "developer" else turn.role, "content": turn.text}
            for turn in messages
        ]
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # what a template refuses, it says by raising
            raise bad(f"messages: the model's chat template refuses them: {error}", "messages") from None
        return self.encode(text, False)

    def sampling(
        self, body: schema.Sampling, max_tokens: int | None, logprobs: int | None, longest_prompt: int
    ) -> SamplingParams:
        """Sampling parameters of a body; without max_tokens, the rest of the context."""
        room = self.longest - longest_prompt
        if max_tokens is None:
            max_tokens = max(min(room, self.max_output_tokens or room), 1)
        elif self.max_output_tokens is not None and max_tokens > self.max_output_tokens:
            raise bad(
                f"max_tokens: found {max_tokens}, allowed are up to {self.max_output_tokens}", "max_tokens"
            )
        if max_tokens > room:
            raise bad(
                f"This model's maximum context length is {self.longest} tokens; you asked for {longest_prompt} in "
                f"the prompt and {max_tokens} in the answer",
                code="context_length_exceeded",
            )
        if body.stream_options is not None and not body.stream:
            raise bad("stream_options: allowed with stream only", "stream_options")
        n = body.n or 1
        if n > self.llm.config.max_running_requests:
            raise bad(f"n: found {n}, allowed are up to {self.llm.config.max_running_requests}", "n")
        stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
        if stops:
            self.require_tokenizer()
        as_json = body.response_format is not None and body.response_format.type == "json_object"
        if as_json and max_tokens < 2:
            raise bad("max_tokens: a JSON object takes at least 2", "max_tokens")
        try:
            biases = {int(token): value for token, value in (body.logit_bias or {}).items()}
        except ValueError:
            raise bad("logit_bias: found a key that is no token id", "logit_bias") from None
        try:
            params = SamplingParams(
                max_tokens=max_tokens,
                temperature=1.0 if body.temperature is None else body.temperature,
                top_p=body.top_p or 1.0,
                top_k=body.top_k or 0,
                min_p=body.min_p or 0.0,
                n=n,
                stop=stops,
                stop_token_ids=body.stop_token_ids or [],
                seed=body.seed,
                presence_penalty=body.presence_penalty or 0.0,
                frequency_penalty=body.frequency_penalty or 0.0,
                repetition_penalty=body.repetition_penalty or 1.0,
                logit_bias=biases,
                min_tokens=body.min_tokens or 0,
                ignore_eos=bool(body.ignore_eos),
                logprobs=logprobs,
                json_object=as_json,
            )
            params.check_vocabulary(self.llm.shape.vocab_size)
            if as_json:
                _ = self.llm.json_tokens  # made here, not while others wait for the next step
        except InputError as error:
            raise bad(str(error), error.key or None) from None
        return params
