"""Questions about the plans of a scenario: which there are, what they are called, which of them pay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.scenario.schema.market import MAIN_SEGMENT

if TYPE_CHECKING:
    from sim.scenario.schema import Market, Plan, Segment


def segments_of(market: Market) -> dict[str, Segment]:
    """All segments by name; the one that the keys of `market` describe comes first when it has plans."""
    own: dict[str, Segment] = {MAIN_SEGMENT: market} if market.plans else {}
    return own | market.segments


def plan_key(segment: str, plan: str) -> str:
    """The name of a plan in ledger and tables; plans of the main segment keep their bare name."""
    return plan if segment == MAIN_SEGMENT else f"{segment}/{plan}"


def plans_of(market: Market) -> dict[str, Plan]:
    """All plans of all segments by their `plan_key`."""
    return {
        plan_key(segment, name): plan
        for segment, settings in segments_of(market).items()
        for name, plan in settings.plans.items()
    }


def split_key(market: Market, key: str) -> tuple[str, str]:
    """(segment, plan in it) of a `plan_key`. Looked up, not taken apart: names may hold a slash."""
    for segment, settings in segments_of(market).items():
        for plan in settings.plans:
            if plan_key(segment, plan) == key:
                return segment, plan
    raise KeyError(key)


def is_paying(plan: Plan) -> bool:
    """Whether customers of the plan pay anything that recurs."""
    return plan.monthly_fee_usd > 0 or plan.pays_per_token or _shares_sales(plan) or _minimum(plan) > 0


def _shares_sales(plan: Plan) -> bool:
    return plan.share_of_customer_sales * plan.customer_sales_usd_per_month > 0


def _minimum(plan: Plan) -> float:
    return plan.contract.minimum_usd_per_month if plan.contract is not None else 0.0
