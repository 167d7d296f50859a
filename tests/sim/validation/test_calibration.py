"""Calibration moves the posterior towards the truth and narrows it; what it doesn't see stays as wide as it was."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.profile.profile import Profile
from engine.profile.step_time import RooflineStepTime, StepTimeUncertainty, basis
from sim.validation.calibrate_requests import calibrate_on_requests
from sim.validation.calibrate_steps import calibrate_on_steps, interval_rows
from sim.validation.posterior import coefficients, posterior_of, uncertainty_from, with_coefficients
from tests.helpers.observed import drawn_requests, fake_observation
from tests.helpers.profile import synthetic_profile

SEEN_STEPS = (
    ([], [200]), ([], [200] * 3), ([], [200] * 8), ([(100, 0)], [200] * 4), ([(300, 0)], [200] * 4),
)  # fmt: skip


def uncertain_profile(scatter: float = 0.08) -> Profile:
    profile = synthetic_profile()
    times = profile.coefficients
    mean = coefficients(times)
    known = uncertainty_from(np.diag((0.03 * mean) ** 2), scatter)
    return replace(
        profile,
        coefficients=replace(times, uncertainty=known),
        fit=replace(profile.fit, repeat_spread=0.03),
    )


def slower_truth(profile: Profile, seed: int, factor: float = 1.3) -> RooflineStepTime:
    """A machine as the profile may find it, and slower as a whole."""
    drawn = posterior_of(profile).draw(1, seed)[0]
    return with_coefficients(drawn, factor * coefficients(drawn))


def errors(times: RooflineStepTime, truth: RooflineStepTime) -> np.ndarray:
    return np.array([times.step_time(*step) / truth.step_time(*step) - 1 for step in SEEN_STEPS])


def sds(profile: Profile) -> np.ndarray:
    known = posterior_of(profile)
    times = profile.coefficients
    rows = np.array([basis(*step, times.token_knots, times.request_knots) for step in SEEN_STEPS])
    return known.relative_sd(rows)


@pytest.mark.parametrize("seed", range(4))
def test_steps_move_the_posterior_to_the_truth_and_narrow_it(seed: int) -> None:
    prior = uncertain_profile()
    truth = slower_truth(prior, seed)
    run = fake_observation(drawn_requests(150, 3.0, seed), truth, prior.scheduler_config(), 0.05, seed)
    after = calibrate_on_steps(prior, [run], "made up")
    assert np.abs(errors(prior.coefficients, truth)).max() > 0.1
    assert np.abs(errors(after.coefficients, truth)).max() < 0.02
    assert (sds(after) < 0.6 * sds(prior)).all()
    note = after.method["calibration"]
    assert note["source"] == "made up"
    assert note["prior_profile"] == prior.content_hash
    assert note["median_step_error_after"] < 0.06 < note["median_step_error_before"]


@pytest.mark.parametrize("seed", range(4))
def test_times_of_requests_do_too(seed: int) -> None:
    prior = uncertain_profile()
    truth = slower_truth(prior, seed)
    run = fake_observation(drawn_requests(150, 1.5, seed), truth, prior.scheduler_config(), 0.03, seed)
    after = calibrate_on_requests(prior, run.requests, "another server")
    before_error, after_error = errors(prior.coefficients, truth), errors(after.coefficients, truth)
    assert np.abs(after_error).mean() < 0.3 * np.abs(before_error).mean()
    assert sds(after).mean() < 0.7 * sds(prior).mean()
    assert after.method["calibration"]["on"] == "requests"
    assert after.method["calibration"]["requests"] == 150


def test_what_was_not_seen_stays_uncertain() -> None:
    prior = uncertain_profile()
    times = prior.coefficients
    requests = drawn_requests(40, 0.05).assign(prompt_tokens=20, output_tokens=30)  # one at a time
    run = fake_observation(requests, times, prior.scheduler_config(), 0.03)
    after = calibrate_on_steps(prior, [run], "one at a time")
    alone, many = (
        np.array([basis(*step, times.token_knots, times.request_knots)])
        for step in (([], [30]), ([(400, 0)], [200] * 30))
    )
    before = posterior_of(prior)
    found = posterior_of(after)
    assert found.relative_sd(alone)[0] < 0.5 * before.relative_sd(alone)[0]
    assert found.relative_sd(many)[0] > 0.7 * before.relative_sd(many)[0]


def test_a_machine_that_drifts_keeps_the_interval_wide() -> None:
    prior = uncertain_profile()
    truth, config = prior.coefficients, prior.scheduler_config()
    steady, drifting = [], []
    for number, factor in enumerate((0.9, 1.1, 0.95, 1.05)):
        requests = drawn_requests(80, 2.0, number)
        other = with_coefficients(truth, factor * coefficients(truth))
        steady.append(fake_observation(requests, truth, config, 0.03, number))
        drifting.append(fake_observation(requests, other, config, 0.03, number))
    calm, restless = (calibrate_on_steps(prior, runs, "four runs") for runs in (steady, drifting))
    assert (sds(calm) < sds(restless)).all()


def test_the_posterior_is_a_profile_like_any_other(tmp_path: Path) -> None:
    prior = uncertain_profile()
    run = fake_observation(drawn_requests(60, 2.0), prior.coefficients, prior.scheduler_config(), 0.05)
    after = calibrate_on_steps(prior, [run], "made up")
    after.save(tmp_path / "calibrated.json")
    assert Profile.load(tmp_path / "calibrated.json") == after
    assert after.kind == prior.kind
    assert after.content_hash != prior.content_hash
    again = calibrate_on_steps(after, [run], "again")
    assert (sds(again) < 1.05 * sds(after)).all()
    rows = interval_rows(prior, after)
    assert all(before.endswith("ms") and now.endswith("ms") for _, before, now in rows)
    with pytest.raises(ValueError, match="at least one"):
        calibrate_on_steps(prior, [replace(run, steps=run.steps.iloc[:0])], "nothing")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 0.5))
def test_whatever_is_drawn_is_a_step_time_model(seed: int, scatter: float) -> None:
    for times in posterior_of(uncertain_profile(scatter)).draw(5, seed):
        assert (coefficients(times) >= 0).all()
        assert times.constant_s > 0
        decode = [times.step_time([], [100] * batch) for batch in range(1, 100)]
        assert all(later >= earlier * (1 - 1e-12) for earlier, later in pairwise(decode))


def test_draws_have_the_mean_and_spread_that_they_say() -> None:
    profile = uncertain_profile()
    known, times = posterior_of(profile), profile.coefficients
    drawn = known.draw(600, 0)
    rows = np.array([basis(*step, times.token_knots, times.request_knots) for step in SEEN_STEPS])
    said = np.hypot(known.relative_sd(rows), known.run_sd)
    for step, sd in zip(SEEN_STEPS, said, strict=True):
        ratio = np.array([model.step_time(*step) for model in drawn]) / times.step_time(*step)
        assert ratio.mean() == pytest.approx(1.0, abs=0.02)
        assert ratio.std() == pytest.approx(sd, rel=0.2)


def test_a_profile_that_knows_no_uncertainty_gives_itself() -> None:
    profile = synthetic_profile()
    assert posterior_of(profile).draw(2)[1] == profile.coefficients


def test_an_uncertainty_comes_back_from_its_file_form() -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((4, 4))
    covariance = np.zeros((5, 5))
    covariance[:4, :4] = root @ root.T
    known = uncertainty_from(covariance, 0.1)
    assert isinstance(known, StepTimeUncertainty)
    assert known.active == (0, 1, 2, 3)
    row = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert known.variance(row) == pytest.approx(float(np.array(row) @ covariance @ row), rel=1e-6)
