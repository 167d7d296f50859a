"""Segments, plans, contracts and competitors: each against what it must come to by hand."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from engine.errors import InputError
from sim.company.simulate import Result, simulate
from sim.scenario.plans import is_paying, plans_of
from sim.scenario.scenario import Scenario
from sim.scenario.schema import Market, Plan
from sim.stages.market.competition import churn_probability, elsewhere, price_effect
from sim.stages.market.plan_book import blended_price, seats
from tests.helpers.company import OUTPUT_TOKENS, PROMPT_TOKENS, closed_form_surface
from tests.helpers.market import THREE_SEGMENTS
from tests.helpers.profile import synthetic_profile

TOKENS = PROMPT_TOKENS + OUTPUT_TOKENS
STILL: dict[str, Any] = {
    "demand_noise": 0.0,
    "organic_signups_per_month": 0.0,
    "word_of_mouth_per_month": 0.0,
    "marketing_usd_per_month": 0.0,
    "marketing_share_of_revenue": 0.0,
    "churn_per_unserved": 0.0,
    "churn_per_quality": 0.0,
    "signup_per_quality": 0.0,
    "usage_elasticity": 0.0,
    "signup_elasticity": 0.0,
    "addressable_customers": 1e15,
}


def company(plan: dict[str, Any], **more: Any) -> Scenario:
    """One plan of ten customers who never leave, and nothing that moves; `more` are dotted keys."""
    plan = {"initial_customers": 10, "churn_per_month": 0.0} | plan
    values = {
        "horizon_months": 14,
        "market": STILL | {"plans": {"plan": plan}},
        "deployment": {"provisioning_delay_h": 0.0},
        "finance": {"payment_fee_share": 0.0, "payment_fee_usd": 0.0, "initial_cash_usd": 1e7},
    }
    return Scenario.parse(values).override({key.replace("__", "."): value for key, value in more.items()})


def run(scenario: Scenario, seed: int | None = None) -> Result:
    return simulate(scenario, seed, synthetic_profile(), surface=closed_form_surface())


def test_a_flat_market_is_the_main_segment() -> None:
    flat = company({"monthly_fee_usd": 10.0})
    result = run(flat)
    assert result.segments["segment"].unique().tolist() == ["main"]
    assert list(plans_of(flat.market)) == ["plan"]
    assert (result.segments["revenue_usd"] == 100).all()


def test_the_same_keys_make_the_same_segment() -> None:
    """Nothing but names (and luck, which is off here) tells a named segment from the main one."""
    flat = company({"monthly_fee_usd": 10.0, "pays_per_token": True, "requests_per_month": 1e4})
    values = flat.model_dump(exclude={"market"})
    segment = flat.market.model_dump(exclude={"segments", "traffic", "demand_noise"})
    named = Scenario.parse(values | {"market": {"demand_noise": 0.0, "segments": {"b2b": segment}}})
    one, other = run(flat), run(named)
    assert one.monthly.equals(other.monthly)
    assert other.unit_economics["plan"].tolist() == ["b2b/plan"]


def test_segments_add_up() -> None:
    two = company({"monthly_fee_usd": 10.0})
    segment = two.market.model_dump(exclude={"segments", "traffic", "demand_noise"})
    both = run(two.override({"market.segments.b2b": segment}))
    assert (both.monthly["customers"] == 20).all()
    assert (both.monthly["revenue_usd"] == 200).all()
    assert set(both.segments["segment"]) == {"main", "b2b"}


def test_request_size_scales_tokens_and_load() -> None:
    plan = {"pays_per_token": True, "requests_per_month": 1e4}
    one, big = run(company(plan)), run(company(plan, market__request_size=3.0))
    np.testing.assert_allclose(big.monthly["requests"], 3 * one.monthly["requests"])
    np.testing.assert_allclose(big.monthly["revenue_usd"], 3 * one.monthly["revenue_usd"])


def test_cached_prompt_tokens_cost_less() -> None:
    plan = {"pays_per_token": True, "requests_per_month": 1e4}
    half = {"cached_prompt_share": 0.4, "discount": 0.5}
    table = run(company(plan, market__cache_discount=half)).monthly
    expected = 1e5 * (PROMPT_TOKENS * 0.10 * 0.8 + OUTPUT_TOKENS * 0.40) / 1e6
    np.testing.assert_allclose(table["revenue_tokens_usd"], expected, rtol=1e-6)


def test_included_tokens_are_not_billed() -> None:
    plan = {"monthly_fee_usd": 50.0, "pays_per_token": True, "requests_per_month": 1e4}
    usage = 1e4 * TOKENS
    some = run(company(plan | {"included_tokens_per_month": usage / 4})).monthly
    every = run(company(plan | {"included_tokens_per_month": usage * 2})).monthly
    none = run(company(plan)).monthly
    np.testing.assert_allclose(some["revenue_tokens_usd"], 0.75 * none["revenue_tokens_usd"], rtol=1e-6)
    assert (every["revenue_tokens_usd"] == 0).all()
    assert (every["revenue_seats_usd"] == 500).all()


def test_minimums_are_topped_up() -> None:
    plan = {"pays_per_token": True, "requests_per_month": 1e4}
    used = float(run(company(plan)).monthly["revenue_usd"].iloc[0])
    above, below = used / 10 + 100, used / 10 - 1
    table = run(company(plan | {"contract": {"minimum_usd_per_month": above, "renewal_share": 1.0}})).monthly
    np.testing.assert_allclose(table["revenue_usd"], above * 10, rtol=1e-9)
    np.testing.assert_allclose(table["revenue_commitments_usd"], 1000, rtol=1e-6)
    assert (table["mrr_usd"] == table["revenue_usd"]).all()
    table = run(company(plan | {"contract": {"minimum_usd_per_month": below, "renewal_share": 1.0}})).monthly
    assert (table["revenue_commitments_usd"] == 0).all()


def test_prepayment_is_a_liability_until_earned() -> None:
    contract = {"months": 12, "prepaid_months": 12, "renewal_share": 1.0}
    result = run(company({"monthly_fee_usd": 100.0, "contract": contract}))
    table = result.monthly
    assert (table["revenue_usd"] == 1000).all(), "earned month by month"
    deferred = [12_000 - 1000 * (month % 12 + 1) for month in range(14)]
    assert table["deferred_revenue_usd"].tolist() == deferred
    ahead = result.ledger.to_frame().query("memo == 'invoices in advance' and account == 'receivable'")
    assert ahead["month_index"].tolist() == [0, 12]
    assert (table["backlog_usd"] == [12_000 - 1000 * (month % 12 + 1) for month in range(14)]).all()


def test_contracts_end_only_with_their_term() -> None:
    contract = {"months": 6, "renewal_share": 0.0}
    result = run(company({"monthly_fee_usd": 100.0, "contract": contract}))
    assert result.monthly["customers"].tolist() == [10] * 5 + [0] * 9
    told = result.events.query("stage == 'market'")
    assert told[["month_index", "what"]].to_numpy().tolist() == [[5, "contracts of plan: 10 lost"]]
    renewed = run(company({"monthly_fee_usd": 100.0, "contract": {"months": 6, "renewal_share": 1.0}}))
    assert (renewed.monthly["customers"] == 10).all()
    assert "contracts of plan: 10 renewed" in set(renewed.events["what"])


def test_commissions_are_paid_on_what_is_signed() -> None:
    contract = {"months": 24, "commission_share": 0.1, "renewal_share": 1.0}
    plan = {"monthly_fee_usd": 100.0, "contract": contract}
    result = run(company(plan, market__organic_signups_per_month=5.0))
    paid = result.statements.income()["sales_commissions"].to_numpy()
    np.testing.assert_allclose(paid, result.monthly["new_customers"] * 100 * 12 * 0.1)


def test_seats_grow_with_the_customer() -> None:
    plan = {
        "monthly_fee_usd": 10.0,
        "seats": {"per_customer": 4.0, "growth_per_month": 0.1, "growth_months": 6},
    }
    table = run(company(plan)).monthly
    expected = [10 * 10.0 * 4 * 1.1 ** min(month, 6) for month in range(14)]
    np.testing.assert_allclose(table["revenue_seats_usd"], expected, rtol=1e-6)
    assert table["nrr"].iloc[12] == pytest.approx(1.1**6, rel=1e-6)
    assert seats(Plan.model_validate(plan), 3, np.array([1, 3])).tolist() == pytest.approx([4 * 1.1**2, 4])


def test_trials_use_the_fleet_and_pay_nothing() -> None:
    plan = {
        "monthly_fee_usd": 10.0,
        "initial_customers": 0,
        "requests_per_month": 100.0,
        "trial": {"months": 2, "conversion": 0.5},
    }
    result = run(company(plan, market__organic_signups_per_month=2000.0))
    table = result.monthly
    assert table["new_customers"].iloc[:2].tolist() == [0, 0]
    assert (table["revenue_usd"].iloc[:2] == 0).all()
    assert (table["free_tokens"].iloc[:2] > 0).all()
    np.testing.assert_allclose(table["new_customers"].iloc[2:], 1000, rtol=0.15)
    np.testing.assert_allclose(table["trial_customers"].iloc[1:], 4000, rtol=0.1)


def test_on_premise_needs_no_fleet() -> None:
    plan = {"monthly_fee_usd": 5000.0, "on_premise": True, "requests_per_month": 1e6}
    table = run(company(plan)).monthly
    assert (table["requests"] == 0).all()
    assert (table["revenue_licences_usd"] == 50_000).all()
    assert (table["mrr_usd"] == 50_000).all()


def test_revenue_is_shared_both_ways() -> None:
    plan = {"customer_sales_usd_per_month": 20_000.0, "share_of_customer_sales": 0.05, "partner_share": 0.3}
    table = run(company(plan)).monthly
    assert (table["revenue_shared_usd"] == 10_000).all()
    np.testing.assert_allclose(table["partner_share_usd"], 3000)
    assert is_paying(Plan.model_validate(plan))


def test_fine_tuning_is_not_recurring() -> None:
    tuning = {"mtok_per_month": 5.0, "price_usd_per_mtok": 8.0, "cost_usd_per_mtok": 3.0}
    result = run(company({"monthly_fee_usd": 1.0, "fine_tuning": tuning}))
    assert (result.monthly["revenue_fine_tuning_usd"] == 400).all()
    assert (result.monthly["mrr_usd"] == 10).all()
    assert (result.statements.income()["fine_tuning_compute"] == 150).all()


def test_terms_of_a_segment() -> None:
    terms = {
        "customer_payment_days": 30.0,
        "payment_fee_share": 0.02,
        "payment_fee_usd": 1.0,
        "late_share": 0.5,
        "late_days": 45.0,
        "bad_debt_share": 0.1,
        "write_off_days": 60.0,
        "sales_tax_rate": 0.19,
    }
    result = run(company({"monthly_fee_usd": 100.0}, market__terms=terms))
    sheet, income = result.statements.balance_sheet(), result.statements.income()
    assert (income["total_revenue"] == 1000).all(), "tax is nobody's revenue"
    np.testing.assert_allclose(income["payment_fees"], 20 + 10)
    receivable = 1000 - 30 + 190
    np.testing.assert_allclose(income["bad_debt"], 0.1 * receivable)
    assert (sheet["sales_tax_payable"] == 190).all(), "passed on a month later"
    # Open at the end: this month's invoice whole; last month's late half and bad tenth, which wait longer.
    late, bad = 0.45 * receivable, 0.1 * receivable
    by_age = result.ageing.query("account == 'receivable'")
    np.testing.assert_allclose(by_age["not_due_usd"], receivable)
    np.testing.assert_allclose(by_age["overdue_1_to_30_days_usd"].iloc[2:], late + bad)
    np.testing.assert_allclose(sheet["bad_debt_allowance"].iloc[3:], -3 * bad)


def test_sales_people_win_customers_after_their_ramp() -> None:
    more = {
        "market__wins_per_salesperson_per_month": 100.0,
        "finance__people": {
            "reps": {"function": "sales", "headcount": 0.0, "hiring_plan": {"2": 4.0}, "ramp_months": 4.0}
        },
    }
    table = run(company({"monthly_fee_usd": 10.0}, **more)).monthly
    assert table["new_customers"].iloc[:3].tolist() == [0, 0, 0]
    np.testing.assert_allclose(table["new_customers"].iloc[3:6], [100, 200, 300], rtol=0.3)
    np.testing.assert_allclose(table["new_customers"].iloc[6:], 400, rtol=0.2)


def market(**changes: Any) -> Market:
    return Market.model_validate({"plans": {"plan": {"pays_per_token": True}}} | changes)


def test_one_named_competitor_is_the_flat_one() -> None:
    named = market(competitors={"them": {"price_usd_per_mtok": 0.15, "quality": 0.3}})
    for month in (0, 7, 30):
        flat, other = elsewhere(market(), month), elsewhere(named, month)
        assert other.price_usd_per_mtok == pytest.approx(flat.price_usd_per_mtok)
        assert other.quality == pytest.approx(flat.quality)


def test_customers_compare_with_the_better_offer() -> None:
    still = {"price_decline_per_year": 0.0, "gap_closed_per_year": 0.0}
    dear = {"price_usd_per_mtok": 1.0, "quality": 0.3} | still
    cheap = {"price_usd_per_mtok": 0.1, "quality": 0.3, "enters_month": 5} | still
    both = market(competitors={"dear": dear, "cheap": cheap})
    assert elsewhere(both, 4).price_usd_per_mtok == pytest.approx(1.0)
    price = elsewhere(both, 5).price_usd_per_mtok
    # Weights are price^-1: 1 against 10, so the mean of the logarithm lies at 10 / 11 of the way.
    assert price == pytest.approx(0.1 ** (10 / 11))
    war = market(competitors={"dear": dear | {"price_cut_month": 3, "price_cut_share": 0.4}})
    assert elsewhere(war, 3).price_usd_per_mtok == pytest.approx(0.6)
    assert elsewhere(war, 2).price_usd_per_mtok == pytest.approx(1.0)


def test_a_price_war_costs_customers_unless_prices_follow() -> None:
    values = copy.deepcopy(THREE_SEGMENTS)
    values["market"]["segments"] = {"developers": values["market"]["segments"]["developers"]}
    values["finance"]["people"]["sellers"]["sells_to"] = None
    base = Scenario.parse(values)
    key = "market.segments.developers."
    war = {f"{key}competitors.cheap.price_cut_share": 0.9, f"{key}churn_per_price": 1.5}
    stay = run(base.override(war | {f"{key}price_follows_reference": 0.0})).monthly
    follow = run(base.override(war | {f"{key}price_follows_reference": 1.0})).monthly
    assert stay["customers"].iloc[-1] < follow["customers"].iloc[-1]
    assert stay["price_usd_per_mtok"].iloc[-1] > follow["price_usd_per_mtok"].iloc[-1]


def test_prices_that_follow_start_at_the_list() -> None:
    plan = {"pays_per_token": True, "requests_per_month": 1e4}
    rivals = {"them": {"price_usd_per_mtok": 0.6, "price_decline_per_year": 0.5}}
    follow = {"market__competitors": rivals, "market__price_follows_reference": 1.0}
    table = run(company(plan, **follow)).monthly
    expected = run(company(plan)).monthly["revenue_usd"].iloc[0] * 0.5 ** (np.arange(14) / 12)
    np.testing.assert_allclose(table["revenue_usd"], expected, rtol=1e-6)


def test_churn_moves_with_price_and_incidents() -> None:
    plain = market(churn_per_price=2.0, churn_per_incident=0.1)
    par = churn_probability(plain, 0.03, 0.0, 1.0, 0.0)
    assert par == pytest.approx(0.03)
    assert churn_probability(plain, 0.03, 0.0, 1.0, 0.0, price=2.0) == pytest.approx(1 - 0.97**4)
    assert churn_probability(plain, 0.03, 0.0, 1.0, 0.0, incidents=1) == pytest.approx(
        1 - 0.97 * np.exp(-0.1)
    )
    assert price_effect(1.0, 1.0, 2.0) == 1


def test_quality_is_felt_with_a_delay() -> None:
    changes = {
        "market.churn_per_quality": 3.0,
        "market.competitor_gap_closed_per_year": 0.5,
        "market.plans.plan.churn_per_month": 0.02,
        "market.plans.plan.initial_customers": 10**7,
    }

    def churn(memory_months: float) -> np.ndarray:
        scenario = company({"monthly_fee_usd": 1.0}).override(changes)
        table = run(scenario.override({"market.quality_memory_months": memory_months})).monthly
        return table["churn_rate"].to_numpy()

    now, later = churn(0.0), churn(6.0)
    assert now[0] == later[0]
    assert (later[1:] < now[1:]).all(), "competitors get better; who remembers the past leaves later"


def test_blended_price_is_the_mean_request() -> None:
    plain = market(price_usd_per_mtok_prompt=1.0, price_usd_per_mtok_output=3.0)
    assert blended_price(plain, 300.0, 100.0) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("market.plans", {}, ["market.plans: found none", "market.segments"]),
        ("market.segments", {"main": {"plans": {"p": {}}}}, ["market.segments.main", "taken"]),
        ("market.segments", {"b": {}}, ["market.segments.b.plans: found none"]),
        ("market.segments", {"b": {"plans": {"p": {"signup_share": 0.5}}}}, ["market.segments.b.plans", "0.5"]),
        ("market.segments", {"b": {"plans": {"p": {"fee": 1}}}}, ["market.segments.b.plans.p.fee: unknown key"]),
        ("market.plans.plan.trial", {"months": 1}, ["plans.plan.trial", "free plan"]),
        ("market.plans.plan.contract", {"months": 6}, ["plans.plan.contract", "free plan"]),
        (
            "market.plans.plan",
            {"monthly_fee_usd": 1.0, "contract": {"months": 6, "prepaid_months": 4}},
            ["prepaid_months", "divisor of the term of 6"],
        ),
        ("market.plans.plan", {"on_premise": True, "pays_per_token": True}, ["pays_per_token", "on_premise"]),
        ("finance.people", {"a": {"location": "moon"}}, ["finance.people.a.location", "'moon'"]),
        ("finance.people", {"a": {"sells_to": "b"}}, ["finance.people.a.sells_to", "main"]),
        ("finance.people", {"a": {"hiring_plan": {"June": 1.0}}}, ["finance.people.a.hiring_plan", "June"]),
        ("finance.funding", {"a": {"chance_per_month": 2.0}}, ["chance_per_month", "≤ 1"]),
        ("finance.taxes.income_tax_rate", 21, ["income_tax_rate", "found 21"]),
    ],
)  # fmt: skip
def test_contradictions_are_one_line(key: str, value: Any, parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        company({}).override({key: value})
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
