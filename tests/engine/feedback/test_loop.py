"""The flywheel in small: a real server, real users over HTTP, real trainings, and the ratios that come out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import LLM
from engine.errors import InputError
from engine.feedback.loop import LoopConfig, LoopReport, VersionLoss, is_users, run_loop
from engine.feedback.simulated_users import SimulatedUsage, collect
from engine.training.config import TrainConfig
from engine.training.data import Document
from engine.training.python_docs import standard_library
from engine.usage.meter import Served

TINY = LoopConfig(
    training=TrainConfig(
        architecture="bloom",
        layers=1,
        hidden_size=32,
        batch_sequences=4,
        sequence_tokens=96,
        learning_rate=5e-3,
        max_validation_sequences=16,
        validation_fraction=0.1,
        peak_flops=1e11,
    ),
    base_tokens=12_000,
    epochs=1.0,
    held_out_users=4,
    vocab_size=300,
    usage=SimulatedUsage(users=6, requests_per_user=10, prompt_characters=120, output_tokens=4),
)


@pytest.fixture(scope="module")
def library() -> tuple[list[Document], list[Document]]:
    documents = standard_library(1.5)
    return [each for each in documents if not is_users(each)], [each for each in documents if is_users(each)]


@pytest.fixture(scope="module")
def turned(library: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoopReport, Path]:
    out = tmp_path_factory.mktemp("loop")
    seen: list[float] = []
    report = run_loop(*library, out, TINY, lambda fraction, what: seen.append(fraction))
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)
    return report, out


def test_the_round_trains_serves_and_collects(turned: tuple[LoopReport, Path]) -> None:
    report, out = turned
    assert report.users == 6
    assert report.consenting_users == 3
    assert report.before.users_loss < math.log(300)
    assert report.after.trained_tokens == report.bought.trained_tokens > report.before.trained_tokens
    assert 0 < report.collected_tokens <= report.consented_tokens < report.prompt_tokens
    assert 0 < report.serving_s < report.serving_wall_s < report.wall_s
    assert report.output_tokens <= 4 * report.requests
    result = json.loads((out / "loop.json").read_text(encoding="utf-8"))
    assert result["gain_nats_per_token"] == report.before.users_loss - report.after.users_loss
    assert result["after"]["perplexity"] == pytest.approx(math.exp(report.after.users_loss))


def test_the_log_keeps_texts_of_those_who_allowed_it_only(turned: tuple[LoopReport, Path]) -> None:
    report, out = turned
    lines = [json.loads(line) for line in (out / "usage.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == report.requests
    keeps = {user: {line["text"] is not None for line in lines if line["user"] == user} for user in
             {line["user"] for line in lines}}  # fmt: skip
    assert sorted(map(len, keeps.values())) == [1] * 6  # a user allows it always or never
    assert sum(kept == {True} for kept in keeps.values()) == 3


def test_both_models_are_served_by_the_engine(turned: tuple[LoopReport, Path]) -> None:
    for name in ("model-1", "model-2"):
        assert len(LLM(str(turned[1] / name)).generate("import ")[0].token_ids) > 0


def test_the_same_seed_turns_the_same_round(
    library: Any, turned: tuple[LoopReport, Path], tmp_path: Path
) -> None:
    again = run_loop(*library, tmp_path, TINY)
    for name in ("before", "after", "bought"):
        assert getattr(again, name).users_loss == getattr(turned[0], name).users_loss
    assert again.collected_tokens == turned[0].collected_tokens
    assert again.removed == turned[0].removed


def judged(loss: float, accepted: float) -> VersionLoss:
    return VersionLoss(1000, 1.0, loss, loss, accepted)


def test_the_ratios_follow_from_the_losses(turned: tuple[LoopReport, Path]) -> None:
    report = replace(turned[0], before=judged(4.0, 0.2), after=judged(3.7, 0.24), bought=judged(3.9, 0.21))
    assert report.gain == pytest.approx(0.3)
    assert report.feedback_quality == pytest.approx(3.0)
    assert report.quality_per_nat == pytest.approx(math.log(1.2) / 0.3)
    nothing = replace(report, after=judged(4.1, 0.2), bought=judged(4.1, 0.2))
    assert nothing.feedback_quality is None
    assert nothing.quality_per_nat is None


def test_what_is_sent_twice_or_without_consent_is_not_collected() -> None:
    texts = [f"{word} " * 3 + "is a word of many in this text, which is long enough to survive cleaning, " * 2
             for word in ("alpha", "beta")]  # fmt: skip
    log = [
        Served("a", 30, 4, 0.1, texts[0]),
        Served("a", 30, 4, 0.1, texts[0]),
        Served("b", 30, 4, 0.1, None),
    ]
    collected, removed = collect(log)
    assert [document.source for document in collected] == ["a"]
    assert collected[0].text.strip() == texts[0].strip()
    assert removed == {"exact duplicate": 1}


def test_bad_rounds_are_refused(library: Any, tmp_path: Path) -> None:
    base, users = library
    with pytest.raises(InputError, match="users have 240 characters of text or more; 9999 and 4 held out"):
        run_loop(base, users, tmp_path, replace(TINY, usage=replace(TINY.usage, users=9999)))
    with pytest.raises(InputError, match="tokens too short"):
        run_loop(base[:3], users, tmp_path, replace(TINY, base_tokens=10**7))
    for change, message in (
        ({"consent_share": 0.0}, "consent_share is 0.0"),
        ({"resend_share": 2.0}, "resend_share is 2.0"),
        ({"prompt_characters": 50}, "prompt_characters is 50"),
        ({"users": 0}, "users is 0"),
    ):
        with pytest.raises(InputError, match=message):
            SimulatedUsage(**change)
    with pytest.raises(InputError, match="epochs is 0"):
        LoopConfig(epochs=0)
