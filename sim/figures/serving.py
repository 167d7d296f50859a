"""Figures of the serving lab: latencies of a tried load, and a batch at work step by step.

Each takes what `sim.capacity.lab` made and gives a Plotly figure whose title states the finding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sim.capacity.lab import BatchWatch, LoadTrial
from sim.figures.base import finite
from sim.figures.hardware import KINDS
from sim.figures.theme import Palette, Theme, layout, palette
from sim.i18n import numbers
from sim.i18n.translate import tr
from sim.serving.metrics import latencies

SHOWN_REQUESTS = 60  # more bars would be too thin to distinguish
_QUANTILES = 240  # points of a distribution's line
_MOST_STEPS = 4000  # points of a counter's line


def distributions(trial: LoadTrial, theme: Theme = "light") -> go.Figure:
    """Share of requests at or below each latency: TTFT, TPOT and E2E, with the objectives."""
    colours, figures = palette(theme), trial.figures
    times = latencies(trial.frame)
    traces, wanted = [], trial.objective
    for column, name, colour, limit_s in (
        ("tpot_s", tr("TPOT"), colours.serving, wanted.tpot_p95_s),
        ("ttft_s", tr("TTFT"), colours.revenue, wanted.ttft_p95_s),
        ("e2e_s", tr("E2E"), colours.training, None),
    ):
        values = times[column].dropna().to_numpy()
        values = values[values > 0]
        if not len(values):
            continue
        # Those that never got their answer count as infinitely late: the line ends below 100 %.
        asked = len(times) if column != "tpot_s" else int((trial.frame["output_tokens"] > 1).sum())
        shares = np.linspace(0, 1, min(_QUANTILES, len(values)))
        traces.append(
            go.Scatter(
                x=finite(np.quantile(values, shares)),
                y=finite(shares * len(values) / asked),
                name=name,
                mode="lines",
                line={"color": colour, "width": 2.5},
                customdata=[numbers.seconds(value) for value in np.quantile(values, shares)],
                hovertemplate=f"{name}: %{{y:.1%}} ≤ %{{customdata}}<extra></extra>",
            )
        )
        if limit_s is not None:
            traces.append(
                go.Scatter(
                    x=[limit_s, limit_s],
                    y=[0, 1],
                    name=tr("{name} objective ({limit})", name=name, limit=numbers.seconds(limit_s)),
                    mode="lines",
                    line={"color": colour, "width": 1.5, "dash": "dash"},
                    hoverinfo="skip",
                )
            )
    title = tr(
        "{share} of requests meet both objectives: a goodput of {goodput} of {rate} requests per second",
        share=numbers.percent(figures["objective_met"]),
        goodput=numbers.count(figures["goodput_rps"]),
        rate=numbers.count(trial.rate_rps),
    )
    return go.Figure(
        traces,
        layout(
            title,
            tr(
                "Share of {count} requests with at most this latency, the first on an empty fleet; {kind} step times",
                count=numbers.count(len(times)),
                kind=_kinds(trial),
            ),
            colours,
            xaxis={"title": {"text": tr("latency (s, log scale)")}, "type": "log", "dtick": 1},
            yaxis={"title": {"text": tr("share of requests")}, "tickformat": ".0%", "range": [0, 1.02]},
            hovermode="closest",
        ),
    )


def with_trial(figure: go.Figure, trial: LoadTrial, theme: Theme = "light") -> go.Figure:
    """The latency curve of one replica with the trial's 95th percentiles as points at its rate per replica."""
    colours, found = palette(theme), trial.figures
    paid_s = float(trial.stats.up_s.sum())
    rate_rps = found["requests"] / paid_s if paid_s > 0 else math.nan
    marked = go.Figure(figure)
    values = []
    for name, key, colour in (
        (tr("TTFT p95, tried"), "ttft_p95_s", colours.revenue),
        (tr("TPOT p95, tried"), "tpot_p95_s", colours.serving),
    ):
        if not (math.isfinite(found[key]) and found[key] > 0 and math.isfinite(rate_rps)):
            continue
        values.append(found[key])
        marked.add_scatter(
            x=[rate_rps],
            y=[found[key]],
            name=name,
            mode="markers",
            marker={"symbol": "diamond", "size": 12, "color": colour},
            customdata=[numbers.seconds(found[key])],
            hovertemplate="%{customdata}",
        )
    low, high = marked.layout.yaxis.range
    ends = [math.log10(value) for value in values]
    marked.update_yaxes(
        range=[min([low, *(end - 0.2 for end in ends)]), max([high, *(end + 0.2 for end in ends)])]
    )
    return marked


