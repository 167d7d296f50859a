"""The commands `flywheel loop`, one small round of the flywheel on real models, and `flywheel loop-value`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.options import DeviceOption, JsonFlag, ProfileOption, ScenarioArgument
from sim.cli.terminal import print_grid, print_json, print_table, progress_bar
from sim.cli.train import TextsArgument
from sim.i18n import numbers
from sim.utils import paths

if TYPE_CHECKING:
    from engine.feedback.loop import LoopReport
    from sim.scenario.scenario import Scenario


def loop(
    texts: TextsArgument = None,
    users_text: Annotated[
        list[Path] | None,
        typer.Option(help="Texts of users, one user per document; required with texts of your own."),
    ] = None,
    scenario: Annotated[
        str,
        typer.Option(help="Scenario that gives the prices, and assumptions to compare with the measurement."),
    ] = "api_startup",
    quick: Annotated[
        bool, typer.Option("--quick", help="Take a fifth of the time; the gain is less certain.")
    ] = False,
    price_usd_per_hour: Annotated[
        float | None, typer.Option(help="Cost of this machine per hour (default: from the catalog).")
    ] = None,
    consent_share: Annotated[
        float, typer.Option(help="Share of users who allow the company to keep their text.")
    ] = 0.5,
    device: DeviceOption = "cpu",
    out: Annotated[Path, typer.Option(help="Folder of the models, the usage log and the result.")] = Path(
        "out/loop"
    ),
    seed: Annotated[int, typer.Option(help="Seed of users, weights and data order.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Train, serve users over HTTP, collect text with consent, train again, and compare the losses."""
    from dataclasses import replace

    from engine.errors import InputError
    from engine.feedback.loop import LoopConfig, is_users, run_loop
    from engine.feedback.loop import quick as quicker
    from engine.feedback.simulated_users import SimulatedUsage
    from engine.models.load import quiet
    from engine.profile.hardware import detect
    from engine.training.data import read_documents
    from engine.training.python_docs import standard_library
    from sim.scenario.scenario import Scenario

    if texts and not users_text:
        raise InputError("loop: texts are given, but no --users-text; give both or neither")
    company = Scenario.load(scenario)
    machine = detect("cuda" if device.startswith("cuda") else "cpu", price_usd_per_hour)
    config = LoopConfig(usage=SimulatedUsage(consent_share=consent_share))
    config = replace(config, training=replace(config.training, seed=seed, device=device))
    config = quicker(config) if quick else config
    library = [] if texts else standard_library()
    base = read_documents(texts) if texts else [document for document in library if not is_users(document)]
    users = (
        read_documents(users_text) if users_text else [document for document in library if is_users(document)]
    )
    with progress_bar("loop") as report, quiet():
        found = run_loop(base, users, out, config, report)
    money = money_of(found, machine.price_usd_per_hour, company)
    if as_json:
        print_json({**found.to_json(), "money": money, "machine": machine.name, "out": str(out)})
        return
    _print(found, money, company)
    print(
        f"Machine: {machine.name} at {numbers.usd(machine.price_usd_per_hour)} per hour ({machine.price_source})"
    )
    print(f"Models, usage log, result: {out}")


def money_of(found: LoopReport, price_usd_per_hour: float, company: Scenario) -> dict[str, float]:
    """Cost of the round at the machine's price, and revenue at the scenario's prices, in USD."""
    market, hourly = company.market, price_usd_per_hour / 3600
    return {
        "first_training_usd": found.before.training_s * hourly,
        "serving_usd": found.serving_wall_s * hourly,
        "second_training_usd": found.after.training_s * hourly,
        "revenue_usd": (
            found.prompt_tokens * market.price_usd_per_mtok_prompt
            + found.output_tokens * market.price_usd_per_mtok_output
        )
        / 1e6,
    }


