"""The money in pictures: what comes in and goes out, how recurring revenue moves, what is left of each cohort."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sim.accounting.ledger import MICRO_PER_USD
from sim.figures.base import finite, month_axis, usd_axis
from sim.figures.theme import Palette, Theme, layout, palette
from sim.i18n import numbers
from sim.i18n.translate import mark, tr

if TYPE_CHECKING:
    from sim.company.simulate import Result

# Lines of the income statement by what people call them; what no group names is "other".
_MONEY_IN = {
    mark("tokens"): ("revenue_tokens", "revenue_commitments"),
    mark("seats"): ("revenue_seats",),
    mark("licences, shares"): ("revenue_licences", "revenue_shared"),
    mark("services"): ("revenue_services", "revenue_fine_tuning"),
}
_MONEY_OUT = {
    mark("serving"): (
        "serving_reserved",
        "serving_on_demand",
        "serving_owned",
        "lease_serving",
        "depreciation_serving",
        "fine_tuning_compute",
    ),
    mark("training"): ("training_compute", "lease_training", "depreciation_training"),
    mark("data"): ("data",),
    mark("people"): (
        "people_research",
        "people_sales",
        "people_general",
        "people_support",
        "recruiting",
        "severance",
        "sales_commissions",
    ),
    mark("marketing"): ("marketing",),
    mark("support, fees"): ("support", "payment_fees", "partner_share"),
}
_MONEY_COLOURS = {"serving": "serving", "training": "training", "data": "cash"}
_OTHER, _PROFIT, _LOSS = mark("other"), mark("profit"), mark("loss, from cash")

SANKEY_NODE: dict[str, Any] = {
    "line": {"width": 0},
    "pad": 24,
    "thickness": 14,
    "hovertemplate": "%{label}<extra></extra>",
}

Measure = Literal["customers", "mrr"]
_MOVEMENTS = {
    "new_usd": (mark("new customers"), "cash"),
    "expansion_usd": (mark("expansion"), "revenue"),
    "contraction_usd": (mark("contraction"), "training"),
    "churn_usd": (mark("lost customers"), "serving"),
}


def mrr_movements(result: Result, theme: Theme = "light") -> go.Figure:
    """How monthly recurring revenue moves: won, grown, shrunk, lost."""
    colours, moves = palette(theme), mrr_by_cause(result)
    year = moves.tail(12)
    title = tr(
        "Over the last 12 months MRR gains {gained} and loses {lost}",
        gained=numbers.usd(year[["new_usd", "expansion_usd"]].to_numpy().sum()),
        lost=numbers.usd(-year[["contraction_usd", "churn_usd"]].to_numpy().sum()),
    )
    traces = [
        go.Bar(
            x=list(moves["month"]),
            y=finite(moves[column]),
            name=tr(name),
            marker={"color": getattr(colours, colour)},
            customdata=[numbers.usd(value) for value in moves[column]],
            hovertemplate="%{customdata}",
        )
        for column, (name, colour) in _MOVEMENTS.items()
    ]
    return go.Figure(
        traces,
        layout(
            title,
            tr("Change of monthly recurring revenue by cause, USD, from the ledger's cohorts; simulated"),
            colours,
            xaxis=month_axis(),
            yaxis=usd_axis(tr("USD of MRR per month")),
        ),
    )


def mrr_by_cause(result: Result) -> pd.DataFrame:
    """Change of MRR month by month: month, new_usd, expansion_usd, contraction_usd, churn_usd (losses negative).

    A cohort's first month is new; later its change is what the customers who left had paid on average, and
    expansion or contraction of the others. The first month of the run, whose customers were there before, has none.
    """
    cohorts = result.cohorts.sort_values(["plan", "cohort", "age_months"])
    groups = cohorts.groupby(["plan", "cohort"])
    before, customers_before = groups["mrr_usd"].shift(), groups["customers"].shift()
    first = before.isna()
    left = 1 - cohorts["customers"] / customers_before.where(customers_before > 0)
    churn = (-before * left.clip(lower=0)).fillna(0.0)
    rest = (cohorts["mrr_usd"] - before - churn).fillna(0.0)
    causes = pd.DataFrame(
        {
            "month": cohorts["month"],
            "new_usd": cohorts["mrr_usd"].where(
                first & (cohorts["month"] != result.monthly["month"].iloc[0]), 0.0
            ),
            "expansion_usd": rest.clip(lower=0),
            "contraction_usd": rest.clip(upper=0),
            "churn_usd": churn,
        }
    )
    return causes.groupby("month").sum().reindex(list(result.monthly["month"]), fill_value=0.0).reset_index()


def cohort_map(result: Result, theme: Theme = "light", measure: Measure = "customers") -> go.Figure:
    """What is left of the customers won in each quarter (or of what they pay), by age."""
    colours, kept = palette(theme), cohorts_kept(result, measure)
    at_year = kept[12].dropna() if 12 in kept else pd.Series(dtype=float)
    what = {
        "customers": mark("After 12 months {kept} of the customers of a quarter are left"),
        "mrr": mark("After 12 months the customers of a quarter pay {kept} of what they paid at first"),
    }[measure]
    title = (
        tr(what, kept=numbers.percent(float(at_year.mean())))
        if len(at_year)
        else tr("No cohort is 12 months old in this run")
    )
    return go.Figure(
        go.Heatmap(
            x=list(kept.columns),
            y=list(kept.index),
            z=[finite(row) for row in kept.to_numpy()],
            colorscale=[[0.0, colours.surface], [0.5, colours.on_demand], [1.0, colours.revenue]],
            zmin=0,
            zmax=max(1.0, float(np.nanquantile(kept.to_numpy(), 0.95))) if kept.size else 1,
            colorbar={"title": {"text": tr("kept")}, "tickformat": ".0%", "thickness": 12},
            hovertemplate=tr("won in %{y}, after %{x} months: %{z:.0%}") + "<extra></extra>",
            xgap=1,
            ygap=1,
        ),
        layout(
            title,
            tr("Share of the first month, billed customers of all plans, by quarter of joining; simulated"),
            colours,
            hovermode="closest",
            xaxis={"title": {"text": tr("age (months)")}, "showgrid": False},
            yaxis={
                "title": {"text": tr("joined in")},
                "type": "category",
                "autorange": "reversed",
                "showgrid": False,
            },
        ),
    )


def cohorts_kept(result: Result, measure: Measure = "customers") -> pd.DataFrame:
    """Share of the first month that is left: one row per quarter of joining, one column per age in months.

    A quarter is shown at an age that all its cohorts have reached, so that the youngest don't bend the average.
    """
    column = {"customers": "customers", "mrr": "mrr_usd"}[measure]
    by_age = result.cohorts.pivot_table(index="cohort", columns="age_months", values=column, aggfunc="sum")
    quarters = [f"{label[:4]} Q{(int(label[5:]) + 2) // 3}" for label in by_age.index]
    summed = by_age.groupby(quarters).sum(min_count=1)
    whole = by_age.notna().groupby(quarters).all()
    summed = summed.where(whole)
    return summed.div(summed[0], axis=0).dropna(axis=1, how="all") if 0 in summed else summed


def money_by_month(result: Result) -> pd.DataFrame:
    """The income statement by group, in whole micro-dollars: money in is positive, money out negative.

    The columns of a row add up to zero: a profit is money out (it stays with the company), a loss money in.
    """
    income = result.statements.income(exact=True)
    accounts = result.ledger.chart
    grouped: dict[str, Any] = {}
    spoken_for: set[str] = set()
    for groups in (_MONEY_IN, _MONEY_OUT):
        for name, lines in groups.items():
            here = [line for line in lines if line in income]
            sign = 1 if groups is _MONEY_IN else -1
            grouped[name] = sign * income[here].sum(axis=1).to_numpy()
            spoken_for |= set(here)
    other = np.zeros(len(income), dtype=np.int64)
    for line in income.columns:
        if line in accounts and line not in spoken_for:
            other += (1 if accounts[line] == "revenue" else -1) * income[line].to_numpy()
    grouped[_OTHER] = other
    grouped["result"] = -income["net_income"].to_numpy()
    return pd.DataFrame(grouped, index=income.index)


def money_sankey(row: pd.Series, colours: Palette, domain: dict[str, list[float]]) -> go.Sankey:
    """One row of `money_by_month` as a Sankey: what comes in at the left, where it goes at the right."""
    usd = row / MICRO_PER_USD
    parts = [(str(name), float(value)) for name, value in usd.items() if name != "result" and value != 0]
    gain = -float(usd["result"])
    if gain:
        parts.append((_PROFIT if gain > 0 else _LOSS, -gain))
    incoming = [(name, value) for name, value in parts if value > 0]
    outgoing = [(name, -value) for name, value in parts if value < 0]
    total = sum(value for _, value in incoming)
    labels = [f"{tr(name)} {numbers.usd(value)}" for name, value in incoming]
    labels += [tr("in all {usd}", usd=numbers.usd(total))]
    labels += [f"{tr(name)} {numbers.usd(value)}" for name, value in outgoing]
    middle = len(incoming)
    shades = {_PROFIT: colours.cash, _LOSS: colours.loss}
    shades |= {name: getattr(colours, colour) for name, colour in _MONEY_COLOURS.items()}
    return go.Sankey(
        domain=domain,
        arrangement="snap",
        valueformat="$,.0f",
        node={
            **SANKEY_NODE,
            "label": labels,
            "color": [
                *(shades.get(name, colours.revenue) for name, _ in incoming),
                colours.revenue,
                *(shades.get(name, colours.other) for name, _ in outgoing),
            ],
        },
        link={
            "source": [*range(middle), *([middle] * len(outgoing))],
            "target": [*([middle] * middle), *range(middle + 1, middle + 1 + len(outgoing))],
            "value": [value for _, value in (*incoming, *outgoing)],
            "color": colours.link,
            "customdata": [f"{tr(name)}: {numbers.usd(value)}" for name, value in (*incoming, *outgoing)],
            "hovertemplate": "%{customdata}<extra></extra>",
        },
        textfont={"color": colours.text, "size": 12},
    )
