"""Reference companies: closed forms and plain arithmetic against whole runs."""

from __future__ import annotations

import numpy as np
import pytest

from sim.company.simulate import Result, simulate
from sim.scenario.scenario import Scenario
from sim.utils.paths import scenarios_dir
from tests.helpers.company import OUTPUT_TOKENS, PROMPT_TOKENS, closed_form_surface
from tests.helpers.profile import synthetic_profile


def reference(name: str) -> Result:
    scenario = Scenario.load(scenarios_dir() / "reference" / f"{name}.yaml")
    return simulate(scenario, profile=synthetic_profile(), surface=closed_form_surface())


def test_constant_churn_follows_its_closed_form() -> None:
    result = reference("constant_churn")
    signups, churn, start, fee = 20_000, 0.05, 100_000, 20.0
    t = np.arange(1, 49)
    kept = (1 - churn) ** t
    customers = start * kept + signups * (1 - churn) * (1 - kept) / churn
    billed = np.concatenate([[start], customers[:-1]]) + signups
    table = result.monthly
    np.testing.assert_allclose(table["customers"], customers, rtol=0.004)
    np.testing.assert_allclose(table["mrr_usd"], fee * billed, rtol=0.004)
    np.testing.assert_allclose(table["churn_rate"], churn, rtol=0.03)
    # Fee 20, of which 3 % go to the processor and 4 to support.
    margin = (20 - 0.6 - 4) / 20
    np.testing.assert_allclose(table["gross_margin"], margin, rtol=1e-6)
    np.testing.assert_allclose(table["ltv_usd"].iloc[3:], fee * margin / churn, rtol=0.02)
    unit = result.unit_economics.iloc[0]
    assert unit["ltv_usd"] == pytest.approx(fee * margin / churn, rel=0.02)
    # NRR over 12 months of customers who neither grow nor shrink is their survival.
    np.testing.assert_allclose(table["nrr"].iloc[12:], (1 - churn) ** 12, rtol=0.01)
    np.testing.assert_allclose(table["grr"].iloc[12:], table["nrr"].iloc[12:])
    cohorts = result.cohorts
    one = cohorts[cohorts["cohort"] == table["month"].iloc[5]]
    np.testing.assert_allclose(one["customers_kept"], (1 - churn) ** one["age_months"], rtol=0.05)


def test_paid_per_token_is_exact_by_arithmetic() -> None:
    result = reference("paid_per_token")
    income = result.statements.income(exact=True)
    # All in whole micro-dollars: 10^7 requests of 1,155 prompt and 211 output tokens at 0.10 and 0.40 USD per million.
    prompt, output = int(PROMPT_TOKENS), int(OUTPUT_TOKENS)
    revenue = 10**7 * (prompt * 10 + output * 40) // 100
    serving = 40 * 730 * 2 * 10**6
    fees = revenue * 29 // 1000 + 100 * 300_000
    assert (income["total_revenue"] == revenue).all()
    assert (income["revenue_tokens"] == revenue).all()
    assert (income["serving_on_demand"] == serving).all()
    assert (income["payment_fees"] == fees).all()
    assert (income["total_cogs"] == serving + fees).all()
    table = result.monthly
    np.testing.assert_allclose(table["gross_margin"], (revenue - serving - fees) / revenue, rtol=1e-12)
    np.testing.assert_allclose(table["requests"], 1e7, rtol=1e-12)
    mtok = 10**7 * (prompt + output) / 1e6
    np.testing.assert_allclose(table["price_usd_per_mtok"], revenue / 1e6 / mtok, rtol=1e-12)
    np.testing.assert_allclose(table["serving_cost_usd_per_mtok"], serving / 1e6 / mtok, rtol=1e-12)
    unit = result.unit_economics.iloc[0]
    assert unit["cogs_usd_per_mtok"] == pytest.approx((serving + fees) / 1e6 / mtok)
