"""Distributions in a scenario: their quantiles against scipy's, their text, their refusals, and what a file keeps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from engine.errors import InputError
from sim.company.simulate import simulate
from sim.scenario.correlation import correlate, factor, normal_correlation
from sim.scenario.distributions import SHARE_MIN, parse_distribution
from sim.scenario.scenario import Scenario
from sim.utils.paths import scenarios_dir

PRICE = "market.price_usd_per_mtok_output"
SHARES = np.array([1e-9, 0.001, 0.05, 0.3, 0.5, 0.77, 0.95, 0.999, 1 - 1e-9])
TWINS = [
    ("~ normal(mean=2, sd=0.5)", stats.norm(2, 0.5)),
    ("~ lognormal(median=0.8, sigma=0.25)", stats.lognorm(0.25, scale=0.8)),
    ("~ uniform(1, 3)", stats.uniform(1, 2)),
    ("~ loguniform(0.01, 100)", stats.loguniform(0.01, 100)),
    ("~ triangular(1, 2, 5)", stats.triang(0.25, 1, 4)),
    ("~ triangular(1, 1, 5)", stats.triang(0.0, 1, 4)),
    ("~ triangular(1, 5, 5)", stats.triang(1.0, 1, 4)),
    ("~ pert(1, 2, 5)", stats.beta(2, 4, 1, 4)),
]


def refusal(text: str) -> str:
    with pytest.raises(InputError) as error:
        parse_distribution(text)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("text", "twin"), TWINS)
def test_quantiles_are_scipys(text: str, twin: Any) -> None:
    found = parse_distribution(text)
    np.testing.assert_allclose(found.quantile(SHARES), twin.ppf(SHARES), rtol=1e-9, atol=1e-12)
    assert found.median == pytest.approx(twin.median(), rel=1e-12)


@pytest.mark.parametrize(("text", "twin"), TWINS)
def test_moments_of_a_sample_are_those_of_the_distribution(text: str, twin: Any) -> None:
    drawn = parse_distribution(text).quantile(np.random.default_rng(1).random(40_000))
    assert abs(drawn.mean() - twin.mean()) < 4.5 * twin.std() / math.sqrt(len(drawn))
    assert drawn.std() == pytest.approx(twin.std(), rel=0.15 if "log" in text else 0.03)


@pytest.mark.parametrize(("text", "twin"), TWINS)
def test_a_cut_distribution_is_the_conditional_one(text: str, twin: Any) -> None:
    low, high = twin.ppf([0.2, 0.7]).tolist()
    drawn = parse_distribution(f"{text} within [{low!r}, {high!r}]").quantile(SHARES)
    np.testing.assert_allclose(drawn, twin.ppf(0.2 + SHARES * 0.5), rtol=1e-7)


def test_listed_values_are_drawn_by_their_weights() -> None:
    steps = parse_distribution("~ discrete(values=[3, 1, 2], weights=[0.2, 0.5, 0.3])")
    assert steps.quantile([0.1, 0.5, 0.51, 0.8, 0.81, 1.0]).tolist() == [1, 1, 2, 2, 3, 3]
    assert parse_distribution("~ discrete([4, 6]) within [5, 7]").quantile([0.01, 0.99]).tolist() == [6, 6]
    data = [3.0, 9.0, 1.0, 4.0, 4.5]
    found = parse_distribution(f"~ empirical({data})")
    np.testing.assert_allclose(found.quantile(SHARES), np.quantile(data, SHARES))


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e3), st.lists(st.floats(0, 1), min_size=2, max_size=20))
@settings(max_examples=50, deadline=None)
def test_quantiles_rise_and_the_text_reads_back(middle: float, width: float, shares: list[float]) -> None:
    for text in (
        f"~ normal({middle!r}, {width!r})",
        f"~ triangular({middle - width!r}, {middle!r}, {middle + 2 * width!r})",
        f"~ pert({middle - width!r}, {middle!r}, {middle + 2 * width!r}) within [{middle - width / 2!r}, 1e9]",
    ):
        found = parse_distribution(text)
        assert parse_distribution(found.text) == found
        values = found.quantile(sorted(shares))
        assert (np.diff(values) >= 0).all()
        low, high = found.range
        assert low <= values.min() <= values.max() <= high


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("~ cauchy(0, 1)", ["'cauchy'", "allowed: normal, lognormal"]),
        ("~ normal(1)", ["without sd", "normal(mean, sd)"]),
        ("~ normal(1, 2, 3)", ["allowed: normal(mean, sd)"]),
        ("~ normal(mean=1, width=3)", ["allowed: normal(mean, sd)"]),
        ("~ normal(1, 0)", ["sd=0", "allowed: sd > 0"]),
        ("~ lognormal(-1, 0.2)", ["median=-1", "median > 0"]),
        ("~ uniform(3, 1)", ["low < high"]),
        ("~ pert(1, 7, 5)", ["low ≤ mode ≤ high"]),
        ("~ normal(1, nan)", ["sd: found 'nan'", "a number"]),
        ("~ normal(1, 2", ["allowed: for example"]),
        ("~ normal(1, 2) within [3, 1]", ["the lower end first"]),
        ("~ uniform(0, 1) within [5, 6]", ["leaves nothing"]),
        ("~ discrete([1, 2], [1])", ["weights"]),
        ("~ discrete([])", ["found 0"]),
        ("~ empirical([1])", ["2 to 10,000"]),
        ("~ empirical(prices.csv)", ["a list in square brackets"]),
        ("~ __import__('os')", ["allowed: for example"]),
    ],
)
def test_a_wrong_distribution_says_what_is_allowed(text: str, parts: list[str]) -> None:
    message = refusal(text)
    for part in parts:
        assert part in message


def written(tmp_path: Path, old: str, new: str) -> Path:
    text = (scenarios_dir() / "chat_subscription.yaml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def test_a_file_keeps_its_distribution_and_runs_its_median(tmp_path: Path) -> None:
    path = written(tmp_path, "seed: 7 ", "seed: 7 ")
    plain = Scenario.load(path)
    low, high = 0.9 * plain.market.signup_cost_usd, 1.1 * plain.market.signup_cost_usd
    made = plain.override({"market.signup_cost_usd": f"~ uniform({low}, {high})"})
    assert made.market.signup_cost_usd == pytest.approx(plain.market.signup_cost_usd)
    made.save(path)
    again = Scenario.load(path)
    assert list(again.uncertain) == ["market.signup_cost_usd"]
    assert again.content_hash == made.content_hash != plain.content_hash
    assert again.to_yaml() == path.read_text(encoding="utf-8")
    certain = again.override({"market.signup_cost_usd": plain.market.signup_cost_usd})
    assert not certain.uncertain
    assert certain.content_hash == plain.content_hash
    assert Scenario.parse(again.plain()).content_hash == again.content_hash
    assert Scenario.parse(Scenario.parse(again.plain()).plain()).uncertain == again.uncertain


def test_a_scenario_made_in_code_writes_its_distributions(tmp_path: Path) -> None:
    made = Scenario.parse(
        {
            "market": {
                "plans": {"api": {"pays_per_token": True, "churn_per_month": "~ pert(0.01, 0.03, 0.1)"}},
                "price_usd_per_mtok_output": "~ uniform(1, 2)",
            },
            "uncertainty": {
                "correlations": [{"between": [PRICE, "market.plans.api.churn_per_month"], "rank": 0.5}],
                "targets": {"cash_usd_min": ">= 0"},
            },
        }
    )
    made.save(tmp_path / "made.yaml")
    assert Scenario.load(tmp_path / "made.yaml").content_hash == made.content_hash


def test_whole_numbers_stay_whole() -> None:
    scenario = Scenario.load("chat_subscription").override({"deployment.min_replicas": "~ uniform(1, 6)"})
    found = scenario.uncertain["deployment.min_replicas"]
    assert isinstance(scenario.deployment.min_replicas, int)
    assert set(found.quantile(np.linspace(0, 1, 101)).tolist()) == {1, 2, 3, 4, 5, 6}


def test_a_file_of_values_lies_beside_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "prices.csv").write_text("price\n1.0\n2.5\n2\n", encoding="utf-8")
    cost = Scenario.load("chat_subscription").market.signup_cost_usd
    line = f"signup_cost_usd: {cost:.12g} "
    path = written(tmp_path, line, "signup_cost_usd: ~ empirical(prices.csv) ")
    found = Scenario.load(path).uncertain["market.signup_cost_usd"]
    assert found.parameters == ((1.0, 2.5, 2.0),)
    assert found.median == 2.0
    (tmp_path / "prices.csv").write_text("price\n1.0\nmany\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"mine.yaml: line \d+: market.signup_cost_usd: .*line 3: found 'many'"
    ):
        Scenario.load(path)
    with pytest.raises(InputError, match="square brackets"):
        Scenario.load("chat_subscription").override({"market.signup_cost_usd": "~ empirical(prices.csv)"})


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"market.churn_per_quality": "~ normal(5, 2)"},
            ["churn_per_quality", "reaches -9", "≥ 0", "within [low, high]"],
        ),
        ({"horizon_months": "~ uniform(-3, 40)"}, ["horizon_months", "a whole number ≥ 1"]),
        ({"market.plans.free.signup_share": "~ uniform(0.1, 0.2)"}, ["signup_share"]),
        ({"market.signup_cost_usd": "~ maybe"}, ["signup_cost_usd", "allowed: for example"]),
        ({"market.plans.free.pays_per_token": "~ uniform(0, 1)"}, ["true or false"]),
        ({"uncertainty.targets": {"cash": ">= 0"}}, ["uncertainty.targets.cash", "nearest is cash_usd_min"]),
        ({"uncertainty.targets": {"cash_usd_min": "much"}}, ["uncertainty.targets.cash_usd_min"]),
        (
            {"uncertainty.correlations": [{"between": ["market.signup_cost_us", "seed"], "rank": 0.5}]},
            ["unknown key, nearest is market.signup_cost_usd"],
        ),
    ],
)
def test_a_scenario_refuses_what_no_run_could_use(changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        Scenario.load("chat_subscription").override(changes)
    for part in parts:
        assert part in str(error.value)


def test_a_text_may_begin_with_a_tilde() -> None:
    assert Scenario.load("chat_subscription").override({"name": "~ uniform(1, 2)"}).name == "~ uniform(1, 2)"


def test_ranks_that_contradict_each_other_are_refused() -> None:
    keys = ["market.signup_cost_usd", "market.signup_elasticity", "market.churn_per_quality"]
    changes: dict[str, Any] = dict.fromkeys(keys, "~ uniform(1, 2)")
    pairs = [(0, 1, 0.9), (1, 2, 0.9), (0, 2, -0.9)]
    changes["uncertainty.correlations"] = [
        {"between": [keys[a], keys[b]], "rank": rank} for a, b, rank in pairs
    ]
    with pytest.raises(
        InputError, match=r"uncertainty.correlations: .*positive semidefinite.*eigenvalue"
    ) as error:
        Scenario.load("chat_subscription").override(changes)
    assert "market.signup_elasticity" in str(error.value)


@pytest.mark.parametrize("rank", [-1.0, -0.6, 0.3, 0.9, 1.0])
def test_the_copula_gives_the_rank_correlation_asked_for(rank: float) -> None:
    matrix = normal_correlation(["a", "b", "c"], [("a", "b", rank)])
    shares = np.random.default_rng(3).random((20_000, 3))
    moved = correlate(shares, matrix)
    together = stats.spearmanr(np.exp(moved[:, 0]), moved[:, 1] ** 3).statistic
    assert together == pytest.approx(rank, abs=0.02)
    np.testing.assert_allclose(moved[:, [0, 2]], shares[:, [0, 2]], atol=1e-9)
    assert stats.kstest(moved[:, 1], "uniform").pvalue > 0.001


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_the_factor_of_any_correlation_matrix(size: int, seed: int) -> None:
    # Fewer directions than keys make it singular.
    rows = np.random.default_rng(seed).normal(size=(size, max(1, size - seed % 2)))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    matrix = rows @ rows.T
    lower = factor(matrix)
    np.testing.assert_allclose(lower @ lower.T, matrix, atol=1e-6)
    assert (np.triu(lower, 1) == 0).all()


@pytest.mark.parametrize("name", ["api_startup", "enterprise_finetune"])
def test_a_shipped_company_runs_exactly_its_medians(name: str) -> None:
    scenario = Scenario.load(name)
    assert len(scenario.uncertain) >= 5
    medians = {key: distribution.median for key, distribution in scenario.uncertain.items()}
    certain = scenario.override(medians)
    assert not certain.uncertain
    both = [simulate(company, seed=3).ledger.content_hash() for company in (scenario, certain)]
    assert both[0] == both[1]
    for key, distribution in scenario.uncertain.items():
        assert distribution.quantile(0.5) == distribution.median, key


def test_shares_at_the_edge_are_finite() -> None:
    low, high = parse_distribution("~ normal(0, 1)").quantile([0.0, 1.0])
    assert (low, high) == pytest.approx((stats.norm.ppf(SHARE_MIN), -stats.norm.ppf(SHARE_MIN)), rel=1e-4)
