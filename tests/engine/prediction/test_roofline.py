"""Predicted profiles: scaling laws that must hold exactly, pairs of machines that were both measured, the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import SchedulerConfig, vllm_scheduler
from engine.errors import InputError
from engine.models.catalog import catalog, find_model
from engine.prediction.engine_efficiency import ENGINES, PRECISIONS, EngineDeployment
from engine.prediction.engine_efficiency import step_time as engine_step_time
from engine.prediction.roofline import Roofline, predict_profile, roofline_for, roofline_of, transfer
from engine.profile.hardware import Accelerator, lookup
from engine.profile.profile import Profile
from engine.profile.step_time import RooflineStepTime
from engine.profiling.fit import Step, fit_step_time, relative_errors
from sim.cli import app
from sim.company.profile_rows import profile_rows
from sim.serving.replay import replay
from sim.serving.step_table import read_step_times
from tests.helpers.places import ROOT, SHARED
from tests.helpers.profile import synthetic_profile
from tests.helpers.recorded import latencies, vidur_run, vllm_run

PROFILES = ROOT / "tests" / "profiles"
MEASURED = SHARED / "measured"
RTX4090_TABLES = MEASURED / "vllm_rtx4090_llama8b"
needs_measured = pytest.mark.skipif(not MEASURED.is_dir(), reason=f"{MEASURED} is not here")

STEPS: list[Step] = [
    ([], [100]),
    ([], [1000] * 48),
    ([(1, 0)], []),
    ([(300, 50)], [7] * 5),
    ([(512, 4096)] * 3, [2000] * 60),
]


def source() -> tuple[RooflineStepTime, Roofline]:
    hardware = replace(
        synthetic_profile().hardware,
        peak_flops=2e11,
        memory_bandwidth_bytes_per_s=4e10,
        peak_source="made up",
    )
    profile = replace(synthetic_profile(), hardware=hardware)
    return profile.coefficients, roofline_of(profile)


def test_carried_over_to_itself_nothing_changes() -> None:
    times, roofline = source()
    same = transfer(times, roofline, roofline)
    for step in STEPS:
        assert same.step_time(*step) == pytest.approx(times.step_time(*step), rel=1e-9)


def test_a_machine_twice_as_fast_halves_all_but_the_overheads() -> None:
    times, roofline = source()
    twice = replace(roofline, peak_flops=2 * roofline.peak_flops, bandwidth=2 * roofline.bandwidth)
    faster = transfer(times, roofline, twice)
    assert faster.decode_context_s == pytest.approx(times.decode_context_s / 2)
    assert faster.prefill_pair_s == pytest.approx(times.prefill_pair_s / 2)
    assert faster.token_slopes_s == pytest.approx([slope / 2 for slope in times.token_slopes_s])
    assert faster.chunk_s == times.chunk_s
    assert times.constant_s / 2 < faster.constant_s < times.constant_s


def test_narrower_weights_only_speed_up_what_reads_them() -> None:
    times, roofline = source()
    narrow = replace(roofline, weight_bytes=roofline.weight_bytes / 2)
    moved = transfer(times, roofline, narrow)
    assert moved.step_time([], [10]) < times.step_time([], [10])
    large: Step = ([(4096, 0)], [])
    assert moved.step_time(*large) == pytest.approx(times.step_time(*large), rel=0.1)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(catalog())),
    st.sampled_from(["H100 SXM", "H200", "B200", "MI300X", "A100 SXM"]),
    st.sampled_from(PRECISIONS),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([*ENGINES, None]),
)
def test_every_prediction_is_whole_or_says_why_not(
    model: str, accelerator: str, precision: str, tensor_parallel: int, engine: str | None
) -> None:
    hardware = replace(synthetic_profile().hardware, peak_flops=2e11, memory_bandwidth_bytes_per_s=4e10)
    measured = None if engine else replace(synthetic_profile(), hardware=hardware)
    try:
        profile = predict_profile(measured, accelerator, model, precision, tensor_parallel, engine, 2.0)
    except InputError as error:
        message = str(error)
        row = lookup(accelerator)
        needed = find_model(model).weight_bytes(precision) / tensor_parallel
        assert "too little" in message
        assert needed > 0.9 * row.memory_bytes
        return
    assert profile.kind == "predicted"
    assert profile.hardware.price_usd_per_hour == 2.0 * tensor_parallel
    assert profile.memory["weight_bytes"] + profile.memory["kv_cache_bytes"] <= profile.hardware.memory_bytes
    assert 0 < profile.cost.usd_per_mtok_output_full < float("inf")
    assert profile.scheduler_config().num_blocks >= 1
    for step in STEPS:
        low, high = profile.step_time_interval(*step)
        assert 0 < low < profile.step_time(*step) < high
    assert profile.step_time([], [500] * 8) <= profile.step_time([], [500] * 9)


def test_a_prediction_survives_its_file_and_is_marked(tmp_path: Path) -> None:
    profile = predict_profile(None, "B200", "deepseek-r1", "fp8", 8, "sglang")
    profile.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == profile
    rows = dict(profile_rows(profile))
    assert rows["Kind"] == "PREDICTED, not measured"
    assert "8 × B200" in rows["Machine"]
    assert "90 % interval" in rows
    assert profile.hardware.price_usd_per_hour == 8 * 5.50


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((None, "H100 SXM", "deepseek-v3", "fp8", 8, "vllm"), ["672.9 GB", "608.0 GB", "64.9 GB too little"]),
        ((None, "H100 SXM", "llama-3.1-8b", "fp9", 1, "vllm"), ["fp9", "bf16"]),
        ((None, "H100 SXM", "llama-3.1-8b", "fp8", 3, "vllm"), ["tensor_parallel 3"]),
        ((None, "H100 SXM", "llama-3.1-8b", "fp8", 1, None), ["either"]),
        ((None, "H100 SXM", "llama-3.1-8b", "fp8", 1, "vlm"), ["vlm", "sglang"]),
        ((None, "A100 SXM", "llama-3.1-8b", "bf16", 1, "vllm"), ["price"]),
        ((None, "A6000", "llama-3.1-8b", "bf16", 1, "vllm"), ["A6000", "data sheet"]),
        ((None, "A100 PCIe", "llama-3.1-8b", "bf16", 2, "vllm"), ["A100 PCIe", "data sheet"]),
    ],
)
def test_bad_input_is_one_clear_line(arguments: Sequence[object], parts: Sequence[str]) -> None:
    with pytest.raises(InputError) as refused:
        predict_profile(*arguments)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
    for part in parts:
        assert part in str(refused.value)


def test_a_profile_without_peaks_is_not_carried_over() -> None:
    with pytest.raises(InputError, match="peak_flops"):
        predict_profile(synthetic_profile(), "H100 SXM", "llama-3.1-8b")


def rtx4090_steps() -> tuple[list[Step], list[float]]:
    """Steps of Llama-3.1-8B under vLLM on an RTX 4090, added up from its measured layers."""
    folder = RTX4090_TABLES
    dense, rows, sequences = (
        pd.read_csv(folder / f"{name}.csv") for name in ("dense", "attention", "per_sequence")
    )

    def at(table: pd.DataFrame, layer: str, column: str, amount: np.ndarray) -> np.ndarray:
        chosen = table[table.layer == layer].sort_values(column)
        return np.interp(amount, chosen[column], chosen.time_us)

    tokens = (rows.prefill_chunk + rows.n_decode).to_numpy()
    rows, tokens = rows[(tokens > 0) & (tokens <= 2048)][::8], tokens[(tokens > 0) & (tokens <= 2048)][::8]
    requests = (rows.n_decode + (rows.prefill_chunk > 0)).to_numpy()
    names = ["qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj"]
    layer = sum(at(dense, name, "tokens", tokens) for name in [*names, "layernorm", "layernorm"])
    us = 32 * (layer + rows.time_us.to_numpy())
    us += sum(at(dense, name, "tokens", tokens) for name in ("embedding", "final_layernorm"))
    us += sum(at(sequences, name, "sequences", requests) for name in ("lm_head", "sampler"))
    steps: list[Step] = [
        ([(r.prefill_chunk, r.kv_prefill)] if r.prefill_chunk else [], [r.kv_decode] * r.n_decode)
        for r in rows.itertuples()
    ]
    return steps, (us / 1e6).tolist()


def a100_steps() -> tuple[list[Step], list[float]]:
    """Steps of CodeLlama-34B on two A100, from Vidur's table of execution times."""
    rows = pd.read_csv(MEASURED / "vidur_34b_tp2_a100" / "exec_time_grid_34b_tp2_a100.csv")
    steps: list[Step] = [
        ([(r.prefill_chunk, r.prefill_kv)] if r.prefill_chunk else [], [r.kv_len] * r.decode_batch)
        for r in rows.itertuples()
    ]
    return steps, (rows.ms / 1e3).tolist()


