"""What every section of a scenario is made of: a strict, immutable model, and fields with unit, meaning and source.

A field's unit and (for published defaults) its source and date travel in `json_schema_extra`; the assumptions
table of a report is read from here. Numbers are strict: a text or a yes/no where a number belongs is refused.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

BESIROGLU = "Besiroglu et al. 2024, arXiv:2404.10102"
NEBIUS = "Nebius list price, skypilot-catalog v8, commit 0082b0435f39"


class Section(BaseModel):
    """A part of a scenario: unknown keys refused, immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True
    )


def quantity(
    default: Any,
    unit: str,
    meaning: str,
    *,
    source: str | None = None,
    date: str | None = None,
    **bounds: Any,
) -> Any:
    """A field with its unit, its meaning, and where its default comes from (None: assumed)."""
    return Field(
        default=default,
        description=meaning,
        json_schema_extra={"unit": unit, "source": source, "date": date},
        **bounds,
    )


def fraction(default: float, meaning: str) -> Any:
    """A field between 0 and 1."""
    return quantity(default, "fraction", meaning, ge=0, le=1)


def option(default: Any, unit: str, meaning: str, **more: Any) -> Any:
    """A `quantity` of a feature that its default switches off: a scenario that doesn't use it need not name it."""
    field = quantity(default, unit, meaning, **more)
    field.json_schema_extra["optional"] = True
    return field
