"""The command `flywheel actuals`: the plan compared with measured usage and the bank, and the forecast from then on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.billing import DatabaseOption
from sim.cli.options import JsonFlag, SetOption, load_scenario
from sim.cli.terminal import print_grid, print_json, progress_bar
from sim.i18n import numbers

if TYPE_CHECKING:
    from sim.actuals.compare import Actuals

EPILOG = (
    "Example: flywheel actuals --database sqlite:///out/usage.db --scenario api_startup --bank bank.csv "
    "--months 2026-08..2026-11 --out out/actuals"
)
_SHOWN = {
    "revenue_usd": ("revenue", numbers.usd),
    "compute_serving_usd": ("serving", numbers.usd),
    "net_income_usd": ("net income", numbers.usd),
    "cash_usd": ("cash", numbers.usd),
    "customers": ("customers", numbers.count),
    "tokens": ("tokens", numbers.count),
}
_MOST_AHEAD = 6  # months of the forecast in the table


def actuals(
    scenario: Annotated[
        str, typer.Option(help="Scenario file of the plan, or the name of a shipped scenario.")
    ] = "api_startup",
    database: DatabaseOption = "sqlite:///out/usage.db",
    bank: Annotated[
        Path | None,
        typer.Option(
            help="CSV of bank or billing rows: date, amount_usd, category or account; optional: counterparty, note, "
            "kind, id."
        ),
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(
            "--map", help="YAML file of categories and their accounts, one per line: 'aws: serving_reserved'."
        ),
    ] = None,
    months: Annotated[
        str | None,
        typer.Option(
            metavar="YYYY-MM..YYYY-MM",
            help="Months to compare (default: from the first request to the last complete month).",
        ),
    ] = None,
    overrides: SetOption = None,
    default_plan: Annotated[str | None, typer.Option(help="Plan of API keys without a plan.")] = None,
    inactive_months: Annotated[
        int,
        typer.Option(help="Whole months without a request after which a customer without a fee has churned."),
    ] = 1,
    keep_repeated: Annotated[
        bool,
        typer.Option(
            "--keep-repeated", help="Count bank rows that equal an earlier row (for files without ids)."
        ),
    ] = False,
    ahead: Annotated[
        int | None,
        typer.Option(help="Months of the forecast (default: to the end of the plan, at least 12)."),
    ] = None,
    runs: Annotated[
        int, typer.Option(help="Runs of the forecast for its uncertainty band; 0: a single run.")
    ] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes for the runs (default: one per core).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the tables and the calibrated scenario.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare the plan with usage and bank rows, explain the variance, calibrate the plan, forecast."""
    from time import time

    from sim.actuals.bank import read_bank, read_categories
    from sim.actuals.compare import plan_against_actual
    from sim.actuals.files import write_actuals

    plan = load_scenario(scenario, overrides)
    categories = None if mapping is None else read_categories(mapping)
    rows = None if bank is None else read_bank(bank, categories, keep_repeated=keep_repeated)
    with progress_bar("actuals") as report:
        found = plan_against_actual(
            plan,
            database,
            rows,
            months=months,
            now_s=time(),
            default_plan=default_plan,
            inactive_months=inactive_months,
            ahead_months=ahead,
            runs=runs,
            workers=workers,
            progress=report,
        )
    written = [] if out is None else write_actuals(found, out)
    if as_json:
        print_json(_as_json(found, written))
        return
    _print(found)
    if written:
        print(f"Written: {written[-1]} and {len(written) - 1} more files in {out}")


def _print(found: Actuals) -> None:
    from sim.actuals.wording import in_words, label
    from sim.study.wording import quantity

    table = found.months
    last = found.metered.months[-1]
    months = list(dict.fromkeys(table["month"]))
    ahead = [month for month in months if month > last][:_MOST_AHEAD]
    rows = []
    for month in [month for month in months if month <= last] + ahead:
        own = table[table["month"] == month].set_index("measure")
        cells = []
        for measure, (_, shown) in _SHOWN.items():
            done, then = own.loc[measure, "actual"], own.loc[measure, "forecast"]
            value = shown(done) if month <= last else f"~{shown(then)}"
            cells.append(f"{value} / {shown(own.loc[measure, 'planned'])}")
        rows.append([month, *cells])
    head = ["month", *(name for name, _ in _SHOWN.values())]
    print_grid(f"{found.plan.scenario.name}: actual (~ forecast) / plan", head, rows)
    rows = [
        [label(one), quantity(one.value, one.unit), f"{quantity(one.low, one.unit)} to {quantity(one.high, one.unit)}",
         numbers.UNKNOWN if one.planned_as_seen != one.planned_as_seen else quantity(one.planned_as_seen, one.unit)]
        for one in {(one.what, one.of): one for one in found.calibration.estimates}.values()
    ]  # fmt: skip
    print_grid("Measured, with 95 % bounds", ["what", "measured", "95 %", "plan"], rows)
    for line in [*in_words(found), *found.notes]:
        print(line)


def _as_json(found: Actuals, written: list[Path]) -> dict[str, Any]:
    from sim.actuals.wording import in_words

    return {
        "company": found.plan.scenario.name,
        "months": found.metered.months,
        "plan_actual": found.months,
        "accounts": found.accounts,
        "revenue": found.revenue,
        "usage": found.usage,
        "calibration": found.calibration.table(),
        "changes": found.calibration.changes,
        "in_words": in_words(found),
        "notes": list(found.notes),
        "files": [str(path) for path in written],
    }
