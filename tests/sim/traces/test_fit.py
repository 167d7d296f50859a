"""A generator fitted to a trace: it finds what made the trace, says how well it fits, and keeps in a file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from engine.errors import InputError
from sim.cli import workload as cli_workload
from sim.traces import fit
from sim.traces.fit import FittedWorkload
from sim.traces.fit_arrivals import fit_arrivals, modulated_log_likelihood
from sim.traces.fit_quality import ks_distance
from sim.traces.read import read_trace, write_trace
from sim.workload.arrivals import GammaRenewal, GapTable, MarkovModulated, arrival_times
from sim.workload.conversations import closed_loop
from sim.workload.generate import generate
from sim.workload.traffic_classes import TrafficClass

BURSTY = MarkovModulated((1.0, 10.0), (30.0, 6.0))


@pytest.fixture(scope="module")
def requests() -> pd.DataFrame:
    kinds = {
        "lognormal": TrafficClass("lognormal", 300, 500, 100, 160, rank_correlation=0.5),
        "steps": TrafficClass(
            "steps", 20, 20, 5, 5, prompt_quantiles=((0, 10), (0.5, 10), (0.501, 900), (1, 900))
        ),
    }
    mix = {"lognormal": 0.6, "steps": 0.4}
    return generate(mix, 4.0, requests=6000, rng=11, classes=kinds, process=BURSTY)


@pytest.fixture(scope="module")
def fitted(requests: pd.DataFrame) -> FittedWorkload:
    return fit.fit(requests, "made up")


def test_poisson_is_recognised() -> None:
    found = fit_arrivals(arrival_times(3.0, requests=4000, rng=1))
    assert found.process is None
    assert found.rate_rps == pytest.approx(3.0, rel=0.05)
    assert min(found.bic, key=lambda name: found.bic[name]) == "poisson"


@pytest.mark.parametrize("cv", [0.5, 2.5])
def test_gamma_gaps_are_recognised(cv: float) -> None:
    process = fit_arrivals(arrival_times(3.0, requests=4000, rng=2, process=GammaRenewal(cv))).process
    assert isinstance(process, GammaRenewal)
    assert process.cv == pytest.approx(cv, rel=0.05)


def test_gaps_of_no_known_kind_go_into_a_table() -> None:
    rng = np.random.default_rng(0)
    gaps = np.where(rng.random(6000) < 0.9, rng.uniform(0.04, 0.06, 6000), rng.uniform(5, 9, 6000))
    found = fit_arrivals(np.cumsum(gaps))
    assert isinstance(found.process, GapTable)
    drawn = np.diff(arrival_times(found.rate_rps, requests=20_000, rng=1, process=found.process))
    assert ks_distance(gaps, drawn) < 0.03


def test_hidden_states_are_recognised() -> None:
    process = fit_arrivals(arrival_times(5.0, requests=6000, rng=3, process=BURSTY)).process
    assert isinstance(process, MarkovModulated)
    assert process.rates[1] / process.rates[0] == pytest.approx(10, rel=0.2)
    assert process.dwell_s == pytest.approx(BURSTY.dwell_s, rel=0.4)
    assert process.shares @ process.relative_rates == pytest.approx(1)


def test_likelihood_is_that_of_products_one_by_one() -> None:
    process = MarkovModulated((0.5, 2.0, 4.0), (3.0, 2.0, 1.0), ((0, 1, 0), (0.3, 0, 0.7), (0, 1, 0)))
    gaps = np.random.default_rng(0).exponential(size=(2, 7))
    rates = process.relative_rates
    from scipy.linalg import expm

    expected = 0.0
    for part in gaps:
        state = process.shares * rates / (process.shares @ rates)
        for gap in part:
            state = state @ expm((process.generator - np.diag(rates)) * gap) * rates
        expected += math.log(state.sum())
    assert modulated_log_likelihood(gaps, process, rates) == pytest.approx(expected, rel=1e-10)


def test_a_coarse_clock_does_not_look_like_bursts() -> None:
    times_s = np.floor(arrival_times(5.0, requests=4000, rng=4))  # whole seconds, as in BurstGPT
    process = fit_arrivals(times_s).process
    assert process is None or (isinstance(process, GammaRenewal) and 0.8 < process.cv < 1.25)


def test_days_show_their_shape() -> None:
    shape = 1 + 0.8 * np.sin(np.arange(24) / 24 * 2 * np.pi)
    found = fit_arrivals(arrival_times(0.02, duration_s=8 * 86_400, rng=5, shape=shape))
    assert found.shape is not None
    assert len(found.shape) == 24
    assert found.shape == pytest.approx(shape / shape.mean(), abs=0.2)
    assert found.process is None  # what looked like bursts was the hours


def test_a_generator_is_like_its_trace(requests: pd.DataFrame, fitted: FittedWorkload) -> None:
    assert fitted.arrivals.kind == "mmpp"
    quality = fitted.quality
    assert quality is not None
    for each in quality.distributions:
        assert each.ks < 0.03, each
        assert each.generated["p50"] == pytest.approx(each.trace["p50"], rel=0.1)
    for pair in quality.dispersion:
        if pair.at <= 10:  # of longer windows the trace has too few
            assert pair.generated == pytest.approx(pair.trace, rel=0.4)
    kinds = {each.name: each for each in fitted.classes}
    assert kinds["lognormal"].prompt.quantiles is None
    assert kinds["lognormal"].prompt.median == pytest.approx(300, rel=0.05)
    assert kinds["lognormal"].rank_correlation == pytest.approx(0.5, abs=0.05)
    assert kinds["steps"].prompt.quantiles is not None
    assert kinds["steps"].share == pytest.approx(0.4, abs=0.03)
    again = fitted.generate(requests=2000, rng=1)
    assert set(again.loc[again["traffic_class"] == "steps", "prompt_tokens"]) <= set(
        requests.loc[requests["traffic_class"] == "steps", "prompt_tokens"]
    )


def test_real_traces_are_fitted(shared: Path) -> None:
    trace = read_trace(shared / "traces" / "azure_2023_conv.csv").head(6000)
    quality = fit.fit(trace, "azure").quality
    assert quality is not None
    for each in quality.distributions:
        assert each.ks < 0.03
        for name in ("p50", "p95"):
            assert each.generated[name] == pytest.approx(each.trace[name], rel=0.1)


@pytest.mark.parametrize("name", ["workload.yaml", "workload.json"])
def test_a_generator_is_the_same_after_a_file(fitted: FittedWorkload, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    fitted.save(path)
    again = FittedWorkload.load(path)
    assert again == fitted
    pd.testing.assert_frame_equal(again.generate(requests=50, rng=3), fitted.generate(requests=50, rng=3))
    at_rate = again.generate(duration_s=100.0, rate_rps=10.0, rng=3)
    assert len(at_rate) == pytest.approx(1000, rel=0.6)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"requests": "many"}, ["requests", "'many'"]),
        ({"surprise": 1}, ["surprise"]),
        ({"classes": []}, ["classes"]),
        ({"arrivals": {"rate_rps": -1, "kind": "poisson"}}, ["arrivals.rate_rps", "-1"]),
        ({"arrivals": {"rate_rps": 1, "kind": "weibull"}}, ["arrivals.kind", "weibull"]),
        ({"arrivals": {"rate_rps": 1, "kind": "gamma"}}, ["cv"]),
        ({"arrivals": {"rate_rps": 1, "kind": "gaps", "gap_quantiles": [[0, 1], [1, 0]]}}, ["quantiles"]),
        ({"arrivals": {"rate_rps": 1, "kind": "mmpp", "rates": [1, 2]}}, ["2 rates and 0 dwell_s"]),
    ],
)
def test_a_bad_generator_is_refused(
    fitted: FittedWorkload, tmp_path: Path, change: dict[str, Any], parts: list[str]
) -> None:
    path = tmp_path / "workload.json"
    path.write_text(json.dumps({**fitted.model_dump(mode="json"), **change}))
    with pytest.raises(InputError) as refusal:
        FittedWorkload.load(path)
    message = str(refusal.value)
    assert all(part in message for part in ["workload.json", *parts]), message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "!!python/object:os.system {}", "", "\0"])
def test_what_is_no_generator_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "workload.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"workload\.yaml"):
        FittedWorkload.load(path)
    with pytest.raises(InputError, match="no such file"):
        FittedWorkload.load(tmp_path / "nothing.yaml")


def test_what_cannot_be_fitted_is_refused() -> None:
    one = pd.DataFrame({"arrived_s": [1.0, 1.0], "prompt_tokens": [1, 1], "output_tokens": [1, 1]})
    with pytest.raises(InputError, match="over no time"):
        fit.fit(one)
    with pytest.raises(InputError, match="waits for another"):
        fit.fit(closed_loop(2, {"chat": 1}, requests=6, think_s_mean=1))


def test_a_handful_of_requests_is_poisson() -> None:
    few = pd.DataFrame({"arrived_s": [0.0, 1.0, 4.0], "prompt_tokens": [5, 6, 7], "output_tokens": [1, 2, 1]})
    found = fit.fit(few)
    assert found.arrivals.kind == "poisson"
    assert len(found.generate(requests=10)) == 10


def test_distance_of_samples() -> None:
    assert ks_distance([1, 2, 3, 4], [1, 2, 3, 4]) == 0
    assert ks_distance([1, 2], [3, 4]) == 1
    assert ks_distance([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5


@pytest.fixture(scope="module")
def commands() -> typer.Typer:
    app = typer.Typer()
    app.command()(cli_workload.fit)
    app.command()(cli_workload.generate)
    return app


def test_fit_and_generate_from_the_command_line(
    commands: typer.Typer, requests: pd.DataFrame, tmp_path: Path
) -> None:
    trace, workload, out = tmp_path / "t.csv", tmp_path / "w.yaml", tmp_path / "again.jsonl"
    write_trace(requests.head(800), trace)
    with trace.open("a") as file:
        file.write("1,0,0,lognormal\n")
    run = CliRunner().invoke(commands, ["fit", str(trace)])
    assert isinstance(run.exception, InputError)
    assert "line 802" in str(run.exception)
    run = CliRunner().invoke(commands, ["fit", str(trace), "--skip-bad", "--out", str(workload), "--json"])
    assert run.exit_code == 0, run.output
    answer = json.loads(run.output)
    assert answer["rows"] == 800
    assert [each["first_lines"] for each in answer["skipped"].values()] == [[802]]
    run = CliRunner().invoke(commands, ["fit", str(trace), "--skip-bad"])
    assert "800 (own format)" in run.output
    assert "KS" in run.output
    for words in (
        [str(workload), "--requests", "40", "--seed", "3"],
        [str(workload), "--duration", "30", "--rate", "5"],
        ["chat=0.7,code=0.3", "--rate", "2", "--requests", "40"],
    ):
        run = CliRunner().invoke(commands, ["generate", *words, "--out", str(out)])
        assert run.exit_code == 0, run.output
        assert len(read_trace(out)) > 10
    run = CliRunner().invoke(commands, ["generate", "chat", "--out", str(out), "--json"])
    assert json.loads(run.output)["requests"] == 1000


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["nowhere.yaml"], "no such file"),
        (["chatt"], "unknown class"),
        (["chat=much"], "'much'"),
        (["chat", "--requests", "5", "--duration", "5"], "either requests or duration_s"),
        (["chat", "--duration", "0"], "no arrival"),
    ],
)
def test_bad_words_on_the_command_line(
    commands: typer.Typer, words: list[str], part: str, tmp_path: Path
) -> None:
    out = tmp_path / "requests.csv"
    run = CliRunner().invoke(commands, ["generate", *words, "--out", str(out)])
    assert isinstance(run.exception, InputError)
    assert part in str(run.exception)
    assert not out.exists()
