"""Figures of a profile: what was measured against what the fit predicts, and the roofline.

Roofline (Williams et al. 2009): a step that does F operations and moves B bytes has the intensity F / B; it can reach
at most min(peak, intensity · bandwidth) operations per second. F and B are the model's own work, as
`engine.prediction.roofline` counts it: two operations per parameter and token (Kaplan et al. 2020), the query-key
pairs of attention, weights read once a step, keys and values read and written. Time is measured, so a point's height
is what was achieved.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from engine.prediction.roofline import roofline_of
from engine.profile.profile import Measurement, Profile
from sim.figures.base import finite
from sim.figures.theme import Palette, Theme, layout, palette
from sim.i18n import numbers
from sim.i18n.translate import mark, tr

STEP_KINDS = (
    ("prefill", mark("prefill"), "revenue", "circle"),
    ("decode", mark("decode"), "serving", "square"),
    ("mixed", mark("mixed"), "cash", "diamond"),
)


def fit_against_measured(profile: Profile, theme: Theme = "light") -> go.Figure:
    """Fitted against measured time of the steps that were not fitted, and below the error of each."""
    colours = palette(theme)
    points = [point for point in profile.measurements if point.held_out]
    if not points:
        return _empty(
            tr("This profile is predicted: no step of it was measured"),
            tr("{model} on {machine}", model=profile.model.name, machine=profile.hardware.name),
            colours,
        )
    measured = np.array([point.time_s for point in points])
    fitted = np.array([profile.step_time(point.prefill, point.decode_contexts) for point in points])
    error = fitted / measured - 1
    ends = [float(measured.min()) / 1.3, float(measured.max()) * 1.3]
    quiet = {"color": colours.muted, "width": 1}
    traces = [
        go.Scatter(x=ends, y=ends, mode="lines", name=tr("fitted = measured"), line=quiet, hoverinfo="skip"),
        go.Scatter(
            x=ends, y=[0, 0], yaxis="y2", mode="lines", line=quiet, hoverinfo="skip", showlegend=False
        ),
    ]
    for kind, name, colour, symbol in STEP_KINDS:
        chosen = np.array([point.kind == kind for point in points])
        if not chosen.any():
            continue
        words = [
            tr(
                "{step}<br>measured {measured}, fitted {fitted} ({error})",
                step=_step_words(point),
                measured=numbers.seconds(point.time_s),
                fitted=numbers.seconds(time_s),
                error=_signed(off),
            )
            for point, time_s, off, its in zip(points, fitted, error, chosen, strict=True)
            if its
        ]
        for axis, values in (("y", fitted), ("y2", error)):
            traces.append(
                go.Scatter(
                    x=finite(measured[chosen]),
                    y=finite(values[chosen]),
                    yaxis=axis,
                    name=tr(name),
                    mode="markers",
                    marker={"color": getattr(colours, colour), "size": 9, "symbol": symbol},
                    showlegend=axis == "y",
                    legendgroup=kind,
                    customdata=words,
                    hovertemplate="%{customdata}<extra></extra>",
                )
            )
    fit = profile.fit
    most = 1.15 * max(0.05, float(np.abs(error).max()))
    return go.Figure(
        traces,
        layout(
            tr(
                "Steps that the fit never saw are predicted within {median} (median), {p95} (p95)",
                median=numbers.percent(fit.median_relative_error, 1),
                p95=numbers.percent(fit.p95_relative_error, 1),
            ),
            tr(
                "{held} held-out of {all} measured steps of {model} on {machine}, {date}",
                held=len(points),
                all=len(profile.measurements),
                model=profile.model.name,
                machine=profile.hardware.name,
                date=profile.created_at[:10],
            ),
            colours,
            xaxis={
                "title": {"text": tr("measured step time (log scale)")},
                "type": "log",
                **_time_ticks(ends),
                "anchor": "y2",
            },
            yaxis={
                "title": {"text": tr("fitted (log scale)")},
                "type": "log",
                **_time_ticks(ends),
                "domain": [0.4, 1],
            },
            yaxis2={
                "title": {"text": tr("error")},
                "tickformat": "+.0%",
                "domain": [0, 0.32],
                "range": [-most, most],
            },
            hovermode="closest",
            height=480,
        ),
    )


def roofline_points(profile: Profile) -> pd.DataFrame:
    """Work and speed of each measured step: kind, time_s, flop, bytes, intensity_flop_per_byte, flop_per_s, and
    roof_share, the part of what the roofline allows at that intensity.

    Raises:
        InputError: the profile lacks its machine's peak or bandwidth.
    """
    machine = roofline_of(profile)
    rows = []
    for point in profile.measurements:
        chunk_tokens = sum(tokens for tokens, _ in point.prefill)
        decodes, contexts = len(point.decode_contexts), sum(point.decode_contexts)
        tokens = chunk_tokens + decodes
        pairs = (
            sum(chunk * (context + (chunk + 1) / 2) for chunk, context in point.prefill) + contexts + decodes
        )
        sampled = decodes + len(point.prefill)
        flop = machine.token_flops * tokens + machine.vocabulary_flops * sampled + machine.pair_flops * pairs
        earlier = contexts + sum(context for _, context in point.prefill)
        moved = machine.weight_bytes + machine.kv_bytes * (earlier + tokens)
        roof = min(machine.peak_flops, flop / moved * machine.bandwidth)
        rows.append(
            {
                "kind": point.kind,
                "time_s": point.time_s,
                "tokens": tokens,
                "flop": flop,
                "bytes": moved,
                "intensity_flop_per_byte": flop / moved,
                "flop_per_s": flop / point.time_s,
                "roof_share": flop / point.time_s / roof,
            }
        )
    return pd.DataFrame(rows)


def roofline(profile: Profile, theme: Theme = "light") -> go.Figure:
    """Achieved operations per second against arithmetic intensity, under the machine's two roofs.

    Raises:
        InputError: as `roofline_points`.
    """
    colours, points, machine = palette(theme), roofline_points(profile), roofline_of(profile)
    if points.empty:
        return _empty(
            tr("This profile is predicted: no step of it was measured"),
            tr("{model} on {machine}", model=profile.model.name, machine=profile.hardware.name),
            colours,
        )
    ridge = machine.peak_flops / machine.bandwidth
    low = min(float(points["intensity_flop_per_byte"].min()), ridge) / 2
    high = max(float(points["intensity_flop_per_byte"].max()), ridge) * 2
    traces: list[go.Scatter] = [
        go.Scatter(
            x=[low, ridge, high],
            y=[low * machine.bandwidth, machine.peak_flops, machine.peak_flops],
            name=tr(
                "roof: memory {bandwidth}, compute {peak}",
                bandwidth=_with_prefix(machine.bandwidth, "B/s"),
                peak=_with_prefix(machine.peak_flops, "FLOP/s"),
            ),
            mode="lines",
            line={"color": colours.text, "width": 2},
            hoverinfo="skip",
        )
    ]
    shares = {}
    for kind, name, colour, symbol in STEP_KINDS:
        rows = points[points["kind"] == kind]
        if rows.empty:
            continue
        shares[kind] = float(rows["roof_share"].median())
        words = [
            tr(
                "{tokens} tokens in {time}: {speed}, {share} of the roof, at {intensity} FLOP per byte",
                tokens=numbers.count(row["tokens"]),
                time=numbers.seconds(row["time_s"]),
                speed=_with_prefix(row["flop_per_s"], "FLOP/s"),
                share=numbers.percent(row["roof_share"]),
                intensity=numbers.count(row["intensity_flop_per_byte"]),
            )
            for row in rows.to_dict(orient="records")
        ]
        traces.append(
            go.Scatter(
                x=finite(rows["intensity_flop_per_byte"]),
                y=finite(rows["flop_per_s"]),
                name=tr(name),
                mode="markers",
                marker={"color": getattr(colours, colour), "size": 9, "symbol": symbol, "opacity": 0.85},
                customdata=words,
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    title = tr(
        "Prefill reaches {prefill} of the roof, decode {decode} (medians)",
        prefill=numbers.percent(shares.get("prefill")),
        decode=numbers.percent(shares.get("decode")),
    )
    source = tr(profile.hardware.peak_source or mark("source not known"))
    return go.Figure(
        traces,
        layout(
            title,
            tr(
                "Measured steps of {model} on {machine}; roofs: {source}",
                model=profile.model.name,
                machine=profile.hardware.name,
                source=source,
            ),
            colours,
            xaxis={
                "title": {"text": tr("arithmetic intensity (FLOP per byte, log scale)")},
                "type": "log",
                "dtick": 1,
            },
            yaxis={
                "title": {"text": tr("achieved (FLOP/s, log scale)")},
                "type": "log",
                "dtick": 1,
                "exponentformat": "SI",
            },
            hovermode="closest",
            height=480,
        ),
    )


def _step_words(point: Measurement) -> str:
    chunks = ", ".join(f"{tokens}+{context}" for tokens, context in point.prefill)
    decodes = len(point.decode_contexts)
    if chunks and decodes:
        return tr("prefill {chunks} (tokens + context), {count} decodes", chunks=chunks, count=decodes)
    if chunks:
        return tr("prefill {chunks} (tokens + context)", chunks=chunks)
    mean = sum(point.decode_contexts) / decodes
    return tr("{count} decodes, mean context {context}", count=decodes, context=numbers.count(mean))


def _time_ticks(ends: list[float]) -> dict[str, list[Any]]:
    """Ticks of a logarithmic time axis at 1, 2, 5, 10 … in human units (plotly's own are a bare 2 or 5)."""
    exponents = range(math.floor(math.log10(ends[0])), math.ceil(math.log10(ends[1])) + 1)
    ticks = [step * 10.0**exponent for exponent in exponents for step in (1, 2, 5)]
    shown = [tick for tick in ticks if ends[0] <= tick <= ends[1]]
    return {"tickvals": shown, "ticktext": [numbers.seconds(tick) for tick in shown]}


def _with_prefix(value: float, unit: str) -> str:
    """A rate in the SI prefixes that data sheets use: 40 GB/s, 989 TFLOP/s."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:,.3g} {prefix}{unit}"
    return f"{value:,.3g} {unit}"


def _signed(share: float) -> str:
    return f"{share:+.1%}".replace("-", "−")


def _empty(title: str, subtitle: str, colours: Palette) -> go.Figure:
    axis = {"visible": False}
    return go.Figure(
        go.Scatter(x=[], y=[]), layout(title, subtitle, colours, xaxis=axis, yaxis=axis, height=160)
    )
