"""Engine output in OpenAI's response format: as one body, or as server-sent events."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from engine.sampling.sampler import TokenLogprobs
from engine.sampling.token_bytes import token_bytes
from engine.server.engine_thread import InFlightRequest, Sample
from engine.server.schema import StreamOptions

DONE = b"data: [DONE]\n\n"
# A request that ran into the time limit was cut short, as one that ran into max_tokens.
_REASONS = {"stop": "stop", "length": "length", "timeout": "length", "cancelled": "length"}


class Vocabulary:
    """Token texts and bytes for the event loop's side; the engine's thread uses its own tokenizer."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self.tokenizer, self.vocab_size = tokenizer, vocab_size

    @cached_property
    def bytes(self) -> list[bytes]:
        """UTF-8 bytes of a token."""
        return token_bytes(self.tokenizer, self.vocab_size)

    def text(self, token: int) -> str:
        """Text of a token as OpenAI shows it: an incomplete character as escaped bytes, a special token by name."""
        raw = self.bytes[token]
        if not raw:
            return str(self.tokenizer.convert_ids_to_tokens(token) or "")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def usage_of(inflight: InFlightRequest) -> dict[str, Any]:
    """Token usage of a request; a prompt counts once for any n."""
    prompts = [sample.output for sample in firsts(inflight)]
    prompt = sum(len(output.prompt_token_ids) for output in prompts)
    cached = sum(output.metrics.cached_tokens for output in prompts)
    output = sum(sample.tokens for sample in inflight.samples)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def firsts(inflight: InFlightRequest) -> list[Sample]:
    """The first sample of each prompt."""
    found, at = [], 0
    for params in inflight.params if inflight.samples else ():
        found.append(inflight.samples[at])
        at += params.n
    return found


