"""Training on real text: Python's own help topics, tiny models, real AdamW steps."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InputError
from engine.models.build import ARCHITECTURES, build_model, default_heads, parameters_in_products
from engine.training.checkpoint import checkpoints
from engine.training.config import TrainConfig, TrainReport
from engine.training.data import Document, PreparedData, prepare, train_tokenizer
from engine.training.optimizer import batch_rows, evaluate, learning_rate, measured_peak_flops
from engine.training.trainer import run_training, train

TINY = TrainConfig(
    layers=1,
    hidden_size=32,
    steps=12,
    batch_sequences=4,
    sequence_tokens=32,
    learning_rate=5e-3,
    max_validation_sequences=16,
    validation_fraction=0.1,
    peak_flops=1e11,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(topics.values(), 400)


@pytest.fixture(scope="module")
def data(tokenizer: Any) -> PreparedData:
    documents = [Document(text, name) for name, text in sorted(topics.items())]
    return prepare(documents, tokenizer, TINY.sequence_tokens, validation_fraction=TINY.validation_fraction)


class Interrupted(Exception):
    """What a power cut is to a run: it stops between two steps."""


def stop_at(step: int) -> Any:
    def progress(fraction: float, what: str) -> None:
        if what.startswith(f"step {step} "):
            raise Interrupted

    return progress


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_architecture_learns(architecture: str, data: PreparedData) -> None:
    seen: list[tuple[float, str]] = []
    config = replace(TINY, architecture=architecture, accumulation_steps=2)
    report = train(config, data, lambda fraction, what: seen.append((fraction, what)))
    assert report.initial_validation_loss == pytest.approx(math.log(data.vocab_size), rel=0.1)
    assert report.validation_loss < report.initial_validation_loss - 0.3
    assert report.perplexity == pytest.approx(math.exp(report.validation_loss))
    assert len(report.train_losses) == report.steps == 12
    assert report.tokens == 12 * 2 * 4 * 32
    assert report.training_flop == 6 * report.parameters * report.tokens  # embeddings are tied
    assert report.mfu == pytest.approx(6 * report.parameters * report.tokens_per_s / 1e11)
    assert report.peak_memory_bytes > 4 * report.parameters
    assert 0 < report.training_s < report.wall_s
    assert architecture in report.architecture.lower()
    assert [fraction for fraction, _ in seen] == [step / 12 for step in range(1, 13)]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(data: PreparedData) -> None:
    first, again, other = (train(replace(TINY, steps=4, seed=seed), data) for seed in (1, 1, 2))
    assert first.train_losses == again.train_losses
    assert first.validation_losses == again.validation_losses
    assert first.train_losses != other.train_losses


def test_training_leaves_the_callers_random_numbers_alone(data: PreparedData) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(replace(TINY, steps=1), data)
    assert torch.equal(torch.rand(3), expected)


def test_accumulation_does_what_a_larger_batch_does(data: PreparedData) -> None:
    whole = train(replace(TINY, steps=5, batch_sequences=8), data)
    parts = train(replace(TINY, steps=5, batch_sequences=2, accumulation_steps=4), data)
    assert parts.train_losses == pytest.approx(whole.train_losses, rel=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(
    architecture: str, data: PreparedData, tmp_path: Path
) -> None:
    config = replace(TINY, architecture=architecture, checkpoint_every=4, patience=50)
    whole = train(config, data, out_dir=tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, data, stop_at(6), out_dir=tmp_path / "cut")
    (
        tmp_path / "cut" / "checkpoints" / ".step-00000008.1.partial"
    ).mkdir()  # of a process killed while writing
    with pytest.raises(Interrupted):
        train(config, data, stop_at(10), out_dir=tmp_path / "cut", resume=True)
    assert [path.name for path in checkpoints(tmp_path / "cut" / "checkpoints")] == ["step-00000008"]
    resumed = train(config, data, out_dir=tmp_path / "cut", resume=True)
    assert resumed.train_losses == whole.train_losses
    assert resumed.validation_losses == whole.validation_losses
    assert (resumed.validation_loss, resumed.tokens) == (whole.validation_loss, whole.tokens)
    assert not list((tmp_path / "cut").rglob("*.partial"))
    suffixes = {path.suffix for path in (tmp_path / "cut").rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}


def test_a_checkpoint_of_another_run_is_refused(data: PreparedData, tmp_path: Path) -> None:
    config = replace(TINY, steps=2, checkpoint_every=1)
    train(config, data, out_dir=tmp_path)
    with pytest.raises(InputError, match="another configuration or other data"):
        train(replace(config, learning_rate=1e-4), data, out_dir=tmp_path, resume=True)
    (checkpoint,) = checkpoints(tmp_path / "checkpoints")
    (checkpoint / "tensors.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="damaged checkpoint"):
        train(config, data, out_dir=tmp_path, resume=True)
    train(config, data, out_dir=tmp_path)  # without resume the old one is gone
    train(config, data, out_dir=tmp_path, resume=True)


def test_early_stopping_keeps_the_weights_that_validated_best(data: PreparedData, tokenizer: Any) -> None:
    few = replace(data, train=data.train[:2])  # so few that the model learns them by heart
    config = replace(TINY, hidden_size=64, steps=200, evaluate_every=5, patience=2, warmup_fraction=0)
    model = build_model(
        "llama", layers=1, hidden_size=64, vocab_size=data.vocab_size, context_tokens=32, eos_token_id=0
    )
    report = train(config, few, model=model)
    assert report.stopped_early
    assert report.steps == report.best_step + 10 < 200
    assert report.validation_loss == min(loss for _, loss in report.validation_losses)
    assert evaluate(model, data.validation[:16], config) == pytest.approx(report.validation_loss, rel=1e-5)


def test_a_diverging_run_says_so(data: PreparedData) -> None:
    model = build_model("llama", layers=1, hidden_size=32, vocab_size=data.vocab_size, context_tokens=32)
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = math.inf
    with pytest.raises(InputError, match="loss is nan at step 1; lower learning_rate"):
        train(TINY, data, model=model)


def test_bfloat16_products_train_as_well(data: PreparedData) -> None:
    report = train(replace(TINY, dtype="bfloat16"), data)
    exact = train(TINY, data)
    assert report.validation_loss == pytest.approx(exact.validation_loss, rel=0.05)


def test_the_report_survives_saving(data: PreparedData, tmp_path: Path) -> None:
    report = train(replace(TINY, steps=2), data)
    report.save(tmp_path / "report.json")
    assert TrainReport.load(tmp_path / "report.json") == report
    (tmp_path / "report.json").write_text('{"steps": 1}')
    with pytest.raises(InputError, match="not a training report"):
        TrainReport.load(tmp_path / "report.json")


@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 1))
def test_the_learning_rate_rises_to_its_top_and_falls_to_its_end(
    steps: int, warmup_fraction: float, final: float
) -> None:
    config = replace(TINY, steps=steps, warmup_fraction=warmup_fraction, final_learning_rate_fraction=final)
    rates = [learning_rate(step, config) for step in range(1, steps + 1)]
    warmup = round(warmup_fraction * steps)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert all(
        later <= earlier * (1 + 1e-12)
        for earlier, later in zip(rates[warmup:], rates[warmup + 1 :], strict=False)
    )
    assert max(rates) <= config.learning_rate * (1 + 1e-12)
    assert rates[-1] == pytest.approx(config.learning_rate * (final if warmup < steps else 1))


@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 3))
def test_every_sequence_is_seen_once_an_epoch(sequences: int, batch: int, seed: int) -> None:
    config = replace(TINY, batch_sequences=batch, seed=seed)
    rows = np.concatenate([batch_rows(step, sequences, config) for step in range(1, 3 * sequences + 1)])
    for epoch in range(len(rows) // sequences):
        assert sorted(rows[epoch * sequences : (epoch + 1) * sequences]) == list(range(sequences))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"warmup_fraction": 5.0}, "warmup_fraction is 5.0"),
        ({"dtype": "int4"}, "dtype is 'int4'"),
        ({"architecture": "lama"}, "architecture 'lama': allowed are llama, bloom, gpt2"),
        ({"hidden_size": 33}, "hidden_size is 33; allowed is a positive even number"),
        ({"attention_heads": 5}, "hidden_size 32 with 5 heads: allowed are multiples of 10"),
        ({"checkpoint_every": 1}, "no out_dir"),
    ],
)
def test_bad_configurations_are_refused(change: dict[str, Any], message: str, data: PreparedData) -> None:
    with pytest.raises(InputError, match=message):
        train(replace(TINY, **change), data)


def test_a_model_that_lacks_tokens_is_refused(data: PreparedData) -> None:
    model = build_model("gpt2", layers=1, hidden_size=32, vocab_size=100, context_tokens=32)
    with pytest.raises(InputError, match="the tokenizer has 400 tokens, the model 100"):
        train(TINY, data, model=model)


@given(st.integers(1, 600).map(lambda half: 2 * half))
def test_heads_divide_the_width_evenly(hidden_size: int) -> None:
    assert hidden_size % (2 * default_heads(hidden_size)) == 0
    if hidden_size % 64 == 0:
        assert hidden_size // default_heads(hidden_size) == 64


def test_looked_up_embeddings_cost_no_products() -> None:
    model = build_model("llama", layers=1, hidden_size=32, vocab_size=300, context_tokens=32)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert parameters_in_products(model) == total
    model.get_output_embeddings().weight = torch.nn.Parameter(model.get_input_embeddings().weight.clone())
    assert parameters_in_products(model) == total  # the untied head multiplies, the embedding no longer does


def test_the_measured_peak_is_a_machines() -> None:
    assert 1e8 < measured_peak_flops(torch.device("cpu"), torch.float32) < 1e15


def test_the_articles_example(tmp_path: Path, tokenizer: Any, data: PreparedData) -> None:
    """A BLOOM through AutoTokenizer and AutoModelForCausalLM: loss with labels, AdamW, text generation."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    build = build_model(
        "bloom", layers=2, hidden_size=64, vocab_size=len(tokenizer), context_tokens=64, eos_token_id=0
    )
    build.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(model).__name__ == "BloomForCausalLM"

    inputs = loaded_tokenizer(
        "The assert statement is a convenient way to insert debugging assertions", return_tensors="pt"
    )
    logits_and_loss = model(**inputs, labels=inputs["input_ids"])
    shifted = torch.nn.functional.cross_entropy(logits_and_loss.logits[0, :-1], inputs["input_ids"][0, 1:])
    before = logits_and_loss.loss.item()
    assert before == pytest.approx(shifted.item(), rel=1e-5)

    report = train(replace(TINY, steps=30), data, model=model)
    assert report.validation_loss < report.initial_validation_loss - 0.5
    with torch.no_grad():
        after = model(**inputs, labels=inputs["input_ids"]).loss
    assert after.item() < before - 0.5

    model.save_pretrained(tmp_path / "trained")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    prompt = loaded_tokenizer("The", return_tensors="pt")
    written = [m.eval().generate(**prompt, max_new_tokens=16, do_sample=False)[0] for m in (model, again)]
    assert torch.equal(*written)
    text = loaded_tokenizer.decode(written[0])
    assert text.startswith("The")
    assert len(text) > len("The")


