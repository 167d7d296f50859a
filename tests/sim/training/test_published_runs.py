"""The published runs: computed from their inputs, within 5 % of what was published."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from engine.errors import InputError
from engine.models.catalog import find_model
from engine.training.scaling_law import training_flop
from sim.training.checkpointing import poisson_interval
from sim.training.memory import checkpoint_bytes, checkpoint_write_s, zero_bytes
from sim.training.published_runs import (
    RunComparison,
    Snapshot,
    compare,
    load,
    references,
    shipped_file,
)
from sim.training.run import RunPlan, inferred_mfu, plan_run, training_compute
from sim.utils.paths import scenarios_dir

TOLERANCE = 0.05
ROWS = compare(references())


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.case} {row.quantity}" for row in ROWS])
def test_computed_is_within_five_percent_of_published(row: RunComparison) -> None:
    assert not row.inferred
    assert abs(row.error) <= TOLERANCE, f"{row.computed:g} against {row.published:g}: {row.error:+.1%}"


def test_every_run_of_the_facts_is_there() -> None:
    assert {
        "gpt-3-175b", "bloom-176b", "llama-2-7b", "llama-2-13b", "llama-2-70b", "deepseek-v3", "llama-3.1-405b"
    } <= set(references().runs)  # fmt: skip
    for run in references().runs.values():
        assert find_model(run.model).active_parameters == pytest.approx(run.parameters, rel=0.03)
        assert run.source
        assert run.mfu is None or "published" in run.mfu_from or "inferred once" in run.mfu_from


def test_the_llama_2_runs_share_one_utilisation_inferred_once() -> None:
    found = []
    for name in ("llama-2-7b", "llama-2-13b", "llama-2-70b"):
        run = references().runs[name]
        flop = training_compute(
            run.parameters,
            run.tokens,
            pair_flop=find_model(name).pair_flops,
            sequence_tokens=run.sequence_tokens,
            causal=False,
        )
        assert run.peak_tflops
        found.append(inferred_mfu(flop, run.published["accelerator_hours"], run.peak_tflops * 1e12))
        assert run.mfu == references().runs["llama-2-7b"].mfu
    assert references().runs["llama-2-7b"].mfu == pytest.approx(
        math.sqrt(min(found) * max(found)), abs=0.0001
    )


def test_the_throughput_in_blooms_log_is_what_its_steps_give() -> None:
    """An iteration of 2,048 sequences of 2,048 tokens took 105.22 s on 384 GPUs: 149.02 TFLOP/s by the log."""
    run = references().runs["bloom-176b"]
    tokens = 2048 * 2048
    flop = training_compute(
        run.parameters,
        tokens,
        pair_flop=find_model("bloom-176b").pair_flops,
        sequence_tokens=2048,
        causal=False,
        recompute_activations=True,
    )
    assert flop / 105.22 / 384 / 1e12 == pytest.approx(149.02, rel=0.01)
    assert run.mfu == pytest.approx(149.02 / 312, abs=0.0001)
    assert run.effective_fraction == pytest.approx((94767 - 12695) * 105.22 / 86400 / 108, abs=0.0005)


def test_operations_per_token_are_those_of_deepseeks_table() -> None:
    """Zhao et al. 2025, arXiv:2505.09343, table 2, at 4,096 tokens: 2,448 GFLOP per token for Llama 3.1 405B."""
    model = find_model("llama-3.1-405b")
    flop = training_compute(model.active_parameters, 1, pair_flop=model.pair_flops, sequence_tokens=4096)
    assert flop == pytest.approx(2448e9, rel=0.02)
    assert find_model("deepseek-v3").kv_bytes_per_token("bf16") == 70_272  # their table 1
    assert model.kv_bytes_per_token("bf16") == 516_096


def planned(snapshot: Snapshot) -> RunPlan:
    """The cluster's failures over the days of a snapshot, with checkpoints at the best interval."""
    pause_s = checkpoint_write_s(checkpoint_bytes(snapshot.parameters), snapshot.storage_bytes_per_s)
    peak = 1e15  # any: the run is as many operations as the days hold
    return plan_run(
        snapshot.days * 86400 * snapshot.accelerators * peak,
        accelerators=snapshot.accelerators,
        accelerators_per_node=snapshot.accelerators_per_node,
        peak_flops=peak,
        mfu=1.0,
        node_mtbf_h=snapshot.node_mtbf_h,
        checkpoint_s=pause_s,
        restart_s=snapshot.restart_s,
        planned_stops_per_day=snapshot.planned_stops / snapshot.days,
    )


def test_llama_3s_interruptions_and_effective_time() -> None:
    snapshot = references().snapshots["llama-3.1-405b"]
    nodes = snapshot.accelerators / snapshot.accelerators_per_node
    low, high = poisson_interval(snapshot.days * 24 * nodes / snapshot.node_mtbf_h)
    assert snapshot.unexpected + snapshot.planned_stops == 466
    assert low <= snapshot.unexpected <= high
    assert planned(snapshot).effective_fraction > snapshot.effective_fraction_above
    assert snapshot.node_mtbf_h == pytest.approx(54 * 24 * 2048 / 419, rel=1e-3)


def test_effective_time_does_not_hang_on_the_inferred_mtbf() -> None:
    """The mean time between failures, were it off by what chance makes of 419, keeps the effective time above 90 %."""
    snapshot = references().snapshots["llama-3.1-405b"]
    for factor in (1 - 2 / math.sqrt(419), 1 + 2 / math.sqrt(419)):
        changed = snapshot.model_copy(update={"node_mtbf_h": snapshot.node_mtbf_h * factor})
        assert planned(changed).effective_fraction > 0.9


def test_bloom_fits_where_it_was_trained() -> None:
    """48 GPUs held one copy of BLOOM, eight copies sharing the optimizer's state (ZeRO stage 1), in 60 GB each."""
    share = find_model("bloom-176b").parameters / 48
    assert 25e9 < zero_bytes(share, 8, stage=1, gradient_bytes=4) < 60e9


def test_gpt_3_in_petaflop_days() -> None:
    """Brown et al. 2020, table D.1: 3,640 petaflop/s-days."""
    assert training_flop(174.6e9, 300e9) / 1e15 / 86400 == pytest.approx(3640, rel=0.01)


def test_the_folder_holds_no_company() -> None:
    """`tests/sim/scenario/test_scenario.py` and the app list the scenarios beside it, not in it."""
    assert shipped_file().parent == scenarios_dir() / "reference"
    assert shipped_file() not in scenarios_dir().glob("*.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mfu: 0.3894", "mfu: 38.94", r"line \d+: runs\.deepseek-v3\.mfu: found 38\.94"),
        ("mfu: 0.3894", "mfi: 0.3894", r"runs\.deepseek-v3\.mfi: unknown key, nearest is mfu"),
        ("    mfu: 0.3894\n", "", r"runs\.deepseek-v3\.mfu: missing"),
        ("flop: 3.14e23", "flop: -1", r"found -1"),
        ("runs:", "runs: [", "not YAML"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = shipped_file().read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value)
    assert "mine.yaml" in str(error.value)


def test_a_missing_or_empty_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(InputError, match="found nothing"):
        load(tmp_path / "empty.yaml")
