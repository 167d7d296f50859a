"""The commands `flywheel capacity` and `flywheel configure`: capacity of a replica, cheapest hardware for a load."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.errors import InputError
from engine.utils.files import check_writable, write_atomically
from engine.utils.progress import part_of
from sim.cli.load_options import OfferedLoadOptions, numbers_of, prices_of, split
from sim.cli.options import JsonFlag, ProfileOption, with_options
from sim.cli.terminal import print_grid, print_json, print_table, progress_bar
from sim.i18n import numbers
from sim.utils import paths

if TYPE_CHECKING:
    import pandas as pd

    from engine.profile.profile import Profile
    from sim.capacity.configurations import Refused
    from sim.capacity.search import SearchResult
    from sim.capacity.surface import CapacitySurface
    from sim.serving.fleet_config import Fleet
    from sim.serving.hardware_use import HardwareUse

_AGAINST = {"ttft": "ttft_p95_s", "tpot": "tpot_p95_s", "e2e": "e2e_p95_s"}
_PREDICTED = " (PREDICTED, not measured)"


@with_options
def capacity(
    *,
    model: Annotated[str, typer.Option(help="Model whose profile is used.")] = "smollm2-135m",
    profile: ProfileOption = None,
    fleet: Annotated[
        Path | None, typer.Option(help="Fleet file (YAML), instead of one replica of the profile.")
    ] = None,
    asked: OfferedLoadOptions,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the requests.")] = 0,
    out: Annotated[Path | None, typer.Option(help="CSV file of the table by load.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Find the highest rate that a replica (or a fleet) sustains within latency objectives."""
    from engine.profile.profile import Profile
    from sim.capacity.configurations import Configuration
    from sim.capacity.goals import describe_goal
    from sim.capacity.load_test import replay_at
    from sim.capacity.search import capacity_interval
    from sim.capacity.surface import REQUESTS_PER_RATE, fleet_capacity, replica_fleet
    from sim.serving.hardware_use import hardware_use

    if out is not None:
        check_writable(out)
    shown = Profile.load(paths.resolve_profile(model, profile))
    if fleet is not None:
        from sim.serving.fleet_file import load_fleet

        chosen = load_fleet(fleet, shown)
    else:
        chosen = replica_fleet(shown)
    limits = chosen.kinds[0].scheduler
    longest = asked.max_context_tokens
    if asked.trace is None:  # drawn lengths are cut to what fits, a record is taken as it is
        longest = chosen.longest_request_tokens(longest)
    load = asked.offered(longest, limits.block_tokens)
    goal = asked.goal(load)
    with progress_bar("capacity") as report:
        found = fleet_capacity(chosen, load, goal, seed=seed, progress=part_of(report, 0.0, 0.9))
        report(0.9, "at its capacity")
        _, frame, stats = replay_at(chosen, load, found.capacity_rps, REQUESTS_PER_RATE // 2, seed)
    profiles = [kind.profile for kind in stats.kinds]
    known = [each for each in profiles if each is not None]
    use = hardware_use(frame, stats, known) if len(known) == len(profiles) else None
    predicted = None
    if fleet is None:
        predicted = capacity_interval(Configuration(model, shown, limits), found)
    if out is not None:
        write_atomically(out, found.table.to_csv(index=False))
    kept = describe_goal(goal)
    if as_json:
        print_json(_capacity_json(chosen, load.name, kept, found, predicted, use))
        return
    _print_capacity(chosen, load.name, kept, found, predicted, use)


@with_options
def configure(
    *,
    model: Annotated[
        str | None,
        typer.Argument(help="Published model, such as llama-3.1-8b; omit it with --profile alone."),
    ] = None,
    rate: Annotated[float, typer.Option(help="Requests per second to serve.")] = 1.0,
    on: Annotated[
        str, typer.Option("--on", help='Accelerators of the catalog, separated by commas: "H100 SXM,L40S".')
    ] = "",
    precision: Annotated[str, typer.Option(help="Precisions of the weights: bf16, fp8, fp4, int4.")] = "bf16",
    tensor_parallel: Annotated[str, typer.Option(help="Accelerators per replica: 1,2,4,8.")] = "1",
    engine: Annotated[str, typer.Option(help="Serving engines to predict: vllm, sglang, trtllm.")] = "vllm",
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Measured profile to scale to this hardware, instead of --engine."),
    ] = None,
    profile: Annotated[
        list[Path] | None, typer.Option("--profile", help="Measured profile to compare with; repeatable.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Limits of requests that run together: 64,256.")] = "256",
    step_tokens: Annotated[str, typer.Option(help="Limits of tokens per step: 2048,8192.")] = "8192",
    price: Annotated[
        list[str] | None,
        typer.Option("--price", metavar="NAME=USD", help="Price of an accelerator per hour; repeatable."),
    ] = None,
    asked: OfferedLoadOptions,
    against: Annotated[str, typer.Option(help="Latency of the Pareto curve: ttft, tpot or e2e.")] = "e2e",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the requests.")] = 0,
    out: Annotated[Path | None, typer.Option(help="CSV file of all configurations.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Find the cheapest hardware, parallelism, precision and batch limits for a load, and the cost of lower latency."""
    from engine.profile.profile import Profile
    from sim.capacity.configurations import measured_configurations, predicted_configurations
    from sim.capacity.goals import describe_goal
    from sim.capacity.search import search

    if out is not None:
        check_writable(out)
    if against not in _AGAINST:
        raise InputError(f"--against: found {against!r}, allowed are {', '.join(_AGAINST)}")
    if model is None and not profile:
        raise InputError(
            "found neither a model nor --profile; give a published model and --on, or measured profiles"
        )
    if (model is None) != (not on):
        raise InputError('a model needs --on, as in: flywheel configure llama-3.1-8b --on "H100 SXM"')
    running, tokens = numbers_of(batch, "--batch"), numbers_of(step_tokens, "--step-tokens")
    load = asked.offered(asked.max_context_tokens)
    goal = asked.goal(load)
    configurations = measured_configurations([Profile.load(path) for path in profile or []])
    refused: list[Refused] = []
    if model is not None:
        predicted, refused = predicted_configurations(
            model,
            split(on, "--on"),
            precisions=split(precision, "--precision"),
            tensor_parallel=numbers_of(tensor_parallel, "--tensor-parallel"),
            engines=split(engine, "--engine"),
            source=None if source is None else Profile.load(source),
            max_running_requests=running,
            max_step_tokens=tokens,
            prices_usd_per_hour=prices_of(price),
        )
        configurations += predicted
    if not configurations:
        raise InputError(f"no configuration is left: {refused[0].name}: {refused[0].reason}")
    with progress_bar("configure") as report:
        found = search(
            load, goal, rate, configurations, against=_AGAINST[against], seed=seed, progress=report  # type: ignore[arg-type]
        )  # fmt: skip
    found.refused[:0] = refused
    cheapest = found.cheapest
    if out is not None:
        write_atomically(out, found.table.to_csv(index=False))
    if as_json:
        print_json(
            {
                "rate_rps": rate,
                "cheapest": cheapest,
                "curve": found.curve.to_dict(orient="records"),
                "configurations": found.table.to_dict(orient="records"),
                "refused": {each.name: each.reason for each in found.refused},
                "skipped": {each.name: each.reason for each in found.skipped},
            }
        )
        return
    _print_search(found, f"{load.name} at {rate:g} requests/s, {describe_goal(goal)}", against, out)


def _capacity_json(
    fleet: Fleet,
    load: str,
    goal: str,
    found: CapacitySurface,
    predicted: tuple[float, float] | None,
    use: HardwareUse | None,
) -> dict[str, Any]:
    low, high = predicted or (None, None)
    return {
        "load": load,
        "goal": goal,
        "step_times": fleet.step_times_from,
        "capacity_rps": found.capacity_rps,
        "capacity_low_rps": found.capacity_low_rps,
        "capacity_high_rps": found.capacity_high_rps,
        "with_step_time_interval": {"low_rps": low, "high_rps": high},
        "saturation_rps": found.saturation_rps,
        "prompt_tokens_mean": found.prompt_tokens_mean,
        "output_tokens_mean": found.output_tokens_mean,
        "at_capacity": {} if use is None else {**use.figures(), "missing": use.missing},
        "table": found.table.to_dict(orient="records"),
    }


def _print_capacity(
    fleet: Fleet,
    load: str,
    goal: str,
    found: CapacitySurface,
    predicted: tuple[float, float] | None,
    use: HardwareUse | None,
) -> None:
    names = ", ".join(f"{kind.replicas} × {_on(kind.name, kind.profile)}" for kind in fleet.kinds)
    per = "" if len(fleet.kinds) == 1 and fleet.kinds[0].replicas == 1 else " of the fleet"
    rows = [
        (f"Highest rate{per}", f"{found.capacity_rps:.4g} requests/s"),
        (
            "95 % interval, chance",
            f"{found.capacity_low_rps:.4g} to {found.capacity_high_rps:.4g} requests/s",
        ),
    ]
    if predicted is not None and not math.isnan(predicted[0]):
        rows.append(("90 %, step times too", f"{predicted[0]:.4g} to {predicted[1]:.4g} requests/s"))
    rows.append(("Saturation", f"{found.saturation_rps:.4g} requests/s"))
    if found.capacity_rps >= 0.9499 * found.saturation_rps:
        rows.append(("Limited by", "saturation: the search ends at 95 % of it, the objectives allow more"))
    rows.append(("Kept", goal))
    tokens = found.capacity_rps * found.output_tokens_mean
    rows.append(("Output at that rate", f"{numbers.count(tokens)} tokens/s"))
    if use is not None:
        money = f"{numbers.usd(use.usd_per_mtok)} all, {numbers.usd(use.usd_per_mtok_output)} output"
        joules = f"{numbers.count(use.joules_per_mtok)}J"
        rows.append(("USD per million tokens", money))
        rows.append(("Energy per million tokens", use.missing.get("joules_per_mtok", joules)))
        rows.append(("MFU, MBU in steps", f"{numbers.percent(use.mfu, 1)}, {numbers.percent(use.mbu, 1)}"))
    print_table(f"{load} on {names}", rows)
    head = ["load", "requests/s", "TTFT p50", "p95", "TPOT p50", "p95", "E2E p95", "batch"]
    print_grid("By load", head, _by_load(found))


def _by_load(found: CapacitySurface) -> list[list[str]]:
    """Rows at round loads and at the capacity."""
    from sim.capacity.load_test import LOADS

    shares = sorted({*LOADS, found.capacity_rps / found.saturation_rps})
    rows = []
    for share in shares:
        seen = {name: float(value) for name, value in found.at(share * found.saturation_rps).items()}
        at_capacity = share not in LOADS
        rows.append(
            [
                f"{numbers.percent(share, 0 if not at_capacity else 1)}{' capacity' if at_capacity else ''}",
                f"{seen['rate_rps']:.3g}",
                *(
                    numbers.seconds(seen[name])
                    for name in ("ttft_p50_s", "ttft_p95_s", "tpot_p50_s", "tpot_p95_s", "e2e_p95_s")
                ),
                f"{seen['batch_mean']:.1f}",
            ]
        )
    return rows


def _on(name: str, profile: Profile | None) -> str:
    if profile is None:
        return name
    return f"{name} on {profile.hardware.name}{_PREDICTED if profile.kind == 'predicted' else ''}"


def _print_search(found: SearchResult, title: str, against: str, out: Path | None) -> None:
    best = found.cheapest
    money = f"{numbers.usd(best['usd_per_mtok'])} all, {numbers.usd(best['usd_per_mtok_output'])} output"
    span = (
        ""
        if math.isnan(best["capacity_low_rps"])
        else f", {best['capacity_low_rps']:.3g} to {best['capacity_high_rps']:.3g}"
    )
    times = (f"{name.upper()} {numbers.seconds(best[column])}" for name, column in _AGAINST.items())
    looked_at = (
        f"{len(found.table)} simulated, {len(found.skipped)} dearer and slower, {len(found.refused)} refused"
    )
    rows = [
        ("Cheapest", f"{best['replicas']} × ({best['configuration']})"),
        ("Step times", "PREDICTED, not measured" if best["kind"] == "predicted" else "measured"),
        ("Cost", f"{numbers.usd(best['usd_per_hour'])} per hour{_range(best)}"),
        ("USD per million tokens", money),
        ("Capacity of a replica", f"{best['capacity_rps']:.4g}{span} requests/s"),
        ("Latency p95", ", ".join(times)),
        ("Whole fleet simulated", "keeps the objectives" if best["fleet_simulated"] else "no"),
        ("Configurations", looked_at),
    ]
    print_table(title, rows)
    _print_points(f"Cost against {against.upper()} (Pareto curve)", found.curve)
    if found.refused:
        grid = [[each.name, each.reason] for each in found.refused]
        print_grid("Refused", ["configuration", "reason"], grid)
    if out is not None:
        print(f"All configurations: {out}")


def _range(row: dict[str, Any]) -> str:
    low, high = row["usd_per_hour_low"], row["usd_per_hour_high"]
    return (
        f" ({numbers.usd(low)} to {numbers.usd(high)} with the interval of the step times)"
        if low < high
        else ""
    )


def _print_points(title: str, points: pd.DataFrame) -> None:
    head = ["configuration", "replicas", "USD/h", "USD/Mtok", "TTFT p95", "TPOT p95", "E2E p95", "used"]
    print_grid(title, head, [
        [
            f"{row.configuration}{_PREDICTED if row.kind == 'predicted' else ''}",
            str(row.replicas), f"{row.usd_per_hour:,.2f}", numbers.usd(row.usd_per_mtok),
            numbers.seconds(row.ttft_p95_s), numbers.seconds(row.tpot_p95_s), numbers.seconds(row.e2e_p95_s),
            numbers.percent(row.capacity_used),
        ]
        for row in points.itertuples()
    ])  # fmt: skip
