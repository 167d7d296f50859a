"""The commands `flywheel profile`, which measures a model here or at an address, and `flywheel predict`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import InputError
from sim.cli.load import ChatFlag, KeyOption, profile_endpoint
from sim.cli.options import DeviceOption, JsonFlag, with_options
from sim.cli.terminal import progress_bar, save_and_show
from sim.utils import paths

_OUTSIDE = "With --endpoint"
_BUDGET_HERE_S = 50.0
_BUDGET_OUTSIDE_S = 120.0
_ONLY_HERE = ("device", "dtype", "training")


@dataclass(frozen=True)
class KnownOptions:
    """What the operator of a measured server knows of it: fields as of `engine.profiling.endpoint.Known`."""

    accelerators: Annotated[
        int, typer.Option(min=1, help="Number of accelerators behind the address.", rich_help_panel=_OUTSIDE)
    ] = 1
    accelerator: Annotated[
        str | None,
        typer.Option(
            "--on",
            help='Accelerator of the catalog, such as "H100 SXM" (for price and memory).',
            rich_help_panel=_OUTSIDE,
        ),
    ] = None
    usd_per_mtok_prompt: Annotated[
        float | None,
        typer.Option(
            help="Price of prompt tokens of an API billed by token, instead of a price per hour.",
            rich_help_panel=_OUTSIDE,
        ),
    ] = None
    usd_per_mtok_output: Annotated[
        float | None, typer.Option(help="Price of output tokens of such an API.", rich_help_panel=_OUTSIDE)
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            help="Precision of the weights, if known: bf16, fp8, fp4 or int4.", rich_help_panel=_OUTSIDE
        ),
    ] = None
    parameters: Annotated[
        int | None,
        typer.Option(
            min=1, help="Parameters of a model that is not in the catalog.", rich_help_panel=_OUTSIDE
        ),
    ] = None
    max_context_tokens: Annotated[
        int | None,
        typer.Option(
            min=2, help="Longest context, if the server doesn't report it.", rich_help_panel=_OUTSIDE
        ),
    ] = None
    max_running_requests: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most requests that run at once, if known (default: measured).",
            rich_help_panel=_OUTSIDE,
        ),
    ] = None
    max_step_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Token limit of the engine's steps, if known (default: measured).",
            rich_help_panel=_OUTSIDE,
        ),
    ] = None
    kv_cache_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Size of its KV cache, if known; it can't be measured from outside.",
            rich_help_panel=_OUTSIDE,
        ),
    ] = None


_ONLY_OUTSIDE = (*(field.name for field in fields(KnownOptions)), "chat", "max_concurrency", "check")


@with_options
def profile(
    *,
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="Model: smollm2-135m (bundled, the default), a directory, a GGUF file, a hub id, or ARCH@dummy; "
            "with --endpoint its name at the server (default: its only model)."
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Measure the server at this address: vLLM, SGLang, TGI, or any OpenAI-compatible API."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File of the profile (default: out/profiles/MODEL.json).")
    ] = None,
    device: DeviceOption = "cpu",
    dtype: Annotated[
        str,
        typer.Option(help="Data type: float32, bfloat16 or float16; weights only: int8 (CPU), fp8 (CUDA)."),
    ] = "float32",
    price_usd_per_hour: Annotated[
        float | None,
        typer.Option(
            help="Cost of this machine (with --endpoint: of one accelerator) per hour (default: from the catalog)."
        ),
    ] = None,
    budget_s: Annotated[
        float | None, typer.Option(help="Seconds to spend on measuring (default: 50; with --endpoint 120).")
    ] = None,
    training: Annotated[
        bool, typer.Option(help="Measure optimizer steps too, in an eighth of the budget.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of measurements, and of prompts.")] = 0,
    known: KnownOptions,
    key: KeyOption = None,
    chat: ChatFlag = False,
    max_concurrency: Annotated[
        int, typer.Option(min=1, help="Maximum number of concurrent streams.", rich_help_panel=_OUTSIDE)
    ] = 256,
    check: Annotated[
        bool,
        typer.Option(
            help="Serve a backlog afterwards and compare it with its replay.", rich_help_panel=_OUTSIDE
        ),
    ] = True,
    as_json: JsonFlag = False,
) -> None:
    """Measure a model on this machine, or a server from outside: step times, memory, power where available, cost."""
    _refuse_of_the_other_kind(context, outside=endpoint is not None)
    if endpoint is not None:
        from engine.loadtest.client import Endpoint
        from engine.profiling.endpoint_options import Known, SurveyOptions

        profile_endpoint(
            Endpoint(endpoint, model, key, chat),
            Known(price_usd_per_hour, **asdict(known)),
            SurveyOptions(_BUDGET_OUTSIDE_S if budget_s is None else budget_s, max_concurrency, seed=seed),
            out,
            check=check,
            as_json=as_json,
        )
        return
    from engine.profiling.profiler import measure_profile

    model = model or "smollm2-135m"
    with progress_bar(f"profile {model}") as report:
        measured = measure_profile(
            model,
            device=device,
            dtype=dtype,
            price_usd_per_hour=price_usd_per_hour,
            budget_s=_BUDGET_HERE_S if budget_s is None else budget_s,
            seed=seed,
            progress=report,
            training=training,
        )
    save_and_show(
        measured, out or paths.measured_profiles_dir() / f"{model.replace('/', '--')}.json", model, as_json
    )


def _refuse_of_the_other_kind(context: typer.Context, *, outside: bool) -> None:
    for name in _ONLY_HERE if outside else _ONLY_OUTSIDE:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "on" if name == "accelerator" else name.replace("_", "-")
            said = "not allowed with --endpoint" if outside else "allowed only with --endpoint URL"
            raise InputError(f"--{option}: {said}")


def predict(
    model: Annotated[
        str, typer.Argument(help="Published model, such as llama-3.1-8b or deepseek-v3, or its hub id.")
    ],
    on: Annotated[str, typer.Option("--on", help='Accelerator of the catalog, such as "H100 SXM".')],
    engine: Annotated[
        str | None, typer.Option(help="Serving engine to predict: vllm, sglang or trtllm.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Measured profile to scale to this hardware, instead of --engine."),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Precision of the weights: bf16, fp8, fp4 or int4.")
    ] = "bf16",
    tensor_parallel: Annotated[int, typer.Option(help="Accelerators per replica.")] = 1,
    price_usd_per_hour: Annotated[
        float | None, typer.Option(help="Price of one accelerator (default: from the catalog).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File of the profile (default: out/profiles/MODEL.json).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Predict a model's profile, with its interval, on accelerators without a measurement."""
    from engine.prediction.roofline import predict_profile
    from engine.profile.profile import Profile

    measured = None if source is None else Profile.load(source)
    predicted = predict_profile(measured, on, model, precision, tensor_parallel, engine, price_usd_per_hour)
    target = out or paths.measured_profiles_dir() / f"{predicted.model.name}.json"
    save_and_show(predicted, target, predicted.model.name, as_json)
