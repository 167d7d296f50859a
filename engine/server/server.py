"""Start, run, drain and stop the server: as a process of its own, or on a thread inside another program.

While the model is loaded the server already answers /health; /ready says when it accepts requests. On SIGTERM or
SIGINT it accepts no more, finishes those in progress within a time limit, and exits with status 0; a second signal
ends it at once. The soft limit of open files is raised to the hard one: each connection is an open file.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from engine.errors import InputError
from engine.inference.llm import LLM
from engine.server.engine_thread import EngineThread
from engine.server.lifecycle import RequestLifecycle
from engine.server.middleware import AccessMiddleware
from engine.server.rate_limits import Limits
from engine.server.request_parsing import ServedModel
from engine.server.routes import make_app
from engine.usage.api_keys import ApiKeys
from engine.usage.meter import Meter, Served, TokenPrices

_BACKLOG = 4096  # connections that wait to be accepted; the system may allow fewer
_POLL_S = 0.05


@dataclass(frozen=True)
class ServerConfig:
    """Configuration of a server."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: a free one
    model: str | None = None  # name for clients; None: the model's own
    queue: int = 256  # samples that may wait beside those that run
    max_body_bytes: int = 1 << 20
    max_output_tokens: int | None = None  # of one answer; None: what the context has room for
    request_timeout_s: float = 600.0
    drain_s: float = 30.0  # for requests in progress when the server stops
    keep_alive_s: int = 75  # an idle connection is closed after
    log_prompts: bool = False
    price_usd_per_hour: float = 0.0  # of the machine

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "request_timeout_s", "keep_alive_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: found {getattr(self, name)!r}, allowed is a number above 0")
        for name in ("queue", "drain_s", "price_usd_per_hour"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name}: found {getattr(self, name)!r}, allowed is a number ≥ 0")
        if not 0 <= self.port < 65536:
            raise InputError(f"port: found {self.port}, allowed are 0 to 65535")
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            raise InputError(f"max_output_tokens: found {self.max_output_tokens}, allowed is 1 or more")


class Server:
    """One model over HTTP. Use it in a `with` block, or call `run`."""

    def __init__(
        self,
        llm: LLM | Callable[[], LLM],
        config: ServerConfig | None = None,
        *,
        name: str | None = None,
        keys: ApiKeys | None = None,
        meter: Meter | None = None,
        prices_of: Callable[[str | None], TokenPrices | None] | None = None,
        on_served: Callable[[Served], None] | None = None,
    ) -> None:
        """Bind the port.

        Args:
            llm: a loaded model, or a function that loads one (then `name` is required).
            config: settings; None: the defaults.
            name: the model's name for clients; None: its own.
            keys: API keys, of which each request needs one; None: no key is required.
            meter: records the usage of each request; None: it is not recorded.
            prices_of: prices of a key's plan, at which its budget is spent; None: the measured cost.
            on_served: called with each finished request; with its text only if it has `"store": true`.

        Raises:
            InputError: the port is taken, or the host is not an address of this machine.
        """
        self.config = config or ServerConfig()
        model = self.config.model or name or (llm.shape.name if isinstance(llm, LLM) else None)
        if model is None:
            raise InputError("server: a model that is yet to be loaded needs a name")
        self.engine = EngineThread((lambda: llm) if isinstance(llm, LLM) else llm, self.config.queue)
        lifecycle = RequestLifecycle(
            self.engine,
            meter,
            Limits(meter, prices_of),
            model,
            price_usd_per_hour=self.config.price_usd_per_hour,
            timeout_s=self.config.request_timeout_s,
            on_served=on_served,
        )
        self._service = ServedModel(
            self.engine,
            lifecycle,
            model,
            self.config.max_output_tokens,
            self.config.log_prompts,
            keys is not None,
            lambda: self._middleware.draining,
        )
        self.app = make_app(self._service)
        self._middleware = AccessMiddleware(
            self.app, self.engine, keys, self.config.max_body_bytes, self.config.log_prompts
        )
        self._socket = _bind(self.config.host, self.config.port)
        self.model = model
        self._uvicorn = _Quiet(
            uvicorn.Config(
                self._middleware,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=self.config.keep_alive_s,
                timeout_graceful_shutdown=5,
                backlog=_BACKLOG,
            )
        )
        self._thread = threading.Thread(target=self._run_apart, name="http", daemon=True)
        self._failed: BaseException | None = None

    @property
    def url(self) -> str:
        """Base URL, without a trailing slash."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def __enter__(self) -> Server:
        self.engine.start()
        self._thread.start()
        self.engine.loaded.result()
        while not self._uvicorn.started and self._thread.is_alive():
            threading.Event().wait(0.01)
        if self._failed is not None:
            raise self._failed
        return self

    def __exit__(self, *_: object) -> None:
        self.drain()
        self._thread.join()

    def drain(self) -> None:
        """Begin to stop: refuse new requests, finish those in flight."""
        self._middleware.draining = True

    def run(self, on_ready: Callable[[LLM], None] | None = None) -> None:
        """Serve until a stop signal; call it on the main thread.

        Raises:
            InputError: the model can't be loaded.
            RuntimeError: the engine failed while it ran.
        """
        raise_file_limit()
        self.engine.start()
        self._run(self._serve(on_ready, listens=True))
        if self.engine.failure is not None:
            if isinstance(self.engine.failure, InputError):
                raise self.engine.failure
            raise RuntimeError("the engine failed") from self.engine.failure

    def _run_apart(self) -> None:
        try:
            self._run(self._serve(None, listens=False))
        except BaseException as error:
            self._failed = error

    def _run(self, serving: Coroutine[Any, Any, None]) -> None:
        """Run in the event loop that uvicorn prefers: uvloop, where it is installed."""
        with asyncio.Runner(loop_factory=self._uvicorn.config.get_loop_factory()) as runner:
            runner.run(serving)

    async def _serve(self, on_ready: Callable[[LLM], None] | None, listens: bool) -> None:
        loop = asyncio.get_running_loop()
        if listens:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._hear)
        serving = asyncio.create_task(self._uvicorn.serve([self._socket]))
        loading = asyncio.wrap_future(self.engine.loaded)
        drained_at, warm = None, False
        try:
            while not serving.done():
                await asyncio.wait((serving,), timeout=_POLL_S)
                if loading.done() and not warm and self.engine.ready:
                    warm = True
                    await self._service.in_thread(getattr, self._service, "vocabulary")
                    if on_ready is not None:
                        on_ready(loading.result())
                if self.engine.failure is not None:
                    break
                if self._middleware.draining:
                    drained_at = drained_at or loop.time()
                    if not self._middleware.active or loop.time() - drained_at > self.config.drain_s:
                        break
        finally:
            # Unfinished requests end with an error; then the connections are closed.
            await asyncio.to_thread(self.engine.stop)
            self._uvicorn.should_exit = True
            await serving
            if loading.done() and not loading.cancelled():
                loading.exception()

    def _hear(self) -> None:
        if self._middleware.draining:
            self._uvicorn.should_exit = self._uvicorn.force_exit = True
        self._middleware.draining = True


class _Quiet(uvicorn.Server):
    """uvicorn without its signal handlers, which end the process by the signal, not with status 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers."""
        yield


def raise_file_limit() -> None:
    """Raise the limit of open files to the hard limit."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol by name: event loops turn Nagle's waiting off (40 ms an answer) only where a socket names it.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        raise InputError(
            f"{host}:{port}: {error.strerror or error}; allowed is a free port of this machine"
        ) from None
    return bound
