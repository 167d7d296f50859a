"""Stage 1, data: text is bought or crawled, cleaned and deduplicated; users' consented usage flows back.

Models the data team. Kept tokens = raw × cleaning yield × (1 − duplicate share). A token counts with its
quality (how much it teaches compared with clean in-domain text); diminishing returns come from the power law
of the training stage, not from here. Feedback = tokens served × opt-in × yield; a share of it is labelled by
people.
"""

from __future__ import annotations

from simpy.events import ProcessGenerator

from sim.stages.finance import buy
from sim.world import CLOSING_HOUR, OPENING_HOUR, World

_TOKENS_PER_MTOK = 1e6


def run(world: World) -> ProcessGenerator:
    """Month by month: buy text at the opening, take in what users sent at the close."""
    data = world.scenario.data
    world.pool.tokens += data.initial_pool_tokens
    world.pool.effective_tokens += data.initial_pool_tokens
    for month in range(world.months):
        yield world.until(month, OPENING_HOUR)
        for name, source in data.sources.items():
            cost_usd = source.tokens_per_month / _TOKENS_PER_MTOK * source.price_usd_per_mtok
            buy(world, "data", cost_usd, "text bought", name)
            kept = source.tokens_per_month * source.cleaning_yield * (1 - source.duplicate_share)
            world.record("source_tokens", source.tokens_per_month)
            world.record("source_tokens_kept", kept)
            world.pool.tokens += kept
            world.pool.effective_tokens += kept * source.quality
        yield world.until(month, CLOSING_HOUR)
        served = world.records["prompt_tokens"][month] + world.records["output_tokens"][month]
        opted_in = float(served) * data.feedback_opt_in
        kept = opted_in * data.feedback_yield
        world.record("opted_in_tokens", opted_in)
        world.record("feedback_tokens", kept)
        world.pool.tokens += kept
        world.pool.effective_tokens += kept * data.feedback_quality
        labelled_usd = kept * data.labelled_share / _TOKENS_PER_MTOK * data.labelling_usd_per_mtok
        buy(world, "data", labelled_usd, "feedback labelled", "labellers")
        world.record("data_pool_tokens", world.pool.tokens)
