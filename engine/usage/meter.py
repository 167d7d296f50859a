"""The meter: each request's usage, durable before the client sees the end of its response.

Models the metering of a utility. One thread writes; all requests that came in while it wrote the last ones share the
next transaction (group commit, DeWitt et al. 1984, "Implementation techniques for main memory database systems"), so
that a sync of the disk is paid per group, not per request. A request id counts once, however often it is submitted: a
request that may not have been counted can be submitted again. A finished future promises what `engine.usage.database`
says of a commit: the usage survives `kill -9` and a loss of power. `Served` is an entry of the usage log for the owner
of the server.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from queue import Full
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, Select, func, select
from sqlalchemy.dialects import postgresql, sqlite

from engine.errors import InputError
from engine.usage.database import (
    DEFAULT_URL,
    REQUESTS,
    UsageDatabaseError,
    check_name,
    is_transient,
    month_bounds_s,
    month_of,
    naming_the_database,
    open_database,
    writing,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Served:
    """One line of the usage log; `text` is the prompt, None unless the user allowed to store it."""

    user: str
    prompt_tokens: int
    output_tokens: int
    latency_s: float
    text: str | None


def log_lines(log: Iterable[Served]) -> str:
    """The usage log as JSON lines."""
    return "".join(json.dumps(asdict(used)) + "\n" for used in log)


STATUSES = ("stop", "length", "cancelled", "timeout", "error")
BILLED_STATUSES = ("stop", "length", "cancelled")  # the rest is the server's failure, and free
SPENT_FRESH_S = 1.0  # how old a key's spending may be when a budget is checked against it

_GROUP = 2000  # most requests of a transaction
_LARGEST = 2**53 - 1  # JSON and doubles hold it exactly
_PAUSES_S = (0.01, 0.5)  # first and longest pause before a retry


@dataclass(frozen=True)
class Usage:
    """Usage of one request: tokens, Unix times [s], final status and measured cost.

    `cached_tokens` are the prompt tokens served from the prefix cache. `cost_micro_usd` is the price of the machine
    times the request's share of the engine's time, in whole micro-dollars.

    Raises:
        InputError: an impossible value: negative tokens, more cached than prompt tokens, a time that is not a number.
    """

    request_id: str
    key_id: str
    model: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    arrived_s: float
    first_token_s: float | None
    finished_s: float
    status: str
    cost_micro_usd: int

    def __post_init__(self) -> None:
        for name in ("request_id", "key_id", "model"):
            check_name(name, getattr(self, name))
        for name in ("prompt_tokens", "cached_tokens", "output_tokens", "cost_micro_usd"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= _LARGEST:
                raise InputError(f"{name}: found {value!r:.60}, allowed: a whole number from 0 to 2^53 - 1")
        if self.cached_tokens > self.prompt_tokens:
            raise InputError(
                f"cached_tokens: found {self.cached_tokens}, allowed: up to {self.prompt_tokens}"
            )
        for name in ("arrived_s", "first_token_s", "finished_s"):
            value = getattr(self, name)
            if name == "first_token_s" and value is None:
                continue
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"{name}: found {value!r:.60}, allowed: unix time in seconds")
        if self.status not in STATUSES:
            raise InputError(f"status: found {self.status!r:.60}, allowed: {', '.join(STATUSES)}")


@dataclass(frozen=True)
class TokenPrices:
    """Prices in whole micro-dollars per million tokens: 0.20 USD is 200,000."""

    prompt: int
    cached: int  # of prompt tokens that the prefix cache held
    output: int

    def micro_usd(self, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        """Price of these tokens in micro-dollars, each of the three kinds rounded once."""
        uncached = amount_micro_usd(prompt_tokens - cached_tokens, self.prompt)
        cached = amount_micro_usd(cached_tokens, self.cached)
        return uncached + cached + amount_micro_usd(output_tokens, self.output)


@dataclass(frozen=True)
class Used:
    """Usage of one key and model in a period, billed or (failed requests) not."""

    key_id: str
    model: str
    is_billed: bool
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_micro_usd: int
    last_finished_s: float


def amount_micro_usd(tokens: int, micro_usd_per_mtok: int) -> int:
    """Quantity × unit price in micro-dollars, exact and then rounded half to even."""
    return round(Fraction(tokens * micro_usd_per_mtok, 1_000_000))


class Meter:
    """Writes and reads the usage of requests. Safe to use from several threads; several processes may share a database.

    Args:
        url: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE; missing tables are created.
        max_pending: requests that may wait for the writer; then `submit` waits (or raises `queue.Full`).
        retry_s: how long a write is retried while the database is locked or unavailable.

    Raises:
        UsageDatabaseError: the database cannot be opened.
    """

    def __init__(self, url: str = DEFAULT_URL, *, max_pending: int = 10_000, retry_s: float = 30.0) -> None:
        self._engine = open_database(url)
        sqlite_file = self._engine.dialect.name == "sqlite"
        insert = sqlite.insert(REQUESTS) if sqlite_file else postgresql.insert(REQUESTS)
        self._insert = insert.on_conflict_do_nothing()
        self._max_pending, self._retry_s = max_pending, retry_s
        self._pending: deque[tuple[Usage, Future[None]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._spent: dict[tuple[str, str, TokenPrices | None], tuple[float, int]] = {}
        self._writer = threading.Thread(target=self._write, name="meter", daemon=True)
        self._writer.start()

    def submit(self, usage: Usage, *, block: bool = True) -> Future[None]:
        """Hand over a finished request; the future is done when it is durable, and cannot be cancelled.

        The future ends in UsageDatabaseError if the database refuses for longer than `retry_s`: the request is then not
        counted, and may be submitted again.

        Args:
            usage: the request. Of two with the same `request_id` the first counts.
            block: wait while `max_pending` requests are waiting; else raise.

        Raises:
            queue.Full: `max_pending` requests are waiting, and `block` is false.
            RuntimeError: the meter is closed.
        """
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # a client that goes away must not undo what it used
        with self._changed:
            while len(self._pending) >= self._max_pending and not self._closed:
                if not block:
                    raise Full
                self._changed.wait()
            if self._closed:
                raise RuntimeError("the meter is closed")
            self._pending.append((usage, future))
            self._changed.notify_all()
        return future

    def frame(
        self, since_s: float | None = None, until_s: float | None = None, key_id: str | None = None
    ) -> pd.DataFrame:
        """Requests that finished in [since_s, until_s), one row each by time of finishing; columns as in `Usage`.

        Raises:
            UsageDatabaseError: the database cannot be read.
        """
        return usage_frame(self._engine, since_s, until_s, key_id)

    def spent_micro_usd(
        self, key_id: str, month: str | None = None, prices: TokenPrices | None = None
    ) -> int:
        """Spending of a key in a month (YYYY-MM, UTC; default: the current one) in micro-dollars.

        With prices: what is billed at them, without fees; without: the measured cost of all its requests. Up to
        `SPENT_FRESH_S` old, so that it can be read for each request.

        Raises:
            InputError: `month` is not YYYY-MM.
            UsageDatabaseError: the database cannot be read.
        """
        month = month or month_of(time.time())
        now = time.monotonic()
        read_at, spent = self._spent.get((key_id, month, prices), (-math.inf, 0))
        if now - read_at < SPENT_FRESH_S:
            return spent
        start_s, end_s = month_bounds_s(month)
        used = REQUESTS.c
        sums = (
            [used.cost_micro_usd]
            if prices is None
            else [used.prompt_tokens, used.cached_tokens, used.output_tokens]
        )
        query = select(*(func.coalesce(func.sum(column), 0) for column in sums)).where(
            used.key_id == key_id, used.finished_s >= start_s, used.finished_s < end_s
        )
        if prices is not None:
            query = query.where(used.status.in_(BILLED_STATUSES))
        with naming_the_database(self._engine), self._engine.connect() as connection:
            found = [int(total) for total in connection.execute(query).one()]
        spent = found[0] if prices is None else prices.micro_usd(*found)
        if len(self._spent) > 10_000:
            self._spent.clear()
        self._spent[key_id, month, prices] = (now, spent)
        return spent

    def close(self) -> None:
        """Write what was submitted, then stop; futures of requests that cannot be written end in their error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._writer.join()
        self._engine.dispose()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _write(self) -> None:
        while True:
            with self._changed:
                while not self._pending and not self._closed:
                    self._changed.wait()
                group = [self._pending.popleft() for _ in range(min(_GROUP, len(self._pending)))]
                self._changed.notify_all()
            if not group:
                return
            # In one order everywhere, so that two processes with the same ids never wait for each other in a ring.
            rows = sorted((asdict(usage) for usage, _ in group), key=lambda row: str(row["request_id"]))
            try:
                self._commit(rows)
            except Exception as error:
                for _, future in group:
                    future.set_exception(error)
            else:
                for _, future in group:
                    future.set_result(None)

    def _commit(self, rows: list[dict[str, Any]]) -> None:
        until = time.monotonic() + self._retry_s
        pause_s, longest_s = _PAUSES_S
        while True:
            try:
                with naming_the_database(self._engine), writing(self._engine) as connection:
                    connection.execute(self._insert, rows)
                return
            except UsageDatabaseError as error:
                if not is_transient(error.__cause__ or error) or time.monotonic() + pause_s > until:
                    raise
            time.sleep(pause_s)
            pause_s = min(longest_s, 2 * pause_s)


