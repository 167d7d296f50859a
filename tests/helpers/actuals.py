"""A company whose truth is known: drawn month by month, and written into a usage database as the meter would."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert

from engine.usage.api_keys import ApiKeys
from engine.usage.database import KEYS, REQUESTS, month_bounds_s, open_database
from sim.company.monthly_table import month_labels
from sim.scenario.scenario import Scenario
from sim.workload.traffic_classes import TRAFFIC_CLASSES, lognormal_sigma
from tests.sim.stages.test_market import STILL

START = "2026-01"
NOW_S = month_bounds_s("2027-06")[0]


@dataclass(frozen=True)
class Truth:
    """What the drawn company does; rates are per customer and month."""

    months: int = 6
    free: int = 30
    paid: int = 30
    signups_free: float = 6.0
    signups_paid: float = 3.0
    churn_free: float = 0.15
    churn_paid: float = 0.06
    conversion: float = 0.08
    requests_free: float = 12.0
    requests_paid: float = 40.0
    spread: float = 0.5  # standard deviation of the logarithm of a customer's usage
    growth: float = 0.0
    cached: float = 0.3
    cost_micro_usd: int = 40
    traffic: dict[str, float] = field(default_factory=lambda: {"chat": 1.0})


def plan_of(truth: Truth, **changes: Any) -> Scenario:
    """A plan that believes the truth, but for `changes` (dotted keys with __ for dots)."""
    free = {
        "signup_share": truth.signups_free / (truth.signups_free + truth.signups_paid),
        "initial_customers": truth.free,
        "requests_per_month": truth.requests_free,
        "churn_per_month": truth.churn_free,
        "converts_to": "paid",
        "conversion_per_month": truth.conversion,
    }
    paid = {
        "signup_share": truth.signups_paid / (truth.signups_free + truth.signups_paid),
        "initial_customers": truth.paid,
        "requests_per_month": truth.requests_paid,
        "churn_per_month": truth.churn_paid,
        "pays_per_token": True,
    }
    market = STILL | {
        "organic_signups_per_month": truth.signups_free + truth.signups_paid,
        "price_usd_per_mtok_prompt": 1000.0,
        "price_usd_per_mtok_output": 4000.0,
        "cache_discount": {"cached_prompt_share": truth.cached, "discount": 0.0},
        "plans": {"free": free, "paid": paid},
    }
    values = {
        "start_month": START,
        "horizon_months": truth.months + 12,
        "market": market,
        "deployment": {"provisioning_delay_h": 0.0, "price_decline_per_year": 0.0},
        "finance": {
            "payment_fee_share": 0.0,
            "payment_fee_usd": 0.0,
            "initial_cash_usd": 1e5,
            "other_opex_usd_per_month": 2000.0,
        },
    }
    return Scenario.parse(values).override({key.replace("__", "."): value for key, value in changes.items()})


def write_company(place: Path | str, truth: Truth, seed: int = 0) -> str:
    """Draw the company and write its keys and requests; gives the database's URL.

    `place`: a file, or the URL of a database.

    Customers join when a month opens and leave at its end, as the simulated ones do.
    """
    url = place if isinstance(place, str) else f"sqlite:///{place}"
    ApiKeys(url).close()
    rng = np.random.default_rng(seed)
    keys: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    labels = month_labels(START, truth.months)
    before_s = month_bounds_s(START)[0] - 40 * 86400
    there: dict[str, list[tuple[str, str, float, int]]] = {"free": [], "paid": []}
    usual = {"free": truth.requests_free, "paid": truth.requests_paid}

    def join(plan: str, customer: str, level: float, at_s: float, month: int) -> tuple[str, str, float, int]:
        key_id = f"key_{len(keys):06d}"
        keys.append(_key(key_id, customer, plan, at_s))
        return key_id, customer, level, month

    def level() -> float:
        return float(np.exp(truth.spread * rng.standard_normal() - truth.spread**2 / 2))

    for plan in there:
        for _ in range(getattr(truth, plan)):
            there[plan].append(join(plan, f"customer {len(keys)}", level(), before_s, 0))
    for month, label in enumerate(labels):
        start_s, end_s = month_bounds_s(label)
        for plan, mean in (("free", truth.signups_free), ("paid", truth.signups_paid)):
            for _ in range(rng.poisson(mean)):
                there[plan].append(join(plan, f"customer {len(keys)}", level(), start_s, month))
        stay = []
        for one in there["free"]:
            if rng.random() < truth.conversion:
                there["paid"].append(join("paid", one[1], level(), start_s, month))
            else:
                stay.append(one)
        there["free"] = stay
        for plan, customers in there.items():
            for key_id, _, own, joined in customers:
                count = rng.poisson(usual[plan] * own * (1 + truth.growth) ** (month - joined))
                rows += _requests(rng, truth, key_id, count, start_s, end_s, len(rows))
        for plan, churn in (("free", truth.churn_free), ("paid", truth.churn_paid)):
            there[plan] = [one for one in there[plan] if rng.random() >= churn]
    engine = open_database(url)
    with engine.begin() as connection:
        connection.execute(insert(KEYS), keys)
        connection.execute(insert(REQUESTS), rows)
    engine.dispose()
    return url


def _key(key_id: str, customer: str, plan: str, created_s: float) -> dict[str, Any]:
    return {
        "key_id": key_id,
        "secret_sha256": key_id,
        "prefix": "fw-abcdefg",
        "name": "production",
        "customer": customer,
        "plan": plan,
        "priority": 0,
        "created_s": created_s,
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "budget_micro_usd_per_month": None,
        "expires_at_s": None,
        "revoked_s": None,
    }


def _requests(
    rng: np.random.Generator, truth: Truth, key_id: str, count: int, start_s: float, end_s: float, first: int
) -> list[dict[str, Any]]:
    times = np.sort(rng.uniform(start_s, end_s - 60, count))
    names = rng.choice(list(truth.traffic), count, p=list(truth.traffic.values()))
    rows = []
    for index, (time_s, name) in enumerate(zip(times.tolist(), names.tolist(), strict=True)):
        kind = TRAFFIC_CLASSES[name]
        prompt, output = (
            max(1, round(median * np.exp(lognormal_sigma(median, mean) * rng.standard_normal())))
            for median, mean in (
                (kind.prompt_tokens_median, kind.prompt_tokens_mean),
                (kind.output_tokens_median, kind.output_tokens_mean),
            )
        )
        rows.append(
            {
                "request_id": f"r{first + index:08d}",
                "key_id": key_id,
                "model": "smollm2-135m",
                "prompt_tokens": prompt,
                "cached_tokens": int(rng.binomial(prompt, truth.cached)),
                "output_tokens": output,
                "arrived_s": time_s,
                "first_token_s": time_s + 1,
                "finished_s": time_s + 5,
                "status": "stop",
                "cost_micro_usd": truth.cost_micro_usd,
            }
        )
    return rows
