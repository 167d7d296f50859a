"""The command `flywheel train`: train a Transformer on texts, and sample from it with the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sim.cli.options import DeviceOption, JsonFlag
from sim.cli.terminal import print_json, print_table, progress_bar

SAMPLE_TOKENS = 40

TextsArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Text or JSONL files, or folders of them (default: the standard library of this Python)."
    ),
]
LibraryOption = Annotated[
    float, typer.Option(min=0.01, help="Most million characters of the standard library to use.")
]


def train(
    texts: TextsArgument = None,
    out: Annotated[Path, typer.Option(help="Folder of the model, its tokenizer and the report.")] = Path(
        "out/training"
    ),
    architecture: Annotated[str, typer.Option(help="Architecture: bloom, llama or gpt2.")] = "bloom",
    layers: Annotated[int, typer.Option(min=1, help="Transformer layers.")] = 4,
    hidden_size: Annotated[int, typer.Option(min=8, help="Width of the residual stream.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 300,
    batch_sequences: Annotated[int, typer.Option(min=1, help="Sequences per step.")] = 8,
    sequence_tokens: Annotated[
        int, typer.Option(min=2, help="Tokens per sequence; the model's context length.")
    ] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of the cosine schedule.")] = 2e-3,
    model: Annotated[str | None, typer.Option(help="Model to train further, instead of a new one.")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Tokenizer of a model, or bpe:SIZE trained on the texts (default: bpe:2048)."),
    ] = None,
    device: DeviceOption = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Data type of matrix products: float32 or bfloat16.")
    ] = "float32",
    library_mb: LibraryOption = 20.0,
    resume: Annotated[bool, typer.Option(help="Resume from the last checkpoint in --out.")] = False,
    prompt: Annotated[
        str, typer.Option(help="Prompt that the trained model continues at the end.")
    ] = "Return the",
    seed: Annotated[int, typer.Option(help="Seed of weights and data order.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Clean, deduplicate, split and tokenize texts, train a Transformer with AdamW, validate, save and serve it."""
    from dataclasses import asdict

    from engine.models.load import quiet
    from engine.training.config import TrainConfig
    from engine.training.trainer import run_training, sample_text

    config = TrainConfig(
        architecture=architecture,
        layers=layers,
        hidden_size=hidden_size,
        steps=steps,
        batch_sequences=batch_sequences,
        sequence_tokens=sequence_tokens,
        learning_rate=learning_rate,
        model=model,
        device=device,
        dtype=dtype,
        checkpoint_every=max(steps // 5, 1),
        seed=seed,
    )
    learnt = tokenizer or (None if model else "bpe:2048")
    with progress_bar("train") as report, quiet():
        trained = run_training(
            texts or None, out, config, learnt, progress=report, resume=resume, library_mb=library_mb
        )
        sample = sample_text(out, prompt, SAMPLE_TOKENS, device=device, seed=seed)
    if as_json:
        print_json({**asdict(trained), "model": str(out), "sample": {"prompt": prompt, "text": sample}})
        return
    print_table("Training", rows_of(trained))
    print(f"The engine continues {prompt!r}: {sample!r}")
    print(f'Model: {out}; serve it with LLM("{out}") in Python, measure it with `flywheel profile {out}`')


def rows_of(trained: Any) -> list[tuple[str, str]]:
    """A training report as (label, value) rows."""
    import math

    from sim.i18n import numbers

    data = trained.data
    bits = trained.validation_loss / math.log(2) / data["characters_per_token"]
    return [
        ("Model", f"{trained.architecture}, {numbers.count(trained.parameters)} parameters"),
        (
            "Text",
            f"{numbers.count(data['steps'][0]['characters'])} characters; {numbers.percent(data['cleaning_yield'])} "
            f"survive cleaning, {numbers.percent(data['duplicate_share'], 1)} of that are duplicates",
        ),
        ("Trained on", f"{numbers.count(trained.tokens)} tokens in {trained.steps} steps"),
        (
            "Validation loss",
            f"{trained.initial_validation_loss:.3f} → {trained.validation_loss:.3f} nats per token",
        ),
        ("Perplexity", f"{numbers.count(trained.perplexity)}; {bits:.2f} bits per character"),
        ("Speed", f"{numbers.count(trained.tokens_per_s)} tokens/s, MFU {numbers.percent(trained.mfu, 1)}"),
        ("Compute", f"{numbers.count(trained.training_flop)} FLOP in {numbers.seconds(trained.training_s)}"),
        ("Peak memory", f"{numbers.count(trained.peak_memory_bytes)}B"),
    ]
