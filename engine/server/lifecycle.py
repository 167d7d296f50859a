"""Where a checked request becomes a ticket of the engine, and a finished ticket a line of the meter.

Admission takes from the key's limits, asks for its budget and for a place in the queue. Settlement gives back what was
not used and waits until the usage is durable: only then may the client see the end of its answer. The cost is the
request's share of the engine's time (`engine.server.engine_thread`) at the machine's price.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future
from typing import Any

from engine.errors import InputError, QueueFullError, TooLongError
from engine.sampling.sampler import SamplingParams
from engine.server.engine_thread import EngineLoop, StoppedError, Ticket
from engine.server.errors import ApiError, bad
from engine.server.middleware import Visit
from engine.server.rate_limits import Limits
from engine.server.responses import firsts, usage_of
from engine.usage.database import UsageDatabaseError
from engine.usage.meter import Meter, Served, Usage

_log = logging.getLogger("engine.server")


class Counter:
    """One per server; on the event loop."""

    def __init__(
        self,
        engine: EngineLoop,
        meter: Meter | None,
        limits: Limits,
        model: str,
        *,
        price_usd_per_hour: float,
        timeout_s: float,
        on_served: Callable[[Served], None] | None,
    ) -> None:
        self.engine, self.model = engine, model
        self._meter, self._limits, self._timeout_s, self._on_served = meter, limits, timeout_s, on_served
        self._micro_usd_per_s = price_usd_per_hour / 3600 * 1e6
        self._watching: set[asyncio.Task[None]] = set()

    async def admit(
        self,
        visit: Visit,
        prompts: list[list[int]],
        params: SamplingParams,
        *,
        streams: bool,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    ) -> Ticket:
        """Queue a request; it is cancelled when the client goes away.

        Raises:
            ApiError: a limit, the budget or the queue says no.
        """
        ticket = Ticket(
            prompts=prompts,
            params=[params] * len(prompts),
            priority=-visit.key.priority,  # the engine serves low numbers first
            timeout_s=self._timeout_s,
            streams=streams,
            loop=asyncio.get_running_loop(),
        )
        prompt = sum(map(len, prompts))
        ticket.reserved_tokens = await self.take(
            visit, prompt, prompt + params.max_tokens * params.n * len(prompts)
        )
        try:
            self.engine.submit(ticket)
        except (QueueFullError, StoppedError) as error:
            self._limits.give_back(visit.key, ticket.reserved_tokens, requests=1)
            raise told(error) from None
        task = asyncio.create_task(self._watch(receive, ticket))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)
        return ticket

    async def take(self, visit: Visit, prompt_tokens: int, most_tokens: int) -> int:
        """Take a request from its key's limits, and see that there is budget; gives the tokens taken.

        Raises:
            ApiError: 429.
        """
        if visit.key.budget_micro_usd_per_month is not None:
            try:
                await asyncio.to_thread(self._limits.require_budget, visit.key)
            except UsageDatabaseError:
                raise ApiError(503, "the meter can't be read now", headers={"Retry-After": "5"}) from None
        taken, headers = self._limits.take(visit.key, prompt_tokens, most_tokens)
        visit.headers |= headers
        return taken

    async def settle(self, visit: Visit, ticket: Ticket, text: str | None, user: str | None) -> None:
        """Wait until a request that is over is metered.

        Raises:
            ApiError: it can't be.
        """
        usage = usage_of(ticket)
        output = usage["completion_tokens"]
        visit.prompt_tokens, visit.output_tokens = usage["prompt_tokens"], output
        visit.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
        times = [each.output.metrics.first_token_s for each in ticket.samples]
        first = min((each for each in times if each is not None), default=None)
        visit.first_token_s = None if first is None else max(first - visit.begun_s, 0.0)
        visit.outcome = _outcome(ticket)
        self._limits.give_back(visit.key, ticket.reserved_tokens - visit.prompt_tokens - output)
        await self.record(visit, ticket.engine_s)
        if self._on_served is not None and visit.outcome in ("stop", "length"):
            latency_s = time.perf_counter() - visit.begun_s
            self._on_served(Served(user or "", visit.prompt_tokens, output, latency_s, text))

    async def record(self, visit: Visit, engine_s: float) -> None:
        """Hand a request over to the meter, and wait until it is durable.

        Raises:
            ApiError: it can't be.
        """
        if self._meter is None:
            return
        first_s = None if visit.first_token_s is None else visit.arrived_s + visit.first_token_s
        used = Usage(
            request_id=visit.request_id,
            key_id=visit.key.key_id,
            model=self.model,
            prompt_tokens=visit.prompt_tokens,
            cached_tokens=visit.cached_tokens,
            output_tokens=visit.output_tokens,
            arrived_s=visit.arrived_s,
            first_token_s=first_s,
            finished_s=visit.arrived_s + (time.perf_counter() - visit.begun_s),
            status=visit.outcome,
            cost_micro_usd=round(engine_s * self._micro_usd_per_s),
        )
        try:
            durable: Future[None] = await asyncio.to_thread(self._meter.submit, used)
            await asyncio.shield(asyncio.wrap_future(durable))
        except (UsageDatabaseError, RuntimeError) as error:
            _log.error("%s not metered: %s", visit.request_id, type(error).__name__)
            raise ApiError(503, "the meter can't be written now", headers={"Retry-After": "5"}) from None

    async def _watch(
        self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]], ticket: Ticket
    ) -> None:
        over = asyncio.create_task(ticket.closed.wait())
        gone = asyncio.ensure_future(_until_gone(receive))
        await asyncio.wait((over, gone), return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        gone.cancel()
        self.engine.abandon(ticket)  # nothing to do if it is over


async def _until_gone(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def told(error: InputError | StoppedError) -> ApiError:
    """Map an engine error to an HTTP error: 429 for a full queue, 503 for a stopped engine, else 400."""
    if isinstance(error, StoppedError):
        return ApiError(503, str(error), headers={"Retry-After": "5"})
    if isinstance(error, QueueFullError):
        headers = {"Retry-After": str(error.retry_after_s)}
        return ApiError(429, error.reason, code="queue_full", headers=headers)
    return bad(error.reason, code="context_length_exceeded" if isinstance(error, TooLongError) else None)


def _outcome(ticket: Ticket) -> str:
    """How a request ended, in the meter's words."""
    if ticket.error is not None:
        return "error"
    reasons = {sample.finish_reason for sample in ticket.samples}
    if ticket.gone or "cancelled" in reasons or not firsts(ticket):
        return "cancelled"
    return next(reason for reason in ("timeout", "length", "stop") if reason in reasons)
