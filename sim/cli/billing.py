"""The commands `flywheel keys …` and `flywheel bill`: API keys and invoices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.errors import InputError
from sim.cli.options import JsonFlag
from sim.cli.terminal import print_grid, print_json, progress_bar

if TYPE_CHECKING:
    from engine.usage.api_keys import ApiKey
    from sim.billing.invoices import Bill, Invoice

DatabaseOption = Annotated[
    str,
    typer.Option(
        "--database",
        help="Usage database: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE.",
        envvar="FLYWHEEL_DATABASE",
    ),
]
_DATABASE = "sqlite:///out/usage.db"
_MOST_SHOWN = 40  # invoices in the table

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")


@app.command(
    epilog="Example: flywheel keys create production --customer Acme --plan developers --budget-usd 500"
)
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    customer: Annotated[str, typer.Option(help="Who pays; an invoice is written per customer.")],
    plan: Annotated[
        str | None, typer.Option(help="Plan of the scenario that bills (default: the bill's --default-plan).")
    ] = None,
    scenario: Annotated[
        str | None, typer.Option(help="Refuse a plan that this scenario doesn't have.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Limit of requests.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Limit of prompt and output tokens.")] = None,
    budget_usd: Annotated[float | None, typer.Option(help="Limit of spending per calendar month.")] = None,
    priority: Annotated[int, typer.Option(help="Higher is served first.")] = 0,
    expires: Annotated[
        str | None, typer.Option(metavar="YYYY-MM-DD", help="First day, UTC, on which it is refused.")
    ] = None,
    database: DatabaseOption = _DATABASE,
    as_json: JsonFlag = False,
) -> None:
    """Create a key and show its secret, this once: the database holds only its hash."""
    from engine.usage.api_keys import ApiKeys

    if scenario is not None and plan is not None:
        _check_plan(scenario, plan)
    keys = ApiKeys(database)
    key_id, secret = keys.create(
        name,
        customer=customer,
        plan=plan,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        budget_usd_per_month=budget_usd,
        priority=priority,
        expires_at=None if expires is None else _day_s(expires),
    )
    keys.close()
    if as_json:
        print_json({"key_id": key_id, "secret": secret})
    else:
        print(f"{key_id}: {secret}")
        print("The secret is shown this once; it can't be had again.")


@app.command("list", epilog="Example: flywheel keys list --customer Acme")
def list_keys(
    customer: Annotated[str | None, typer.Option(help="Only this customer's.")] = None,
    database: DatabaseOption = _DATABASE,
    as_json: JsonFlag = False,
) -> None:
    """List all keys, oldest first, without their secrets."""
    from dataclasses import asdict
    from time import time

    from engine.usage.api_keys import ApiKeys

    keys = ApiKeys(database, create=False)
    found = [key for key in keys.list() if customer in (None, key.customer)]
    keys.close()
    now_s = time()
    if as_json:
        print_json({"keys": [asdict(key) | {"state": _state(key, now_s)} for key in found]})
        return
    head = ["key", "secret", "name", "customer", "plan", "state", "limits"]
    rows = [
        [
            key.key_id,
            f"{key.prefix}…",
            key.name,
            key.customer,
            key.plan or "–",
            _state(key, now_s),
            _limits(key),
        ]
        for key in found
    ]
    print_grid("API keys", head, rows)


@app.command(epilog="Example: flywheel keys revoke key_99564cbc046e6482")
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key, as `flywheel keys list` shows it.")],
    database: DatabaseOption = _DATABASE,
) -> None:
    """Refuse a key from now on; a running server follows within a second."""
    from engine.usage.api_keys import ApiKeys

    keys = ApiKeys(database, create=False)
    keys.revoke(key_id)
    keys.close()
    print(f"{key_id} is revoked")


def bill(
    month: Annotated[str, typer.Option(help="YYYY-MM, UTC.")],
    scenario: Annotated[
        str,
        typer.Option(help="Scenario whose plans and prices are charged: a file, or a shipped one's name."),
    ] = "api_startup",
    database: DatabaseOption = _DATABASE,
    default_plan: Annotated[str | None, typer.Option(help="Plan of keys that name none.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the invoices.")] = Path("out/bills"),
    pdf: Annotated[bool, typer.Option(help="Write PDFs besides the CSVs.")] = True,
    lang: Annotated[str, typer.Option(help="Language of the PDFs: en or zh.")] = "en",
    as_json: JsonFlag = False,
) -> None:
    """Write a month's invoices, one per customer, as CSV and PDF; their lines add up to the meter."""
    from time import time

    from sim.billing.invoice_files import write_bill
    from sim.billing.invoices import bill as bill_month
    from sim.i18n.translate import speaking
    from sim.scenario.scenario import Scenario

    billed = bill_month(database, Scenario.load(scenario), month, now_s=time(), default_plan=default_plan)
    with speaking(lang), progress_bar(f"bill {month}") as report:
        written = write_bill(billed, out, pdf=pdf, progress=report)
    if as_json:
        print_json(_as_json(billed, written))
    else:
        _print(billed)
        print(f"Invoices: {written[0]}" + (f" and {len(written) - 1} more files" if written[1:] else ""))


