"""How fast usage is metered durably, keys are found, and a month is billed.

    python tests/bench/bench_billing.py

Goal: 100,000 metered rows billed in at most 2 s. The bill is made in a fresh process too, so that imports count. A
disk's sync sets the pace of one client; group commit lets many clients share it. PostgreSQL runs where Debian's is.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engine.usage.api_keys import ApiKeys
from engine.usage.database import REQUESTS, month_bounds_s, open_database, writing
from engine.usage.meter import Meter, TokenPrices, Usage
from sim.billing.invoice_files import write_bill
from sim.billing.invoices import bill
from sim.scenario.scenario import Scenario
from tests.helpers.postgres import new_database

ROWS, CUSTOMERS, KEYS_EACH = 100_000, 20, 3
MONTH = f"{datetime.now(UTC):%Y-%m}"
MODELS = ("smollm2-135m", "llama-3.1-8b")


def metering(url: str) -> None:
    """Durable requests per second and the wait of one, by how many clients ask at a time."""
    for clients in (1, 16, 64):
        waits: list[float] = []
        with Meter(url) as meter:

            def client(number: int, each: int, meter: Meter = meter, waits: list[float] = waits) -> None:
                for i in range(each):
                    started = time.perf_counter()
                    name = f"{started}/{number}/{i}"
                    usage = Usage(
                        name, "key", "small", 900, 300, 200, time.time(), None, time.time(), "stop", 9
                    )
                    meter.submit(usage).result()
                    waits.append(time.perf_counter() - started)

            threads = [threading.Thread(target=client, args=(n, 3000 // clients)) for n in range(clients)]
            started = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            wall_s = time.perf_counter() - started
            waits.sort()
            print(
                f"  {clients:>3} clients: {len(waits) / wall_s:>7,.0f} durable requests/s; wait p50 "
                f"{statistics.median(waits) * 1e3:.2f} ms, p99 {waits[int(0.99 * len(waits))] * 1e3:.2f} ms"
            )


def fill(url: str) -> list[str]:
    """A month of requests by the keys of some customers; gives one key's id and secret."""
    keys, draw = ApiKeys(url), random.Random(7)
    made = [
        keys.create(f"key {k}", customer=f"Customer {c}", plan="developers")
        for c in range(CUSTOMERS)
        for k in range(KEYS_EACH)
    ]
    keys.close()
    start_s, _ = month_bounds_s(MONTH)
    span_s = max(1.0, time.time() - start_s)
    rows = [
        {
            "request_id": f"request-{i}",
            "key_id": draw.choice(made)[0],
            "model": draw.choice(MODELS),
            "prompt_tokens": 1155,
            "cached_tokens": draw.randrange(1155),
            "output_tokens": draw.randrange(1, 500),
            "arrived_s": start_s,
            "first_token_s": None,
            "finished_s": start_s + span_s * i / ROWS,
            "status": "error" if i % 50 == 0 else "stop",
            "cost_micro_usd": 40,
        }
        for i in range(ROWS)
    ]
    engine = open_database(url)
    with writing(engine) as connection:
        connection.execute(REQUESTS.insert(), rows)
    engine.dispose()
    return list(made[0])


def billing(url: str) -> None:
    """The month's bill: rows to invoices, and the files."""
    scenario = Scenario.load("api_startup")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        billed = bill(url, scenario, MONTH, now_s=time.time())
        billed_s = time.perf_counter() - started
        write_bill(billed, Path(folder), pdf=False)
        csv_s = time.perf_counter() - started - billed_s
        write_bill(billed, Path(folder))
        pdf_s = time.perf_counter() - started - billed_s - csv_s
        print(
            f"  {ROWS:,} rows, {len(billed.invoices)} invoices: {billed_s:.2f} s to bill, {csv_s:.2f} s for the CSVs, "
            f"{pdf_s:.2f} s with the PDFs"
        )
        command = [
            sys.executable,
            "-m",
            "sim.cli",
            "bill",
            "--month",
            MONTH,
            "--database",
            url,
            "--out",
            folder,
        ]
        for extra in ([], ["--no-pdf"]):
            started = time.perf_counter()
            done = subprocess.run([*command, *extra], capture_output=True, text=True)
            what = f"{time.perf_counter() - started:.2f} s" if done.returncode == 0 else done.stderr.strip()
            print(f"  as a command {' '.join(extra)}: {what}")


def looking_up(url: str, key_id: str, secret: str) -> None:
    """What a server asks for at each request."""
    keys = ApiKeys(url)
    assert keys.find(secret) is not None
    started = time.perf_counter()
    for _ in range(100_000):
        keys.find(secret)
    print(f"  a key is found in {(time.perf_counter() - started) * 10:.1f} µs", end="; ")
    with Meter(url) as meter:
        started = time.perf_counter()
        meter.spent_micro_usd(key_id, prices=TokenPrices(200_000, 100_000, 800_000))
        print(f"a key's month of {ROWS // CUSTOMERS // KEYS_EACH:,} requests is summed in "
              f"{(time.perf_counter() - started) * 1e3:.1f} ms")  # fmt: skip


def main() -> None:
    """Run everything."""
    with tempfile.TemporaryDirectory() as folder:
        databases = {"SQLite": f"sqlite:///{folder}/usage.db"}
        try:
            databases["PostgreSQL"] = new_database()
        except pytest.skip.Exception as reason:
            print(f"PostgreSQL skipped: {reason}")
        for name, url in databases.items():
            print(name)
            metering(url)
            key = fill(url)
            looking_up(url, *key)
            billing(url)


if __name__ == "__main__":
    main()
