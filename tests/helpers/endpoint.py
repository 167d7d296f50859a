"""Endpoints for tests: real HTTP over real sockets, on a clock that jumps over waiting.

`run` drives client and server in one event loop whose time only passes when nobody has anything to do: it then jumps
to the next timer. So delays are exact, a minute of them takes no time, and no other load of the machine shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import selectors
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from engine.batch import Request, SchedulerConfig
from engine.loadtest.client import Endpoint
from engine.profile.step_time import StepTimeModel
from engine.scheduler import Scheduler

_SETTLE_S = 0.0003  # for bytes on their way through the kernel


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0) or super().select(_SETTLE_S if timeout is None or timeout > 0 else 0)
        if ready:
            return ready
        if timeout is None:
            return super().select(10.0)
        self.now_s += max(0.0, timeout)
        return []


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop with time of its own."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run(work: Awaitable[Any]) -> Any:
    """The result of a coroutine, on the jumping clock."""

    async def main() -> Any:
        return await work

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main())


@contextlib.asynccontextmanager
async def serving(app: web.Application) -> Any:
    """The address of `app`, served in this event loop."""
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def event(content: dict[str, Any] | str) -> bytes:
    return b"data: " + (content if isinstance(content, str) else json.dumps(content)).encode() + b"\n\n"


def token(text: str = " x", ended: bool = False, usage: dict[str, int] | None = None) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": "length" if ended else None}
    return event({"choices": [choice], "usage": usage})


async def stream_of(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


def models(*names: str, longest: int | None = None) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(_: web.Request) -> web.Response:
        rows = [{"id": name, "object": "model", "max_model_len": longest} for name in names]
        return web.json_response({"object": "list", "data": rows})

    return handler


Script = Callable[
    [int, dict[str, Any]], list[float]
]  # (number of the request, body) -> delay before each token


def scripted_app(script: Script, usage: bool = True) -> web.Application:
    """Answers whose tokens come after the delays that `script` says; greetings (`max_tokens` ≤ 2) come at once."""
    seen = 0

    async def complete(request: web.Request) -> web.StreamResponse:
        nonlocal seen
        body = await request.json()
        greeting = body["max_tokens"] <= 2
        delays = [0.0] * body["max_tokens"] if greeting else script(seen, body)
        seen += not greeting
        response = await stream_of(request)
        for delay_s in delays:
            await asyncio.sleep(delay_s)
            await response.write(token())
        await response.write(token("", ended=True))
        if usage:
            counts = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(delays)}
            await response.write(event({"choices": [], "usage": counts}))
        await response.write(event("[DONE]"))
        return response

    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    app.router.add_get("/v1/models", models("m"))
    return app


class EngineApp:
    """A serving engine with known step times: the real scheduler, steps that take what a model says, real HTTP."""

    def __init__(
        self, times: StepTimeModel, config: SchedulerConfig, http_s: float = 0.0, longest: int = 4096
    ) -> None:
        self.times, self.http_s, self.config = times, http_s, config
        self.scheduler = Scheduler(config)
        self._queues: dict[int, asyncio.Queue[bool]] = {}
        self._news = asyncio.Event()
        self._count = 0
        self.app = web.Application()
        self.app.router.add_post("/v1/completions", self._complete)
        self.app.router.add_get("/v1/models", models("m", longest=longest))
        self.app.cleanup_ctx.append(self._engine)

    async def _engine(self, _: web.Application) -> Any:
        task = asyncio.create_task(self._steps())
        yield
        task.cancel()

    async def _steps(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            step = self.scheduler.schedule()
            if step is None:
                self._news.clear()
                await self._news.wait()
                continue
            ends_s = loop.time() + self.times.step_time(step.prefill, step.decode_contexts)
            await asyncio.sleep(ends_s - loop.time())
            for request in self.scheduler.complete(step):
                queue = self._queues.get(request.request_id)
                if queue is not None:
                    queue.put_nowait(request.output_tokens >= request.max_output_tokens)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        await asyncio.sleep(self.http_s)
        self._count += 1
        number, prompt = self._count, len(body["prompt"])
        queue: asyncio.Queue[bool] = asyncio.Queue()
        self._queues[number] = queue
        self.scheduler.add(Request(number, prompt, body["max_tokens"], float(number)))
        self._news.set()
        response = await stream_of(request)
        produced, ended = 0, False
        while not ended:
            ended = await queue.get()
            produced += 1
            counts = {"prompt_tokens": prompt, "completion_tokens": produced}
            await response.write(token(ended=ended, usage=counts))
        await response.write(event("[DONE]"))
        del self._queues[number]
        return response


def endpoint(url: str, **settings: Any) -> Endpoint:
    return Endpoint(url, "m", **settings)
