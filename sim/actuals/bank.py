"""Rows of a bank or billing export: what was paid to whom and for what, as lines for the books.

Models what a bookkeeper does with an account statement: each row gets one account of the chart
(`sim.accounting.ledger.CHART`). A CSV file in UTF-8 with a head; columns in any order, others are ignored:

    date          YYYY-MM-DD
    amount_usd    plain decimal with up to 6 places; money that comes in is positive, a refund paid out negative
    category      a word of `CATEGORIES`, of the mapping file, or the name of an account; or
    account       the name of an account (a file needs one of the two; where both are filled in, account counts)
    counterparty  with whom                (optional)
    note          free text                (optional)
    kind          "paid" (also when empty) or "bill": owed, not paid yet     (optional)
    id            of the row at the bank   (optional)

Money is read as decimal, never as a binary fraction. A row that is there twice counts once: the same id, or, in a file
without ids, a row that equals an earlier one in every column (overlapping exports; `keep_repeated` counts it again).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

from engine.errors import InputError
from sim.accounting.ledger import CHART, MICRO_PER_USD
from sim.utils.yaml_file import plain_values, read_mapping

LARGEST_FILE_BYTES = 50_000_000
OPENING = "opening_cash"  # what was in the bank before the first row
CATEGORIES: dict[str, str] = {
    OPENING: "paid_in_capital",
    "earlier_months": "paid_in_capital",  # paid now for what was used before the first month of the comparison
    "customers": "receivable",
    "suppliers": "payable",
    "refunds": "sla_credits",
    "services": "revenue_services",
    "cloud": "serving_reserved",
    "training": "training_compute",
    "data": "data",
    "salaries": "people_general",
    "salaries_research": "people_research",
    "salaries_sales": "people_sales",
    "salaries_support": "people_support",
    "marketing": "marketing",
    "payment_fees": "payment_fees",
    "legal": "legal",
    "office": "other_opex",
    "software": "other_opex",
    "other": "other_opex",
    "funding": "paid_in_capital",
    "loan": "debt",
    "equipment": "equipment",
    "sales_tax": "sales_tax_payable",
    "tax": "income_tax",
    "transfer": "cash",  # between own bank accounts: changes nothing
}
_LARGEST_USD = Decimal(10) ** 12
_KINDS = ("paid", "bill")


@dataclass(frozen=True)
class BankRow:
    """A payment (or, where `is_bill`, a bill not yet paid); income is positive. `time_s` is unix time."""

    line: int
    time_s: float
    amount_micro: int
    account: str
    counterparty: str
    note: str
    is_bill: bool
    is_opening: bool


@dataclass(frozen=True)
class Bank:
    """All rows of a file in order of time, and the lines that repeated an earlier row and are left out."""

    file: str
    rows: tuple[BankRow, ...]
    repeated_lines: tuple[int, ...]


def read_bank(path: Path, mapping: Mapping[str, str] | None = None, *, keep_repeated: bool = False) -> Bank:
    """The rows of a file; see the module for its columns.

    Args:
        path: the CSV file.
        mapping: further categories, {category: account}; they come before those of `CATEGORIES`.
        keep_repeated: count rows that equal an earlier one, in a file without ids.

    Raises:
        InputError: no such file, too large, or a wrong row (file, line, column, found, allowed).
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file, allowed: a CSV file of bank rows")
    if path.stat().st_size > LARGEST_FILE_BYTES:
        raise InputError(f"{path}: {path.stat().st_size:,} bytes, allowed: at most {LARGEST_FILE_BYTES:,}")
    return bank_in(path.read_bytes(), str(path), mapping, keep_repeated=keep_repeated)


def bank_in(
    content: bytes, file: str, mapping: Mapping[str, str] | None = None, *, keep_repeated: bool = False
) -> Bank:
    """Read rows from a file's content; `file` is its name in error messages.

    Raises:
        InputError: as `read_bank`.
    """
    if len(content) > LARGEST_FILE_BYTES:
        raise InputError(f"{file}: {len(content):,} bytes, allowed: at most {LARGEST_FILE_BYTES:,}")
    accounts = {**CATEGORIES, **{name.strip().lower(): account for name, account in (mapping or {}).items()}}
    rows: list[BankRow] = []
    repeated: list[int] = []
    measured: dict[tuple[str, ...], tuple[int, dict[str, str]]] = {}
    for line, cells in _records(content, file):
        same = ("id", cells["id"]) if cells.get("id") else tuple(cells.values())
        before = measured.setdefault(same, (line, cells))
        if before[0] != line and cells.get("id") and before[1] != cells:
            raise InputError(
                f"{file}: line {line}: id: found {cells['id']!r:.60} with other values than in line {before[0]}, "
                "allowed: one row for each id"
            )
        if before[0] != line and (cells.get("id") or not keep_repeated):
            repeated.append(line)
            continue
        rows.append(_row(file, line, cells, accounts))
    return Bank(file, tuple(sorted(rows, key=lambda row: row.time_s)), tuple(repeated))


