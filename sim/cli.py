"""The command line: `flywheel profile | run | replay | train | app`.

Every command reads its input whole and checks it before it works, shows a progress bar on standard error
while it works, and prints its result on standard output: a table for people, `--json` for scripts.
Bad input is one line on standard error and exit status 2; heavy imports wait until a command needs them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from engine.errors import InputError
from sim import (
    cli_capacity,
    cli_loop,
    cli_loop_value,
    cli_plan,
    cli_predict,
    cli_replay,
    cli_scaling,
    cli_train,
    cli_validate,
    cli_workload,
    paths,
)
from sim.terminal import JsonFlag, print_json, print_table, progress_bar, save_and_show

app = typer.Typer(
    name="flywheel",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure a real language model on real hardware, then run the company that sells it.",
)
_errors = Console(stderr=True)

ProfileOption = Annotated[
    Path | None,
    typer.Option("--profile", help="Profile to use instead of this machine's own or the shipped one."),
]


@app.command(epilog="Example: flywheel profile smollm2-135m --price-usd-per-hour 0.0496")
def profile(
    model: Annotated[
        str,
        typer.Argument(
            help="smollm2-135m (bundled), a local directory, a GGUF file, a hub id, or ARCH@dummy."
        ),
    ] = "smollm2-135m",
    out: Annotated[
        Path | None, typer.Option(help="Where to write it (default: out/profiles/MODEL.json).")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16; weights only: int8 (CPU), fp8 (CUDA).")
    ] = "float32",
    price_usd_per_hour: Annotated[
        float | None, typer.Option(help="What this machine costs per hour (default: from the catalog).")
    ] = None,
    budget_s: Annotated[float, typer.Option(help="Seconds to spend on measuring.")] = 50.0,
    training: Annotated[
        bool, typer.Option(help="Measure optimizer steps too, in an eighth of the budget.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Order of the measurements.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Measure a model on this machine: step times, memory, power where the machine tells, and cost."""
    from engine.profiler import measure_profile

    target = out or paths.measured_profiles_dir() / f"{model.replace('/', '--')}.json"
    with progress_bar(f"profile {model}") as report:
        measured = measure_profile(
            model,
            device=device,
            dtype=dtype,
            price_usd_per_hour=price_usd_per_hour,
            budget_s=budget_s,
            seed=seed,
            progress=report,
            training=training,
        )
    save_and_show(measured, target, model, as_json)


@app.command(
    epilog="Example: flywheel run scenarios/api_startup.yaml --set market.price_usd_per_mtok_output=2.0"
)
def run(
    scenario: Annotated[
        str, typer.Argument(help="A scenario file, or the name of a shipped one.")
    ] = "api_startup",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one assumption; repeatable."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the random streams (default: the scenario's).")
    ] = None,
    profile: ProfileOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the outputs (default: out/SCENARIO).")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a company through its months and write report.html, monthly.csv, ledger.parquet, result.json."""
    from engine.profile import Profile
    from sim.company import simulate
    from sim.report import headline_rows, write_outputs
    from sim.scenario import Scenario

    chosen = Scenario.load(scenario)
    if overrides:
        chosen = chosen.override(_parse_overrides(overrides))
    path = paths.resolve_profile(chosen.deployment.model, profile)
    measured = Profile.load(path).require_model(chosen.deployment.model, path)
    folder = out or Path("out") / Path(scenario).stem
    with progress_bar(f"run {Path(scenario).stem}") as report:
        result = simulate(chosen, seed=seed, profile=measured, progress=report)
    written = write_outputs(result, folder)
    if as_json:
        print_json({"report": str(written), "seed": result.seed, "headline": result.headline})
    else:
        print_table(chosen.name, headline_rows(result))
        print(f"Report: {written}")


app.command(epilog="Example: flywheel replay requests.csv --replicas 40 --out per_request.csv")(
    cli_replay.replay
)
app.command(epilog="Example: flywheel train --architecture bloom --layers 4 --hidden-size 128 --steps 300")(
    cli_train.train
)
app.command(epilog="Example: flywheel scaling --minutes 3 --out out/scaling.json")(cli_scaling.scaling)
app.command(epilog="Example: flywheel loop --quick")(cli_loop.loop)
app.command(epilog="Example: flywheel fit trace.csv --out workload.yaml")(cli_workload.fit)
app.command(epilog="Example: flywheel generate workload.yaml --rate 5 --requests 1000 --out requests.csv")(
    cli_workload.generate
)
app.command(epilog="Example: flywheel capacity --traffic chat=0.7,code=0.3 --ttft 10 --tpot 0.15")(
    cli_capacity.capacity
)
app.command(
    epilog='Example: flywheel configure llama-3.1-8b --rate 20 --on "H100 SXM,L40S" --ttft 1 --tpot 0.05'
)(cli_capacity.configure)
app.command("loop-value", epilog="Example: flywheel loop-value api_startup --seeds 8")(
    cli_loop_value.loop_value
)
app.add_typer(cli_validate.app, name="validate")
app.command(epilog='Example: flywheel plan --model bloom-560m --on "A100 SXM,H100 SXM"')(cli_plan.plan)
app.command(epilog='Example: flywheel predict llama-3.1-8b --on "H100 SXM" --engine vllm')(
    cli_predict.predict
)


@app.command("app", epilog="Example: flywheel app --port 8501")
def open_app(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the web app.")] = 8501,
    headless: Annotated[bool, typer.Option(help="Don't open a browser.")] = False,
) -> None:
    """Open the web app (Streamlit) on this machine."""
    script = Path(__file__).resolve().parent.parent / "app.py"
    command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.port", str(port)]
    command += ["--server.address", "127.0.0.1"]
    if headless or not sys.stdout.isatty():
        command += ["--server.headless", "true"]
    raise typer.Exit(subprocess.call(command, cwd=script.parent))


def main() -> None:
    """Entry point of the console script: bad input is one line and exit status 2, never a traceback."""
    try:
        status = app(standalone_mode=False)
    except InputError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        _errors.print("interrupted")
        sys.exit(130)
    except MemoryError:
        _fail("not enough memory for this much at once")
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a file that may not be read
        _fail(f"{error.filename or 'file'}: {error.strerror or error}")
    except Exception as error:
        # Usage errors are click's, and which click is Typer's secret: they are known by what they can do.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        if not message or "Usage:" in message:  # no command at all: the help says what there is
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        _fail(f"{message.rstrip('.')}; see `flywheel --help`")
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> NoReturn:
    print(f"flywheel: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`key=value` words to {dotted key: value}; values are read as YAML scalars, like in the file."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {pair}: found no KEY=VALUE; write for example --set horizon_months=24")
        try:
            values[key.strip()] = YAML(typ="safe", pure=True).load(text)
        except YAMLError:
            raise InputError(f"--set {pair}: the value {text!r} is not a YAML value") from None
    return values


if __name__ == "__main__":
    main()
