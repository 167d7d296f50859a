"""The fit recovers what it should, the grid covers what it must, and a tiny real model is profiled."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.profile.profile import Measurement, Profile
from engine.profiling.fit import fit_and_judge, fit_step_time, relative_errors
from engine.profiling.grid import GridPoint, default_grid, is_held_out
from engine.profiling.power import PowerMeter
from engine.profiling.profiler import measure_profile
from sim.company.profile_rows import profile_rows
from tests.helpers.profile import synthetic_profile


def config(**changes: Any) -> Any:
    values = {"max_running_requests": 64, "max_step_tokens": 512, "block_tokens": 16, "num_blocks": 4096}
    return SimpleNamespace(**{**values, **changes})


def timed_grid(noise: float, seed: int = 0) -> list[Measurement]:
    """The default grid, timed by the synthetic model with log-normal noise."""
    truth = synthetic_profile().step_time_model()
    rng = np.random.default_rng(seed)
    return [
        Measurement(
            point.kind,
            point.prefill,
            point.decode_contexts,
            truth.step_time(point.prefill, point.decode_contexts)
            * float(np.exp(noise * rng.standard_normal())),
            spread=noise,
            repeats=3,
            held_out=is_held_out(i),
        )
        for i, point in enumerate(default_grid(config(), 8192))
    ]


def test_the_fit_recovers_exact_times() -> None:
    _, report = fit_and_judge(timed_grid(noise=0.0))
    assert report.max_relative_error < 1e-6
    assert report.held_out_points + report.train_points == len(timed_grid(0.0))


def test_the_fit_extrapolates_what_it_recovered() -> None:
    model, _ = fit_and_judge(timed_grid(noise=0.0))
    truth = synthetic_profile().step_time_model()
    for step in ([(2048, 8000)], [5] * 3), ([], [8000] * 64), ([(10, 0)] * 30, [100] * 30):
        assert model.step_time(*step) == pytest.approx(truth.step_time(*step), rel=0.05)


def test_noise_averages_out() -> None:
    model, report = fit_and_judge(timed_grid(noise=0.03))
    truth = synthetic_profile().step_time_model()
    grid = [(p.prefill, p.decode_contexts) for p in default_grid(config(), 8192)]
    error = np.abs(relative_errors(model, grid, [truth.step_time(*step) for step in grid]))
    assert np.median(error) < 0.02
    assert report.median_relative_error < 0.05


def test_an_interrupted_measurement_does_not_bend_the_fit() -> None:
    points = timed_grid(noise=0.0)
    steps = [(p.prefill, p.decode_contexts) for p in points]
    times = [p.time_s for p in points]
    for i in random.Random(0).sample(range(len(times)), 4):
        times[i] *= 3
    model = fit_step_time(steps, times)
    assert np.median(np.abs(relative_errors(model, steps, [p.time_s for p in points]))) < 0.01


@settings(max_examples=25, deadline=None)
@example(498)  # gave a constant of 0, so that time stood still
@given(st.integers(0, 10**6))
def test_whatever_is_measured_the_fit_is_monotone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = default_grid(config(), 8192)
    model = fit_step_time(
        [(p.prefill, p.decode_contexts) for p in points], rng.uniform(0.001, 1.0, len(points)).tolist()
    )
    prefill = [model.step_time([(tokens, 100)], [50]) for tokens in range(1, 700, 13)]
    decode = [model.step_time([], [100] * batch) for batch in range(1, 80)]
    for times in (prefill, decode):
        assert all(later >= earlier - 1e-12 for earlier, later in pairwise(times))
        assert times[0] > 0


@pytest.mark.parametrize(("count", "value"), [(3, 1.0), (8, 0.0), (8, -1.0), (8, float("nan"))], ids=str)
def test_the_fit_refuses_what_is_no_measurement(count: int, value: float) -> None:
    with pytest.raises(ValueError, match=r"needed|positive"):
        fit_step_time([([(8, 0)], [])] * count, [value] * count)


@settings(deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 8192), st.sampled_from([8, 16, 32]), st.integers(2, 5000),
    st.integers(8, 20_000),
)  # fmt: skip
def test_every_point_of_the_grid_is_allowed(
    requests: int, budget: int, block: int, blocks: int, longest: int
) -> None:
    limits = config(
        max_running_requests=requests, max_step_tokens=budget, block_tokens=block, num_blocks=blocks
    )
    points = default_grid(limits, longest)
    assert points
    assert len(set(points)) == len(points)
    for point in points:
        tokens = sum(chunk for chunk, _ in point.prefill) + len(point.decode_contexts)
        assert 1 <= tokens <= budget
        assert len(point.prefill) + len(point.decode_contexts) <= max(requests, 1)
        for chunk, context in [*point.prefill, *((1, age) for age in point.decode_contexts)]:
            assert chunk >= 1
            assert context >= 0
            assert chunk + context <= min(longest, block * blocks)


def test_the_grid_holds_out_one_in_four_of_each_kind() -> None:
    points = default_grid(config(), 8192)
    for kind in ("prefill", "decode", "mixed"):
        held = [is_held_out(i) for i, point in enumerate(points) if point.kind == kind]
        assert 0.15 < sum(held) / len(held) < 0.35, kind
    held_contexts = {p.prefill[0][1] for i, p in enumerate(points) if p.prefill and is_held_out(i)}
    assert len(held_contexts) >= 3, "held-out points must not all share one context"


def write_zone(folder: Path, energy: int) -> None:
    zone = folder / "intel-rapl:0"
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "max_energy_range_uj").write_text("1000000\n")
    (zone / "energy_uj").write_text(f"{energy}\n")


def test_power_counts_energy_over_a_wrap_around(tmp_path: Path) -> None:
    write_zone(tmp_path, 900_000)
    with PowerMeter("cpu", rapl=tmp_path) as meter:
        write_zone(tmp_path, 100_000)
    assert meter.mean_w is not None
    assert meter.mean_w > 0
    assert meter.source == "RAPL, processor packages"


def test_no_power_counter_is_a_reason_not_a_number(tmp_path: Path) -> None:
    with PowerMeter("cpu", rapl=tmp_path) as meter:
        pass
    assert meter.mean_w is None
    assert meter.reason
    write_zone(tmp_path, 5)
    with PowerMeter("cpu", rapl=tmp_path) as still:
        pass
    assert still.mean_w is None
    assert "did not move" in str(still.reason)


def test_power_on_a_device_that_may_be_absent() -> None:
    with PowerMeter("cuda") as meter:
        pass
    assert meter.mean_w is not None or meter.reason


@pytest.mark.parametrize("budget", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bad_budget(budget: float) -> None:
    with pytest.raises(InputError, match="budget_s"):
        measure_profile(budget_s=budget)


def test_an_unknown_device() -> None:
    with pytest.raises(InputError, match="tpu"):
        measure_profile(device="tpu")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real Llama of two small layers with random weights, saved as a user would have it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    transformers.LlamaForCausalLM(shape).save_pretrained(folder)
    words = {f"w{i}": i for i in range(128)}
    words_only = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words_only).save_pretrained(folder)
    return folder


def test_a_real_model_is_profiled_end_to_end(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("engine.inference.llm")
    grid = [
        *(GridPoint("prefill", ((chunk, context),), ()) for chunk in (1, 8, 64) for context in (0, 200)),
        *(GridPoint("decode", (), (age,) * batch) for batch in (1, 4, 16) for age in (10, 200)),
        *(GridPoint("mixed", ((32, 64),), (age,) * 4) for age in (10, 100)),
    ]
    seen: list[float] = []
    profile = measure_profile(
        str(tiny_model), budget_s=1.0, seed=3, progress=lambda done, _what: seen.append(done), grid=grid
    )
    assert profile.kind == "measured"
    assert profile.model.layers == 2
    assert profile.fit.train_points + profile.fit.held_out_points == len(grid) == len(profile.measurements)
    assert all(point.time_s > 0 and point.repeats >= 3 for point in profile.measurements)
    assert profile.step_time(prefill=[(8, 0)]) > 0
    assert profile.memory["peak_rss_bytes"] > profile.memory["weight_bytes"] > 0
    assert profile.hardware.threads >= 1
    assert profile.hardware.peak_flops
    assert profile.power["mean_w"] is not None or profile.power["reason"]
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    assert profile.scheduler_config().max_step_tokens == profile.scheduler["max_step_tokens"]
    assert (profile.training[0].batch_sequences, profile.training[0].sequence_tokens) == (1, 64)
    assert "tok/s, MFU" in dict(profile_rows(profile))["Training"]
    profile.save(tmp_path / "tiny.json")
    assert Profile.load(tmp_path / "tiny.json") == profile
    assert all(label and value for label, value in profile_rows(profile))


def test_the_default_grid_runs_on_a_real_model(tiny_model: Path) -> None:
    pytest.importorskip("engine.inference.llm")
    profile = measure_profile(str(tiny_model), budget_s=2.0, training=False)
    assert profile.training == ()
    assert "Training" not in dict(profile_rows(profile))
    assert {point.kind for point in profile.measurements} == {"prefill", "decode", "mixed"}
    assert profile.fit.held_out_points >= 5
