"""Reserved machines that demand leaves idle at night: other work may use them before anybody rents more.

The machines are paid anyway. Whoever uses them takes over their cost: the books move it from serving (cost of
goods sold) to the account of the user, so that a token served doesn't carry what training or synthetic text
cost.
"""

from __future__ import annotations

from sim.ledger import micro
from sim.world import World


def use_idle(world: World, hours: float, account: str, memo: str) -> float:
    """Use up to `hours` idle replica-hours of this month; gives how many there were, their cost moved."""
    spare = world.spare
    used = min(max(hours, 0.0), spare.idle_h)
    spare.idle_h -= used
    amount = micro(used * spare.reserved_usd_per_h)
    if amount:
        entries = [(account, amount), ("serving_reserved", -amount)]
        world.ledger.post(world.env.now, memo, entries, "own fleet")
    world.record("idle_replica_h_used", used)
    return used