class Chat:
    """Choices of /v1/chat/completions."""

    def __init__(self, request_id: str, model: str, vocabulary: Vocabulary | None) -> None:
        self.head = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": model}
        self.object, self.chunk_object = "chat.completion", "chat.completion.chunk"
        self._vocabulary = vocabulary

    def choice(self, index: int, sample: Sample) -> dict[str, Any]:
        """Choice of a finished sample."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": sample.text},
            "logprobs": self.logprobs(sample, 0, 0),
            "finish_reason": _REASONS[sample.finish_reason or "stop"],
        }

    def first_delta(self, index: int) -> dict[str, Any]:
        """First delta of a streamed choice."""
        return {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }

    def delta(
        self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        """Delta of a streamed choice with new text."""
        return {
            "index": index,
            "delta": {"content": text} if text or reason is None else {},
            "logprobs": logprobs,
            "finish_reason": reason and _REASONS[reason],
        }

    def logprobs(self, sample: Sample, start: int, _: int) -> dict[str, Any] | None:
        """Log probabilities of the tokens from `start` on; None if not requested."""
        found = sample.output.logprobs
        if found is None or self._vocabulary is None:
            return None
        return {"content": [self._token(each) for each in found[start : sample.tokens]]}

    def _token(self, logprobs: TokenLogprobs) -> dict[str, Any]:
        top = [self._one(token, logprob) for token, logprob in logprobs.top.items()]
        return {**self._one(logprobs.token_id, logprobs.logprob), "top_logprobs": top}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        vocabulary = self._vocabulary
        assert vocabulary is not None
        raw = vocabulary.bytes[token]
        return {
            "token": vocabulary.text(token),
            "logprob": finite(logprob),
            "bytes": list(raw) if raw else None,
        }


class Text:
    """Choices of /v1/completions."""

    def __init__(
        self, request_id: str, model: str, vocabulary: Vocabulary | None, echoed: Sequence[str]
    ) -> None:
        """`echoed`: text before the generated text of each choice."""
        self.head = {"id": f"cmpl-{request_id}", "created": int(time.time()), "model": model}
        self.object = self.chunk_object = "text_completion"
        self._vocabulary, self._echoed = vocabulary, echoed

    def choice(self, index: int, sample: Sample) -> dict[str, Any]:
        """Choice of a finished sample."""
        text = self._echoed[index] + sample.text
        return self.delta(
            index, text, self.logprobs(sample, 0, len(self._echoed[index])), sample.finish_reason
        )

    def first_delta(self, index: int) -> dict[str, Any] | None:
        """First delta of a streamed choice: the echoed prompt, if requested."""
        return self.delta(index, self._echoed[index], None, None) if self._echoed[index] else None

    def delta(
        self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        """Delta of a streamed choice with new text."""
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": reason and _REASONS[reason],
        }

    def logprobs(self, sample: Sample, start: int, offset: int) -> dict[str, Any] | None:
        """Log probabilities of the tokens from `start` on; the text of the first begins at character `offset`."""
        found, vocabulary = sample.output.logprobs, self._vocabulary
        if found is None or vocabulary is None:
            return None
        new = found[start : sample.tokens]
        tokens = [vocabulary.text(each.token_id) for each in new]
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        top = [{vocabulary.text(token): finite(value) for token, value in each.top.items()} for each in new]
        return {
            "tokens": tokens,
            "token_logprobs": [finite(each.logprob) for each in new],
            "top_logprobs": top if any(top) else None,
            "text_offset": offsets,
        }


Form = Chat | Text


def whole(form: Form, inflight: InFlightRequest) -> bytes:
    """Body of a response that is not streamed."""
    choices = [form.choice(index, sample) for index, sample in enumerate(inflight.samples)]
    return _json({**form.head, "object": form.object, "choices": choices, "usage": usage_of(inflight)})


class Stream:
    """Events of one stream; the constant part of each event is serialised once."""

    def __init__(self, form: Form, inflight: InFlightRequest, options: StreamOptions) -> None:
        self._form, self._inflight, self._options = form, inflight, options
        head = json.dumps({**form.head, "object": form.chunk_object})
        self._open = f'data: {head[:-1]}, "choices": ['
        self._close = '], "usage": null}\n\n' if options.include_usage else "]}\n\n"
        self._head = head
        self._sent = [(0, 0, False)] * len(inflight.samples)  # characters, tokens, whether it is over
        self._offsets = [0] * len(inflight.samples)

    def first(self) -> bytes:
        """First events of the choices."""
        opened = [self._form.first_delta(index) for index in range(len(self._sent))]
        return "".join(self._event(each) for each in opened if each is not None).encode()

    def news(self, ends: bool = True) -> bytes:
        """Events of new tokens, possibly none. `ends`: finish reasons too."""
        events, counts = "", self._options.continuous_usage_stats
        for index, sample in enumerate(self._inflight.samples):
            characters, tokens, over = self._sent[index]
            reason = sample.finish_reason if ends else None
            text, grew = sample.text[characters:], sample.tokens > tokens
            if over or not (text or reason or (counts and grew)):
                continue
            logprobs = None
            if sample.output.logprobs is not None and grew:
                logprobs = self._form.logprobs(sample, tokens, self._offsets[index])
                self._offsets[index] += len(text)
            self._sent[index] = (len(sample.text), sample.tokens, reason is not None)
            events += self._event(self._form.delta(index, text, logprobs, reason))
        return events.encode()

    def usage(self) -> bytes:
        """The usage event, if requested."""
        if not self._options.include_usage:
            return b""
        usage = json.dumps(usage_of(self._inflight))
        return f'data: {self._head[:-1]}, "choices": [], "usage": {usage}}}\n\n'.encode()

    def _event(self, choice: dict[str, Any]) -> str:
        close = self._close
        if self._options.continuous_usage_stats:
            close = f'], "usage": {json.dumps(usage_of(self._inflight))}}}\n\n'
        return f"{self._open}{json.dumps(choice)}{close}"


def embedded(vector: list[float], encoding: str) -> list[float] | str:
    """An embedding in the requested encoding: floats or base64."""
    if encoding == "float":
        return vector
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def finite(logprob: float) -> float:
    """A log probability as JSON: -9999 for minus infinity, as OpenAI writes it."""
    return max(logprob, -9999.0)


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()
