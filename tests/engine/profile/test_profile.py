"""The profile survives its file, refuses every other one, and its step times keep their promises."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import SchedulerConfig
from engine.errors import InputError
from engine.profile.cost import cost_table
from engine.profile.profile import Measurement, Profile
from engine.profile.step_time import RooflineStepTime, StepTimeModel
from engine.profiling.fit import fit_step_time
from sim.company.profile_rows import profile_rows
from tests.helpers.imports import loaded_by
from tests.helpers.places import ROOT
from tests.helpers.profile import synthetic_profile

contexts = st.lists(st.integers(0, 200_000), max_size=20)
chunks = st.lists(st.tuples(st.integers(1, 20_000), st.integers(0, 200_000)), max_size=5)
seconds = st.floats(0, 1e-2, allow_subnormal=False)


@st.composite
def models(draw: st.DrawFn) -> RooflineStepTime:
    knots = (0, *sorted(draw(st.sets(st.integers(1, 5000), max_size=4))))
    requests = (0, *sorted(draw(st.sets(st.integers(1, 100), max_size=2))))
    return RooflineStepTime(
        draw(seconds),
        knots,
        tuple(draw(seconds) for _ in knots),
        requests,
        tuple(draw(seconds) for _ in requests),
        *(draw(seconds) for _ in range(4)),
    )


@given(models(), st.lists(st.integers(0, 50_000), min_size=1, max_size=16), st.integers(1, 300))
def test_a_decode_run_is_the_sum_of_its_steps(model: RooflineStepTime, ages: list[int], steps: int) -> None:
    loop = sum(model.step_time([], [age + i for age in ages]) for i in range(steps))
    assert model.decode_run(ages, steps) == pytest.approx(loop, rel=1e-9, abs=1e-300)
    assert model.decode_run_from_sums(len(ages), sum(ages), steps) == model.decode_run(ages, steps)


@given(models(), chunks, contexts, st.integers(0, 10**6), st.integers(0, 100))
def test_more_work_never_takes_less_time(
    model: RooflineStepTime, prefill: list[tuple[int, int]], ages: list[int], more: int, which: int
) -> None:
    base = model.step_time(prefill, ages)
    slack = base * 1e-12
    assert model.step_time(prefill, [*ages, more]) >= base - slack
    assert model.step_time([*prefill, (more + 1, 0)], ages) >= base - slack
    if ages:
        older = [age + more * (i == which % len(ages)) for i, age in enumerate(ages)]
        assert model.step_time(prefill, older) >= base - slack
    if prefill:
        longer, later = list(prefill), list(prefill)
        tokens, context = prefill[which % len(prefill)]
        longer[which % len(prefill)] = (tokens + more, context)
        later[which % len(prefill)] = (tokens, context + more)
        assert model.step_time(longer, ages) >= base - slack
        assert model.step_time(later, ages) >= base - slack


def test_the_ramps_are_continuous_and_go_on_beyond_the_last_knot() -> None:
    model = RooflineStepTime(0.0, (0, 10, 20), (1.0, 2.0, 3.0), (0,), (0.0,), 0.0, 0.0, 0.0, 0.0)
    times = [model.step_time([(tokens, 0)], []) for tokens in range(1, 31)]
    assert times[9:11] == [10.0, 12.0]
    assert times[-1] == 10 + 20 + 30
    assert all(later > earlier for earlier, later in pairwise(times))


def test_an_empty_step_takes_no_time() -> None:
    assert synthetic_profile().step_time() == 0.0


def test_it_is_a_step_time_model() -> None:
    assert isinstance(synthetic_profile().step_time_model(), StepTimeModel)


def measured() -> Profile:
    points = (
        Measurement("prefill", ((128, 0),), (), 0.12, 0.02, 5, False),
        Measurement("mixed", ((64, 256),), (5, 10), 0.09, 0.01, 5, True),
    )
    return replace(synthetic_profile(), kind="measured", measurements=points)


def test_round_trip(tmp_path: Path) -> None:
    profile = measured()
    path = tmp_path / "below" / "profile.json"
    profile.save(path)
    again = Profile.load(path)
    assert again == profile
    assert again.content_hash == profile.content_hash
    assert len(profile.content_hash) == 64
    assert [p.name for p in path.parent.iterdir()] == ["profile.json"]


def test_the_hash_tells_profiles_apart() -> None:
    assert synthetic_profile().content_hash == synthetic_profile().content_hash
    assert synthetic_profile(speed=1.001).content_hash != synthetic_profile().content_hash


def test_a_profile_without_measurements_is_saved_too(tmp_path: Path) -> None:
    synthetic_profile().save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == synthetic_profile()


def edit(tmp_path: Path, keys: str, value: Any) -> Path:
    """A saved profile with one value replaced, or deleted when `value` is `...`."""
    path = tmp_path / "edited.json"
    measured().save(path)
    content = place = json.loads(path.read_text(encoding="utf-8"))
    *parents, last = keys.split(".")
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    if value is ...:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("keys", "value", "parts"),
    [
        ("schema_version", 99, ["schema_version", "99", "1"]),
        ("schema_version", True, ["schema_version"]),
        ("schema_version", ..., ["schema_version", "missing"]),
        ("kind", "guessed", ["kind", "guessed", "measured"]),
        ("model.layers", ..., ["model.layers", "missing"]),
        ("model.layers", "30", ["model.layers", '"30"', "whole number"]),
        ("model.layers", 30.5, ["model.layers", "30.5", "whole number"]),
        ("model.layers", True, ["model.layers", "true", "whole number"]),
        ("model.layer", 3, ["model.layer", "unknown", "layers"]),
        ("model", [1, 2], ["model", "a list of 2", "an object"]),
        ("hardware.price_usd_per_hour", -0.1, ["hardware.price_usd_per_hour", "-0.1", "≥ 0"]),
        ("hardware.name", None, ["hardware.name", "null", "text"]),
        ("coefficients.constant_s", -1e-9, ["coefficients.constant_s", "≥ 0"]),
        ("coefficients.token_knots", [1, 2, 3, 4], ["coefficients", "start at 0"]),
        ("coefficients.token_knots", [0, 9, 9, 4], ["coefficients", "increase"]),
        ("coefficients.token_slopes_s", [1.0], ["coefficients", "one slope each"]),
        ("measurements.1.prefill", [[64]], ["measurements[1].prefill[0]", "list of 2"]),
        ("measurements.0.time_s", None, ["measurements[0].time_s", "null"]),
        ("memory.weight_bytes", -5, ["memory.weight_bytes", "-5"]),
        ("power.mean_w", -5, ["power.mean_w", "-5"]),
        ("method", "fast", ["method", '"fast"', "object"]),
    ],
)
def test_a_wrong_key_is_one_clear_line(tmp_path: Path, keys: str, value: Any, parts: list[str]) -> None:
    path = edit(tmp_path, keys, value)
    with pytest.raises(InputError) as refused:
        Profile.load(path)
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "line 1"),
        (b"[1, 2]", "a list of 2"),
        (b'"profile"', "allowed is an object"),
        (b'{"schema_version": NaN}', "NaN"),
        (b"\xff\xfe{}", "UTF-8"),
        (b"{}", "schema_version"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_file_that_is_no_profile(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        Profile.load(path)
    assert part in str(refused.value)
    assert str(path) in str(refused.value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.json"
    measured().save(whole)
    text = whole.read_bytes()
    cut = tmp_path / "cut.json"
    for length in range(0, len(text) - 2, 97):
        cut.write_bytes(text[:length])
        with pytest.raises(InputError):
            Profile.load(cut)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            Profile.load(path)


def test_a_profile_of_another_model() -> None:
    profile = synthetic_profile()
    assert profile.require_model("smollm2-135m") is profile
    with pytest.raises(InputError, match=r"smollm2-135m.*gpt2"):
        profile.require_model("gpt2", "p.json")


def test_scheduler_config() -> None:
    pytest.importorskip("engine.scheduler")
    assert synthetic_profile().scheduler_config().max_step_tokens == 512
    with pytest.raises(InputError, match=r"scheduler\.max_tokens"):
        replace(synthetic_profile(), scheduler={"max_tokens": 1}).scheduler_config()


def test_cost_follows_from_the_time_of_a_token() -> None:
    # 1 ms per prompt token and 10 ms per decode step of any batch, nothing else.
    times = RooflineStepTime(0.0, (0,), (1e-3,), (0,), (0.0,), 0.0, 0.0, 0.0, 0.0)
    table = cost_table(times, 3.6, SchedulerConfig(num_blocks=10**5), 8192)
    # 3.6 USD per hour is 0.001 USD per second: 1 ms per token is 1e-6 USD, a dollar per million.
    assert table.usd_per_mtok_prompt_full == pytest.approx(1.0)
    assert table.usd_per_mtok_output_full == pytest.approx(1.0)
    assert table.usd_per_mtok_prompt_typical == pytest.approx(2.5)
    assert table.usd_per_mtok_output_typical == pytest.approx(2.5)
    assert table.efficient_batch == 1  # a larger batch gains nothing


def test_the_efficient_batch_fits_the_cache() -> None:
    # Batching is free here, so the largest batch is the best; the cache has room for seven.
    times = RooflineStepTime(0.01, (0,), (0.0,), (0,), (0.0,), 0.0, 0.0, 0.0, 0.0)
    table = cost_table(times, 1.0, SchedulerConfig(block_tokens=1, num_blocks=7 * 1153), 8192)
    assert table.efficient_batch == 7


@given(st.floats(0.01, 1.0), st.integers(1, 100_000), st.integers(1, 8192))
def test_cost_is_finite_and_typical_load_costs_more(load: float, room: int, budget: int) -> None:
    limits = SchedulerConfig(max_step_tokens=budget, block_tokens=1, num_blocks=room)
    table = cost_table(synthetic_profile().step_time_model(), 0.05, limits, 8192, load)
    for full, typical in (
        (table.usd_per_mtok_prompt_full, table.usd_per_mtok_prompt_typical),
        (table.usd_per_mtok_output_full, table.usd_per_mtok_output_typical),
    ):
        assert 0 < full <= typical < float("inf")
        assert typical == pytest.approx(full / load)


def test_reading_a_profile_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "pydantic", "scipy", "pandas", "numpy")
    assert (
        loaded_by(
            "engine.profile.profile, engine.profile.cost, engine.profile.hardware, engine.profile.step_time",
            heavy,
        )
        == []
    )


def noisy_steps(
    truth: RooflineStepTime, noise: float, seed: int, count: int = 120
) -> tuple[list[tuple[list[tuple[int, int]], list[int]]], list[float]]:
    """Random steps and their times with log-normal noise."""
    draw = random.Random(seed)
    steps = []
    for _ in range(count):
        chunks = [(draw.choice((1, 16, 64, 256, 512)), draw.choice((0, 256, 2048)))] * draw.choice(
            (0, 1, 1, 3)
        )
        ages = [draw.randrange(1, 4096)] * draw.choice((1, 2, 4, 8, 16, 32, 48))
        steps.append((chunks, ages))
    return steps, [truth.step_time(*step) * math.exp(draw.gauss(0, noise)) for step in steps]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.005, 0.1))
def test_nine_in_ten_unseen_steps_lie_within_their_interval(seed: int, noise: float) -> None:
    truth = synthetic_profile().step_time_model()
    model = fit_step_time(*noisy_steps(truth, noise, seed))
    unseen, times = noisy_steps(truth, noise, seed + 1, count=400)
    inside = 0
    for step, time in zip(unseen, times, strict=True):
        low, high = model.interval(*step)
        assert low < model.step_time(*step) < high
        inside += low <= time <= high
    assert 0.82 <= inside / len(unseen) <= 0.985


def test_the_interval_narrows_with_the_level_and_widens_beyond_the_grid() -> None:
    model = fit_step_time(*noisy_steps(synthetic_profile().step_time_model(), 0.05, seed=3))
    widths = [high / low for low, high in (model.interval([], [100], level) for level in (0.5, 0.9, 0.99))]
    assert widths == sorted(widths)
    inside, beyond = (
        high / low for low, high in (model.interval([(chunk, 0)], []) for chunk in (256, 100_000))
    )
    assert beyond > inside
    with pytest.raises(ValueError, match="level 1"):
        model.interval([], [1], 1)


def test_a_profile_keeps_its_uncertainty_and_an_older_one_has_none(tmp_path: Path) -> None:
    model = fit_step_time(*noisy_steps(synthetic_profile().step_time_model(), 0.05, seed=4))
    profile = replace(synthetic_profile(), coefficients=model)
    profile.save(tmp_path / "p.json")
    again = Profile.load(tmp_path / "p.json")
    assert again == profile
    assert again.step_time_interval([(64, 0)], [5]) == model.interval([(64, 0)], [5])
    assert "90 % interval" in dict(profile_rows(again))
    assert synthetic_profile().step_time_interval([(64, 0)]) == (0.0, math.inf)
    assert "uncertainty" not in synthetic_profile().canonical_json()


SHIPPED = sorted((ROOT / "engine" / "profile" / "shipped").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_profile_is_whole_and_agrees_with_its_own_fit(path: Path) -> None:
    profile = Profile.load(path)
    assert profile.model.name == path.stem.replace("--", "/")
    held = [point for point in profile.measurements if point.held_out]
    assert len(held) == profile.fit.held_out_points > 0
    errors = sorted(
        abs(profile.step_time(point.prefill, point.decode_contexts) / point.time_s - 1) for point in held
    )
    assert errors[-1] == pytest.approx(profile.fit.max_relative_error, rel=1e-6)
    assert profile.fit.median_relative_error < 0.1
    assert profile.scheduler_config().num_blocks > 0


def test_steps_held_out_of_the_shipped_profiles_lie_within_their_interval() -> None:
    inside = total = 0
    for profile in map(Profile.load, SHIPPED):
        seen = [point for point in profile.measurements if not point.held_out]
        model = fit_step_time(
            [(point.prefill, point.decode_contexts) for point in seen], [point.time_s for point in seen]
        )
        for point in profile.measurements:
            if point.held_out:
                low, high = model.interval(point.prefill, point.decode_contexts)
                inside += low <= point.time_s <= high
                total += 1
    assert total > 0
    assert inside / total >= 0.7  # nominally 90 %; the held-out points are few


def test_the_bundled_model_has_a_shipped_profile() -> None:
    assert "smollm2-135m" in [path.stem for path in SHIPPED]
