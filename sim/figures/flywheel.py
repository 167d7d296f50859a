"""The flywheel in pictures: the whole run as one Sankey, and a film of it, month by month, with the money.

In the film each band of the wheel is as wide as that flow is against its own busiest month (tokens, customers and
dollars have no common unit); the bands of the money are dollars, and what comes in equals what goes out, by the
income statement of the month.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go

from sim.figures.finance import SANKEY_NODE, money_by_month, money_sankey
from sim.figures.theme import Palette, Theme, layout, palette
from sim.i18n import numbers
from sim.i18n.translate import tr

if TYPE_CHECKING:
    from sim.company.simulate import Result

_FILM_HEIGHT_PX = 720
_THINNEST = 0.004  # of the widest band: a flow that is zero this month stays where it was
_FRAME_MS = 600
_LOW = "<br> <br> <br> <br>"

# The wheel: (from, to, column of the flow); the column's largest month is the full width.
_WHEEL = (
    ("sources", "pool", "new_text_tokens"),
    ("feedback", "pool", "feedback_tokens"),
    ("pool", "model", "training_flop"),
    ("model", "customers", "customers"),
    ("customers", "tokens", "served_tokens"),
    ("tokens", "revenue", "revenue_usd"),
    ("tokens", "given", "opted_in_tokens"),
)
_WHEEL_PLACES = {
    "sources": (0.001, 0.30),
    "feedback": (0.001, 0.85),
    "pool": (0.2, 0.5),
    "model": (0.4, 0.5),
    "customers": (0.6, 0.5),
    "tokens": (0.8, 0.5),
    "revenue": (0.999, 0.30),
    "given": (0.999, 0.85),
}


def flywheel(result: Result, theme: Theme = "light") -> go.Figure:
    """The loop data → training → model → usage → data; widths are tokens of the training pool."""
    colours, loop = palette(theme), result.loop
    feedback, bought, held = (
        loop[k] for k in ("feedback_tokens", "source_tokens_kept", "initial_pool_tokens")
    )
    pool = max(feedback + bought + held, 1.0)
    quality = {"before": f"{loop['quality_start']:.2f}", "after": f"{loop['quality_end']:.2f}"}
    nodes = [
        tr("held at the start<br>{tokens} tokens", tokens=numbers.count(held)),
        tr("bought, crawled<br>{tokens} tokens kept", tokens=numbers.count(bought)),
        tr("feedback of users<br>{tokens} tokens kept", tokens=numbers.count(feedback)),
        # On a narrow screen these two would lie over each other: one stands high, the other low.
        tr("training pool<br>{tokens} tokens", tokens=numbers.count(loop["pool_tokens"])) + "<br> <br> <br> ",
        " <br> <br> <br>" + tr("model<br>quality {before} → {after}", **quality),
    ]
    read = tr(
        "{tokens} tokens read in {flop} FLOP of training: {releases} releases, {failed} failed gates",
        tokens=numbers.count(loop["trained_tokens"]),
        flop=f"{loop['training_flop']:.1e}",
        releases=f"{loop['releases']:.0f}",
        failed=f"{loop['failed_gates']:.0f}",
    )
    given_back = tr(
        "{served} tokens served → {opted_in} opted in → {kept} kept",
        served=numbers.count(loop["served_tokens"]),
        opted_in=numbers.count(loop["opted_in_tokens"]),
        kept=numbers.count(feedback),
    )
    links = [
        (0, 3, held, colours.link, tr("{tokens} tokens held at the start", tokens=numbers.count(held))),
        (
            1,
            3,
            bought,
            colours.link,
            tr(
                "{kept} of {all} tokens kept",
                kept=numbers.count(bought),
                all=numbers.count(loop["source_tokens"]),
            ),
        ),
        (2, 3, feedback, colours.link_feedback, given_back),
        (3, 4, pool, colours.link, read),
    ]
    # What users give back enters at the left: a Sankey with a loop drawn round it is unreadable.
    kept = [link for link in links if link[2] > 0]
    source, target, value, colour, words = (list(column) for column in zip(*kept, strict=True))
    if feedback > 0:
        title = tr(
            "Feedback from usage is {share} of the training pool; quality goes from {before} to {after}",
            share=numbers.percent(feedback / pool),
            **quality,
        )
    else:
        title = tr("No feedback enters the pool; quality goes from {before} to {after}", **quality)
    node_colours = [colours.other, colours.other, colours.cash, colours.revenue, colours.training]
    figure = go.Figure(
        go.Sankey(
            arrangement="snap",
            node={
                "label": nodes,
                "color": node_colours,
                "line": {"width": 0},
                "pad": 26,
                "thickness": 14,
                "hovertemplate": "%{label}<extra></extra>",
            },
            link={
                "source": source,
                "target": target,
                "value": value,
                "color": colour,
                "customdata": words,
                "hovertemplate": "%{customdata}<extra></extra>",
            },
            textfont={"color": colours.text, "size": 12},
        ),
        layout(
            title,
            tr(
                "Widths: tokens of the pool. Green, the way back: {path}. Simulated, whole run",
                path=given_back,
            ),
            colours,
            hovermode="closest",
        ),
    )
    figure.update_layout(margin={"t": 110, "b": 30})
    return figure


def loop_film(result: Result, theme: Theme = "light") -> go.Figure:
    """The wheel and the money of each month; a button plays the months, a slider picks one."""
    colours, table = palette(theme), loop_by_month(result)
    months = list(result.monthly["month"])
    widest = table.max()
    money = money_by_month(result)
    frames = [
        go.Frame(
            name=month,
            data=[
                _wheel(table.iloc[index], widest, result.monthly.iloc[index], colours),
                money_sankey(money.iloc[index], colours, {"x": [0, 1], "y": [0, 0.44]}),
            ],
        )
        for index, month in enumerate(months)
    ]
    title = tr(
        "From {first} to {last} customers go from {before} to {after}, revenue from {low} to {high} a month",
        first=months[0],
        last=months[-1],
        before=numbers.count(table["customers"].iloc[0]),
        after=numbers.count(table["customers"].iloc[-1]),
        low=numbers.usd(table["revenue_usd"].iloc[0]),
        high=numbers.usd(table["revenue_usd"].iloc[-1]),
    )
    figure = go.Figure(
        list(frames[-1].data),
        layout(
            title,
            tr(
                "Above, the wheel: each band against its own busiest month; green is what users give back. "
                "Below, the money of the month in USD, by the income statement. Simulated"
            ),
            colours,
            hovermode="closest",
            height=_FILM_HEIGHT_PX,
        ),
        frames=frames,
    )
    figure.update_layout(margin={"t": 100, "b": 100}, **_player(months, colours))
    return figure


def loop_by_month(result: Result) -> pd.DataFrame:
    """What flows round the wheel in each month: one row per month, one column per band of `_WHEEL`."""
    monthly = result.monthly
    text = monthly[["source_tokens_kept", "labelled_tokens", "synthetic_tokens"]].sum(axis=1)
    return pd.DataFrame(
        {
            "new_text_tokens": text,
            "feedback_tokens": monthly["feedback_tokens"],
            "training_flop": monthly["training_flop"],
            "customers": monthly["customers"],
            "served_tokens": monthly["prompt_tokens"] + monthly["output_tokens"],
            "revenue_usd": monthly["revenue_usd"],
            "opted_in_tokens": monthly["opted_in_tokens"],
        }
    )


def _wheel(flows: pd.Series, widest: pd.Series, month: pd.Series, colours: Palette) -> go.Sankey:
    spoken = {
        "sources": tr("new text<br>{tokens}", tokens=numbers.count(flows["new_text_tokens"])),
        "feedback": tr("feedback<br>{tokens}", tokens=numbers.count(flows["feedback_tokens"])),
        # On a narrow screen neighbours would lie over each other: they stand high and low in turns.
        "pool": tr("training pool<br>{tokens} tokens", tokens=numbers.count(month["data_pool_tokens"]))
        + _LOW,
        "model": _LOW
        + tr(
            "model {version}<br>quality {quality}",
            version=int(month["model_version"]),
            quality=f"{month['model_quality']:.2f}",
        ),
        "customers": tr("customers<br>{count}", count=numbers.count(flows["customers"])) + _LOW,
        "tokens": _LOW + tr("served<br>{tokens} tokens", tokens=numbers.count(flows["served_tokens"])),
        "revenue": tr("revenue<br>{usd}", usd=numbers.usd(flows["revenue_usd"])),
        "given": tr("given back<br>{tokens} tokens", tokens=numbers.count(flows["opted_in_tokens"])),
    }
    words = {
        "new_text_tokens": tr(
            "{tokens} tokens of new text kept", tokens=numbers.count(flows["new_text_tokens"])
        ),
        "feedback_tokens": tr(
            "{tokens} tokens of feedback kept", tokens=numbers.count(flows["feedback_tokens"])
        ),
        "training_flop": tr("{flop} FLOP of training", flop=f"{flows['training_flop']:.1e}"),
        "customers": tr("{count} paying customers", count=numbers.count(flows["customers"])),
        "served_tokens": tr("{tokens} tokens served", tokens=numbers.count(flows["served_tokens"])),
        "revenue_usd": tr("{usd} of revenue", usd=numbers.usd(flows["revenue_usd"])),
        "opted_in_tokens": tr(
            "{tokens} tokens may be learnt from", tokens=numbers.count(flows["opted_in_tokens"])
        ),
    }
    names = list(spoken)
    node_colours = {
        "feedback": colours.cash,
        "given": colours.cash,
        "pool": colours.cash,
        "model": colours.training,
        "customers": colours.revenue,
        "revenue": colours.revenue,
        "tokens": colours.serving,
    }
    back = ("feedback", "given")
    return go.Sankey(
        domain={"x": [0, 1], "y": [0.52, 1]},
        arrangement="fixed",
        node={
            **SANKEY_NODE,
            "label": [spoken[name] for name in names],
            "color": [node_colours.get(name, colours.other) for name in names],
            "x": [_WHEEL_PLACES[name][0] for name in names],
            "y": [_WHEEL_PLACES[name][1] for name in names],
        },
        link={
            "source": [names.index(source) for source, _, _ in _WHEEL],
            "target": [names.index(target) for _, target, _ in _WHEEL],
            "value": [
                max(float(flows[column]) / float(widest[column]) if widest[column] > 0 else 0.0, _THINNEST)
                for _, _, column in _WHEEL
            ],
            "color": [
                colours.link_feedback if source in back or target in back else colours.link
                for source, target, _ in _WHEEL
            ],
            "customdata": [words[column] for _, _, column in _WHEEL],
            "hovertemplate": "%{customdata}<extra></extra>",
        },
        textfont={"color": colours.text, "size": 12},
    )


def _player(months: list[str], colours: Palette) -> dict[str, Any]:
    """Buttons to play and stop, and a slider over the months."""
    shown = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    played = {
        "frame": {"duration": _FRAME_MS, "redraw": True},
        "transition": {"duration": 0},
    }
    look = {
        "bgcolor": colours.surface,
        "bordercolor": colours.grid,
        "font": {"color": colours.text, "size": 12},
    }
    buttons = [
        {"label": "▶ " + tr("play"), "method": "animate", "args": [None, played]},
        {"label": "❚❚", "method": "animate", "args": [[None], shown]},
    ]
    steps = [{"label": month, "method": "animate", "args": [[month], shown]} for month in months]
    return {
        "updatemenus": [
            {
                **look,
                "type": "buttons",
                "direction": "left",
                "showactive": False,
                "buttons": buttons,
                "x": 0,
                "y": -0.02,
                "xanchor": "left",
                "yanchor": "top",
            }
        ],
        "sliders": [
            {
                **look,
                "active": len(months) - 1,
                "steps": steps,
                "y": -0.02,
                "ticklen": 0,
                "minorticklen": 0,
                "pad": {"t": 0, "l": 8, "r": 8},
                "currentvalue": {
                    "prefix": "",
                    "xanchor": "right",
                    "offset": 14,
                    "font": {"color": colours.text, "size": 16},
                },
                "activebgcolor": colours.revenue,
            }
        ],
    }