RTX4090 = EngineDeployment(
    find_model("llama-3.1-8b"),
    Accelerator(
        "RTX 4090 24 GB",
        24 * 10**9,
        peak_bf16_flops=165.2e12,
        peak_fp8_flops=330.3e12,
        memory_bandwidth_bytes_per_s=1.008e12,
    ),
)
A100 = EngineDeployment(find_model("codellama-34b"), lookup("A100 SXM"), accelerators=2)


@needs_measured
@pytest.mark.parametrize(("engine", "median"), [("vllm", 0.10), ("sglang", 0.12), ("trtllm", 0.08)])
def test_efficiencies_of_h100_and_b200_predict_two_a100_that_no_fit_saw(engine: str, median: float) -> None:
    steps, times = a100_steps()
    model = engine_step_time(engine, A100)
    assert np.median(np.abs(relative_errors(model, steps, times))) < median
    intervals = [model.interval(*step) for step in steps]
    inside = [low <= time <= high for (low, high), time in zip(intervals, times, strict=True)]
    assert np.mean(inside) > 0.9


@needs_measured
def test_efficiencies_of_h100_and_b200_predict_an_rtx_4090() -> None:
    steps, times = rtx4090_steps()
    model = engine_step_time("vllm", RTX4090)
    assert np.median(np.abs(relative_errors(model, steps, times))) < 0.25
    inside = [
        model.interval(*step)[0] <= t <= model.interval(*step)[1]
        for step, t in zip(steps, times, strict=True)
    ]
    assert np.mean(inside) > 0.8