def usage_frame(
    engine: Engine, since_s: float | None = None, until_s: float | None = None, key_id: str | None = None
) -> pd.DataFrame:
    """As `Meter.frame`, from a database that `open_database` opened: for readers without a meter.

    Raises:
        UsageDatabaseError: the database cannot be read.
    """
    import pandas as pd

    query: Select[Any] = select(REQUESTS).order_by(REQUESTS.c.finished_s, REQUESTS.c.request_id)
    if since_s is not None:
        query = query.where(REQUESTS.c.finished_s >= since_s)
    if until_s is not None:
        query = query.where(REQUESTS.c.finished_s < until_s)
    if key_id is not None:
        query = query.where(REQUESTS.c.key_id == key_id)
    with naming_the_database(engine), engine.connect() as connection:
        rows = connection.execute(query).all()
    frame = pd.DataFrame(rows, columns=[field.name for field in fields(Usage)])
    kinds = {"str": "object", "int": "int64", "float": "float64", "float | None": "float64"}
    return frame.astype({field.name: kinds[str(field.type)] for field in fields(Usage)})


def used_by_key(engine: Engine, since_s: float, until_s: float) -> list[Used]:
    """Sums over the requests that finished in [since_s, until_s), by key and model; computed by the database.

    Raises:
        UsageDatabaseError: the database cannot be read.
    """
    one, is_billed = REQUESTS.c, REQUESTS.c.status.in_(BILLED_STATUSES)
    sums = (one.prompt_tokens, one.cached_tokens, one.output_tokens, one.cost_micro_usd)
    query = (
        select(one.key_id, one.model, is_billed, func.count(), *map(func.sum, sums), func.max(one.finished_s))
        .where(one.finished_s >= since_s, one.finished_s < until_s)
        .group_by(one.key_id, one.model, is_billed)
    )
    with naming_the_database(engine), engine.connect() as connection:
        rows = connection.execute(query).all()
    found = [
        # PostgreSQL sums whole numbers as decimals.
        Used(key_id, model, bool(billed), requests, int(prompt), int(cached), int(output), int(cost), last_s)
        for key_id, model, billed, requests, prompt, cached, output, cost, last_s in rows
    ]
    return sorted(found, key=lambda used: (used.key_id, used.model, not used.is_billed))
