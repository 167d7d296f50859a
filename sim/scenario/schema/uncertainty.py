"""What a study makes of a scenario's distributions: which assumptions move together, and what is aimed at."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sim.scenario.schema.base import Section, quantity


class Correlation(Section):
    """Two uncertain assumptions that move together."""

    between: Annotated[list[str], Field(min_length=2, max_length=2)] = Field(
        description="dotted keys of two uncertain assumptions", json_schema_extra={"unit": "two keys"}
    )
    rank: float = quantity(0.0, "Spearman's rank correlation", "how closely they move together", ge=-1, le=1)


class Uncertainty(Section):
    """Read by `flywheel study` alone."""

    correlations: list[Correlation] = Field(
        default_factory=list,
        description="pairs of uncertain assumptions that move together",
        json_schema_extra={"unit": "pairs", "optional": True},
        max_length=200,
    )
    targets: dict[str, str] = Field(
        default_factory=dict,
        description='what a study aims at: {outcome: condition}, as in cash_usd_min: ">= 0"',
        json_schema_extra={"unit": "condition", "optional": True},
        max_length=50,
    )
