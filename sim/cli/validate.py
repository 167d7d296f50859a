"""The commands `flywheel validate serving` and `flywheel validate run`: predictions compared with measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.errors import InputError
from engine.utils.files import check_writable
from sim.cli.options import DeviceOption, JsonFlag, ProfileOption
from sim.cli.terminal import print_json, print_table, progress_bar
from sim.i18n import numbers
from sim.utils import paths

if TYPE_CHECKING:
    import pandas as pd

    from engine.profile.profile import Profile

app = typer.Typer(no_args_is_help=True, help="Compare the simulator's predictions with measurements.")

_DISTURBED_SHARE = 0.02  # of the measured time, in stalled steps


@app.command(epilog="Example: flywheel validate serving --loads 0.3,0.6 --requests 50 --runs 1 --calibrate")
def serving(
    model: Annotated[
        str, typer.Option(help="Model to serve; its profile makes the prediction.")
    ] = "smollm2-135m",
    profile: ProfileOption = None,
    loads: Annotated[
        str, typer.Option(help="Shares of capacity, or burst, separated by commas.")
    ] = "0.3,0.6,0.85,burst",
    requests: Annotated[int, typer.Option(min=1, help="Requests in each run.")] = 200,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each load; medians are compared.")] = 3,
    prompt_tokens: Annotated[float, typer.Option(min=1, help="Mean prompt length.")] = 128.0,
    output_tokens: Annotated[float, typer.Option(min=1, help="Mean output length.")] = 40.0,
    device: DeviceOption = "cpu",
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Calibrate the profile first, on separate runs.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder of the runs and the comparison.")] = Path(
        "out/validation"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of arrivals, lengths and tokens.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Serve the same arrivals with the real engine and with the simulator, side by side."""
    from engine.profile.profile import Profile
    from sim.validation.compare import Lengths, parse_loads
    from sim.validation.serving import ValidationOptions, validate_serving

    check_writable(out / "comparison.csv")
    chosen = parse_loads(loads)
    prior = Profile.load(paths.resolve_profile(model, profile))
    options = ValidationOptions(
        requests, runs, Lengths(prompt_tokens, output_tokens), calibrate, model, device, seed
    )
    with progress_bar("validate serving", redraws_per_s=0) as report:
        found = validate_serving(prior, chosen, options, report)
    found.save(out)
    if as_json:
        print_json(found.to_json())
        return
    for load in chosen:
        share = load if load == "burst" else numbers.percent(float(load))
        rows = found.table[found.table["load"] == load]
        steps = found.steps[load]
        title = f"Load {share} of {found.capacity_rps:.3g} requests/s: {runs} runs of {requests} requests"
        _print_comparison(title, rows)
        print(_about_steps(steps, float(rows["scheduler_error"].abs().max())))
    if found.calibrated is not None:
        _print_calibration(prior, found.calibrated, out / "calibrated.json")
    if found.provenance["machine"] != prior.hardware.name:
        print(
            f"The profile was measured on {prior.hardware.name}; this is {found.provenance['machine']}: "
            f"measure here with `flywheel profile {model}`, or give --calibrate."
        )
    print(f"Runs and comparison: {out}")


