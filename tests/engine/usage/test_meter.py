"""The meter keeps what it says it keeps: durable, once, in groups; on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import calendar
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import wait
from datetime import UTC, datetime
from pathlib import Path
from queue import Full

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text

from engine.errors import InputError
from engine.usage import database
from engine.usage.database import UsageDatabaseError, month_bounds_s, month_of, open_database
from engine.usage.meter import STATUSES, Meter, TokenPrices, Usage, amount_micro_usd
from tests.helpers.postgres import new_database

NOVEMBER_S = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
DECEMBER_S = datetime(2026, 12, 1, tzinfo=UTC).timestamp()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return new_database() if request.param == "postgresql" else f"sqlite:///{tmp_path}/usage.db"


def usage(request_id: str = "r1", **changes: object) -> Usage:
    values: dict[str, object] = {
        "request_id": request_id,
        "key_id": "key_a",
        "model": "smollm2-135m",
        "prompt_tokens": 100,
        "cached_tokens": 40,
        "output_tokens": 7,
        "arrived_s": NOVEMBER_S + 1,
        "first_token_s": NOVEMBER_S + 1.25,
        "finished_s": NOVEMBER_S + 2,
        "status": "stop",
        "cost_micro_usd": 12,
    }
    return Usage(**(values | changes))  # type: ignore[arg-type]


def test_what_a_done_future_promised_is_read_by_another_process(url: str) -> None:
    with Meter(url) as meter:
        meter.submit(usage("a", first_token_s=None)).result(10)
        with Meter(url) as other:
            frame = other.frame()
    (row,) = frame.to_dict("records")
    assert row.pop("first_token_s") != row.get("first_token_s")  # NaN: no token came
    assert row == {k: v for k, v in vars(usage("a")).items() if k != "first_token_s"}


# Ids that repeat, ids of any letters, and numbers up to the largest that are allowed.
_ids = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1, max_size=20)
_usages = st.builds(
    usage,
    request_id=st.one_of(st.sampled_from("abc"), _ids),
    prompt_tokens=st.integers(40, 2**53 - 1),
    output_tokens=st.integers(0, 2**53 - 1),
    finished_s=st.floats(0, 1e11),
    status=st.sampled_from(STATUSES),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(_usages, max_size=30))
def test_of_the_same_id_the_first_counts(
    tmp_path_factory: pytest.TempPathFactory, asked: list[Usage]
) -> None:
    expected: dict[str, Usage] = {}
    for one in asked:
        expected.setdefault(one.request_id, one)
    with Meter(f"sqlite:///{tmp_path_factory.mktemp('meter')}/usage.db") as meter:
        wait([meter.submit(one) for one in asked])
        stored = {Usage(**row) for row in meter.frame().to_dict("records")}  # type: ignore[arg-type]
    assert stored == set(expected.values())


def test_a_retry_with_the_same_id_counts_once(url: str) -> None:
    with Meter(url) as meter, Meter(url) as other:
        for _ in range(3):
            meter.submit(usage("again")).result(10)
            other.submit(usage("again", output_tokens=9999)).result(10)
        assert meter.frame()["output_tokens"].tolist() == [7]


def test_frame_selects_by_the_moment_of_finishing_and_by_key(url: str) -> None:
    with Meter(url) as meter:
        times = [NOVEMBER_S - 1e-6, NOVEMBER_S, DECEMBER_S - 1e-6, DECEMBER_S]
        for at in times:
            meter.submit(usage(f"a{at}", finished_s=at))
            meter.submit(usage(f"b{at}", finished_s=at, key_id="key_b"))
        meter.submit(usage("last", finished_s=DECEMBER_S + 9)).result(10)
        frame = meter.frame(NOVEMBER_S, DECEMBER_S, "key_b")
        assert frame["finished_s"].tolist() == times[1:3]
        assert set(frame["key_id"]) == {"key_b"}
        assert meter.frame(since_s=DECEMBER_S)["key_id"].tolist() == ["key_a", "key_b", "key_a"]
        assert meter.frame(key_id="nobody").dtypes["finished_s"] == "float64"


def test_what_a_key_has_spent_in_a_month(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prices = TokenPrices(prompt=200_000, cached=100_000, output=800_000)
    monkeypatch.setattr("engine.usage.meter.SPENT_FRESH_S", 0.0)
    with Meter(url) as meter:
        assert meter.spent_micro_usd("key_a", "2026-11", prices) == 0
        meter.submit(usage("before", finished_s=NOVEMBER_S - 1e-6))
        meter.submit(usage("first", finished_s=NOVEMBER_S))
        meter.submit(usage("failed", status="error", output_tokens=10**6))
        meter.submit(usage("gone", status="cancelled"))
        meter.submit(usage("other", key_id="key_b"))
        meter.submit(usage("after", finished_s=DECEMBER_S)).result(10)
        # Two billed requests of 60 fresh and 40 cached prompt tokens and 7 output tokens, at 0.2, 0.1 and 0.8 USD:
        # 120 × 0.2 = 24, 80 × 0.1 = 8, 14 × 0.8 = 11.2.
        assert meter.spent_micro_usd("key_a", "2026-11", prices) == 24 + 8 + 11
        assert meter.spent_micro_usd("key_a", "2026-11") == 3 * 12  # the failed one cost something too
        assert meter.spent_micro_usd("key_a", "2026-12", prices) > 0


@given(st.integers(0, 2**53), st.integers(0, 10**12))
def test_an_amount_is_rounded_once_and_half_to_even(tokens: int, price: int) -> None:
    whole, rest = divmod(tokens * price, 10**6)
    up = rest > 500_000 or (rest == 500_000 and whole % 2 == 1)
    assert amount_micro_usd(tokens, price) == whole + up


@given(st.integers(1970, 9998), st.integers(1, 12))
def test_months_are_those_of_the_calendar_in_utc(year: int, month: int) -> None:
    start_s, end_s = month_bounds_s(f"{year:04d}-{month:02d}")
    assert start_s == calendar.timegm((year, month, 1, 0, 0, 0))
    assert end_s - start_s == calendar.monthrange(year, month)[1] * 86_400
    assert month_of(start_s) == f"{year:04d}-{month:02d}"
    assert month_of(math.nextafter(end_s, 0)) == f"{year:04d}-{month:02d}"


@pytest.mark.parametrize(
    "month",
    ["", "2026", "2026-13", "26-11", "2026-1", "2026-11-01", "november", "２０２６-11", "0000-01", "9999-12"],
)
def test_a_month_of_another_form_is_refused(month: str) -> None:
    with pytest.raises(InputError, match=r"^month: found"):
        month_bounds_s(month)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"request_id": ""}, "request_id"),
        ({"request_id": "x" * 201}, "request_id"),
        ({"key_id": "nul\0"}, "key_id"),
        ({"model": "half \ud800"}, "model"),
        ({"output_tokens": -1}, "output_tokens"),
        ({"output_tokens": 1.5}, "output_tokens"),
        ({"prompt_tokens": 2**63}, "prompt_tokens"),
        ({"prompt_tokens": True}, "prompt_tokens"),
        ({"cached_tokens": 101}, "cached_tokens"),
        ({"finished_s": float("nan")}, "finished_s"),
        ({"arrived_s": None}, "arrived_s"),
        ({"status": "done"}, "status"),
    ],
)
def test_usage_that_cannot_be_is_refused_before_it_is_written(changes: dict[str, object], found: str) -> None:
    with pytest.raises(InputError, match=found):
        usage(**changes)  # type: ignore[arg-type]


def test_sqlite_runs_with_a_log_that_is_synced_at_every_commit(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/usage.db")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    engine.dispose()


def test_postgresql_is_durable_even_where_its_administrator_switched_that_off() -> None:
    url = new_database()
    engine = open_database(url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"ALTER DATABASE {engine.url.database} SET synchronous_commit = off"))
    engine.dispose()
    again = open_database(url)
    with again.connect() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar() == "on"
    again.dispose()


def locked(path: str) -> sqlite3.Connection:
    """Another program that holds the write lock until it is closed."""
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    return holder


def test_requests_that_wait_share_a_transaction_and_a_lock_that_passes_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_S", 0.05)  # several tries within the half second below
    with Meter(f"sqlite:///{tmp_path}/usage.db", max_pending=1000) as meter:
        commits: list[object] = []
        event.listen(meter._engine, "commit", commits.append)
        holder = locked(f"{tmp_path}/usage.db")
        futures = [meter.submit(usage(f"r{i}")) for i in range(500)]
        time.sleep(0.5)
        assert not any(future.done() for future in futures)
        holder.close()
        wait(futures, 20)
        assert len(meter.frame()) == 500
        assert len(commits) <= 3  # what the writer held when the lock came, and all the rest


def test_a_lock_that_stays_is_told_through_the_future_and_the_meter_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_S", 0.02)
    with Meter(f"sqlite:///{tmp_path}/usage.db", retry_s=0.2) as meter:
        holder = locked(f"{tmp_path}/usage.db")
        lost = meter.submit(usage("lost"))
        with pytest.raises(UsageDatabaseError, match=r"usage\.db: database is locked"):
            lost.result(20)
        holder.close()
        meter.submit(usage("kept")).result(20)
        assert meter.frame()["request_id"].tolist() == ["kept"]


def test_a_full_queue_holds_back_who_submits(tmp_path: Path) -> None:
    with Meter(f"sqlite:///{tmp_path}/usage.db", max_pending=2) as meter:
        holder = locked(f"{tmp_path}/usage.db")
        futures = [meter.submit(usage("held by the writer"))]
        while meter._pending:
            time.sleep(0.001)
        futures += [meter.submit(usage(f"waiting {i}")) for i in range(2)]
        with pytest.raises(Full):
            meter.submit(usage("refused"), block=False)
        waiter = threading.Thread(target=lambda: futures.append(meter.submit(usage("patient"))))
        waiter.start()
        waiter.join(0.1)
        assert waiter.is_alive()
        holder.close()
        waiter.join(20)
        wait(futures, 20)
        assert len(meter.frame()) == 4


def test_who_goes_away_does_not_undo_what_was_used(tmp_path: Path) -> None:
    with Meter(f"sqlite:///{tmp_path}/usage.db") as meter:
        future = meter.submit(usage())
        assert not future.cancel()
        future.result(10)


def test_close_writes_what_waits_and_then_refuses(url: str) -> None:
    meter = Meter(url)
    futures = [meter.submit(usage(f"r{i}")) for i in range(3000)]
    meter.close()
    assert all(future.done() and future.exception() is None for future in futures)
    with pytest.raises(RuntimeError, match="closed"):
        meter.submit(usage("late"))
    with Meter(url) as again:
        assert len(again.frame()) == 3000


def test_a_postgresql_that_drops_its_connections_loses_nothing() -> None:
    url = new_database()
    with Meter(url) as meter:
        meter.submit(usage("first")).result(10)
        administrator = open_database(url)
        dropped = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
        )
        for round_ in range(3):
            with administrator.connect() as connection:
                connection.execute(text(f"{dropped} AND pid <> pg_backend_pid()"))
            wait([meter.submit(usage(f"{round_}/{i}")) for i in range(10)], 20)
        administrator.dispose()
        assert len(meter.frame()) == 31


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("nonsense", "found 'nonsense'"),
        ("mysql://root:secret@host/usage", "allowed: sqlite:///FILE or postgresql://"),
        ("sqlite://", "names no file"),
        ("sqlite:///{tmp}", "is a folder"),
        ("sqlite:///{tmp}/text.txt", "file is not a database"),
        ("sqlite:///{tmp}/text.txt/usage.db", "text.txt"),
        ("postgresql://u:secret@/usage?host={tmp}", "usage"),
        ("postgresql://u:secret@host:port/usage", "found"),
    ],
)
def test_a_database_that_cannot_be_is_refused_in_one_line(tmp_path: Path, url: str, found: str) -> None:
    (tmp_path / "text.txt").write_text("not a database, but long enough to look like the head of one " * 9)
    with pytest.raises(UsageDatabaseError, match=found) as caught:
        Meter(url.format(tmp=tmp_path))
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_reader_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageDatabaseError, match="no such file"):
        open_database(f"sqlite:///{tmp_path}/usage.db", create=False)
    sqlite3.connect(tmp_path / "empty.db").execute("CREATE TABLE other (x)").connection.close()
    with pytest.raises(UsageDatabaseError, match="holds no usage"):
        open_database(f"sqlite:///{tmp_path}/empty.db", create=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.db"]


def test_many_processes_open_a_new_database_at_once(url: str) -> None:
    code = "import sys; from engine.usage.meter import Meter; Meter(sys.argv[1]).close()"
    children = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]


# A server in small: many clients at a time, each told about its request (its id is written) once that is durable.
WRITER = """
import os, sys, threading, time
from itertools import count
from engine.usage.meter import Meter, Usage
meter, ids = Meter(sys.argv[1]), count()
def client():
    while True:
        name = f"r{next(ids)}"
        meter.submit(Usage(name, "key_a", "m", 3, 1, 2, 1.0, None, time.time(), "stop", 5)).result()
        os.write(1, (name + "\\n").encode())
