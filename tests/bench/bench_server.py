"""What the server costs beside the engine alone: 64 concurrent streams over HTTP against the same requests in a loop.

    python tests/bench/bench_server.py [--model smollm2-135m] [--device cpu] [--streams 64] [--rounds 3] [--idle]

Each round runs both ways with prompts of its own (64 tokens, 64 output tokens, greedy): `LLM.step` until all are
done, text decoded as it grows; then the server with keys' meter (SQLite), read by a client process that only looks for
the end of each stream. Throughput is output tokens over the time from the first request to the last end. Beside it
stand the processor time of the whole process, and that of the threads which only the server has: on a machine that
others use, these say more than the clock. `--idle` also holds 2,000 idle keep-alive connections meanwhile and sends 500
requests at once. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil

PROMPT_TOKENS, OUTPUT_TOKENS = 64, 64
QUEUED, IDLE = 500, 2000


def main() -> None:
    """Measure and print; or be the client."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", action="store_true")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        import uvloop

        uvloop.run(client(options.client, json.load(sys.stdin)))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Both ways in turns."""
    from engine import LLM
    from engine.server.server import Server, ServerConfig, raise_file_limit
    from engine.usage.meter import Meter

    raise_file_limit()
    rng = random.Random(0)

    def make() -> LLM:
        return LLM(options.model, options.device, options.dtype, max_running_requests=options.streams)

    def prompts(count: int) -> list[list[int]]:
        return [[rng.randrange(10, 40_000) for _ in range(PROMPT_TOKENS)] for _ in range(count)]

    rates: dict[str, list[float]] = {"engine": [], "server": []}
    busy: dict[str, list[float]] = {"engine": [], "server": []}
    apart: list[float] = []
    config = ServerConfig(
        port=0, queue=QUEUED, price_usd_per_hour=1.0, request_timeout_s=3600, keep_alive_s=3600
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        Meter(f"sqlite:///{Path(folder) / 'usage.db'}") as meter,
        Server(make, config, name=options.model, meter=meter) as server,
    ):

        def on_its_thread(asked: list[list[int]]) -> float:
            """The engine alone, on the thread that it has in the server: OpenMP has a pool for each thread."""
            found: Future[float] = Future()
            server.engine._inbox.put(lambda: found.set_result(alone(server.engine.llm, asked)))
            return found.result()

        on_its_thread(prompts(16))  # warms up
        for _ in range(options.rounds):
            for way in ("engine", "server"):
                asked, begun = prompts(options.streams), time.process_time()
                if way == "engine":
                    seconds = on_its_thread(asked)
                else:
                    before = of_server_s()
                    seconds = over_http(server.url, asked)["seconds"]
                    apart.append((of_server_s() - before) / seconds)
                busy[way].append(time.process_time() - begun)
                rates[way].append(options.streams * OUTPUT_TOKENS / seconds)
        for way, found in rates.items():
            print(
                f"{way}: {statistics.median(found):,.1f} output tokens/s (runs {[round(x, 1) for x in found]})"
            )
        lost = 1 - statistics.median(rates["server"]) / statistics.median(rates["engine"])
        more = statistics.median(busy["server"]) / statistics.median(busy["engine"]) - 1
        print(
            f"server overhead: {lost:.1%} of throughput; {more:.1%} more processor time; "
            f"its own threads took {statistics.median(apart):.1%} of a core"
        )
        if options.idle:
            print(f"{QUEUED} queued, {IDLE} idle connections: {over_http(server.url, prompts(QUEUED), IDLE)}")
        print(f"metered: {len(meter.frame())} requests")


def of_server_s() -> float:
    """Processor seconds so far of the threads beside the engine's: event loop, meter, tokenizer."""
    ours = {each.native_id for each in threading.enumerate() if each.name not in ("engine", "MainThread")}
    return sum(each.user_time + each.system_time for each in psutil.Process().threads() if each.id in ours)


def alone(llm: object, prompts: list[list[int]]) -> float:
    """Seconds of the engine in a loop."""
    from engine import LLM, SamplingParams

    assert isinstance(llm, LLM)
    begun = time.perf_counter()
    params = SamplingParams(max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    for prompt in prompts:
        llm.add_request(prompt, params, streams=True)
    while llm.scheduler.has_work:
        llm.step()
    return time.perf_counter() - begun


def over_http(url: str, prompts: list[list[int]], idle: int = 0) -> dict[str, float]:
    """What a client process saw."""
    done = subprocess.run(
        [sys.executable, __file__, "--client", url],
        input=json.dumps({"prompts": prompts, "idle": idle}),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout)
    return found


class UntilDone(asyncio.Protocol):
    """Looks for the end of a stream and at nothing else: the client takes its time from the same two cores."""

    def __init__(self) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._end = b""

    def data_received(self, data: bytes) -> None:
        """Look."""
        self._end = self._end[-16:] + data
        if b"[DONE]" in self._end and not self.done.done():
            self.done.set_result(True)

    def connection_lost(self, _: Exception | None) -> None:
        """It broke off."""
        if not self.done.done():
            self.done.set_result(False)


async def client(url: str, asked: dict[str, object]) -> None:
    """Hold idle connections, send all prompts at once, read the streams to their ends."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    address = urlsplit(url)
    where = (address.hostname, address.port)
    held = []
    for _ in range(int(str(asked["idle"]))):
        reader, writer = await asyncio.open_connection(*where)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in await reader.readuntil(b"}")
        held.append((reader, writer))

    async def one(prompt: list[int]) -> bool:
        body = json.dumps(
            {
                "prompt": prompt,
                "max_tokens": OUTPUT_TOKENS,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
        ).encode()
        transport, reading = await asyncio.get_running_loop().create_connection(UntilDone, *where)
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
        transport.write(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        fine = await reading.done
        transport.close()
        return fine

    begun, spent = time.perf_counter(), time.process_time()
    prompts = asked["prompts"]
    assert isinstance(prompts, list)
    fine = await asyncio.gather(*(one(prompt) for prompt in prompts))
    seconds = time.perf_counter() - begun
    spent = time.process_time() - spent
    alive = 0
    for reader, writer in held:  # each still answers
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        await writer.drain()
        with suppress(asyncio.IncompleteReadError):
            alive += b"200" in await reader.readuntil(b"}")
    found = {"seconds": seconds, "client_cpu_s": spent, "failed": fine.count(False), "idle_alive": alive}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
