"""Training in pictures: the loss of a run under way, the scaling law with its points, where a planned run lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from engine.training.scaling_law import ScalingConstants, compute_optimal, loss, training_flop
from sim.figures.base import finite
from sim.figures.theme import Theme, layout, palette
from sim.i18n import numbers
from sim.i18n.translate import tr

if TYPE_CHECKING:
    from engine.training.scaling_law import FloatArray

_SMOOTHED_STEPS = 10
_LAW_COLOURS = ("revenue", "serving", "cash", "training", "other")


def loss_curve(steps: pd.DataFrame, planned_steps: int, theme: Theme = "light") -> go.Figure:
    """Loss of a run so far.

    Args:
        steps: step, loss (of the batch, before its update) and validation_loss, NaN where none was measured.
        planned_steps: where the run shall end.
        theme: light or dark.
    """
    colours = palette(theme)
    measured = steps.dropna(subset=["validation_loss"])
    trained = steps.dropna(subset=["loss"])
    smooth = trained["loss"].rolling(_SMOOTHED_STEPS, min_periods=1).mean()
    title = tr("The run begins")
    if len(measured):
        first, last = measured["validation_loss"].iloc[0], measured["validation_loss"].iloc[-1]
        title = tr(
            "Validation loss {before} → {after} nats per token after {steps} steps (perplexity {perplexity})",
            before=f"{first:.2f}",
            after=f"{last:.2f}",
            steps=numbers.count(measured["step"].iloc[-1]),
            perplexity=numbers.count(float(np.exp(last))),
        )
    return go.Figure(
        [
            go.Scatter(
                x=list(trained["step"]),
                y=finite(trained["loss"]),
                name=tr("each batch"),
                mode="lines",
                line={"color": colours.on_demand, "width": 1},
                hovertemplate="%{y:.3f}",
            ),
            go.Scatter(
                x=list(trained["step"]),
                y=finite(smooth),
                name=tr("mean of {count} steps", count=_SMOOTHED_STEPS),
                mode="lines",
                line={"color": colours.revenue, "width": 2.5},
                hovertemplate="%{y:.3f}",
            ),
            go.Scatter(
                x=list(measured["step"]),
                y=finite(measured["validation_loss"]),
                name=tr("validation"),
                mode="lines+markers",
                line={"color": colours.serving, "width": 2.5},
                marker={"size": 8},
                hovertemplate="%{y:.3f}",
            ),
        ],
        layout(
            title,
            tr("Cross-entropy of the next token, nats; measured on this machine"),
            colours,
            xaxis={"title": {"text": tr("optimizer step")}, "range": [0, planned_steps]},
            yaxis={"title": {"text": tr("loss (nats per token)")}},
        ),
    )


def scaling_law(
    law: ScalingConstants,
    parameters: FloatArray,
    points: pd.DataFrame | None = None,
    theme: Theme = "light",
) -> go.Figure:
    """Loss against training tokens, a line per model size, with the measured points where there are any.

    Args:
        law: the constants; with draws each line has its 90 % band.
        parameters: model sizes to draw.
        points: parameters, tokens, loss of the measurements behind the law.
        theme: light or dark.
    """
    colours = palette(theme)
    low, high = (1e8, 3e13) if points is None else (points["tokens"].min() / 2, points["tokens"].max() * 20)
    tokens = np.geomspace(low, high, 60)
    traces = []
    for index, size in enumerate(parameters):
        colour = getattr(colours, _LAW_COLOURS[index % len(_LAW_COLOURS)])
        name = tr("{count} parameters", count=numbers.count(size))
        if law.draws:
            bottom, top = _band(law, float(size), tokens)
            traces.append(
                go.Scatter(
                    x=[*tokens, *tokens[::-1]],
                    y=[*top, *bottom[::-1]],
                    fill="toself",
                    fillcolor=colour,
                    opacity=0.15,
                    line={"width": 0},
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
        traces.append(
            go.Scatter(
                x=list(tokens),
                y=list(loss(float(size), tokens, law)),
                name=name,
                mode="lines",
                line={"color": colour, "width": 2},
                hovertemplate="%{y:.3f}",
            )
        )
        if points is not None:
            here = points[np.isclose(points["parameters"], size)]
            traces.append(
                go.Scatter(
                    x=list(here["tokens"]),
                    y=list(here["loss"]),
                    mode="markers",
                    name=tr("{name}, measured", name=name),
                    marker={"color": colour, "size": 9},
                    showlegend=False,
                    hovertemplate="%{y:.3f}",
                )
            )
    title = tr(
        "Loss falls to {floor} nats per token at best: L = {floor} + {a}/N^{alpha} + {b}/D^{beta}",
        floor=f"{law.E:.3g}",
        a=f"{law.A:.4g}",
        alpha=f"{law.alpha:.3g}",
        b=f"{law.B:.4g}",
        beta=f"{law.beta:.3g}",
    )
    words = tr("Lines: the law ({source}).", source=law.source)
    if points is not None:
        words += " " + tr("Points: measured here. Bands: 90 % of its bootstrap.")
    return go.Figure(
        traces,
        layout(
            title,
            words,
            colours,
            xaxis={
                "title": {"text": tr("training tokens D (log scale)")},
                "type": "log",
                "exponentformat": "B",
                "dtick": 1,
            },
            yaxis={"title": {"text": tr("loss (nats per token)")}},
            height=440,
        ),
    )


def planned_loss(
    parameters: float, tokens: float, law: ScalingConstants, theme: Theme = "light"
) -> go.Figure:
    """Loss against model size for the compute of a planned run, and for less and more of it; the plan is marked."""
    colours = palette(theme)
    flop = training_flop(parameters, tokens)
    best_n, best_d = compute_optimal(flop, law)
    here, best = loss(parameters, tokens, law), loss(best_n, best_d, law)
    traces = []
    for factor, dash in ((0.1, "dot"), (1.0, "solid"), (10.0, "dash")):
        optimum = compute_optimal(flop * factor, law)[0]
        sizes = np.geomspace(optimum / 30, optimum * 30, 80)
        traces.append(
            go.Scatter(
                x=list(sizes),
                y=list(loss(sizes, flop * factor / (6 * sizes), law)),
                name=f"{flop * factor:.1e} FLOP",
                mode="lines",
                line={"color": colours.revenue if factor == 1 else colours.other, "width": 2, "dash": dash},
                hovertemplate="%{y:.3f}",
            )
        )
    for name, size, value, symbol, colour in (
        (tr("this run"), parameters, here, "circle", colours.serving),
        (tr("compute-optimal"), best_n, best, "star", colours.cash),
    ):
        traces.append(
            go.Scatter(
                x=[size],
                y=[value],
                name=name,
                mode="markers",
                marker={"symbol": symbol, "size": 13, "color": colour},
                hovertemplate="%{y:.3f}",
            )
        )
    title = tr(
        "The law predicts {loss} nats per token; the best split of the same compute gives {best}",
        loss=f"{here:.3f}",
        best=f"{best:.3f}",
    )
    return go.Figure(
        traces,
        layout(
            title,
            tr(
                "Compute-optimal for {flop} FLOP: {parameters} parameters on {tokens} tokens. Predicted, not measured",
                flop=f"{flop:.1e}",
                parameters=numbers.count(best_n),
                tokens=numbers.count(best_d),
            ),
            colours,
            xaxis={
                "title": {"text": tr("parameters N (log scale)")},
                "type": "log",
                "exponentformat": "B",
                "dtick": 1,
            },
            yaxis={"title": {"text": tr("loss (nats per token)")}},
            hovermode="closest",
            height=440,
        ),
    )


def _band(law: ScalingConstants, size: float, tokens: FloatArray) -> tuple[FloatArray, FloatArray]:
    e, a, b, alpha, beta = (column[:, None] for column in np.asarray(law.draws).T)
    drawn = e + a * size**-alpha + b * tokens[None, :] ** -beta
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    return low, high
