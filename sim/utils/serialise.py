"""Values as JSON and tables as CSV, in the form of all files that the program writes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd

_FORMULA_STARTS = ("=", "+", "-", "@", "\t")


def json_ready(value: Any) -> Any:
    """Plain JSON values: NaN and infinities become None, numpy and pandas values become Python's."""
    if isinstance(value, dict):
        return {str(key): json_ready(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return json_ready(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_ready(entry) for entry in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: json_ready(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, pd.DataFrame):
        return json_ready(value.to_dict(orient="records"))
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def table_csv(table: pd.DataFrame) -> str:
    """A table as CSV; text that a spreadsheet would read as a formula gets an apostrophe before it.

    Carriage returns in text become spaces: readers disagree about whether they end a line.
    """
    safe = table.copy()
    for column in safe.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in safe.dtypes]]:
        text = safe[column].astype(str).str.replace("\r", " ")
        safe[column] = text.where(~text.str.startswith(_FORMULA_STARTS), "'" + text)
    return str(safe.to_csv(index=False))
