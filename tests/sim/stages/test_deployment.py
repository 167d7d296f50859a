"""Stage 3, deployment: cases worked out by hand, luck within its bounds, and what never happens."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.profile.profile import Quality
from sim.company.simulate import Result, simulate
from sim.scenario.schema import Deployment
from sim.scenario.schema.deployment import Outages, Shortage, Spot
from sim.stages.deployment.fleet_week import SpotMarket, interrupted, serve_week, together
from sim.stages.deployment.machine_market import faster, scarce_months
from sim.stages.deployment.outages import MOST_IN_A_MONTH, UNIFORMS, credit, happened, overlap
from tests.helpers.company import OUTPUT_TOKENS, PROMPT_TOKENS, closed_form_surface
from tests.helpers.profile import synthetic_profile
from tests.helpers.stages import REQUESTS, close_to_poisson, quiet, run

FLAT = np.full(168, 2.0)  # requests per second
NO_OUTAGES: dict[str, Any] = {"per_year": 0.0}


def spread(scenario: Any, seed: int, **surface: float) -> Result:
    return simulate(scenario, seed, synthetic_profile(), surface=closed_form_surface(**surface))


def test_a_flat_week_by_hand() -> None:
    deployment = Deployment(headroom=0.2, min_replicas=2, provisioning_delay_h=0.0)
    spot = Spot(share=0.5, interruptions_per_h=0.0)
    market = SpotMarket(spot, np.zeros(168), 0.0)
    week = serve_week(deployment, closed_form_surface(), FLAT, 1.0, market=market)
    # 2 × 1.2 / 0.4 = 6 replicas: 1 reserved, 5 beyond, 2 of them spot.
    assert set(week.ordered) == {6.0}
    assert set(week.on_demand) == {3.0}
    assert set(week.spot) == {2.0}
    assert week.served_fraction == 1
    np.testing.assert_allclose(week.utilisation, 2 / (6 * 0.4))
    np.testing.assert_allclose(week.busy_fraction, 2 / (6 * 0.5), rtol=1e-3)
    two = together([week, week])
    assert two.ordered[0] == 12
    assert two.ttft_p95_s == pytest.approx(week.ttft_p95_s)
    np.testing.assert_allclose(two.utilisation, week.utilisation)
    assert not week.idle.any()


def test_the_cloud_takes_spot_machines_back() -> None:
    luck = np.random.default_rng(3).random(168)
    market = SpotMarket(Spot(), luck, 0.05)
    taken = interrupted(np.full(168, 40.0), market)
    assert close_to_poisson(taken.sum(), 168 * 2.0)
    assert (interrupted(np.full(168, 1.0), SpotMarket(Spot(), luck, 10.0)) <= 1).all()
    deployment = Deployment(headroom=0.0, min_replicas=1, provisioning_delay_h=0.0)
    hurt = serve_week(
        deployment,
        closed_form_surface(),
        FLAT,
        0.0,
        market=SpotMarket(Spot(share=1.0, recovery_h=1.0), luck, 0.3),
    )
    assert (hurt.missing <= hurt.spot).all()
    assert hurt.served_fraction < 1
    # Nobody is served by machines that are gone: the rest carries at most the overload limit.
    assert (hurt.served_rps <= (hurt.ordered - hurt.missing) * 0.95 * 0.5 + 1e-6).all()


def test_spot_is_cheaper_by_its_discount() -> None:
    mix = {"share": 1.0, "discount": 0.6, "interruptions_per_h": 0.0}
    alone = {"deployment__reserved_share": 0.0, "deployment__min_replicas": 1}
    plain = run(quiet(**alone)).monthly
    cheap = run(quiet(**alone, deployment__spot=mix)).monthly
    np.testing.assert_allclose(cheap["compute_serving_usd"], plain["compute_serving_usd"] * 0.4, rtol=1e-8)
    np.testing.assert_allclose(cheap["replicas_spot_mean"], plain["replicas_on_demand_mean"])
    assert (cheap["on_demand_usd"] == cheap["compute_serving_usd"]).all()


def test_machines_that_were_taken_back_are_not_paid() -> None:
    mix = {"share": 1.0, "discount": 0.0, "interruptions_per_h": 0.5, "recovery_h": 0.5}
    table = run(quiet(deployment__reserved_share=0.0, deployment__spot=mix)).monthly
    paid_h = table["compute_serving_usd"] / 0.0496
    gone_h = table["spot_interruptions"] * 0.5
    np.testing.assert_allclose(paid_h + gone_h, table["replicas_mean"] * 730, rtol=1e-8)
    expected = table["replicas_spot_mean"].sum() * 730 * 0.5
    # The month is its week 4.3 times over, and so is its luck.
    assert abs(table["spot_interruptions"].sum() - expected) < 4 * math.sqrt(expected * 730 / 168)


def test_requests_die_with_their_machine() -> None:
    mix = {"share": 1.0, "interruptions_per_h": 0.5, "recovery_h": 0.0}
    table = run(quiet(deployment__reserved_share=0.0, deployment__spot=mix)).monthly
    in_flight = table["failed_tokens"] / (table["spot_interruptions"] * (PROMPT_TOKENS + OUTPUT_TOKENS / 2))
    # A replica at load x holds x / (1 - x) requests.
    load = table["requests"] / (730 * 3600) / table["replicas_mean"] / 0.5
    np.testing.assert_allclose(in_flight, load / (1 - load), rtol=0.2)
    assert (run(quiet()).monthly["failed_tokens"] == 0).all()


def test_replicas_that_the_company_owns_are_not_rented() -> None:
    owned = {"node": {"units": 2.0, "price_usd": 9000.0, "use": "serving", "capacity": 4.0}}
    alone = {"deployment__reserved_share": 0.0, "deployment__min_replicas": 1}
    rented = run(quiet(**alone)).monthly
    table = run(quiet(**alone, finance__equipment=owned)).monthly
    assert (table["replicas_reserved"] == 8).all()
    assert (table["reserved_usd"] == 0).all()
    hours = table["replicas_on_demand_mean"] * 730
    np.testing.assert_allclose(table["on_demand_usd"], hours * 0.0496, rtol=1e-7)
    assert (table["on_demand_usd"] < rented["on_demand_usd"]).all()


def test_regions_follow_their_own_clock() -> None:
    regions = {
        "east": {"share": 3.0, "price_factor": 1.0, "min_replicas": 1},
        "west": {"share": 1.0, "price_factor": 2.0, "min_replicas": 1, "hours_ahead": -9},
    }
    whole = run(quiet(deployment__min_replicas=1)).monthly
    split = run(quiet(deployment__regions=regions)).monthly
    np.testing.assert_allclose(split["requests"], whole["requests"])
    # Two fleets round up twice, and each has its own smallest size.
    assert (split["replicas_mean"] >= whole["replicas_mean"]).all()
    assert (split["replicas_mean"] <= whole["replicas_mean"] + 2).all()
    # The demand of both peaks at another hour than that of one, and not as high.
    assert split["replicas_peak"].max() <= whole["replicas_peak"].max() + 1
    dear = run(quiet(deployment__regions={"only": {"price_factor": 1.5, "min_replicas": 1}})).monthly
    np.testing.assert_allclose(dear["compute_serving_usd"], whole["compute_serving_usd"] * 1.5, rtol=1e-8)
    alone = run(quiet(deployment__regions={"a": {"min_replicas": 9}, "b": {"min_replicas": 11}})).monthly
    assert (alone["replicas_mean"] >= 20).all()


def test_a_new_machine_is_taken_at_the_renewal() -> None:
    new = {
        "fast": {"month": 2, "speed": 4.0, "price_usd_per_hour": 0.0992},
        "dear": {"month": 0, "speed": 1.0},
    }
    result = run(
        quiet(deployment__generations=new, deployment__reserved_term_months=3, deployment__min_replicas=1)
    )
    table = result.monthly
    assert table["replicas_mean"].iloc[2] == table["replicas_mean"].iloc[0]
    ratio = table["replicas_mean"].iloc[0] / table["replicas_mean"].iloc[3]
    assert 3 < ratio <= 4
    assert any("moves to 'fast'" in what for what in result.events["what"])
    profile = synthetic_profile()
    watts = replace(profile, hardware=replace(profile.hardware, idle_w=10.0, load_w=10.0))
    new["fast"]["power_factor"] = 3.0
    energy = run(
        quiet(deployment__generations=new, deployment__reserved_term_months=3), profile=watts
    ).monthly
    np.testing.assert_allclose(energy["energy_kwh"].iloc[3] / energy["replicas_mean"].iloc[3], 0.73 * 10 * 3)
    assert not any("'dear'" in what for what in result.events["what"])
    np.testing.assert_allclose(table["tpot_p95_s"].iloc[3] / table["tpot_p95_s"].iloc[0], 0.25, rtol=0.15)


def test_a_faster_surface_keeps_its_load() -> None:
    slow = closed_form_surface()
    fast = faster(slow, 2.0)
    assert (fast.capacity_rps, fast.saturation_rps) == (0.8, 1.0)
    a, b = slow.at(0.2), fast.at(0.4)
    assert b["busy_fraction"] == pytest.approx(a["busy_fraction"])
    assert b["ttft_p95_s"] == pytest.approx(a["ttft_p95_s"] / 2)
    assert b["output_tokens_per_s"] == pytest.approx(2 * a["output_tokens_per_s"])
    assert faster(slow, 1.0) is slow


def test_a_smaller_format_is_faster_and_worse() -> None:
    plain = run(quiet()).monthly
    small = run(quiet(deployment__quantisation={"loss_nats": 0.1, "speed": 2.0})).monthly
    np.testing.assert_allclose(small["model_quality"], plain["model_quality"] * math.exp(-0.1))
    np.testing.assert_allclose(small["model_loss"], plain["model_loss"])
    assert (small["replicas_mean"] < plain["replicas_mean"]).all()
    profile = replace(synthetic_profile(), quality=Quality(22.0, 20.0, 699))
    measured = run(quiet(deployment__quantisation={}), profile=profile).monthly
    np.testing.assert_allclose(measured["model_quality"], plain["model_quality"] / 1.1)
    with pytest.raises(InputError, match=r"deployment.quantisation.loss_nats: found null.*allowed: a number"):
        run(quiet(deployment__quantisation={}))


def released(canary: dict[str, Any], seed: int = 0, months: int = 6) -> Result:
    text = {"text": {"tokens_per_month": 1e11, "cleaning_yield": 1.0, "duplicate_share": 0.0}}
    scenario = quiet(
        horizon_months=months,
        data__sources=text,
        training__cadence_months=2.0,
        training__min_improvement=0.0,
        training__experiments_factor=0.0,
        training__replay_tokens=1e9,
        deployment__canary=canary,
    )
    return run(scenario, seed)


def test_the_canary_finds_bad_versions() -> None:
    all_bad = {"bad_share": 1.0, "found_share": 1.0, "rollback_usd": 700.0}
    found = released(all_bad)
    assert found.headline["releases"] == 2
    assert (found.monthly["model_version"] == 1).all()
    assert found.monthly["rollbacks"].sum() == 2
    good = released({"bad_share": 0.0})
    assert good.monthly["rollbacks"].sum() == 0
    assert good.monthly["model_version"].iloc[-1] == 3
    more = found.monthly["support_usd"] - good.monthly["support_usd"]
    np.testing.assert_allclose(more, 700 * found.monthly["rollbacks"], atol=1e-5)


def test_a_bad_version_that_was_missed_hurts_until_it_is_found() -> None:
    missed = released(
        {"bad_share": 1.0, "found_share": 0.0, "found_after_days": 23.0, "bad_quality_drop": 0.2}
    )
    good = released({"bad_share": 0.0})
    assert missed.monthly["model_version"].tolist() == [1, 1, 2, 1, 3, 1]
    drop = good.monthly["model_quality"].iloc[2] - missed.monthly["model_quality"].iloc[2]
    assert drop == pytest.approx(0.2)
    assert missed.monthly["model_quality"].iloc[3] == missed.monthly["model_quality"].iloc[0]


def test_bad_versions_come_at_their_rate() -> None:
    bad = sum(
        released({"bad_share": 0.3, "found_share": 1.0}, seed, 20).monthly["rollbacks"].sum()
        for seed in range(20)
    )
    assert abs(bad - 180 * 0.3) < 4 * math.sqrt(180 * 0.3 * 0.7)


def test_an_outage_by_hand() -> None:
    deployment = Deployment(headroom=0.2, min_replicas=1, provisioning_delay_h=0.0)
    week = serve_week(deployment, closed_form_surface(), FLAT, 0.0)
    outages = Outages(per_year=12.0, mean_h=10.0)
    luck = np.zeros(UNIFORMS)
    luck[0] = 0.3  # one outage, at a mean of one in each region
    luck[1:4] = 0.9, 100.5 / 730, 1 - math.exp(-2.0)  # in the second region, at hour 100.5, for 20 hours
    month = happened(outages, luck, [0.75, 0.25], [week, week])
    assert month.count == 1
    assert month.hours == pytest.approx(20)
    assert month.uptime == pytest.approx(1 - 0.25 * 20 / 730)
    assert month.lost_fraction == pytest.approx(20 / (2 * 730))
    assert month.credit_share == 0.10
    part = happened(outages.model_copy(update={"failover_share": 0.5}), luck, [0.75, 0.25], [week, week])
    assert part.lost_fraction == pytest.approx(10 / (2 * 730))
    assert overlap(0.25, 2.5)[:4].tolist() == [0.75, 1.0, 0.5, 0.0]
    assert overlap(729.5, 800.0).sum() == 0.5


def test_credits_follow_the_steps() -> None:
    outages = Outages()
    assert [credit(outages, uptime) for uptime in (1.0, 0.9999, 0.9998, 0.98, 0.94)] == [0, 0, 0.1, 0.3, 1.0]
    assert credit(Outages(credits={}), 0.5) == 0


def test_outages_lose_requests_and_cost_credits() -> None:
    section = {"per_year": 24.0, "mean_h": 5.0}
    result = run(quiet(horizon_months=60, deployment__outages=section))
    table = result.monthly
    assert close_to_poisson(table["outages"].sum(), 120)
    assert table["outage_h"].sum() == pytest.approx(600, rel=0.4)
    np.testing.assert_allclose(table["uptime"], 1 - table["outage_h"] / 730)
    np.testing.assert_allclose(table["requests"] / REQUESTS, table["served_fraction"])
    hit = table["outages"] > 0
    assert (table["served_fraction"][hit] < 1).all()
    assert (table["served_fraction"][~hit] == 1).all()
    # Hours lost at night weigh less than hours lost at noon; over 60 months the mean is the uptime's.
    assert table["served_fraction"].mean() == pytest.approx(table["uptime"].mean(), abs=0.003)
    usd_per_request = (PROMPT_TOKENS * 0.1 + OUTPUT_TOKENS * 0.4) / 1e6
    billed = table["requests"] - table["failed_tokens"] / (PROMPT_TOKENS + OUTPUT_TOKENS)
    np.testing.assert_allclose(table["revenue_tokens_usd"], billed * usd_per_request, rtol=1e-6)
    given_back = result.statements.income()["sla_credits"]
    np.testing.assert_allclose(-given_back, table["revenue_tokens_usd"] * table["credit_share"], atol=1e-3)
    rare = run(quiet(horizon_months=60, deployment__outages={**section, "per_year": 2.0})).monthly
    assert (rare["outages"] <= table["outages"]).all(), "the same luck"


def test_tickets_by_hand() -> None:
    section = {
        "tickets_per_million_requests": 5.0,
        "tickets_per_thousand_refused": 1.0,
        "usd_per_ticket": 10.0,
    }
    plain = run(quiet()).monthly
    table = run(quiet(deployment__support=section)).monthly
    np.testing.assert_allclose(table["support_tickets"], 50.0)
    np.testing.assert_allclose(table["support_usd"] - plain["support_usd"], 500.0)
    tight = {
        "deployment__headroom": 0.0,
        "deployment__provisioning_delay_h": 3.0,
        "deployment__reserved_share": 0.0,
    }
    late = run(quiet(**tight, deployment__min_replicas=1, deployment__support=section)).monthly
    refused = REQUESTS - late["requests"]
    assert (refused > 0).all()
    np.testing.assert_allclose(late["support_tickets"], late["requests"] * 5e-6 + refused * 1e-3)


def test_a_shortage_raises_the_price_and_the_wait() -> None:
    short = {"start_month": 1, "duration_months": 2, "price_factor": 2.0, "provisioning_factor": 30.0}
    more = {
        "deployment__reserved_share": 0.0,
        "deployment__provisioning_delay_h": 0.1,
        "deployment__headroom": 0.0,
    }
    plain = run(quiet(**more)).monthly
    table = run(quiet(**more, deployment__shortage=short)).monthly
    assert table["scarce"].tolist() == [0, 1, 1, 0, 0, 0]
    ratio = table["compute_serving_usd"] / plain["compute_serving_usd"]
    np.testing.assert_allclose(ratio, [1, 2, 2, 1, 1, 1], rtol=1e-8)
    assert (table["served_fraction"].iloc[1:3] < plain["served_fraction"].iloc[1:3]).all()
    # What was reserved before keeps its price; what is reserved in the shortage is dear until the next renewal.
    bound = {"deployment__reserved_share": 1.0, "deployment__reserved_term_months": 3}
    before = run(quiet(**bound)).monthly["reserved_usd"]
    early = run(quiet(**bound, deployment__shortage=short)).monthly["reserved_usd"]
    np.testing.assert_allclose(early, before)
    late = run(quiet(**bound, deployment__shortage={**short, "start_month": 3})).monthly["reserved_usd"]
    np.testing.assert_allclose(late / before, [1, 1, 1, 2, 2, 2], rtol=1e-8)


def test_shortages_by_chance() -> None:
    shortage = Shortage(events_per_year=2.0, duration_months=1)
    scarce = scarce_months(shortage, np.random.default_rng(5), 12_000)
    assert close_to_poisson(scarce.sum(), 12_000 * -math.expm1(-1 / 6))
    whole = scarce_months(Shortage(start_month=4, duration_months=3), np.random.default_rng(5), 10)
    assert whole.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert scarce_months(shortage, np.random.default_rng(5), 100).tolist() == scarce[:100].tolist()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    spot=st.floats(0, 1),
    interruptions=st.floats(0, 10),
    recovery=st.floats(0, 1),
    reserved=st.floats(0, 3),
    headroom=st.floats(0, 2),
    delay=st.floats(0, 24),
    regions=st.lists(st.tuples(st.floats(0.01, 10), st.integers(-12, 14), st.integers(1, 20)), max_size=4),
    outages=st.floats(0, 200),
    failover=st.floats(0, 1),
    shortages=st.floats(0, 12),
    speed=st.floats(0.1, 20),
)
def test_the_fleet_is_its_parts_and_serves_no_more_than_is_asked(
    seed: int,
    spot: float,
    interruptions: float,
    recovery: float,
    reserved: float,
    headroom: float,
    delay: float,
    regions: list[tuple[float, int, int]],
    outages: float,
    failover: float,
    shortages: float,
    speed: float,
) -> None:
    scenario = quiet(
        market__demand_noise=0.3,
        deployment__spot={"share": spot, "interruptions_per_h": interruptions, "recovery_h": recovery},
        deployment__reserved_share=reserved,
        deployment__reserved_term_months=2,
        deployment__headroom=headroom,
        deployment__provisioning_delay_h=delay,
        deployment__regions={
            f"r{row}": {"share": share, "hours_ahead": ahead, "min_replicas": least}
            for row, (share, ahead, least) in enumerate(regions)
        },
        deployment__outages={"per_year": outages, "mean_h": 20.0, "failover_share": failover},
        deployment__shortage={"events_per_year": shortages, "duration_months": 1},
        deployment__generations={"new": {"month": 3, "speed": speed, "price_usd_per_hour": 0.05}},
    )
    result = run(scenario, seed)
    table, day = result.monthly, result.daily_fleet
    parts = table["replicas_reserved"] + table["replicas_on_demand_mean"] + table["replicas_spot_mean"]
    np.testing.assert_allclose(parts, table["replicas_mean"])
    columns = [
        "replicas_reserved",
        "replicas_on_demand_mean",
        "replicas_spot_mean",
        "replica_h_idle",
        "requests",
    ]
    assert (table[columns] >= 0).all().all()
    assert (day[["replicas_reserved", "replicas_on_demand", "replicas_spot"]] >= 0).all().all()
    assert table["served_fraction"].between(0, 1).all()
    assert table["uptime"].between(0, 1).all()
    assert table["credit_share"].between(0, 1).all()
    assert (table["outages"] <= MOST_IN_A_MONTH).all()
    assert np.isfinite(table[["ttft_p95_s", "tpot_p95_s", "utilisation", "compute_serving_usd"]]).all().all()
    least = sum(size for _, _, size in regions) or 2
    assert (table["replicas_mean"] >= least).all()
    assert result.ledger.trial_balance()["balance_microusd"].sum() == 0
    again = run(scenario, seed)
    assert again.ledger.content_hash() == result.ledger.content_hash()