for _ in range(16):
    threading.Thread(target=client).start()
"""


def kill_writers_at_random(url: str, draw: random.Random) -> list[str]:
    """Two writers of the same ids on one database, each killed at its own moment; gives what they told of."""
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, bufsize=0)
        for _ in range(2)
    ]
    told: list[str] = []
    for writer in writers:
        assert writer.stdout is not None
        told.append(writer.stdout.readline().decode())  # under load from here on
        time.sleep(draw.uniform(0, 0.1))
        os.kill(writer.pid, signal.SIGKILL)
        told += writer.stdout.read().decode().splitlines()
        writer.wait()
        writer.stdout.close()
    return [line.strip() for line in told if line.strip()]


def check_kills(url: str, rounds: int) -> None:
    draw = random.Random(7)
    Meter(url).close()
    for _ in range(rounds):
        told = kill_writers_at_random(url, draw)
        assert told
        with Meter(url) as meter:
            stored = meter.frame()["request_id"]
            assert stored.is_unique
            assert set(told) <= set(stored)
            # The clients who weren't told ask again, and so do those who were: each counts once.
            last = max(int(name[1:]) for name in stored)
            again = [
                meter.submit(Usage(f"r{i}", "key_a", "m", 3, 1, 2, 1.0, None, 2.0, "stop", 5))
                for i in range(last + 1)
            ]
            wait(again)
            frame = meter.frame()
            assert set(frame["request_id"]) == {f"r{i}" for i in range(last + 1)}
            assert frame["output_tokens"].sum() == 2 * (last + 1)
        engine = open_database(url)
        with database.writing(engine) as connection:
            connection.execute(database.REQUESTS.delete())
        engine.dispose()


def test_kill_9_under_load_loses_no_finished_request_and_counts_none_twice(url: str) -> None:
    check_kills(url, rounds=2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_kills(url: str) -> None:
    check_kills(url, rounds=100)
