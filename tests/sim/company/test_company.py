"""The company: invariants, determinism, closed forms, and the direction in which each stage acts."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from sim.company.simulate import Result, simulate
from sim.scenario.plans import is_paying, plans_of
from sim.scenario.scenario import Scenario
from sim.scenario.schema import Market, Training
from sim.stages.market.competition import churn_probability, price_effect, quality_effect
from sim.stages.market.segments import marketed_signups
from sim.stages.training import stage
from sim.utils.paths import scenarios_dir
from tests.helpers.company import OUTPUT_TOKENS, PROMPT_TOKENS, closed_form_surface
from tests.helpers.profile import synthetic_profile

SHIPPED = sorted(path.stem for path in scenarios_dir().glob("*.yaml"))
COLUMNS = [
    "month", "revenue_usd", "revenue_tokens_usd", "revenue_seats_usd", "revenue_services_usd",
    "compute_serving_usd", "compute_training_usd", "data_usd", "support_usd", "payment_fees_usd",
    "cogs_usd", "gross_profit_usd", "gross_margin", "people_usd", "marketing_usd", "opex_usd",
    "net_income_usd", "cash_usd", "net_burn_usd", "runway_months", "mrr_usd", "arr_usd", "customers",
    "customers_free", "new_customers", "churned_customers", "churn_rate", "nrr", "cac_usd", "ltv_usd",
    "ltv_to_cac", "arpu_usd", "requests", "prompt_tokens", "output_tokens", "served_fraction",
    "replicas_mean", "replicas_peak", "utilisation", "ttft_p95_s", "tpot_p95_s",
    "serving_cost_usd_per_mtok", "price_usd_per_mtok", "energy_kwh", "model_version", "model_loss",
    "model_quality", "data_pool_tokens", "feedback_tokens", "training_flop", "reserved_usd",
    "on_demand_usd",
]  # fmt: skip
HEADLINE = [
    "arr_usd_end", "revenue_usd_total", "gross_margin_last12", "gross_margin_total", "cash_usd_min",
    "cash_usd_end", "cash_out_month", "breakeven_month", "customers_end", "serving_cost_usd_per_mtok_last",
    "price_usd_per_mtok_last", "replicas_peak", "utilisation_mean", "ltv_to_cac_last", "releases",
    "compute_share_of_revenue",
]  # fmt: skip

# One plan, billed by the token, nothing random but the draws of customers.
PLAIN: dict[str, Any] = {
    "horizon_months": 6,
    "market": {
        "demand_noise": 0.0,
        "organic_signups_per_month": 0.0,
        "word_of_mouth_per_month": 0.0,
        "marketing_usd_per_month": 0.0,
        "marketing_share_of_revenue": 0.0,
        "competitor_gap_closed_per_year": 0.0,
        "churn_per_unserved": 0.0,
        "churn_per_quality": 0.0,
        "signup_per_quality": 0.0,
        "usage_elasticity": 0.0,
        "signup_elasticity": 0.0,
        "plans": {
            "api": {
                "pays_per_token": True,
                "initial_customers": 100,
                "requests_per_month": 100_000.0,
                "churn_per_month": 0.0,
            }
        },
    },
    "deployment": {"price_decline_per_year": 0.0, "provisioning_delay_h": 0.0},
}


@cache
def base(name: str = "api_startup") -> Scenario:
    return Scenario.load(name)


def run(scenario: Scenario, seed: int | None = None, **surface: float) -> Result:
    return simulate(scenario, seed, synthetic_profile(), surface=closed_form_surface(**surface))


def plain(**changes: Any) -> Scenario:
    return Scenario.parse(PLAIN).override(changes)


@cache
def shipped(name: str) -> Result:
    return run(base(name))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_scenario_tells_its_months(name: str) -> None:
    result = shipped(name)
    assert set(COLUMNS) <= set(result.monthly.columns)
    assert set(HEADLINE) <= set(result.headline)
    assert len(result.monthly) == result.scenario.horizon_months
    assert result.monthly["month"].iloc[[0, 12]].tolist() == ["2026-01", "2027-01"]
    assert result.headline["cash_out_month"] == "never", "a shipped story is funded to its end"
    if not result.scenario.loop.cut:  # that story is what the company loses with its loop
        assert result.headline["breakeven_month"] != "never"
    assert result.monthly["net_income_usd"].iloc[1] < 0, "losses first"
    trains = bool(result.scenario.data.sources)  # a host and a reseller serve what others made
    assert result.headline["releases"] >= 3 if trains else result.headline["releases"] == 0
    assert len(result.daily_fleet) == 24 * len(result.monthly)
    assert set(result.events["stage"]) >= ({"training", "deployment"} if trains else {"deployment"})


@pytest.mark.parametrize("name", SHIPPED)
def test_the_books_tie_out(name: str) -> None:
    result = shipped(name)
    assert result.ledger.trial_balance()["balance_microusd"].sum() == 0
    sheet = result.statements.balance_sheet(exact=True)
    flow = result.statements.cash_flow(exact=True)
    assert (sheet["total_assets"] == sheet["total_liabilities"] + sheet["total_equity"]).all()
    assert (flow["closing_cash"].diff().dropna() == flow["net_cash_flow"].iloc[1:]).all()
    assert flow["closing_cash"].iloc[-1] == result.ledger.balance_micro("cash")
    assert (sheet[["receivable", "payable"]] >= 0).all().all()
    table = result.monthly
    sold = ["tokens", "seats", "commitments", "licences", "shared", "services", "fine_tuning"]
    parts = table[[f"revenue_{what}_usd" for what in sold]].sum(axis=1) - table["sla_credits_usd"]
    np.testing.assert_allclose(parts, table["revenue_usd"])
    causes = ["compute_serving", "compute_fine_tuning", "support", "payment_fees", "partner_share"]
    np.testing.assert_allclose(table[[f"{cause}_usd" for cause in causes]].sum(axis=1), table["cogs_usd"])


@pytest.mark.parametrize("name", SHIPPED)
def test_customers_add_up(name: str) -> None:
    result = shipped(name)
    table = result.monthly
    plans = plans_of(result.scenario.market).values()
    start = sum(plan.initial_customers for plan in plans if is_paying(plan))
    opening = np.concatenate([[start], table["customers"].to_numpy()[:-1]])
    closing = opening + table["new_customers"] - table["churned_customers"]
    assert (closing == table["customers"]).all()
    assert (table[["customers", "customers_free", "churned_customers", "replicas_mean"]] >= 0).all().all()
    assert table["served_fraction"].between(0, 1).all()
    assert table["utilisation"].between(0, 1 / 0.8).all()


def test_the_same_seed_gives_the_same_books() -> None:
    first, again, other = (run(base(), seed) for seed in (7, 7, 8))
    assert first.ledger.content_hash() == again.ledger.content_hash()
    assert first.ledger.content_hash() != other.ledger.content_hash()
    assert run(base()).ledger.content_hash() == run(base(), base().seed).ledger.content_hash()


def test_an_unrelated_change_keeps_the_noise() -> None:
    changed = run(base().override({"finance.other_opex_usd_per_month": 1.0, "training.accelerators": 16}))
    same = ["customers", "new_customers", "model_version"]
    assert (changed.monthly[same] == shipped("api_startup").monthly[same]).all().all()
    assert changed.ledger.content_hash() != shipped("api_startup").ledger.content_hash()


def test_a_shorter_horizon_is_a_prefix() -> None:
    whole = shipped("api_startup").ledger.to_frame()
    short = run(base().override({"horizon_months": 14})).ledger.to_frame()
    assert len(short) < len(whole)
    assert short.equals(whole.iloc[: len(short)])
    assert (whole["month_index"].iloc[len(short) :] >= 14).all()


def test_revenue_and_cost_by_arithmetic() -> None:
    scenario = plain(**{"market.price_usd_per_mtok_prompt": 0.1, "market.price_usd_per_mtok_output": 0.4})
    table = run(scenario).monthly
    requests = 100 * 100_000
    np.testing.assert_allclose(table["requests"], requests)
    revenue = requests * (PROMPT_TOKENS * 0.1 + OUTPUT_TOKENS * 0.4) / 1e6
    np.testing.assert_allclose(table["revenue_usd"], revenue)
    np.testing.assert_allclose(table["mrr_usd"], revenue)
    np.testing.assert_allclose(table["arpu_usd"], revenue / 100)
    np.testing.assert_allclose(table["payment_fees_usd"], 0.029 * revenue + 100 * 0.30)
    # The reserved base is paid always, at the discount; the rest of the mean fleet at the list price.
    reserved = table["replicas_reserved"]
    mean = table["replicas_mean"]
    cost = 730 * 0.0496 * (reserved * 0.7 + (mean - reserved))
    np.testing.assert_allclose(table["compute_serving_usd"], cost, rtol=1e-6)
    assert (table["churned_customers"] == 0).all()
    assert table["nrr"].isna().all()


def test_customers_follow_the_closed_form() -> None:
    # n(t+1) = (n(t) + signups)·(1 − churn); the sum over seeds shrinks the noise of whole customers.
    scenario = plain(
        **{
            "horizon_months": 24,
            "market.organic_signups_per_month": 30.0,
            "market.addressable_customers": 1e12,
            "market.plans.api.churn_per_month": 0.06,
        }
    )
    runs = [run(scenario, seed).monthly["customers"].to_numpy() for seed in range(20)]
    expected, n = [], 100.0
    for _ in range(24):
        n = (n + 30) * 0.94
        expected.append(n)
    np.testing.assert_allclose(np.mean(runs, axis=0), expected, rtol=0.04)


def test_net_retention_shows_expansion() -> None:
    grown = run(
        plain(
            **{
                "horizon_months": 14,
                "market.plans.api.usage_growth_per_month": 0.02,
                "market.plans.api.usage_growth_months": 36,
            }
        )
    ).monthly
    assert grown["nrr"].iloc[-1] == pytest.approx(1.02**12, rel=1e-6)
    assert grown["grr"].iloc[-1] == pytest.approx(1)


def test_a_late_fleet_serves_less_and_slower() -> None:
    tight = {"deployment.headroom": 0.0, "deployment.min_replicas": 1, "deployment.reserved_share": 0.0}
    prompt = run(plain(**tight)).monthly.iloc[0]
    late = run(plain(**tight, **{"deployment.provisioning_delay_h": 2.5})).monthly.iloc[0]
    assert prompt["served_fraction"] == pytest.approx(1)
    assert late["served_fraction"] < 0.999
    assert late["ttft_p95_s"] > prompt["ttft_p95_s"]
    assert late["support_usd"] > prompt["support_usd"]
    assert late["revenue_usd"] < prompt["revenue_usd"]


def test_nobody_served_is_no_division_by_zero() -> None:
    table = run(plain(**{"market.plans.api.initial_customers": 0})).monthly
    assert (table["requests"] == 0).all()
    assert (table["replicas_mean"] == 2).all()
    assert table["gross_margin"].isna().all()
    assert (table["runway_months"].iloc[1:] < math.inf).all()


def test_a_failed_gate_costs_and_releases_nothing() -> None:
    table = run(base().override({"training.min_improvement": 5.0}))
    assert table.headline["releases"] == 0
    assert table.loop["failed_gates"] > 3
    assert table.monthly["compute_training_usd"].sum() > 10_000
    assert (table.monthly["model_version"] == 1).all()


def test_cutting_the_loop_costs_quality() -> None:
    cut = run(base().override({"data.feedback_opt_in": 0.0}))
    assert cut.loop["feedback_tokens"] == 0
    assert cut.loop["quality_end"] < shipped("api_startup").loop["quality_end"]
    assert cut.headline["arr_usd_end"] < shipped("api_startup").headline["arr_usd_end"]


def test_a_training_run_is_billed_by_the_hour() -> None:
    scenario = base().override({"training.accelerators": 1, "training.cadence_months": 2.0})
    result = run(scenario)
    flop = result.monthly["training_flop"].sum()
    hours = flop / (989e12 * 0.40) / 3600
    assert result.monthly["compute_training_usd"].sum() == pytest.approx(hours * 2.95, rel=1e-6)
    # Never more cluster time than there is.
    most = 730 * 989e12 * 0.40 * 3600
    assert (result.monthly["training_flop"] <= most * (1 + 1e-9)).all()


def test_money_that_ends_is_told() -> None:
    result = run(base().override({"finance.initial_cash_usd": 200_000.0}))
    assert str(result.headline["cash_out_month"]).startswith("2026-0")
    assert str(result.headline["cash_out_date"]) <= f"{result.headline['cash_out_month']}-31"
    assert shipped("api_startup").headline["cash_out_date"] == "never"
    assert "cash is used up" in set(result.events["what"])
    assert float(result.headline["cash_usd_min"]) < 0


def test_payment_terms_move_cash_not_profit() -> None:
    fast = run(plain(**{"finance.customer_payment_days": 0.0}))
    slow = run(plain(**{"finance.customer_payment_days": 60.0}))
    np.testing.assert_allclose(slow.monthly["net_income_usd"], fast.monthly["net_income_usd"])
    assert (slow.monthly["cash_usd"] < fast.monthly["cash_usd"]).all()
    gap = (fast.monthly["cash_usd"] - slow.monthly["cash_usd"]).iloc[-1]
    assert gap == pytest.approx(slow.statements.balance_sheet()["receivable"].iloc[-1])


def test_energy_needs_watts() -> None:
    assert run(plain()).monthly["energy_kwh"].isna().all()
    profile = synthetic_profile()
    known = replace(profile, hardware=replace(profile.hardware, idle_w=10.0, load_w=30.0))
    table = simulate(plain(), profile=known, surface=closed_form_surface()).monthly
    replica_kw = table["energy_kwh"] / (table["replicas_mean"] * 730)
    assert replica_kw.between(0.010, 0.030).all()


def test_a_profile_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"'gpt2'.*'smollm2-135m'"):
        simulate(base(), profile=synthetic_profile(model="gpt2"), surface=closed_form_surface())


def test_assumptions_say_where_they_come_from() -> None:
    rows = {row.key: row for row in shipped("api_startup").assumptions}
    assert rows["training.loss_beta"].kind == "sourced"
    assert "Besiroglu" in rows["training.loss_beta"].source
    assert rows["finance.payment_fee_share"].date == "2025"
    assert rows["market.price_usd_per_mtok_output"].kind == "assumed"
    assert rows["capacity.capacity_rps"].kind == "predicted"
    changed = run(base().override({"training.loss_beta": 0.3})).assumptions
    assert {row.key: row for row in changed}["training.loss_beta"].kind == "assumed"


def test_progress_ends_at_one() -> None:
    heard: list[float] = []
    simulate(
        plain(),
        profile=synthetic_profile(),
        surface=closed_form_surface(),
        progress=lambda done, what: heard.append(done),
    )
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


def test_quality_is_monotone_in_the_loss() -> None:
    settings_ = Training()
    losses = [stage.expected_loss(settings_, 1.35e8, tokens) for tokens in (1e9, 1e10, 1e11)]
    qualities = [stage.quality(settings_, loss) for loss in losses]
    assert losses == sorted(losses, reverse=True)
    assert qualities == sorted(qualities)
    assert stage.quality(settings_, settings_.loss_irreducible) == 1


def test_effects_on_demand() -> None:
    assert price_effect(2.0, 1.0, 1.0) == 0.5
    assert price_effect(1.0, 1.0, 3.0) == 1
    assert price_effect(0.0, 1.0, 1.0) > 1
    assert quality_effect(5.0, 0.0) == 1
    settings_ = Market.model_validate(PLAIN["market"]).model_copy(update={"churn_per_quality": 5.0})
    par = churn_probability(settings_, 0.03, 0.0, 1.0, 0.0)
    assert par == pytest.approx(0.03)
    assert churn_probability(settings_, 0.03, 0.1, 1.0, 0.0) < par
    assert churn_probability(settings_, 0.03, 0.0, 2.0, 0.0) > par
    first = marketed_signups(settings_, 1.0)
    assert first == pytest.approx(1 / settings_.signup_cost_usd, rel=1e-4)
    assert marketed_signups(settings_, 1e12) <= settings_.saturation_signups_per_month


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    price=st.floats(0, 50),
    headroom=st.floats(0, 2),
    delay=st.floats(0, 24),
    churn=st.floats(0, 1),
    signups=st.floats(0, 5000),
    opt_in=st.floats(0, 1),
    payment_days=st.floats(0, 120),
    cadence=st.floats(0.1, 20),
)
def test_any_company_keeps_its_books(
    seed: int,
    price: float,
    headroom: float,
    delay: float,
    churn: float,
    signups: float,
    opt_in: float,
    payment_days: float,
    cadence: float,
) -> None:
    scenario = base().override(
        {
            "horizon_months": 7,
            "market.price_usd_per_mtok_output": price,
            "market.plans.developers.churn_per_month": churn,
            "market.organic_signups_per_month": signups,
            "deployment.headroom": headroom,
            "deployment.provisioning_delay_h": delay,
            "data.feedback_opt_in": opt_in,
            "finance.customer_payment_days": payment_days,
            "finance.supplier_payment_days": payment_days / 2,
            "training.cadence_months": cadence,
        }
    )
    result = run(scenario, seed)
    sheet = result.statements.balance_sheet(exact=True)
    flow = result.statements.cash_flow(exact=True)
    assert (sheet["total_assets"] == sheet["total_liabilities"] + sheet["total_equity"]).all()
    assert (flow["closing_cash"] == sheet["cash"]).all()
    assert (sheet[["receivable", "payable"]] >= 0).all().all()
    table = result.monthly
    assert (table[["customers", "customers_free", "new_customers", "churned_customers"]] >= 0).all().all()
    assert (table["replicas_mean"] >= scenario.deployment.min_replicas).all()
    assert (table["requests"] <= table["requests"].max()).all()
    assert table["served_fraction"].between(0, 1).all()
    assert table["model_quality"].between(0, 1).all()
    assert np.isfinite(table["cash_usd"]).all()
