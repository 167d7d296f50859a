"""A small HTTP server over `LLM` for `flywheel loop`: OpenAI's /v1/completions, one thread that runs the engine.

Handlers queue a request and wait; the engine's thread takes in what has come and steps, so that requests of many
users share a batch. What a user allowed to be kept (`"store": true`, as in OpenAI's API) is in the log with its
text, everything else with its token counts only. No keys, no streaming: it answers on this machine alone.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, SimpleQueue
from typing import Any

from engine.errors import InputError
from engine.llm import LLM
from engine.request import RequestOutput
from engine.sampling import SamplingParams

_IDLE_S = 0.02
_MAX_BODY_BYTES = 1 << 20


@dataclass(frozen=True)
class Served:
    """One line of the usage log; `text` is what the user sent, and None unless the user allowed to keep it."""

    user: str
    prompt_tokens: int
    output_tokens: int
    latency_s: float
    text: str | None


class _Waiting:
    """A request on its way between the two threads."""

    def __init__(self, prompt: str, params: SamplingParams) -> None:
        self.prompt, self.params = prompt, params
        self.done = threading.Event()
        self.output: RequestOutput | None = None
        self.error: str | None = None


class TinyServer:
    """Serve `llm` on 127.0.0.1 while in a `with` block; `log` is what was served, `busy_s` the engine's work."""

    def __init__(self, llm: LLM, port: int = 0) -> None:
        """`port` 0 takes a free one."""
        self.llm = llm
        self.log: list[Served] = []
        self.busy_s = 0.0
        self._queue: SimpleQueue[_Waiting] = SimpleQueue()
        self._stopping = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._threads = [
            threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True),
            threading.Thread(target=self._run_engine, daemon=True),
        ]

    @property
    def url(self) -> str:
        """Base address, without a slash at the end."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> TinyServer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._http.server_close()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer one completion request, as OpenAI's API does.

        Raises:
            InputError: a field is missing or of the wrong kind, or the engine refuses the prompt.
        """
        prompt, most, heat = body.get("prompt"), body.get("max_tokens", 16), body.get("temperature", 1.0)
        if not isinstance(prompt, str) or not prompt:
            raise InputError("prompt: allowed is a text that is not empty")
        try:
            params = SamplingParams(max_tokens=most, temperature=heat, seed=body.get("seed"))
        except (TypeError, ValueError) as error:
            raise InputError(str(error)) from None
        begun = time.perf_counter()
        waiting = _Waiting(prompt, params)
        self._queue.put(waiting)
        waiting.done.wait()
        if waiting.output is None:
            raise InputError(waiting.error or "the engine stopped")
        output = waiting.output
        used = Served(
            user=str(body.get("user", "")),
            prompt_tokens=len(output.prompt_token_ids),
            output_tokens=len(output.token_ids),
            latency_s=time.perf_counter() - begun,
            text=prompt if body.get("store") is True else None,
        )
        self.log.append(used)
        return {
            "object": "text_completion",
            "model": self.llm.shape.name,
            "choices": [{"index": 0, "text": output.text, "finish_reason": output.finish_reason}],
            "usage": {
                "prompt_tokens": used.prompt_tokens,
                "completion_tokens": used.output_tokens,
                "total_tokens": used.prompt_tokens + used.output_tokens,
            },
        }

    def _run_engine(self) -> None:
        running: dict[int, _Waiting] = {}
        while not self._stopping.is_set():
            try:
                while True:
                    waiting = self._queue.get(timeout=_IDLE_S) if not running else self._queue.get_nowait()
                    try:
                        running[self.llm.add_request(waiting.prompt, waiting.params)] = waiting
                    except InputError as error:
                        waiting.error = str(error)
                        waiting.done.set()
            except Empty:
                pass
            if not running:
                continue
            begun = time.perf_counter()
            try:
                outputs = self.llm.step()
            except Exception as error:  # whoever waits must hear of it
                for waiting in running.values():
                    waiting.error = f"{type(error).__name__}: {error}"
                    waiting.done.set()
                raise
            self.busy_s += time.perf_counter() - begun
            for output in outputs:
                if output.finish_reason is not None:
                    waiting = running.pop(output.request_id)
                    waiting.output = output
                    waiting.done.set()
        for waiting in running.values():
            waiting.done.set()


def _handler(server: TinyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(min(length, _MAX_BODY_BYTES))
            if self.path != "/v1/completions":
                self._answer(404, {"error": {"message": f"{self.path}: allowed is /v1/completions"}})
                return
            try:
                body = json.loads(raw)
                if not isinstance(body, dict):
                    raise InputError("the body is no JSON object")
                self._answer(200, server.complete(body))
            except (InputError, ValueError) as error:
                self._answer(400, {"error": {"message": str(error), "type": "invalid_request_error"}})

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self._answer(
                    200, {"object": "list", "data": [{"id": server.llm.shape.name, "object": "model"}]}
                )
            else:
                self._answer(404, {"error": {"message": f"{self.path}: allowed is /v1/models"}})

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    return Handler


def log_lines(log: list[Served]) -> str:
    """The usage log as JSON lines."""
    return "".join(json.dumps(asdict(used)) + "\n" for used in log)
