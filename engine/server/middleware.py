"""The door: what every request passes before the application sees it, and the line in the log that it leaves.

It gives a request its id, looks up its key, refuses bodies that are too large or too slow and requests that come
before the model is loaded or while the server drains, and writes one line when the answer is over. Nothing of a
prompt is in that line, nor in what is said about a mistake of the server, unless the server was told to.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from engine.server.engine_thread import EngineLoop
from engine.server.errors import ApiError
from engine.usage.api_keys import ApiKey, ApiKeys
from engine.usage.database import UsageDatabaseError

log = logging.getLogger("engine.server")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

ANONYMOUS = ApiKey(
    key_id="anonymous", prefix="", name="anonymous", customer="anonymous", plan=None, requests_per_minute=None,
    tokens_per_minute=None, budget_micro_usd_per_month=None, priority=0, created_s=0.0, expires_at_s=None,
    revoked_s=None,
)  # fmt: skip
_OPEN = {"/health", "/ready", "/metrics", "/openapi.json"}  # need no key and no model
_BODY_TIMEOUT_S = 30.0
_READ_ON = (
    8  # a body too large by up to this factor is read to its end, so that the client hears why it is refused
)
_CLOSING = (b"connection", b"close")


@dataclass
class Visit:
    """One request, as the log tells of it."""

    method: str
    path: str
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    arrived_s: float = field(default_factory=time.time)
    begun_s: float = field(default_factory=time.perf_counter)
    key: ApiKey = ANONYMOUS
    status: int = 0
    outcome: str = "-"  # as in the meter
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    first_token_s: float | None = None  # after arrival
    prompt: str = ""
    headers: dict[str, str] = field(default_factory=dict)  # to be added to the answer

    def line(self) -> str:
        """For the access log."""
        first = "-" if self.first_token_s is None else f"{self.first_token_s:.3f}"
        line = (
            f"{self.request_id} {self.key.key_id} {self.method} {self.path} {self.status} {self.outcome} "
            f"prompt={self.prompt_tokens} cached={self.cached_tokens} output={self.output_tokens} "
            f"first_s={first} total_s={time.perf_counter() - self.begun_s:.3f}"
        )
        return f"{line} text={self.prompt!r}" if self.prompt else line


class Door:
    """ASGI around the application."""

    def __init__(
        self, app: App, engine: EngineLoop, keys: ApiKeys | None, max_body_bytes: int, log_prompts: bool
    ) -> None:
        self.draining = False
        self.active = 0  # requests under way
        self._app, self._engine, self._keys = app, engine, keys
        self._max_body_bytes, self._log_prompts = max_body_bytes, log_prompts

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        visit = Visit(scope["method"], scope["path"])
        scope.setdefault("state", {})["visit"] = visit
        begun = False
        self.active += 1

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                visit.status = message["status"]
                extra = {"x-request-id": visit.request_id, **visit.headers}
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.lower().encode(), value.encode()) for name, value in extra.items()),
                ]
            await send(message)

        try:
            await self._admit(visit, scope)
            await self._app(scope, await self._limited(scope, receive), answer)
        except ApiError as error:
            if not begun:
                response = error.response()
                if error.status in (408, 413):  # what is left of the body is not read
                    response.raw_headers.append(_CLOSING)
                await response(scope, receive, answer)
        except Exception as error:  # the application has answered 500
            self._tell(visit, error)
        finally:
            self.active -= 1
            if visit.status or visit.outcome != "-":
                log.info(visit.line())

    async def _admit(self, visit: Visit, scope: MutableMapping[str, Any]) -> None:
        if visit.path in _OPEN:
            return
        if self._keys is not None:
            visit.key = await self._find_key(self._keys, scope)
        if self.draining:
            raise ApiError(503, "the server is stopping", headers={"Retry-After": "5"})
        if not self._engine.ready:
            why = "the engine failed" if self._engine.failure else "the model is being loaded"
            raise ApiError(503, why, headers={"Retry-After": "5"})

    async def _find_key(self, keys: ApiKeys, scope: MutableMapping[str, Any]) -> ApiKey:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, secret = given.decode("latin-1").partition(" ")
        headers = {"WWW-Authenticate": "Bearer"}
        if kind.lower() != "bearer" or not secret.strip():
            message = "You didn't provide an API key: send it as Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers=headers)
        try:
            key = await asyncio.to_thread(keys.find, secret.strip())
        except UsageDatabaseError:
            raise ApiError(503, "the keys can't be read now", headers={"Retry-After": "5"}) from None
        if key is None:
            message = "Incorrect API key provided: it is unknown, expired or revoked"
            raise ApiError(401, message, code="invalid_api_key", headers=headers)
        return key

    async def _limited(self, scope: MutableMapping[str, Any], receive: Receive) -> Receive:
        """The body, read here if there is one: whole, in time, not too large."""
        headers = dict(scope["headers"])
        if b"content-length" not in headers and b"transfer-encoding" not in headers:
            return receive
        most, size, parts, more = self._max_body_bytes, 0, [], True
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > _READ_ON * most:
            raise self._too_large()
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return receive
                    size += len(message.get("body", b""))
                    more = message.get("more_body", False)
                    if size <= most:
                        parts.append(message.get("body", b""))
                    elif size > _READ_ON * most:
                        break
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {_BODY_TIMEOUT_S:.0f} s") from None
        if size > most:
            raise self._too_large()
        whole: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def read() -> Message:
            return whole.pop() if whole else await receive()

        return read

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._max_body_bytes} bytes", code="body_too_large")

    def _tell(self, visit: Visit, error: Exception) -> None:
        """A mistake of the server. Its message may hold a piece of a prompt."""
        visit.outcome = "error"
        where = "".join(traceback.format_tb(error.__traceback__))
        what = f"{type(error).__name__}: {error}" if self._log_prompts else type(error).__name__
        log.error("%s %s\n%s", visit.request_id, what, where)
