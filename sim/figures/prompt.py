"""Figures of a prompt: what the model looks at, which token it expects, and how surprised each token finds it.

Numbers are those of `engine.inference.introspection`: attention weights softmax(QKᵀ/√d_k), probabilities of the next
token, and the negative log likelihood of each token given those before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from sim.figures.theme import Theme, layout, palette
from sim.i18n import numbers
from sim.i18n.translate import tr

_LONGEST_LABEL = 12  # letters of a token on an axis
_MOST_LABELS = 60  # tokens with a label on an axis


class Candidate(Protocol):
    """A possible next token (see `engine.inference.introspection.NextToken`)."""

    @property
    def text(self) -> str:
        """Text of the token."""

    @property
    def probability(self) -> float:
        """Probability of being sampled, 0 to 1."""


def attention_map(
    weights: NDArray[Any], labels: Sequence[str], layer: int, head: int | None, theme: Theme = "light"
) -> go.Figure:
    """Heat map of one head's attention weights, or the mean over the heads.

    Args:
        weights: of one layer [heads, n, n], as `engine.inference.introspection.attention_weights` gives them.
        labels: text of the n tokens.
        layer: its number, from 0.
        head: from 0; None: the mean over all heads.
        theme: light or dark.
    """
    colours = palette(theme)
    shown = np.asarray(weights.mean(axis=0) if head is None else weights[head], dtype=np.float64)
    n = len(labels)
    words = [short_label(label) for label in labels]
    below = np.where(np.tri(n, dtype=bool), shown, np.nan)
    last = shown[-1]
    best = int(np.argmax(last))
    which = (
        tr("mean of {count} heads", count=len(weights)) if head is None else tr("head {number}", number=head)
    )
    return go.Figure(
        go.Heatmap(
            z=[[value if math.isfinite(value) else None for value in row] for row in below.tolist()],
            x=list(range(n)),
            y=list(range(n)),
            zmin=0,
            zmax=1,
            colorscale=[[0, colours.surface], [0.25, colours.on_demand], [1, colours.revenue]],
            colorbar={"title": {"text": tr("weight")}, "thickness": 12, "len": 0.8, "tickformat": ".0%"},
            customdata=[[f"{asking} → {looked}" for looked in words] for asking in words],
            hovertemplate="%{customdata}: %{z:.1%}<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
        ),
        layout(
            tr(
                "From the last token, “{asking}”, most attention ({share}) goes to “{looked}”",
                asking=words[-1],
                share=numbers.percent(last[best]),
                looked=words[best],
            ),
            tr(
                "softmax(QKᵀ/√d) of layer {layer}, {which}; each row adds up to 100%",
                layer=layer,
                which=which,
            ),
            colours,
            xaxis=_token_axis(tr("looked at (token)"), words) | {"side": "bottom", "tickangle": -60},
            yaxis=_token_axis(tr("asking (token)"), words) | {"autorange": "reversed"},
            hovermode="closest",
            height=int(min(760, 200 + 22 * max(n, 8))),
        ),
    )


def next_token_bars(candidates: Sequence[Candidate], temperature: float, theme: Theme = "light") -> go.Figure:
    """Probabilities of the likeliest next tokens, the best on top."""
    colours = palette(theme)
    names = [f"{number}. {short_label(each.text)}" for number, each in enumerate(candidates, 1)]
    total = sum(each.probability for each in candidates)
    return go.Figure(
        go.Bar(
            x=[each.probability for each in candidates],
            y=names,
            orientation="h",
            marker={"color": colours.revenue},
            text=[numbers.percent(each.probability, 1) for each in candidates],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.3%}<extra></extra>",
            name=tr("probability"),
        ),
        layout(
            tr(
                "The model expects “{token}” next, with {share}",
                token=short_label(candidates[0].text),
                share=numbers.percent(candidates[0].probability, 1),
            ),
            tr(
                "The {count} likeliest of the vocabulary at temperature {temperature}; together {total}",
                count=len(candidates),
                temperature=f"{temperature:g}",
                total=numbers.percent(total, 1),
            ),
            colours,
            xaxis={"title": {"text": tr("probability")}, "tickformat": ".0%", "rangemode": "tozero"},
            yaxis={"title": {"text": tr("next token")}, "autorange": "reversed", "type": "category"},
            hovermode="closest",
            height=130 + 30 * len(candidates),
        ),
    )


def token_losses(
    labels: Sequence[str], losses_nats: Sequence[float], perplexity: float, theme: Theme = "light"
) -> go.Figure:
    """Loss of each token of a text; the first token is given and has no loss."""
    colours = palette(theme)
    words = [short_label(label) for label in labels[1:]]
    worst = int(np.argmax(losses_nats))
    mean = float(np.mean(losses_nats))
    return go.Figure(
        [
            go.Bar(
                x=list(range(1, len(labels))),
                y=list(losses_nats),
                name=tr("loss of the token"),
                marker={"color": colours.training},
                customdata=[
                    tr(
                        "“{token}”: probability {share}",
                        token=word,
                        share=numbers.percent(math.exp(-loss), 2),
                    )
                    for word, loss in zip(words, losses_nats, strict=True)
                ],
                hovertemplate="%{customdata}, %{y:.2f} nats<extra></extra>",
            ),
            go.Scatter(
                x=[0.5, len(labels) - 0.5],
                y=[mean, mean],
                name=tr("mean: the loss"),
                mode="lines",
                line={"color": colours.text, "width": 1.5, "dash": "dash"},
                hovertemplate="%{y:.3f} nats<extra></extra>",
            ),
        ],
        layout(
            tr(
                "Loss {loss} nats per token, perplexity {perplexity}; “{token}” surprises most",
                loss=f"{mean:.2f}",
                perplexity=numbers.count(perplexity),
                token=words[worst],
            ),
            tr("−ln p of each token given those before it: the loss with labels = inputs"),
            colours,
            xaxis=_token_axis(tr("token"), ["", *words]) | {"tickangle": -60},
            yaxis={"title": {"text": tr("loss (nats)")}, "rangemode": "tozero"},
            hovermode="closest",
        ),
    )


def short_label(text: str) -> str:
    """A token's text on an axis: blanks and line ends visible, long ones cut, no markup (Plotly reads some HTML)."""
    shown = text.replace("\n", "↵").replace("\t", "⇥")
    shown = shown.replace(" ", "·") if shown.strip() else "·" * max(1, len(shown))
    if len(shown) > _LONGEST_LABEL:
        shown = shown[: _LONGEST_LABEL - 1] + "…"
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _token_axis(title: str, words: Sequence[str]) -> dict[str, Any]:
    step = -(-len(words) // _MOST_LABELS)
    return {
        "title": {"text": title},
        "tickvals": list(range(0, len(words), step)),
        "ticktext": list(words[::step]),
        "showgrid": False,
        "zeroline": False,
    }
