"""Stage 2, training: cases worked out by hand, failures within their bounds, and what never happens."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.profile.profile import TrainingPoint
from engine.training.scaling_law import loss
from sim.company.simulate import Result
from sim.scenario.schema import Training
from sim.scenario.schema.training import FineTuning, Pretraining, Reinforcement, Safety, Trials
from sim.stages.training.phases import phases
from sim.stages.training.safety_incidents import incidents_per_year
from sim.stages.training.scaling_law import (
    expected_loss,
    progress,
    quality,
    repeated,
    saturating,
    trials_gain,
    tuning_gain,
)
from tests.helpers.profile import synthetic_profile
from tests.helpers.stages import close_to_poisson, quiet, run

N = 134_515_008
FLOP_PER_H = 989e12 * 0.40 * 3600  # of one accelerator
# One run a quarter on a pool that grows enough to be worth it; the gate passes whatever comes.
RUNS: dict[str, Any] = {
    "training__cadence_months": 2.0,
    "training__min_improvement": 0.0,
    "training__replay_tokens": 1e10,
    "training__experiments_factor": 0.0,
    "data__sources": {"text": {"tokens_per_month": 1e10, "cleaning_yield": 1.0, "duplicate_share": 0.0}},
}


def trained(seed: int | None = None, **changes: Any) -> Result:
    return run(
        quiet(**RUNS).override({key.replace("__", "."): value for key, value in changes.items()}), seed
    )


def test_the_parts_of_a_run_by_hand() -> None:
    training = Training(
        experiments_factor=0.5,
        trials=Trials(count=10, scale=0.05),
        pretraining=Pretraining(tokens=1e6),
        fine_tuning=FineTuning(epochs=3.0),
        reinforcement=Reinforcement(
            steps=10, prompts_per_step=4.0, samples_per_prompt=5.0, prompt_tokens=20.0, sample_tokens=30.0
        ),
    )
    parts = {part.kind: part for part in phases(training, 100.0, 2000.0, 500.0, from_scratch=True)}
    assert parts["pretraining"].flop == pytest.approx(6 * 100 * 1e6 * 2)
    assert parts["continued"].flop == pytest.approx(6 * 100 * 2000 * 2)
    assert parts["fine-tuning"].flop == pytest.approx(6 * 100 * 500 * 3)
    # 40 prompts of 20 tokens, 200 samples of 30.
    assert parts["generation"].flop == pytest.approx(2 * 100 * (40 * 20 + 200 * 30))
    assert parts["generation"].utilisation == 0.1
    assert parts["reinforcement"].flop == pytest.approx((6 + 2 * 2) * 100 * 200 * 50)
    plain = phases(Training(experiments_factor=0.0), 100.0, 2000.0, 500.0, from_scratch=True)
    assert [(part.kind, part.flop) for part in plain] == [("continued", 6 * 100 * 2000)]


def test_a_mixture_of_experts_computes_less() -> None:
    dense, sparse = trained().monthly, trained(training__active_share=0.25).monthly
    np.testing.assert_allclose(sparse["training_flop"], dense["training_flop"] / 4)
    np.testing.assert_allclose(sparse["model_loss"], dense["model_loss"])


def test_what_better_methods_and_repeated_text_are_worth() -> None:
    training = Training(algorithmic_progress_months=8.0, repetition_decay=15.39, epochs=2.0)
    assert progress(training, 16) == 4
    assert expected_loss(training, 1e8, 1e10, 4.0) == pytest.approx(loss(2e8, 2e10))
    assert repeated(training) == pytest.approx(1 + 15.39 * (1 - math.exp(-1 / 15.39)))
    assert repeated(Training(repetition_decay=15.39, epochs=1.0)) == 1
    assert repeated(Training(repetition_decay=15.39, epochs=0.25)) == 0.25
    assert repeated(Training(epochs=9.0)) == progress(Training(), 99) == 1
    # Sixteen passes are worth less than ten.
    assert repeated(Training(repetition_decay=15.39, epochs=16.0)) < 11


def test_the_best_of_some_trials() -> None:
    assert trials_gain(Training(trials=Trials(count=1))) == trials_gain(Training()) == 0
    best = np.random.default_rng(0).standard_normal((20_000, 16)).max(axis=1).mean()
    assert trials_gain(Training(trials=Trials(count=16, spread_nats=0.01))) == pytest.approx(
        0.01 * best, rel=0.02
    )


def test_what_tuning_adds() -> None:
    assert saturating(1.0, 1.0) == 0.5
    training = Training(
        fine_tuning=FineTuning(gain_nats=0.2, half_gain_tokens=100.0),
        reinforcement=Reinforcement(steps=30, gain_nats=0.4, half_gain_steps=10.0, half_gain_pairs=50.0),
    )
    assert tuning_gain(training, 300.0, 50.0) == pytest.approx(0.2 * 0.75 + 0.4 * 0.75 * 0.5)
    result = trained(
        training__fine_tuning={"gain_nats": 0.2, "tokens": 1e7, "half_gain_tokens": 1e7}, horizon_months=4
    )
    plain = trained(horizon_months=4)
    last, before = result.monthly.iloc[-1], plain.monthly.iloc[-1]
    assert last["model_loss"] == before["model_loss"]
    assert last["model_quality"] == pytest.approx(quality(Training(), before["model_loss"] - 0.1))


def test_a_reserved_cluster_is_paid_all_month() -> None:
    table = trained(
        training__cluster={"ownership": "reserved", "from_month": 1, "reserved_discount": 0.4}
    ).monthly
    expected = np.full(6, 730 * 8 * 2.95 * 0.6)
    expected[0] = 0
    np.testing.assert_allclose(table["compute_training_usd"], expected)
    assert table["training_accelerator_h"].sum() > 0


def test_a_rented_cluster_gets_cheaper() -> None:
    table = trained(training__accelerator_price_decline_per_year=0.5, training__accelerators=1).monthly
    hours = table["training_accelerator_h"]
    years = np.arange(6) / 12
    np.testing.assert_allclose(table["compute_training_usd"], hours * 2.95 * 0.5**years, rtol=1e-8)


def test_failures_checkpoints_and_energy() -> None:
    more = {
        "horizon_months": 5,
        "training__cadence_months": 3.0,
        "training__accelerators": 64,
        "training__replay_tokens": 1e14,
        "training__reliability": {"node_mtbf_h": 2000.0, "checkpoint_s": 60.0, "restart_s": 900.0},
        "training__power": {"board_w": 700.0, "power_share": 0.8, "pue": 1.2, "grid_g_per_kwh": 100.0},
    }
    runs = [trained(seed, **more).monthly for seed in range(12)]
    work_h = 6 * N * (1e14 + 2 * 3e10) / (64 * FLOP_PER_H)
    assert work_h > 600
    # Eight nodes of 2,000 h each: one failure in 250 h of the cluster.
    failures = sum(table["training_failures"].sum() for table in runs)
    assert close_to_poisson(failures, sum(table["cluster_hours"].sum() for table in runs) / 250)
    for table in runs:
        hours = table["cluster_hours"].sum()
        assert 1.0 < hours / work_h < 1.1
        np.testing.assert_allclose(table["training_lost_h"].sum(), hours - work_h, rtol=1e-9)
        np.testing.assert_allclose(table["training_accelerator_h"], table["cluster_hours"] * 64)
        energy = table["training_accelerator_h"] * 0.7 * 0.8 * 1.2
        np.testing.assert_allclose(table["training_energy_kwh"], energy)
        np.testing.assert_allclose(table["training_co2_kg"], energy * 0.1)
        np.testing.assert_allclose(
            table["compute_training_usd"], table["training_accelerator_h"] * 2.95, rtol=1e-8
        )


def test_training_at_night_costs_no_more_machines() -> None:
    night = {
        "deployment__reserved_share": 1.5,
        "training__cluster": {"ownership": "shared"},
        "training__accelerators": 1000,
        "training__replay_tokens": 1e8,
        "data__sources": {"text": {"tokens_per_month": 1e7}},
        "training__base_effective_tokens": 1e7,
    }
    profile = synthetic_profile()
    point = TrainingPoint(1, 64, 1.0, 50.0, 0.125, 10**9)
    profile = replace(profile, hardware=replace(profile.hardware, peak_flops=4e11), training=(point,))
    scenario = quiet(**RUNS).override({key.replace("__", "."): value for key, value in night.items()})
    table = run(scenario, profile=profile).monthly
    without = run(scenario.override({"training.cadence_months": 100.0}), profile=profile).monthly
    pool = 2 * 2 * 1e7 * 0.5 * 0.8  # two passes over two months of text
    hours = 6 * N * (1e8 + pool) / (4e11 * 0.125 * 3600)
    assert table["training_accelerator_h"].iloc[:3].sum() == pytest.approx(hours)
    np.testing.assert_allclose(table["training_accelerator_h"], table["idle_replica_h_used"])
    np.testing.assert_allclose(
        table["compute_training_usd"], table["idle_replica_h_used"] * 0.0496 * 0.7, atol=1e-5
    )
    np.testing.assert_allclose(
        table["compute_training_usd"] + table["compute_serving_usd"],
        without["compute_serving_usd"],
        rtol=1e-9,
    )
    # More work than two machines do in a month: it goes on in the next month's idle hours.
    busy = run(
        scenario.override({"training.accelerators": 2, "training.replay_tokens": 1e9}), profile=profile
    )
    worked = busy.monthly["training_accelerator_h"]
    assert worked.iloc[2:5].tolist() == pytest.approx([1460, 1460, 1460])
    assert (worked <= 1460 * (1 + 1e-12)).all()


def test_the_gate_takes_time_and_money() -> None:
    gate = {"days": 10.0, "usd": 1000.0, "failure_days": 60.0, "failure_usd": 500.0}
    passed = trained(training__gate=gate).monthly
    assert passed["evaluations"].sum() == 2
    plain = trained().monthly
    extra = passed["compute_training_usd"] - plain["compute_training_usd"]
    np.testing.assert_allclose(extra, [0, 0, 1000, 0, 1000, 0], atol=1e-5)
    failed = trained(training__gate=gate, training__min_improvement=5.0, horizon_months=8)
    # Started at 2 months, refused after 10 days, searched for 60: the next start is at 4.3 months instead of 4.
    assert failed.monthly["failed_gates"].tolist() == [0, 0, 1, 0, 1, 0, 1, 0]
    spent = failed.monthly["evaluations"] * 1000 + failed.monthly["failed_gates"] * 500
    rent = failed.monthly["training_accelerator_h"] * 2.95
    np.testing.assert_allclose(failed.monthly["compute_training_usd"], spent + rent, rtol=1e-8)
    assert failed.headline["releases"] == 0


def test_a_model_from_scratch_once() -> None:
    scratch = {"start_month": 3, "tokens": 1e12, "effective_per_token": 0.5}
    result = trained(training__pretraining=scratch, horizon_months=10)
    flop = result.monthly["training_flop"]
    continued = [6 * N * (1e10 + 2 * 1e10 * months) for months in (2, 4, 6, 8)]
    assert flop.sum() == pytest.approx(sum(continued) + 6 * N * 1e12)
    # 5e11 effective tokens instead of the 1e10 of the downloaded model.
    final = result.monthly["model_loss"].iloc[-1]
    assert final == pytest.approx(expected_loss(Training(), N, 5e11 + 8e10), rel=1e-9)


def test_samples_of_reinforcement_on_the_fleet() -> None:
    steps = {
        "steps": 100,
        "prompts_per_step": 64.0,
        "samples_per_prompt": 8.0,
        "sample_tokens": 500.0,
        "generation": "fleet",
        "fleet_replicas": 10.0,
        "gain_nats": 0.0,
    }
    with_steps = trained(training__reinforcement=steps, horizon_months=4).monthly
    plain = trained(horizon_months=4).monthly
    replica_h = 100 * 64 * 8 * 500 / (0.5 * 211 * 3600)
    assert with_steps["reinforcement_replica_h"].sum() == pytest.approx(replica_h)
    learning_h = 10 * N * 100 * 64 * 8 * 1000 / FLOP_PER_H
    extra = with_steps["compute_training_usd"].sum() - plain["compute_training_usd"].sum()
    idle = with_steps["idle_replica_h_used"].sum()
    machines_usd = (replica_h - idle) * 0.0496 + idle * 0.0496 * 0.7
    assert extra == pytest.approx(machines_usd + learning_h * 2.95, rel=1e-6)


def test_safety_work_makes_incidents_rarer() -> None:
    safety = Safety(
        incidents_per_year=8.0,
        interpretability_usd_per_month=10_000.0,
        interpretability_halving_usd=10_000.0,
        bias_usd_per_month=20_000.0,
        bias_halving_usd=10_000.0,
    )
    assert incidents_per_year(safety) == pytest.approx(1.0)
    section = {"incidents_per_year": 24.0, "incident_usd": 1000.0}
    careless = run(quiet(horizon_months=240, training__safety=section))
    careful = run(quiet(horizon_months=240, training__safety={**section, "bias_usd_per_month": 20_000.0}))
    assert close_to_poisson(careless.monthly["safety_incidents"].sum(), 24 * 20)
    assert close_to_poisson(careful.monthly["safety_incidents"].sum(), 12 * 20)
    assert (careful.monthly["safety_incidents"] <= careless.monthly["safety_incidents"]).all(), (
        "the same luck"
    )
    paid = careless.statements.income()["legal"].sum() / 480_000
    assert 0.7 < paid < 1.3
    work = careful.statements.income()["other_opex"] - careless.statements.income()["other_opex"]
    np.testing.assert_allclose(work, 20_000)


def test_a_shortage_delays_and_raises_the_price() -> None:
    short = {"start_month": 2, "duration_months": 2, "price_factor": 3.0, "training_wait_days": 10.0}
    scarce = trained(deployment__shortage=short)
    plain = trained().monthly
    table = scarce.monthly
    assert table["scarce"].tolist() == [0, 0, 1, 1, 0, 0]
    np.testing.assert_allclose(
        table["compute_training_usd"].iloc[2], 3 * plain["compute_training_usd"].iloc[2]
    )
    waits = [what for what in scarce.events["what"] if "shortage" in what]
    assert len(waits) == 1
    assert "10 days" in waits[0]
    assert table["training_accelerator_h"].iloc[4:].sum() == pytest.approx(
        plain["training_accelerator_h"].iloc[4:].sum()
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    cadence=st.floats(0.1, 5),
    replay=st.floats(0, 1e15),
    accelerators=st.integers(1, 4096),
    mtbf=st.floats(500, 1e5),
    ownership=st.sampled_from(["rented", "reserved", "shared"]),
    generation=st.sampled_from(["cluster", "fleet"]),
    gate_days=st.floats(0, 60),
)
def test_a_cluster_works_no_more_than_there_is(
    seed: int,
    cadence: float,
    replay: float,
    accelerators: int,
    mtbf: float,
    ownership: str,
    generation: str,
    gate_days: float,
) -> None:
    result = trained(
        seed,
        training__cadence_months=cadence,
        training__replay_tokens=replay,
        training__accelerators=accelerators,
        training__reliability={"node_mtbf_h": mtbf},
        training__cluster={"ownership": ownership},
        training__reinforcement={"generation": generation},
        training__gate={"days": gate_days},
    )
    table = result.monthly
    assert (table["cluster_hours"] <= 730 * (1 + 1e-9)).all()
    assert (table["training_accelerator_h"] <= 730 * accelerators * (1 + 1e-9)).all()
    assert (table["idle_replica_h_used"] <= table["replica_h_idle"] * (1 + 1e-9)).all()
    assert (table[["training_lost_h", "training_flop", "compute_training_usd"]] >= -1e-9).all().all()
    assert table["failed_gates"].sum() + float(result.headline["releases"]) == table["evaluations"].sum()
    assert result.ledger.trial_balance()["balance_microusd"].sum() == 0


def test_accelerators_that_the_company_owns_are_not_rented() -> None:
    bought = {"units": 1.0, "price_usd": 200_000.0, "use": "training", "capacity": 6.0}
    owning: dict[str, Any] = {
        "finance__equipment": {"node": bought},
        "training__power": {"board_w": 1000.0, "power_share": 1.0, "pue": 1.0, "grid_g_per_kwh": 0.0},
        "training__cluster": {"power_usd_per_kwh": 0.2},
    }
    table = trained(**owning)
    hours = table.monthly["training_accelerator_h"]
    assert hours.sum() > 0
    expected = hours * 2 / 8 * 2.95 + hours * 6 / 8 * 1.0 * 0.2
    np.testing.assert_allclose(table.statements.income()["training_compute"], expected, rtol=1e-7)


def test_a_fitted_law_takes_the_constants_place(tmp_path: Path) -> None:
    path = tmp_path / "law.json"
    constants = {"E": 1.5, "A": 100.0, "B": 300.0, "alpha": 0.3, "beta": 0.25}
    path.write_text(json.dumps({"constants": constants, "draws": [[1, 2, 3, 0.5, 0.25]]}))
    training = Training(scaling_law=str(path))
    drawn = Training(scaling_law=str(path), scaling_law_draw=0)
    assert expected_loss(drawn, 1e8, 1e8) == pytest.approx(1 + 2 / 1e4 + 3 / 1e2)
    with pytest.raises(InputError, match=r"scaling_law_draw: found 1, allowed: 0 to 0"):
        expected_loss(Training(scaling_law=str(path), scaling_law_draw=1), 1e8, 1e8)
    assert expected_loss(training, 1e8, 1e10) == pytest.approx(1.5 + 100 / 1e8**0.3 + 300 / 1e10**0.25)
    assert quality(training, 1.5) == 1
    table = trained(training__scaling_law=str(path)).monthly
    assert table["model_loss"].iloc[0] == pytest.approx(expected_loss(training, N, 1e10))
    with pytest.raises(InputError, match=r"nowhere\.json"):
        trained(training__scaling_law=str(tmp_path / "nowhere.json"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training__reinforcement", {"half_gain_pairs": 5.0}, r"half_gain_pairs: found 5 .*data.labelling"),
        ("training__cluster", {"power_usd_per_kwh": 0.1}, r"power_usd_per_kwh: found 0.1 .*training.power"),
        ("training__cluster", {"ownership": "borrowed"}, r"found 'borrowed'.*rented, reserved, shared"),
        ("training__reliability", {"node_mtbf_h": 0.0}, r"node_mtbf_h: found 0.*a number > 0"),
    ],
)
def test_a_wrong_training_is_one_line(key: str, value: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quiet(**{key: value})
