"""Invoices as files: a CSV with every line, exact in micro-dollars, and a PDF for the customer."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any

from engine.usage.database import month_bounds_s
from engine.utils.files import write_atomically
from engine.utils.progress import Progress
from sim.accounting.ledger import MICRO_PER_USD
from sim.billing.charges import TOKEN_KINDS, InvoiceLine
from sim.billing.invoices import MICRO_PER_CENT, Bill, Invoice
from sim.i18n.translate import language, mark, speaking, tr

COLUMNS = (
    "invoice", "customer", "month", "preliminary", "dated", "due", "kind", "description", "plan", "key_id", "key_name",
    "model", "quantity", "unit", "unit_price_usd", "price_per_units", "amount_usd",
)  # fmt: skip
_TEMPLATE = Path(__file__).with_name("invoice_template.typ")
_WHAT = {
    "onboarding": mark("Onboarding"),
    "fee": mark("Subscription"),
    "licence": mark("Licence"),
    "prompt": mark("Prompt tokens"),
    "cached": mark("Prompt tokens from the cache"),
    "output": mark("Output tokens"),
    "failed": mark("Tokens of failed requests, not charged"),
    "included": mark("Included in the plan"),
    "commitment": mark("Contract minimum beyond usage"),
    "advance": mark("Months invoiced in advance"),
    "drawn": mark("Already invoiced in advance"),
    "trial": mark("Trial: nothing is charged"),
    "tax": mark("Sales tax"),
}
_UNITS = {
    "fee": "subscriptions or seats",
    "licence": "licences or seats",
    "advance": "months",
} | dict.fromkeys(TOKEN_KINDS, "tokens")


def describe(line: InvoiceLine) -> str:
    """What a line is for, in the current language."""
    what = tr(_WHAT[line.kind])
    return f"{what} {100 * line.tax_rate:.6g}%" if line.tax_rate is not None else what


def usd(micro_usd: int, decimals: int = 6) -> str:
    """Dollars as an exact decimal number, "-1234.567890"; with fewer decimals rounded half to even."""
    units = round(Fraction(abs(micro_usd) * 10**decimals, MICRO_PER_USD))
    whole, rest = divmod(units, 10**decimals)
    return f"{'-' if micro_usd < 0 and units else ''}{whole}" + (f".{rest:0{decimals}d}" if decimals else "")


def write_bill(bill: Bill, folder: Path, *, pdf: bool = True, progress: Progress | None = None) -> list[Path]:
    """Write MONTH.csv with the lines of all invoices, and NUMBER.csv and NUMBER.pdf of each; returns their paths.

    PDFs are in the current language; CSVs, for programs, in English.

    Raises:
        InputError: Chinese text without a font for it on this machine.
    """
    written = [folder / f"{bill.month}.csv"]
    write_atomically(written[0], invoices_csv(bill.invoices))
    spoken = language()

    def as_pdf(invoice: Invoice) -> bytes | None:
        with speaking(spoken):  # a thread doesn't know its caller's language
            return invoice_pdf(bill.company, invoice) if pdf else None

    with ThreadPoolExecutor() as pool:  # Typst sets without the interpreter's lock
        for place, (invoice, page) in enumerate(
            zip(bill.invoices, pool.map(as_pdf, bill.invoices), strict=True)
        ):
            if progress:
                progress(place / len(bill.invoices), invoice.number)
            for ending, content in (("csv", invoices_csv([invoice])), ("pdf", page)):
                if content is not None:
                    written.append(folder / f"{invoice.number}.{ending}")
                    write_atomically(written[-1], content)
    return written


def invoices_csv(invoices: Sequence[Invoice]) -> str:
    """All lines as CSV; amount = quantity × unit price / `price_per_units`, rounded to the micro-dollar."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(COLUMNS)
    with speaking("en"):
        for invoice in invoices:
            head = (
                invoice.number, invoice.customer, invoice.month, "yes" if invoice.is_preliminary else "no",
                invoice.dated, invoice.due,
            )  # fmt: skip
            for line in invoice.lines:
                priced = line.unit_price_micro_usd is not None
                price = usd(line.unit_price_micro_usd) if line.unit_price_micro_usd is not None else ""
                table.writerow(
                    (
                        *head, line.kind, describe(line), line.plan, line.key_id, line.key_name, line.model,
                        line.quantity if priced else "", _UNITS.get(line.kind, ""), price,
                        _price_per(line) if priced else "", usd(line.amount_micro_usd),
                    )
                )  # fmt: skip
    return stream.getvalue()


