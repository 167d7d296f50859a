"""Cash with its risk of ruin: this run's cash in the band of the Monte Carlo runs around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from sim.figures.money import cash
from sim.figures.theme import Theme, palette
from sim.i18n import numbers
from sim.i18n.translate import tr

if TYPE_CHECKING:
    import pandas as pd

    from sim.company.simulate import Result
    from sim.study.monte_carlo import MonteCarlo

BANDS = ((5, 95, 0.12), (25, 75, 0.18))  # percentiles and opacity, the wide one first


def cash_with_ruin(result: Result, study: MonteCarlo, theme: Theme = "light") -> go.Figure:
    """The cash of a run over the fan of many runs of the same company (`study` with the fan of "cash_usd")."""
    figure, colours, fan = cash(result, theme), palette(theme), study.fans["cash_usd"]
    red, green, blue = (int(colours.cash[start : start + 2], 16) for start in (1, 3, 5))
    traces: list[go.Scatter] = []
    for low, high, opacity in BANDS:
        traces += _band(fan, low, high, f"rgba({red},{green},{blue},{opacity})")
    figure = go.Figure([*traces, *figure.data], figure.layout)
    figure.update_layout(title_text=_title(result, study), title_subtitle_text=_subtitle(study))
    return figure


def _band(fan: pd.DataFrame, low: int, high: int, colour: str) -> list[go.Scatter]:
    name = tr("{share} of runs", share=numbers.percent((high - low) / 100))
    months, below, above = list(fan["month"]), fan[f"p{low}"].tolist(), fan[f"p{high}"].tolist()
    bare = {"x": months, "mode": "lines", "line": {"width": 0}, "legendgroup": name}
    return [
        go.Scatter(
            y=below, name=tr("percentile {number}", number=low), showlegend=False, hoverinfo="skip", **bare
        ),
        go.Scatter(
            y=above,
            name=name,
            fill="tonexty",
            fillcolor=colour,
            customdata=[
                tr("{low} to {high}", low=numbers.usd(bottom), high=numbers.usd(top))
                for bottom, top in zip(below, above, strict=True)
            ],
            hovertemplate="%{customdata}",
            **bare,
        ),
    ]


def _title(result: Result, study: MonteCarlo) -> str:
    runs, share = len(study.runs) - study.failed, float(study.ruin["probability"].iloc[-1])
    if share == 0:
        return tr(
            "Cash runs out in none of {runs} runs; the lowest point of this one is {lowest}",
            runs=numbers.count(runs),
            lowest=numbers.usd(result.headline["cash_usd_min"]),
        )
    return tr(
        "Cash runs out in {share} of {runs} runs; this one ends with {cash}",
        share=numbers.percent(share),
        runs=numbers.count(runs),
        cash=numbers.usd(result.headline["cash_usd_end"]),
    )


def _subtitle(study: MonteCarlo) -> str:
    if not study.uncertain:
        return tr("USD at month end, simulated; the bands hold 50% and 90% of runs with other luck")
    return tr(
        "USD at month end, simulated; the bands hold 50% and 90% of runs with other luck and {count} unsure values",
        count=numbers.count(len(study.uncertain)),
    )