def test_from_texts_to_a_model_on_disk(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with (tmp_path / "topics.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in topics.values())
    (tmp_path / "note.txt").write_text(topics["assert"] * 2, encoding="utf-8")
    seen: list[float] = []
    out = tmp_path / "out"
    report = run_training(
        [tmp_path],
        out,
        replace(TINY, architecture="gpt2"),
        "bpe:400",
        lambda fraction, _: seen.append(fraction),
    )
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert TrainReport.load(out / "report.json") == report
    assert report.data["steps"][0]["documents"] == len(topics) + 1
    assert 0 < report.data["duplicate_share"] < 0.2
    assert report.config == asdict(replace(TINY, architecture="gpt2"))
    assert not list(out.glob(".*"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    documents = [Document(text) for text in topics.values()]
    held_out = prepare(documents, tokenizer, 32, validation_fraction=0.1).validation
    assert evaluate(model, held_out[:16], TINY) == pytest.approx(report.validation_loss, rel=0.05)
    assert tokenizer.eos_token_id == model.config.eos_token_id
    # What came out trains further from where it stopped, with its own tokenizer.
    further = run_training([tmp_path / "topics.jsonl"], tmp_path / "further", replace(TINY, model=str(out)))
    assert further.initial_validation_loss == pytest.approx(report.validation_loss, rel=0.05)
    assert further.validation_loss < further.initial_validation_loss
    with pytest.raises(InputError, match=r"bpe:SIZE"):
        run_training([tmp_path], out, TINY, "bpe:many")


@pytest.mark.slow
def test_the_bundled_tokenizer_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "topics.txt").write_text("\n\n".join(topics.values()), encoding="utf-8")
    report = run_training([tmp_path / "topics.txt"], tmp_path / "out", replace(TINY, steps=3))
    assert report.initial_validation_loss == pytest.approx(math.log(49152), rel=0.1)
    assert report.validation_loss < report.initial_validation_loss


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_as_the_cpu_does(data: PreparedData) -> None:
    on_cpu = train(TINY, data)
    on_gpu = train(replace(TINY, device="cuda"), data)
    assert on_gpu.train_losses == pytest.approx(on_cpu.train_losses, rel=1e-3)
    halved = train(replace(TINY, device="cuda", dtype="bfloat16", peak_flops=None), data)
    assert halved.validation_loss == pytest.approx(on_cpu.validation_loss, rel=0.05)
    assert halved.peak_flops > 1e13
    assert 0 < halved.mfu < 1
