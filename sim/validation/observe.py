"""The real engine under a known load: who arrived when, and when each token came, measured.

Models the first half of a validation: a load generator and a stop watch around `engine.LLM`, in one process. The load
is open: a request counts from the time at which it should have arrived, also when the engine was in a step at that
moment and took it only at the next boundary. Otherwise a slow engine would make its own queue look short
(coordinated omission: Tene 2013).

Prompts are random tokens of the given lengths and answers go on for exactly `output_tokens`, so a replay of the same
frame does the same work. Blocks of two prompts are equal where their `prefix_hashes` are, so the prefix cache finds
what the simulator's finds.
"""

from __future__ import annotations

import heapq
import json
import math
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from engine.errors import InputError
from engine.utils.files import write_atomically
from engine.utils.json_file import read_json_object
from engine.utils.progress import Progress, no_progress
from sim.workload.requests import check_requests

if TYPE_CHECKING:
    from engine.batch import Step
    from engine.inference.llm import LLM


_LONGEST_NAP_S = 0.002  # a sleep may end late; the rest of a wait is spun
_WARM_UP = ((0.25, 1), (1.0, 4), (0.5, 16))  # (share of the step's token budget, requests)


@dataclass
class Observation:
    """One measured run: a row per request, a row per engine step, and where both come from.

    `requests` has the columns that `sim.serving.replay` gives. `steps`: started_s; ended_s; until_s (when the
    next step began, or the engine found itself idle); prefill, a list of (chunk tokens, context tokens);
    decode_contexts, a list. Times are seconds on the clock of `arrived_s`.
    """

    requests: pd.DataFrame
    steps: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write requests.csv, steps.parquet and provenance.json into a folder."""
        folder = Path(folder)
        write_atomically(folder / "requests.csv", self.requests.to_csv(index=False))
        chunks = [[list(pair) for pair in pairs] for pairs in self.steps["prefill"]]
        steps = self.steps.assign(prefill=pd.Series(chunks, dtype=object))
        write_atomically(folder / "steps.parquet", steps.to_parquet(index=False))
        write_atomically(folder / "provenance.json", json.dumps(self.provenance, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Observation:
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing or can't be read.
        """
        folder = Path(folder)
        provenance = read_json_object(folder / "provenance.json")
        try:
            requests = pd.read_csv(folder / "requests.csv")
            steps = pd.read_parquet(folder / "steps.parquet")
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: cannot be read: {' '.join(str(error).split())}") from None
        chunks = [[(int(tokens), int(context)) for tokens, context in pairs] for pairs in steps["prefill"]]
        contexts = [[int(context) for context in row] for row in steps["decode_contexts"]]
        steps["prefill"] = pd.Series(chunks, dtype=object)
        steps["decode_contexts"] = pd.Series(contexts, dtype=object)
        return cls(requests, steps, provenance)


def observe(
    llm: LLM, requests: pd.DataFrame, *, seed: int = 0, progress: Progress | None = None
) -> Observation:
    """Serve `requests` in real time and note when everything happened; takes as long as the requests do.

    Begins with an empty prefix cache, as a replay does.

    Args:
        llm: an engine with nothing to do.
        requests: as for `sim.serving.replay`: arrived_s, prompt_tokens, output_tokens [, prefix_hashes, after,
            think_s, request_id]; the first arrival is waited for from time 0 on.
        seed: of the prompts' tokens.
        progress: called with (fraction done, what is being done) about once a second, between steps.

    Raises:
        InputError: a bad row, or a request that doesn't fit the model's context or the KV cache. Nothing has run then.
        ValueError: the engine has work already.
    """
    from engine.scheduler import Scheduler

    if llm.scheduler.has_work:
        raise ValueError("the engine to be observed must have nothing to do")
    requests = check_requests(requests)
    prompts = build_prompts(requests, llm.config.block_tokens, llm.shape.vocab_size, seed)
    _check_fit(llm, requests)
    llm.scheduler = Scheduler(llm.config)
    run = _Run(llm, requests, prompts, progress or no_progress)
    llm.on_step = run.note_step
    try:
        run.serve()
    finally:
        llm.on_step = None
        for request_id in list(run.outputs):
            llm.cancel(request_id)
    return Observation(run.frame(), pd.DataFrame(run.steps, columns=list(_STEP_COLUMNS)))


