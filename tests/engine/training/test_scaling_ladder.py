"""loss(N, D) from real small trainings: the ladder, the law's uncertainty, and its file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import InputError
from engine.training.config import TrainConfig
from engine.training.data import PreparedData, prepare, train_tokenizer
from engine.training.python_docs import standard_library
from engine.training.scaling_fit import held_out, intervals, undetermined, with_draws
from engine.training.scaling_ladder import LadderOptions, learning_curve, run_ladder
from engine.training.scaling_law import ScalingConstants, fit, load_law, loss, loss_interval

TINY = TrainConfig(
    architecture="bloom",
    steps=80,
    batch_sequences=4,
    sequence_tokens=32,
    learning_rate=5e-3,
    max_validation_sequences=16,
    peak_flops=1e11,
)
TRUTH = ScalingConstants(E=1.5, A=40, B=120, alpha=0.35, beta=0.35)
GRID = [(n, d) for n in (5e4, 1.2e5, 3e5, 8e5) for d in (2e5, 4e5, 8e5, 1.6e6)]


@pytest.fixture(scope="module")
def data() -> PreparedData:
    documents = standard_library(0.8)
    tokenizer = train_tokenizer([document.text for document in documents], 300)
    return prepare(documents, tokenizer, TINY.sequence_tokens)


def noisy_points(seed: int, noise: float = 0.004) -> list[tuple[float, float, float]]:
    rng = np.random.default_rng(seed)
    return [(n, d, loss(n, d, TRUTH) * float(np.exp(rng.normal(0, noise)))) for n, d in GRID]


def test_a_ladder_measures_a_law_and_its_file_gives_it_back(data: PreparedData, tmp_path: Path) -> None:
    seen: list[float] = []
    report = run_ladder(
        data,
        TINY,
        LadderOptions([(1, 16), (1, 24), (1, 32)], token_counts=3, text="a test"),
        progress=lambda fraction, what: seen.append(fraction),
    )
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)
    assert len(report.points) == 9
    assert {d for _, d, _ in report.points} == {20 * 128, 40 * 128, 80 * 128}
    for i in range(0, 9, 3):
        losses = [point[2] for point in report.points[i : i + 3]]
        assert losses == sorted(losses, reverse=True)  # more tokens, lower loss
    report.save(tmp_path / "scaling.json")
    law = load_law(tmp_path / "scaling.json")
    assert law == report.law
    assert "a test" in law.source
    assert json.loads((tmp_path / "scaling.json").read_text())["held_out"]["largest_size_max_error"] is None


def test_a_branch_leaves_the_trunk_alone(data: PreparedData) -> None:
    config = replace(TINY, layers=1, hidden_size=16)
    _, both, _ = learning_curve(config, data, [20, 80])
    _, alone, _ = learning_curve(config, data, [20])
    assert both[0] == alone[0]
    assert learning_curve(config, data, [20, 80])[1] == both  # the same seed gives the same losses
    assert learning_curve(replace(config, seed=1), data, [20, 80])[1] != both


@pytest.mark.slow
def test_the_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    inside = {"E": 0, "alpha": 0, "beta": 0, "loss": 0}
    for seed in range(10):
        points = noisy_points(seed)
        law = with_draws(fit(points), points, draws=50, seed=seed)
        for name, (low, high) in intervals(law).items():
            if name in inside:
                inside[name] += low <= getattr(TRUTH, name) <= high
        low, high = loss_interval(2e6, 4e6, law)
        inside["loss"] += low <= loss(2e6, 4e6, TRUTH) <= high
    assert all(count >= 6 for count in inside.values()), inside  # 9 of 10 are expected


@pytest.mark.slow
def test_the_covariance_is_that_of_the_draws() -> None:
    points = noisy_points(1)
    law = with_draws(fit(points), points, draws=50)
    assert law == with_draws(fit(points), points, draws=50)
    covariance = law.covariance
    assert covariance is not None
    assert covariance.shape == (5, 5)
    assert np.linalg.eigvalsh(covariance).min() > -1e-9
    assert covariance[3, 3] == pytest.approx(np.var([draw[3] for draw in law.draws], ddof=1))
    assert TRUTH.covariance is None
    assert intervals(TRUTH) == {}
    assert undetermined(law) == []
    vague = [(n, d, loss(n, d, ScalingConstants(E=1e-6, A=5, B=500, alpha=0.05, beta=0.5))) for n, d in GRID]
    rng = np.random.default_rng(0)
    vague = [(n, d, value * float(np.exp(rng.normal(0, 0.006)))) for n, d, value in vague]
    assert "E" in undetermined(with_draws(fit(vague), vague, draws=50))


@pytest.mark.slow
def test_a_largest_size_that_breaks_the_law_shows_in_the_held_out_error() -> None:
    points = noisy_points(2, noise=0.0)
    fine = held_out(points)
    assert fine.largest_size_max_error == pytest.approx(0, abs=2e-3)
    broken = held_out([(n, d, measured * (1.1 if n == 8e5 else 1.0)) for n, d, measured in points])
    assert broken.largest_size_median_error == pytest.approx(1 - 1 / 1.1, abs=5e-3)
    assert held_out(points[:12]).largest_size_max_error is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 40}, "the shortest run would have 5 steps"),
        ({"steps": 10**6}, "tokens are asked for, the text has"),
    ],
)
def test_a_ladder_that_cannot_be_climbed_is_refused(
    change: dict[str, Any], message: str, data: PreparedData
) -> None:
    with pytest.raises(InputError, match=message):
        run_ladder(data, replace(TINY, **change), LadderOptions([(1, 16), (1, 24), (1, 32)]))


def test_too_few_sizes_are_refused(data: PreparedData) -> None:
    with pytest.raises(InputError, match="2 sizes and 4 token counts; at least 3"):
        run_ladder(data, TINY, LadderOptions([(1, 16), (1, 24), (1, 16)]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "constants: missing"),
        ('{"constants": {"E": 1, "A": 1, "B": 1, "alpha": 0.3}}', "constants.beta: missing"),
        ('{"constants": {"E": 1, "A": 1, "B": 1, "alpha": 0.3, "beta": -1}}', "constants.beta: found -1"),
        ('{"constants": {"E": 1, "A": 0, "B": 1, "alpha": 0.3, "beta": 1}}', "A is 0"),
        (
            '{"constants": {"E": 1, "A": 1, "B": 1, "alpha": 0.3, "beta": 1}, "draws": [[1, 2]]}',
            r"draws\[0\]: allowed is a list of E, A, B, alpha, beta",
        ),
    ],
)
def test_a_bad_law_file_says_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "law.json").write_text(text)
    with pytest.raises(InputError, match=rf"law\.json: .*{message}"):
        load_law(tmp_path / "law.json")


def test_a_law_written_by_hand_needs_its_constants_only(tmp_path: Path) -> None:
    (tmp_path / "law.json").write_text('{"constants": {"E": 1, "A": 2, "B": 3, "alpha": 0.3, "beta": 0.4}}')
    law = load_law(tmp_path / "law.json")
    assert loss(1e6, 1e6, law) == loss(1e6, 1e6, ScalingConstants(1, 2, 3, 0.3, 0.4))
    with pytest.raises(InputError, match="no interval is known"):
        loss_interval(1e6, 1e6, law)


@pytest.mark.slow
def test_a_real_ladder_predicts_its_largest_size() -> None:
    documents = standard_library(3)
    tokenizer = train_tokenizer([document.text for document in documents], 512)
    data = prepare(documents, tokenizer, 64)
    config = replace(
        TINY,
        steps=960,
        batch_sequences=8,
        sequence_tokens=64,
        learning_rate=4e-3,
        max_validation_sequences=128,
    )
    report = run_ladder(data, config, LadderOptions([(2, 32), (2, 48), (2, 72), (3, 96)]))
    assert report.fitted.median_relative_error < 0.03
    assert report.held_out.largest_size_median_error is not None
    assert report.held_out.largest_size_median_error < 0.1
    assert report.points[-1][2] < report.points[3][2]  # the largest beats the smallest on the same tokens
