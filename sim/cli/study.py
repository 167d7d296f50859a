"""The commands `flywheel study …`: many runs of a company, for distributions, sensitivities and best settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.errors import InputError
from sim.cli import study_search
from sim.cli.options import ScenarioArgument, load_scenario, with_options
from sim.cli.study_options import StudyOptions
from sim.cli.terminal import print_grid, print_json, print_table
from sim.i18n import numbers

if TYPE_CHECKING:
    from sim.study.monte_carlo import MonteCarlo

app = typer.Typer(
    no_args_is_help=True,
    help="Run a company many times: distributions of outcomes, sensitivities, best settings, comparisons.",
)


@app.command(
    "monte-carlo",
    epilog="Example: flywheel study monte-carlo api_startup --runs 1000 "
    "--until 'p(ruined) ± 1%' --target 'gross_margin_last12 >= 60%' --out out/study",
)
@with_options
def monte_carlo(
    scenario: ScenarioArgument = "api_startup",
    runs: Annotated[int, typer.Option(help="Number of runs; with --until the maximum.")] = 1000,
    sampling: Annotated[str, typer.Option(help="Design of the draws: lhs, sobol or random.")] = "lhs",
    until: Annotated[
        list[str] | None,
        typer.Option(help="Stop at this precision: 'cash_usd_end ± 5%', 'p(ruined) ± 1%'; repeatable."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Condition whose probability is estimated: 'cash_usd_min >= 0'; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the study.")] = 0,
    same_world: Annotated[
        bool, typer.Option("--same-world", help="Vary the assumptions alone: all runs share one seed.")
    ] = False,
    *,
    options: StudyOptions,
) -> None:
    """Run a company many times over its uncertain assumptions; report percentiles, ruin and targets."""
    from typing import cast

    from engine.utils.files import write_atomically
    from sim.study.monte_carlo import monte_carlo as make
    from sim.study.sampling import Sampling

    chosen, out = load_scenario(scenario, options.overrides), options.out
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, allowed: a folder")
    with options.running(f"study {Path(scenario).stem}", "") as run_options:
        found = make(
            chosen,
            runs=runs,
            sampling=cast(Sampling, sampling),
            seed=seed,
            until=until or (),
            targets=target or (),
            vary_world=not same_world,
            options=run_options,
        )
    if out is not None:
        write_atomically(out / "summary.json", _as_json(found))
    if options.as_json:
        print_json(found.summary())
        return
    show(found)
    if out is not None:
        print(f"Runs: {out / 'runs.parquet'}")


app.command(epilog="Example: flywheel study sensitivity api_startup --method tornado")(
    study_search.sensitivity
)
app.command(
    epilog="Example: flywheel study optimise api_startup --vary market.price_usd_per_mtok_output=0.4..1.6 "
    "--goal 'max cash_usd_end'"
)(study_search.optimise)
app.command(
    "goal-seek",
    epilog="Example: flywheel study goal-seek api_startup --until 'gross_margin_last12 = 80%' --between 0.1..2",
)(study_search.goal_seek)
app.command(epilog="Example: flywheel study compare api_startup chat_subscription")(study_search.compare)


def _as_json(found: MonteCarlo) -> str:
    import json

    from sim.utils.serialise import json_ready

    return json.dumps(json_ready(found.summary()), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def show(found: MonteCarlo) -> None:
    """Print percentiles and probabilities."""
    from sim.scenario.metrics import MAIN_OUTCOMES, OUTCOMES, shown

    count = len(found.runs) - found.failed
    if not found.uncertain:
        print("No assumption is uncertain (none has a distribution): only chance varies from run to run.")
    table = found.outcomes.set_index("outcome")
    print_grid(
        f"{found.scenario}: {count:,} runs, {_plural(len(found.uncertain))} ({found.sampling})",
        ["outcome", "p5", "p25", "median", "p75", "p95", "mean ± 95 %"],
        [
            [
                OUTCOMES[name].label,
                *(shown(name, float(table[column][name])) for column in ("p5", "p25", "p50", "p75", "p95")),
                _with_width(name, float(table["mean"][name]), float(table["mean_high"][name])),
            ]
            for name in MAIN_OUTCOMES
        ],
    )
    end = found.ruin.iloc[-1]
    rows = [("Out of cash by the end", _probability(end["probability"], end["low"], end["high"]))]
    rows += [
        (str(row["target"]), _probability(row["probability"], row["low"], row["high"]))
        for _, row in found.targets.iterrows()
    ]
    print_table("Probabilities, with 95 % intervals", rows)
    for _, row in found.precision.iterrows():
        reached = "reached" if row["met"] else "not reached"
        between = f"{numbers.count(row['low'])} and {numbers.count(row['high'])}"
        print(f"{row['asked']}: {reached}, it lies between {between}")
    if found.failed:
        first = found.runs["error"][found.runs["error"] != ""].iloc[0]
        print(f"{found.failed:,} runs could not be made and are left out; the first: {first}")


def _with_width(name: str, mean: float, high: float) -> str:
    from sim.scenario.metrics import shown

    if mean != mean:
        return numbers.UNKNOWN
    return f"{shown(name, mean)} ± {shown(name, high - mean).removeprefix('month ')}"


def _plural(count: int) -> str:
    return f"{count} uncertain assumption{'' if count == 1 else 's'}"


def _probability(value: float, low: float, high: float) -> str:
    return f"{numbers.percent(value, 1)} ({numbers.percent(low, 1)} to {numbers.percent(high, 1)})"
