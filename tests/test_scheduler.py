"""The batching policy: nothing lost, budgets kept, first come first served, and jumping equals stepping."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.scheduler import Request, Scheduler, SchedulerConfig, State, Step

Workload = list[
    tuple[int, int, int, int]
]  # prompt tokens, output tokens, step at which it arrives, prefix family
WORKLOADS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(0, 30), st.integers(0, 2)),
    min_size=1,
    max_size=12,
)
CONFIGS = st.builds(
    SchedulerConfig,
    max_running_requests=st.integers(1, 6),
    max_step_tokens=st.integers(6, 24),
    block_tokens=st.sampled_from([1, 4, 8]),
    num_blocks=st.integers(70, 90),
    prefix_caching=st.booleans(),
)
TIGHT = st.builds(
    SchedulerConfig,
    max_running_requests=st.integers(2, 6),
    max_step_tokens=st.integers(6, 24),
    block_tokens=st.just(4),
    num_blocks=st.integers(18, 24),
    prefix_caching=st.booleans(),
)


def make_requests(workload: Workload, config: SchedulerConfig) -> list[tuple[int, Request]]:
    """(step of arrival, request) in order of arrival; requests of one family share their first tokens."""
    arriving = sorted(enumerate(workload), key=lambda item: item[1][2])
    requests = []
    for index, (prompt, output, when, family) in arriving:
        hashes = [(family, block) for block in range(prompt // config.block_tokens)]
        requests.append((when, Request(index, prompt, output, float(when), hashes)))
    return requests


def check_step(scheduler: Scheduler, step: Step) -> None:
    config = scheduler.config
    assert sum(chunk.tokens for chunk in step.chunks) <= config.max_step_tokens
    assert len(scheduler.running) <= config.max_running_requests
    for chunk in step.chunks:
        assert chunk.tokens >= 1
        assert chunk.start + chunk.tokens <= len(chunk.request.block_table) * config.block_tokens
        assert chunk.samples == (chunk.start + chunk.tokens == chunk.request.total_tokens)
    held = {block for request in scheduler.running for block in request.block_table}
    assert len(held) + scheduler.free_blocks == config.num_blocks
    if not config.prefix_caching:
        assert len(held) == sum(len(request.block_table) for request in scheduler.running)
    arrivals = [request.arrived_s for request in [*scheduler.running, *scheduler.waiting]]
    assert arrivals == sorted(arrivals)


def drive(workload: Workload, config: SchedulerConfig, *, jump: bool) -> list[tuple[object, ...]]:
    """Run to the end; gives (request, step of its end, preemptions, cached tokens, free blocks then) in order."""
    scheduler = Scheduler(config)
    arriving = make_requests(workload, config)
    requests = [request for _, request in arriving]
    log: list[tuple[object, ...]] = []
    now = 0
    while arriving or scheduler.has_work:
        while arriving and arriving[0][0] <= now:
            scheduler.add(arriving.pop(0)[1])
        step = scheduler.schedule()
        if step is None:
            now = arriving[0][0]
            continue
        check_step(scheduler, step)
        steps = 1
        if jump and step.is_pure_decode:
            steps = scheduler.unchanged_steps(step)
            if arriving:
                steps = min(steps, max(1, arriving[0][0] - now))
        produced = scheduler.complete_run(step, steps) if steps > 1 else scheduler.complete(step)
        now += steps
        log += [
            (request.request_id, now, request.preemptions, request.cached_tokens, scheduler.free_blocks)
            for request in produced
            if request.state is State.FINISHED
        ]
    assert scheduler.free_blocks == config.num_blocks
    for request in requests:
        assert request.state is State.FINISHED
        assert request.output_tokens == request.max_output_tokens
        assert request.computed_tokens == request.total_tokens - 1
    return log


@settings(max_examples=150)
@given(WORKLOADS, st.one_of(CONFIGS, TIGHT))
def test_jumping_equals_stepping(workload: Workload, config: SchedulerConfig) -> None:
    assert drive(workload, config, jump=True) == drive(workload, config, jump=False)


def test_a_prompt_is_chunked_beside_decodes() -> None:
    scheduler = Scheduler(SchedulerConfig(max_step_tokens=8, block_tokens=4, num_blocks=32))
    scheduler.add(Request("first", 4, 10))
    scheduler.complete(scheduler.schedule())  # type: ignore[arg-type]
    scheduler.add(Request("second", 20, 2))
    step = scheduler.schedule()
    assert step is not None
    assert step.decode_contexts == [4]
    assert step.prefill == [(7, 0)]
    assert not step.is_pure_decode
    scheduler.complete(step)
    step = scheduler.schedule()
    assert step is not None
    assert step.prefill == [(7, 7)]
    assert [chunk.samples for chunk in step.chunks] == [True, False]


def test_the_latest_arrival_gives_way_and_keeps_its_tokens() -> None:
    scheduler = Scheduler(
        SchedulerConfig(max_step_tokens=64, block_tokens=4, num_blocks=6, prefix_caching=False)
    )
    early, late = Request("early", 8, 13), Request("late", 8, 13)
    scheduler.add(early)
    scheduler.add(late)
    finished = []
    while scheduler.has_work:
        step = scheduler.schedule()
        assert step is not None
        finished += [r.request_id for r in scheduler.complete(step) if r.state is State.FINISHED]
    assert finished == ["early", "late"]
    assert early.preemptions == 0
    assert late.preemptions >= 1


def test_a_shared_prefix_is_computed_once() -> None:
    scheduler = Scheduler(SchedulerConfig(block_tokens=4, num_blocks=32))
    scheduler.add(Request("a", 10, 1, block_hashes=["x", "xy"]))
    scheduler.complete(scheduler.schedule())  # type: ignore[arg-type]
    again = Request("b", 8, 1, block_hashes=["x", "xy"])
    scheduler.add(again)
    step = scheduler.schedule()
    assert step is not None
    assert step.prefill == [(4, 4)], "the last token is always computed"
    assert again.cached_tokens == 4


def test_finish_frees_whatever_its_state() -> None:
    scheduler = Scheduler(SchedulerConfig(max_running_requests=1, num_blocks=8))
    running, waiting = Request(1, 10, 10), Request(2, 10, 10)
    scheduler.add(running)
    scheduler.add(waiting)
    scheduler.schedule()
    scheduler.finish(waiting)
    scheduler.finish(running)
    scheduler.finish(running)
    assert not scheduler.has_work
    assert scheduler.free_blocks == 8


def test_what_can_never_fit_is_refused_by_how_much() -> None:
    scheduler = Scheduler(SchedulerConfig(block_tokens=16, num_blocks=4))
    scheduler.add(Request(0, 60, 5))  # 64 tokens in the cache: the last one is never computed
    with pytest.raises(InputError, match=r"request 1: .* 16 tokens more than the KV cache holds \(64\)"):
        scheduler.add(Request(1, 60, 6))
    with pytest.raises(InputError, match="at least 1"):
        Request(2, 0, 5)
    with pytest.raises(InputError, match=r"scheduler\.num_blocks: found 0"):
        SchedulerConfig(num_blocks=0)
