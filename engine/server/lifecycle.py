"""Lifecycle of a request: limits and budget, the engine's queue, and the meter at the end.

`admit` takes tokens from the limits of the request's key, checks its budget and queues the request. `settle` gives
back the tokens that were not used and waits until the usage is durable: only then may the client see the end of its
response. The cost is the request's share of the engine's time (`engine.server.engine_thread`) at the machine's price.
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
from engine.server.engine_thread import EngineThread, InFlightRequest, StoppedError
from engine.server.errors import ApiError, bad
from engine.server.rate_limits import Limits
from engine.server.request_context import RequestContext
from engine.server.responses import firsts, usage_of
from engine.usage.database import UsageDatabaseError
from engine.usage.meter import Meter, Served, Usage

_log = logging.getLogger("engine.server")


class RequestLifecycle:
    """Admits requests and meters them; used on the event loop alone."""

    def __init__(
        self,
        engine: EngineThread,
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
        context: RequestContext,
        prompts: list[list[int]],
        params: SamplingParams,
        *,
        streams: bool,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    ) -> InFlightRequest:
        """Queue a request; it is cancelled when the client disconnects.

        Raises:
            ApiError: a rate limit or the budget is exceeded, the queue is full, or the engine does not run.
        """
        inflight = InFlightRequest(
            prompts=prompts,
            params=[params] * len(prompts),
            priority=-context.key.priority,  # the engine serves low numbers first
            timeout_s=self._timeout_s,
            streams=streams,
            loop=asyncio.get_running_loop(),
        )
        prompt = sum(map(len, prompts))
        inflight.reserved_tokens = await self.reserve(
            context, prompt, prompt + params.max_tokens * params.n * len(prompts)
        )
        try:
            self.engine.submit(inflight)
        except (QueueFullError, StoppedError) as error:
            self._limits.give_back(context.key, inflight.reserved_tokens, requests=1)
            raise to_api_error(error) from None
        task = asyncio.create_task(self._watch(receive, inflight))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)
        return inflight

    async def reserve(self, context: RequestContext, prompt_tokens: int, most_tokens: int) -> int:
        """Charge a request to the limits of its key and check its budget.

        Args:
            context: of the request; gets the x-ratelimit headers.
            prompt_tokens: of all its prompts.
            most_tokens: prompt tokens and the most that it may produce.

        Returns:
            The tokens taken from the limit per minute.

        Raises:
            ApiError: 429, a limit or the budget is exceeded; 503, the meter cannot be read.
        """
        if context.key.budget_micro_usd_per_month is not None:
            try:
                await asyncio.to_thread(self._limits.require_budget, context.key)
            except UsageDatabaseError:
                raise ApiError(503, "the meter can't be read now", headers={"Retry-After": "5"}) from None
        taken, headers = self._limits.take(context.key, prompt_tokens, most_tokens)
        context.headers |= headers
        return taken

    async def settle(
        self, context: RequestContext, inflight: InFlightRequest, text: str | None, user: str | None
    ) -> None:
        """Meter a finished request; returns when its usage is durable.

        Args:
            context: of the request; gets its usage and outcome.
            inflight: the request in the engine.
            text: its prompt for the usage log; None if the client did not allow to store it.
            user: the client's name for its user.

        Raises:
            ApiError: 503, the meter cannot be written.
        """
        usage = usage_of(inflight)
        output = usage["completion_tokens"]
        context.prompt_tokens, context.output_tokens = usage["prompt_tokens"], output
        context.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
        times = [each.output.metrics.first_token_s for each in inflight.samples]
        first = min((each for each in times if each is not None), default=None)
        context.first_token_s = None if first is None else max(first - context.begun_s, 0.0)
        context.outcome = _outcome(inflight)
        self._limits.give_back(context.key, inflight.reserved_tokens - context.prompt_tokens - output)
        await self.record(context, inflight.engine_s)
        if self._on_served is not None and context.outcome in ("stop", "length"):
            latency_s = time.perf_counter() - context.begun_s
            self._on_served(Served(user or "", context.prompt_tokens, output, latency_s, text))

    async def record(self, context: RequestContext, engine_s: float) -> None:
        """Write the request's usage to the meter; returns when it is durable.

        Raises:
            ApiError: 503, the meter cannot be written.
        """
        if self._meter is None:
            return
        first_s = None if context.first_token_s is None else context.arrived_s + context.first_token_s
        used = Usage(
            request_id=context.request_id,
            key_id=context.key.key_id,
            model=self.model,
            prompt_tokens=context.prompt_tokens,
            cached_tokens=context.cached_tokens,
            output_tokens=context.output_tokens,
            arrived_s=context.arrived_s,
            first_token_s=first_s,
            finished_s=context.arrived_s + (time.perf_counter() - context.begun_s),
            status=context.outcome,
            cost_micro_usd=round(engine_s * self._micro_usd_per_s),
        )
        try:
            durable: Future[None] = await asyncio.to_thread(self._meter.submit, used)
            await asyncio.shield(asyncio.wrap_future(durable))
        except (UsageDatabaseError, RuntimeError) as error:
            _log.error("%s not metered: %s", context.request_id, type(error).__name__)
            raise ApiError(503, "the meter can't be written now", headers={"Retry-After": "5"}) from None

    async def _watch(
        self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]], inflight: InFlightRequest
    ) -> None:
        closed = asyncio.create_task(inflight.closed.wait())
        disconnect = asyncio.ensure_future(_disconnected(receive))
        await asyncio.wait((closed, disconnect), return_when=asyncio.FIRST_COMPLETED)
        closed.cancel()
        disconnect.cancel()
        self.engine.abandon(inflight)  # does nothing if it is closed


async def _disconnected(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def to_api_error(error: InputError | StoppedError) -> ApiError:
    """Map an engine error to an HTTP error: 429 for a full queue, 503 for a stopped engine, else 400."""
    if isinstance(error, StoppedError):
        return ApiError(503, str(error), headers={"Retry-After": "5"})
    if isinstance(error, QueueFullError):
        headers = {"Retry-After": str(error.retry_after_s)}
        return ApiError(429, error.reason, code="queue_full", headers=headers)
    return bad(error.reason, code="context_length_exceeded" if isinstance(error, TooLongError) else None)


def _outcome(inflight: InFlightRequest) -> str:
    """How a request ended, as a status of the meter."""
    if inflight.error is not None:
        return "error"
    reasons = {sample.finish_reason for sample in inflight.samples}
    if inflight.disconnected or "cancelled" in reasons or not firsts(inflight):
        return "cancelled"
    return next(reason for reason in ("timeout", "length", "stop") if reason in reasons)
