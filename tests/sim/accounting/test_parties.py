"""No two parties share a name, whatever the plans of a scenario are called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.accounting.ledger import MICRO_PER_USD
from sim.accounting.parties import ON_CALL, PLAN_ACCOUNTS, cohort_party, plan_party, read_party
from sim.actuals.tables import revenue_by_plan
from sim.company.simulate import Result
from sim.scenario.plans import plans_of, split_key
from tests.helpers.stages import quiet, run

NAMES = st.text(st.sampled_from("a0/% ,"), min_size=1, max_size=6) | st.text(min_size=1, max_size=6)


@given(NAMES, st.integers(0, 5000))
def test_names_are_read_back(plan: str, cohort: int) -> None:
    assert read_party(cohort_party(plan, cohort)) == (plan, cohort)
    assert read_party(plan_party(plan)) == (plan, None)


def test_usual_names_are_plain() -> None:
    assert cohort_party("business/pro", 7) == "business/pro/007"
    assert plan_party("business/pro") == "business/pro"
    assert plan_party("001") == "001"
    assert plan_party("a/001") == "a/001/"
    assert read_party(ON_CALL) == (None, None) != read_party(plan_party(ON_CALL))


def plan(fee_usd: float, **more: object) -> dict[str, object]:
    """Ten customers who pay a fee and cost a tenth of it to support."""
    base = {
        "monthly_fee_usd": fee_usd,
        "initial_customers": 10,
        "requests_per_month": 0.0,
        "churn_per_month": 0.0,
    }
    return {**base, "support_usd_per_month": fee_usd / 10, **more}


@pytest.fixture(scope="module")
def result() -> Result:
    """Plan `a` of the main segment beside a plan `001` of a segment `a`; a plan that is called as a supplier is."""
    signups = {
        "organic_signups_per_month": 5.0,
        "marketing_usd_per_month": 0.0,
        "word_of_mouth_per_month": 0.0,
    }
    market = quiet().plain()["market"]
    market |= signups | {
        "plans": {"a": plan(100.0, signup_share=0.5), "on-call": plan(7.0, signup_share=0.5)}
    }
    market["segments"] = {"a": {**signups, "plans": {"001": plan(10.0, signup_share=1.0)}}}
    return run(quiet(market=market))


def test_revenue_and_cost_belong_to_the_plan_that_earned_them(result: Result) -> None:
    billed = {name: result.facts.billed[name].sum() for name in ("a", "on-call", "a/001")}
    fees = {name: settings.monthly_fee_usd for name, settings in plans_of(result.scenario.market).items()}
    assert fees == {"a": 100.0, "on-call": 7.0, "a/001": 10.0}
    revenue = revenue_by_plan(result.ledger, result.scenario.horizon_months)
    table = result.unit_economics.set_index("plan")
    for name, customer_months in billed.items():
        assert customer_months > 60  # some joined after the first month
        assert revenue[name].sum() == customer_months * fees[name] * MICRO_PER_USD
        assert table.loc[name, "revenue_usd"] == pytest.approx(customer_months * fees[name])
    support = {name: billed[name] * fees[name] / 10 for name in billed}
    posted = result.ledger.monthly_by_party(["support"], 6)
    assert {
        read_party(name)[0]: -int(amounts.sum()) / MICRO_PER_USD for name, amounts in posted.items()
    } == support


def test_parties_of_plan_accounts_are_plans(result: Result) -> None:
    found = result.ledger.monthly_by_party(sorted(PLAN_ACCOUNTS), 6)
    assert {read_party(name)[0] for name in found} == {"a", "on-call", "a/001"}


def test_a_key_is_looked_up() -> None:
    market = quiet().plain()["market"] | {"plans": {"a/b": plan(1.0, signup_share=1.0)}}
    assert split_key(quiet(market=market).market, "a/b") == ("main", "a/b")
