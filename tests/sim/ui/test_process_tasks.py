"""Work in a process of its own: it tells, refuses, can be given up, and says why it died."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.errors import InputError
from engine.training.config import TrainReport
from sim.ui.process_tasks import run_apart

SMALL: dict[str, Any] = {
    "config": {"architecture": "llama", "layers": 1, "hidden_size": 32, "steps": 4, "sequence_tokens": 32},
    "texts": None,
    "tokenizer": "bpe:300",
    "library_mb": 0.05,
    "prompt": "Return the",
    "sample_tokens": 4,
}


class _GivenUp(Exception):
    pass


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_a_training_tells_each_step_and_leaves_its_files(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    seen: list[float] = []
    run_apart(
        "training",
        {"out_dir": str(tmp_path), **SMALL},
        progress=lambda fraction, doing: seen.append(fraction),
        on_message=told.append,
    )
    report = TrainReport.load(tmp_path / "report.json")
    steps = [message for message in told if "step" in message]
    assert [message["step"] for message in steps] == [0, 1, 2, 3, 4]
    assert [message["loss"] for message in steps[1:]] == report.train_losses
    assert [(m["step"], m["validation_loss"]) for m in steps if m["validation_loss"] is not None] == (
        report.validation_losses
    )
    assert told[-1].keys() == {"sample"}
    assert seen == sorted(seen)
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.slow
def test_wrong_arguments_are_refused_in_the_words_of_the_task(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="architecture 'x': allowed are llama, bloom, gpt2"):
        run_apart("training", {"out_dir": str(tmp_path), **SMALL, "config": {"architecture": "x"}})


def test_an_exception_of_progress_ends_the_process(tmp_path: Path) -> None:
    before = children()

    def give_up(fraction: float, doing: str) -> None:
        raise _GivenUp

    with pytest.raises(_GivenUp):
        run_apart("training", {"out_dir": str(tmp_path), **SMALL}, progress=give_up)
    time.sleep(0.1)
    assert children() <= before


def test_a_process_that_dies_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the process of profile ended with status 1: .*unexpected keyword"):
        run_apart("profile", {"path": str(tmp_path / "profile.json"), "nonsense": 1})
