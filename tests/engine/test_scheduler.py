"""The batching policy: nothing lost, budgets kept, ranks respected, and jumping equals stepping."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import Request, SchedulerConfig, State, Step
from engine.errors import InputError
from engine.scheduler import QueueFullError, Scheduler

# Of each request: prompt tokens, output tokens, step at which it arrives, prefix family, priority.
Workload = list[tuple[int, int, int, int, int]]


def workloads(priorities: st.SearchStrategy[int]) -> st.SearchStrategy[Workload]:
    sizes = st.integers(1, 40), st.integers(1, 30), st.integers(0, 30), st.integers(0, 2)
    return st.lists(st.tuples(*sizes, priorities), min_size=1, max_size=12)


WORKLOADS = workloads(st.just(0)) | workloads(st.integers(-1, 1))
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
    spare_blocks_per_request=st.integers(0, 2),
)


def make_requests(workload: Workload, config: SchedulerConfig) -> list[tuple[int, Request]]:
    """(step of arrival, request) in order of arrival; requests of one family share their first tokens."""
    arriving = sorted(enumerate(workload), key=lambda item: item[1][2])
    requests = []
    for index, (prompt, output, when, family, priority) in arriving:
        hashes = [(family, block) for block in range(prompt // config.block_tokens)]
        requests.append((when, Request(index, prompt, output, float(when), hashes, priority)))
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
    for queue in (scheduler.running, scheduler.waiting):
        ranks = [(request.priority, request.arrived_s) for request in queue]
        assert ranks == sorted(ranks)
    for priority in (-1, 0, 1):  # within a priority nobody overtakes
        arrivals = [
            request.arrived_s
            for request in [*scheduler.running, *scheduler.waiting]
            if request.priority == priority
        ]
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


@settings(max_examples=150)
@given(WORKLOADS, st.one_of(CONFIGS, TIGHT), st.data())
def test_whoever_is_cancelled_whenever_the_others_finish(
    workload: Workload, config: SchedulerConfig, data: st.DataObject
) -> None:
    scheduler = Scheduler(config)
    requests = [request for _, request in make_requests(workload, config)]
    tokens = dict.fromkeys(requests, 0)
    for request in requests:
        scheduler.add(request)
    cancelled = set()
    while scheduler.has_work:
        victim = data.draw(st.none() | st.sampled_from(requests))
        if victim is not None:
            scheduler.finish(victim)
            if tokens[victim] < victim.max_output_tokens:
                cancelled.add(victim)
        step = scheduler.schedule()
        if step is None:
            break
        check_step(scheduler, step)
        if data.draw(st.booleans()):
            continue  # the step failed; nothing is booked, and it is planned again
        for request in scheduler.complete(step):
            tokens[request] += 1
    assert scheduler.free_blocks == config.num_blocks
    for request in requests:
        assert request.state is State.FINISHED
        assert request.output_tokens == tokens[request]
        assert request in cancelled or tokens[request] == request.max_output_tokens


@settings(max_examples=150)
@given(WORKLOADS, st.one_of(CONFIGS, TIGHT))
def test_the_first_in_rank_never_gives_way(workload: Workload, config: SchedulerConfig) -> None:
    scheduler = Scheduler(config)
    arriving = make_requests(workload, config)
    now = 0
    while arriving or scheduler.has_work:
        while arriving and arriving[0][0] <= now:
            scheduler.add(arriving.pop(0)[1])
        before = {request: request.preemptions for request in scheduler.running}
        step = scheduler.schedule()
        now += 1
        if step is None:
            continue
        gave_way = [r for r, preemptions in before.items() if r.preemptions > preemptions]
        kept = [r for r in before if r not in gave_way]
        assert all(k.rank < v.rank for k in kept for v in gave_way)
        # Whoever has no token in this step has a rank behind all that were admitted or continue a prompt.
        chunked = [chunk.request for chunk in step.prefills]
        idle = [r for r in scheduler.running if r not in chunked and r not in step.decodes]
        assert all(c.rank < r.rank for c in chunked for r in idle)
        scheduler.complete(step)


def run_to_end(scheduler: Scheduler) -> list[object]:
    """Ids in the order in which they finish."""
    finished: list[object] = []
    while scheduler.has_work:
        step = scheduler.schedule()
        assert step is not None
        finished += [r.request_id for r in scheduler.complete(step) if r.state is State.FINISHED]
    return finished


def test_the_urgent_go_first_and_equals_in_order_of_arrival() -> None:
    scheduler = Scheduler(SchedulerConfig(max_running_requests=1))
    for name, priority in [("a", 1), ("b", 0), ("c", 1), ("d", -5), ("e", 0)]:
        scheduler.add(Request(name, 4, 2, priority=priority))
    assert run_to_end(scheduler) == ["d", "b", "e", "a", "c"]


def test_an_urgent_prompt_goes_before_the_rest_of_a_long_one() -> None:
    scheduler = Scheduler(SchedulerConfig(max_step_tokens=8, block_tokens=4, num_blocks=64))
    scheduler.add(Request("long", 40, 2))
    scheduler.complete(scheduler.schedule())  # type: ignore[arg-type]
    scheduler.add(Request("urgent", 6, 2, 1.0, priority=-1))
    step = scheduler.schedule()
    assert step is not None
    assert [(chunk.request.request_id, chunk.tokens) for chunk in step.prefills] == [
        ("urgent", 6),
        ("long", 2),
    ]


def test_the_least_urgent_gives_way_even_if_it_came_first() -> None:
    scheduler = Scheduler(
        SchedulerConfig(max_step_tokens=64, block_tokens=4, num_blocks=6, prefix_caching=False)
    )
    early, urgent = Request("early", 8, 13, 0.0), Request("urgent", 8, 13, 1.0, priority=-1)
    scheduler.add(early)
    scheduler.complete(scheduler.schedule())  # type: ignore[arg-type]
    scheduler.add(urgent)
    assert run_to_end(scheduler) == ["urgent", "early"]
    assert urgent.preemptions == 0
    assert early.preemptions >= 1


def test_a_full_queue_refuses_but_takes_back_who_gave_way() -> None:
    config = SchedulerConfig(block_tokens=4, num_blocks=6, prefix_caching=False, max_waiting_requests=2)
    scheduler = Scheduler(config)
    for index in range(2):
        scheduler.add(Request(index, 8, 13))
    scheduler.complete(scheduler.schedule())  # type: ignore[arg-type]
    for index in range(2, 4):
        scheduler.add(Request(index, 8, 13))
    with pytest.raises(QueueFullError, match="request 4: 2 requests wait already, allowed are 2"):
        scheduler.add(Request(4, 8, 13))
    scheduler.add(Request(5, 8, 13), counts=False)
    assert run_to_end(scheduler) == [0, 1, 2, 3, 5]


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
    assert run_to_end(scheduler) == ["early", "late"]
    assert early.preemptions == 0
    assert late.preemptions >= 1


@pytest.mark.parametrize(("spare", "running"), [(0, 3), (1, 2), (3, 1)])
def test_blocks_are_kept_free_for_those_who_run(spare: int, running: int) -> None:
    scheduler = Scheduler(
        SchedulerConfig(max_step_tokens=64, block_tokens=4, num_blocks=6, spare_blocks_per_request=spare)
    )
    for index in range(3):
        scheduler.add(Request(index, 8, 2))
    step = scheduler.schedule()
    assert step is not None
    assert len(step.prefills) == running
    scheduler.complete(step)
    assert run_to_end(scheduler) == [0, 1, 2]


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
    with pytest.raises(InputError, match=r"scheduler\.spare_blocks_per_request: found -1, allowed .* ≥ 0"):
        SchedulerConfig(spare_blocks_per_request=-1)
    with pytest.raises(InputError, match=r"scheduler\.max_waiting_requests: found True"):
        SchedulerConfig(max_waiting_requests=True)
