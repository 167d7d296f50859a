"""The command line `flywheel`: its commands, and how errors end them.

Every command reads its input whole and checks it before it works, shows a progress bar on standard error
while it works, and prints its result on standard output: tables, or JSON with `--json`.
Bad input is one line on standard error and exit status 2; heavy imports wait until a command needs them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from engine.errors import InputError
from sim.cli import (
    actuals,
    billing,
    capacity,
    load,
    loop,
    plan,
    replay,
    scaling,
    serve,
    train,
    validate,
    workload,
)
from sim.cli import profile as cli_profile
from sim.cli import study as cli_study
from sim.cli.options import JsonFlag, ProfileOption, ScenarioArgument, SetOption, load_scenario
from sim.cli.terminal import print_json, print_table, progress_bar
from sim.utils import paths

app = typer.Typer(
    name="flywheel",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure a real language model on real hardware, then run the company that sells it.",
)
_errors = Console(stderr=True)


@app.command(
    epilog="Example: flywheel run scenarios/api_startup.yaml --set market.price_usd_per_mtok_output=2.0"
)
def run(
    scenario: ScenarioArgument = "api_startup",
    overrides: SetOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the random streams (default: the scenario's).")
    ] = None,
    profile: ProfileOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the outputs (default: out/SCENARIO).")] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME,…",
            help="html, pdf, xlsx, csv, parquet, json; csv and parquet write every table "
            "(default: report.html, monthly.csv, ledger.parquet, result.json).",
        ),
    ] = None,
    sections: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Sections of the HTML and PDF: summary, uncertainty, figures, statements, tables, cohorts, events, "
            "assumptions, provenance, scenario (default: all).",
        ),
    ] = None,
    lang: Annotated[str, typer.Option(help="Language of the reports: en or zh.")] = "en",
    runs: Annotated[
        int,
        typer.Option(
            min=0,
            help="Further runs at other seeds and draws, for the report's section uncertainty.",
        ),
    ] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Run a company through its months and write report.html, monthly.csv, ledger.parquet, result.json."""
    from engine.profile.profile import Profile
    from sim.company.simulate import simulate
    from sim.outputs import check_choices, write_outputs
    from sim.report.content import headline_rows

    wanted, shown = _names(formats), _names(sections)
    check_choices(wanted, shown, lang)
    chosen = load_scenario(scenario, overrides)
    path = paths.resolve_profile(chosen.deployment.model, profile)
    measured = Profile.load(path).require_model(chosen.deployment.model, path)
    folder = out or Path("out") / Path(scenario).stem
    with progress_bar(f"run {Path(scenario).stem}") as report:
        result = simulate(chosen, seed=seed, profile=measured, progress=report)
    study = None
    if runs:
        from sim.study.monte_carlo import around
        from sim.study.runs.options import RunOptions

        with progress_bar("uncertainty") as report:
            study = around(result, runs, options=RunOptions(progress=report))
    with progress_bar("report") as report:
        written = write_outputs(result, folder, wanted, shown, lang, report, study)
    if as_json:
        print_json({"report": str(written), "seed": result.seed, "headline": result.headline})
    else:
        print_table(chosen.name, headline_rows(result))
        if study is not None:
            cli_study.show(study)
        elif chosen.uncertain:
            print(
                f"{len(chosen.uncertain)} values are uncertain, this run takes their medians; "
                f"`--runs 200` draws them for the report."
            )
        print(f"Report: {written}")


app.command(
    epilog="Example: flywheel profile smollm2-135m --price-usd-per-hour 0.0496, or of a server, "
    "flywheel profile --endpoint http://127.0.0.1:8000 --price-usd-per-hour 2 --out theirs.json"
)(cli_profile.profile)
app.command(epilog="Example: flywheel replay requests.csv --replicas 40 --out per_request.csv")(replay.replay)
app.command(epilog="Example: flywheel train --architecture bloom --layers 4 --hidden-size 128 --steps 300")(
    train.train
)
app.command(epilog="Example: flywheel scaling --minutes 3 --out out/scaling.json")(scaling.scaling)
app.command(epilog="Example: flywheel loop --quick")(loop.loop)
app.command(
    epilog="Example: flywheel serve smollm2-135m --port 8000 --database sqlite:///out/usage.db --queue 256"
)(serve.serve)
app.add_typer(billing.app, name="keys")
app.command(epilog="Example: flywheel bill --month 2026-11 --scenario api_startup --default-plan developers")(
    billing.bill
)
app.command(epilog=actuals.EPILOG)(actuals.actuals)
app.command(epilog="Example: flywheel load http://127.0.0.1:8000 --rate 2 --requests 200 --goal ttft=10")(
    load.load
)
app.add_typer(cli_study.app, name="study")
app.command(epilog="Example: flywheel fit trace.csv --out workload.yaml")(workload.fit)
app.command(epilog="Example: flywheel generate workload.yaml --rate 5 --requests 1000 --out requests.csv")(
    workload.generate
)
app.command(epilog="Example: flywheel capacity --traffic chat=0.7,code=0.3 --ttft 10 --tpot 0.15")(
    capacity.capacity
)
app.command(
    epilog='Example: flywheel configure llama-3.1-8b --rate 20 --on "H100 SXM,L40S" --ttft 1 --tpot 0.05'
)(capacity.configure)
app.command("loop-value", epilog="Example: flywheel loop-value api_startup --seeds 8")(loop.loop_value)
app.add_typer(validate.app, name="validate")
app.command(epilog='Example: flywheel plan --model bloom-560m --on "A100 SXM,H100 SXM"')(plan.plan)
app.command(epilog='Example: flywheel predict llama-3.1-8b --on "H100 SXM" --engine vllm')(
    cli_profile.predict
)


@app.command("app", epilog="Example: flywheel app --port 8501")
def open_app(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the web app.")] = 8501,
    headless: Annotated[bool, typer.Option(help="Don't open a browser.")] = False,
) -> None:
    """Open the web app (Streamlit) on this machine."""
    script = paths.data_dir() / "app.py"  # Streamlit reads the `.streamlit/` beside it
    command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.port", str(port)]
    command += ["--server.address", "127.0.0.1"]
    if headless or not sys.stdout.isatty():
        command += ["--server.headless", "true"]
    raise typer.Exit(subprocess.call(command))


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
    except OSError as error:  # a full disk, an unreadable file
        _fail(f"{error.filename or 'file'}: {error.strerror or error}")
    except Exception as error:
        # Usage errors are click's, and Typer may bundle its own click: they are recognised by their method.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        if type(error).__name__ == "NoArgsIsHelpError":  # no command at all: the help says what there is
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        _fail(f"{message.rstrip('.')}; see `flywheel --help`")
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> NoReturn:
    print(f"flywheel: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _names(words: str | None) -> list[str] | None:
    """The names in "one,two"; None when the option was not given."""
    return None if words is None else [name.strip() for name in words.split(",") if name.strip()]
