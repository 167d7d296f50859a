"""Scenarios side by side, and why two of them differ, in pictures (`sim.study.compare`, `sim.study.explain`).

A difference is drawn as a waterfall that lies on its side: bars from one number to the other, one for each cause,
with the words above the bar, so that long names have room on a narrow screen. Both ends are points, not bars: the
scale may then begin where the changes are, and every bar is still as long as what it stands for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sim.accounting.labels import line_label
from sim.figures.base import finite, month_axis, usd_axis
from sim.figures.theme import Palette, Theme, layout, palette
from sim.i18n import numbers
from sim.i18n.translate import mark, tr
from sim.scenario.metrics import MONTHLY, OUTCOMES, shown
from sim.scenario.units import MONEY, SHARES, Unit, in_unit

if TYPE_CHECKING:
    from sim.study.compare import Comparison
    from sim.study.explain import Explanation

# Columns of the monthly table that a study can draw.
COLUMNS = {
    name: MONTHLY[name]
    for name in (
        "cash_usd",
        "revenue_usd",
        "gross_margin",
        "net_income_usd",
        "customers",
        "serving_cost_usd_per_mtok",
        "replicas_mean",
        "model_quality",
    )
}
MOST_TERMS = 10  # of a waterfall; smaller ones stand together
_ROW_PX = 48
_LONGEST_LABEL = 52  # characters: as many as fit on a telephone
_LOWEST_MARGIN = -2.0  # the first months would flatten all others


def side_by_side(found: Comparison, column: str, theme: Theme = "light") -> go.Figure:
    """A monthly column of each scenario; the first, with which the others are compared, is dashed."""
    colours = palette(theme)
    lines = (
        colours.revenue,
        colours.serving,
        colours.cash,
        colours.training,
        colours.on_demand,
        colours.other,
    )
    label, unit = tr(COLUMNS[column].title), COLUMNS[column].unit
    table = found.monthly[found.monthly["column"] == column]
    traces, last = [], {}
    for number, name in enumerate(found.names):
        own = table[table["scenario"] == name]
        values = finite(own["value"])
        last[name] = values[-1]
        traces.append(
            go.Scatter(
                x=list(own["month"]),
                y=values,
                name=name,
                mode="lines" if len(own) > 2 else "lines+markers",
                line={
                    "color": lines[number % len(lines)],
                    "width": 2.5,
                    "dash": "dash" if number == 0 else "solid",
                },
                customdata=[column_value(column, value) for value in own["value"]],
                hovertemplate="%{customdata}",
            )
        )
    title = tr("{what} in the last month: {values}", what=label, values=_each(column, last))
    subtitle = tr("{unit}, simulated; mean of {seeds} common seeds", unit=tr(unit), seeds=found.seeds)
    axis = axis_of(unit)
    if column == "gross_margin":
        axis["range"] = _margin_range(table["value"])
    return go.Figure(traces, layout(title, subtitle, colours, xaxis=month_axis(), yaxis=axis))


def difference(found: Explanation, theme: Theme = "light", most: int = MOST_TERMS) -> go.Figure:
    """From one scenario's outcome to the other's, term by term."""
    colours, bars = palette(theme), shortened(found.bars, most)
    start, end, terms = bars.iloc[0], bars.iloc[-1], bars.iloc[1:-1]
    names = names_of(found)
    labels = [names.get(str(term), str(term)) for term in terms["term"]]
    rows = np.arange(1, len(terms) + 1)
    change = terms["change"].to_numpy(float)
    words = [signed(found.outcome, value) for value in change]
    figure = go.Figure(
        [
            go.Bar(
                y=rows,
                x=change,
                base=(terms["running"] - terms["change"]).to_numpy(float),
                orientation="h",
                width=0.36,
                marker={"color": [colours.cash if value > 0 else colours.serving for value in change]},
                text=words,
                textposition="outside",
                cliponaxis=False,
                customdata=_hover(found, terms, labels),
                hovertemplate="%{customdata}<extra></extra>",
                showlegend=False,
            ),
            go.Scatter(
                x=[start["running"], end["running"]],
                y=[0, len(terms) + 1],
                mode="markers+text",
                marker={"color": colours.revenue, "size": 12, "symbol": "diamond"},
                text=[shown(found.outcome, row["running"]) for row in (start, end)],
                textposition="middle right",
                hoverinfo="skip",
                showlegend=False,
            ),
        ],
        layout(
            sentence(found),
            _method(found),
            colours,
            hovermode="closest",
            height=110 + _ROW_PX * len(bars),
            xaxis=axis_of(OUTCOMES[found.outcome].unit, tr(OUTCOMES[found.outcome].label))
            | {"range": _range(bars)},
            yaxis={"visible": False, "range": [len(terms) + 1.5, -0.75]},
        ),
    )
    for low, high, level in zip(rows[:-1], rows[1:], terms["running"].iloc[:-1], strict=True):
        figure.add_shape(
            type="line", x0=level, x1=level, y0=low, y1=high, line={"color": colours.other, "width": 1}
        )
    row_labels(figure, [found.names[0], *labels, found.names[1]], colours)
    return figure


def sentence(found: Explanation, most: int = 3) -> str:
    """The difference and its largest causes in words: "B ends with $1.2M more than A: price +$0.9M, …"."""
    bars = found.bars
    start, end, terms = bars.iloc[0], bars.iloc[-1], bars.iloc[1:-1]
    apart = float(end["running"]) - float(start["running"])
    what = tr(OUTCOMES[found.outcome].label)
    names = {"a": found.names[0], "b": found.names[1], "what": what}
    if apart == 0 and not terms["change"].any():
        return tr("{what}: {b} and {a} come to the same", **names)
    called = names_of(found)
    causes = ", ".join(
        f"{called.get(str(term), str(term))} {signed(found.outcome, change)}"
        for term, change in zip(terms["term"].head(most), terms["change"].head(most), strict=True)
    )
    if len(terms) > most:
        causes += ", …"
    amount = signed(found.outcome, abs(apart)).lstrip("+")
    return (
        tr("{what}: {b} has {amount} more than {a}: {causes}", **names, amount=amount, causes=causes)
        if apart > 0
        else tr("{what}: {b} has {amount} less than {a}: {causes}", **names, amount=amount, causes=causes)
    )


def sum_in_words(found: Explanation) -> str:
    """The terms written as a sum, "$1.2M + $0.9M − $0.1M = $2.0M", so that it can be seen to add up."""
    bars = shortened(found.bars, MOST_TERMS)
    parts = [shown(found.outcome, float(bars.iloc[0]["running"]))]
    for value in bars.iloc[1:-1]["change"]:
        text = signed(found.outcome, float(value))
        parts.append(f"{text[0]} {text[1:]}" if text[0] in "+−" else f"+ {text}")
    return f"{' '.join(parts)} = {shown(found.outcome, float(bars.iloc[-1]['running']))}"


def names_of(found: Explanation) -> dict[str, str]:
    """{term: its name}: the line of a statement, or the meaning of an assumption."""
    terms = [str(term) for term in found.bars["term"].iloc[1:-1]]
    if found.method == "accounts":
        return {term: line_label(term) for term in terms}
    keys = found.groups.groupby("term")["key"].agg(list).to_dict()
    single = [term for term in terms if len(keys.get(term, [])) == 1]
    names = dict(zip(single, meanings([keys[term][0] for term in single]), strict=True))
    for term in terms:
        if term not in names and term in keys:
            names[term] = tr("{section} ({count} values)", section=term, count=len(keys[term]))
    return names


def meanings(keys: list[str]) -> list[str]:
    """Meanings of assumptions; equal ones are followed by the name of their owner in parentheses."""
    from sim.scenario.fields import field_at
    from sim.scenario.schema import ScenarioFields

    found = []
    for key in keys:
        field = field_at(ScenarioFields, tuple(key.split(".")))
        text = tr(field.description) if field is not None and field.description else key
        found.append(text[:1].upper() + text[1:])
    return [
        f"{text} ({key.split('.')[-2]})" if found.count(text) > 1 and "." in key else text
        for key, text in zip(keys, found, strict=True)
    ]


def shortened(bars: pd.DataFrame, most: int) -> pd.DataFrame:
    """The bars of a waterfall with all but the largest terms as one; they still add up exactly."""
    terms = bars.iloc[1:-1]
    if len(terms) <= most:
        return bars
    kept, rest = terms.head(most - 1), terms.iloc[most - 1 :]
    level = float(rest["running"].iloc[-1])
    before = float(kept["running"].iloc[-1])
    together: dict[str, Any] = {
        "kind": "change",
        "term": tr("{count} smaller ones", count=len(rest)),
        "change": level - before,
        "standard_error": math.nan,
        "bottom": min(before, level),
        "top": max(before, level),
        "running": level,
    }
    if "change_micro_usd" in bars:
        together["change_micro_usd"] = int(rest["change_micro_usd"].sum())
        together["change"] = together["change_micro_usd"] / 1e6
    return pd.concat([bars.head(1), kept, pd.DataFrame([together]), bars.tail(1)], ignore_index=True)


def row_labels(figure: go.Figure, labels: list[str], colours: Palette) -> None:
    """Words above the bars of the rows 0, 1, 2 …, from the left edge."""
    for row, label in enumerate(labels):
        figure.add_annotation(
            xref="paper",
            x=0,
            xanchor="left",
            y=row,
            yshift=19,
            text=label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…",
            showarrow=False,
            align="left",
            borderpad=0,
            bgcolor=colours.background,  # a line of the plot must not cross the words
            font={"size": 12, "color": colours.text},
        )


def axis_of(unit: Unit, title: str = "") -> dict[str, Any]:
    """Axis of an amount in its unit; its title carries the unit."""
    words = f"{title} [{tr(unit)}]" if title else tr(unit)
    if unit in MONEY:
        return usd_axis(words)
    if unit in SHARES:
        return {"title": {"text": f"{title} [%]" if title else words}, "tickformat": ".0%"}
    return {"title": {"text": words}, "exponentformat": "B"}


def column_value(column: str, value: float) -> str:
    """A value of a monthly column as text."""
    return in_unit(value, COLUMNS[column].unit)


def signed(outcome: str, value: float) -> str:
    """A difference with its sign: +$1.2M, −3.4 points."""
    unit = OUTCOMES[outcome].unit if outcome in OUTCOMES else "count"
    sign = "+" if value >= 0 else "−"
    if math.isnan(value):
        return numbers.UNKNOWN
    if unit in SHARES:
        return tr("{sign}{number} points", sign=sign, number=f"{100 * abs(value):.1f}")
    if unit in ("months", "month of the run"):
        return tr("{sign}{number} months", sign=sign, number=numbers.count(abs(value)))
    return f"{sign}{shown(outcome, abs(value))}"


def _each(column: str, last: dict[str, float | None]) -> str:
    return ", ".join(
        f"{name} {numbers.UNKNOWN if value is None else column_value(column, value)}"
        for name, value in last.items()
    )


def _margin_range(values: pd.Series) -> list[float]:
    low = float(np.nanmin(np.append(values[np.isfinite(values)].to_numpy(float), 0.0)))
    return [max(low, _LOWEST_MARGIN) * 1.05, 1.02]


def _hover(found: Explanation, terms: pd.DataFrame, labels: list[str]) -> list[str]:
    changed = found.groups.groupby("term") if len(found.groups) else None
    texts = []
    for (_, row), label in zip(terms.iterrows(), labels, strict=True):
        lines = [f"<b>{label}</b>: {signed(found.outcome, float(row['change']))}"]
        error = float(row["standard_error"])
        if math.isfinite(error) and error > 0:
            lines.append(tr("standard error {error}", error=signed(found.outcome, error).lstrip("+")))
        if changed is not None and row["term"] in changed.groups:
            members = changed.get_group(row["term"])
            lines += [
                f"{key}: {_plain(a)} → {_plain(b)}"
                for _, key, a, b in members.head(6).itertuples(index=False)
            ]
            if len(members) > 6:
                lines.append("…")
        texts.append("<br>".join(lines))
    return texts


def _plain(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _method(found: Explanation) -> str:
    how = {
        "accounts": mark("by account of the ledger; exact to the micro-dollar"),
        "exact": mark("by changed assumption; Shapley's values over every combination of changes"),
        "orders": mark("by changed assumption; Shapley's values over drawn orders of the changes"),
        "sequence": mark("by changed assumption, in one order"),
    }[found.method]
    return tr("Simulated, {how}; mean of {seeds} common seeds", how=tr(how), seeds=found.seeds)


def _range(bars: pd.DataFrame) -> list[float]:
    """Range of the axis: all levels, with margins for the labels."""
    levels = bars["running"].to_numpy(float)
    low, high = float(levels.min()), float(levels.max())
    span = (high - low) or abs(high) or 1.0
    return [low - 0.22 * span, high + 0.3 * span]
