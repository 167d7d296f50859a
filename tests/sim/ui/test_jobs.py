"""Work in the background: found again by its key, cancelled, in turn between visitors, its failure kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import streamlit as st

from engine.errors import InputError
from engine.utils.progress import Progress
from sim.i18n.translate import language, speaking
from sim.ui.jobs import Bench, Cancelled

WAIT_S = 20.0


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Work waits here until the test lets it go on; at the end it always may."""
    opened = threading.Event()
    yield opened
    opened.set()


def as_visitor(name: str) -> None:
    st.session_state["visitor"] = name


def waits(gate: threading.Event, begun: list[str], name: str) -> Callable[[Progress], str]:
    def work(tell: Progress) -> str:
        begun.append(name)
        while not gate.wait(0.01):
            tell(0.5, "waiting for the test")
        return name

    return work


def until(holds: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not holds() and time.monotonic() < end_s:
        time.sleep(0.005)


def test_equal_keys_are_one_piece_of_work(bench: Bench, gate: threading.Event) -> None:
    begun: list[str] = []
    first = bench.start(("study", 1), waits(gate, begun, "first"))
    second = bench.start(("study", 1), waits(gate, begun, "second"))
    gate.set()
    assert first is second
    assert first.future.result(WAIT_S) == "first"
    assert bench.find(("study", 1)) is first
    assert begun == ["first"]


def test_cancel_stops_running_work_and_forget_lets_it_begin_anew(bench: Bench, gate: threading.Event) -> None:
    begun: list[str] = []
    job = bench.start("slow", waits(gate, begun, "slow"))
    until(lambda: bool(begun))
    job.cancel()
    assert isinstance(job.future.exception(WAIT_S), Cancelled)
    assert (
        bench.start("slow", waits(gate, begun, "again")) is job
    )  # found: a page drawn anew restarts nothing
    bench.forget("slow")
    gate.set()
    assert bench.start("slow", waits(gate, begun, "again")).future.result(WAIT_S) == "again"


def test_waiting_work_that_is_cancelled_never_begins(bench: Bench, gate: threading.Event) -> None:
    begun: list[str] = []
    running = [bench.start(n, waits(gate, begun, str(n))) for n in range(2)]  # both workers of the lane
    waiting = bench.start("third", waits(gate, begun, "third"))
    waiting.cancel()
    assert isinstance(waiting.future.exception(WAIT_S), Cancelled)
    gate.set()
    for job in running:
        job.future.result(WAIT_S)
    assert "third" not in begun


def test_a_second_visitor_is_served_before_the_first_ones_queue(bench: Bench, gate: threading.Event) -> None:
    begun: list[str] = []
    as_visitor("greedy")
    jobs = [bench.start(("greedy", n), waits(gate, begun, f"greedy {n}")) for n in range(6)]
    until(lambda: len(begun) == 2)
    as_visitor("other")
    other = bench.start("other", waits(gate, begun, "other"))
    assert other.place == 1  # next, after those at work
    assert [job.place for job in jobs] == [0, 0, 2, 3, 4, 5]
    gate.set()
    for job in [*jobs, other]:
        job.future.result(WAIT_S)
    assert begun[2] == "other"


def test_a_run_does_not_wait_for_studies(bench: Bench, gate: threading.Event) -> None:
    begun: list[str] = []
    studies = [bench.start(n, waits(gate, begun, str(n))) for n in range(4)]
    run = bench.start("run", lambda tell: "done", lane="run")
    assert run.future.result(WAIT_S) == "done"
    gate.set()
    for job in studies:
        job.future.result(WAIT_S)


def test_a_failure_is_kept_with_its_reason(bench: Bench) -> None:
    def fails(tell: Progress) -> None:
        raise InputError("market.price: found -1, allowed: a number ≥ 0")

    assert "found -1" in str(bench.start("wrong", fails).future.exception(WAIT_S))
    assert bench.start("wrong", lambda tell: None).future.exception(WAIT_S) is not None


def test_the_time_left_follows_the_progress(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    told, finish = threading.Event(), threading.Event()

    def work(tell: Progress) -> None:
        tell(0.25, "a quarter")
        told.set()
        finish.wait(WAIT_S)

    job = bench.start("timed", work)
    assert told.wait(WAIT_S)
    assert job.started_s is not None
    begun_s = job.started_s
    monkeypatch.setattr("sim.ui.jobs.time.monotonic", lambda: begun_s + 10.0)
    assert job.left_s == pytest.approx(30.0)  # a quarter took 10 s, three quarters take 30 s
    finish.set()
    job.future.result(WAIT_S)
    assert job.left_s is None


def test_the_work_speaks_the_language_of_who_asked(bench: Bench) -> None:
    with speaking("zh"):
        job = bench.start("words", lambda tell: language())
    assert job.future.result(WAIT_S) == "zh"
