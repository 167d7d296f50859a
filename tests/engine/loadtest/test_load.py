"""The load client against servers whose delays are known to the microsecond (see helpers_endpoint)."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.loadtest.client import Client, Dialect, Endpoint
from engine.loadtest.load import LoadOptions, _Run, arrival_times, send_load
from engine.loadtest.result import GapHistogram, LoadResult
from engine.loadtest.sse import EventParser
from engine.utils.progress import Progress, no_progress
from sim.cli import load
from sim.serving import metrics
from sim.validation import compare
from tests.helpers.endpoint import endpoint, event, models, run, scripted_app, serving, stream_of, token
from tests.helpers.places import ROOT


def frame(arrived_s: Any, prompt_tokens: Any = 20, output_tokens: Any = 5) -> pd.DataFrame:
    return pd.DataFrame(
        {"arrived_s": arrived_s, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
    )


def loaded(
    app: web.Application, requests: pd.DataFrame, progress: Progress = no_progress, **options: Any
) -> LoadResult:
    async def work() -> LoadResult:
        async with serving(app) as url:
            return await send_load(endpoint(url), requests, LoadOptions(**options), progress)

    return run(work())


# Server-sent events

lines = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=8)
ends = st.sampled_from(["\n", "\r\n", "\r"])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(lines, min_size=1, max_size=3), ends, st.booleans(), st.booleans()), max_size=5
    ),
    st.data(),
)
def test_events_come_out_whole_wherever_the_network_cuts(events: list[Any], data: st.DataObject) -> None:
    text = ""
    for parts, end, commented, named in events:
        text += (f": ping{end}" if commented else "") + (f"event: x{end}id:1{end}" if named else "")
        text += "".join(f"data: {part}{end}" for part in parts) + end
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    parser, found = EventParser(), []
    for begin, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        found += parser.feed(raw[begin:stop])
    assert [each.decode() for each in found] == ["\n".join(parts) for parts, *_ in events]


def test_an_event_is_there_as_soon_as_its_empty_line_is() -> None:
    parser = EventParser()
    assert parser.feed(b"\xef\xbb\xbfdata: 1\n") == []
    assert parser.feed(b"\n") == [b"1"]
    assert parser.feed(b"data:2\r\n\r") == [b"2"]
    assert parser.feed(b"\ndata: broken off") == []


# What is measured


def test_latencies_are_those_that_the_server_was_told() -> None:
    delays = {0: [0.5, 0.1, 0.1, 0.4], 1: [0.25, 0.2], 2: [1.0]}
    app = scripted_app(lambda number, _: delays[number])
    result = loaded(app, frame([0.0, 10.0, 20.0], output_tokens=[4, 3, 3]))
    times, found = result.times(), result.summary()
    assert times["ttft_s"].to_list() == pytest.approx([0.5, 0.25, 1.0], abs=1e-6)
    assert times["e2e_s"].to_list() == pytest.approx([1.1, 0.45, 1.0], abs=1e-6)
    # (last − first) / (tokens − 1); a single token has none.
    assert times["tpot_s"].to_list() == pytest.approx([0.2, 0.2, math.nan], abs=1e-6, nan_ok=True)
    assert result.requests["output_tokens"].to_list() == [4, 2, 1]
    assert result.requests["itl_max_s"].to_list() == pytest.approx(
        [0.4, 0.2, math.nan], abs=1e-6, nan_ok=True
    )
    assert found["itl_mean_s"] == pytest.approx((0.1 + 0.1 + 0.4 + 0.2) / 4, abs=1e-6)
    assert found["itl_p50_s"] == pytest.approx(0.1, rel=0.01)
    assert found["duration_s"] == pytest.approx(21.0, abs=1e-6)
    assert found["requests_per_s"] == pytest.approx(3 / 21, rel=1e-6)
    assert found["output_tokens_per_s"] == pytest.approx(7 / 21, rel=1e-6)


def test_the_simulators_metrics_read_the_result() -> None:
    app = scripted_app(lambda number, body: [0.3] + [0.05 * (number + 1)] * (body["max_tokens"] - 1))
    result = loaded(app, frame(arrival_times(3.0, 30), output_tokens=6))
    ours, theirs = result.times(), metrics.latencies(result.requests)
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        np.testing.assert_allclose(ours[name], theirs[name])
    found, read = result.summary(), compare.measures(result.requests)
    assert read["ttft_p95_s"] == pytest.approx(found["ttft_p95_s"])
    assert read["throughput_rps"] == pytest.approx(found["requests_per_s"])


def _stalling(stall: tuple[float, float], base_s: float) -> web.Application:
    """A server that does nothing between two times after its first request."""
    began: list[float] = []

    def script(_: int, __: dict[str, Any]) -> list[float]:
        now = asyncio.get_running_loop().time()
        began.append(now)
        since = now - began[0]
        return [base_s + (stall[1] - since if stall[0] <= since < stall[1] else 0.0)]

    return scripted_app(script)


def test_a_stall_shows_in_everybody_who_came_meanwhile() -> None:
    """Coordinated omission: 100 requests at 10/s meet a stall of 1 s from 2.95 s on."""
    requests = frame(arrival_times(10.0, 100, "constant"), output_tokens=3)
    found = loaded(_stalling((2.95, 3.95), 0.01), requests).summary()
    # Those due at 3.0, 3.1 … 3.9 wait 0.95, 0.85 … 0.05 s. The 99th percentile of 100 is at 98.01: from 0.85 to 0.95.
    assert found["ttft_p99_s"] == pytest.approx(0.01 + 0.85 + 0.01 * 0.1, abs=1e-6)
    assert found["ttft_mean_s"] == pytest.approx(
        0.01 + sum(0.05 + 0.1 * i for i in range(10)) / 100, abs=1e-6
    )
    # One client that waits for each answer sees it once in about 900 requests.
    closed = loaded(_stalling((2.95, 3.95), 0.01), frame([0.0] * 500, output_tokens=3), concurrency=1)
    assert closed.summary()["ttft_p99_s"] == pytest.approx(0.01, abs=1e-6)
    assert (closed.times()["ttft_s"] > 0.5).sum() == 1


def test_a_stall_of_the_client_itself_is_measured_and_said() -> None:
    stalled: list[float] = []

    def freeze(fraction: float, _: str) -> None:
        if fraction > 0.3 and not stalled:
            loop: Any = asyncio.get_running_loop()
            stalled.append(loop.time())
            loop._jumping.now_s += 1.0

    app = scripted_app(lambda *_: [0.02])
    requests = frame(arrival_times(50.0, 200, "constant"), output_tokens=3)
    result = loaded(app, requests, progress=freeze)
    late_s = result.times()["late_s"]
    # 50 requests were due in that second, each late by what was left of it.
    assert (late_s > 0.001).sum() in (49, 50, 51)
    assert late_s.max() == pytest.approx(1.0, abs=0.02)
    assert late_s.sum() == pytest.approx(50 * 0.5, abs=1.0)
    # Times count from when they were due; the one that was under way was read late.
    waited_s = result.times()["ttft_s"] - late_s
    assert (abs(waited_s - 0.02) > 1e-6).sum() <= 1
    assert any("sender itself was late" in note for note in result.notes)


def test_goodput_counts_who_meets_every_goal() -> None:
    # (TTFT, one gap): within ttft 0.5 and tpot 0.1? The last is cut off.
    answers = [(0.4, 0.05), (0.6, 0.05), (0.4, 0.2), (0.6, 0.2), (0.5, 0.05)]

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        response = await stream_of(request)
        if body["max_tokens"] > 2:
            first_s, gap_s = answers.pop(0)
            await asyncio.sleep(first_s)
            await response.write(token())
            await asyncio.sleep(gap_s)
        await response.write(token())
        if answers or body["max_tokens"] <= 2:
            await response.write(token("", ended=True))
        return response

    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    found = loaded(app, frame([0.0, 2.0, 4.0, 6.0, 8.0], output_tokens=3)).summary(
        {"ttft": 0.55, "tpot": 0.1}
    )
    assert found["ttft_met"] == pytest.approx(2 / 5)  # the one that was cut off met nothing
    assert found["tpot_met"] == pytest.approx(2 / 5)
    assert found["goodput"] == pytest.approx(1 / 5)
    assert found["goodput_rps"] == pytest.approx(1 / found["duration_s"])
    assert found["errors"] == {"the stream broke off": 1}
    with pytest.raises(InputError, match="goal latency=1"):
        loaded(scripted_app(lambda *_: [0.1]), frame([0.0])).summary({"latency": 1})


def test_errors_are_told_apart() -> None:
    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        wanted = body["max_tokens"]
        if wanted == 10:
            return web.json_response({"error": {"message": "too many requests"}}, status=429)  # type: ignore[return-value]
        if wanted == 11:
            return web.json_response({"error": {"message": "out of\nmemory"}}, status=500)  # type: ignore[return-value]
        response = await stream_of(request)
        await response.write(token())
        if wanted == 12:
            await asyncio.sleep(100.0)
        if wanted == 13:
            await response.write(event({"error": {"message": "engine died"}}))
        if wanted == 14:
            await response.write(b"data: {broken\n\n")
        if wanted == 15:
            assert request.transport is not None
            request.transport.abort()
        else:
            await response.write(token("", ended=True))
        return response

    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    result = loaded(app, frame(range(7), output_tokens=[10, 11, 12, 13, 14, 15, 16]), timeout_s=30.0)
    assert result.requests["status"].to_list() == ["rejected", "lost", "timed_out", *["lost"] * 3, "finished"]
    errors = result.requests["error"]
    assert errors[0] == "HTTP 429: too many requests"
    assert errors[1] == "HTTP 500: out of memory"
    assert errors[2] == "timeout"
    assert errors[3] == "error in the stream: engine died"
    assert errors[4] == "a piece of another form: {broken"
    assert errors[5].startswith("ClientPayloadError")
    found = result.summary()
    assert (found["finished"], found["rejected"], found["timed_out"], found["lost"]) == (1, 1, 1, 4)
    assert found["errors"]["HTTP 429"] == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["choices", "usage", "error", "text", "delta", "content", "finish_reason"]), inner
        )
    ),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(st.lists(json_values, min_size=1, max_size=12), st.booleans())
def test_no_piece_of_a_stream_is_fatal(pieces: list[Any], chat: bool) -> None:
    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        response = await stream_of(request)
        if body["max_tokens"] > 2:
            await response.write(event(pieces[body["max_tokens"] - 3]))
        elif chat:
            await response.write(event({"choices": [{"delta": {"content": "x"}}]}))
        await response.write(token(ended=True))
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions" if chat else "/v1/completions", complete)

    async def work() -> LoadResult:
        async with serving(app) as url:
            requests = frame(range(len(pieces)), output_tokens=np.arange(len(pieces)) + 3)
            return await send_load(endpoint(url, chat=chat), requests)

    result = run(work())
    assert len(result.requests) == len(pieces)
    assert set(result.requests["status"]) <= {"finished", "lost"}


def test_a_closed_loop_keeps_so_many_going() -> None:
    going, most = 0, 0

    async def complete(request: web.Request) -> web.StreamResponse:
        nonlocal going, most
        body = await request.json()
        going += 1
        most = max(most, going)
        await asyncio.sleep(0.0 if body["max_tokens"] <= 2 else 0.5)
        going -= 1
        response = await stream_of(request)
        await response.write(token(ended=True))
        return response

    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    result = loaded(app, frame([0.0] * 40), concurrency=8)
    assert most == 8
    # Little's law: 8 at once of 0.5 s each are 16 a second, so 40 take five rounds.
    assert result.summary()["requests_per_s"] == pytest.approx(16.0, rel=1e-3)


def test_an_interrupted_load_sums_up_what_ended() -> None:
    async def work() -> LoadResult:
        async with serving(scripted_app(lambda *_: [0.5])) as url:
            requests = frame(arrival_times(1.0, 100, "constant"))
            task = asyncio.create_task(send_load(endpoint(url), requests))
            await asyncio.sleep(10.2)
            task.cancel()
            return await task

    result = run(work())
    assert len(result.requests) == 10
    assert result.unfinished == 90
    assert result.summary()["finished"] == 10


# What is sent


def test_poisson_arrivals_have_exponential_gaps() -> None:
    from scipy.stats import kstest

    times = arrival_times(4.0, 20_000, seed=3)
    gaps = np.diff(times, prepend=0.0)
    assert kstest(gaps, "expon", args=(0, 0.25)).pvalue > 0.01
    # Counts in seconds: mean and variance of a Poisson distribution are both the rate.
    counts = np.bincount(times.astype(int))[:-1]
    assert counts.mean() == pytest.approx(4.0, rel=0.03)
    assert counts.var() == pytest.approx(4.0, rel=0.06)
    assert (arrival_times(4.0, 20_000, seed=3) == times).all()
    assert (arrival_times(4.0, 20_000, seed=4) != times).any()
    np.testing.assert_allclose(np.diff(arrival_times(4.0, 50, "constant")), 0.25)
    for bad in (
        lambda: arrival_times(0.0, 5),
        lambda: arrival_times(1.0, 0),
        lambda: arrival_times(1.0, 5, "x"),
    ):
        with pytest.raises(InputError):
            bad()


def test_requests_are_sent_as_asked() -> None:
    bodies: list[dict[str, Any]] = []
    app = scripted_app(lambda _, body: bodies.append(body) or [0.1] * body["max_tokens"])  # type: ignore[func-returns-value]
    result = loaded(app, frame([0.5, 1.25, 4.0], [7, 300, 1], [3, 4, 5]))
    assert [len(body["prompt"]) for body in bodies] == [7, 300, 1]
    assert [body["max_tokens"] for body in bodies] == [3, 4, 5]
    assert all(body["ignore_eos"] and body["min_tokens"] == body["max_tokens"] for body in bodies)
    assert all(body["stream"] and body["temperature"] == 0.0 and body["model"] == "m" for body in bodies)
    assert result.requests["sent_s"].to_list() == pytest.approx([0.5, 1.25, 4.0], abs=1e-6)
    other: list[dict[str, Any]] = []
    loaded(scripted_app(lambda _, body: other.append(body) or [0.1]), frame([0.5], [300], [3]), seed=1)  # type: ignore[func-returns-value]
    assert other[0]["prompt"] != bodies[1]["prompt"]


def test_prompts_share_the_blocks_that_a_trace_shares() -> None:
    bodies: list[dict[str, Any]] = []
    app = scripted_app(lambda _, body: bodies.append(body) or [0.1])  # type: ignore[func-returns-value]
    hashes = [["a", 7], ["a", 8], [], ["a", 7, 9]]
    loaded(app, frame([0.0, 1.0, 2.0, 3.0], [40, 33, 40, 47], 3).assign(prefix_hashes=hashes))
    first, second, other, third = (body["prompt"] for body in bodies)
    assert [len(first), len(second), len(other), len(third)] == [40, 33, 40, 47]
    assert first[:16] == second[:16] == third[:16] != other[:16]
    assert first[16:32] == third[16:32] != second[16:32]
    assert first[32:] != third[32:40]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (frame([0.0, -1.0]), "row 1: arrived_s: found -1.0"),
        (frame([1.0, 0.5]), "row 1: arrived_s"),
        (frame([0.0, math.nan]), "row 1: arrived_s: found nan"),
        (frame([0.0], prompt_tokens=[0]), "row 0: prompt_tokens: found 0"),
        (frame([0.0], output_tokens=[1.5]), "row 0: output_tokens: found 1.5"),
        (frame([]), "no rows"),
        (pd.DataFrame({"arrived_s": [0.0]}), "no column prompt_tokens"),
    ],
)
def test_bad_requests_are_refused_by_row(bad: pd.DataFrame, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loaded(scripted_app(lambda *_: [0.1]), bad)


def test_a_strict_server_gets_words_that_it_counts_as_asked() -> None:
    """One that takes text only, no unknown fields, and adds a template of 7 tokens; chat."""
    seen: list[int] = []

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        unknown = set(body) - {"model", "messages", "max_tokens", "temperature", "stream", "stream_options"}
        if unknown:
            return web.json_response({"error": {"message": f"unknown {unknown}"}}, status=400)  # type: ignore[return-value]
        counted = len(body["messages"][0]["content"].split()) + 7
        seen.append(counted)
        response = await stream_of(request)
        role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        await response.write(event({"choices": [role]}))
        await asyncio.sleep(0.2)
        for _ in range(body["max_tokens"]):
            piece = {"index": 0, "delta": {"content": " x"}, "finish_reason": None}
            await response.write(event({"choices": [piece]}))
        await response.write(event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}))
        usage = {"prompt_tokens": counted, "completion_tokens": body["max_tokens"]}
        await response.write(event({"choices": [], "usage": usage}) + event("[DONE]"))
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/v1/models", models("m"))

    async def work() -> LoadResult:
        async with serving(app) as url:
            return await send_load(endpoint(url + "/v1/", chat=True), frame([0.0, 1.0, 2.0], [20, 100, 500]))

    result = run(work())
    assert seen[-3:] == [20, 100, 500]
    assert result.requests["prompt_tokens"].to_list() == [20, 100, 500]
    # The role's piece is no token: the first came after 0.2 s.
    assert result.times()["ttft_s"].to_list() == pytest.approx([0.2] * 3, abs=1e-6)
    assert result.dialect.prompt_form == "words"
    assert "may end earlier" in result.notes[0]


# Who can't be used


def refusal(app: web.Application, **settings: Any) -> str:
    async def work() -> str:
        async with serving(app) as url, Client(Endpoint(url, **{"model": "m", **settings})) as client:
            with pytest.raises(InputError) as error:
                await client.greet()
            return str(error.value).replace(url, "URL")

    message = run(work())
    assert "\n" not in message
    return message


def test_servers_that_cannot_be_used_are_refused_in_one_line() -> None:
    app = web.Application()
    app.router.add_get("/v1/models", models("llama", "qwen"))
    assert refusal(app) == "URL: model 'm': the server has no such model, allowed: llama, qwen"
    app = web.Application()
    app.router.add_get("/v1/models", models("llama", "qwen"))
    assert refusal(app, model=None) == "URL: --model: found none, the server has llama, qwen"

    async def closed(_: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "no"}}, status=401)

    app = web.Application()
    app.router.add_get("/v1/models", closed)
    assert "refuses requests without a key (HTTP 401)" in refusal(app)
    app = web.Application()
    app.router.add_get("/v1/models", closed)
    message = refusal(app, key="sk-secret")
    assert "refuses the key that was given" in message
    assert "secret" not in message + repr(Endpoint("http://x", key="sk-secret"))

    async def whole(_: web.Request) -> web.Response:
        return web.json_response({"choices": [{"text": "hello"}]})

    app = web.Application()
    app.router.add_post("/v1/completions", whole)
    assert refusal(app) == "URL: the server answered without streaming"
    for bad in ("localhost:8000", "ftp://x", "http://"):
        with pytest.raises(InputError, match="allowed is an address"):
            Endpoint(bad)


def test_nobody_there_is_one_line() -> None:
    async def work() -> None:
        async with serving(web.Application()) as url:
            gone = url
        async with Client(endpoint(gone)) as client:
            await client.greet()

    with pytest.raises(InputError, match="cannot be reached: Connection refused"):
        run(work())


# Memory


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-5, 500.0), min_size=1, max_size=300), st.sampled_from([50, 95, 99]))
def test_gaps_are_known_to_one_percent(gaps: list[float], percent: int) -> None:
    histogram = GapHistogram()
    for gap in gaps:
        histogram.add(gap)
    exact = np.percentile(gaps, percent, method="inverted_cdf")
    assert histogram.percentile(percent) == pytest.approx(exact, rel=0.0101)


def test_a_million_requests_fit_in_little_memory() -> None:
    count = 1_000_000
    requests = frame(np.arange(count) / 1000.0)
    tracemalloc.start()
    work = _Run(requests, LoadOptions())
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 100e6
    assert work.dialect == Dialect("", "words", {})


# The command

COMMAND = "from sim.cli import main; main()"


def command(*words: str, **settings: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "load", *words],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings,
    )  # fmt: skip


@pytest.fixture
def real() -> Any:
    """(address, requests seen) of a server in real time, on a thread of its own."""
    seen: list[int] = []
    loop = asyncio.new_event_loop()
    stop, ready, address = asyncio.Event(), threading.Event(), []

    async def main() -> None:
        app = scripted_app(lambda number, _: seen.append(number) or [0.02, 0.01, 0.01])  # type: ignore[func-returns-value]
        async with serving(app) as url:
            address.append(url)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    ready.wait()
    yield address[0], seen
    loop.call_soon_threadsafe(stop.set)
    thread.join()


def test_the_command_writes_what_it_measured(real: Any, tmp_path: Path, capsys: Any) -> None:
    trace, out = tmp_path / "trace.csv", tmp_path / "out.csv"
    frame([5.0, 5.1, 5.2, 5.4], [10, 20, 30, 40], 3).to_csv(trace, index=False)
    goals = ["ttft=30", "e2e=0.001"]
    load.load(real[0], trace=trace, out=out, as_json=True, requests=3, goal=goals)
    found = json.loads(capsys.readouterr().out)
    assert (found["requests"], found["finished"], found["ttft_met"], found["goodput"]) == (3, 3, 1.0, 0.0)
    rows = pd.read_csv(out)
    assert rows["arrived_s"].to_list() == pytest.approx([0.0, 0.1, 0.2])
    assert rows["prompt_tokens"].to_list() == [10, 20, 30]
    assert set(rows["status"]) == {"finished"}
    load.load(real[0], trace=trace, rate=30.0, goal=goals)  # the same, at three gaps in a tenth of a second
    shown = capsys.readouterr().out
    assert "4 (open loop)" in shown
    assert "Goodput" in shown


def test_an_interrupted_command_still_sums_up(real: Any) -> None:
    ran = command(real[0], "--rate", "20", "--requests", "100000", "--output-tokens", "3")
    while len(real[1]) < 10 and ran.poll() is None:
        threading.Event().wait(0.05)
    ran.send_signal(signal.SIGINT)
    stdout, stderr = ran.communicate(timeout=60)
    assert ran.returncode == 130, stderr
    assert "Interrupted, or not sent" in stdout
    assert "TTFT" in stdout


def test_nobody_there_is_one_line_and_status_2() -> None:
    ran = command("http://127.0.0.1:9")
    stdout, stderr = ran.communicate(timeout=60)
    assert ran.returncode == 2
    assert "cannot be reached: Connection refused" in stderr
    assert stderr.count("\n") == 1
    assert not stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"goal": ["ttft=fast"]}, "--goal ttft=fast"),
        ({"goal": ["speed=1"]}, "--goal speed=1"),
        ({"rate": -1.0}, "rate -1.0: a positive number"),
        ({"rate": 1.0, "concurrency": 2}, "found --rate and --concurrency"),
        ({"timeout_s": 0.0}, "timeout_s 0.0"),
        ({"trace": Path("nowhere.csv")}, "nowhere.csv"),
        ({"out": Path("/")}, "--out /: is a folder"),
    ],
)
def test_bad_words_are_refused_before_anything_is_sent(words: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load.load("http://127.0.0.1:9", **words)