def invoice_pdf(company: str, invoice: Invoice) -> bytes:
    """The invoice as PDF on A4, in the current language.

    Raises:
        InputError: Chinese text without a font for it on this machine.
    """
    from sim.utils.typst import typeset

    last_s = month_bounds_s(invoice.month)[1] - 1
    last_day = datetime.fromtimestamp(last_s, UTC).date().isoformat()
    return typeset(
        _TEMPLATE,
        {
            "language": language(),
            "company": company,
            "customer": invoice.customer,
            "title": f"{company}: {tr('Invoice')} {invoice.number}",
            "words": {
                "invoice": tr("Invoice"),
                "bill_to": tr("Billed to"),
                "page": tr("Page"),
                "of": tr("of"),
            },
            "facts": [
                [tr("Number"), invoice.number],
                [tr("Date"), invoice.dated],
                [tr("Period (UTC)"), f"{invoice.month}-01 – {last_day}"],
                [tr("Due"), invoice.due],
            ],
            "preliminary": tr("Preliminary: the month is still running. This is not yet a bill.")
            if invoice.is_preliminary
            else None,
            "head": [tr("Item"), tr("Quantity"), tr("Unit price (USD)"), tr("Amount (USD)")],
            "groups": _groups(invoice),
            "totals": [
                [tr("Sum without tax"), _grouped(invoice.net_micro_usd)],
                *([describe(line), _grouped(line.amount_micro_usd)] for line in _taxes(invoice)),
                [tr("Total"), _grouped(invoice.total_micro_usd)],
            ],
            "to_pay": [tr("To pay (USD)"), _grouped(invoice.to_pay_cents * MICRO_PER_CENT, 2)],
            "notes": [
                tr("Prices of tokens are per million tokens; quantities are in tokens."),
                tr(
                    "A line is rounded once, half to even, to the millionth of a dollar; the total is the sum of the "
                    "lines; what is to be paid is rounded to the cent."
                ),
            ],
        },
    )


def _groups(invoice: Invoice) -> list[dict[str, Any]]:
    """Lines as the PDF shows them: what belongs to a plan, and what each key used of each model."""
    lines = [line for line in invoice.lines if line.kind != "tax"]
    groups = []
    for (plan, key_id, model), own in groupby(lines, key=lambda line: (line.plan, line.key_id, line.model)):
        rows = list(own)
        title = f"{rows[0].key_name} · {model}" if key_id else tr("Plan {plan}", plan=plan)
        note = tr("key {key_id}, plan {plan}", key_id=key_id, plan=plan) if key_id else ""
        cells = [
            [
                describe(line),
                f"{line.quantity:,}" if line.unit_price_micro_usd is not None else "",
                _price(line),
                _grouped(line.amount_micro_usd),
            ]
            for line in rows
        ]
        groups.append({"title": title, "note": note, "rows": cells})
    return groups


def _taxes(invoice: Invoice) -> list[InvoiceLine]:
    return [line for line in invoice.lines if line.kind == "tax"]


def _price_per(line: InvoiceLine) -> int:
    return 1_000_000 if line.kind in TOKEN_KINDS else 1


def _price(line: InvoiceLine) -> str:
    """A unit price without the zeros that say nothing, but with its cents."""
    if line.unit_price_micro_usd is None:
        return ""
    whole, _, rest = usd(line.unit_price_micro_usd).partition(".")
    return f"{int(whole):,}.{rest.rstrip('0').ljust(2, '0')}"


def _grouped(micro_usd: int, decimals: int = 6) -> str:
    """Money with its thousands apart and a true minus: "−1,234.567890"."""
    whole, _, rest = usd(abs(micro_usd), decimals).partition(".")
    sign = "−" if micro_usd < 0 else ""
    return f"{sign}{int(whole):,}.{rest}"
