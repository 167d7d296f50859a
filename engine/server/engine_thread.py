"""The engine's thread: it alone owns the model, and runs the requests of all clients in shared batches.

The event loop hands requests over through a queue; the thread takes in what has come, runs a step, and tells the
event loop once per step what is new. A client that reads slowly finds everything that came meanwhile in one piece:
nothing piles up. What a request costs is its share of the engine's time: each step's time is split over the step's
requests by the tokens computed for them. Idle time is charged to nobody.
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

_RATE_WINDOW = 64  # finished samples that the rate of finishing is taken from


class StoppedError(Exception):
    """The engine doesn't run: not yet, no more, or it failed."""


@dataclass
class Sample:
    """What is known of one of a ticket's answers, on the event loop's side."""

    output: RequestOutput
    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None


@dataclass(eq=False)
class Ticket:
    """An HTTP request on its way through the engine: prompts × n samples, in that order."""

    prompts: list[list[int]]
    params: list[SamplingParams]
    priority: int
    timeout_s: float | None
    streams: bool
    loop: asyncio.AbstractEventLoop
    samples: list[Sample] = field(default_factory=list)
    error: Exception | None = None
    engine_s: float = 0.0  # its share of the engine's time
    gone: bool = False  # the client went away
    reserved_tokens: int = 0  # taken from its key's limit
    left: int = 0  # samples that are not finished; the engine's thread counts them
    closed: asyncio.Event = field(default_factory=asyncio.Event)  # nothing more will come
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        """Until there is news.

        Raises:
            Exception: what the engine made of the request.
        """
        await self._news.wait()
        self._news.clear()
        if self.error is not None:
            raise self.error

    async def wait_finished(self) -> None:
        """Until all samples are finished, or the client went away."""
        while not self.closed.is_set() and not self.gone:
            await self.wait()
        if self.error is not None:
            raise self.error

    def wake(self) -> None:
        """Tell who waits that there is news."""
        self._news.set()


_News = tuple[Ticket, int, str, int, str | None]  # sample, its text, its tokens, why it finished


