"""Text that the served model writes for its successor, on the company's own machines.

One replica at its saturation rate writes `saturation_rps × output tokens per request` tokens a second: the
measured profile and the capacity surface say so, hence the cost is real serving cost. Idle reserved replicas
write first, the rest is rented on demand. The share in the pool is capped: a model that learns mostly from
models forgets what is rare (Shumailov et al. 2024, "AI models collapse when trained on recursively generated
data", Nature 631).
"""

from __future__ import annotations

from sim.scenario.schema.data import Synthetic
from sim.stages.payments import buy
from sim.stages.world import World, use_idle

SOURCE = "(synthetic)"  # its holding in the pool


def room_tokens(synthetic: Synthetic, pool_tokens: float, held_tokens: float) -> float:
    """Kept synthetic tokens that may still come in before they are more than their share of the pool."""
    if synthetic.most_pool_share >= 1:
        return float("inf")
    others = pool_tokens - held_tokens
    return max(0.0, others * synthetic.most_pool_share / (1 - synthetic.most_pool_share) - held_tokens)


def write(world: World, synthetic: Synthetic) -> None:
    """Write, select and take in this month's synthetic text, and pay for the machines."""
    held = world.pool.held.get(SOURCE)
    room = room_tokens(synthetic, world.pool.tokens, held.tokens if held else 0.0)
    written = synthetic.tokens_per_month
    if synthetic.kept_share > 0:
        written = min(written, room / synthetic.kept_share)
    hours = written / world.spare.output_tokens_per_h
    idle = use_idle(world, hours, "data", "synthetic text, idle fleet") if synthetic.uses_idle_fleet else 0.0
    rented = hours - idle
    buy(
        world, "data", rented * world.spare.on_demand_usd_per_h, "synthetic text, on-demand replicas", "cloud"
    )
    kept = written * synthetic.kept_share
    world.pool.add(SOURCE, kept, kept * synthetic.quality)
    world.record("synthetic_tokens", kept)
    world.record("synthetic_replica_h", hours)
