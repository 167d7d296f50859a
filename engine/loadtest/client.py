"""A client of one OpenAI-compatible server that notes when each token came: vLLM, SGLang, llama.cpp, a rented API.

It streams `/v1/completions` or `/v1/chat/completions`. Before it measures it greets the server: is the model there,
is the key good, which of the fields beyond OpenAI's does it take (`ignore_eos` and `min_tokens`, so that answers have
the length that was asked for), does it count tokens (`stream_options.include_usage`).

Prompts of an exact length are random token ids where the server takes lists of them (vLLM, SGLang, llama.cpp and ours
do, in completions). Elsewhere they are random common English words, each one token in the usual vocabularies: two
probes read off the server's own count how many tokens a word is and how many the chat template adds.

Times are those of the event loop's clock, in seconds, when the bytes reached this process. A token is a piece of the
stream with text in it, or, in completions, any piece before the last: a token may be half a character, with no text
yet. With usage in each piece (vLLM's `continuous_usage_stats`) the count is the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from engine.errors import InputError
from engine.loadtest.answer import Answer, error_message, one_line, read_piece
from engine.loadtest.sse import EventParser

if TYPE_CHECKING:
    import aiohttp

OnTokens = Callable[[float, int], None]  # (time, tokens so far)
Prompt = Sequence[int] | str

# Tried in this order until the server takes one: vLLM's and ours, SGLang's and llama.cpp's, OpenAI's, any other.
_USAGE = {"stream_options": {"include_usage": True}}
_DIALECTS: tuple[dict[str, Any], ...] = (
    {"ignore_eos": True, "min_tokens": True, **_USAGE},
    {"ignore_eos": True, **_USAGE},
    _USAGE,
    {},
)
_LOWEST_ID = 256  # special tokens and single bytes stand below
_COMMON = """
time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work government number night point home water room
mother area money story fact month lot right study book eye job word business issue side kind head house
service friend father power hour game line end member law car city community name president team minute idea
body information back parent face others level office door health person art war history party result change
morning reason research girl guy moment air teacher force education
"""
_WORDS = _COMMON.split()


@dataclass(frozen=True)
class Endpoint:
    """Address and model of a server. `url` with or without /v1; `model` None takes the server's only one."""

    url: str
    model: str | None = None
    key: str | None = field(default=None, repr=False)  # sent as a bearer token
    chat: bool = False
    temperature: float = 0.0
    vocabulary: int | None = None  # token ids are drawn below it; None: tried out

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(f"{self.url}: allowed is an address such as http://127.0.0.1:8000")

    @property
    def root(self) -> str:
        """The address without a slash or /v1 at the end."""
        return self.url.rstrip("/").removesuffix("/v1").rstrip("/")


@dataclass(frozen=True)
class Dialect:
    """Request fields and prompt form that a server accepts, found by trying."""

    model: str
    prompt_form: str  # "token ids" or "words"
    fields: Mapping[str, Any]  # of the body, beyond the common ones
    vocabulary: int = 0  # of token ids
    tokens_per_word: float = 1.0
    extra_tokens: int = 0  # that the server counts beyond the words: template, begin of text
    counts_tokens: bool = True  # it sends usage
    max_context_tokens: int | None = None  # if it says so
    server: str = ""  # its Server header

    def describe(self) -> str:
        """One sentence about the dialect, for a report."""
        ends = "asked to go on to the asked length" if "ignore_eos" in self.fields else "may end earlier"
        counts = "token counts from the server's usage" if self.counts_tokens else "tokens counted by pieces"
        return f"prompts as {self.prompt_form}; answers {ends}; {counts}"