def _print(billed: Bill) -> None:
    from sim.billing.invoice_files import usd
    from sim.i18n import numbers

    rows = [
        [
            invoice.number,
            invoice.customer,
            f"{invoice.requests:,}",
            numbers.count(invoice.tokens),
            usd(invoice.total_micro_usd),
            usd(invoice.cost_micro_usd),
        ]
        for invoice in billed.invoices[:_MOST_SHOWN]
    ]
    total = sum(invoice.total_micro_usd for invoice in billed.invoices)
    cost = sum(invoice.cost_micro_usd for invoice in billed.invoices)
    requests = sum(invoice.requests for invoice in billed.invoices)
    tokens = sum(invoice.tokens for invoice in billed.invoices)
    left = len(billed.invoices) - len(rows)
    if left > 0:
        rows.append(["…", f"{left} more", "", "", "", ""])
    rows.append(["all", "", f"{requests:,}", numbers.count(tokens), usd(total), usd(cost)])
    state = " (preliminary: the month is still running)" if billed.is_preliminary else ""
    head = ["invoice", "customer", "requests", "tokens", "total [USD]", "measured cost [USD]"]
    print_grid(f"{billed.company}, {billed.month}{state}", head, rows)
    for used in billed.unassigned:
        tokens = used.prompt_tokens + used.output_tokens
        print(f"Billed to nobody: {tokens:,} tokens of {used.model} by {used.key_id}, a key that is not here")
    if billed.not_billed:
        print(f"On no invoice, because no meter counts it: {'; '.join(billed.not_billed)}")


def _as_json(billed: Bill, written: list[Path]) -> dict[str, Any]:
    from dataclasses import asdict

    from sim.billing.invoice_files import usd

    def row(invoice: Invoice) -> dict[str, Any]:
        return {
            "number": invoice.number,
            "customer": invoice.customer,
            "dated": invoice.dated,
            "due": invoice.due,
            "requests": invoice.requests,
            "tokens": invoice.tokens,
            "net_micro_usd": invoice.net_micro_usd,
            "total_micro_usd": invoice.total_micro_usd,
            "to_pay_usd": usd(invoice.to_pay_cents * 10_000, 2),
            "measured_cost_micro_usd": invoice.cost_micro_usd,
            "lines": [asdict(line) for line in invoice.lines],
        }

    return {
        "company": billed.company,
        "month": billed.month,
        "preliminary": billed.is_preliminary,
        "invoices": [row(invoice) for invoice in billed.invoices],
        "billed_to_nobody": [asdict(used) for used in billed.unassigned],
        "not_metered": list(billed.not_billed),
        "files": [str(path) for path in written],
    }


def _check_plan(scenario: str, plan: str) -> None:
    from sim.scenario.plans import plans_of
    from sim.scenario.scenario import Scenario

    allowed = plans_of(Scenario.load(scenario).market)
    if plan not in allowed:
        raise InputError(f"--plan: found {plan!r:.60}, allowed by {scenario}: {', '.join(allowed)}")


def _day_s(text: str) -> float:
    from datetime import UTC, datetime

    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise InputError(f"--expires: found {text!r:.60}, allowed: YYYY-MM-DD") from None


def _state(key: ApiKey, now_s: float) -> str:
    if key.revoked_s is not None:
        return "revoked"
    return "good" if key.is_good(now_s) else "expired"


def _limits(key: ApiKey) -> str:
    parts = []
    if key.requests_per_minute is not None:
        parts.append(f"{key.requests_per_minute:,} requests/min")
    if key.tokens_per_minute is not None:
        parts.append(f"{key.tokens_per_minute:,} tokens/min")
    if key.budget_micro_usd_per_month is not None:
        parts.append(f"{key.budget_micro_usd_per_month / 1e6:,.2f} USD/month")
    if key.priority:
        parts.append(f"priority {key.priority}")
    return ", ".join(parts) or "none"
