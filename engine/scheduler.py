"""The batching policy of a serving replica: which tokens of which requests run in the next step.

Continuous batching (Yu et al. 2022, Orca) with chunked prefill (Agrawal et al. 2023, Sarathi) over a paged KV
cache (Kwon et al. 2023). Each step has a budget of tokens: first every decoding request gets its one token, then
unfinished prompts continue and waiting requests are admitted. Each of these goes by rank: the lower `priority`, then
the earlier arrival. A request is admitted when its whole prompt fits in the cache with one block left for each running
request to grow (`spare_blocks_per_request`: vLLM leaves none, admits more and preempts more). When growing requests
still run out of blocks, the request of last rank is preempted: it gives its blocks back, keeps its tokens and computes
them again later.

Requests are admitted strictly by rank: while the first in the queue does not fit, those behind it wait too, so no
request starves behind others of its priority. Across priorities there is no such guarantee: as long as more urgent
requests keep the queue filled, the others wait. A more urgent arrival never preempts: it waits for free blocks.

No torch here, and no clock: the engine drives this with real steps, the simulator with predicted ones.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Mapping
from operator import attrgetter

from engine.batch import Chunk, Request, SchedulerConfig, State, Step
from engine.errors import QueueFullError, TooLongError
from engine.kv_cache import BlockPool

__all__ = ["Chunk", "QueueFullError", "Request", "Scheduler", "SchedulerConfig", "State", "Step"]


_RANK = attrgetter("rank")


class Scheduler:
    """Requests of one replica: `add` them, then alternate `schedule` and `complete` while there is work."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.waiting: deque[Request] = deque()  # in order of rank
        self.running: list[Request] = []  # in order of rank
        self._added = 0
        self._pool = BlockPool(config.num_blocks)

    @property
    def has_work(self) -> bool:
        """Any request is waiting or running."""
        return bool(self.running or self.waiting)

    @property
    def free_blocks(self) -> int:
        """Free KV blocks."""
        return self._pool.free_blocks

    def add(self, request: Request, *, counts: bool = True) -> None:
        """Queue a request.

        Args:
            request: to be queued.
            counts: subject to `max_waiting_requests`; false for further samples of a prompt that was accepted.

        Raises:
            TooLongError: it could never finish, not even alone in the cache.
            QueueFullError: `max_waiting_requests` are waiting already.
        """
        self.check_fit(request)
        most = self.config.max_waiting_requests
        if counts and most is not None and len(self.waiting) >= most:
            raise QueueFullError(
                f"{len(self.waiting)} requests wait already, allowed are {most}",
                request_id=request.request_id,
            )
        self._added += 1
        request.rank = (request.priority, request.arrived_s, self._added)
        self._enqueue(request)

    def check_fit(self, request: Request) -> None:
        """Raise TooLongError for a request that could not finish even alone in the cache."""
        # The last token is produced but never computed, so it needs no room.
        needed = self._blocks(request.prompt_tokens + request.max_output_tokens - 1)
        if needed > self.config.num_blocks:
            short = (needed - self.config.num_blocks) * self.config.block_tokens
            raise TooLongError(
                f"{request.prompt_tokens} prompt and {request.max_output_tokens} output tokens need {short} tokens "
                f"more than the KV cache holds ({self.config.cache_tokens})",
                request_id=request.request_id,
            )

    def schedule(self) -> Step | None:
        """Plan the next step and allocate its blocks; None if there is no work."""
        budget = self.config.max_step_tokens
        decodes: list[Request] = []
        has_drafts = False
        prefills: list[Chunk] = []
        unfinished: list[Request] = []  # prompts
        position = 0
        while position < len(self.running):
            request = self.running[position]
            position += 1
            if request.computed_tokens + 1 < request.total_tokens or not request.output_tokens:
                unfinished.append(request)
            elif budget and self._grow(request):
                decodes.append(request)
                budget -= 1
                if request.draft_tokens:
                    has_drafts = True
        if has_drafts:  # after every decode has its token
            for request in decodes:
                request.draft_tokens = self._grow_for_drafts(request, budget)
                budget -= request.draft_tokens
        for request in unfinished:
            if request.state is not State.RUNNING:
                continue  # it was just preempted for a decode
            budget = self._join(prefills, budget, request.rank)
            if budget:
                budget -= self._append_chunk(prefills, request, budget)
        self._join(prefills, budget)
        return Step(decodes, prefills, has_drafts) if decodes or prefills else None

    def complete(self, step: Step, kept_drafts: Mapping[Request, int] | None = None) -> list[Request]:
        """Update all counts after a step ran; finished requests release their blocks.

        Args:
            step: as `schedule` returned it.
            kept_drafts: accepted drafts of each decode, which produces that many tokens more.

        Returns:
            The requests that produced a token, in the order of the step's chunks.
        """
        produced = list(step.decodes)
        for request in step.decodes:
            request.computed_tokens += 1
        if step.has_drafts:
            for request in step.decodes:
                kept = (kept_drafts or {}).get(request, 0)
                request.computed_tokens += kept
                request.output_tokens += kept
                request.draft_tokens = 0
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
        """Remove a request in any state: it reached a stop token, or was cancelled."""
        if request.state is State.FINISHED:
            return
        if request.state is State.RUNNING:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self._free(request)
        request.state = State.FINISHED

    def lend(self, tokens: int) -> list[int]:
        """Take blocks for work between two steps that is not a request; give them to `take_back` afterwards.

        Raises:
            QueueFullError: too few blocks are free.
        """
        blocks = self._blocks(tokens)
        if blocks > self._pool.free_blocks:
            raise QueueFullError(
                f"{blocks} KV blocks are asked for, {self._pool.free_blocks} of {self.config.num_blocks} are free"
            )
        return self._pool.take(blocks)

    def take_back(self, table: list[int]) -> None:
        """Free the blocks that `lend` returned."""
        self._pool.release(table)

    def unchanged_steps(self, step: Step) -> int:
        """Number of steps, this one included, in which the same requests decode and nothing else happens.

        It ends when a request finishes or the blocks run out. Waiting requests cannot be admitted before, because free
        blocks only decrease while all running requests decode. 1 unless the step decodes every running request.
        """
        if step.prefills or step.has_drafts or len(step.decodes) != len(self.running):
            return 1
        steps = min(request.max_output_tokens - request.output_tokens for request in step.decodes)
        free = self._pool.free_blocks
        if self.growth(step, steps) <= free:
            return steps
        low, high = 1, steps  # the blocks of this one step are held already
        while high - low > 1:
            middle = (low + high) // 2
            if self.growth(step, middle) <= free:
                low = middle
            else:
                high = middle
        return low

    def complete_run(self, step: Step, steps: int) -> list[Request]:
        """Complete `steps` decode steps of an unchanged batch at once (at most `unchanged_steps`).

        Same state afterwards, and same result, as that many rounds of `schedule` and `complete`.
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

    def growth(self, step: Step, steps: int) -> int:
        """KV blocks to allocate for `steps` decode steps of this batch."""
        size = self.config.block_tokens
        growth = 0
        for request in step.decodes:
            needed = -(-(request.computed_tokens + steps) // size) - len(request.block_table)
            if needed > 0:
                growth += needed
        return growth

    def _grow(self, request: Request) -> bool:
        """Allocate room for one more token; False if the request itself was preempted for it."""
        if request.computed_tokens < len(request.block_table) * self.config.block_tokens:
            return True
        while not self._pool.free_blocks:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        request.block_table += self._pool.take(1)
        return True

    def _grow_for_drafts(self, request: Request, budget: int) -> int:
        """Allocate room for a decode's drafts without preempting; returns how many of them fit."""
        # The step produces one token more than the drafts that it keeps.
        drafts = min(request.draft_tokens, budget, request.max_output_tokens - request.output_tokens - 1)
        missing = self._blocks(request.computed_tokens + 1 + drafts) - len(request.block_table)
        spare = max(0, self._pool.free_blocks - len(self.running))
        if missing > 0:
            request.block_table += self._pool.take(min(missing, spare))
        room = len(request.block_table) * self.config.block_tokens - request.computed_tokens - 1
        return min(drafts, room)

    def _enqueue(self, request: Request) -> None:
        if self.waiting and request.rank < self.waiting[-1].rank:
            insort(self.waiting, request, key=_RANK)
        else:
            self.waiting.append(request)

    def _join(self, prefills: list[Chunk], budget: int, before: tuple[int, float, int] | None = None) -> int:
        """Admit waiting requests, only those before a rank if one is given; returns the remaining budget."""
        waiting, running = self.waiting, self.running
        while budget and waiting and len(running) < self.config.max_running_requests:
            request = waiting[0]
            if (before and request.rank > before) or not self._admit(request):
                break
            waiting.popleft()
            insort(running, request, key=_RANK)
            budget -= self._append_chunk(prefills, request, budget)
        return budget

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._free(request)
        request.computed_tokens = 0
        request.received_tokens = 0
        request.draft_tokens = 0
        request.preemptions += 1
        request.state = State.WAITING
        self._enqueue(request)

    def _admit(self, request: Request) -> bool:
        """Allocate blocks for all known tokens of a waiting request, if they are free."""
        pool, size = self._pool, self.config.block_tokens
        shared: list[int] = []
        if self.config.prefix_caching and request.block_hashes:
            # At least one token is computed: a step must produce the next token from something.
            shared = pool.find_prefix(request.block_hashes, (request.total_tokens - 1) // size)
        missing = self._blocks(request.total_tokens) - len(shared)
        spare = self.config.spare_blocks_per_request * len(self.running)
        if missing + pool.free_among(shared) + spare > pool.free_blocks:
            return False
        pool.hold(shared)
        request.block_table = shared + pool.take(missing)
        request.computed_tokens = max(len(shared) * size, request.received_tokens)
        if not request.preemptions:
            request.cached_tokens = len(shared) * size
        request.state = State.RUNNING
        return True

    def _append_chunk(self, prefills: list[Chunk], request: Request, budget: int) -> int:
        left = request.total_tokens - request.computed_tokens
        tokens = min(left, budget)
        prefills.append(Chunk(request, request.computed_tokens, tokens, tokens == left))
        return tokens

    def _remember(self, chunk: Chunk) -> None:
        """Make the prompt blocks that this chunk completed available to other requests."""
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
