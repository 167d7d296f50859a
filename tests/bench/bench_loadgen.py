"""How many streams a second one core of the load client drives, and over how many connections at once.

    python tests/bench/bench_loadgen.py [tokens per answer, default 16]

The server is a plain aiohttp application in another process: it sends each answer's tokens evenly over two seconds, so
that 500 requests a second are 1,000 connections at once. The client is driven at rates that rise by a quarter until the
sender itself is late (p99 over 50 ms) or an answer is lost. CPU time is that of the client's process alone; on a
machine with few cores the server takes its part of the rest.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import resource
import sys
import time
from multiprocessing.connection import Connection

import pandas as pd
from aiohttp import web

from engine.loadtest.client import Endpoint
from engine.loadtest.load import arrival_times, run_load

ANSWER_S, LOAD_S = 2.0, 8.0


def serve(pipe: Connection, tokens: int) -> None:
    piece = json.dumps({"choices": [{"index": 0, "text": " x", "finish_reason": None}]}).encode()
    last = json.dumps({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}).encode()

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        count = min(tokens, body["max_tokens"])
        for i in range(count):
            if i and body["max_tokens"] > 2:
                await asyncio.sleep(ANSWER_S / tokens)
            await response.write(b"data: " + piece + b"\n\n")
        await response.write(b"data: " + last + b"\n\ndata: [DONE]\n\n")
        return response

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def main() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        app = web.Application()
        app.router.add_post("/v1/completions", complete)
        app.router.add_get("/v1/models", models)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
        pipe.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(main())


def main() -> None:
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, tokens), daemon=True)
    server.start()
    endpoint = Endpoint(f"http://127.0.0.1:{ours.recv()}")
    print(f"answers of {tokens} tokens over {ANSWER_S:g} s; prompts of 128 token ids; {LOAD_S:g} s per rate")
    rate = 100.0
    while True:
        requests = pd.DataFrame(
            {
                "arrived_s": arrival_times(rate, int(rate * LOAD_S)),
                "prompt_tokens": 128,
                "output_tokens": tokens,
            }
        )
        cpu_s, started = time.process_time(), time.perf_counter()
        result = run_load(endpoint, requests)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - started
        found, frame = result.summary(), result.requests
        begun = frame["sent_s"].to_numpy()
        at_once = max(
            int(((begun <= at) & (frame["finished_s"].to_numpy() > at)).sum())
            for at in begun[:: len(begun) // 50]
        )
        print(
            f"{rate:6.0f} requests/s: {found['finished']:>6,} of {len(frame):>6,} finished, {at_once:>5,} connections "
            f"at once, sender late p99 {found['late_p99_s'] * 1e3:6.1f} ms, TTFT {found['ttft_p50_s'] * 1e3:.0f} ms, "
            f"client CPU {cpu_s / wall_s:4.0%} = {cpu_s / len(frame) * 1e6:4.0f} µs per request, "
            f"{found['output_tokens_per_s']:,.0f} tokens/s",
            flush=True,
        )
        if found["late_p99_s"] > 0.05 or found["finished"] < len(frame):
            break
        rate *= 1.25
    server.terminate()


if __name__ == "__main__":
    main()
