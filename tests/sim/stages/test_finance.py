"""People, assets, leases, funding, debt and taxes: each against what it must come to by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.company.simulate import Result, simulate
from sim.scenario.scenario import Scenario
from sim.scenario.schema import Role, Taxes
from sim.stages.finance.assets import present_value
from sim.stages.finance.people import at_full_strength, headcounts
from sim.stages.finance.taxes import losses_left_micro, tax_micro
from tests.helpers.company import closed_form_surface
from tests.helpers.profile import synthetic_profile


def company(months: int = 12, fee: float = 1000.0, **finance: Any) -> Scenario:
    """Ten customers who pay a fee and never leave; no fleet cost, no marketing, no other cost."""
    market = {
        "organic_signups_per_month": 0.0,
        "word_of_mouth_per_month": 0.0,
        "marketing_usd_per_month": 0.0,
        "marketing_share_of_revenue": 0.0,
        "churn_per_unserved": 0.0,
        "plans": {"plan": {"monthly_fee_usd": fee, "initial_customers": 10, "churn_per_month": 0.0}},
    }
    still = {
        "initial_cash_usd": 1e6,
        "other_opex_usd_per_month": 0.0,
        "payment_fee_share": 0.0,
        "payment_fee_usd": 0.0,
        "supplier_payment_days": 0.0,
    }
    return Scenario.parse(
        {
            "horizon_months": months,
            "market": market,
            "deployment": {"replica_price_usd_per_hour": 0.0},
            "finance": still | finance,
        }
    )


def run(scenario: Scenario, seed: int | None = None) -> Result:
    return simulate(scenario, seed, synthetic_profile(), surface=closed_form_surface())


def test_a_company_without_cost_earns_its_revenue() -> None:
    table = run(company()).monthly
    assert (table["net_income_usd"] == 10_000).all()
    assert (table["free_cash_flow_usd"] == 10_000).all()
    assert table["cash_usd"].iloc[-1] == 1e6 + 120_000


def test_headcount_follows_the_plan() -> None:
    role = Role(headcount=2.0, hires_per_year=12.0, hiring_plan={"2": 3.0, "5": -4.0, "99": 7.0})
    assert headcounts(role, 7).tolist() == [2, 3, 7, 8, 9, 6, 7]
    assert headcounts(Role(headcount=1.0, hiring_plan={"1": -5.0}), 3).tolist() == [1, 0, 0]


def test_new_people_grow_into_their_work() -> None:
    heads = np.array([2.0, 2.0, 4.0, 4.0, 4.0, 1.0])
    assert at_full_strength(heads, 0.0).tolist() == heads.tolist()
    assert at_full_strength(heads, 2.0).tolist() == [2, 2, 2, 3, 4, 1]


def test_people_cost_pay_place_hiring_and_severance() -> None:
    role = {
        "function": "research",
        "headcount": 2.0,
        "cost_usd_per_year": 120_000.0,
        "hiring_plan": {"3": 1.0, "6": -2.0},
        "raise_per_year": 0.1,
        "hiring_cost_usd": 9000.0,
        "severance_months": 3.0,
        "location": "there",
    }
    place = {"cost_factor": 0.5, "office_usd_per_month": 200.0}
    result = run(company(14, people={"r": role}, locations={"there": place}))
    income = result.statements.income()
    heads = [2, 2, 2, 3, 3, 3] + [1] * 8
    pay = [5000.0 * (1.1 if month >= 12 else 1.0) for month in range(14)]
    np.testing.assert_allclose(income["people_research"], np.multiply(heads, pay))
    np.testing.assert_allclose(income["other_opex"], np.multiply(heads, 200.0))
    assert income["recruiting"].to_numpy().nonzero()[0].tolist() == [3]
    assert income["recruiting"].iloc[3] == 9000
    assert income["severance"].iloc[6] == 2 * 3 * 5000
    assert income["severance"].sum() == income["severance"].iloc[6]


def test_support_people_are_cost_of_goods() -> None:
    people = {"s": {"function": "support", "cost_usd_per_year": 12_000.0}}
    table = run(company(people=people)).monthly
    assert (table["cogs_usd"] == 1000).all()
    assert (table["support_usd"] == 1000).all()


def test_equipment_wears_off_in_equal_parts() -> None:
    machine = {
        "month": 2, "units": 2.0, "price_usd": 5000.0, "life_months": 4, "salvage_share": 0.2,
        "use": "serving", "upkeep_usd_per_month": 10.0,
    }  # fmt: skip
    result = run(company(equipment={"rack": machine}))
    income, sheet = result.statements.income(), result.statements.balance_sheet()
    flow = result.statements.cash_flow()
    assert income["depreciation_serving"].tolist() == [0, 0, 2000, 2000, 2000, 2000, *[0] * 6]
    assert income["serving_owned"].tolist() == [0, 0, 20, 20, 20, 20, *[0] * 6]
    net = (sheet["equipment"] + sheet["accumulated_depreciation"]).tolist()
    assert net == [0, 0, 8000, 6000, 4000, 0, *[0] * 6]
    assert flow["investing_cash_flow"].tolist() == [0, 0, -10_000, 0, 0, 2000, *[0] * 6]
    assert (flow["operating_cash_flow"].iloc[2:6] == 10_000 - 20).all()
    table = result.monthly
    assert table["capex_usd"].sum() == 8000
    assert (table["ebitda_usd"].iloc[2:6] == 10_000 - 20).all()


def test_own_machines_need_not_be_rented() -> None:
    rented = company().override({"deployment.replica_price_usd_per_hour": 1.0, "deployment.min_replicas": 4})
    owned = rented.override(
        {"finance.equipment.rack": {"month": 1, "units": 4.0, "capacity": 1.0, "use": "serving"}}
    )
    cost = run(owned).monthly["on_demand_usd"] + run(owned).monthly["reserved_usd"]
    rent = run(rented).monthly["on_demand_usd"] + run(rented).monthly["reserved_usd"]
    assert cost.iloc[0] == rent.iloc[0] > 0
    assert cost.iloc[-1] == 0


def test_a_lease_is_level_and_ends_at_nothing() -> None:
    lease = {
        "month": 1,
        "payment_usd_per_month": 1000.0,
        "term_months": 6,
        "discount_per_year": 0.12,
        "deposit_usd": 500.0,
    }
    result = run(company(10, leases={"office": lease}))
    income, sheet = result.statements.income(), result.statements.balance_sheet()
    assert income["lease_general"].tolist() == [0, *[1000] * 6, 0, 0, 0]
    owed = [present_value(1000.0, left, 0.12) for left in range(5, -1, -1)]
    np.testing.assert_allclose(sheet["lease_liability"], [0, *owed, 0, 0, 0], atol=1e-4)
    assert (sheet["right_of_use"] == sheet["lease_liability"]).all()
    assert sheet["deposits"].tolist() == [0, *[500] * 5, *[0] * 4]
    assert present_value(1000.0, 6, 0.12) == pytest.approx(sum(1000 / 1.01**n for n in range(1, 7)))
    assert present_value(10.0, 3, 0.0) == 30


def test_a_loan_costs_interest_and_is_paid_back() -> None:
    loan = {
        "month": 1,
        "amount_usd": 1200.0,
        "interest_per_year": 0.12,
        "interest_only_months": 2,
        "term_months": 5,
        "fee_share": 0.05,
    }
    result = run(company(8, loans={"bank": loan}))
    sheet, income = result.statements.balance_sheet(), result.statements.income()
    flow = result.statements.cash_flow()
    assert sheet["debt"].tolist() == [0, 1200, 1200, 800, 400, 0, 0, 0]
    assert income["interest_expense"].tolist() == pytest.approx([0, 60 + 12, 12, 12, 8, 4, 0, 0])
    assert flow["financing_cash_flow"].iloc[1:].tolist() == [1200, 0, -400, -400, -400, 0, 0]


def test_cash_earns_interest() -> None:
    income = run(company(cash_interest_per_year=0.12)).statements.income()
    assert income["interest_income"].iloc[0] == pytest.approx(-0.01 * 1_010_000)


def test_rounds_dilute() -> None:
    funding = {
        "seed": {"month": 1, "amount_usd": 2e6, "pre_money_usd": 8e6, "option_pool_share": 0.1},
        "a": {"month": 5, "amount_usd": 5e6, "pre_money_usd": 20e6, "fee_share": 0.02},
    }
    result = run(company(funding=funding))
    table = result.cap_table
    assert table["round"].tolist() == ["seed", "a"]
    assert table["post_money_usd"].tolist() == [10e6, 25e6]
    assert table["investor_share"].tolist() == [0.2, 0.2]
    assert table["founders_share"].tolist() == pytest.approx([0.7, 0.56])
    assert table["staff_share"].tolist() == pytest.approx([0.1, 0.08])
    assert result.headline["founders_share_end"] == pytest.approx(0.56)
    assert result.statements.balance_sheet()["paid_in_capital"].iloc[-1] == 1e6 + 7e6 - 1e5


def test_a_round_waits_until_the_cash_runs_low() -> None:
    # 50,000 a month are burnt from 500,000; the runway at the opening of month m is (500 − 50 m) / 50 months.
    rescue = {"amount_usd": 1e6, "runway_below_months": 6.0}
    poor = {"initial_cash_usd": 5e5, "other_opex_usd_per_month": 60_000.0, "funding": {"rescue": rescue}}
    result = run(company(**poor))
    paid = result.ledger.to_frame().query("memo == 'funding round' and account == 'cash'")
    assert paid["month_index"].tolist() == [5]
    rich = run(company(funding={"rescue": rescue}))
    assert rich.headline["founders_share_end"] == 1
    assert rich.cap_table.empty


def test_a_downturn_delays_a_round() -> None:
    sought = {"amount_usd": 1e6, "chance_per_month": 0.2}
    months = []
    for seed in range(40):
        lines = run(company(24, funding={"a": sought}), seed).ledger.to_frame()
        months += lines.query("memo == 'funding round' and account == 'cash'")["month_index"].tolist()
    # Geometric: (1 − p) / p months of waiting on average.
    assert np.mean(months) == pytest.approx(4, abs=2)
    assert max(months) > 6


def test_income_tax_carries_losses_forward() -> None:
    # Year 1 loses 120,000; year 2 earns 240,000, of which 80 % may be offset: all of the loss is.
    people = {"p": {"cost_usd_per_year": 240_000.0, "hiring_plan": {"12": -1.0}}}
    taxes = {"income_tax_rate": 0.25, "loss_offset_limit": 0.8}
    result = run(company(30, people=people, taxes=taxes))
    income = result.statements.income()
    before = income["income_before_tax"].to_numpy()
    assert before[:12].sum() == -120_000
    assert before[12:24].sum() == 120_000
    # 120,000 less 96,000 of losses is 24,000 of taxable income.
    assert income["income_tax"].iloc[:12].sum() == 0
    assert income["income_tax"].iloc[12:24].sum() == 6000
    # 24,000 of losses are left for the third year.
    assert income["income_tax"].iloc[24:30].sum() == pytest.approx((60_000 - 24_000) * 0.25)
    owed = result.statements.balance_sheet()["income_tax_payable"]
    assert owed.iloc[23] == 6000
    paid = result.ledger.to_frame().query("memo == 'income tax paid' and account == 'cash'")
    assert paid[["month_index", "amount_microusd"]].to_numpy().tolist() == [[27, -6000 * 10**6]]


@given(
    st.lists(st.integers(-(10**15), 10**15), max_size=6),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 10**12),
)
def test_tax_is_bounded_and_no_loss_is_used_twice(
    profits: list[int], rate: float, limit: float, start: int
) -> None:
    taxes = Taxes(income_tax_rate=rate, loss_offset_limit=limit)
    losses, offered, used = start, start, 0
    for profit in profits:
        tax = tax_micro(taxes, profit, losses)
        assert 0 <= tax <= math.ceil(max(0, profit) * rate) + 1
        left = losses_left_micro(taxes, profit, losses)
        assert left >= 0
        offered += max(0, -profit)
        used += max(0, losses - left)
        losses = left
    assert used + losses == offered


def test_bills_wait_for_their_day() -> None:
    # Paid 75 days after the middle of a month: open at the end of that month and of the next.
    result = run(company(4, supplier_payment_days=75.0, other_opex_usd_per_month=100.0))
    rows = result.ageing.query("account == 'payable'")
    assert rows["total_usd"].tolist() == [100, 200, 200, 200]
    assert (rows["not_due_usd"] == rows["total_usd"]).all(), "the company pays its bills when they are due"


def test_rule_of_40_needs_two_years() -> None:
    table = run(company(26)).monthly
    assert table["rule_of_40"].iloc[:23].isna().all()  # month 23 ends the second year: the first to compare
    # No growth, and all of the revenue is free cash flow.
    assert np.isfinite(table["rule_of_40"].iloc[23])
    assert table["rule_of_40"].iloc[25] == pytest.approx(100)
