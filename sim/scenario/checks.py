"""Checks across the keys of a scenario: contradictions that no single key shows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sim.scenario.fields import Problem, leaves
from sim.scenario.plans import is_paying, plan_key, segments_of
from sim.scenario.schema.market import MAIN_SEGMENT

if TYPE_CHECKING:
    from sim.scenario.schema import Contract, Finance, Market, Plan, ScenarioFields, Segment


def inconsistency(scenario: ScenarioFields) -> Problem | None:
    """The first contradiction between keys, None when there is none."""
    checks = (
        _market(scenario.market),
        _finance(scenario.finance, scenario.market),
        _training(scenario),
        _sources(scenario),
    )
    return next((problem for check in checks for problem in check), None)


def _training(scenario: ScenarioFields) -> Iterator[Problem]:
    training = scenario.training
    steps, data = training.reinforcement, scenario.data
    no_pairs = data.labelling is None and data.feedback_pairs_per_million_requests == 0
    if steps is not None and steps.half_gain_pairs > 0 and no_pairs:
        yield Problem(
            "training.reinforcement.half_gain_pairs",
            f"found {steps.half_gain_pairs:g} where nobody compares answers",
            "0, a section data.labelling, or data.feedback_pairs_per_million_requests",
        )
    if training.cluster is not None and training.cluster.power_usd_per_kwh > 0 and training.power is None:
        yield Problem(
            "training.cluster.power_usd_per_kwh",
            f"found {training.cluster.power_usd_per_kwh:g} without watts",
            "0, or a section training.power",
        )


def _market(market: Market) -> Iterator[Problem]:
    total = sum(market.traffic.values())
    for name, share in market.traffic.items():
        if share < 0:
            yield Problem(f"market.traffic.{name}", f"found {share:g}", "a share of requests, 0 to 1")
    if abs(total - 1) > 1e-6:
        yield Problem("market.traffic", f"found shares that add up to {total:g}", "1")
    if not market.plans and not market.segments:
        yield Problem("market.plans", "found none", "at least one, here or in a segment of market.segments")
    if MAIN_SEGMENT in market.segments:
        yield Problem(
            f"market.segments.{MAIN_SEGMENT}",
            "this name is taken by the keys of market itself",
            "another",
        )
    taken: set[str] = set()
    for name, segment in segments_of(market).items():
        where = "market" if name == MAIN_SEGMENT else f"market.segments.{name}"
        if not segment.plans:
            yield Problem(f"{where}.plans", "found none", "at least one")
            continue
        yield from _segment(where, segment)
        for plan in segment.plans:
            key = plan_key(name, plan)
            if key in taken:
                yield Problem(
                    f"{where}.plans.{plan}",
                    f"another plan is called {key!r} in the books",
                    "another name",
                )
            taken.add(key)


def _segment(where: str, segment: Segment) -> Iterator[Problem]:
    signups = sum(plan.signup_share for plan in segment.plans.values())
    if abs(signups - 1) > 1e-6:
        yield Problem(f"{where}.plans", f"found signup_share that adds up to {signups:g}", "1")
    paying = [name for name, plan in segment.plans.items() if is_paying(plan)]
    for name, plan in segment.plans.items():
        yield from _conversion(f"{where}.plans.{name}", plan, paying)
        yield from _plan(f"{where}.plans.{name}", plan)


def _conversion(where: str, plan: Plan, paying: list[str]) -> Iterator[Problem]:
    key = f"{where}.converts_to"
    if plan.converts_to is not None:
        if plan.converts_to not in paying:
            yield Problem(key, f"found {plan.converts_to!r}", f"a paying plan ({', '.join(paying)})")
        elif is_paying(plan):
            found = f"found {plan.converts_to!r} on a paying plan"
            yield Problem(key, found, "null (only free users convert)")
    elif plan.conversion_per_month > 0:
        yield Problem(key, "found null with a conversion_per_month above 0", "the name of a paying plan")


def _plan(where: str, plan: Plan) -> Iterator[Problem]:
    if plan.on_premise and plan.pays_per_token:
        yield Problem(f"{where}.pays_per_token", "found true with on_premise", "false (no fleet meters it)")
    if plan.trial is not None and not is_paying(plan):
        yield Problem(f"{where}.trial", "found on a free plan", "null (its users convert by converts_to)")
    if plan.contract is not None:
        yield from _contract(where, plan, plan.contract)


def _contract(where: str, plan: Plan, contract: Contract) -> Iterator[Problem]:
    if not is_paying(plan):
        yield Problem(f"{where}.contract", "found on a free plan", "null")
    if contract.prepaid_months and contract.months % contract.prepaid_months:
        key = f"{where}.contract.prepaid_months"
        yield Problem(
            key,
            f"found {contract.prepaid_months}",
            f"0 or a divisor of the term of {contract.months} months",
        )


def _finance(finance: Finance, market: Market) -> Iterator[Problem]:
    for name, role in finance.people.items():
        where = f"finance.people.{name}"
        if role.location is not None and role.location not in finance.locations:
            yield _not_among(f"{where}.location", role.location, finance.locations, "finance.locations")
        segments = segments_of(market)
        if role.sells_to is not None and role.sells_to not in segments:
            yield _not_among(f"{where}.sells_to", role.sells_to, segments, "segments")


def _not_among(key: str, found: str, names: Iterable[str], what: str) -> Problem:
    known = ", ".join(names) or "there are none"
    return Problem(key, f"found {found!r}", f"null or one of the {what} ({known})")


def _sources(scenario: ScenarioFields) -> Iterator[Problem]:
    known = {key for key, _, _ in leaves(scenario)}
    for key in scenario.sources:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            yield Problem(f"sources.{key}", f"unknown key, nearest is {near[0]}")