@app.command(
    epilog="Example: flywheel validate run vllm.csv --profile h100.json --calibrate --out calibrated.json"
)
def run(
    recorded: Annotated[
        Path,
        typer.Argument(
            help="CSV with arrived_s,prompt_tokens,output_tokens,first_token_s,finished_s (seconds)."
        ),
    ],
    model: Annotated[str, typer.Option(help="Model whose profile makes the prediction.")] = "smollm2-135m",
    profile: ProfileOption = None,
    max_running_requests: Annotated[
        int | None,
        typer.Option(min=1, help="Most requests that run at once at that server (default: the profile's)."),
    ] = None,
    max_step_tokens: Annotated[
        int | None, typer.Option(min=1, help="Token limit of a step of that server (default: the profile's).")
    ] = None,
    kv_cache_tokens: Annotated[
        int | None, typer.Option(min=1, help="Size of that server's KV cache (default: the profile's).")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Calibrate on the first half of the requests, evaluate on the second."
        ),
    ] = False,
    out: Annotated[Path, typer.Option(help="File of the calibrated profile.")] = Path(
        "out/profiles/calibrated.json"
    ),
    as_json: JsonFlag = False,
) -> None:
    """Replay a recorded run of another server and compare; --calibrate makes a profile of that server."""
    from dataclasses import replace

    from engine.profile.profile import Profile
    from sim.validation.calibrate_requests import calibrate_on_requests
    from sim.validation.compare import compare, predict
    from sim.validation.posterior import posterior_of
    from sim.validation.recorded_run import read_recorded

    if calibrate:
        check_writable(out)
    frame = read_recorded(recorded)
    prior = Profile.load(paths.resolve_profile(model, profile))
    config = prior.scheduler_config()
    config = replace(
        config,
        max_running_requests=max_running_requests or config.max_running_requests,
        max_step_tokens=max_step_tokens or config.max_step_tokens,
    )
    if kv_cache_tokens is not None:
        config = replace(config, num_blocks=-(-kv_cache_tokens // config.block_tokens))
    judged, calibrated = None, None
    with progress_bar("validate run") as report:
        if calibrate:
            if len(frame) < 2:
                raise InputError(
                    f"{recorded}: found {len(frame)} request, allowed for --calibrate are at least 2"
                )
            half = len(frame) // 2
            judged = slice(half, None)
            calibrated = calibrate_on_requests(
                prior,
                frame,
                f"{recorded.name}, first {half} of {len(frame)} requests",
                config,
                slice(0, half),
                report,
            )
        report(0.9, "replaying")
        table = compare([frame], predict(posterior_of(prior), frame, config, judged=judged), judged)
        if calibrated is not None:
            after = compare([frame], predict(posterior_of(calibrated), frame, config, judged=judged), judged)
            for column in ("predicted", "error", "low", "high", "covered", "met"):
                table[f"calibrated_{column}"] = after[column]
            calibrated.save(out)
    if as_json:
        result: dict[str, Any] = {"requests": len(frame), "comparison": table.to_dict("records")}
        if calibrated is not None:
            result |= {"profile": str(out), "calibration": calibrated.method["calibration"]}
        print_json(result)
        return
    part = "" if judged is None else f", judged by the last {len(frame) - len(frame) // 2}"
    _print_comparison(f"{recorded.name}: {len(frame)} requests{part}", table)
    if calibrated is not None:
        _print_calibration(prior, calibrated, out)


def _about_steps(steps: dict[str, float], scheduler_error: float) -> str:
    """How much of an error comes from the step-time model, the scheduler and disturbances of the machine."""
    lines = [
        f"Single steps: the profile errs by {numbers.percent(steps['median_error'], 1)} (median), by "
        f"{numbers.percent(steps['bias'], 1)} in sum"
    ]
    if "calibrated_bias" in steps:
        error, bias = (numbers.percent(steps[f"calibrated_{name}"], 1) for name in ("median_error", "bias"))
        lines.append(f"; calibrated by {error}, {bias}")
    lines.append(
        f". With the run's own step times the replay errs by at most {numbers.percent(scheduler_error, 2)}."
    )
    if steps["stalled_share"] > _DISTURBED_SHARE:
        lines.append(
            f"\nThe machine was disturbed: {numbers.percent(steps['stalled_share'])} of the time passed in steps that "
            "took twice as long as predicted or longer. Measure again when nothing else runs."
        )
    return "".join(lines)


def _print_comparison(title: str, table: pd.DataFrame) -> None:
    _print_prediction(title, table, "")
    if "calibrated_predicted" in table:
        _print_prediction("… calibrated", table, "calibrated_")


def _print_prediction(title: str, table: pd.DataFrame, prefix: str) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left", title_style="bold")
    shown.add_column("")
    for head in ("measured", "spread", "predicted", "error", "goal", "90 % interval", "covers"):
        shown.add_column(head, justify="right", no_wrap=True)
    for row in table.to_dict("records"):
        name = str(row["measure"])
        found = {
            key: row[f"{prefix}{key}"] for key in ("predicted", "error", "low", "high", "covered", "met")
        }
        shown.add_row(
            _label(name),
            _quantity(name, row["measured"]),
            numbers.percent(row["spread"], 1),
            _quantity(name, found["predicted"]),
            f"{found['error']:+.1%}".replace("-", "−"),
            f"{row['goal']:.1%} {'✓' if found['met'] else '✗'}",
            f"{_quantity(name, found['low'])} – {_quantity(name, found['high'])}",
            numbers.percent(found["covered"]),
        )
    Console(width=max(Console().width, 100), markup=False, emoji=False).print(shown)


def _print_calibration(before: Profile, after: Profile, path: Path) -> None:
    from sim.validation.calibrate_steps import interval_rows

    print_table(
        "What a step takes, 90 % interval: profile → calibrated",
        [(label, f"{prior} → {posterior}") for label, prior, posterior in interval_rows(before, after)],
    )
    print(f"Calibrated profile: {path}")


def _label(name: str) -> str:
    kind, _, rest = name.partition("_")
    return "throughput" if kind == "throughput" else f"{kind.upper()} {rest.removesuffix('_s')}"


def _quantity(name: str, value: float) -> str:
    return f"{numbers.count(value)} /s" if name == "throughput_rps" else numbers.seconds(value)
