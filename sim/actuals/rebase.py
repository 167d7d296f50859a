"""A scenario moved on by some months: what its first month was lies behind, and its clock starts anew.

Everything that a scenario counts from its first month is brought to where it stands after so many months: what rivals
ask and can, how many people work here and what they cost, machines' prices, rounds that are still to come. The model is
as good as the plan said for that month (no meter sees quality), with nothing left in the pool to train on. What was
begun before and can't be begun again (loans, machines bought) is left out, and named.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sim.company.monthly_table import month_labels
from sim.scenario.fields import leaves, unit_of
from sim.scenario.plans import segments_of
from sim.scenario.schema.market import MAIN_SEGMENT
from sim.stages.finance.people import headcounts
from sim.stages.market.competition import competitor_quality, reference_price
from sim.stages.market.plan_book import price_factor
from sim.stages.training import scaling_law

if TYPE_CHECKING:
    from sim.company.simulate import Result
    from sim.scenario.scenario import Scenario
    from sim.scenario.schema import Segment

Changes = dict[str, Any]


def rebased(result: Result, months: int) -> tuple[Changes, list[str]]:
    """({dotted key: value}, what is left out) of a run's scenario after so many of its months.

    Args:
        result: a run of the scenario, at least so many months long.
        months: that lie behind.
    """
    scenario = result.scenario
    changes: Changes = {"start_month": month_labels(scenario.start_month, months + 1)[-1]}
    left_out: list[str] = []
    if months == 0:
        return changes, left_out
    changes |= _market(scenario, months) | _people(scenario, months) | _machines(result, months)
    changes |= _model(result, months)
    plain = scenario.plain()
    finance = plain["finance"]
    changes["finance.funding"] = {
        name: finance["funding"][name] | {"month": one.month - months}
        for name, one in scenario.finance.funding.items()
        if one.month >= months
    }
    for section in ("loans", "equipment", "leases"):
        kept = {}
        for name, known in getattr(scenario.finance, section).items():
            one, behind = finance[section][name], months - known.month
            if behind <= 0:
                kept[name] = one | {"month": -behind}
            elif section == "leases":
                if known.term_months > behind:
                    kept[name] = one | {"month": 0, "term_months": known.term_months - behind}
            else:
                left_out.append(f"finance.{section}.{name}")
        if finance.get(section):
            changes[f"finance.{section}"] = kept
    changes |= _later_months(scenario, months, set(changes))
    return changes, left_out


def _market(scenario: Scenario, months: int) -> Changes:
    years, changes = months / 12, {}
    for name, segment in segments_of(scenario.market).items():
        at = segment_key(name)
        if segment.competitors:
            for rival, one in segment.competitors.items():
                price = one.price_usd_per_mtok * (1 - one.price_decline_per_year) ** years
                quality = 1 - (1 - one.quality) * (1 - one.gap_closed_per_year) ** years
                cut = one.price_cut_month
                if cut is not None and cut < months:
                    price, cut = price * (1 - one.price_cut_share), None
                changes[f"{at}.competitors.{rival}.price_usd_per_mtok"] = price
                changes[f"{at}.competitors.{rival}.quality"] = quality
                changes[f"{at}.competitors.{rival}.enters_month"] = max(0, one.enters_month - months)
                changes[f"{at}.competitors.{rival}.price_cut_month"] = None if cut is None else cut - months
        else:
            changes[f"{at}.reference_price_usd_per_mtok"] = reference_price(segment, years)
            changes[f"{at}.competitor_quality"] = competitor_quality(segment, years)
        if segment.addressable_growth_per_year:
            grown = (1 + segment.addressable_growth_per_year) ** years
            changes[f"{at}.addressable_customers"] = segment.addressable_customers * grown
        if segment.price_follows_reference:
            changes |= _own_prices(segment, at, months)
        for plan_name, plan in segment.plans.items():
            if plan.reference_fee_usd and segment.reference_fee_decline_per_year:
                fee = plan.reference_fee_usd * (1 - segment.reference_fee_decline_per_year) ** years
                changes[f"{at}.plans.{plan_name}.reference_fee_usd"] = fee
    return changes


def _own_prices(segment: Segment, at: str, months: int) -> Changes:
    from sim.stages.market.competition import elsewhere

    factor = price_factor(segment, elsewhere(segment, months).price_usd_per_mtok)
    return {
        f"{at}.price_usd_per_mtok_{side}": getattr(segment, f"price_usd_per_mtok_{side}") * factor
        for side in ("prompt", "output")
    }


def segment_key(name: str) -> str:
    """Dotted key of a segment in a scenario."""
    return "market" if name == MAIN_SEGMENT else f"market.segments.{name}"


def _people(scenario: Scenario, months: int) -> Changes:
    changes: Changes = {}
    for name, role in scenario.finance.people.items():
        at = f"finance.people.{name}"
        changes[f"{at}.headcount"] = float(headcounts(role, months + 1)[-1])
        if role.hiring_plan:
            ahead = {month: people for month, people in role.hiring_plan.items() if int(month) > months}
            changes[f"{at}.hiring_plan"] = {
                str(int(month) - months): people for month, people in ahead.items()
            }
        if role.raise_per_year:
            raised = (1 + role.raise_per_year) ** (months // 12)
            changes[f"{at}.cost_usd_per_year"] = role.cost_usd_per_year * raised
    return changes


def _machines(result: Result, months: int) -> Changes:
    deployment = result.scenario.deployment
    price = deployment.replica_price_usd_per_hour
    if price is None:
        price = result.profile.hardware.price_usd_per_hour
    if not deployment.price_decline_per_year:
        return {}
    cheaper = (1 - deployment.price_decline_per_year) ** (months / 12)
    return {"deployment.replica_price_usd_per_hour": price * cheaper}


def _model(result: Result, months: int) -> Changes:
    """Effective tokens at which the scaling law gives the loss that the plan had then."""
    training = result.scenario.training
    law = scaling_law.law(training)
    loss = float(result.monthly["model_loss"].iloc[months - 1])
    parameters = float(result.profile.model.parameters)
    above = loss - law.E - law.A / parameters**law.alpha
    start = scaling_law.first_version(training, parameters).loss
    if loss >= start or above <= 0:
        return {}
    known = math.exp(math.log(law.B / above) / law.beta)
    return {"training.base_effective_tokens": known, "data.initial_pool_tokens": 0.0}


def _later_months(scenario: Scenario, months: int, done: set[str]) -> Changes:
    """Every other key that names a month of the run; what lay before is there from the start."""
    changes: Changes = {}
    for key, value, field in leaves(scenario):
        is_month = unit_of(field).startswith("month of the run")
        if (
            is_month
            and isinstance(value, int)
            and value
            and not any(key == one or key.startswith(f"{one}.") for one in done)
        ):
            changes[key] = max(0, value - months)
    return changes
