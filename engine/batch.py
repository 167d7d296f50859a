"""Requests by their counts of tokens, the limits of a replica, and the batch of one step.

No torch here: engine and simulator share these.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, NamedTuple

from engine.errors import InputError


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits of one replica."""

    max_running_requests: int = 64
    max_step_tokens: int = 512  # token budget of one step: decodes and prefill chunks together
    block_tokens: int = 16  # tokens per KV block
    num_blocks: int = 4096  # KV blocks of the replica
    prefix_caching: bool = True
    max_waiting_requests: int | None = None  # more are refused; None: no limit
    spare_blocks_per_request: int = 1  # KV blocks left free for each running request when one is admitted

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool" or (field.default is None and value is None):
                continue
            least = 0 if field.name == "spare_blocks_per_request" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(
                    f"scheduler.{field.name}: found {value!r}, allowed is a whole number ≥ {least}"
                )

    @property
    def cache_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.num_blocks * self.block_tokens


def vllm_scheduler(
    num_blocks: int, max_running_requests: int = 256, max_step_tokens: int = 2048, block_tokens: int = 16
) -> SchedulerConfig:
    """The policy of vLLM 0.19 with its limits: prompts are admitted up to the last block, and preempted if necessary.

    `num_blocks` is what vLLM prints as num_gpu_blocks. The other differences (asynchronous scheduling, no admission in
    a step that preempts, hashes of generated blocks) changed no mean latency of a saturated run by 0.5 %.
    """
    return SchedulerConfig(
        max_running_requests, max_step_tokens, block_tokens, num_blocks, spare_blocks_per_request=0
    )


class State(Enum):
    """Scheduling state of a request."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Request:
    """A request as the scheduler sees it: counts of tokens, never the tokens themselves."""

    __slots__ = (
        "arrived_s",
        "block_hashes",
        "block_table",
        "cached_tokens",
        "computed_tokens",
        "draft_tokens",
        "max_output_tokens",
        "output_tokens",
        "preemptions",
        "priority",
        "prompt_tokens",
        "rank",
        "received_tokens",
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
        priority: int = 0,
        received_tokens: int = 0,
    ) -> None:
        """Create a waiting request.

        Args:
            request_id: unique, hashable.
            prompt_tokens: at least 1.
            max_output_tokens: at least 1; the request finishes with that many.
            arrived_s: time of arrival in seconds, on any clock.
            block_hashes: for each full block of the prompt, the hash of everything up to its end.
            priority: lower is served first.
            received_tokens: prompt tokens whose keys and values another replica computed and sent; fewer than the
                prompt has.

        Raises:
            InputError: fewer than 1 prompt or output token.
        """
        if prompt_tokens < 1 or max_output_tokens < 1:
            raise InputError(
                f"{prompt_tokens} prompt and {max_output_tokens} output tokens, allowed is at least 1 of each",
                request_id=request_id,
            )
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.max_output_tokens = max_output_tokens
        self.arrived_s = arrived_s
        self.block_hashes = block_hashes
        self.priority = priority
        self.received_tokens = received_tokens  # 0 once they are lost
        self.rank: tuple[int, float, int] = (
            priority,
            arrived_s,
            0,
        )  # last: order of arrival at the scheduler
        self.state = State.WAITING
        self.computed_tokens = 0  # tokens whose keys and values are in the cache
        self.output_tokens = 0  # tokens produced so far; the newest is not yet computed
        self.draft_tokens = (
            0  # tokens drafted for its next decode; `schedule` lowers it to what there is room for
        )
        self.cached_tokens = 0  # prompt tokens found in the prefix cache
        self.preemptions = 0
        self.block_table: list[int] = []

    @property
    def total_tokens(self) -> int:
        """Prompt and output tokens so far."""
        return self.prompt_tokens + self.output_tokens


class Chunk(NamedTuple):
    """Part of a step: `tokens` tokens of a request, behind `start` tokens in the cache."""

    request: Request
    start: int
    tokens: int
    samples: bool  # reaches the last known token, so the step produces the next one, or more with drafts


class Step:
    """Batch of one step: one token of each request in `decodes`, with its drafts, and the chunks in `prefills`."""

    __slots__ = ("decodes", "has_drafts", "prefills")

    def __init__(self, decodes: list[Request], prefills: list[Chunk], has_drafts: bool = False) -> None:
        self.decodes = decodes
        self.prefills = prefills
        self.has_drafts = has_drafts

    @property
    def chunks(self) -> list[Chunk]:
        """All chunks of the step, decodes first."""
        return [Chunk(r, r.computed_tokens, 1 + r.draft_tokens, True) for r in self.decodes] + self.prefills

    @property
    def is_pure_decode(self) -> bool:
        """The step has no prefill chunk."""
        return not self.prefills

    @property
    def prefill(self) -> list[tuple[int, int]]:
        """(chunk tokens, context tokens) of each prefill chunk, as a `StepTimeModel` takes them.

        A decode with drafts counts as one: it has several tokens.
        """
        chunks = [(chunk.tokens, chunk.start) for chunk in self.prefills]
        if self.has_drafts:
            chunks += [(1 + r.draft_tokens, r.computed_tokens) for r in self.decodes if r.draft_tokens]
        return chunks

    @property
    def decode_contexts(self) -> list[int]:
        """Tokens in the cache of each decoding request without drafts, as a `StepTimeModel` takes them."""
        return [request.computed_tokens for request in self.decodes if not request.draft_tokens]


@dataclass
class BatchChunk:
    """Tokens of one request to run now, behind `start` tokens in the cache."""

    token_ids: Sequence[int]
    start: int
    block_table: Sequence[int]
    sample: int = 1  # return logits after this many last tokens