def batch_time_line(watch: BatchWatch, theme: Theme = "light") -> go.Figure:
    """A replica at work: the first requests as bars by phase, the batch, and the KV cache, over time."""
    colours = palette(theme)
    shown = watch.frame.sort_values("arrived_s", kind="stable")
    shown = shown[shown["arrived_s"].notna()][:SHOWN_REQUESTS]
    until_s = float(shown[["arrived_s", "finished_s"]].max().max())
    steps = watch.steps[watch.steps["started_s"] <= until_s]
    traces: list[Any] = [*_request_bars(shown, colours), *_counters(steps, watch, colours)]
    most = int(steps["running"].max())
    fullest = float(steps["kv_blocks"].max()) / watch.scheduler.num_blocks
    title = tr(
        "Up to {running} requests share a step, and the KV cache fills to {share}: {preemptions}",
        running=numbers.count(most),
        share=numbers.percent(fullest),
        preemptions=tr("{count} preemptions", count=numbers.count(watch.preemptions))
        if watch.preemptions
        else tr("nobody is preempted"),
    )
    return go.Figure(
        traces,
        layout(
            title,
            tr(
                "Above the first {count} of {all} requests, below the batch and its KV cache; simulated step by step",
                count=len(shown),
                all=numbers.count(len(watch.frame)),
            ),
            colours,
            xaxis={"title": {"text": tr("time (s)")}, "anchor": "y3", "range": [0, until_s * 1.01]},
            yaxis={
                "title": {"text": tr("request")},
                "domain": [0.47, 1],
                "autorange": "reversed",
                "showgrid": False,
                "zeroline": False,
            },
            yaxis2={"title": {"text": tr("requests")}, "domain": [0.22, 0.42], "rangemode": "tozero"},
            yaxis3={
                "title": {"text": tr("KV used")},
                "domain": [0, 0.17],
                "tickformat": ".0%",
                "range": [0, 1.05],
            },
            height=640,
            barmode="overlay",
            bargap=0.25,
            hovermode="closest",
        ),
    )


def _request_bars(shown: pd.DataFrame, colours: Palette) -> list[go.Bar]:
    """A bar for each phase of each request; one that took no time has none."""
    phases = (
        (tr("waits in the queue"), "arrived_s", "scheduled_s", colours.other),
        (tr("prefill, to the first token"), "scheduled_s", "first_token_s", colours.revenue),
        (tr("decode, to the last token"), "first_token_s", "finished_s", colours.serving),
    )
    bars = []
    for name, start, end, colour in phases:
        words = [
            tr(
                "request {number}: {prompt} prompt, {output} output tokens; {phase}: {time}{preempted}",
                number=row.request_id,
                prompt=numbers.count(row.prompt_tokens),
                output=numbers.count(row.output_tokens),
                phase=name,
                time=numbers.seconds(getattr(row, end) - getattr(row, start)),
                preempted=tr("; preempted {count} times", count=row.preemptions) if row.preemptions else "",
            )
            for row in shown.itertuples()
        ]
        bars.append(
            go.Bar(
                y=list(range(1, len(shown) + 1)),
                x=finite(shown[end] - shown[start]),
                base=finite(shown[start]),
                orientation="h",
                name=name,
                marker={"color": colour},
                customdata=words,
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    return bars


def _counters(steps: pd.DataFrame, watch: BatchWatch, colours: Palette) -> list[go.Scatter]:
    steps = steps[:: max(1, len(steps) // _MOST_STEPS)]
    words = [
        tr(
            "{running} running, {waiting} waiting; {chunks} prefill chunks of {tokens} tokens, {decodes} decodes",
            running=row.running,
            waiting=row.waiting,
            chunks=row.prefill_chunks,
            tokens=row.prefill_tokens,
            decodes=row.decodes,
        )
        for row in steps.itertuples()
    ]
    used = steps["kv_blocks"] / watch.scheduler.num_blocks
    blocks = [
        tr(
            "{count} of {all} blocks",
            count=numbers.count(count),
            all=numbers.count(watch.scheduler.num_blocks),
        )
        for count in steps["kv_blocks"]
    ]
    return [
        go.Scatter(
            x=finite(steps["started_s"]),
            y=finite(values),
            yaxis=axis,
            name=name,
            mode="lines",
            line={"color": colour, "width": 2, "shape": "hv", "dash": dash},
            customdata=said,
            hovertemplate="%{x:.2f} s: %{customdata}<extra></extra>",
        )
        for name, values, axis, colour, dash, said in (
            (tr("running"), steps["running"], "y2", colours.cash, "solid", words),
            (tr("waiting"), steps["waiting"], "y2", colours.loss, "dot", words),
            (tr("KV blocks used"), used, "y3", colours.training, "solid", blocks),
        )
    ]


def _kinds(trial: LoadTrial) -> str:
    return ", ".join(sorted({tr(KINDS[kind]) for kind in trial.fleet.step_times_from.values()}))
