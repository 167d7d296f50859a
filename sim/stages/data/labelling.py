"""People who write answers and compare answers: what a month of them costs and yields.

Demonstrations are text to learn from (Ouyang et al. 2022, arXiv:2203.02155, step 1); comparisons train the
reward of reinforcement (step 2). Throughput is hours × pace × the share that passes the second look.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.scenario.schema.data import Labelling


@dataclass(frozen=True)
class Labels:
    """One month of labelling."""

    hours: float
    usd: float
    tokens: float  # of usable demonstrations
    pairs: float  # usable comparisons


def labels(labelling: Labelling) -> Labels:
    """Hours, cost, demonstrations and comparisons of a month of labelling."""
    hours = labelling.people * labelling.hours_per_month
    comparing = hours * labelling.preference_share
    answers = (hours - comparing) * labelling.demonstrations_per_hour * labelling.usable_share
    return Labels(
        hours=hours,
        usd=hours * labelling.usd_per_hour,
        tokens=answers * labelling.tokens_per_demonstration,
        pairs=comparing * labelling.pairs_per_hour * labelling.usable_share,
    )