def warm_up(llm: LLM, seed: int = 0) -> None:
    """Serve a few prompts of several sizes, so that nothing that happens once per process is counted."""
    longest = min(llm.shape.max_context_tokens, llm.config.cache_tokens) // 2
    for share, count in _WARM_UP:
        count = min(count, llm.config.max_running_requests)
        each = max(1, min(longest, int(share * llm.config.max_step_tokens) // count))
        observe(
            llm,
            pd.DataFrame(
                {
                    "arrived_s": [0.0] * count,
                    "prompt_tokens": [each] * count,
                    "output_tokens": [min(4, longest)] * count,
                }
            ),
            seed=seed,
        )


def full_prefix_hashes(requests: pd.DataFrame, block_tokens: int) -> pd.DataFrame:
    """The requests with a key for each full block of their prompts: those they have, then ones of their own.

    An engine remembers every full block of a prompt, also one that no other prompt has; they take room in its prefix
    cache. Frames without prefix_hashes are left alone: nothing is shared there, so nothing depends on it.
    """
    if "prefix_hashes" not in requests:
        return requests
    filled = [
        [*list(known)[: tokens // block_tokens]]
        + [("own", row, block) for block in range(len(known), tokens // block_tokens)]
        for row, (known, tokens) in enumerate(
            zip(requests["prefix_hashes"], requests["prompt_tokens"], strict=True)
        )
    ]
    return requests.assign(prefix_hashes=pd.Series(filled, index=requests.index, dtype=object))


def build_prompts(requests: pd.DataFrame, block_tokens: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Random token ids for each request; a full block with a key has the same tokens wherever the key stands."""
    rng = np.random.default_rng(seed)
    blocks: dict[Hashable, list[int]] = {}

    def block_of(key: Hashable) -> list[int]:
        if key not in blocks:
            blocks[key] = rng.integers(0, vocab_size, block_tokens).tolist()
        return blocks[key]

    keys = requests["prefix_hashes"] if "prefix_hashes" in requests else [()] * len(requests)
    prompts = []
    for tokens, known in zip(requests["prompt_tokens"].tolist(), keys, strict=True):
        shared = [token for key in list(known)[: tokens // block_tokens] for token in block_of(key)]
        prompts.append(shared + rng.integers(0, vocab_size, tokens - len(shared)).tolist())
    return prompts


_STEP_COLUMNS = ("started_s", "ended_s", "until_s", "prefill", "decode_contexts")


class _Run:
    """One observation under way."""

    def __init__(
        self, llm: LLM, requests: pd.DataFrame, prompts: list[list[int]], progress: Progress
    ) -> None:
        self.llm, self.requests, self.prompts, self.progress = llm, requests, prompts, progress
        count = len(requests)
        self.outputs: dict[int, int] = {}  # row of each unfinished request, by its id in the engine
        self.arrived_s = requests["arrived_s"].to_numpy(dtype=float).copy()
        self.scheduled_s = np.full(count, math.nan)
        self.first_token_s = np.full(count, math.nan)
        self.finished_s = np.full(count, math.nan)
        self.preemptions = np.zeros(count, dtype=np.int64)
        self.cached_tokens = np.zeros(count, dtype=np.int64)
        self.steps: list[list[Any]] = []
        self._began = 0.0  # of `time.perf_counter`
        self._step_began_s = 0.0
        self._done = 0
        after = requests["after"].tolist() if "after" in requests else [-1] * count
        self._followers: dict[int, list[int]] = {}
        for row, earlier in enumerate(after):
            if earlier >= 0:
                self._followers.setdefault(int(earlier), []).append(row)
        self._coming = [(self.arrived_s[row], row) for row in range(count) if after[row] < 0]  # a heap
        heapq.heapify(self._coming)
        self._wanted = requests["output_tokens"].tolist()
        self._priorities = requests["priority"].tolist() if "priority" in requests else [0] * count

    def serve(self) -> None:
        """Add each request at its time of arrival, between steps, until all are finished."""
        llm = self.llm
        self._began = time.perf_counter()
        reported_s = 0.0
        while self._done < len(self.requests):
            self._take_arrived()
            now_s = self._now()
            if self.steps and math.isnan(self.steps[-1][2]):
                self.steps[-1][2] = now_s
            if not llm.scheduler.has_work:
                self._wait_until(self._coming[0][0])
                continue
            if now_s - reported_s >= 1.0:
                reported_s = now_s
                self.progress(
                    self._done / len(self.requests), f"{self._done} of {len(self.requests)} requests"
                )
            self._step_began_s = self._now()
            for output in llm.step():
                if output.finish_reason is not None:
                    self._book(output)
            self.steps[-1][1] = self._now()
        self.steps[-1][2] = self._now()

    def note_step(self, step: Step) -> None:
        """Note the step that the engine is about to run."""
        self.steps.append([self._step_began_s, math.nan, math.nan, step.prefill, step.decode_contexts])
        for chunk in step.prefills:
            row = self.outputs[chunk.request.request_id]
            if math.isnan(self.scheduled_s[row]):
                self.scheduled_s[row] = self._step_began_s

    def frame(self) -> pd.DataFrame:
        """The times of each request, in the order given, as a replay gives them."""
        given = self.requests
        found = pd.DataFrame(
            {
                "request_id": given["request_id"].to_numpy() if "request_id" in given else range(len(given)),
                "arrived_s": self.arrived_s,
                "scheduled_s": self.scheduled_s,
                "first_token_s": self.first_token_s,
                "finished_s": self.finished_s,
                "preemptions": self.preemptions,
                "cached_tokens": self.cached_tokens,
                "replica": 0,
                "prompt_tokens": given["prompt_tokens"].to_numpy(),
                "output_tokens": given["output_tokens"].to_numpy(),
            }
        )
        return (
            found.assign(traffic_class=given["traffic_class"].to_numpy())
            if "traffic_class" in given
            else found
        )

    def _now(self) -> float:
        return time.perf_counter() - self._began

    def _take_arrived(self) -> None:
        from engine.sampling.sampler import SamplingParams

        while self._coming and self._coming[0][0] <= self._now():
            _, row = heapq.heappop(self._coming)
            params = SamplingParams(max_tokens=self._wanted[row], ignore_eos=True)
            priority = self._priorities[row]
            self.outputs[self.llm.add_request(self.prompts[row], params, priority=priority)] = row

    def _wait_until(self, time_s: float) -> None:
        while (left_s := time_s - self._now()) > 0:
            time.sleep(left_s - _LONGEST_NAP_S if left_s > _LONGEST_NAP_S else 0.0)

    def _book(self, output: Any) -> None:
        row = self.outputs.pop(output.request_id)
        metrics = output.metrics
        self.first_token_s[row] = metrics.first_token_s - self._began
        self.finished_s[row] = metrics.finished_s - self._began
        self.preemptions[row], self.cached_tokens[row] = metrics.preemptions, metrics.cached_tokens
        self._done += 1
        for follower in self._followers.get(row, ()):
            self.arrived_s[follower] = self.finished_s[row] + float(self.requests["think_s"].iloc[follower])
            heapq.heappush(self._coming, (self.arrived_s[follower], follower))


def _check_fit(llm: LLM, requests: pd.DataFrame) -> None:
    total = (requests["prompt_tokens"] + requests["output_tokens"]).to_numpy()
    most = min(llm.shape.max_context_tokens, llm.config.cache_tokens)
    if (total > most).any():
        row = int(np.argmax(total > most))
        raise InputError(
            f"requests: row {row}: prompt_tokens and output_tokens are {total[row]}, allowed are {most} "
            f"(the context of {llm.shape.name} and its KV cache)"
        )