def _print(found: LoopReport, money: dict[str, float], company: Scenario) -> None:
    judged = (
        ("first model", found.before),
        ("after the loop", found.after),
        ("bought text instead", found.bought),
    )
    print_grid(
        f"{numbers.count(found.parameters)} parameters, judged on users who never sent anything",
        ["", "trained on", "loss, users", "perplexity", "accepted tokens", "loss, bought text"],
        [
            [
                name,
                f"{numbers.count(each.trained_tokens)} tokens",
                f"{each.users_loss:.3f}",
                numbers.count(each.perplexity),
                numbers.percent(each.accepted_share, 1),
                f"{each.base_loss:.3f}",
            ]
            for name, each in judged
        ],
    )
    print_table(
        "The round",
        [
            ("Gain", f"{found.gain:.3f} nats per token"),
            (
                "Served",
                f"{found.requests} requests of {found.users} users: {numbers.count(found.prompt_tokens)} prompt and "
                f"{numbers.count(found.output_tokens)} output tokens in {numbers.seconds(found.serving_wall_s)}, "
                f"median latency {numbers.seconds(found.median_latency_s)}",
            ),
            (
                "Collected",
                f"{numbers.count(found.collected_tokens)} of {numbers.count(found.consented_tokens)} tokens, prompts "
                f"and answers, of {found.consenting_users} users who allow it",
            ),
            (
                "Cost",
                f"training {numbers.usd(money['first_training_usd'])}, serving {numbers.usd(money['serving_usd'])}, "
                f"training again {numbers.usd(money['second_training_usd'])}",
            ),
            ("Earned", f"{numbers.usd(money['revenue_usd'])} at the prices of {company.name}"),
        ],
    )
    print_grid(
        "Measured in this round, and assumed in the scenario",
        ["", "measured", "assumed"],
        [
            ["data.feedback_quality", _number(found.feedback_quality), f"{company.data.feedback_quality:g}"],
            ["data.feedback_yield", _number(found.feedback_yield), f"{company.data.feedback_yield:g}"],
            [
                "training.quality_per_nat",
                _number(found.quality_per_nat),
                f"{company.training.quality_per_nat:g}",
            ],
        ],
    )


def _number(value: Any) -> str:
    return numbers.UNKNOWN if value is None else f"{value:.2g}"


def loop_value(
    scenario: ScenarioArgument,
    seeds: Annotated[int, typer.Option(min=1, help="Runs to average over.")] = 8,
    share: Annotated[float, typer.Option(help="Fraction by which users' text is scaled up and down.")] = 0.2,
    profile: ProfileOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a company with and without its feedback loop, and report what users' text is worth."""
    from dataclasses import asdict

    from engine.profile.profile import Profile
    from sim.company.loop_value import loop_value as value_of
    from sim.scenario.scenario import Scenario

    chosen = Scenario.load(scenario)
    path = paths.resolve_profile(chosen.deployment.model, profile)
    measured = Profile.load(path).require_model(chosen.deployment.model, path)
    found = value_of(chosen, seeds=seeds, share=share, profile=measured)
    if as_json:
        print_json(asdict(found))
        return

    def with_error(usd: float, error: float) -> str:
        return f"{numbers.usd(usd)} ± {numbers.usd(error)}" if error == error else numbers.usd(usd)

    one = with_error(found.gross_profit_usd_per_user, found.gross_profit_usd_per_user_se)
    whole = with_error(found.worth_gross_profit_usd, found.worth_gross_profit_usd_se)
    rows = [
        ("Users on average", numbers.count(found.users_mean)),
        ("One more user, through what he teaches alone: gross profit", one),
        ("… ARR at the end", numbers.usd(found.arr_end_usd_per_user)),
        ("… further customers at the end", f"{found.customers_end_per_user:.3f}"),
        ("The whole loop: gross profit", whole),
        ("… ARR at the end", numbers.usd(found.worth_arr_end_usd)),
        ("… customers at the end", numbers.count(found.worth_customers_end)),
        ("… model quality at the end", f"{found.worth_quality_end:+.3f}"),
    ]
    print_table(f"{chosen.name}: the loop, over {chosen.horizon_months} months", rows)
