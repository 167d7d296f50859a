"""The commands `flywheel study sensitivity | optimise | goal-seek | compare`: causes, best choices, differences."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli import study_output
from sim.cli.terminal import JsonFlag, SetOption, parse_overrides, print_json, progress_bar

if TYPE_CHECKING:
    import pandas as pd

    from sim.scenario.scenario import Scenario
    from sim.study.candidates import RunOptions

ScenarioArgument = Annotated[str, typer.Argument(help="A scenario file, or the name of a shipped one.")]
ProfileOption = Annotated[
    Path | None,
    typer.Option("--profile", help="Profile to use instead of this machine's own or the shipped one."),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, help="Processes (default: one per core; 0: this one).")
]
RayOption = Annotated[bool, typer.Option("--ray", help="Run on a Ray cluster.")]
RayAddressOption = Annotated[
    str | None,
    typer.Option(help="Of the Ray cluster (default: the one of this machine, else one started here)."),
]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder for runs and tables; the same command again goes on from it.")
]


def sensitivity(
    scenario: ScenarioArgument = "api_startup",
    outcome: Annotated[
        str, typer.Option(help="What it does to: cash_usd_end, gross_margin_last12, p(ruined) …")
    ] = "cash_usd_end",
    method: Annotated[
        str, typer.Option(help="tornado (one at a time), morris or sobol (all together).")
    ] = "tornado",
    keys: Annotated[
        list[str] | None, typer.Option("--key", help="Only this assumption or section; repeatable.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs per point, at common seeds (default: 4, else 1).")
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Trajectories (morris) or base sample (sobol).")] = 64,
    swing: Annotated[float, typer.Option(help="Up and down, of assumptions without a distribution.")] = 0.2,
    top: Annotated[int, typer.Option(min=1, help="Sentences to print.")] = 10,
    overrides: SetOption = None,
    profile: ProfileOption = None,
    workers: WorkersOption = None,
    ray: RayOption = False,
    ray_address: RayAddressOption = None,
    out: OutOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Which assumptions decide an outcome? Each over its distribution, or ±20 % where it has none."""
    from typing import cast

    from sim.study.sensitivity import Method
    from sim.study.sensitivity import sensitivity as study
    from sim.study.wording import in_words

    chosen = _load(scenario, overrides)
    with _running("sensitivity", profile, workers, ray_at(ray, ray_address), out) as options:
        found = study(
            chosen,
            outcome,
            method=cast(Method, method),
            keys=keys,
            seeds=seeds,
            samples=samples,
            swing=swing,
            **options,
        )
    sentences = in_words(found, top)
    content = {**_fields(found), "in_words": sentences}
    _write(out, content, table=found.table, skipped=found.skipped)
    if as_json:
        print_json(content)
        return
    print(
        f"{chosen.name}: {found.outcome}, {found.method}, {found.runs:,} runs at {found.seeds} common seed(s)"
    )
    for sentence in sentences:
        print(sentence)
    for note in found.notes:
        print(note)
    print(f"{len(found.table)} assumptions varied, {len(found.skipped)} not (zero, or no room).")


def optimise(
    scenario: ScenarioArgument = "api_startup",
    levers: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="KEY=LOW..HIGH", help="A lever; add ' log', or list values: KEY=a,b."),
    ] = None,
    goals: Annotated[
        list[str] | None, typer.Option("--goal", help="max or min and a measure; several: a Pareto front.")
    ] = None,
    conditions: Annotated[
        list[str] | None,
        typer.Option("--subject-to", help='"cash_usd_min >= 0" (in every run), "p(ruined) <= 5%".'),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Candidates to try.")] = 100,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per candidate, at common seeds.")] = 4,
    fresh_seeds: Annotated[
        int, typer.Option(min=2, help="Runs of what is chosen, at seeds that the search has not seen.")
    ] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of the search.")] = 0,
    overrides: SetOption = None,
    profile: ProfileOption = None,
    workers: WorkersOption = None,
    ray: RayOption = False,
    ray_address: RayAddressOption = None,
    out: OutOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Find the levers' best setting: price, plan mix, fleet, model, cadence, hiring; under conditions."""
    from sim.study.optimise import optimise as study

    chosen = _load(scenario, overrides)
    with _running("optimise", profile, workers, ray_at(ray, ray_address), out) as options:
        found = study(
            chosen,
            levers or [],
            goals or ["max cash_usd_end"],
            conditions or [],
            trials=trials,
            seeds=seeds,
            fresh_seeds=fresh_seeds,
            seed=seed,
            **options,
        )
    _write(out, _fields(found), trials=found.trials, chosen=found.chosen)
    if as_json:
        print_json(_fields(found))
    else:
        study_output.optimum(found, chosen.name)


