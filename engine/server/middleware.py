"""ASGI middleware: authentication, limits on request bodies, and the access log.

It gives each request an id, looks up its key, refuses bodies that are too large or too slow and requests that come
before the model is loaded or while the server drains, and writes one line to the log when the response is complete.
The log holds nothing of a prompt, tracebacks included, unless the server is configured to log prompts.
"""

from __future__ import annotations

import asyncio
import logging
import traceback

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.server.engine_thread import EngineThread
from engine.server.errors import ApiError
from engine.server.request_context import RequestContext
from engine.usage.api_keys import ApiKey, ApiKeys
from engine.usage.database import UsageDatabaseError

log = logging.getLogger("engine.server")

_OPEN_PATHS = {"/health", "/ready", "/metrics", "/openapi.json"}  # need no key and no model
_BODY_TIMEOUT_S = 30.0
# A body too large by up to this factor is read to its end: a client that still sends does not see the response.
_READ_ON = 8
_CLOSING = (b"connection", b"close")


class AccessMiddleware:
    """Wraps the application: checks each request before it and logs it after it."""

    def __init__(
        self, app: ASGIApp, engine: EngineThread, keys: ApiKeys | None, max_body_bytes: int, log_prompts: bool
    ) -> None:
        self.draining = False
        self.active = 0  # requests in progress
        self._app, self._engine, self._keys = app, engine, keys
        self._max_body_bytes, self._log_prompts = max_body_bytes, log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection; other than HTTP is ignored."""
        if scope["type"] != "http":
            return
        context = RequestContext(scope["method"], scope["path"])
        scope.setdefault("state", {})["context"] = context
        begun = False
        self.active += 1

        async def send_response(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                context.status = message["status"]
                extra = {"x-request-id": context.request_id, **context.headers}
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.lower().encode(), value.encode()) for name, value in extra.items()),
                ]
            await send(message)

        try:
            await self._check_access(context, scope)
            await self._app(scope, await self._read_body(scope, receive), send_response)
        except ApiError as error:
            if not begun:
                response = error.response()
                if error.status in (408, 413):  # what is left of the body is not read
                    response.raw_headers.append(_CLOSING)
                await response(scope, receive, send_response)
        except Exception as error:  # the application has answered 500
            self._log_failure(context, error)
        finally:
            self.active -= 1
            if context.status or context.outcome != "-":
                log.info(context.log_line())

    async def _check_access(self, context: RequestContext, scope: Scope) -> None:
        if context.path in _OPEN_PATHS:
            return
        if self._keys is not None:
            context.key = await self._find_key(self._keys, scope)
        if self.draining:
            raise ApiError(503, "the server is stopping", headers={"Retry-After": "5"})
        if not self._engine.ready:
            why = "the engine failed" if self._engine.failure else "the model is being loaded"
            raise ApiError(503, why, headers={"Retry-After": "5"})

    async def _find_key(self, keys: ApiKeys, scope: Scope) -> ApiKey:
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

    async def _read_body(self, scope: Scope, receive: Receive) -> Receive:
        """Read the whole body, if there is one, within the limits of size and time; gives a channel that replays it."""
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

    def _log_failure(self, context: RequestContext, error: Exception) -> None:
        # The message of an exception may hold a piece of a prompt.
        context.outcome = "error"
        where = "".join(traceback.format_tb(error.__traceback__))
        what = f"{type(error).__name__}: {error}" if self._log_prompts else type(error).__name__
        log.error("%s %s\n%s", context.request_id, what, where)
