"""The commands `flywheel profile`, which measures a model here or behind an address, and `flywheel predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.errors import InputError
from sim.cli.load import ChatFlag, KeyOption, profile_endpoint
from sim.cli.terminal import JsonFlag, progress_bar, save_and_show
from sim.utils import paths

_OUTSIDE = "With --endpoint"
_BUDGET_HERE_S = 50.0
_BUDGET_OUTSIDE_S = 120.0
_ONLY_HERE = ("device", "dtype", "training")
_ONLY_OUTSIDE = (
    "accelerators",
    "accelerator",
    "usd_per_mtok_prompt",
    "usd_per_mtok_output",
    "precision",
    "parameters",
    "max_context_tokens",
    "max_running_requests",
    "max_step_tokens",
    "kv_cache_tokens",
    "chat",
    "max_concurrency",
    "check",
)


def profile(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="smollm2-135m (bundled, the default), a local directory, a GGUF file, a hub id, or ARCH@dummy; "
            "with --endpoint its name there (default: the server's only one)."
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Measure the server at this address from outside: vLLM, SGLang, TGI, any OpenAI API."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write it (default: out/profiles/MODEL.json).")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16; weights only: int8 (CPU), fp8 (CUDA).")
    ] = "float32",
    price_usd_per_hour: Annotated[
        float | None,
        typer.Option(
            help="What this machine (with --endpoint: one accelerator) costs per hour (default: the catalog's)."
        ),
    ] = None,
    budget_s: Annotated[
        float | None, typer.Option(help="Seconds to spend on measuring (default: 50; with --endpoint 120).")
    ] = None,
    training: Annotated[
        bool, typer.Option(help="Measure optimizer steps too, in an eighth of the budget.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Order of the measurements; prompts.")] = 0,
    accelerators: Annotated[
        int, typer.Option(min=1, help="How many are behind the address.", rich_help_panel=_OUTSIDE)
    ] = 1,
    accelerator: Annotated[
        str | None,
        typer.Option(
            "--on", help='Which, of the catalog: "H100 SXM" (for price and memory).', rich_help_panel=_OUTSIDE
        ),
    ] = None,
    usd_per_mtok_prompt: Annotated[
        float | None,
        typer.Option(
            help="Of an API that is paid by the token, instead of a price per hour.", rich_help_panel=_OUTSIDE
        ),
    ] = None,
    usd_per_mtok_output: Annotated[
        float | None, typer.Option(help="The same for output tokens.", rich_help_panel=_OUTSIDE)
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Of the weights, if known: bf16, fp8, fp4 or int4.", rich_help_panel=_OUTSIDE),
    ] = None,
    parameters: Annotated[
        int | None,
        typer.Option(min=1, help="Of a model that the catalog lacks.", rich_help_panel=_OUTSIDE),
    ] = None,
    max_context_tokens: Annotated[
        int | None,
        typer.Option(min=2, help="Longest context, if the server doesn't say.", rich_help_panel=_OUTSIDE),
    ] = None,
    max_running_requests: Annotated[
        int | None,
        typer.Option(
            min=1, help="Limit of the engine, if known (else: found out).", rich_help_panel=_OUTSIDE
        ),
    ] = None,
    max_step_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Token budget of the engine's steps, if known (else: found out).",
            rich_help_panel=_OUTSIDE,
        ),
    ] = None,
    kv_cache_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Room of its KV cache, if known: it can't be seen.", rich_help_panel=_OUTSIDE
        ),
    ] = None,
    key: KeyOption = None,
    chat: ChatFlag = False,
    max_concurrency: Annotated[
        int, typer.Option(min=1, help="Most streams at once.", rich_help_panel=_OUTSIDE)
    ] = 256,
    check: Annotated[
        bool,
        typer.Option(help="Then serve a backlog, and compare with a replay of it.", rich_help_panel=_OUTSIDE),
    ] = True,
    as_json: JsonFlag = False,
) -> None:
    """Measure a model on this machine, or a server from outside: step times, memory, power where told, and cost."""
    _refuse_of_the_other_kind(context, outside=endpoint is not None)
    if endpoint is None:
        _profile_here(
            model or "smollm2-135m", out, device, dtype, price_usd_per_hour, budget_s, training, seed, as_json
        )
        return
    from engine.loadtest.client import Endpoint
    from engine.profiling.endpoint_options import Known, SurveyOptions

    known = Known(
        price_usd_per_hour=price_usd_per_hour,
        accelerators=accelerators,
        accelerator=accelerator,
        usd_per_mtok_prompt=usd_per_mtok_prompt,
        usd_per_mtok_output=usd_per_mtok_output,
        precision=precision,
        parameters=parameters,
        max_context_tokens=max_context_tokens,
        max_running_requests=max_running_requests,
        max_step_tokens=max_step_tokens,
        kv_cache_tokens=kv_cache_tokens,
    )
    profile_endpoint(
        Endpoint(endpoint, model, key, chat),
        known,
        SurveyOptions(_BUDGET_OUTSIDE_S if budget_s is None else budget_s, max_concurrency, seed=seed),
        out,
        check=check,
        as_json=as_json,
    )


def _profile_here(
    model: str,
    out: Path | None,
    device: str,
    dtype: str,
    price_usd_per_hour: float | None,
    budget_s: float | None,
    training: bool,
    seed: int,
    as_json: bool,
) -> None:
    from engine.profiling.profiler import measure_profile

    target = out or paths.measured_profiles_dir() / f"{model.replace('/', '--')}.json"
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
    save_and_show(measured, target, model, as_json)


def _refuse_of_the_other_kind(context: typer.Context, *, outside: bool) -> None:
    for name in _ONLY_HERE if outside else _ONLY_OUTSIDE:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "on" if name == "accelerator" else name.replace("_", "-")
            said = "not allowed with --endpoint" if outside else "allowed only with --endpoint URL"
            raise InputError(f"--{option}: {said}")


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
    from engine.prediction.roofline import predict_profile
    from engine.profile.profile import Profile

    measured = None if source is None else Profile.load(source)
    predicted = predict_profile(measured, on, model, precision, tensor_parallel, engine, price_usd_per_hour)
    target = out or paths.measured_profiles_dir() / f"{predicted.model.name}.json"
    save_and_show(predicted, target, predicted.model.name, as_json)
