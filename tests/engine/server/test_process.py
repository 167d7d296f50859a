"""The server as a process: it starts, drains on SIGTERM, and stands many connections and whatever a fuzzer sends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.server.server import raise_file_limit
from engine.usage.api_keys import ApiKeys
from engine.usage.meter import Meter
from tests.helpers.imports import loaded_by
from tests.helpers.places import ROOT
from tests.helpers.server import client, database, one_thread, post, serving, tiny_llm, tiny_model  # noqa: F401

FUZZ_S = float(os.environ.get("FLYWHEEL_FUZZ_S", "30"))
ASK: dict[str, Any] = {"prompt": "Hello", "max_tokens": 4, "ignore_eos": True}


class Process:
    """`flywheel serve` on a free port."""

    def __init__(self, *options: str) -> None:
        command = [
            sys.executable,
            "-c",
            "from sim.cli import main; main()",
            "serve",
            tiny_model(),
            "--port",
            "0",
            "--kv-cache-tokens",
            "8192",
        ]
        # A file: a pipe that nobody reads fills up, and the server would wait for it.
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*command, "--served-name", "tiny", *options], stdout=subprocess.PIPE, stderr=self.log, text=True,
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().partition(" ")[0]

    def wait_ready(self) -> str:
        """The lines that it prints when it is ready."""
        assert self.process.stdout is not None
        return (
            self.process.stdout.readline() + self.process.stdout.readline() + self.process.stdout.readline()
        )

    def end(self) -> tuple[int, str]:
        """Exit status and what it logged."""
        self.process.communicate(timeout=60)
        self.log.seek(0)
        return self.process.returncode, self.log.read()


@contextmanager
def running(*options: str) -> Iterator[Process]:
    started = Process(*options)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.process.communicate()


def test_it_starts_drains_and_exits_with_0(tmp_path: Path) -> None:
    url = database(tmp_path)
    keys = ApiKeys(url)
    key_id, secret = keys.create("k", customer="Acme")
    keys.close()
    with running("--database", url, "--price-usd-per-hour", "36") as started:
        assert httpx.get(f"{started.url}/health").status_code == 200
        assert httpx.get(f"{started.url}/ready").status_code in (200, 503)
        example = started.wait_ready()
        assert "is ready" in example
        assert "curl http" in example
        assert httpx.get(f"{started.url}/ready").status_code == 200
        body = {**ASK, "max_tokens": 400, "stream": True}
        headers = {"Authorization": f"Bearer {secret}"}
        with httpx.stream(
            "POST", f"{started.url}/v1/completions", json=body, headers=headers, timeout=60
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            started.process.send_signal(signal.SIGTERM)
            until = time.monotonic() + 20
            with httpx.Client(base_url=started.url) as other:
                while other.get("/ready").status_code != 503 and time.monotonic() < until:
                    time.sleep(0.02)
            refused = httpx.post(f"{started.url}/v1/completions", json=ASK, headers=headers)
            assert refused.status_code == 503
            assert refused.headers["Retry-After"]
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        status, log = started.end()
    assert status == 0
    line = next(line for line in log.splitlines() if " length " in line)
    assert f"{key_id} POST /v1/completions 200 length prompt=1 cached=0 output=400" in line
    assert "Hello" not in log
    with Meter(url) as meter:
        assert list(meter.frame().output_tokens) == [400]


@pytest.mark.slow
def test_what_does_not_end_in_time_is_told_so() -> None:
    with running("--drain-s", "0.3") as started:
        started.wait_ready()
        body = {**ASK, "max_tokens": 2000, "stream": True}
        with httpx.stream("POST", f"{started.url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            started.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["message"] == "the server is stopping"
        assert started.end()[0] == 0


def refused(*options: str) -> str:
    with running(*options) as started:
        status, log = started.end()
    assert status == 2
    assert "Traceback" not in log
    return log


def test_other_machines_need_keys() -> None:
    assert "--host: found '0.0.0.0' without keys" in refused("--host", "0.0.0.0")


@pytest.mark.slow
def test_a_model_that_can_not_be_loaded_is_one_line_and_status_2() -> None:
    assert "dtype" in refused("--dtype", "int9")


@pytest.mark.parametrize("modules", [
    "engine", pytest.param("engine.inference.llm, engine.feedback.loop, engine.feedback.simulated_users",
    marks=pytest.mark.slow),
])  # fmt: skip
def test_importing_the_engine_loads_no_server(modules: str) -> None:
    served = ("pydantic", "fastapi", "uvicorn", "prometheus_client", "sqlalchemy")
    assert loaded_by(modules, served) == []


@pytest.mark.slow
def test_two_thousand_idle_connections_and_five_hundred_in_the_queue() -> None:
    raise_file_limit()

    async def ask(url: str) -> tuple[list[bytes], list[int]]:
        port = int(url.rpartition(":")[2])
        idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

        async def health(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
            return head.partition(b"\r\n")[0]

        idle += [await asyncio.open_connection("127.0.0.1", port) for _ in range(2000)]
        before = [await health(*each) for each in idle]

        async def one(ai: httpx.AsyncClient) -> int:
            return (await ai.post(f"{url}/v1/completions", json=ASK, timeout=200)).status_code

        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits) as ai:
            statuses = await asyncio.gather(*(one(ai) for _ in range(500)))
        after = [await health(*each) for each in idle]
        for _, writer in idle:
            writer.close()
        return before + after, list(statuses)

    with running("--queue", "500", "--max-running", "8") as started:
        started.wait_ready()
        heads, statuses = asyncio.run(ask(started.url))
        assert heads == [b"HTTP/1.1 200 OK"] * 4000
        assert statuses == [200] * 500
        started.process.send_signal(signal.SIGTERM)
        assert started.end()[0] == 0


@pytest.mark.slow
@pytest.mark.timeout(FUZZ_S + 200)
def test_whatever_the_description_allows_or_forbids_gives_no_5xx(tmp_path: Path) -> None:
    """FLYWHEEL_FUZZ_S: seconds to go on for."""
    url = database(tmp_path)
    keys, meter = ApiKeys(url), Meter(url)
    _, secret = keys.create("k", customer="Acme")
    with serving(tiny_llm(), keys=keys, meter=meter, max_output_tokens=16) as server:
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.url}/openapi.json",
                "--header", f"Authorization: Bearer {secret}", "--max-time", str(round(FUZZ_S)),
                "--continue-on-failure", "--suppress-health-check", "all", "--no-color",
                "--generation-database", "none",
                # What a schema can't say (room in the context, the vocabulary's size) may still be refused.
                "--exclude-checks", "positive_data_acceptance", "--request-timeout", "60",
            ],
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-5000:]
        assert post(server, "/v1/completions", ASK, secret).status_code == 200
        assert server.engine.open_samples == 0
    assert len(meter.frame()) > 10
    meter.close()
    keys.close()


@pytest.mark.slow
def test_the_bundled_model_answers_like_the_engine() -> None:
    from engine import LLM, SamplingParams

    llm = LLM(kv_cache_tokens=4096)
    messages: Any = [{"role": "user", "content": "What is the capital of France?"}]
    expected = llm.chat(messages, SamplingParams(max_tokens=24)).text
    with serving(llm) as server:
        ai = client(server)
        asked: Any = {"model": "tiny", "messages": messages, "max_tokens": 24, "temperature": 0}
        texts: list[str] = []
        threads = [
            threading.Thread(
                target=lambda: texts.append(ai.chat.completions.create(**asked).choices[0].message.content)
            )
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == [expected] * 6
        held = ai.chat.completions.create(**asked, response_format={"type": "json_object"})
        assert isinstance(json.loads(held.choices[0].message.content), dict)
