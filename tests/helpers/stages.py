"""A company where nothing happens but what a test adds: for cases that are worked out by hand."""

from __future__ import annotations

from typing import Any

from engine.profile.profile import Profile
from sim.company.simulate import Result, simulate
from sim.scenario.scenario import Scenario
from tests.helpers.company import closed_form_surface
from tests.helpers.profile import synthetic_profile

QUIET: dict[str, Any] = {
    "horizon_months": 6,
    "data": {"feedback_opt_in": 0.0},
    "training": {"cadence_months": 120.0, "run_noise": 0.0, "evaluation_noise": 0.0},
    "market": {
        "demand_noise": 0.0,
        "organic_signups_per_month": 0.0,
        "word_of_mouth_per_month": 0.0,
        "marketing_usd_per_month": 0.0,
        "marketing_share_of_revenue": 0.0,
        "competitor_gap_closed_per_year": 0.0,
        "churn_per_unserved": 0.0,
        "churn_per_latency": 0.0,
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
REQUESTS = 100 * 100_000.0  # a month


def quiet(**changes: Any) -> Scenario:
    """The quiet company with some values changed; dots are written as two underscores."""
    return Scenario.parse(QUIET).override({key.replace("__", "."): value for key, value in changes.items()})


def run(
    scenario: Scenario, seed: int | None = None, profile: Profile | None = None, **surface: float
) -> Result:
    """Simulate with a made-up profile and a capacity surface in closed form."""
    return simulate(scenario, seed, profile or synthetic_profile(), surface=closed_form_surface(**surface))


def close_to_poisson(count: float, mean: float) -> bool:
    """Whether a count lies within four standard deviations of its Poisson mean: wrong once in 16,000 tests."""
    return abs(count - mean) <= 4 * mean**0.5
