"""What a run leaves behind: report.html, monthly.csv, ledger.parquet and result.json.

The report is one file that needs nothing from outside: styles, figures and the Plotly library stand in it.
Outputs carry no time of writing, so the same run gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from engine.errors import InputError
from sim import human
from sim.provenance import command_line, provenance_rows

if TYPE_CHECKING:
    from sim.company import Result

FILES = ("report.html", "monthly.csv", "ledger.parquet", "result.json")
_TEMPLATE = Path(__file__).with_name("report_template.html.j2")
_TOTALS = ("Total", "Gross profit", "Net", "Operating cash", "Closing")


def write_outputs(result: Result, out_dir: str | Path) -> Path:
    """Write report.html, monthly.csv, ledger.parquet and result.json into a folder; gives the report's path.

    All four are written beside their places first and then moved there: whoever looks sees the old files or the
    new ones, never half of one.

    Raises:
        InputError: the folder cannot be made or written.
    """
    folder = Path(out_dir)
    staging = folder / f".partial-{os.getpid()}"
    try:
        staging.mkdir(parents=True, exist_ok=True)
        (staging / "report.html").write_text(report_html(result), encoding="utf-8")
        (staging / "monthly.csv").write_text(result.monthly.to_csv(index=False), encoding="utf-8")
        result.ledger.to_frame().to_parquet(staging / "ledger.parquet", index=False)
        (staging / "result.json").write_text(result_json(result), encoding="utf-8")
        for name in FILES:
            os.replace(staging / name, folder / name)
    except OSError as error:
        raise InputError(f"{folder}: cannot write there: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder / "report.html"


def headline_rows(result: Result) -> list[tuple[str, str]]:
    """(label, value in human units): the numbers that sum a run up."""
    head = result.headline
    share = human.percent
    return [
        ("ARR at the end", human.usd(head["arr_usd_end"])),
        ("Revenue, whole run", human.usd(head["revenue_usd_total"])),
        ("Gross margin, last 12 months", share(head["gross_margin_last12"])),
        ("Compute share of revenue", share(head["compute_share_of_revenue"])),
        ("Cash at the end", human.usd(head["cash_usd_end"])),
        ("Lowest cash", human.usd(head["cash_usd_min"])),
        ("Cash out", str(head["cash_out_month"])),
        ("Break-even", str(head["breakeven_month"])),
        ("Paying customers at the end", human.count(head["customers_end"])),
        ("LTV / CAC", _times(head["ltv_to_cac_last"])),
        ("Net revenue retention", share(head.get("nrr_last", math.nan))),
        ("Serving cost per million tokens", human.usd(head["serving_cost_usd_per_mtok_last"])),
        ("Revenue per million tokens", human.usd(head["price_usd_per_mtok_last"])),
        ("Replicas at the peak", human.count(head["replicas_peak"])),
        ("Fleet utilisation", share(head["utilisation_mean"])),
        ("Model releases", human.count(head["releases"])),
    ]


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


def result_json(result: Result) -> str:
    """The run in one JSON object: what went in (scenario, seed, profile) and what came out, without the months."""
    content = {
        "headline": result.headline,
        "seed": result.seed,
        "command": command_line(result.scenario, result.seed),
        "provenance": dict(provenance_rows(result)),
        "profile_hash": result.profile.content_hash,
        "scenario_hash": result.scenario.content_hash,
        "ledger_hash": result.ledger.content_hash(),
        "loop": result.loop,
        "capacity": {
            "capacity_rps": result.surface.capacity_rps,
            "saturation_rps": result.surface.saturation_rps,
            "provenance": result.surface.provenance,
        },
        "scenario": result.scenario.model_dump(mode="json"),
        "events": result.events,
        "assumptions": result.assumptions,
    }
    return json.dumps(json_ready(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def report_html(result: Result) -> str:
    """The report as one HTML document that opens without network."""
    from jinja2 import Environment
    from plotly.offline import get_plotlyjs

    from sim.figures import all_figures
    from sim.shown_tables import shown_tables
    from sim.theme import FONT, css_variables, dark_for_light, without_title

    figures = []
    for name, draw in all_figures().items():
        title, subtitle, figure = without_title(draw(result))
        # "<" would end the script element early; JSON reads the escape as the same character.
        text = figure.to_json().replace("<", "\\u003c")
        figures.append({"name": name, "title": title, "subtitle": subtitle, "json": text})
    scenario, profile = result.scenario, result.profile
    environment = Environment(autoescape=True, trim_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        name=scenario.name,
        months=len(result.monthly),
        start_month=scenario.start_month,
        seed=result.seed,
        profile_kind=profile.kind,
        profile_date=profile.created_at[:10],
        model=profile.model.name,
        machine=profile.hardware.name,
        headline=headline_rows(result),
        figures=figures,
        statements=_statements(result),
        tables=[
            {
                "title": title,
                "rows": [
                    ["", *table.columns],
                    *([str(i), *row] for i, row in zip(table.index, table.to_numpy(), strict=True)),
                ],
            }
            for title, table in shown_tables(result).items()
        ],
        totals=_TOTALS,
        events=_events(result),
        assumptions=_assumptions(result),
        provenance=provenance_rows(result),
        command=command_line(scenario, result.seed),
        scenario_yaml=scenario.to_yaml(),
        css_light=css_variables("light"),
        css_dark=css_variables("dark"),
        font=FONT,
        dark_for_light=json.dumps(dark_for_light()),
        # Plotly links to itself and to map makers; a file that needs no network shows none of these.
        plotly_js=re.sub(r"""(src|href)=(["'])https?://[^"'\\]*""", r"\1=\2#", get_plotlyjs()),
    )


def _statements(result: Result) -> list[dict[str, Any]]:
    frames = {
        "Income statement": (result.statements.income(), "sum"),
        "Cash flow": (result.statements.cash_flow(), "sum"),
        "Balance sheet": (result.statements.balance_sheet(), "last"),
    }
    return [
        {"title": title, "annual": _rows(_annual(frame, how)), "monthly": _rows(frame)}
        for title, (frame, how) in frames.items()
    ]


def _annual(frame: pd.DataFrame, how: str) -> pd.DataFrame:
    """Years of a monthly statement: flows add up, balances are those of the last month."""
    years = [str(month)[:4] for month in frame.index]
    grouped = frame.groupby(years)
    annual = grouped.sum() if how == "sum" else grouped.last()
    for column, pick in (("opening_cash", "first"), ("closing_cash", "last")):
        if column in frame and how == "sum":
            annual[column] = grouped[column].agg(pick)
    return annual


def _rows(frame: pd.DataFrame) -> list[list[str]]:
    """Lines down, periods across; lines that are zero throughout are left away."""
    rows = [["", *(str(label) for label in frame.index)]]
    for column in frame.columns:
        values = frame[column].to_numpy()
        if np.any(values):
            rows.append([str(column).replace("_", " ").capitalize(), *(human.usd_exact(v) for v in values)])
    return rows


def _events(result: Result) -> list[dict[str, Any]]:
    labels = list(result.monthly["month"])
    events = result.events
    return [
        {"month": labels[month], "day": day, "stage": stage, "what": what}
        for month, day, stage, what in zip(
            events["month_index"], events["day"], events["stage"], events["what"], strict=True
        )
    ]


def _assumptions(result: Result) -> list[dict[str, str]]:
    rows = []
    for item in result.assumptions:
        source = ", ".join(part for part in (item.source, item.date) if part)
        rows.append(
            {
                "key": item.key,
                "value": _plain(item.value),
                "unit": item.unit,
                "kind": item.kind,
                "source": source,
            }
        )
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: human.UNKNOWN}[value]
    if isinstance(value, (int, float)):
        return f"{value:,.6g}" if abs(value) < 1e6 else human.count(value, 6)
    return str(value)


def _times(value: Any) -> str:
    number = human.count(value)
    return number if number == human.UNKNOWN else f"{number}×"
