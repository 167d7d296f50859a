"""The command `flywheel predict`: a profile for hardware that isn't here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim import paths
from sim.terminal import JsonFlag, save_and_show


def predict(
    model: Annotated[
        str, typer.Argument(help="A published model: llama-3.1-8b, deepseek-v3 …, or its hub id.")
    ],
    on: Annotated[str, typer.Option("--on", help='Accelerator of the catalog, such as "H100 SXM".')],
    engine: Annotated[
        str | None, typer.Option(help="Serve as this engine does: vllm, sglang or trtllm.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Carry this measured profile over, instead of --engine.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of the weights: bf16, fp8, fp4 or int4.")] = "bf16",
    tensor_parallel: Annotated[int, typer.Option(help="Accelerators that share one replica.")] = 1,
    price_usd_per_hour: Annotated[
        float | None, typer.Option(help="Of one accelerator (default: from the catalog).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write it (default: out/profiles/MODEL.json).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Predict a model's profile on accelerators that nobody measured here, with its interval."""
    from engine.profile import Profile
    from engine.transfer import predict_profile

    measured = None if source is None else Profile.load(source)
    predicted = predict_profile(measured, on, model, precision, tensor_parallel, engine, price_usd_per_hour)
    target = out or paths.measured_profiles_dir() / f"{predicted.model.name}.json"
    save_and_show(predicted, target, predicted.model.name, as_json)
