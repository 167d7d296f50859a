"""A comparison as files: plan_actual.csv, variance.csv, calibrated.yaml, calibration.csv, and the actual statements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from engine.errors import InputError
from engine.utils.files import write_atomically
from sim.actuals.variance import REVENUE_CAUSES, USAGE_CAUSES

if TYPE_CHECKING:
    from sim.actuals.compare import Actuals

STATEMENTS = ("income", "balance_sheet", "cash_flow")


def variance_table(found: Actuals) -> pd.DataFrame:
    """Every difference by cause in one table: month, of, cause, unit, planned, actual, variance (whole numbers).

    of "account": one row per account; of "revenue" and "usage": one row per cause, with the sums of both sides beside.
    """
    rows: list[tuple[Any, ...]] = [
        (
            row.month,
            "account",
            row.account,
            "micro-USD",
            row.planned_micro_usd,
            row.actual_micro_usd,
            row.variance_micro_usd,
        )
        for row in found.accounts.itertuples()
    ]
    for of, table, unit, causes, suffix in (
        ("revenue", found.revenue, "micro-USD", REVENUE_CAUSES, "micro_usd"),
        ("usage", found.usage, "tokens", USAGE_CAUSES, "tokens"),
    ):
        for row in table.to_dict(orient="records"):
            rows += [
                (row["month"], of, cause, unit, row[f"planned_{suffix}"], row[f"actual_{suffix}"], row[cause])
                for cause in causes
            ]
    return pd.DataFrame(rows, columns=["month", "of", "cause", "unit", "planned", "actual", "variance"])


def write_actuals(found: Actuals, folder: Path) -> list[Path]:
    """Write the comparison; gives the files.

    Raises:
        InputError: the folder is a file.
    """
    from sim.utils.serialise import table_csv

    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: is a file, allowed: a folder")
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "plan_actual": found.months,
        "variance": variance_table(found),
        "calibration": found.calibration.table(),
        **{f"actual_{name}": getattr(found.books.statements, name)().reset_index() for name in STATEMENTS},
        "actual_ledger": found.books.ledger.to_frame(),
    }
    written = []
    for name, table in tables.items():
        path = folder / f"{name}.csv"
        write_atomically(path, table_csv(table))
        written.append(path)
    path = folder / "calibrated.yaml"
    found.calibrated.save(path)
    return [*written, path]