@needs_measured
@pytest.mark.parametrize("backwards", [False, True])
def test_one_machine_is_carried_over_to_the_other(backwards: bool) -> None:
    """Other device, other model, other parallelism and another software stack (Vidur's, vLLM's) at once."""
    here, there = (rtx4090_steps(), RTX4090), (a100_steps(), A100)
    ((seen, seen_s), a), ((unseen, unseen_s), b) = (there, here) if backwards else (here, there)
    moved = transfer(fit_step_time(seen, seen_s), roofline_for(a), roofline_for(b))
    assert np.median(np.abs(relative_errors(moved, unseen, unseen_s))) < (0.5 if backwards else 0.32)
    inside = [
        moved.interval(*step)[0] <= t <= moved.interval(*step)[1]
        for step, t in zip(unseen, unseen_s, strict=True)
    ]
    assert np.mean(inside) > 0.65


def mean_errors(simulated: pd.DataFrame, recorded: pd.DataFrame) -> list[float]:
    """(simulated - recorded) / recorded of the means of TTFT, TPOT and E2E latency."""
    return (simulated.mean() / recorded.mean() - 1).tolist()


@needs_measured
def test_a_real_server_on_an_rtx_4090_is_replayed_with_efficiencies_of_other_machines() -> None:
    """300 ShareGPT requests through vLLM, saturated; the fit saw H100 and B200 only.

    What is left is step time: with this machine's own layers the same replay meets the run (test_recorded_runs.py).
    """
    requests, recorded = vllm_run(MEASURED)
    frame = replay(requests, engine_step_time("vllm", RTX4090), vllm_scheduler(2588))
    errors = mean_errors(latencies(frame, requests.output_tokens), recorded)
    assert max(map(abs, errors)) < 0.2


