"""The commands `flywheel study sensitivity | optimise | goal-seek | compare`: one question per command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.cli import study_output
from sim.cli.options import ScenarioArgument, load_scenario, with_options
from sim.cli.study_options import StudyOptions
from sim.cli.terminal import print_json


@with_options
def sensitivity(
    scenario: ScenarioArgument = "api_startup",
    outcome: Annotated[
        str, typer.Option(help="Outcome: cash_usd_end, gross_margin_last12, p(ruined) …")
    ] = "cash_usd_end",
    method: Annotated[
        str, typer.Option(help="Method: tornado (one at a time), morris or sobol (all together).")
    ] = "tornado",
    keys: Annotated[
        list[str] | None, typer.Option("--key", help="Vary only this assumption or section; repeatable.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs per point, at common seeds (default: 4, else 1).")
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Trajectories (morris) or base samples (sobol).")] = 64,
    swing: Annotated[
        float, typer.Option(help="Relative change of assumptions without a distribution.")
    ] = 0.2,
    top: Annotated[int, typer.Option(min=1, help="Number of assumptions to print.")] = 10,
    *,
    options: StudyOptions,
) -> None:
    """Rank assumptions by their effect on an outcome, each over its distribution, or ±20 % where it has none."""
    from typing import cast

    from sim.study.sensitivity import Method
    from sim.study.sensitivity import sensitivity as study
    from sim.study.wording import in_words

    chosen = load_scenario(scenario, options.overrides)
    with options.running("sensitivity") as runs:
        found = study(
            chosen,
            outcome,
            method=cast(Method, method),
            keys=keys,
            seeds=seeds,
            samples=samples,
            swing=swing,
            options=runs,
        )
    sentences = in_words(found, top)
    content = {**vars(found), "in_words": sentences}
    options.write(content, table=found.table, skipped=found.skipped)
    if options.as_json:
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


@with_options
def optimise(
    scenario: ScenarioArgument = "api_startup",
    levers: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="KEY=LOW..HIGH",
            help="Range of an assumption; add ' log', or list values: KEY=a,b; repeatable.",
        ),
    ] = None,
    goals: Annotated[
        list[str] | None,
        typer.Option("--goal", help="max or min and a measure; several goals give a Pareto front."),
    ] = None,
    conditions: Annotated[
        list[str] | None,
        typer.Option(
            "--subject-to",
            help='Constraint: "cash_usd_min >= 0" (in every run), "p(ruined) <= 5%"; repeatable.',
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Number of candidates.")] = 100,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per candidate, at common seeds.")] = 4,
    fresh_seeds: Annotated[
        int, typer.Option(min=2, help="Runs of the chosen candidates, at seeds that the search has not used.")
    ] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    *,
    options: StudyOptions,
) -> None:
    """Find the best setting of price, plan mix, fleet, model, cadence or hiring, under constraints."""
    from sim.study.optimise import optimise as study

    chosen = load_scenario(scenario, options.overrides)
    with options.running("optimise") as runs:
        found = study(
            chosen,
            levers or [],
            goals or ["max cash_usd_end"],
            conditions or [],
            trials=trials,
            seeds=seeds,
            fresh_seeds=fresh_seeds,
            seed=seed,
            options=runs,
        )
    options.write(vars(found), trials=found.trials, chosen=found.chosen)
    if options.as_json:
        print_json(vars(found))
    else:
        study_output.optimum(found, chosen.name)


@with_options
def goal_seek(
    scenario: ScenarioArgument = "api_startup",
    change: Annotated[str, typer.Option(help="Assumption to change.")] = "market.price_usd_per_mtok_output",
    until: Annotated[
        str, typer.Option(help='Condition to reach: "gross_margin_last12 = 0.7", "p(ruined) <= 5%" …')
    ] = "profit_usd_total = 0",
    between: Annotated[
        str, typer.Option(metavar="LOW..HIGH", help="Range to search; add ' log' for a logarithmic scale.")
    ] = "0.1..5 log",
    seeds: Annotated[int, typer.Option(min=1, help="Runs per value, at common seeds.")] = 8,
    points: Annotated[int, typer.Option(min=2, help="Values in the first scan.")] = 13,
    *,
    options: StudyOptions,
) -> None:
    """Find the price, load or cost at which an outcome reaches a value."""
    from sim.study.goal_seek import goal_seek as study
    from sim.study.levers import parse_bounds

    chosen = load_scenario(scenario, options.overrides)
    low, high, log = parse_bounds(between)
    with options.running("goal seek") as runs:
        found = study(chosen, change, until, low, high, seeds=seeds, points=points, log=log, options=runs)
    options.write(vars(found), crossings=found.crossings, scan=found.scan)
    if options.as_json:
        print_json({**vars(found), "value": found.value})
    else:
        study_output.goal_seek(found, chosen.name)


@with_options
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
    *,
    options: StudyOptions,
) -> None:
    """Compare scenarios, and explain the difference of two by terms that add up."""
    from engine.errors import InputError
    from sim.study.compare import compare as study
    from sim.study.explain import explain_by_account, explain_by_assumption

    if by not in (None, "assumption", "account"):
        raise InputError(f"--by: found {by!r}, allowed: assumption or account")
    loaded = {name: load_scenario(file, options.overrides) for name, file in _names(scenarios).items()}
    names = list(loaded)
    pair = (names[0], names[-1] if len(names) < 2 else names[1])
    explanation = None
    with options.running("compare", "side-by-side/runs") as runs:
        found = study(loaded, seeds=seeds, options=runs)
    if explain is not None:
        a, b = (loaded[name] for name in pair)
        with options.running("explain", "explain/runs") as runs:
            if by == "account":
                explanation = explain_by_account(a, b, explain, names=pair, seeds=seeds, profile=runs.profile)
            else:
                explanation = explain_by_assumption(a, b, explain, names=pair, seeds=seeds, options=runs)
    content = {**vars(found), "explanation": explanation}
    tables = {"headline": found.headline, "monthly": found.monthly, "changes": found.changes}
    if explanation is not None:
        tables["explanation"] = explanation.bars
    options.write(content, **tables)
    if options.as_json:
        print_json(content)
        return
    study_output.comparison(found)
    if explanation is not None:
        study_output.explanation(explanation)


def _names(scenarios: list[str]) -> dict[str, str]:
    """{short name: file}; files of one name in different folders keep their paths."""
    stems = [Path(one).stem for one in scenarios]
    return {
        (stem if stems.count(stem) == 1 else one): one for stem, one in zip(stems, scenarios, strict=True)
    }
