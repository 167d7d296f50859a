"""Contents of a report in any format: headline, tables, events, assumptions, where numbers come from.

Everything is text in the language of the moment, or figures; the formats (`report_html`, `report_pdf`) only set it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from engine.errors import InputError
from sim.accounting.labels import STATEMENTS, TOTALS, by_year, line_label, used
from sim.company.assumptions import Assumption
from sim.company.provenance import command_line, program_version
from sim.i18n import numbers
from sim.i18n.event_messages import STAGES, event_in_words
from sim.i18n.translate import mark, tr, worded
from sim.scenario.metrics import HEADLINE, OUTCOMES
from sim.scenario.units import Unit, in_unit

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from sim.company.simulate import Result
    from sim.study.monte_carlo import MonteCarlo

# In the order of the report.
SECTIONS = {
    "summary": mark("Summary"),
    "uncertainty": mark("Uncertainty"),  # only in a report that was given a Monte Carlo study
    "figures": mark("Figures"),
    "statements": mark("Statements"),
    "tables": mark("Unit economics, costs and ownership"),
    "cohorts": mark("Cohorts"),
    "events": mark("What happened"),
    "assumptions": mark("Assumptions"),
    "provenance": mark("Where the numbers come from"),
    "scenario": mark("The scenario"),
}
KINDS = {
    "measured": (mark("measured"), mark("on a machine")),
    "predicted": (mark("predicted"), mark("by a fitted model")),
    "sourced": (mark("sourced"), mark("from something published")),
    "assumed": (mark("assumed"), mark("by whoever wrote the scenario")),
}
# Of a Monte Carlo study, for a board.
_OUTCOMES = (
    "arr_usd_end",
    "revenue_usd_total",
    "gross_margin_last12",
    "profit_usd_total",
    "cash_usd_end",
    "cash_usd_min",
    "customers_end",
    "ltv_to_cac_last",
)
_COHORT_AGES = (1, 3, 6, 12, 18, 24, 36)


@dataclass(frozen=True)
class Table:
    """A table of texts: head and rows; `total_rows` are the indices of sums."""

    title: str
    head: list[str]
    rows: list[list[str]]
    total_rows: frozenset[int] = frozenset()


def chosen_sections(sections: Iterable[str] | None) -> list[str]:
    """The chosen sections, in the order of the report; all when None.

    Raises:
        InputError: an unknown section, or none at all.
    """
    wanted = list(SECTIONS) if sections is None else list(sections)
    for name in wanted:
        if name not in SECTIONS:
            raise InputError(f"sections: found {name!r}, allowed: {', '.join(SECTIONS)}")
    if not wanted:
        raise InputError(f"sections: found none, allowed: one or more of {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in wanted]


def headline_rows(result: Result) -> list[tuple[str, str]]:
    """(label, value with its unit) of each headline metric, in the current language."""
    return [
        (tr(metric.label), _brief(result.headline[name], metric.unit)) for name, metric in HEADLINE.items()
    ]


def opening(result: Result) -> str:
    """One sentence: months, profile and seed of the run."""
    profile = result.profile
    return tr(
        "{months} months from {start}, simulated on a {kind} profile of {model} ({machine}, {date}). Seed {seed}.",
        months=len(result.monthly),
        start=result.scenario.start_month,
        kind=tr(KINDS[profile.kind][0]),
        model=profile.model.name,
        machine=profile.hardware.name,
        date=profile.created_at[:10],
        seed=result.seed,
    )


def identity(result: Result, study: MonteCarlo | None = None) -> list[tuple[str, str]]:
    """(label, value): what every report carries so that it can be made again."""
    command = command_line(result.scenario, result.seed)
    if study is not None and (study.seed, study.sampling) == (
        result.seed,
        "lhs",
    ):  # as `flywheel run` makes it
        command += f" --runs {len(study.runs)}"
    return [
        (tr("Scenario hash"), result.scenario.content_hash),
        (tr("Seed"), str(result.seed)),
        (tr("Profile hash"), result.profile.content_hash),
        (tr("Program version"), program_version()),
        (tr("Command"), command),
    ]


def statements(result: Result) -> list[tuple[Table, Table]]:
    """(by year, by month) of each statement: lines down, periods across, in whole USD."""
    pairs = []
    for name, title in STATEMENTS.items():
        frame = used(getattr(result.statements, name)())
        years = by_year(frame, balances=name == "balance_sheet")
        by_years = _statement(tr("{statement}, by year", statement=tr(title)), years)
        pairs.append((by_years, _statement(tr("{statement}, by month", statement=tr(title)), frame)))
    return pairs


def finance_tables(result: Result) -> list[Table]:
    """Unit economics by plan, cost of goods by cause, ownership."""
    from sim.report.finance_tables import shown_tables

    return [
        Table(
            title,
            ["", *(str(column) for column in table.columns)],
            [[str(label), *row] for label, row in zip(table.index, table.to_numpy(), strict=True)],
        )
        for title, table in shown_tables(result).items()
    ]


def cohort_tables(result: Result) -> list[Table]:
    """Customers and MRR kept of each quarter of joining, by age in months; empty without paying customers."""
    cohorts = result.cohorts
    if not len(cohorts):
        return []
    quarter = (
        cohorts["cohort"].str[:4] + " Q" + ((cohorts["cohort"].str[5:].astype(int) + 2) // 3).astype(str)
    )
    ages = [age for age in _COHORT_AGES if age <= int(cohorts["age_months"].max())]
    rows: dict[str, list[list[str]]] = {"customers": [], "mrr_usd": []}
    for name, part in cohorts.groupby(quarter, sort=True):
        starts, reached = part.loc[part["age_months"] == 0], part.groupby("age_months")["cohort"].nunique()
        for quantity, form in (("customers", numbers.count), ("mrr_usd", numbers.usd)):
            first = float(starts[quantity].sum())
            by_age = part.groupby("age_months")[quantity].sum()
            # A share counts only once every month of the quarter has reached that age.
            whole = [bool(reached.get(age, 0) == reached.loc[0]) and first > 0 for age in ages]
            kept = [
                numbers.percent(float(by_age[age]) / first) if there else numbers.UNKNOWN
                for age, there in zip(ages, whole, strict=True)
            ]
            rows[quantity].append([str(name), form(first), *kept])
    after = [tr("after 1 month") if age == 1 else tr("after {months} months", months=age) for age in ages]
    joined = tr("Joined in")
    return [
        Table(
            tr("Customers kept, by quarter of joining"),
            [joined, tr("Customers"), *after],
            rows["customers"],
        ),
        Table(
            tr("Recurring revenue kept, by quarter of joining"),
            [joined, tr("First month's MRR"), *after],
            rows["mrr_usd"],
        ),
    ]


def uncertainty_note(study: MonteCarlo) -> str:
    """One sentence: number of runs, uncertain assumptions, scenario and seed of the study."""
    return tr(
        "{runs} runs, each with a world of its own and its own draw of {count} uncertain assumptions (scenario "
        "{scenario}, seed {seed}); intervals are at 95 %.",
        runs=len(study.runs) - study.failed,
        count=len(study.uncertain),
        scenario=study.scenario_hash[:12],
        seed=study.seed,
    )


def uncertainty_tables(study: MonteCarlo) -> list[Table]:
    """Percentiles of the outcomes, and the probabilities of ruin and of each target."""
    rows = []
    for found in _records(study.outcomes[study.outcomes["outcome"].isin(_OUTCOMES)]):
        outcome = OUTCOMES[found["outcome"]]
        names = ("p5", "p25", "p50", "p75", "p95", "mean")
        rows.append([tr(outcome.label), *(in_unit(found[name], outcome.unit, decimals=0) for name in names)])
    ruin = study.ruin[(study.ruin["month_index"] + 1) % 12 == 0]
    ends = ruin if len(ruin) else study.ruin.tail(1)
    head = ["", "5 %", "25 %", tr("median"), "75 %", "95 %", tr("mean")]
    chances = [(tr("Out of cash by {month}", month=one["month"]), one) for one in _records(ends)]
    chances += [(str(one["target"]), one) for one in _records(study.targets)]
    return [
        Table(tr("Outcomes: one run in twenty is below the first column, one above the fifth"), head, rows),
        Table(
            tr("Probabilities"),
            ["", tr("probability"), tr("interval, from"), tr("to")],
            [
                [label, *(numbers.percent(one[name], 1) for name in ("probability", "low", "high"))]
                for label, one in chances
            ],
        ),
    ]


def report_figures(
    result: Result, sections: Iterable[str], study: MonteCarlo | None
) -> dict[str, dict[str, go.Figure]]:
    """{section: {name: figure}} of the sections chosen that have figures."""
    from sim.figures.catalogue import all_figures
    from sim.figures.study import report_figures as of_study

    made: dict[str, dict[str, go.Figure]] = {}
    if "uncertainty" in sections and study is not None:
        made["uncertainty"] = of_study(study)
    if "figures" in sections:
        made["figures"] = {name: draw(result) for name, draw in all_figures().items()}
    return made


def event_rows(result: Result) -> list[list[str]]:
    """[month, day, stage, text] of every event."""
    labels = list(result.monthly["month"])
    events = result.events
    return [
        [labels[month], str(day), tr(STAGES[stage]), event_in_words(kind, values)]
        for month, day, stage, kind, values in zip(
            *(events[name] for name in ("month_index", "day", "stage", "kind", "values")), strict=True
        )
    ]


def assumption_rows(result: Result) -> list[dict[str, str]]:
    """Key, value, unit, kind and source of every assumption of the run, as text."""
    return [
        {
            "key": item.key,
            "value": plain(item.value),
            "unit": tr(item.unit) if item.unit else "",
            "kind": item.kind,
            "source": source_words(result, item),
        }
        for item in result.assumptions
    ]


def source_words(result: Result, item: Assumption) -> str:
    """Source and date of a value, and the distribution that it is the median of, where it has one."""
    parts = [worded(item.source), item.date]
    if item.key in result.scenario.uncertain:
        text = result.scenario.uncertain[item.key].text
        parts.append(tr("median of {distribution}", distribution=text.removeprefix("~").strip()))
    return ", ".join(part for part in parts if part)


def plain(value: Any) -> str:
    """A value of a scenario as text."""
    if isinstance(value, bool) or value is None:
        return {True: tr("yes"), False: tr("no"), None: numbers.UNKNOWN}[value]
    if isinstance(value, (int, float)):
        return f"{value:,.6g}" if abs(value) < 1e6 else numbers.count(value, 6)
    return str(value)


def split_columns(table: Table, most: int) -> list[Table]:
    """A wide table as several, alike in width, of at most `most` columns beside the labels."""
    columns = max(1, len(table.head) - 1)
    width = math.ceil(columns / math.ceil(columns / most))
    parts = []
    for start in range(1, columns + 1, width):
        span = slice(start, start + width)
        rows = [[row[0], *row[span]] for row in table.rows]
        parts.append(Table(table.title, [table.head[0], *table.head[span]], rows, table.total_rows))
    return parts


def _statement(title: str, frame: pd.DataFrame) -> Table:
    names: Sequence[str] = list(frame.columns)
    rows = [[line_label(name), *(numbers.usd_exact(value) for value in frame[name])] for name in names]
    totals = frozenset(index for index, name in enumerate(names) if name in TOTALS)
    return Table(title, ["", *(str(label) for label in frame.index)], rows, totals)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [dict(zip(map(str, frame.columns), row, strict=True)) for row in frame.itertuples(index=False)]


def _brief(value: Any, unit: Unit) -> str:
    text = in_unit(value, unit, decimals=0)
    return f"{text}×" if unit == "ratio" and text != numbers.UNKNOWN else text
