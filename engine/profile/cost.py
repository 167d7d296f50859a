"""What a million tokens cost on a machine paid by the hour, from its step times.

Machine time is allocated by the phase that causes it, so that prompt and output add up to the whole bill:

- full load means the machine never waits: it alternates between steps full of prompt tokens and decode steps
  at the largest batch that is still efficient;
- a prompt token costs the mean step time of prefilling a reference prompt in full chunks, per token;
- an output token costs the time of one decode step of the efficient batch at the reference context, per
  request;
- the efficient batch is the smallest measured one that reaches 95 % of the best decode throughput of the
  batches the scheduler allows: beyond it, requests only wait longer;
- USD per million tokens = seconds per token · price per hour / 3600 · 10⁶.

Typical load: the machine is paid for every hour but loaded, on average, at `typical_load` of the throughput
above, so a token costs 1/typical_load as much. Mixed steps (chunks riding along with decodes) are a little
cheaper than this; the simulator, which runs them, says by how much for a given traffic.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.batch import SchedulerConfig
from engine.profile.step_time import StepTimeModel

TYPICAL_LOAD = 0.4
REFERENCE_PROMPT_TOKENS = 1024
REFERENCE_OUTPUT_TOKENS = 256
EFFICIENT_SHARE = 0.95


@dataclass(frozen=True)
class CostTable:
    """USD per million tokens at full and at typical load, with the assumptions."""

    usd_per_mtok_prompt_full: float
    usd_per_mtok_output_full: float
    usd_per_mtok_prompt_typical: float
    usd_per_mtok_output_typical: float
    typical_load: float  # fraction of full-load throughput
    price_usd_per_hour: float
    efficient_batch: int  # requests decoding together
    reference_prompt_tokens: int
    reference_context_tokens: int  # mean context of a decoding request
    basis: str  # the reference mix, in words


def cost_table(
    times: StepTimeModel,
    price_usd_per_hour: float,
    scheduler: SchedulerConfig,
    max_context_tokens: int,
    typical_load: float = TYPICAL_LOAD,
) -> CostTable:
    """The cost table of a machine with these step times (see the module for the allocation).

    Args:
        times: step-time model in seconds.
        price_usd_per_hour: of the whole machine.
        scheduler: token budget of a step, and most requests decoding together; its KV cache bounds the batch at the
            reference context.
        max_context_tokens: of the model; shortens the reference request if needed.
        typical_load: fraction of full-load throughput, in (0, 1].
    """
    if not 0 < typical_load <= 1:
        raise ValueError(f"typical_load {typical_load}: allowed is a fraction in (0, 1]")
    prompt = max(1, min(REFERENCE_PROMPT_TOKENS, max_context_tokens * 3 // 4))
    context = prompt + min(REFERENCE_OUTPUT_TOKENS, max_context_tokens - prompt) // 2
    prompt_s = _prefill_s(times, prompt, scheduler.max_step_tokens) / prompt
    held = scheduler.cache_tokens // (context + 1)
    most = max(1, min(scheduler.max_running_requests, scheduler.max_step_tokens, held))
    rates = {batch: batch / times.step_time([], [context] * batch) for batch in _batches(most)}
    best = max(rates.values())
    batch = min(size for size, rate in rates.items() if rate >= EFFICIENT_SHARE * best)
    output_s = 1 / rates[batch]
    usd_per_mtok_second = price_usd_per_hour / 3600 * 1e6
    return CostTable(
        usd_per_mtok_prompt_full=prompt_s * usd_per_mtok_second,
        usd_per_mtok_output_full=output_s * usd_per_mtok_second,
        usd_per_mtok_prompt_typical=prompt_s * usd_per_mtok_second / typical_load,
        usd_per_mtok_output_typical=output_s * usd_per_mtok_second / typical_load,
        typical_load=typical_load,
        price_usd_per_hour=price_usd_per_hour,
        efficient_batch=batch,
        reference_prompt_tokens=prompt,
        reference_context_tokens=context,
        basis=(
            f"prompts of {prompt} tokens prefilled in chunks of up to {scheduler.max_step_tokens}; "
            f"{batch} requests decoding together at a mean context of {context} tokens; "
            f"typical load means the machine is paid for all hours and works at {typical_load:.0%} "
            "of that throughput"
        ),
    )


def _prefill_s(times: StepTimeModel, prompt_tokens: int, max_step_tokens: int) -> float:
    """Seconds per prompt at full load: full steps, so short prompts share one and long ones take several."""
    if prompt_tokens <= max_step_tokens:
        together = max_step_tokens // prompt_tokens
        return times.step_time([(prompt_tokens, 0)] * together, []) / together
    whole, rest = divmod(prompt_tokens, max_step_tokens)
    seconds = sum(times.step_time([(max_step_tokens, i * max_step_tokens)], []) for i in range(whole))
    if rest:
        # The rest shares its step with other prompts: it pays its part of a full one.
        seconds += times.step_time([(max_step_tokens, whole * max_step_tokens)], []) * rest / max_step_tokens
    return seconds


def _batches(most: int) -> list[int]:
    """1, 2, 4 … and `most` itself."""
    sizes = [1]
    while sizes[-1] * 2 < most:
        sizes.append(sizes[-1] * 2)
    return sorted({*sizes, most})
