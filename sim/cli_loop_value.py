"""The command `flywheel loop-value`: what the loop, and one more user through it, are worth in a scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim import human, paths
from sim.terminal import JsonFlag, print_json, print_table


def loop_value(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of a shipped one.")],
    seeds: Annotated[int, typer.Option(min=1, help="Runs to average over.")] = 8,
    share: Annotated[float, typer.Option(help="Of users' text, by which it is scaled up and down.")] = 0.2,
    profile: Annotated[Path | None, typer.Option(help="Profile of the served model.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a company with and without its loop: what users' text is worth, besides what users pay."""
    from dataclasses import asdict

    from engine.profile import Profile
    from sim.loop_value import loop_value as value_of
    from sim.scenario import Scenario

    chosen = Scenario.load(scenario)
    path = paths.resolve_profile(chosen.deployment.model, profile)
    measured = Profile.load(path).require_model(chosen.deployment.model, path)
    found = value_of(chosen, seeds=seeds, share=share, profile=measured)
    if as_json:
        print_json(asdict(found))
        return

    def with_error(usd: float, error: float) -> str:
        return f"{human.usd(usd)} ± {human.usd(error)}" if error == error else human.usd(usd)

    one = with_error(found.gross_profit_usd_per_user, found.gross_profit_usd_per_user_se)
    whole = with_error(found.worth_gross_profit_usd, found.worth_gross_profit_usd_se)
    rows = [
        ("Users on average", human.count(found.users_mean)),
        ("One more user, through what he teaches alone: gross profit", one),
        ("… ARR at the end", human.usd(found.arr_end_usd_per_user)),
        ("… further customers at the end", f"{found.customers_end_per_user:.3f}"),
        ("The whole loop: gross profit", whole),
        ("… ARR at the end", human.usd(found.worth_arr_end_usd)),
        ("… customers at the end", human.count(found.worth_customers_end)),
        ("… model quality at the end", f"{found.worth_quality_end:+.3f}"),
    ]
    print_table(f"{chosen.name}: the loop, over {chosen.horizon_months} months", rows)
