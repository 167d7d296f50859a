"""What holds in any company: random scenarios of all segments, plans and ways of finance."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.accounting.ledger import MICRO_PER_USD
from sim.company.simulate import Result, simulate
from sim.scenario.fields import leaves, unit_of
from sim.scenario.plans import is_paying, plans_of
from sim.scenario.scenario import Scenario
from tests.helpers.company import closed_form_surface
from tests.helpers.market import THREE_SEGMENTS
from tests.helpers.profile import synthetic_profile

FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FRACTION = st.floats(0, 1)
# Features of the other stages, at their defaults.
OTHER_STAGES = [
    "data.storage", "data.labelling", "data.synthetic",
    "training.reliability", "training.safety", "training.gate",
    "deployment.outages", "deployment.canary", "deployment.spot", "deployment.support", "deployment.shortage",
]  # fmt: skip
FLAT = {"api": {"pays_per_token": True, "requests_per_month": 1000.0, "initial_customers": 20}}


def run(scenario: Scenario, seed: int | None = None) -> Result:
    return simulate(scenario, seed, synthetic_profile(), surface=closed_form_surface())


@st.composite
def companies(draw: st.DrawFn, longest: int = 16) -> Scenario:
    """Some of the three segments, perhaps a flat market beside them, with other numbers in many places."""
    values: dict[str, Any] = copy.deepcopy(THREE_SEGMENTS)
    values["seed"] = draw(st.integers(0, 2**32))
    values["horizon_months"] = draw(st.integers(2, longest))
    values["loop"] = {"cut": draw(st.booleans())}
    segments = values["market"]["segments"]
    for name in draw(st.sets(st.sampled_from(sorted(segments)), max_size=2)):
        del segments[name]
    if draw(st.booleans()):
        values["market"]["plans"] = FLAT
    for segment in segments.values():
        segment["marketing_usd_per_month"] = draw(st.floats(0, 1e5))
        segment["quality_memory_months"] = draw(st.floats(0, 6))
        segment["churn_per_quality"] = draw(st.floats(0, 100))
        segment["terms"] = {
            "customer_payment_days": draw(st.floats(0, 90)),
            "late_share": draw(FRACTION),
            "bad_debt_share": draw(FRACTION),
            "write_off_days": draw(st.floats(0, 90)),
            "sales_tax_rate": draw(FRACTION),
            "payment_fee_usd": draw(st.floats(0, 50)),
        }
        for plan in segment["plans"].values():
            plan["initial_customers"] = draw(st.integers(0, 200))
            plan["churn_per_month"] = draw(FRACTION)
            if "contract" in plan:
                plan["contract"] |= {
                    "months": draw(st.sampled_from([1, 2, 6, 12])),
                    "prepaid_months": draw(st.sampled_from([0, 1])),
                    "renewal_share": draw(FRACTION),
                    "minimum_usd_per_month": draw(st.floats(0, 1e4)),
                }
                if draw(st.booleans()):
                    plan["contract"]["prepaid_months"] = plan["contract"]["months"]
            if "seats" in plan:
                plan["seats"]["growth_per_month"] = draw(st.floats(-0.2, 0.2))
    finance = values["finance"]
    finance["initial_cash_usd"] = draw(st.floats(0, 5e6))
    finance["people"]["sellers"]["sells_to"] = None
    finance["people"]["engineers"]["hiring_plan"] = {
        str(draw(st.integers(0, 12))): draw(st.floats(-20, 20)) for _ in range(3)
    }
    finance["equipment"]["servers"]["life_months"] = draw(st.integers(1, 20))
    finance["leases"]["office"]["term_months"] = draw(st.integers(1, 20))
    finance["leases"]["office"]["payment_usd_per_month"] = draw(st.floats(0, 20_000))
    finance["loans"]["venture"] |= {
        "interest_per_year": draw(st.floats(0, 2)),
        "interest_only_months": draw(st.integers(0, 30)),
        "term_months": draw(st.integers(1, 30)),
    }
    finance["taxes"] = {"income_tax_rate": draw(FRACTION), "loss_offset_limit": draw(FRACTION)}
    on = draw(st.sets(st.sampled_from(OTHER_STAGES), max_size=4))
    return Scenario.parse(values).override({key: {} for key in sorted(on)})


@FEW
@given(companies())
def test_the_books_of_any_company_balance(scenario: Scenario) -> None:
    result = run(scenario)
    lines = result.ledger.to_frame()
    assert (lines.groupby("posting")["amount_microusd"].sum() == 0).all(), (
        "debits equal credits in every posting"
    )
    assert lines["time_h"].is_monotonic_increasing
    sheet = result.statements.balance_sheet(exact=True)
    flow = result.statements.cash_flow(exact=True)
    assert (sheet["total_assets"] == sheet["total_liabilities"] + sheet["total_equity"]).all()
    flows = flow[["operating_cash_flow", "investing_cash_flow", "financing_cash_flow"]].sum(axis=1)
    assert (flow["closing_cash"] == flow["opening_cash"] + flows).all(), "cash equals opening + flows"
    assert (flow["closing_cash"] == sheet["cash"]).all()
    balances = lines.groupby("account")["amount_microusd"].sum()
    for account in result.ledger.accounts:
        assert result.ledger.balance_micro(account) == balances.get(account, 0)


@FEW
@given(companies())
def test_nothing_in_any_company_is_less_than_none(scenario: Scenario) -> None:
    result = run(scenario)
    sheet = result.statements.balance_sheet(exact=True)
    stocks = ["receivable", "deposits", "equipment", "right_of_use"]
    assert (sheet[stocks] >= 0).all().all()
    debts = [
        "payable",
        "sales_tax_payable",
        "income_tax_payable",
        "deferred_revenue",
        "lease_liability",
        "debt",
    ]
    assert (sheet[debts] >= 0).all().all()
    assert (sheet[["bad_debt_allowance", "accumulated_depreciation"]] <= 0).all().all()
    assert (sheet["equipment"] + sheet["accumulated_depreciation"] >= 0).all()
    assert (sheet["receivable"] + sheet["bad_debt_allowance"] >= 0).all()
    assert (sheet["right_of_use"] == sheet["lease_liability"]).all()
    table = result.monthly
    counted = ["customers", "customers_free", "trial_customers", "new_customers", "churned_customers"]
    held = [
        "replicas_mean",
        "replicas_reserved",
        "data_pool_tokens",
        "headcount",
        "backlog_usd",
        "billed_tokens",
    ]
    assert (table[[*counted, *held]] >= 0).all().all()
    assert (result.daily_fleet[["replicas_reserved", "replicas_on_demand"]] >= 0).all().all()
    assert table["served_fraction"].between(0, 1).all()
    # Seconds of cluster time are no more than there are.
    assert (table["cluster_hours"] <= 730 * (1 + 1e-9)).all()
    assert table["utilisation"].between(0, 1 / 0.8 + 1e-9).all()


@FEW
@given(companies())
def test_customers_and_tokens_of_any_company_add_up(scenario: Scenario) -> None:
    result = run(scenario)
    for key, plan in plans_of(scenario.market).items():

        def seen(what: str, key: str = key) -> np.ndarray:
            return result.facts.recorded(key, what)

        opening = np.concatenate([[plan.initial_customers], seen("customers")[:-1]])
        closing = opening + seen("new") - seen("converted") - seen("lost")
        assert (closing == seen("customers")).all(), "opening + new − lost = closing"
        trying = np.cumsum(seen("trials_started") - seen("trials_ended"))
        assert (trying == seen("trials")).all()
        assert (seen("trials_converted") <= seen("trials_ended")).all()
        if is_paying(plan):
            assert (seen("billed") == opening + seen("new")).all()
    table = result.monthly
    served = table["prompt_tokens"] + table["output_tokens"]
    used = table["billed_tokens"] + table["free_tokens"] + table["failed_tokens"]
    np.testing.assert_allclose(used, served, rtol=1e-9, atol=1e-3)
    by_plan = sum(result.facts.recorded(key, "tokens") for key in plans_of(scenario.market))
    np.testing.assert_allclose(by_plan + table["failed_tokens"], served, rtol=1e-9, atol=1e-3)


@FEW
@given(companies())
def test_the_tables_of_any_company_tie_out_to_its_ledger(scenario: Scenario) -> None:
    result = run(scenario)
    sheet = result.statements.balance_sheet(exact=True)
    from sim.company.tables import ageing, unit_economics

    for account, rows in ageing(result.facts, exact=True).groupby("account"):
        assert (rows["total_usd"].to_numpy() == sheet[account].to_numpy()).all()
        buckets = rows.drop(columns=["month", "account", "total_usd"])
        assert (buckets.sum(axis=1) == rows["total_usd"]).all()
    table = result.monthly
    money = {"rtol": 1e-9, "atol": 1e-3}
    units = unit_economics(result.facts, len(table))
    np.testing.assert_allclose(units["revenue_usd"].sum(), table["revenue_usd"].sum(), **money)
    np.testing.assert_allclose(units["cogs_usd"].sum(), table["cogs_usd"].sum(), **money)
    by_month = result.segments.groupby("month", sort=True)
    for column in ("customers", "customers_free", "new_customers", "churned_customers"):
        assert (by_month[column].sum().to_numpy() == table[column].to_numpy()).all()
    np.testing.assert_allclose(by_month["mrr_usd"].sum(), table["mrr_usd"], **money)
    cohorts = (
        result.cohorts.groupby("month", sort=True)["mrr_usd"].sum().reindex(table["month"], fill_value=0.0)
    )
    np.testing.assert_allclose(cohorts, table["mrr_usd"], **money)
    causes = result.cogs_by_cause.groupby("month", sort=True)["cost_usd"].sum()
    np.testing.assert_allclose(causes.reindex(table["month"], fill_value=0.0), table["cogs_usd"], **money)


@FEW
@given(companies(), st.integers(1, 8))
def test_the_seed_decides_and_a_shorter_run_is_a_prefix(scenario: Scenario, shorter: int) -> None:
    whole = run(scenario)
    assert whole.ledger.content_hash() == run(scenario).ledger.content_hash()
    months = max(1, scenario.horizon_months - shorter)
    short = run(scenario.override({"horizon_months": months})).ledger.to_frame()
    lines = whole.ledger.to_frame()
    assert short.equals(lines.iloc[: len(short)])
    assert (lines["month_index"].iloc[len(short) :] >= months).all()


@FEW
@given(companies(longest=10), st.sampled_from([2.0, 4.0, 0.5]))
def test_scaling_all_money_scales_the_statements(scenario: Scenario, factor: float) -> None:
    # Powers of two scale binary floats exactly, so only the rounding to micro-dollars differs: each line of the
    # ledger is off by at most half a micro-dollar here and half of one, scaled, there; what is computed from
    # earlier lines (budgets from revenue, interest from cash) carries that on.
    price = {"deployment.replica_price_usd_per_hour": 0.0496}
    money = {
        key: value * factor
        for key, value, field in leaves(scenario.override(price))
        if unit_of(field).startswith("USD") and isinstance(value, float)
    }
    assert len(money) > 40
    one, many = run(scenario.override(price)), run(scenario.override(money))
    assert (one.monthly["customers"] == many.monthly["customers"]).all()
    bound = len(one.ledger.to_frame()) * (1 + factor)
    for name in ("income", "balance_sheet", "cash_flow"):
        expected = getattr(one.statements, name)(exact=True) * factor
        off = (getattr(many.statements, name)(exact=True) - expected).abs()
        assert off.to_numpy().max() <= bound, name


def test_a_new_segment_changes_nobody_elses_luck() -> None:
    def alone(*names: str) -> Result:
        values = copy.deepcopy(THREE_SEGMENTS)
        segments = values["market"]["segments"]
        values["market"]["segments"] = {name: segments[name] for name in names}
        values["finance"]["people"]["sellers"]["sells_to"] = None
        values["finance"]["people"]["sellers"]["function"] = "general"
        values["loop"] = {"cut": True}
        values["horizon_months"] = 12
        # Quality and service are shared by all: hold them still.
        for segment in values["market"]["segments"].values():
            segment |= {"churn_per_unserved": 0.0, "churn_per_latency": 0.0, "signup_per_latency": 0.0}
        values["training"] = {"min_improvement": 5.0}
        return run(Scenario.parse(values))

    few, more = alone("developers"), alone("consumer", "developers")
    column = few.segments[few.segments["segment"] == "developers"]["customers"].to_numpy()
    same = more.segments[more.segments["segment"] == "developers"]["customers"].to_numpy()
    assert (column == same).all()


def test_micro_dollars_are_what_the_tables_show() -> None:
    result = run(Scenario.parse(THREE_SEGMENTS))
    exact = result.statements.income(exact=True)["net_income"].to_numpy()
    assert result.monthly["net_income_usd"].to_numpy() == pytest.approx(exact / MICRO_PER_USD)
    assert result.ledger.profit_micro() == exact.sum()
