"""The command `flywheel scaling`: measure loss(N, D) with a ladder of small training runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.options import DeviceOption, JsonFlag
from sim.cli.terminal import print_grid, print_json, progress_bar
from sim.cli.train import LibraryOption, TextsArgument
from sim.training.scaling_recipe import LIBRARY_MB, RECIPE, SIZES, VOCAB_SIZE, parse_sizes, scenario_keys

if TYPE_CHECKING:
    pass

# Defaults of the command; the app's Training lab always uses them.


def scaling(
    texts: TextsArgument = None,
    out: Annotated[Path, typer.Option(help="JSON file of the fitted law.")] = Path("out/scaling.json"),
    sizes: Annotated[
        str, typer.Option(help="LAYERSxWIDTH of each model, separated by commas; at least three.")
    ] = SIZES,
    token_counts: Annotated[
        int, typer.Option(min=3, max=8, help="Number of token counts per size; each is twice the one before.")
    ] = 4,
    minutes: Annotated[float, typer.Option(min=0.05, help="Approximate training time in minutes.")] = 3.0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=2, help="Steps of the longest run, instead of --minutes; the law is then reproducible."
        ),
    ] = None,
    architecture: Annotated[str, typer.Option(help="Architecture: bloom, llama or gpt2.")] = RECIPE[
        "architecture"
    ],
    vocab_size: Annotated[
        int, typer.Option(min=257, help="Vocabulary size of a byte-level BPE trained on the texts.")
    ] = VOCAB_SIZE,
    batch_sequences: Annotated[int, typer.Option(min=1, help="Sequences per step.")] = RECIPE[
        "batch_sequences"
    ],
    sequence_tokens: Annotated[int, typer.Option(min=2, help="Tokens per sequence.")] = RECIPE[
        "sequence_tokens"
    ],
    learning_rate: Annotated[
        float, typer.Option(help="Learning rate at width 64; it falls with the square root of the width.")
    ] = RECIPE["learning_rate"],
    device: DeviceOption = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Data type of matrix products: float32 or bfloat16.")
    ] = "float32",
    library_mb: LibraryOption = LIBRARY_MB,
    seed: Annotated[int, typer.Option(help="Seed of weights, data order and bootstrap.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Train several sizes on several token counts and fit L(N, D) = E + A/N^alpha + B/D^beta with its uncertainty."""
    from engine.models.load import quiet
    from engine.training.config import TrainConfig
    from engine.training.data import read_documents
    from engine.training.python_docs import standard_library
    from engine.training.scaling_ladder import LadderOptions, measure_law

    chosen = parse_sizes(sizes)
    config = TrainConfig(
        architecture=architecture,
        steps=steps or 1,
        batch_sequences=batch_sequences,
        sequence_tokens=sequence_tokens,
        learning_rate=learning_rate,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    name = ", ".join(map(str, texts)) if texts else "Python's standard library"
    with progress_bar("scaling") as report, quiet():
        documents = read_documents(texts) if texts else standard_library(library_mb)
        options = LadderOptions(chosen, token_counts, 60 * minutes, name)
        ladder = measure_law(documents, config, options, vocab_size, report)
    ladder.save(out)
    found = ladder.to_json()
    keys = scenario_keys(ladder.law)
    if as_json:
        found.pop("draws")
        print_json({"file": str(out), **found, "scenario": keys})
        return
    _print(found, config.steps, ladder.training_s)
    print("In a scenario, in place of the published constants:")
    print("training:")
    for key, value in keys.items():
        print(f"  {key.removeprefix('training.')}: {value:.6g}")
    print(f"Law: {out}")


def _print(found: dict[str, Any], steps: int, seconds: float) -> None:
    from sim.i18n import numbers

    tokens = sorted({point["tokens"] for point in found["points"]})
    losses = {(point["parameters"], point["tokens"]): point["loss"] for point in found["points"]}
    print_grid(
        f"Validation loss in nats per token; {numbers.seconds(seconds)}, {numbers.count(found['training_flop'])} FLOP",
        ["parameters", *(f"{numbers.count(d)} tokens" for d in tokens)],
        [
            [
                numbers.count(n),
                *(f"{losses[n, d]:.3f}" if (n, d) in losses else numbers.UNKNOWN for d in tokens),
            ]
            for n in sorted({n for n, _ in losses})
        ],
    )
    print_grid(
        "L = E + A / N^alpha + B / D^beta",
        ["constant", "fitted", f"{numbers.percent(found['level'])} interval"],
        [
            [name, f"{found['constants'][name]:.4g}", f"{low:.4g} – {high:.4g}"]
            for name, (low, high) in found["intervals"].items()
        ],
    )
    held = found["held_out"]
    print(
        f"Error on its own points: {numbers.percent(found['median_relative_error'], 1)} (median); fitted without the "
        f"largest size, it misses that by {numbers.percent(held['largest_size_median_error'], 1)}; without the most "
        f"tokens, by {numbers.percent(held['most_tokens_median_error'], 1)}."
    )
    if found["undetermined"]:
        print(
            f"These points leave {', '.join(found['undetermined'])} open: don't use the law for other sizes; "
            "measure more of them, further apart, or for more minutes."
        )
    print(
        "It holds where it was measured; far from there it is an extrapolation, and the interval doesn't know that."
    )
