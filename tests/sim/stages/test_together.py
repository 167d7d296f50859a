"""Everything at once: a company that uses every optional part of data, training and deployment."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.company.monthly_table import STAGE_COLUMNS
from sim.company.simulate import Result
from sim.scenario.scenario import Scenario
from tests.helpers.stages import run

ALL_PARTS: dict[str, Any] = {
    "data.processing": {},
    "data.labelling": {},
    "data.synthetic": {"tokens_per_month": 1e9},
    "data.storage": {},
    "data.sources.crawl.licence": "crawled",
    "data.sources.crawl.unique_tokens": 1e11,
    "data.sources.crawl.half_life_months": 24.0,
    "data.sources.crawl.claims_per_year": 12.0,
    "data.sources.crawl.claim_usd": 1e5,
    "data.sources.crawl.withdrawals_per_year": 0.3,
    "training.fine_tuning": {},
    "training.reinforcement": {"generation": "fleet", "half_gain_pairs": 1000.0},
    "training.trials": {},
    "training.gate": {},
    "training.reliability": {"node_mtbf_h": 300.0},
    "training.power": {},
    "training.safety": {"incidents_per_year": 6.0},
    "training.cluster": {"ownership": "shared"},
    "training.pretraining": {"start_month": 6},
    "training.algorithmic_progress_months": 8.0,
    "training.repetition_decay": 15.39,
    "deployment.regions": {"us": {"share": 2.0}, "eu": {"hours_ahead": 6}, "asia": {"hours_ahead": 13}},
    "deployment.spot": {},
    "deployment.generations": {"new": {"month": 12}},
    "deployment.quantisation": {"loss_nats": 0.01, "speed": 1.5},
    "deployment.canary": {"bad_share": 0.5},
    "deployment.outages": {"per_year": 6.0},
    "deployment.shortage": {"events_per_year": 0.5},
    "deployment.support": {},
}


def scenario(months: int = 24) -> Scenario:
    return Scenario.load("api_startup").override({**ALL_PARTS, "horizon_months": months})


@cache
def whole() -> Result:
    return run(scenario())


def test_a_shorter_horizon_is_a_prefix() -> None:
    ledger = whole().ledger.to_frame()
    short = run(scenario(11)).ledger.to_frame()
    assert short.equals(ledger.iloc[: len(short)])
    assert (ledger["month_index"].iloc[len(short) :] >= 11).all()


def test_the_same_seed_is_the_same_company() -> None:
    assert run(scenario()).ledger.content_hash() == whole().ledger.content_hash()
    assert run(scenario(), 8).ledger.content_hash() != whole().ledger.content_hash()


def test_the_books_tie_out() -> None:
    sheet = whole().statements.balance_sheet(exact=True)
    assert whole().ledger.trial_balance()["balance_microusd"].sum() == 0
    assert (sheet["total_assets"] == sheet["total_liabilities"] + sheet["total_equity"]).all()


def test_every_column_is_told() -> None:
    table = whole().monthly
    assert set(STAGE_COLUMNS) <= set(table.columns)
    told = table[list(STAGE_COLUMNS)]
    assert np.isfinite(told.to_numpy(dtype=np.float64)).all()
    assert (told >= -1e-6).all().all()
    silent = {name for name in STAGE_COLUMNS if (told[name] == 0).all()}
    assert silent <= {
        "failed_gates",
        "sources_withdrawn",
        "rollbacks",
        "credit_share",
        "source_tokens_repeated",
    }


def test_every_part_survives_a_save(tmp_path: Path) -> None:
    scenario().save(tmp_path / "all.yaml")
    again = Scenario.load(tmp_path / "all.yaml")
    assert again.content_hash == scenario().content_hash
    made = Scenario.parse(scenario().model_dump())
    made.save(tmp_path / "made.yaml")
    assert Scenario.load(tmp_path / "made.yaml").content_hash == made.content_hash
    assert "# mean time between failures of one node [h]" in made.to_yaml()


@pytest.mark.parametrize("part", sorted(ALL_PARTS))
def test_each_part_can_be_alone(part: str) -> None:
    value = ALL_PARTS[part] if part != "training.reinforcement" else {}
    result = run(Scenario.load("api_startup").override({part: value, "horizon_months": 8}))
    assert result.ledger.trial_balance()["balance_microusd"].sum() == 0
