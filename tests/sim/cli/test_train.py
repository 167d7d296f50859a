"""`flywheel train`, `scaling` and `loop` from the command line, and their default text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from engine.errors import InputError
from engine.training.python_docs import standard_library
from engine.training.scaling_law import load_law
from sim.cli.loop import loop
from sim.cli.scaling import scaling
from sim.cli.train import train
from sim.scenario.scenario import Scenario
from sim.training.scaling_recipe import parse_sizes, scenario_keys

LIBRARY = ["--library-mb", "0.8"]


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    made = typer.Typer(pretty_exceptions_enable=False)
    for command in (train, scaling, loop):
        made.command()(command)
    return made


def run(app: typer.Typer, *words: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    if done.exception is not None:
        raise done.exception
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_library_is_the_same_text_each_time_and_a_smaller_limit_takes_less() -> None:
    documents = standard_library(1.5)
    assert documents == standard_library(1.5)
    assert sum(len(document.text) for document in documents) <= 1.5e6
    less = standard_library(1.2)
    assert less == documents[: len(less)]
    assert len(less) < len(documents)
    assert len({document.source.partition("/")[0] for document in documents}) > 5
    assert not any("site-packages" in document.source for document in documents)


def test_a_python_without_source_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no source text of the standard library"):
        standard_library(folder=tmp_path)
    with pytest.raises(InputError, match="max_mb is 0"):
        standard_library(0)


@pytest.mark.slow
def test_train_without_any_text_trains_on_the_library_and_serves_the_result(
    app: typer.Typer, tmp_path: Path
) -> None:
    words = ["train", *LIBRARY, "--layers", 1, "--hidden-size", 32, "--steps", 5, "--tokenizer", "bpe:300"]
    words += ["--sequence-tokens", 32, "--prompt", "import "]
    first, again = (run(app, *words, "--out", tmp_path / name) for name in ("a", "b"))
    assert first["steps"] == 5
    assert first["validation_loss"] < first["initial_validation_loss"]
    assert first["train_losses"] == again["train_losses"]
    assert first["sample"] == again["sample"]
    assert first["sample"]["prompt"] == "import "
    assert {"model.safetensors", "report.json", "tokenizer.json"} <= {
        p.name for p in (tmp_path / "a").iterdir()
    }


def test_scaling_writes_a_law_that_a_scenario_takes(app: typer.Typer, tmp_path: Path) -> None:
    found = run(
        app, "scaling", *LIBRARY, "--sizes", "1x16,1x24,1x32", "--token-counts", 3, "--steps", 60,
        "--vocab-size", 300, "--sequence-tokens", 32, "--batch-sequences", 4, "--out", tmp_path / "law.json",
    )  # fmt: skip
    law = load_law(tmp_path / "law.json")
    assert found["scenario"] == pytest.approx(scenario_keys(law))
    assert len(found["points"]) == 9
    changed = Scenario.load("api_startup").override(scenario_keys(law))
    assert changed.training.loss_alpha == law.alpha


def test_sizes_are_layers_times_width() -> None:
    assert parse_sizes("2x32, 3x96") == [(2, 32), (3, 96)]
    for text in ("2", "x32", "2x", "2x32,", "0x32", "axb"):
        with pytest.raises(InputError, match=r"--sizes: found .*; allowed is LAYERSxWIDTH"):
            parse_sizes(text)


def test_texts_without_users_are_refused(app: typer.Typer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no --users-text"):
        run(app, "loop", tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        run(app, "train", tmp_path / "nowhere")


@pytest.mark.slow
def test_a_quick_loop_gains_on_users_who_sent_nothing(app: typer.Typer, tmp_path: Path) -> None:
    found = run(app, "loop", "--quick", "--out", tmp_path, "--price-usd-per-hour", 3600)
    assert found["gain_nats_per_token"] > 0
    assert found["money"]["first_training_usd"] == pytest.approx(found["before"]["training_s"])
    prices = Scenario.load("api_startup").market
    earned = found["prompt_tokens"] * prices.price_usd_per_mtok_prompt
    earned += found["output_tokens"] * prices.price_usd_per_mtok_output
    assert found["money"]["revenue_usd"] == pytest.approx(earned / 1e6)
