"""The engine's thread: the only one that uses the model; it runs the requests of all clients in shared batches.

The event loop hands requests over through a queue. The thread takes in what has arrived, runs a step, and reports the
new tokens to the event loop once per step, so a client that reads slowly gets everything since its last read in one
piece. A request's cost is its share of the engine's time: the time of each step is split over the step's requests in
proportion to the tokens computed for them. Idle time is charged to no request.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from engine.batch import Step
from engine.errors import InputError, QueueFullError
from engine.inference.llm import LLM
from engine.inference.request import RequestOutput
from engine.sampling.sampler import SamplingParams
from engine.server.metrics import Metrics

_RATE_WINDOW = 64  # finished samples over which the rate of finishing is measured


class StoppedError(Exception):
    """The engine does not run: the model is not loaded, the server is stopping, or the engine failed."""


@dataclass
class Sample:
    """State of one sample on the event loop's side; `output` belongs to the engine's thread."""

    output: RequestOutput
    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None


@dataclass(eq=False)
class InFlightRequest:
    """An HTTP request in the engine; its samples are ordered by prompt, then by sample."""

    prompts: list[list[int]]
    params: list[SamplingParams]
    priority: int
    timeout_s: float | None
    streams: bool
    loop: asyncio.AbstractEventLoop
    samples: list[Sample] = field(default_factory=list)
    error: Exception | None = None
    engine_s: float = 0.0  # its share of the engine's time
    disconnected: bool = False  # by the client
    reserved_tokens: int = 0  # taken from its key's rate limit
    unfinished: int = 0  # samples; used by the engine's thread alone
    closed: asyncio.Event = field(default_factory=asyncio.Event)  # no more tokens will come
    _progress: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        """Wait for new tokens, the end, or a disconnect.

        Raises:
            InputError: the engine refused the request.
            StoppedError: the engine stopped.
        """
        await self._progress.wait()
        self._progress.clear()
        if self.error is not None:
            raise self.error

    async def wait_finished(self) -> None:
        """Wait until all samples are finished or the client disconnects; raises as `wait`."""
        while not self.closed.is_set() and not self.disconnected:
            await self.wait()
        if self.error is not None:
            raise self.error

    def wake(self) -> None:
        """Let `wait` return."""
        self._progress.set()


_Update = tuple[InFlightRequest, int, str, int, str | None]  # sample, text, tokens, finish reason


class EngineThread:
    """Runs one `LLM` on a thread of its own. Public methods are called on the event loop."""

    def __init__(self, make: Callable[[], LLM], queue: int) -> None:
        """Prepare the thread without starting it.

        Args:
            make: loads the model; called on the thread.
            queue: samples that may wait in addition to those that may run.
        """
        self.llm: LLM | None = None
        self.loaded: Future[LLM] = Future()
        self.failure: BaseException | None = None
        self.busy_s = 0.0
        self.open_samples = 0
        self.metrics = Metrics()
        self._make, self._queue = make, queue
        self._stopping = False
        self._inbox: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._known: dict[int, tuple[InFlightRequest, int]] = {}  # request id -> (request, sample)
        self._step: Step | None = None
        self._finishes: deque[float] = deque(maxlen=_RATE_WINDOW)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread, which loads the model."""
        self._thread.start()

    @property
    def ready(self) -> bool:
        """The model is loaded and the engine runs."""
        return self.llm is not None and self.failure is None and self._thread.is_alive()

    def submit(self, inflight: InFlightRequest) -> None:
        """Queue a request.

        Raises:
            QueueFullError: as many samples are waiting as may.
            StoppedError: the engine does not run.
        """
        if self.llm is None or not self.ready:
            raise StoppedError(str(self.failure or "the model is not loaded"))
        wanted = sum(params.n for params in inflight.params)
        if self.open_samples + wanted > self.llm.config.max_running_requests + self._queue:
            raise QueueFullError(
                "The server is overloaded: its queue is full; try again later",
                retry_after_s=self.retry_after_s(),
            )
        self.open_samples += wanted
        inflight.unfinished = wanted
        self._inbox.put(lambda: self._take_in(inflight))

    def abandon(self, inflight: InFlightRequest) -> None:
        """Cancel the request of a client that disconnected; its KV blocks are free before the next step."""
        if not inflight.disconnected and not inflight.closed.is_set():
            inflight.disconnected = True
            self._inbox.put(lambda: self._cancel(inflight))
            inflight.wake()

    async def call(self, work: Callable[[LLM], Any]) -> Any:
        """Run `work` on the engine's thread between two steps and return its result.

        Raises:
            StoppedError: the engine does not run.
        """
        if not self.ready:
            raise StoppedError(str(self.failure or "the model is not loaded"))
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(work(self.llm))  # type: ignore[arg-type]
            except Exception as error:
                future.set_exception(error)

        self._inbox.put(run)
        return await asyncio.wrap_future(future)

    def retry_after_s(self) -> int:
        """Expected seconds until a sample finishes, at the current rate: 1 to 60."""
        if len(self._finishes) < 2:
            return 1
        rate = (len(self._finishes) - 1) / max(time.monotonic() - self._finishes[0], 1e-3)
        return min(max(math.ceil(1 / rate), 1), 60)

    def stop(self) -> None:
        """End the thread after the current step; unfinished requests are cancelled."""
        self._inbox.put(None)
        if self.llm is not None:  # loading cannot be interrupted, except by the end of the process
            self._thread.join()

    def _run(self) -> None:
        try:
            self.llm = self._make()
            self.llm.on_step = self._note_step
            self.loaded.set_result(self.llm)
        except BaseException as error:
            self.failure = error
            self.loaded.set_exception(error)
            return
        try:
            while self._take_tasks():
                self._one_step(self.llm)
        except BaseException as error:  # every waiting request must end
            self.failure = error
        finally:
            self._stopping = True
            for inflight in {id(inflight): inflight for inflight, _ in self._known.values()}.values():
                self._fail(inflight, self._stopped())
            for request_id in list(self._known):
                self.llm.cancel(request_id)
            with suppress(Empty):
                while True:
                    if task := self._inbox.get_nowait():
                        task()

    def _stopped(self) -> StoppedError:
        return StoppedError("the server is stopping" if self.failure is None else "the engine failed")

    def _note_step(self, step: Step) -> None:
        self._step = step

    def _take_tasks(self) -> bool:
        """Run the event loop's tasks, waiting for one if there is no other work; False: stop."""
        while True:
            idle = not self.llm.scheduler.has_work  # type: ignore[union-attr]
            try:
                task = self._inbox.get(block=idle)
            except Empty:
                return True
            if task is None:
                return False
            task()

    def _one_step(self, llm: LLM) -> None:
        self._step = None
        begun_s = time.perf_counter()
        outputs = llm.step()
        ended_s = time.perf_counter()
        self.busy_s += ended_s - begun_s
        if self._step is not None:
            self._charge(self._step, ended_s - begun_s)
            self.metrics.stepped(self._step, begun_s, ended_s)
        by_loop: dict[asyncio.AbstractEventLoop, list[_Update]] = {}
        for output in outputs:
            known = self._known.get(output.request_id)
            if known is None:
                continue
            inflight, sample = known
            if output.finish_reason is not None:
                del self._known[output.request_id]
                inflight.unfinished -= 1
                self.metrics.finished(output, inflight.params[0])
            elif not inflight.streams:
                continue
            update = (inflight, sample, output.text, len(output.token_ids), output.finish_reason)
            by_loop.setdefault(inflight.loop, []).append(update)
        for loop, updates in by_loop.items():
            _call_on(loop, self._deliver, updates)

    def _charge(self, step: Step, took_s: float) -> None:
        parts = [(request.request_id, 1 + request.draft_tokens) for request in step.decodes]
        parts += [(chunk.request.request_id, chunk.tokens) for chunk in step.prefills]
        per_token_s = took_s / sum(tokens for _, tokens in parts)
        for request_id, tokens in parts:
            if known := self._known.get(request_id):
                known[0].engine_s += tokens * per_token_s

    def _deliver(self, updates: list[_Update]) -> None:
        """On the event loop: show each request its new tokens."""
        for inflight, index, text, tokens, reason in updates:
            sample = inflight.samples[index]
            sample.text, sample.tokens = text, tokens
            if reason is not None and sample.finish_reason is None:
                sample.finish_reason = reason
                self.open_samples -= 1
                self._finishes.append(time.monotonic())
                if all(each.finish_reason is not None for each in inflight.samples):
                    inflight.closed.set()
            inflight.wake()

    def _take_in(self, inflight: InFlightRequest) -> None:
        llm = self.llm
        assert llm is not None
        if inflight.disconnected:
            self._close(inflight)
            return
        if self._stopping:
            self._fail(inflight, self._stopped())
            return
        taken: list[RequestOutput] = []
        try:
            for prompt, params in zip(inflight.prompts, inflight.params, strict=True):
                taken.append(
                    llm.submit(
                        prompt,
                        params,
                        priority=inflight.priority,
                        timeout_s=inflight.timeout_s,
                        streams=inflight.streams,
                    )
                )
        except InputError as error:
            for output in taken:
                llm.cancel(output.request_id)
            if isinstance(error, QueueFullError):  # the model's own limit on its queue
                error.retry_after_s = self.retry_after_s()
            self._fail(inflight, error)
            return
        inflight.samples = [Sample(output) for first in taken for output in first.samples]
        for index, sample in enumerate(inflight.samples):
            self._known[sample.output.request_id] = (inflight, index)

    def _cancel(self, inflight: InFlightRequest) -> None:
        if not inflight.unfinished:
            return
        for sample in inflight.samples:
            self.llm.cancel(sample.output.request_id)  # type: ignore[union-attr]
            if self._known.pop(sample.output.request_id, None):
                self.metrics.finished(sample.output, inflight.params[0])
        self._close(inflight)

    def _close(self, inflight: InFlightRequest) -> None:
        """Finish a cancelled request and free its places in the queue."""
        unfinished, inflight.unfinished = inflight.unfinished, 0

        def close() -> None:
            self.open_samples -= unfinished
            for sample in inflight.samples:
                sample.tokens = len(sample.output.token_ids)
                sample.finish_reason = sample.output.finish_reason or "cancelled"
            inflight.closed.set()

        _call_on(inflight.loop, close)

    def _fail(self, inflight: InFlightRequest, error: Exception) -> None:
        unfinished, inflight.unfinished = inflight.unfinished, 0

        def close() -> None:
            self.open_samples -= unfinished
            inflight.error = error
            inflight.closed.set()
            inflight.wake()

        _call_on(inflight.loop, close)


def _call_on(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:  # the event loop is closed
        return