class Client:
    """Requests to one endpoint over as many connections as it takes; use with `async with`, in one event loop."""

    def __init__(self, endpoint: Endpoint, timeout_s: float = 600.0) -> None:
        if not 0 < timeout_s < float("inf"):
            raise InputError(f"timeout_s {timeout_s}: a positive number of seconds is allowed")
        self.endpoint, self.timeout_s = endpoint, timeout_s
        path = "/v1/chat/completions" if endpoint.chat else "/v1/completions"
        self._url = endpoint.root + path
        self._session: aiohttp.ClientSession | None = None
        self.dialect = Dialect(endpoint.model or "", "words", {})
        self.now: Callable[[], float] = lambda: 0.0  # the event loop's clock

    async def __aenter__(self) -> Client:
        import aiohttp

        self.now = asyncio.get_running_loop().time
        headers = {"Authorization": f"Bearer {self.endpoint.key}"} if self.endpoint.key else {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=75),
            timeout=aiohttp.ClientTimeout(total=None),  # one clock, that of `stream`
            headers={**headers, "Content-Type": "application/json"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open session."""
        if self._session is None:
            raise RuntimeError("the client is used outside of `async with`")
        return self._session

    async def greet(self, continuous_usage: bool = False) -> Dialect:
        """Find out which fields and prompts the server accepts; needed before `prompt`.

        Args:
            continuous_usage: also ask for a count of tokens in each piece.

        Raises:
            InputError: it can't be reached, refuses the key, has no such model, or doesn't stream; one line each.
        """
        model, longest, server = await self._find_model()
        forms = ["words"] if self.endpoint.chat else ["token ids", "words"]
        vocabularies = (self.endpoint.vocabulary,) if self.endpoint.vocabulary else (30_000, 1_000, 320)
        answer = Answer()
        for form in forms:
            for fields in _dialects(continuous_usage):
                for vocabulary in vocabularies if form == "token ids" else (0,):
                    self.dialect = Dialect(model, form, fields, vocabulary or 0)
                    answer = await self.stream(self.prompt(8, np.random.default_rng(0)), 2)
                    if answer.status == "finished" and answer.pieces:
                        return await self._calibrated(longest, server, answer)
                    if answer.http not in (400, 422):
                        raise self._refusal(answer)
        raise self._refusal(answer)

    def prompt(
        self, tokens: int, rng: np.random.Generator, blocks: Sequence[Hashable] = (), block_tokens: int = 16
    ) -> Prompt:
        """A random prompt that the server counts as `tokens` tokens (≥ 1), or as few as its template allows.

        `blocks`: keys of its first full blocks; the same key is the same tokens in every prompt (token ids only).
        """
        speaks = self.dialect
        if speaks.prompt_form == "token ids":
            lowest = min(_LOWEST_ID, speaks.vocabulary // 2)
            shared: list[int] = []
            for key in list(blocks)[: tokens // block_tokens]:
                own = np.random.default_rng(zlib.crc32(repr(key).encode()))
                shared += own.integers(lowest, speaks.vocabulary, block_tokens).tolist()
            return [*shared, *rng.integers(lowest, speaks.vocabulary, tokens - len(shared)).tolist()]
        words = max(1, round((tokens - speaks.extra_tokens) / speaks.tokens_per_word))
        return " " + " ".join(_WORDS[i] for i in rng.integers(0, len(_WORDS), words))

    def body(self, prompt: Prompt, max_tokens: int) -> bytes:
        """The request's body as JSON."""
        fields = dict(self.dialect.fields)
        if "min_tokens" in fields:
            fields["min_tokens"] = max_tokens
        asked: dict[str, Any] = {
            "model": self.dialect.model,
            "max_tokens": max_tokens,
            "temperature": self.endpoint.temperature,
            "stream": True,
            **fields,
        }
        if self.endpoint.chat:
            asked["messages"] = [{"role": "user", "content": prompt}]
        else:
            asked["prompt"] = prompt
        return json.dumps(asked, separators=(",", ":")).encode()

    async def stream(
        self, prompt: Prompt | bytes, max_tokens: int, on_tokens: OnTokens | None = None
    ) -> Answer:
        """Send one request and read its answer to the end; what goes wrong is in the answer, never raised.

        Args:
            prompt: as `prompt` gives it, or a whole body, built beforehand by `body`.
            max_tokens: of the answer.
            on_tokens: called at each piece with tokens in it.
        """
        import aiohttp

        body = prompt if isinstance(prompt, bytes) else self.body(prompt, max_tokens)
        answer = Answer(sent_s=self.now())
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                self.session.post(self._url, data=body) as response,
            ):
                answer.http = response.status
                if response.status != 200:
                    answer.status = "rejected" if response.status in (429, 503) else "lost"
                    answer.error = f"HTTP {response.status}: {error_message(await response.read())}"
                elif "event-stream" not in response.headers.get("Content-Type", ""):
                    answer.error = "the server answered without streaming"
                else:
                    await self._read(response, answer, on_tokens)
        except TimeoutError:
            answer.status, answer.error = "timed_out", "timeout"
        except (aiohttp.ClientError, OSError) as error:
            answer.status, answer.error = "lost", f"{type(error).__name__}: {_reason(error)}"
        return answer

    async def _read(
        self, response: aiohttp.ClientResponse, answer: Answer, on_tokens: OnTokens | None
    ) -> None:
        parser, done = EventParser(), False
        async for part in response.content.iter_any():
            now_s = self.now()
            for data in parser.feed(part):
                if data == b"[DONE]":
                    done = True
                    continue
                try:
                    has_token, ended = read_piece(json.loads(data), self.endpoint.chat, answer)
                except (ValueError, AttributeError, TypeError, LookupError) as error:
                    piece = one_line(data.decode(errors="replace"))
                    is_error = isinstance(error, InputError)
                    answer.error = str(error) if is_error else f"a piece of another form: {piece}"
                    return
                done = done or ended
                if has_token:
                    if not answer.pieces:
                        answer.first_token_s = now_s
                    answer.pieces += 1
                    answer.last_token_s = now_s
                    if on_tokens is not None:
                        on_tokens(now_s, answer.output_tokens or answer.pieces)
        if not done:
            answer.error = "the stream broke off"
        elif not answer.pieces:
            answer.error = "an answer without a token"
        else:
            answer.status = "finished"

    async def get(self, path: str) -> tuple[int, bytes, Mapping[str, str]]:
        """(status, body, headers) of a GET below the root; (0, reason, {}) if the server can't be reached."""
        import aiohttp

        try:
            async with asyncio.timeout(10.0), self.session.get(self.endpoint.root + path) as response:
                return response.status, await response.read(), response.headers
        except TimeoutError:
            return 0, b"no answer within 10 s", {}
        except (aiohttp.ClientError, OSError) as error:
            return 0, _reason(error).encode(), {}

    async def _find_model(self) -> tuple[str, int | None, str]:
        """(model, its longest context if the server reports it, Server header)."""
        url, wanted = self.endpoint.url, self.endpoint.model
        status, body, headers = await self.get("/v1/models")
        if not status:
            raise InputError(f"{url}: cannot be reached: {body.decode(errors='replace')}")
        if status in (401, 403):
            raise self._refusal(Answer(http=status))
        known: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(ValueError, KeyError, TypeError):  # no list, or another form
            known = {row["id"]: row for row in json.loads(body)["data"]} if status == 200 else {}
        if wanted is None:
            if len(known) != 1:
                names = ", ".join(known) or "none that it names"
                raise InputError(f"{url}: --model: found none, the server has {names}")
            wanted = next(iter(known))
        if known and wanted not in known:
            shown = ", ".join(list(known)[:8]) + (" …" if len(known) > 8 else "")
            raise InputError(f"{url}: model {wanted!r}: the server has no such model, allowed: {shown}")
        longest = known.get(wanted, {}).get("max_model_len")
        return wanted, longest if isinstance(longest, int) else None, headers.get("Server", "")

    async def _calibrated(self, longest: int | None, server: str, answer: Answer) -> Dialect:
        """The dialect that just worked, with what its words weigh."""
        found = self.dialect
        per_word, extra = 1.0, 0
        if found.prompt_form == "words" and answer.prompt_tokens is not None:
            rng = np.random.default_rng(1)
            few, many = [await self.stream(self.prompt(count, rng), 1) for count in (1, 65)]
            if few.prompt_tokens is not None and many.prompt_tokens is not None:
                per_word = max(0.1, (many.prompt_tokens - few.prompt_tokens) / 64)
                extra = round(few.prompt_tokens - per_word)
        self.dialect = replace(
            found,
            tokens_per_word=per_word,
            extra_tokens=extra,
            counts_tokens=answer.output_tokens is not None,
            max_context_tokens=longest,
            server=server,
        )
        return self.dialect

    def _refusal(self, answer: Answer) -> InputError:
        url = self.endpoint.url
        if answer.http in (401, 403):
            given = "the key that was given" if self.endpoint.key else "requests without a key"
            return InputError(
                f"{url}: the server refuses {given} (HTTP {answer.http}): --key or OPENAI_API_KEY"
            )
        return InputError(f"{url}: {answer.error or 'the server sent no token'}")


def _dialects(continuous_usage: bool) -> list[dict[str, Any]]:
    """Fields to try, the best first."""
    if not continuous_usage:
        return [dict(fields) for fields in _DIALECTS]
    counting = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    return [
        {**fields, **more}
        for fields in _DIALECTS
        for more in ((counting, {}) if "stream_options" in fields else ({},))
    ]


def _reason(error: Exception) -> str:
    """Why there was no connection, or no more."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else one_line(str(error) or type(error).__name__)
