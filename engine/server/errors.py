"""HTTP errors in OpenAI's form: its error body, with the status codes that its client library maps to exceptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class ApiError(Exception):
    """An HTTP error response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.kind = kind or _TYPES.get(status, "invalid_request_error")
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The response to send."""
        return JSONResponse(self.body, self.status, self.headers)


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400 error."""
    return ApiError(400, message, param=param, code=code)


def add_handlers(app: FastAPI) -> None:
    """Answer every exception in `app` with OpenAI's error body."""

    async def own(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _explain(error).response()

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return ApiError(error.status_code, str(error.detail), headers=error.headers).response()

    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "the server made a mistake; it is in its log").response()

    app.add_exception_handler(ApiError, own)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


def _explain(error: RequestValidationError) -> ApiError:
    """Pydantic's findings in one line, without the input, which may be a prompt."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return bad(f"the body is not JSON: {first['ctx']['error']} at character {place[0]}")
    if not place:
        return bad("the body: allowed is a JSON object, sent as application/json")
    if first["type"] == "extra_forbidden":
        return bad(f"{'.'.join(place)}: not known, or not supported here", place[0])
    # Of a field that may be several things, pydantic names each; the field is what the client knows.
    several = len([each for each in error.errors() if each["loc"][:2] == first["loc"][:2]]) > 1
    if several:
        reasons = {each["msg"] for each in error.errors() if each["loc"][:2] == first["loc"][:2]}
        return bad(f"{place[0]}: {'; or: '.join(sorted(reasons))}", place[0])
    return bad(f"{'.'.join(place)}: {first['msg']}", place[0])
