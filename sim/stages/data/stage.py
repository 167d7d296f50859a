"""Stage 1, data: text is bought or crawled, cleaned and deduplicated; users' consented usage flows back.

Models the data team, month by month: old text goes stale, owners and courts have their say, sources bring text
(`data_sources`), people label (`labelling`), the fleet writes (`synthetic`), users give back. A token counts
with its quality (how much it teaches compared with clean in-domain text); besides a source's own end, the
diminishing returns come from the power law of the training stage. Feedback = tokens served × opt-in × yield; a
share of it is labelled by people.
"""

from __future__ import annotations

from simpy.events import ProcessGenerator

from sim.scenario.plans import plans_of
from sim.scenario.schema.data import Labelling
from sim.stages.data import labelling, legal_claims, synthetic_text
from sim.stages.data.sources import arrival, processing_cpu_h, teaches
from sim.stages.payments import buy
from sim.stages.text_pool import FEEDBACK, INITIAL, LABELS
from sim.stages.world import CLOSING_HOUR, OPENING_HOUR, World

_TOKENS_PER_MTOK = 1e6
_BYTES_PER_TB = 1e12


def run(world: World) -> ProcessGenerator:
    """Month by month: buy text at the opening, take in what was made and given back at the close."""
    data = world.scenario.data
    world.pool.add(INITIAL, data.initial_pool_tokens, data.initial_pool_tokens)
    drawn = dict.fromkeys(data.sources, 0.0)  # clean tokens of each source so far, its repeats included
    raw_tokens = 0.0  # that the company ever took in
    withdrawn: set[str] = set()
    for month in range(world.months):
        yield world.until(month, OPENING_HOUR)
        _fade(world)
        uniforms = legal_claims.draw(world)
        for row, (name, source) in enumerate(data.sources.items()):
            if name in withdrawn:
                continue
            if legal_claims.settle(world, name, source, uniforms[row]):
                withdrawn.add(name)
                continue
            raw_tokens += source.tokens_per_month
            drawn[name] += _take_in(world, name, drawn[name])
        yield world.until(month, CLOSING_HOUR)
        if data.labelling is not None:
            _label(world, data.labelling)
        if data.synthetic is not None:
            synthetic_text.write(world, data.synthetic)
        raw_tokens += _feedback(world)
        _store(world, raw_tokens)
        world.record("data_pool_tokens", world.pool.tokens)
        world.record("data_pool_effective_tokens", world.pool.effective_tokens)
        world.record("data_pool_crawled_tokens", _crawled(world))


def opt_in(world: World) -> float:
    """Share of this month's usage that may be learnt from: each plan's own opt-in where it has one."""
    default = world.scenario.data.feedback_opt_in
    own = {name: plan.feedback_opt_in for name, plan in plans_of(world.scenario.market).items()}
    asked = world.requests_by_plan
    total = sum(asked.values())
    if total <= 0 or all(value is None for value in own.values()):
        return default
    consented = 0.0
    for name, requests in asked.items():
        plan_opt_in = own.get(name)
        consented += requests * (default if plan_opt_in is None else plan_opt_in)
    return min(1.0, consented / total)


def _crawled(world: World) -> float:
    """Tokens of the pool from sources that were crawled without a licence."""
    held = world.pool.held
    crawled = (name for name, source in world.scenario.data.sources.items() if source.licence == "crawled")
    return sum(held[name].tokens for name in crawled if name in held)


def _fade(world: World) -> None:
    data, pool = world.scenario.data, world.pool
    for name, source in data.sources.items():
        pool.fade(name, source.half_life_months)
    pool.fade(FEEDBACK, data.feedback_half_life_months)
    if data.labelling is not None:
        pool.fade(LABELS, data.labelling.half_life_months)
    if data.synthetic is not None:
        pool.fade(synthetic_text.SOURCE, data.synthetic.half_life_months)


def _take_in(world: World, name: str, drawn_tokens: float) -> float:
    """Buy, work up and take in one source's month; returns the clean tokens drawn from it."""
    data = world.scenario.data
    source = data.sources[name]
    cost_usd = source.tokens_per_month / _TOKENS_PER_MTOK * source.price_usd_per_mtok
    buy(world, "data", cost_usd, "text bought", name)
    buy(world, "data", source.licence_usd_per_month, "licence", name)
    month = arrival(source, drawn_tokens)
    if data.processing is not None:
        cpu_h = processing_cpu_h(data.processing, month)
        buy(world, "data", cpu_h * data.processing.cpu_usd_per_h, "text cleaned", name)
        world.record("processing_cpu_h", cpu_h)
    world.record("source_tokens", month.raw)
    world.record("source_tokens_kept", month.kept)
    world.record("source_tokens_repeated", month.repeated)
    world.pool.add(name, month.kept, month.kept * teaches(data, source))
    return month.kept + month.repeated


def _label(world: World, people: Labelling) -> None:
    month = labelling.labels(people)
    buy(world, "data", month.usd, "labelling", "labellers")
    world.pool.add(LABELS, month.tokens, month.tokens * people.quality)
    world.pool.preference_pairs += month.pairs
    world.record("labelling_h", month.hours)
    world.record("labelled_tokens", month.tokens)
    world.record("preference_pairs", month.pairs)


def _feedback(world: World) -> float:
    """Take in what consenting users sent this month; returns the tokens kept."""
    data, month = world.scenario.data, world.month
    served = world.records["prompt_tokens"][month] + world.records["output_tokens"][month]
    consent = opt_in(world)
    opted_in = float(served) * consent
    kept, pairs = opted_in * data.feedback_yield, 0.0
    if data.feedback_pairs_per_million_requests > 0:
        requests = world.recorded("requests") * consent
        pairs = requests / 1e6 * data.feedback_pairs_per_million_requests
    if world.scenario.loop.cut:
        kept = pairs = 0.0
    world.pool.preference_pairs += pairs
    world.record("preference_pairs", pairs)
    world.record("opted_in_tokens", opted_in)
    world.record("feedback_tokens", kept)
    world.pool.add(FEEDBACK, kept, kept * data.feedback_quality)
    labelled_usd = kept * data.labelled_share / _TOKENS_PER_MTOK * data.labelling_usd_per_mtok
    buy(world, "data", labelled_usd, "feedback labelled", "labellers")
    return kept


def _store(world: World, raw_tokens: float) -> None:
    """Pay for keeping the pool and the raw text for a month."""
    storage = world.scenario.data.storage
    if storage is None:
        return
    tokens = world.pool.tokens + raw_tokens * storage.raw_kept_share
    terabytes = tokens * storage.bytes_per_token * storage.copies / _BYTES_PER_TB
    buy(world, "data", terabytes * storage.usd_per_tb_month, "storage", "cloud")
    world.record("stored_tb", terabytes)
