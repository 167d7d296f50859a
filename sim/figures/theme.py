"""One look for figures, report and app: colours for light and dark that colour-blind readers can distinguish.

The hues are those of Okabe and Ito ("Color Universal Design", 2008), darkened on white and lightened on dark
until a thin line has a contrast of at least 3 : 1. A colour stands for one thing everywhere. Each light colour
differs from all others, so a page turns a figure dark by exchanging colours (`dark_for_light`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import plotly.graph_objects as go

Theme = Literal["light", "dark"]
FONT = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, "
    "'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', sans-serif"
)
HEIGHT_PX = 380


@dataclass(frozen=True)
class Palette:
    """Colours by what they stand for, as #rrggbb."""

    background: str
    surface: str
    text: str
    muted: str
    grid: str
    revenue: str
    serving: str
    training: str
    cash: str
    other: str
    on_demand: str
    demand: str
    loss: str
    link: str
    link_feedback: str


PALETTES: dict[Theme, Palette] = {
    "light": Palette(
        background="#fefefe",
        surface="#f3f5f8",
        text="#1b2430",
        muted="#5a6675",
        grid="#dfe4ea",
        revenue="#0072b2",
        serving="#d55e00",
        training="#a6457f",
        cash="#00805d",
        other="#8a94a0",
        on_demand="#56b4e8",
        demand="#1c1c1c",
        loss="#b3261e",
        link="#c9d6e3",
        link_feedback="#8fcdb9",
    ),
    "dark": Palette(
        background="#10161d",
        surface="#1a232d",
        text="#e8edf2",
        muted="#a3afbc",
        grid="#2f3b47",
        revenue="#4aa8e0",
        serving="#f08a3c",
        training="#e08fc0",
        cash="#2fc49a",
        other="#7f8b98",
        on_demand="#a9dcfa",
        demand="#f2f2f2",
        loss="#ff8a80",
        link="#34465a",
        link_feedback="#1f6f5a",
    ),
}


def palette(theme: Theme) -> Palette:
    """The colours of a theme."""
    return PALETTES[theme]


def dark_for_light() -> dict[str, str]:
    """{light colour: dark colour}: exchanging them turns a light figure into the dark one."""
    light, dark = PALETTES["light"], PALETTES["dark"]
    return {getattr(light, field.name): getattr(dark, field.name) for field in fields(Palette)}


def css_variables(theme: Theme) -> str:
    """The palette as CSS custom properties: `--revenue: #0072b2; …`."""
    return " ".join(f"--{name.replace('_', '-')}: {value};" for name, value in asdict(palette(theme)).items())


def layout(title: str, subtitle: str, colours: Palette, **more: Any) -> go.Layout:
    """The layout that all figures share: the finding as title, what is drawn as subtitle, hover over a month."""
    axis = {
        "gridcolor": colours.grid,
        "linecolor": colours.grid,
        "zerolinecolor": colours.muted,
        "automargin": True,
    }
    shared: dict[str, Any] = {
        "template": go.layout.Template(),  # empty: nothing but what stands here
        "title": {
            "text": title,
            "subtitle": {"text": subtitle, "font": {"size": 13, "color": colours.muted}},
            "x": 0,
            "xref": "container",
            "pad": {"l": 12},
            "font": {"size": 17},
        },
        "font": {"family": FONT, "size": 13, "color": colours.text},
        "paper_bgcolor": colours.background,
        "plot_bgcolor": colours.background,
        "hovermode": "x unified",
        "hoverlabel": {
            "bgcolor": colours.surface,
            "bordercolor": colours.grid,
            "font": {"color": colours.text},
        },
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 12, "r": 16, "t": 90, "b": 12},
        "height": HEIGHT_PX,
        "barmode": "relative",
        "bargap": 0.15,
    }
    axes: dict[str, dict[str, Any]] = {"xaxis": dict(axis), "yaxis": dict(axis)}
    for name in [key for key in more if key.startswith(("xaxis", "yaxis"))]:
        axes[name] = {**axis, **more.pop(name)}
    for named in axes.values():
        named["title"] = {"standoff": 12, "font": {"size": 13}, **named.get("title", {})}
    return go.Layout({**shared, **axes, **more})


def without_title(figure: go.Figure) -> tuple[str, str, go.Figure]:
    """(title, subtitle, the figure without them): a page sets them as text, which wraps on a narrow screen."""
    title = figure.layout.title
    bare = go.Figure(figure)
    bare.layout.title = None
    bare.layout.margin.t = 24
    return title.text, title.subtitle.text, bare