@needs_measured
def test_a_fit_of_steps_unlike_those_that_run_misses_them() -> None:
    """Fitted over contexts to 16,384, with a prefill beside most decodes, the roofline takes a context for dearer."""
    requests, recorded = vllm_run(MEASURED)
    fitted = fit_step_time(*rtx4090_steps())
    frame = replay(requests, fitted, vllm_scheduler(2588))
    assert min(mean_errors(latencies(frame, requests.output_tokens), recorded)) > 0.1
    assert fitted.step_time([], [1000] * 40) > 1.1 * read_step_times(RTX4090_TABLES).step_time(
        [], [1000] * 40
    )


@needs_measured
def test_vidurs_run_on_two_a100_is_replayed_with_efficiencies_of_other_machines() -> None:
    requests, recorded = vidur_run(MEASURED)
    config = SchedulerConfig(128, 512, 16, num_blocks=27904, prefix_caching=False)
    frame = replay(requests, engine_step_time("vllm", A100), config)
    ttft, tpot, e2e = mean_errors(latencies(frame, requests.output_tokens, spared=0), recorded)
    assert abs(ttft) < 0.1
    assert max(abs(tpot), abs(e2e)) < 0.3  # Vidur's decode steps carry an eager engine's overhead


@pytest.mark.parametrize(("here", "there"), [("1-thread", "2-threads"), ("2-threads", "1-thread")])
def test_a_machine_with_another_number_of_threads_is_predicted(here: str, there: str) -> None:
    """Two real profiles of the bundled model on one machine (2026-11-23, float32, 14 s each)."""
    a, b = (Profile.load(PROFILES / f"smollm2-135m-{name}.json") for name in (here, there))
    assert a.hardware.threads != b.hardware.threads
    moved = transfer(a.coefficients, roofline_of(a), roofline_of(b))
    steps = [(point.prefill, point.decode_contexts) for point in b.measurements]
    times = [point.time_s for point in b.measurements]
    assert np.median(np.abs(relative_errors(moved, steps, times))) < 0.12
    assert (
        np.median(np.abs(relative_errors(a.coefficients, steps, times))) > 0.35
    )  # what not scaling would cost
    inside = [
        moved.interval(*step)[0] <= t <= moved.interval(*step)[1]
        for step, t in zip(steps, times, strict=True)
    ]
    assert np.mean(inside) > 0.9


def run(*words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["flywheel", *words])
    with pytest.raises(SystemExit) as ended:
        app.main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out + captured.err


def test_the_command_predicts_and_a_company_runs_on_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLYWHEEL_CACHE", str(tmp_path / "cache"))
    words = ["predict", "meta-llama/Llama-3.1-8B-Instruct", "--on", "H100 SXM", "--engine", "vllm"]
    code, out = run(*words, "--precision", "fp8", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, "PREDICTED, not measured" in out) == (0, True)
    # Written where `flywheel run` looks for the profile of the scenario's model.
    code, out = run(
        "run", "api_startup", "--set", "deployment.model=llama-3.1-8b", "--set", "horizon_months=3", "--json",
        capsys=capsys, monkeypatch=monkeypatch,
    )  # fmt: skip
    assert code == 0
    report = Path(json.loads(out)["report"]).read_text(encoding="utf-8")
    assert "Predicted on" in report
    assert "PREDICTED, not measured" in report
    code, out = run("predict", "llama-3.1-8b", "--on", "H100 SXM", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, out.count("\n")) == (2, 1)
