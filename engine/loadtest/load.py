"""Load for an OpenAI-compatible server, and the latencies of its clients: one event loop, any number of connections.

The load is open: when each request is sent is fixed beforehand, and no slow answer delays the next. A request's times
count from when it was to be sent, so that a server (or this client) that stalls shows in every request that came
meanwhile; tools that count from the moment of sending hide it (coordinated omission: Tene 2013). How late the sender
itself was is measured and given beside. A closed loop, which keeps so many requests going, finds what a server can do.

The measures are defined in `engine.loadtest.result`. A million requests take about 100 MB: a row of numbers each.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError
from engine.loadtest.answer import Answer
from engine.loadtest.client import Client, Dialect, Endpoint
from engine.loadtest.result import STATUSES, FloatArray, GapHistogram, LoadResult
from engine.utils.progress import Progress, no_progress

_UNSENT, _UNDER_WAY = -2, -1
_REPORT_S = 0.25
_AT_ONCE = 64  # requests begun before the others' answers are read


def arrival_times(rate_rps: float, count: int, kind: str = "poisson", seed: int = 0) -> FloatArray:
    """[count] times in seconds from 0: "poisson" (exponential gaps) or "constant", at `rate_rps` requests/s.

    Raises:
        InputError: a rate or count that isn't positive, or another kind.
    """
    if not 0 < rate_rps < math.inf:
        raise InputError(f"rate {rate_rps}: a positive number of requests per second is allowed")
    if count < 1:
        raise InputError(f"requests {count}: allowed is at least 1")
    if kind == "poisson":
        return np.asarray(np.random.default_rng(seed).exponential(1 / rate_rps, count).cumsum())
    if kind == "constant":
        return np.arange(count) / rate_rps
    raise InputError(f"arrivals {kind!r}: allowed are poisson and constant")


@dataclass(frozen=True)
class LoadOptions:
    """How requests are sent.

    Raises:
        InputError: concurrency below 1.
    """

    concurrency: int | None = None  # closed loop: keep so many going; arrived_s is then when each was sent
    timeout_s: float = 600.0  # after which a request is given up
    seed: int = 0  # of the prompts

    def __post_init__(self) -> None:
        if self.concurrency is not None and self.concurrency < 1:
            raise InputError(f"concurrency {self.concurrency}: allowed is at least 1")


def run_load(
    endpoint: Endpoint,
    requests: pd.DataFrame,
    options: LoadOptions = LoadOptions(),
    progress: Progress = no_progress,
) -> LoadResult:
    """Send `requests` and wait for their answers; takes as long as they do. Ctrl-C returns what has ended so far.

    Args:
        endpoint: the server.
        requests: arrived_s (seconds, increasing), prompt_tokens, output_tokens [, request_id, prefix_hashes]: one row
            each. Full blocks of 16 tokens with the same hash are the same tokens, where the server takes token ids.
        options: see `LoadOptions`.
        progress: called four times a second with (fraction ended, what is being done).

    Raises:
        InputError: a bad row, or a server that can't be reached, refuses the key, lacks the model or doesn't stream.
    """
    return asyncio.run(send_load(endpoint, requests, options, progress))


async def send_load(
    endpoint: Endpoint,
    requests: pd.DataFrame,
    options: LoadOptions = LoadOptions(),
    progress: Progress = no_progress,
) -> LoadResult:
    """`run_load` in an event loop that runs already."""
    run = _Run(requests, options)
    _allow_many_connections()
    async with Client(endpoint, options.timeout_s) as client:
        await client.greet()
        await run.drive(client, progress)
    return run.result(requests)


class _Run:
    """One load under way."""

    def __init__(self, requests: pd.DataFrame, options: LoadOptions) -> None:
        self.arrived_s, self.prompt, self.output = _checked(requests)
        self._blocks = requests["prefix_hashes"].tolist() if "prefix_hashes" in requests else None
        count = len(requests)
        self.concurrency, self._rng = options.concurrency, np.random.default_rng(options.seed)
        self.sent_s, self.first_s, self.finished_s, self.longest_s = (
            np.full(count, math.nan) for _ in range(4)
        )
        self.pieces, self.cached = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.int32)
        self.status = np.full(count, _UNSENT, dtype=np.int8)
        self.errors: dict[int, str] = {}
        self.gaps = GapHistogram()
        self.dialect = Dialect("", "words", {})
        self._began_s, self._done, self.wall_s = 0.0, 0, 0.0

    async def drive(self, client: Client, progress: Progress) -> None:
        """Send everything and wait for the answers; a cancelled task (Ctrl-C) ends it early and quietly."""
        self.dialect = client.dialect
        self._began_s = client.now()
        work = self._open(client) if self.concurrency is None else self._closed(client, self.concurrency)
        task = asyncio.create_task(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_REPORT_S)
                under_way = int((self.status == _UNDER_WAY).sum())
                text = f"{self._done:,} of {len(self.status):,} ended, {under_way:,} under way"
                progress(self._done / len(self.status), text)
            await task
        except asyncio.CancelledError:
            pass
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self.wall_s = client.now() - self._began_s

    async def _open(self, client: Client) -> None:
        tasks: set[asyncio.Task[None]] = set()
        try:
            for row in range(len(self.status)):
                body = self._body(client, row)  # built before it is due
                left_s = self._began_s + self.arrived_s[row] - client.now()
                if left_s > 0 or row % _AT_ONCE == 0:
                    await asyncio.sleep(max(0.0, left_s))
                task = asyncio.create_task(self._one(client, row, body))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            while tasks:
                await asyncio.wait(set(tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _closed(self, client: Client, concurrency: int) -> None:
        rows = iter(range(len(self.status)))

        async def worker() -> None:
            for row in rows:
                body = self._body(client, row)
                self.arrived_s[row] = client.now() - self._began_s
                await self._one(client, row, body)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(self.status))):
                group.create_task(worker())

    def _body(self, client: Client, row: int) -> bytes:
        blocks = self._blocks[row] if self._blocks is not None else ()
        prompt = client.prompt(int(self.prompt[row]), self._rng, blocks)
        return client.body(prompt, int(self.output[row]))

    async def _one(self, client: Client, row: int, body: bytes) -> None:
        before_s = longest_s = 0.0
        gaps = self.gaps

        def on_tokens(now_s: float, _tokens: int) -> None:
            nonlocal before_s, longest_s
            if before_s:
                gap_s = now_s - before_s
                gaps.add(gap_s)
                longest_s = max(longest_s, gap_s)
            before_s = now_s

        self.status[row] = _UNDER_WAY
        answer = await client.stream(body, int(self.output[row]), on_tokens)
        self._note(row, answer, longest_s)

    def _note(self, row: int, answer: Answer, longest_s: float) -> None:
        self.sent_s[row] = answer.sent_s - self._began_s
        self.first_s[row] = answer.first_token_s - self._began_s
        if answer.status == "finished":
            self.finished_s[row] = answer.last_token_s - self._began_s
        if answer.pieces > 1:
            self.longest_s[row] = longest_s
        if answer.prompt_tokens is not None:
            self.prompt[row] = answer.prompt_tokens
        # Without usage a finished answer has as many tokens as pieces, as far as can be seen.
        self.output[row] = answer.pieces if answer.output_tokens is None else answer.output_tokens
        self.pieces[row], self.cached[row] = answer.pieces, answer.cached_tokens
        self.status[row] = STATUSES.index(answer.status)
        if answer.error:
            self.errors[row] = answer.error
        self._done += 1

    def result(self, given: pd.DataFrame) -> LoadResult:
        """The requests that ended, as a frame."""
        ended = self.status >= 0
        ids = given["request_id"].to_numpy() if "request_id" in given else np.arange(len(given))
        frame = pd.DataFrame(
            {
                "request_id": ids,
                "arrived_s": self.arrived_s,
                "sent_s": self.sent_s,
                "scheduled_s": math.nan,
                "first_token_s": self.first_s,
                "finished_s": self.finished_s,
                "prompt_tokens": self.prompt,
                "output_tokens": self.output,
                "pieces": self.pieces,
                "itl_max_s": self.longest_s,
                "cached_tokens": self.cached,
                "preemptions": 0,
                "replica": 0,
                "status": np.array(STATUSES, dtype=object)[np.maximum(self.status, 0)],
                "error": [self.errors.get(row, "") for row in range(len(given))],
            }
        )[ended].reset_index(drop=True)
        result = LoadResult(
            frame, self.gaps, self.dialect, self.concurrency, self.wall_s, int((~ended).sum()), []
        )
        result.notes = _notes(result, given, ended)
        return result


def _notes(result: LoadResult, given: pd.DataFrame, ended: NDArray[np.bool_]) -> list[str]:
    """Notes that a reader of the numbers needs."""
    notes, frame = [result.dialect.describe()], result.requests
    if "prefix_hashes" in given and result.dialect.prompt_form != "token ids":
        notes.append(
            "prefix_hashes: prompts in words share no prefixes, the server's prefix cache finds nothing"
        )
    done = (frame["status"] == "finished").to_numpy()
    for name in ("prompt_tokens", "output_tokens"):
        asked, got = given[name].to_numpy()[ended][done].sum(), frame[name].to_numpy()[done].sum()
        if asked and abs(got / asked - 1) > 0.02:
            notes.append(f"{name}: asked for {asked:,}, the answers count {got:,}")
    times = result.times()
    late_s, ttft_s = times["late_s"].quantile(0.99), times["ttft_s"].median()
    if result.concurrency is None and late_s > max(0.01, 0.1 * ttft_s):
        notes.append(
            f"the sender itself was late (p99 {late_s * 1e3:.0f} ms): this client is the bottleneck, its latencies are "
            "too long; use fewer requests per second, or several clients"
        )
    return notes


def _checked(requests: pd.DataFrame) -> tuple[FloatArray, NDArray[np.int64], NDArray[np.int64]]:
    for name in ("arrived_s", "prompt_tokens", "output_tokens"):
        if name not in requests:
            raise InputError(f"requests: found no column {name}")
    if requests.empty:
        raise InputError("requests: found no rows, allowed is at least one")
    arrived_s = pd.to_numeric(requests["arrived_s"], errors="coerce").to_numpy(dtype=float).copy()
    bad = ~np.isfinite(arrived_s) | (arrived_s < 0) | (np.diff(arrived_s, prepend=0.0) < 0)
    if bad.any():
        row = int(np.argmax(bad))
        found = requests["arrived_s"].iloc[row]
        raise InputError(f"requests: row {row}: arrived_s: found {found}, allowed is a time ≥ the row above")
    tokens = []
    for name in ("prompt_tokens", "output_tokens"):
        values = pd.to_numeric(requests[name], errors="coerce").to_numpy(dtype=float)
        bad = ~(values >= 1) | (values != np.floor(values))
        if bad.any():
            row = int(np.argmax(bad))
            found = requests[name].iloc[row]
            raise InputError(f"requests: row {row}: {name}: found {found}, allowed is a whole number ≥ 1")
        tokens.append(values.astype(np.int64))
    return arrived_s, tokens[0], tokens[1]


def _allow_many_connections() -> None:
    """Raise the limit of open files as far as this user may: each connection is one."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # another system than Unix
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