def read_categories(path: Path) -> dict[str, str]:
    """{category: account} of a YAML file such as "aws: serving_reserved".

    Raises:
        InputError: no such file, not YAML, or an account that the chart doesn't have.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file, allowed: a YAML file with lines CATEGORY: ACCOUNT")
    values = plain_values(read_mapping(path, "lines CATEGORY: ACCOUNT"), str(path))
    for category, account in values.items():
        if not isinstance(account, str) or account not in CHART:
            raise InputError(f"{path}: {category}: found {account!r:.60}, allowed: {', '.join(CHART)}")
    return {str(category): str(account) for category, account in values.items()}


def _records(content: bytes, file: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, {column: text}) of each row that isn't empty; the known columns only."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start}: not UTF-8 text") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    head: list[str] = []
    line = 1
    try:
        for cells in reader:
            first, line = line, reader.line_num + 1  # a quoted cell may hold line ends
            if not any(cell.strip() for cell in cells):
                continue
            if not head:
                head = _head(file, first, cells)
                continue
            if len(cells) != len(head):
                raise InputError(f"{file}: line {first}: found {len(cells)} cells, allowed: {len(head)}")
            yield first, {name: cell.strip() for name, cell in zip(head, cells, strict=True)}
    except csv.Error as error:
        raise InputError(f"{file}: line {line}: not CSV: {error}") from None
    if not head:
        raise InputError(f"{file}: found no head, allowed: a line with date, amount_usd and category")


def _head(file: str, line: int, cells: list[str]) -> list[str]:
    head = [cell.strip().lower() for cell in cells]
    for name in ("date", "amount_usd"):
        if name not in head:
            raise InputError(f"{file}: line {line}: no column {name}, found: {', '.join(head)[:100]}")
    if "category" not in head and "account" not in head:
        raise InputError(
            f"{file}: line {line}: no column category or account, found: {', '.join(head)[:100]}"
        )
    twice = next((name for name in head if name and head.count(name) > 1), None)
    if twice:
        raise InputError(f"{file}: line {line}: found the column {twice!r:.60} twice, allowed: once")
    return head


def _row(file: str, line: int, cells: Mapping[str, str], accounts: Mapping[str, str]) -> BankRow:
    def wrong(column: str, allowed: str) -> InputError:
        return InputError(f"{file}: line {line}: {column}: found {cells[column]!r:.60}, allowed: {allowed}")

    try:
        if len(cells["date"]) != 10:
            raise ValueError
        date = datetime.strptime(cells["date"], "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise wrong("date", "YYYY-MM-DD") from None
    try:
        usd = Decimal(cells["amount_usd"])
    except InvalidOperation:
        usd = Decimal("NaN")
    if not usd.is_finite() or abs(usd) >= _LARGEST_USD or usd != usd.quantize(Decimal("0.000001")):
        raise wrong("amount_usd", "a decimal number below 1e12 with up to 6 places, such as -1234.50")
    kind = cells.get("kind") or "paid"
    if kind not in _KINDS:
        raise wrong("kind", " or ".join(_KINDS))
    column = "account" if cells.get("account") else "category"
    word = cells.get(column, "")
    account = word if word in CHART else accounts.get(word.lower()) if column == "category" else None
    if account is None:
        if column not in cells:
            raise InputError(f"{file}: line {line}: account: found nothing, allowed: the name of an account")
        listed = ", ".join(CHART) if column == "account" else f"{', '.join(accounts)}; or an account's name"
        raise wrong(column, listed)
    return BankRow(
        line=line,
        time_s=date.timestamp(),
        amount_micro=int(usd * MICRO_PER_USD),
        account=account,
        counterparty=cells.get("counterparty", ""),
        note=cells.get("note", ""),
        is_bill=kind == "bill",
        is_opening=column == "category" and word.lower() == OPENING,
    )
