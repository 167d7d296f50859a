"""What to ask a serving engine so that its step times and limits show: the experiments behind an endpoint's profile.

First what decides the rest is found out: the cost of a request on its way, the token budget of a step (riders twice as
long each time, until one is cut into chunks), the limit of running requests (twice as many streams each time, until
some wait). Then bursts over batch sizes, contexts and riders are repeated in random order until the time is spent, so
that a machine that slows down biases no corner of the grid.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from engine.errors import InputError
from engine.loadtest.client import Client
from engine.profile.profile import Measurement
from engine.profiling.endpoint_options import Known, SurveyOptions
from engine.profiling.endpoint_steps import Burst, as_budget, burst, chunk_of, first_token_s
from engine.profiling.grid import BATCHES, GridPoint, is_held_out, measurement
from engine.utils.progress import Progress

SHORT_PROMPT = 16  # tokens, of streams whose context is to be small
_PLAIN_STEPS = 10  # decode steps of a burst in which nothing else runs
_FIRST_RIDER, _LONGEST_RIDER = 128, 16_384  # tokens
_ASSUMED_BUDGET = 512  # until it is known
_LONG_SHARE = 0.1  # of the budget of time, for the prompts of one burst with long contexts
_ROUNDS = 5
_MIN_POINTS = 12


@dataclass(frozen=True)
class SurveyPlan:
    """One burst: so many streams with such prompts, and these riders."""

    streams: int
    prompt_tokens: int
    riders: tuple[int, ...] = ()


@dataclass
class Findings:
    """Measured limits and steps of an engine; times in seconds."""

    overhead_s: float = 0.0  # of a request on its way: all but its steps
    round_trip_s: float = math.nan  # of GET /health
    max_running: int = 1
    max_running_source: str = ""
    step_tokens: int = _ASSUMED_BUDGET
    step_tokens_source: str = ""
    step_tokens_assumed: bool = False  # neither measured nor given
    cache_tokens: int | None = None  # seen to be the limit
    prefix_caching: bool | None = None
    shares_steps: bool = True  # prompts are computed in the steps of the streams beside them
    requests: int = 0
    request_form: str = ""  # in words
    notes: list[str] = field(default_factory=list)
    bursts: list[Burst] = field(default_factory=list)
    alone_s: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))  # TTFT by prompt


class Survey:
    """The experiments on one endpoint."""

    def __init__(
        self, client: Client, longest: int, known: Known, options: SurveyOptions, progress: Progress
    ) -> None:
        """`longest`: longest context, in tokens."""
        self.client, self.longest, self._known, self._options = client, longest, known, options
        self._progress = progress
        self.found = Findings(request_form=client.dialect.describe())
        self._rng = np.random.default_rng(options.seed)
        self._began_s = client.now()

    @property
    def spent(self) -> float:
        """Share of the budget of time that has passed."""
        return (self.client.now() - self._began_s) / self._options.budget_s

    async def run(self) -> Findings:
        """Run all experiments.

        Raises:
            InputError: the server stopped answering.
        """
        await self._overhead()
        await self._step_budget()
        await self._running_limit()
        await self._prefix_caching()
        await self._repeat()
        answers = [stream.answer for seen in self.found.bursts for stream in seen.streams]
        tokens = sum(answer.output_tokens or answer.pieces for answer in answers)
        pieces = sum(answer.pieces for answer in answers)
        if pieces < 0.95 * tokens:
            self.found.notes.append(
                f"{1 - pieces / tokens:.0%} of the tokens came in one piece with others: step times are medians of the "
                "gaps between pieces, and too long if most pieces hold several tokens"
            )
        return self.found

    async def _overhead(self) -> None:
        """The cost of a request on its way: its time to the first token, less the one step that it takes."""
        self._report("a request on its way")
        trips, alone = [], []
        for _ in range(_ROUNDS + 1):
            begun_s = self.client.now()
            await self.client.get("/health")
            trips.append(self.client.now() - begun_s)
            alone.append(await self._alone(1))
        self.found.round_trip_s = float(np.median(trips[1:]))
        steps, _ = (await self._burst(SurveyPlan(1, SHORT_PROMPT))).decode_steps()
        if not len(steps):
            raise InputError(
                f"{self.client.endpoint.url}: the stream of one request shows no gaps between tokens: the server "
                "sends several at once, or ends answers early; its steps can't be told apart"
            )
        self.found.overhead_s = max(0.0, float(np.median(alone[1:])) - float(np.median(steps)))

    async def _step_budget(self) -> None:
        """The token budget of a step, by riders that grow until one is cut into chunks."""
        given = self._known.max_step_tokens
        if given is not None:
            self.found.step_tokens, self.found.step_tokens_source = given, "given by the user"
        length, longest = _FIRST_RIDER, min(_LONGEST_RIDER, self.longest // 2)
        whole, chunk, shared = 0, 0.0, False
        while length <= longest and (self.spent < 0.25 or chunk):
            self._report(f"a prompt of {length} tokens beside a stream")
            seen = await self._burst(SurveyPlan(1, SHORT_PROMPT, (length, length)))
            steps, _ = seen.decode_steps()
            plain_s = float(np.median(steps)) if len(steps) else 0.0
            gaps = [seen.shared_gaps(rider) for rider in seen.riders]
            # A step of 128 tokens and more takes longer than one token, wherever the two share a machine.
            shared = shared or any(max(each, default=0.0) > 1.2 * plain_s for each in gaps)
            chunks = [chunk_of(each, plain_s, length) for each in gaps if each]
            cut = [each for each in chunks if each is not None]
            confirmed = bool(chunk)
            if shared and cut and len(cut) == len(chunks) and given is None:
                chunk = float(np.median(cut))
                self.found.step_tokens = as_budget(chunk + 1)
                self.found.step_tokens_source = (
                    f"measured: a prompt of {length} tokens came in chunks of {chunk:.0f}"
                )
            elif chunks:
                whole, chunk = length, 0.0
            if confirmed and chunk:  # a twice as long prompt is cut as well, and shows the chunk better
                break
            length *= 2
        self.found.shares_steps = shared
        if chunk:
            return
        if given is None:
            self.found.step_tokens = max(_ASSUMED_BUDGET, 2 ** math.ceil(math.log2(whole + 1)))
            self.found.step_tokens_assumed = True
            self.found.step_tokens_source = f"assumed: prompts of up to {whole} tokens came in one step"
        if not shared:
            self.found.notes.append(
                "prompts stretch no gap of the streams beside them: several replicas behind one address, or "
                "prompts computed elsewhere; the token budget and mixed steps can't be seen"
            )

    async def _running_limit(self) -> None:
        """The limit of running requests, by streams that double until some wait for others to end."""
        given = self._known.max_running_requests
        most = min(self._options.max_concurrency, given or self._options.max_concurrency)
        streams, reached = 2, 1
        while True:
            streams = min(streams, most)
            self._report(f"{streams} streams at once")
            budget = self.found.step_tokens
            riders = tuple(sorted({max(1, budget // 8), max(1, budget // 2), max(1, budget - streams)}))
            riders = () if 2 * streams > budget else riders
            seen = await self._burst(SurveyPlan(streams, SHORT_PROMPT, riders))
            refused = seen.refusals()
            running = len(seen.together())
            if refused:
                self.found.notes.append(f"{len(refused)} of {streams} at once: {refused[0].error}")
            if running < streams and given is None:
                again = await self._burst(SurveyPlan(streams, SHORT_PROMPT), more=2)
                running = max(running, len(again.together()))
            if refused or (running < streams and given is None):
                self.found.max_running = max(running, 1)
                what = "the others were refused" if refused else "the others waited"
                self.found.max_running_source = f"measured: {running} of {streams} ran at once, {what}"
                return
            reached = streams
            if streams < most and self.spent > 0.6:
                self.found.notes.append(
                    f"the time was up at {streams} streams at once, before any waited: a longer --budget-s finds the "
                    "limit of running requests, or --max-running-requests gives it"
                )
                break
            if streams == most:
                break
            streams *= 2
        self.found.max_running = given or reached
        self.found.max_running_source = (
            "given by the user" if given else f"assumed: {reached} ran at once, more were not tried"
        )

    async def _prefix_caching(self) -> None:
        """Whether the same prompt is answered sooner the second time."""
        length = max(2, min(self.found.step_tokens, self.longest // 2))
        prompt = self.client.prompt(length, self._rng)
        first, second = [await self.client.stream(prompt, 1) for _ in range(2)]
        self.found.requests += 2
        took_s = [each.first_token_s - each.sent_s - self.found.overhead_s for each in (first, second)]
        if all(each.status == "finished" for each in (first, second)):
            self.found.prefix_caching = bool(second.cached_tokens) or took_s[1] < 0.5 * took_s[0]

    async def _repeat(self) -> None:
        """Bursts over the grid, and prompts alone, in random order until the time is spent."""
        plans: list[SurveyPlan | int] = [*self._grid(), *self._lengths()]
        while self.spent < 1:
            order = self._rng.permutation(len(plans))
            for place in order:
                plan = plans[place]
                if self.spent >= 1:
                    return
                if isinstance(plan, int):
                    self._report(f"prompts of {plan} tokens")
                    await self._alone(plan)
                    continue
                self._report(f"{plan.streams} streams of {plan.prompt_tokens} tokens")
                seen = await self._burst(plan)
                running = len(seen.together())
                if plan.prompt_tokens > SHORT_PROMPT and running < plan.streams:
                    held = running * (plan.prompt_tokens + seen.output_tokens)
                    self.found.cache_tokens = max(held, self.found.cache_tokens or 0)

    def _lengths(self) -> list[int]:
        """Prompts to send alone: those that one step takes whole."""
        most = min(self.found.step_tokens, self.longest // 2)
        return sorted({most, *(size for size in (4, 16, 64, 128, 256, 512, 1024, 2048, 4096) if size < most)})

    def _grid(self) -> list[SurveyPlan]:
        budget, most = self.found.step_tokens, self.found.max_running
        sizes = sorted({most, *(size for size in BATCHES if size < most)})
        plans = []
        for i, size in enumerate(sizes):
            room = max(1, budget - size)
            parts = (1, 4) if i % 2 == 0 else (2, 8)
            riders = tuple(max(1, room // part) for part in parts if room // part < self.longest // 2)
            plans.append(SurveyPlan(size, SHORT_PROMPT, riders if size < most and 2 * size <= budget else ()))
        # Long prompts beside a few streams: their later chunks read what the earlier ones left in the cache.
        deep = [int(min(budget * times, self.longest // 2, _LONGEST_RIDER)) for times in (2, 4)]
        deep = sorted({length for length in deep if length > budget})
        few = sorted({1, max(1, most // 8), max(1, most // 2)})
        plans += [
            SurveyPlan(size, SHORT_PROMPT, tuple(deep))
            for size in few
            if deep and 2 * size <= budget and size < max(most, 2)
        ]
        # How many prompt tokens may be computed for one burst with long contexts.
        rate = [
            length / max(np.median(times), 1e-9)
            for length, times in self.found.alone_s.items()
            if length > 64
        ]
        known = [
            rider.prompt_tokens / (rider.first_s - rider.sent_s)
            for b in self.found.bursts
            for rider in b.riders
        ]
        tokens = _LONG_SHARE * self._options.budget_s * max([*rate, *known], default=1000.0)
        for size in sizes[::2]:
            context = int(min(self.longest // 2, 2048, tokens // size))
            if context >= 4 * SHORT_PROMPT:
                plans.append(SurveyPlan(size, context, (max(1, budget // 4),) if size < most else ()))
        return plans

    async def _alone(self, prompt_tokens: int) -> float:
        took_s = await first_token_s(self.client, prompt_tokens, self._rng)
        self.found.alone_s[prompt_tokens].append(took_s)
        self.found.requests += 1
        return took_s

    async def _burst(self, plan: SurveyPlan, more: int = 1) -> Burst:
        """Run a plan with answers long enough for it; `more` times as long if asked."""
        budget = self.found.step_tokens
        room = max(1, budget - plan.streams)
        fill = -(-plan.streams * plan.prompt_tokens // budget) + 1
        if self.found.step_tokens_assumed:  # the budget may be half of that
            fill *= 2
        ride = sum(-(-length // room) + 5 for length in plan.riders)
        output = min(more * (fill + _PLAIN_STEPS + ride + 4), self.longest - plan.prompt_tokens)
        seen = await burst(self.client, plan.streams, plan.prompt_tokens, output, self._rng, plan.riders)
        self.found.requests += plan.streams + len(seen.riders)
        if len(seen.refusals()) == plan.streams:
            raise InputError(f"{self.client.endpoint.url}: {seen.refusals()[0].error or 'no answer'}")
        self.found.bursts.append(seen)
        return seen

    def _report(self, what: str) -> None:
        self._progress(min(1.0, self.spent), what)


def measurements(found: Findings) -> list[Measurement]:
    """Measured steps: decode steps, steps with a rider's chunk, prompts alone; medians over repeats.

    Raises:
        InputError: too few to fit.
    """
    times: dict[tuple[str, tuple[tuple[int, int], ...], int, int], list[float]] = defaultdict(list)
    contexts: dict[tuple[str, tuple[tuple[int, int], ...], int, int], list[float]] = defaultdict(list)

    def note(
        kind: str, prefill: tuple[tuple[int, int], ...], seen: Burst, context: float, s: Sequence[float]
    ) -> None:
        key = (kind, prefill, len(seen.together()), seen.prompt_tokens)
        times[key].extend(s)
        contexts[key].append(context)

    for seen in found.bursts:
        steps, context = seen.decode_steps()
        if len(steps):
            note("decode", (), seen, context, steps.tolist())
        plain_s = float(np.median(steps)) if len(steps) else math.inf
        room = found.step_tokens - len(seen.together())
        for rider in seen.riders:
            gaps = seen.shared_gaps(rider)
            chunks = [
                (min(room, rider.prompt_tokens - start), start)
                for start in range(0, rider.prompt_tokens, room)
            ]
            # A rider that stretched no gap, or more or fewer gaps than it has chunks, was no part of them.
            if len(gaps) < len(chunks) or max(gaps) < plain_s or not found.shares_steps:
                continue
            for (chunk, start), gap_s in zip(chunks, gaps[-len(chunks) :], strict=True):
                note("mixed", ((chunk, start),), seen, seen.context_at(rider.first_s), [gap_s])
    points = [
        measurement(GridPoint(kind, prefill, (round(float(np.mean(contexts[key]))),) * batch), times[key])
        for key in sorted(times)
        for kind, prefill, batch, _ in [key]
    ]
    for length, took_s in sorted(found.alone_s.items()):
        if 1 < length <= found.step_tokens:  # that of 1 token gave the overhead
            steps_s = [max(each - found.overhead_s, 1e-6) for each in took_s]
            points.append(measurement(GridPoint("prefill", ((length, 0),), ()), steps_s))
    if len(points) < _MIN_POINTS:
        raise InputError(
            f"only {len(points)} different steps were seen, at least {_MIN_POINTS} are needed: --budget-s"
        )
    return [replace(point, held_out=is_held_out(i)) for i, point in enumerate(points)]
