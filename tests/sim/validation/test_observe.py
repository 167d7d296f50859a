"""The real engine under a known load: exact lengths, times in order, and the replay that must agree with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from engine.batch import SchedulerConfig
from engine.errors import InputError
from sim.serving.replay import equal_replicas, replay_fleet
from sim.validation.compare import RecordedSteps, measures, scheduler_errors, step_errors
from sim.validation.observe import Observation, build_prompts, full_prefix_hashes, observe, warm_up
from tests.helpers.observed import drawn_requests, fake_observation
from tests.helpers.profile import synthetic_profile

if TYPE_CHECKING:
    from engine.inference.llm import LLM


@pytest.fixture(scope="module")
def llm() -> LLM:
    pytest.importorskip("torch")
    from engine.inference.llm import LLM

    return LLM("llama-tiny@dummy", max_running_requests=4, max_step_tokens=32, kv_cache_tokens=1024)


@pytest.fixture(scope="module")
def observed(llm: LLM) -> tuple[pd.DataFrame, Observation]:
    requests = drawn_requests(30, 300.0)
    requests["prompt_tokens"] = requests["prompt_tokens"].clip(upper=100)
    requests["output_tokens"] = requests["output_tokens"].clip(upper=20)
    warm_up(llm)
    return requests, observe(llm, requests, seed=1)


def test_lengths_are_exact_and_times_in_order(observed: tuple[pd.DataFrame, Observation], llm: LLM) -> None:
    requests, run = observed
    frame, steps = run.requests, run.steps
    assert (frame["arrived_s"] == requests["arrived_s"]).all()
    for earlier, later in (
        ("arrived_s", "scheduled_s"), ("scheduled_s", "first_token_s"), ("first_token_s", "finished_s"),
    ):  # fmt: skip
        assert (frame[earlier] <= frame[later]).all(), later
    assert (steps["started_s"] <= steps["ended_s"]).all()
    assert (steps["ended_s"] <= steps["until_s"]).all()
    assert (steps["until_s"].to_numpy()[:-1] <= steps["started_s"].to_numpy()[1:]).all()
    prefilled = sum(chunk for chunks in steps["prefill"] for chunk, _ in chunks)
    decoded = sum(len(contexts) for contexts in steps["decode_contexts"])
    assert prefilled == requests["prompt_tokens"].sum()
    assert decoded == (requests["output_tokens"] - 1).sum()
    assert not llm.scheduler.has_work
    assert llm.on_step is None


def test_with_its_own_step_times_the_replay_gives_the_run_back(
    observed: tuple[pd.DataFrame, Observation], llm: LLM
) -> None:
    requests, run = observed
    times = synthetic_profile().step_time_model()
    frame, _ = replay_fleet(requests, equal_replicas(RecordedSteps(run, times), llm.config))
    # What is left: the first step after an idle time begins a little late.
    late = np.abs(frame["finished_s"] - run.requests["finished_s"]).max()
    assert late < 0.05 * run.requests["finished_s"].max()
    assert (frame["preemptions"] == run.requests["preemptions"]).all()


def test_equal_prefixes_are_found_by_both(llm: LLM) -> None:
    chain = [("shared", block) for block in range(3)]
    requests = pd.DataFrame(
        {
            "arrived_s": [0.0, 0.5, 0.6],
            "prompt_tokens": [60, 70, 60],
            "output_tokens": [3, 2, 1],
            "prefix_hashes": [chain, chain, []],
        }
    )
    run = observe(llm, requests)
    replayed, _ = replay_fleet(
        full_prefix_hashes(requests, 16),
        equal_replicas(synthetic_profile(speed=100).step_time_model(), llm.config),
    )
    assert run.requests["cached_tokens"].tolist() == replayed["cached_tokens"].tolist() == [0, 48, 0]
    again = observe(llm, requests)
    assert again.requests["cached_tokens"].tolist() == [0, 48, 0], "an observation begins with an empty cache"


def test_prompts_share_the_blocks_whose_keys_are_equal() -> None:
    requests = pd.DataFrame({"prompt_tokens": [40, 33, 8], "prefix_hashes": [["a", "b"], ["a", "c"], ["a"]]})
    first, second, short = build_prompts(requests, 16, 1000, seed=0)
    assert (len(first), len(second), len(short)) == (40, 33, 8)
    assert first[:16] == second[:16]
    assert first[16:32] != second[16:32]
    assert full_prefix_hashes(requests.assign(prompt_tokens=[48, 33, 8]), 16)["prefix_hashes"].tolist() == [
        ["a", "b", ("own", 0, 2)], ["a", "c"], [],
    ]  # fmt: skip


def test_a_follower_arrives_after_its_thinking_time(llm: LLM) -> None:
    requests = pd.DataFrame(
        {
            "arrived_s": [0.0, np.nan],
            "prompt_tokens": [20, 30],
            "output_tokens": [3, 2],
            "after": [-1, 0],
            "think_s": [0.0, 0.01],
        }
    )
    frame = observe(llm, requests).requests
    assert frame["arrived_s"][1] == pytest.approx(frame["finished_s"][0] + 0.01)
    assert frame["scheduled_s"][1] >= frame["arrived_s"][1]


def test_an_observation_is_read_back(observed: tuple[pd.DataFrame, Observation], tmp_path: Path) -> None:
    run = observed[1]
    run.provenance = {"machine": "here"}
    run.save(tmp_path)
    back = Observation.load(tmp_path)
    pd.testing.assert_frame_equal(back.requests, run.requests, check_dtype=False)
    assert back.steps["prefill"].tolist() == run.steps["prefill"].tolist()
    assert back.steps["decode_contexts"].tolist() == run.steps["decode_contexts"].tolist()
    assert back.provenance == run.provenance
    (tmp_path / "steps.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot be read"):
        Observation.load(tmp_path)


def test_what_does_not_fit_is_refused_before_anything_runs(llm: LLM) -> None:
    requests = pd.DataFrame({"arrived_s": [0.0, 1.0], "prompt_tokens": [10, 2000], "output_tokens": [5, 5]})
    with pytest.raises(InputError, match="row 1"):
        observe(llm, requests)
    assert not llm.scheduler.has_work
    llm.add_request([1, 2])
    try:
        with pytest.raises(ValueError, match="nothing to do"):
            observe(llm, requests[:1])
    finally:
        while llm.scheduler.has_work:
            llm.step()


def test_stepping_with_noise_and_replaying_its_steps_agree_exactly() -> None:
    config = SchedulerConfig(max_running_requests=8, max_step_tokens=256, num_blocks=256)
    truth = synthetic_profile().step_time_model()
    requests = drawn_requests(150, 3.0, seed=2)
    run = fake_observation(requests, truth, config, noise=0.3)
    assert scheduler_errors([run], requests, config, truth).abs().max() < 1e-9
    frame, _ = replay_fleet(requests, equal_replicas(RecordedSteps(run, truth), config))
    np.testing.assert_allclose(frame["finished_s"], run.requests["finished_s"], rtol=1e-9)
    assert measures(frame) == pytest.approx(measures(run.requests), rel=1e-9)
    assert step_errors([fake_observation(requests, truth, config)], truth)["median_error"] < 1e-12