def goal_seek(
    scenario: ScenarioArgument = "api_startup",
    change: Annotated[
        str, typer.Option(help="The assumption to change.")
    ] = "market.price_usd_per_mtok_output",
    until: Annotated[
        str, typer.Option(help='"gross_margin_last12 = 0.7", "p(ruined) <= 5%" …')
    ] = "profit_usd_total = 0",
    between: Annotated[
        str, typer.Option(metavar="LOW..HIGH", help="Where to look; add ' log' for equal factors.")
    ] = "0.1..5 log",
    seeds: Annotated[int, typer.Option(min=1, help="Runs per value, at common seeds.")] = 8,
    points: Annotated[int, typer.Option(min=2, help="Values in the first scan.")] = 13,
    overrides: SetOption = None,
    profile: ProfileOption = None,
    workers: WorkersOption = None,
    ray: RayOption = False,
    ray_address: RayAddressOption = None,
    out: OutOption = None,
    as_json: JsonFlag = False,
) -> None:
    """At which price, load or cost does an outcome reach a value?"""
    from sim.study.goal_seek import goal_seek as study
    from sim.study.levers import parse_bounds

    chosen = _load(scenario, overrides)
    low, high, log = parse_bounds(between)
    with _running("goal seek", profile, workers, ray_at(ray, ray_address), out) as options:
        found = study(chosen, change, until, low, high, seeds=seeds, points=points, log=log, **options)
    _write(out, _fields(found), crossings=found.crossings, scan=found.scan)
    if as_json:
        print_json({**_fields(found), "value": found.value})
    else:
        study_output.goal_seek(found, chosen.name)


def compare(
    scenarios: Annotated[
        list[str], typer.Argument(help="Two or more scenarios; the others are compared with the first.")
    ],
    explain: Annotated[
        str | None, typer.Option(help="Explain this outcome's difference from the first to the second.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Explain by assumption, or by account (cash, profit, revenue).")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, at common seeds.")] = 8,
    overrides: SetOption = None,
    profile: ProfileOption = None,
    workers: WorkersOption = None,
    ray: RayOption = False,
    ray_address: RayAddressOption = None,
    out: OutOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Put scenarios side by side, and explain the difference of two by terms that add up."""
    from engine.errors import InputError
    from engine.profile.profile import Profile
    from sim.study.compare import compare as study
    from sim.study.explain import explain_by_account, explain_by_assumption

    if by not in (None, "assumption", "account"):
        raise InputError(f"--by: found {by!r}, allowed: assumption or account")
    loaded = {name: _load(file, overrides) for name, file in _names(scenarios).items()}
    names = list(loaded)
    pair = (names[0], names[-1] if len(names) < 2 else names[1])
    explanation = None
    with _running(
        "compare", profile, workers, ray_at(ray, ray_address), out and out / "side-by-side"
    ) as options:
        found = study(loaded, seeds=seeds, **options)
    if explain is not None:
        a, b = (loaded[name] for name in pair)
        if by == "account":
            explanation = explain_by_account(
                a,
                b,
                explain,
                names=pair,
                seeds=seeds,
                profile=Profile.load(profile) if profile else None,
            )
        else:
            with _running(
                "explain", profile, workers, ray_at(ray, ray_address), out and out / "explain"
            ) as options:
                explanation = explain_by_assumption(a, b, explain, names=pair, seeds=seeds, **options)
    content = {**_fields(found), "explanation": explanation}
    tables = {"headline": found.headline, "monthly": found.monthly, "changes": found.changes}
    if explanation is not None:
        tables["explanation"] = explanation.bars
    _write(out, content, **tables)
    if as_json:
        print_json(content)
        return
    study_output.comparison(found)
    if explanation is not None:
        study_output.explanation(explanation)


def _load(scenario: str, overrides: list[str] | None) -> Scenario:
    from sim.scenario.scenario import Scenario

    chosen = Scenario.load(scenario)
    return chosen.override(parse_overrides(overrides)) if overrides else chosen


def _names(scenarios: list[str]) -> dict[str, str]:
    """{short name: file}; files of one name in different folders keep their paths."""
    stems = [Path(one).stem for one in scenarios]
    return {
        (stem if stems.count(stem) == 1 else one): one for stem, one in zip(stems, scenarios, strict=True)
    }


def ray_at(wanted: bool, address: str | None) -> str | None:
    """Address for `run_points` from --ray and --ray-address: None without either."""
    if address is None and wanted:
        return "auto" if os.environ.get("RAY_ADDRESS") else "local"
    return address


@contextmanager
def _running(
    title: str, profile: Path | None, workers: int | None, ray_address: str | None, out: Path | None
) -> Iterator[RunOptions]:
    """Options of the runs, with a progress bar while they are made."""
    from engine.profile.profile import Profile

    measured = Profile.load(profile) if profile else None
    with progress_bar(title) as report:
        yield {
            "profile": measured,
            "workers": workers,
            "ray_address": ray_address,
            "folder": out / "runs" if out else None,
            "progress": report,
        }


def _fields(found: Any) -> dict[str, Any]:
    from dataclasses import fields

    return {field.name: getattr(found, field.name) for field in fields(found)}


def _write(out: Path | None, content: dict[str, Any], **tables: pd.DataFrame) -> None:
    """result.json and each table as CSV, in the folder."""
    import json

    from engine.utils.files import write_atomically
    from sim.utils.serialise import json_ready

    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "result.json", json.dumps(json_ready(content), indent=1, allow_nan=False) + "\n")
    for name, table in tables.items():
        write_atomically(out / f"{name}.csv", table.to_csv(index=False))
