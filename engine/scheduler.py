"""The batching policy of a serving replica: which tokens of which requests run in the next step.

Continuous batching (Yu et al. 2022, Orca) with chunked prefill (Agrawal et al. 2023, Sarathi) over a paged KV
cache (Kwon et al. 2023). Each step has a budget of tokens: first every decoding request gets its one token, then
prompts under way continue, then waiting requests are admitted in order of arrival. A request is admitted when its
whole prompt fits in the cache with one block left for each running request to grow; when growth still runs out of
blocks, the latest arrival gives its own back, and computes them again later (its tokens are kept).

No torch here, and no clock: the engine drives this with real steps, the simulator with predicted ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, NamedTuple

from engine.errors import InputError
from engine.kv_cache import BlockPool


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits of one replica."""

    max_running_requests: int = 64
    max_step_tokens: int = 512  # token budget of one step: decodes and prefill chunks together
    block_tokens: int = 16  # tokens per KV block
    num_blocks: int = 4096  # KV blocks of the replica
    prefix_caching: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type != "bool" and (not isinstance(value, int) or value < 1):
                raise InputError(f"scheduler.{field.name}: found {value!r}, allowed is a whole number ≥ 1")

    @property
    def cache_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.num_blocks * self.block_tokens


class State(Enum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Request:
    """What the scheduler knows of a request: counts of tokens, never the tokens themselves."""

    __slots__ = (
        "arrived_s",
        "block_hashes",
        "block_table",
        "cached_tokens",
        "computed_tokens",
        "max_output_tokens",
        "output_tokens",
        "preemptions",
        "prompt_tokens",
        "request_id",
        "state",
    )

    def __init__(
        self,
        request_id: Any,
        prompt_tokens: int,
        max_output_tokens: int,
        arrived_s: float = 0.0,
        block_hashes: Sequence[Hashable] = (),
    ) -> None:
        """`block_hashes`: for each full block of the prompt, the hash of everything up to its end."""
        if prompt_tokens < 1 or max_output_tokens < 1:
            raise InputError(
                f"request {request_id}: {prompt_tokens} prompt and {max_output_tokens} output tokens, "
                "allowed is at least 1 of each"
            )
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.max_output_tokens = max_output_tokens
        self.arrived_s = arrived_s
        self.block_hashes = block_hashes
        self.state = State.WAITING
        self.computed_tokens = 0  # tokens whose keys and values are in the cache
        self.output_tokens = 0  # tokens produced so far; the newest is not yet computed
        self.cached_tokens = 0  # prompt tokens found in the prefix cache
        self.preemptions = 0
        self.block_table: list[int] = []

    @property
    def total_tokens(self) -> int:
        """Tokens known so far: the prompt and what was produced."""
        return self.prompt_tokens + self.output_tokens


class Chunk(NamedTuple):
    """Part of a step: `tokens` tokens of a request, `start` of whose tokens are in the cache already."""

    request: Request
    start: int
    tokens: int
    samples: bool  # reaches the last known token, so the step produces the next one


class Step:
    """One step's batch: a token of each of `decodes`, and the chunks in `prefills`."""

    __slots__ = ("decodes", "prefills")

    def __init__(self, decodes: list[Request], prefills: list[Chunk]) -> None:
        self.decodes = decodes
        self.prefills = prefills

    @property
    def chunks(self) -> list[Chunk]:
        """Everything in the step, decodes first."""
        return [Chunk(r, r.computed_tokens, 1, True) for r in self.decodes] + self.prefills

    @property
    def is_pure_decode(self) -> bool:
        """No prefill in it."""
        return not self.prefills

    @property
    def prefill(self) -> list[tuple[int, int]]:
        """(chunk tokens, context tokens) of each prefill chunk, as a `StepTimeModel` takes them."""
        return [(chunk.tokens, chunk.start) for chunk in self.prefills]

    @property
    def decode_contexts(self) -> list[int]:
        """Tokens in the cache of each decoding request, as a `StepTimeModel` takes them."""
        return [request.computed_tokens for request in self.decodes]


class Scheduler:
    """Requests of one replica: add them, then alternate `schedule` and `complete` until there is no work."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.waiting: deque[Request] = deque()
        self.running: list[
            Request
        ] = []  # in order of arrival; everybody in it arrived before everybody waiting
        self._pool = BlockPool(config.num_blocks)

    @property
    def has_work(self) -> bool:
        """Somebody waits or runs."""
        return bool(self.running or self.waiting)

    @property
    def free_blocks(self) -> int:
        """KV blocks that nobody holds."""
        return self._pool.free_blocks

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InputError: it could never finish, not even alone in the cache.
        """
        # The last token is produced but never computed, so it needs no room.
        needed = self._blocks(request.prompt_tokens + request.max_output_tokens - 1)
        if needed > self.config.num_blocks:
            short = (needed - self.config.num_blocks) * self.config.block_tokens
            raise InputError(
                f"request {request.request_id}: {request.prompt_tokens} prompt and {request.max_output_tokens} "
                f"output tokens need {short} tokens more than the KV cache holds ({self.config.cache_tokens})"
            )
        self.waiting.append(request)

    def schedule(self) -> Step | None:
        """The next step, its blocks already held; None when there is no work."""
        budget = self.config.max_step_tokens
        decodes: list[Request] = []
        prefills: list[Chunk] = []
        position = 0
        while position < len(self.running):
            request = self.running[position]
            position += 1
            if request.computed_tokens + 1 < request.total_tokens or not request.output_tokens:
                continue  # its prompt is still under way
            if budget == 0 or not self._grow(request):
                continue
            decodes.append(request)
            budget -= 1
        for request in self.running:
            if budget == 0:
                break
            if request.computed_tokens + 1 < request.total_tokens or not request.output_tokens:
                budget -= self._append_chunk(prefills, request, budget)
        while budget and self.waiting and len(self.running) < self.config.max_running_requests:
            request = self.waiting[0]
            if not self._admit(request):
                break
            self.waiting.popleft()
            self.running.append(request)
            budget -= self._append_chunk(prefills, request, budget)
        return Step(decodes, prefills) if decodes or prefills else None

    def complete(self, step: Step) -> list[Request]:
        """Book a step that ran: tokens computed, one produced where a chunk samples; who is done leaves.

        Returns the requests that produced a token, in the order of the step's chunks.
        """
        produced = list(step.decodes)
        for request in step.decodes:
            request.computed_tokens += 1
        for chunk in step.prefills:
            chunk.request.computed_tokens += chunk.tokens
            self._remember(chunk)
            if chunk.samples:
                produced.append(chunk.request)
        for request in produced:
            request.output_tokens += 1
        self._retire(produced)
        return produced

    def finish(self, request: Request) -> None:
        """Take a request out at once, whatever its state: a stop token, or the client went away."""
        if request.state is State.FINISHED:
            return
        if request.state is State.RUNNING:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self._free(request)
        request.state = State.FINISHED

    def unchanged_steps(self, step: Step) -> int:
        """For how many steps, this one included, the same requests decode and nothing else happens.

        Until one finishes or the blocks run out. Nobody who waits can be admitted meanwhile, because room only
        shrinks while everybody decodes. 1 for a step that is not the decode of everybody who runs.
        """
        if step.prefills or len(step.decodes) != len(self.running):
            return 1
        steps = min(request.max_output_tokens - request.output_tokens for request in step.decodes)
        free = self._pool.free_blocks
        if self._growth(step, steps) <= free:
            return steps
        low, high = 1, steps  # the blocks of this one step are held already
        while high - low > 1:
            middle = (low + high) // 2
            if self._growth(step, middle) <= free:
                low = middle
            else:
                high = middle
        return low

    def complete_run(self, step: Step, steps: int) -> list[Request]:
        """Book `steps` decode steps of an unchanged batch at once (at most `unchanged_steps`).

        Leaves everything as `steps` rounds of schedule and complete would; returns as `complete` does.
        """
        for request in step.decodes:
            request.computed_tokens += steps
            request.output_tokens += steps
            missing = self._blocks(request.computed_tokens) - len(request.block_table)
            if missing > 0:
                request.block_table += self._pool.take(missing)
        self._retire(step.decodes)
        return list(step.decodes)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.config.block_tokens)

    def _growth(self, step: Step, steps: int) -> int:
        """Blocks to be taken until `steps` decode steps are done."""
        size = self.config.block_tokens
        growth = 0
        for request in step.decodes:
            needed = -(-(request.computed_tokens + steps) // size) - len(request.block_table)
            if needed > 0:
                growth += needed
        return growth

    def _grow(self, request: Request) -> bool:
        """Make room for one more token; False if that cost the request itself its place."""
        if request.computed_tokens < len(request.block_table) * self.config.block_tokens:
            return True
        while not self._pool.free_blocks:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        request.block_table += self._pool.take(1)
        return True

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._free(request)
        request.computed_tokens = 0
        request.preemptions += 1
        request.state = State.WAITING
        self.waiting.appendleft(request)

    def _admit(self, request: Request) -> bool:
        """Hold blocks for all known tokens of a waiting request, if they are free."""
        pool, size = self._pool, self.config.block_tokens
        shared: list[int] = []
        if self.config.prefix_caching and request.block_hashes:
            # At least one token is computed: a step must produce the next token from something.
            shared = pool.find_prefix(request.block_hashes, (request.total_tokens - 1) // size)
        missing = self._blocks(request.total_tokens) - len(shared)
        if missing + pool.free_among(shared) + len(self.running) > pool.free_blocks:
            return False
        pool.hold(shared)
        request.block_table = shared + pool.take(missing)
        request.computed_tokens = len(shared) * size
        if not request.preemptions:
            request.cached_tokens = request.computed_tokens
        request.state = State.RUNNING
        return True

    def _append_chunk(self, prefills: list[Chunk], request: Request, budget: int) -> int:
        left = request.total_tokens - request.computed_tokens
        tokens = min(left, budget)
        prefills.append(Chunk(request, request.computed_tokens, tokens, tokens == left))
        return tokens

    def _remember(self, chunk: Chunk) -> None:
        """Let others find the blocks of the prompt that this chunk completed."""
        request = chunk.request
        if not (self.config.prefix_caching and request.block_hashes):
            return
        size = self.config.block_tokens
        last = min(request.computed_tokens // size, len(request.block_hashes))
        for index in range(chunk.start // size, last):
            self._pool.remember(request.block_table[index], request.block_hashes[index])

    def _retire(self, produced: list[Request]) -> None:
        done = [request for request in produced if request.output_tokens >= request.max_output_tokens]
        if not done:
            return
        for request in done:
            self._free(request)
            request.state = State.FINISHED
        self.running = [request for request in self.running if request.state is State.RUNNING]

    def _free(self, request: Request) -> None:
        self._pool.release(request.block_table)
        request.block_table = []
