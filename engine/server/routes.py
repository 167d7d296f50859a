"""The routes: OpenAI's API over one model, and what an operator needs (health, readiness, metrics, token counts)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

from fastapi import FastAPI, Request, Security
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.types import Receive, Scope, Send

from engine.errors import InputError, QueueFullError
from engine.inference.embed import embed
from engine.inference.llm import LLM
from engine.sampling.sampler import SamplingParams
from engine.server import schema
from engine.server.engine_thread import InFlightRequest, StoppedError
from engine.server.errors import ApiError, add_handlers, bad
from engine.server.lifecycle import to_api_error
from engine.server.request_context import RequestContext
from engine.server.request_parsing import ServedModel
from engine.server.responses import DONE, Chat, Form, Stream, Text, embedded, whole

_CLIENT_CLOSED_REQUEST = 499  # nginx' number for its log; the client has disconnected
_ERRORS = (400, 401, 404, 408, 413, 429, 500, 503)


def make_app(service: ServedModel) -> FastAPI:
    """The application over one served model, without `AccessMiddleware` before it."""
    app = FastAPI(
        title="model-flywheel",
        description="OpenAI's API over the flywheel's engine.",
        version="1",
        docs_url=None,  # they would load their scripts from elsewhere
        redoc_url=None,
    )
    add_handlers(app)
    keyed: dict[str, Any] = {"responses": schema.describe_responses(*_ERRORS)}
    if service.needs_key:  # the middleware checks it; this describes it
        keyed["dependencies"] = [Security(HTTPBearer(auto_error=False))]
    _add_operation(app, service)
    _add_models(app, service, keyed)
    _add_generation(app, service, keyed | {"responses": schema.describe_responses(*_ERRORS, stream=True)})
    _add_embeddings(app, service, keyed)
    _add_tokens(app, service, keyed)
    _describe_truthfully(app)
    return app


def _add_operation(app: FastAPI, service: ServedModel) -> None:
    """Health, readiness and metrics."""

    @app.get("/health", response_model=schema.Status, responses={500: {"model": schema.Error}})
    async def health() -> Response:
        """Health status: 500 after the engine failed, else 200, also while the model loads and the server drains."""
        if service.engine.failure is not None:
            raise ApiError(500, "the engine failed")
        return JSONResponse({"status": "ok"})

    @app.get("/ready", response_model=schema.Status, responses={503: {"model": schema.Error}})
    async def ready() -> Response:
        """Readiness: 200 when requests are accepted, 503 while the model loads or the server stops."""
        if service.draining():
            raise ApiError(503, "the server is stopping")
        if not service.engine.ready:
            raise ApiError(503, "the model is not loaded")
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", response_class=Response, responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, 503: {"model": schema.Error}})  # fmt: skip
    async def metrics() -> Response:
        """Metrics in Prometheus' text format, under vLLM's metric names."""
        if service.engine.llm is None:
            raise ApiError(503, "the model is not loaded")
        text = service.engine.metrics.exposition(service.engine.llm)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_models(app: FastAPI, service: ServedModel, keyed: dict[str, Any]) -> None:
    """Description of the served model."""

    @app.get("/v1/models", response_model=schema.Models, **keyed)
    async def models() -> Response:
        """List the served model."""
        return JSONResponse({"object": "list", "data": [_model(service)]})

    @app.get("/v1/models/{name:path}", response_model=schema.Model, **keyed)
    async def model(name: str) -> Response:
        """Retrieve the served model by name."""
        service.require_model(name)
        return JSONResponse(_model(service))


def _add_generation(app: FastAPI, service: ServedModel, streamed: dict[str, Any]) -> None:
    """Completions of prompts and of conversations, whole or streamed."""

    @app.post("/v1/completions", response_model=schema.Completion, **streamed)
    async def completions(body: schema.CompletionBody, request: Request) -> Response:
        """Complete a prompt."""
        service.require_model(body.model)
        prompts = await service.in_thread(service.prompts, body.prompt, "prompt")
        if body.echo and body.logprobs is not None:
            raise bad("logprobs: of an echoed prompt they are not computed", "logprobs")
        longest = max(map(len, prompts))
        params = await service.in_thread(
            service.sampling, body, body.max_tokens or 16, body.logprobs, longest
        )
        texts = [""] * len(prompts)
        if body.echo:
            texts = [
                service.require_tokenizer().tokenizer.decode(prompt, skip_special_tokens=True)
                for prompt in prompts
            ]
            if isinstance(body.prompt, str):
                texts = [body.prompt]
        echoed = [text for text in texts for _ in range(params.n)]
        context: RequestContext = request.state.context
        form = Text(context.request_id, service.model, service.vocabulary, echoed)
        return await _answer(service, form, prompts, params, body, str(body.prompt), request)

    @app.post("/v1/chat/completions", response_model=schema.ChatCompletion, **streamed)
    async def chat(body: schema.ChatBody, request: Request) -> Response:
        """Complete a conversation."""
        service.require_model(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise bad("top_logprobs: allowed with logprobs only", "top_logprobs")
        prompt = await service.in_thread(service.conversation, body.messages)
        most = body.max_completion_tokens or body.max_tokens
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        params = await service.in_thread(service.sampling, body, most, logprobs, len(prompt))
        context: RequestContext = request.state.context
        form = Chat(context.request_id, service.model, service.vocabulary)
        text = "\n".join(message.text for message in body.messages)
        return await _answer(service, form, [prompt], params, body, text, request)


def _add_embeddings(app: FastAPI, service: ServedModel, keyed: dict[str, Any]) -> None:
    """Embeddings of texts."""

    @app.post("/v1/embeddings", response_model=schema.Embeddings, **keyed)
    async def embeddings(body: schema.EmbeddingBody, request: Request) -> Response:
        """Embed texts: the mean of the last hidden states over each text, scaled to unit length."""
        service.require_model(body.model)
        prompts = await service.in_thread(service.prompts, body.input, "input")
        most = service.longest - 1
        if max(map(len, prompts)) > most:
            raise bad(f"input: allowed are up to {most} tokens each", "input", "context_length_exceeded")
        context: RequestContext = request.state.context
        context.prompt_tokens = sum(map(len, prompts))
        await service.lifecycle.reserve(context, context.prompt_tokens, context.prompt_tokens)
        encoding = body.encoding_format or "float"
        data, engine_s = [], 0.0
        for index, prompt in enumerate(prompts):
            vector, took_s = await _on_engine(service, prompt)
            engine_s += took_s
            data.append({"object": "embedding", "index": index, "embedding": embedded(vector, encoding)})
        context.outcome = "stop"
        await service.lifecycle.record(context, engine_s)
        usage = {"prompt_tokens": context.prompt_tokens, "total_tokens": context.prompt_tokens}
        return JSONResponse({"object": "list", "model": service.model, "data": data, "usage": usage})


def _add_tokens(app: FastAPI, service: ServedModel, keyed: dict[str, Any]) -> None:
    """Token ids of texts, and back."""

    @app.post("/tokenize", response_model=schema.Tokens, **keyed)
    async def tokenize(body: schema.TokenizeBody) -> Response:
        """Tokenize a prompt or a conversation."""
        service.require_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise bad("give either prompt or messages")
        if body.messages is not None:
            tokens = await service.in_thread(service.conversation, body.messages)
        elif body.prompt:
            tokens = await service.in_thread(service.encode, body.prompt, body.add_special_tokens, False)
        else:
            tokens = []
        found = {"count": len(tokens), "max_model_len": service.longest, "tokens": tokens}
        return JSONResponse(found)

    @app.post("/detokenize", response_model=schema.Detokenized, **keyed)
    async def detokenize(body: schema.DetokenizeBody) -> Response:
        """Convert token ids to text."""
        service.require_model(body.model)
        size = service.llm.shape.vocab_size
        if any(token >= size for token in body.tokens):
            raise bad(f"tokens: allowed are 0 to {size - 1}", "tokens")
        return JSONResponse(
            {"prompt": await service.in_thread(service.require_tokenizer().tokenizer.decode, body.tokens)}
        )


async def _on_engine(service: ServedModel, prompt: list[int]) -> tuple[list[float], float]:
    def work(llm: LLM) -> tuple[list[float], float]:
        begun_s = time.perf_counter()
        vector = embed(llm, prompt)
        return vector, time.perf_counter() - begun_s

    try:
        return cast(tuple[list[float], float], await service.engine.call(work))
    except QueueFullError as error:
        full = QueueFullError("The KV cache is full now", retry_after_s=error.retry_after_s)
        raise to_api_error(full) from None
    except (InputError, StoppedError) as error:
        raise to_api_error(error) from None


async def _answer(
    service: ServedModel,
    form: Form,
    prompts: list[list[int]],
    params: SamplingParams,
    body: schema.Sampling,
    text: str,
    request: Request,
) -> Response:
    """Run a request and respond, whole or as a stream."""
    context: RequestContext = request.state.context
    if service.log_prompts:
        context.prompt = text
    streams = bool(body.stream)
    inflight = await service.lifecycle.admit(
        context, prompts, params, streams=streams, receive=request.receive
    )
    settle = lambda: service.lifecycle.settle(context, inflight, text if body.store else None, body.user)  # noqa: E731
    try:
        if streams:
            await inflight.wait()  # what goes wrong before the first token has a status of its own
        else:
            await inflight.wait_finished()
    except (InputError, StoppedError) as error:
        await settle()
        raise to_api_error(error) from None
    if inflight.disconnected:
        await inflight.closed.wait()
        await settle()
        return Response(status_code=_CLIENT_CLOSED_REQUEST)
    if all(sample.finish_reason == "timeout" and not sample.tokens for sample in inflight.samples):
        await settle()
        raise ApiError(
            429, "The request waited for its time limit and was never begun", code="timeout",
            headers={"Retry-After": str(service.engine.retry_after_s())},
        )  # fmt: skip
    if streams:
        options = body.stream_options or schema.StreamOptions()
        return _Events(Stream(form, inflight, options), inflight, settle)
    await settle()
    return Response(whole(form, inflight), media_type="application/json")


class _Events(Response):
    """A stream of server-sent events. Text is sent before the request is metered, the final event after."""

    media_type = "text/event-stream"

    def __init__(
        self, stream: Stream, inflight: InFlightRequest, settle: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._stream, self._inflight, self._settle = stream, inflight, settle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events as tokens arrive."""
        stream, inflight = self._stream, self._inflight
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        end = b""
        try:
            await _send(send, stream.first())
            while not inflight.disconnected:
                over = inflight.closed.is_set()
                await _send(send, stream.news(ends=not over))
                if over:
                    break
                await inflight.wait()
            if inflight.error is not None:
                raise inflight.error
            if inflight.disconnected:
                await inflight.closed.wait()
                await self._settle()
            else:
                end = stream.news()
                await self._settle()
                end += stream.usage() + DONE
        except (ApiError, InputError, StoppedError) as error:
            answer = error if isinstance(error, ApiError) else to_api_error(error)
            if not isinstance(error, ApiError):
                await self._settle()
            end = b"data: " + JSONResponse(answer.body).body + b"\n\n"
        await send({"type": "http.response.body", "body": end, "more_body": False})


async def _send(send: Send, events: bytes) -> None:
    if events:
        await send({"type": "http.response.body", "body": events, "more_body": True})


def _model(service: ServedModel) -> dict[str, Any]:
    return {
        "id": service.model,
        "object": "model",
        "created": service.created,
        "owned_by": "model-flywheel",
        "max_model_len": service.longest,
    }


def _describe_truthfully(app: FastAPI) -> None:
    """Drop 422 from the OpenAPI document: FastAPI declares it, but invalid bodies are answered with 400 here."""
    described = app.openapi()
    for path in described["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        described.get("components", {}).get("schemas", {}).pop(name, None)
    app.openapi = lambda: described  # type: ignore[method-assign]
