"""Stage 1, data: cases worked out by hand, luck within its bounds, and what never happens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from sim.scenario.schema.data import Data, DataSource, Labelling, Processing, Synthetic
from sim.stages.data.labelling import labels
from sim.stages.data.legal_claims import happened
from sim.stages.data.sources import arrival, distinct, processing_cpu_h, teaches
from sim.stages.data.synthetic_text import room_tokens
from sim.stages.text_pool import Pool
from tests.helpers.company import OUTPUT_TOKENS, PROMPT_TOKENS
from tests.helpers.stages import REQUESTS, close_to_poisson, quiet, run

CRAWL: dict[str, Any] = {
    "tokens_per_month": 1e9,
    "price_usd_per_mtok": 0.5,
    "cleaning_yield": 0.5,
    "duplicate_share": 0.2,
    "quality": 2.0,
}


def test_each_step_reads_what_the_last_one_kept() -> None:
    source = DataSource(tokens_per_month=1000.0, cleaning_yield=0.5, duplicate_share=0.2, filter_yield=0.25)
    month = arrival(source, 0.0)
    assert (month.raw, month.cleaned, month.unique, month.kept) == (1000, 500, 400, 100)
    work = Processing(
        clean_cpu_h_per_gtok=3e6, deduplicate_cpu_h_per_gtok=2e6, filter_cpu_h_per_gtok=1e6, cpu_usd_per_h=1.0
    )
    assert processing_cpu_h(work, month) == pytest.approx(3.0 + 1.0 + 0.4)


def test_a_finite_source_repeats_itself() -> None:
    source = DataSource(tokens_per_month=100.0, cleaning_yield=1.0, duplicate_share=0.0, unique_tokens=200.0)
    kept, drawn = [], 0.0
    for _ in range(40):
        month = arrival(source, drawn)
        kept.append(month.kept)
        drawn += month.kept + month.repeated
    assert kept[0] == pytest.approx(200 * (1 - math.exp(-0.5)))
    assert kept[1] == pytest.approx(200 * (math.exp(-0.5) - math.exp(-1.0)))
    assert (np.diff(kept) < 0).all()
    assert sum(kept) == pytest.approx(distinct(200.0, 4000.0))
    assert sum(kept) < 200


def test_language_and_domain_carry_over() -> None:
    source = DataSource(quality=2.0, language="fr", domain="law")
    assert teaches(Data(), source) == 2.0
    assert teaches(Data(language_transfer={"fr": 0.5}, domain_transfer={"law": 0.25}), source) == 0.25


def test_labellers_by_hand() -> None:
    people = Labelling(
        people=2.0,
        usd_per_hour=30.0,
        hours_per_month=100.0,
        preference_share=0.25,
        pairs_per_hour=10.0,
        demonstrations_per_hour=4.0,
        tokens_per_demonstration=500.0,
        usable_share=0.5,
    )
    month = labels(people)
    assert (month.hours, month.usd, month.tokens, month.pairs) == (
        200,
        6000,
        150 * 4 * 0.5 * 500,
        50 * 10 * 0.5,
    )


def test_text_goes_stale_and_is_taken_away() -> None:
    pool = Pool()
    pool.add("news", 100.0, 200.0)
    pool.add("books", 10.0, 10.0)
    pool.fade("news", 1.0)
    pool.fade("books", None)
    pool.fade("nothing", 1.0)
    assert (pool.tokens, pool.effective_tokens) == (110, 110)
    assert pool.drop("news") == 100
    assert (pool.tokens, pool.effective_tokens) == (10, 10)
    assert pool.drop("news") == 0


def test_a_stale_source_in_a_run() -> None:
    source = {**CRAWL, "half_life_months": 1.0}
    table = run(quiet(data__sources={"news": source}, data__initial_pool_tokens=7e6)).monthly
    expected, held = [], 0.0
    for _ in range(6):
        held = held / 2 + 4e8 * 2
        expected.append(held + 7e6)
    np.testing.assert_allclose(table["data_pool_effective_tokens"], expected)
    np.testing.assert_allclose(table["data_pool_tokens"], 7e6 + 4e8 * np.arange(1, 7))


def test_the_cost_of_data_by_hand() -> None:
    scenario = quiet(
        data__sources={"crawl": {**CRAWL, "licence_usd_per_month": 300.0}},
        data__processing={
            "clean_cpu_h_per_gtok": 10.0,
            "deduplicate_cpu_h_per_gtok": 20.0,
            "filter_cpu_h_per_gtok": 50.0,
            "cpu_usd_per_h": 0.5,
        },
        data__labelling={"people": 1.0, "usd_per_hour": 20.0, "hours_per_month": 100.0},
        data__storage={
            "usd_per_tb_month": 23.0,
            "bytes_per_token": 4.0,
            "raw_kept_share": 1.0,
            "copies": 2.0,
        },
    )
    table = run(scenario).monthly
    processing = (10.0 + 20.0 * 0.5 + 50.0 * 0.4) * 0.5
    labelled = 100 * 0.5 * 4 * 0.9 * 400
    months = np.arange(1, 7)
    stored_tb = (months * (4e8 + labelled) + months * 1e9) * 4 * 2 / 1e12
    np.testing.assert_allclose(table["stored_tb"], stored_tb)
    np.testing.assert_allclose(table["processing_cpu_h"], 40.0)
    np.testing.assert_allclose(table["labelled_tokens"], labelled)
    np.testing.assert_allclose(table["preference_pairs"], 100 * 0.5 * 20 * 0.9)
    expected = 500 + 300 + processing + 2000 + stored_tb * 23
    np.testing.assert_allclose(table["data_usd"], expected, rtol=1e-9)


def test_feedback_counts_each_plan_with_its_own_consent() -> None:
    plans: dict[str, dict[str, Any]] = {
        "free": {
            "requests_per_month": 1000.0,
            "initial_customers": 300,
            "signup_share": 0.5,
            "feedback_opt_in": 1.0,
        },
        "paid": {
            "monthly_fee_usd": 20.0,
            "requests_per_month": 1000.0,
            "initial_customers": 100,
            "signup_share": 0.5,
            "feedback_opt_in": 0.0,
            "churn_per_month": 0.0,
        },
    }
    plans["free"]["churn_per_month"] = 0.0
    table = run(quiet(market__plans=plans, data__feedback_opt_in=0.5)).monthly
    served = 400 * 1000 * (PROMPT_TOKENS + OUTPUT_TOKENS)
    np.testing.assert_allclose(table["opted_in_tokens"], served * 0.75)
    plans["paid"]["feedback_opt_in"] = None
    table = run(quiet(market__plans=plans, data__feedback_opt_in=0.5)).monthly
    np.testing.assert_allclose(table["opted_in_tokens"], served * 0.875)


def test_users_compare_answers() -> None:
    asked = {"data__feedback_opt_in": 0.25, "data__feedback_pairs_per_million_requests": 40.0}
    table = run(quiet(**asked)).monthly
    np.testing.assert_allclose(table["preference_pairs"], REQUESTS * 0.25 * 40e-6)
    assert (run(quiet(**asked, loop__cut=True)).monthly["preference_pairs"] == 0).all()


def test_the_loop_can_be_cut() -> None:
    open_loop = run(quiet(data__feedback_opt_in=0.5)).monthly
    cut = run(quiet(data__feedback_opt_in=0.5, loop__cut=True)).monthly
    served = REQUESTS * (PROMPT_TOKENS + OUTPUT_TOKENS)
    np.testing.assert_allclose(open_loop["feedback_tokens"], served * 0.5 * 0.02)
    assert (cut["feedback_tokens"] == 0).all()
    assert (cut["data_pool_tokens"] == 0).all()


def test_synthetic_text_costs_what_serving_costs() -> None:
    writing = {"tokens_per_month": 1e9, "kept_share": 0.5, "quality": 0.5, "most_pool_share": 1.0}
    rented = run(quiet(data__synthetic={**writing, "uses_idle_fleet": False})).monthly
    hours = 1e9 / (0.5 * OUTPUT_TOKENS * 3600)  # saturation: half a request per second and replica
    np.testing.assert_allclose(rented["synthetic_replica_h"], hours)
    np.testing.assert_allclose(rented["data_usd"], hours * 0.0496, rtol=1e-8)
    np.testing.assert_allclose(rented["data_pool_effective_tokens"], 0.25e9 * np.arange(1, 7))
    # At night the reserved machines write: their cost moves, the company pays nothing more.
    reserved = {"deployment__reserved_share": 1.5}
    without = run(quiet(**reserved)).monthly
    idle = run(quiet(**reserved, data__synthetic=writing)).monthly
    assert (idle["idle_replica_h_used"] > 0).all()
    assert (idle["idle_replica_h_used"] <= idle["replica_h_idle"] * (1 + 1e-12)).all()
    np.testing.assert_allclose(idle["idle_replica_h_used"], hours)
    np.testing.assert_allclose(idle["data_usd"], hours * 0.0496 * 0.7, rtol=1e-8)
    np.testing.assert_allclose(
        idle["data_usd"] + idle["compute_serving_usd"], without["compute_serving_usd"], rtol=1e-9
    )


def test_synthetic_text_stays_below_its_share() -> None:
    assert room_tokens(Synthetic(most_pool_share=0.25), 400.0, 100.0) == 0
    assert room_tokens(Synthetic(most_pool_share=0.5), 400.0, 100.0) == 200
    assert room_tokens(Synthetic(most_pool_share=0.0), 400.0, 0.0) == 0
    scenario = quiet(
        data__sources={"crawl": CRAWL},
        data__synthetic={"tokens_per_month": 1e12, "most_pool_share": 0.2, "quality": 1.0},
    )
    table = run(scenario).monthly
    made = table["synthetic_tokens"].cumsum()
    np.testing.assert_allclose(made / table["data_pool_tokens"], 0.2)


def test_claims_are_poisson_and_their_cost_exponential() -> None:
    source = DataSource(claims_per_year=3.0, claim_usd=1000.0, withdrawals_per_year=1.2)
    luck = np.random.default_rng(1).random((20_000, 3))
    months = [happened(source, row) for row in luck]
    claims = sum(month.claims for month in months)
    assert close_to_poisson(claims, 20_000 * 3 / 12)
    # One month is one claimant's size: the mean over months with claims is the mean claim.
    assert sum(month.claims_usd for month in months) / claims == pytest.approx(1000, rel=0.08)
    withdrawn = sum(month.withdrawn for month in months)
    assert close_to_poisson(withdrawn, 20_000 * -math.expm1(-0.1))


def test_a_withdrawn_source_is_gone() -> None:
    sources = {"press": {**CRAWL, "withdrawals_per_year": 50.0}, "books": CRAWL}
    result = run(quiet(data__sources=sources))
    table = result.monthly
    assert table["sources_withdrawn"].sum() == 1
    # Only the books are left: they came every month.
    assert table["data_pool_tokens"].iloc[-1] == pytest.approx(6 * 4e8)
    assert any("'press' is withdrawn" in what for what in result.events["what"])
    kept = run(
        quiet(data__sources={**sources, "press": {**sources["press"], "withdrawal_deletes": False}})
    ).monthly
    assert kept["data_pool_tokens"].iloc[-1] >= 6 * 4e8


def test_luck_is_shared_between_scenarios() -> None:
    risky = {**CRAWL, "claims_per_year": 12.0, "claim_usd": 5000.0}
    one = run(quiet(horizon_months=24, data__sources={"a": risky}))
    two = run(quiet(horizon_months=24, data__sources={"a": {**risky, "price_usd_per_mtok": 0.0}, "b": CRAWL}))
    assert one.monthly["legal_claims"].sum() > 0
    assert (one.monthly["legal_claims"] == two.monthly["legal_claims"]).all()
    np.testing.assert_allclose(one.statements.income()["legal"], two.statements.income()["legal"])


def test_a_wrong_key_is_one_line() -> None:
    with pytest.raises(InputError, match=r"data.labelling.people: found -1.*people"):
        quiet(data__labelling={"people": -1})
    with pytest.raises(InputError, match=r"data.sources.a.licence: found 'stolen'.*open, bought, crawled"):
        quiet(data__sources={"a": {"licence": "stolen"}})


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.floats(0, 1e13),
    stock=st.one_of(st.none(), st.floats(1, 1e13)),
    half_life=st.one_of(st.none(), st.floats(0.05, 100)),
    withdrawals=st.floats(0, 50),
    synthetic=st.floats(0, 1e12),
    share=st.floats(0, 1),
    opt_in=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_no_pool_is_ever_negative(
    tokens: float,
    stock: float | None,
    half_life: float | None,
    withdrawals: float,
    synthetic: float,
    share: float,
    opt_in: float,
    seed: int,
) -> None:
    scenario = quiet(
        data__sources={
            "a": {
                **CRAWL,
                "tokens_per_month": tokens,
                "unique_tokens": stock,
                "half_life_months": half_life,
                "withdrawals_per_year": withdrawals,
            },
            "b": {**CRAWL, "withdrawals_per_year": withdrawals / 2},
        },
        data__synthetic={"tokens_per_month": synthetic, "most_pool_share": share},
        data__feedback_opt_in=opt_in,
        data__feedback_half_life_months=half_life,
    )
    result = run(scenario, seed)
    table = result.monthly
    columns = ["data_pool_tokens", "data_pool_effective_tokens", "source_tokens_kept", "synthetic_tokens"]
    assert (table[columns] >= 0).all().all()
    assert (table["source_tokens_repeated"] >= -1e-3).all()
    assert (table["idle_replica_h_used"] <= table["replica_h_idle"] * (1 + 1e-12)).all()
    assert result.ledger.trial_balance()["balance_microusd"].sum() == 0