class EngineLoop:
    """One thread around one `LLM`. Everything but the thread itself is called on the event loop."""

    def __init__(self, make: Callable[[], LLM], queue: int) -> None:
        """`make` loads the model, on the thread. `queue`: most samples that wait beside those that may run."""
        self.llm: LLM | None = None
        self.loaded: Future[LLM] = Future()
        self.failure: BaseException | None = None
        self.busy_s = 0.0
        self.open_samples = 0
        self.metrics = Metrics()
        self._make, self._queue = make, queue
        self._stopping = False
        self._inbox: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._known: dict[int, tuple[Ticket, int]] = {}  # by request id: ticket and sample
        self._step: Step | None = None
        self._finishes: deque[float] = deque(maxlen=_RATE_WINDOW)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to load the model."""
        self._thread.start()

    @property
    def ready(self) -> bool:
        """The model is loaded and the engine runs."""
        return self.llm is not None and self.failure is None and self._thread.is_alive()

    def submit(self, ticket: Ticket) -> None:
        """Queue a request.

        Raises:
            QueueFullError: too many wait.
            StoppedError: the engine doesn't run.
        """
        if self.llm is None or not self.ready:
            raise StoppedError(str(self.failure or "the model is not loaded"))
        wanted = sum(params.n for params in ticket.params)
        if self.open_samples + wanted > self.llm.config.max_running_requests + self._queue:
            raise QueueFullError(
                "The server is overloaded: its queue is full; try again later",
                retry_after_s=self.retry_after_s(),
            )
        self.open_samples += wanted
        ticket.left = wanted
        self._inbox.put(lambda: self._take_in(ticket))

    def abandon(self, ticket: Ticket) -> None:
        """The client went away: free what its request holds before the next step."""
        if not ticket.gone and not ticket.closed.is_set():
            ticket.gone = True
            self._inbox.put(lambda: self._cancel(ticket))
            ticket.wake()

    async def call(self, work: Callable[[LLM], Any]) -> Any:
        """Run something on the engine's thread between two steps."""
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
        """When a place should be free, at the present rate of finishing: 1 to 60 seconds."""
        if len(self._finishes) < 2:
            return 1
        rate = (len(self._finishes) - 1) / max(time.monotonic() - self._finishes[0], 1e-3)
        return min(max(math.ceil(1 / rate), 1), 60)

    def stop(self) -> None:
        """End the thread after the present step; what still runs is cancelled."""
        self._inbox.put(None)
        if self.llm is not None:  # loading can't be stopped; the process's end does
            self._thread.join()

    def _run(self) -> None:
        try:
            self.llm = self._make()
            self.llm.on_step = self._note
            self.loaded.set_result(self.llm)
        except BaseException as error:
            self.failure = error
            self.loaded.set_exception(error)
            return
        try:
            while self._take_all():
                self._one_step(self.llm)
        except BaseException as error:  # whoever waits must hear of it
            self.failure = error
        finally:
            self._stopping = True
            for ticket in {id(ticket): ticket for ticket, _ in self._known.values()}.values():
                self._fail(ticket, self._stopped())
            for request_id in list(self._known):
                self.llm.cancel(request_id)
            with suppress(Empty):
                while True:
                    if asked := self._inbox.get_nowait():
                        asked()

    def _stopped(self) -> StoppedError:
        return StoppedError("the server is stopping" if self.failure is None else "the engine failed")

    def _note(self, step: Step) -> None:
        self._step = step

    def _take_all(self) -> bool:
        """Do what the event loop asked for; wait for something to do. False: stop."""
        while True:
            idle = not self.llm.scheduler.has_work  # type: ignore[union-attr]
            try:
                asked = self._inbox.get(block=idle)
            except Empty:
                return True
            if asked is None:
                return False
            asked()

    def _one_step(self, llm: LLM) -> None:
        self._step = None
        begun_s = time.perf_counter()
        outputs = llm.step()
        ended_s = time.perf_counter()
        self.busy_s += ended_s - begun_s
        if self._step is not None:
            self._charge(self._step, ended_s - begun_s)
            self.metrics.stepped(self._step, begun_s, ended_s)
        by_loop: dict[asyncio.AbstractEventLoop, list[_News]] = {}
        for output in outputs:
            known = self._known.get(output.request_id)
            if known is None:
                continue
            ticket, sample = known
            if output.finish_reason is not None:
                del self._known[output.request_id]
                ticket.left -= 1
                self.metrics.finished(output, ticket.params[0])
            elif not ticket.streams:
                continue
            news = (ticket, sample, output.text, len(output.token_ids), output.finish_reason)
            by_loop.setdefault(ticket.loop, []).append(news)
        for loop, everybody in by_loop.items():
            _tell(loop, self._deliver, everybody)

    def _charge(self, step: Step, took_s: float) -> None:
        parts = [(request.request_id, 1 + request.draft_tokens) for request in step.decodes]
        parts += [(chunk.request.request_id, chunk.tokens) for chunk in step.prefills]
        per_token_s = took_s / sum(tokens for _, tokens in parts)
        for request_id, tokens in parts:
            if known := self._known.get(request_id):
                known[0].engine_s += tokens * per_token_s

    def _deliver(self, everybody: list[_News]) -> None:
        """On the event loop: let each ticket see what is new."""
        for ticket, index, text, tokens, reason in everybody:
            sample = ticket.samples[index]
            sample.text, sample.tokens = text, tokens
            if reason is not None and sample.finish_reason is None:
                sample.finish_reason = reason
                self.open_samples -= 1
                self._finishes.append(time.monotonic())
                if all(each.finish_reason is not None for each in ticket.samples):
                    ticket.closed.set()
            ticket.wake()

    def _take_in(self, ticket: Ticket) -> None:
        llm = self.llm
        assert llm is not None
        if ticket.gone:
            self._close(ticket)
            return
        if self._stopping:
            self._fail(ticket, self._stopped())
            return
        taken: list[RequestOutput] = []
        try:
            for prompt, params in zip(ticket.prompts, ticket.params, strict=True):
                taken.append(
                    llm.submit(
                        prompt,
                        params,
                        priority=ticket.priority,
                        timeout_s=ticket.timeout_s,
                        streams=ticket.streams,
                    )
                )
        except InputError as error:
            for output in taken:
                llm.cancel(output.request_id)
            if isinstance(error, QueueFullError):  # the model's own limit on its queue
                error.retry_after_s = self.retry_after_s()
            self._fail(ticket, error)
            return
        ticket.samples = [Sample(output) for first in taken for output in first.samples]
        for index, sample in enumerate(ticket.samples):
            self._known[sample.output.request_id] = (ticket, index)

    def _cancel(self, ticket: Ticket) -> None:
        if not ticket.left:
            return
        for sample in ticket.samples:
            self.llm.cancel(sample.output.request_id)  # type: ignore[union-attr]
            if self._known.pop(sample.output.request_id, None):
                self.metrics.finished(sample.output, ticket.params[0])
        self._close(ticket)

    def _close(self, ticket: Ticket) -> None:
        """Give the places of a cancelled ticket back."""
        left, ticket.left = ticket.left, 0

        def told() -> None:
            self.open_samples -= left
            for sample in ticket.samples:
                sample.tokens = len(sample.output.token_ids)
                sample.finish_reason = sample.output.finish_reason or "cancelled"
            ticket.closed.set()

        _tell(ticket.loop, told)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        left, ticket.left = ticket.left, 0

        def told() -> None:
            self.open_samples -= left
            ticket.error = error
            ticket.closed.set()
            ticket.wake()

        _tell(ticket.loop, told)


def _tell(loop: asyncio.AbstractEventLoop, what: Callable[..., None], *arguments: Any) -> None:
    try:
        loop.call_soon_threadsafe(what, *arguments)
    except RuntimeError:  # the event loop is closed: nobody listens any more
        return
