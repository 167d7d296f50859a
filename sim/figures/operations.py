"""Figures about the model and the machines: the fleet, latency, the flywheel, versions, the measured profile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from sim.figures.base import bars, finite, line, month_axis
from sim.figures.theme import Palette, Theme, layout, palette
from sim.i18n import numbers
from sim.i18n.event_messages import event_in_words
from sim.i18n.translate import tr

if TYPE_CHECKING:
    from sim.company.simulate import Result


def fleet_by_month(result: Result, theme: Theme = "light") -> go.Figure:
    """Replicas by month (reserved, on demand, peak) and how busy they are."""
    colours, table = palette(theme), result.monthly
    on_demand = table.assign(on_demand=(table["replicas_mean"] - table["replicas_reserved"]).clip(lower=0))
    used = line(table, "utilisation", tr("utilisation"), colours.cash, numbers.percent)
    used.yaxis = "y2"
    title = tr(
        "The fleet peaks at {replicas} replicas and is {used} used on average",
        replicas=numbers.count(result.headline["replicas_peak"]),
        used=numbers.percent(result.headline["utilisation_mean"]),
    )
    return go.Figure(
        [
            bars(on_demand, "replicas_reserved", tr("reserved (mean)"), colours.revenue, numbers.count),
            bars(on_demand, "on_demand", tr("on demand (mean)"), colours.on_demand, numbers.count),
            line(table, "replicas_peak", tr("peak"), colours.demand, numbers.count, dash="dot"),
            used,
        ],
        layout(
            title,
            tr(
                "Above: share of the capacity under the latency objective that is used. Below: replicas. Simulated"
            ),
            colours,
            xaxis={**month_axis(), "anchor": "y"},
            yaxis={"title": {"text": tr("replicas")}, "domain": [0, 0.68], "exponentformat": "B"},
            yaxis2={
                "title": {"text": tr("used")},
                "domain": [0.76, 1],
                "tickformat": ".0%",
                "range": [0, 1.05],
            },
        ),
    )


def fleet_by_hour(result: Result, theme: Theme = "light") -> go.Figure:
    """Reserved and on-demand replicas against demand by hour of day, in the last month."""
    colours = palette(theme)
    day = result.daily_fleet[result.daily_fleet["month_index"] == result.daily_fleet["month_index"].max()]
    hours = [int(hour) for hour in day["hour_of_day"]]
    needed = day["demand_rps"] / result.surface.capacity_rps
    low, high = float(day["demand_rps"].min()), float(day["demand_rps"].max())
    title = tr("At the busiest hour demand is far more than at the quietest")
    if low > 0:
        title = tr(
            "At the busiest hour demand is {times} times that of the quietest", times=f"{high / low:.1f}"
        )
    if bool((day["replicas_reserved"] > needed).any()):
        title += tr("; some reserved replicas idle in the quiet hours")

    def stack(column: str, name: str, colour: str) -> go.Bar:
        values = day[column]
        return go.Bar(
            x=hours,
            y=finite(values),
            name=name,
            marker={"color": colour},
            customdata=[numbers.count(value) for value in values],
            hovertemplate="%{customdata}",
        )

    demand = go.Scatter(
        x=hours,
        y=finite(needed),
        name=tr("needed for the demand"),
        mode="lines+markers",
        line={"color": colours.demand, "width": 2, "shape": "spline"},
        customdata=[
            tr("{replicas} ({rate} requests/s)", replicas=numbers.count(need), rate=numbers.count(rate))
            for need, rate in zip(needed, day["demand_rps"], strict=True)
        ],
        hovertemplate="%{customdata}",
    )
    return go.Figure(
        [
            stack("replicas_reserved", tr("reserved"), colours.revenue),
            stack("replicas_on_demand", tr("on demand"), colours.on_demand),
            demand,
        ],
        layout(
            title,
            tr("Mean week of the last month ({month}), simulated", month=result.monthly["month"].iloc[-1]),
            colours,
            xaxis={
                "title": {"text": tr("hour of day (h)")},
                "dtick": 3,
                "showgrid": False,
                "zeroline": False,
            },
            yaxis={"title": {"text": tr("replicas")}, "exponentformat": "B"},
        ),
    )


def latency(result: Result, theme: Theme = "light") -> go.Figure:
    """Latency of one replica against its load, the objectives, and the capacity that follows."""
    colours, table, surface = palette(theme), result.surface.table, result.surface
    wanted = result.scenario.deployment
    rates = finite(table["rate_rps"])

    def percentile(column: str, name: str, colour: str, dash: str) -> go.Scatter:
        return go.Scatter(
            x=rates,
            y=finite(table[column]),
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": dash},
            customdata=[numbers.seconds(value) for value in table[column]],
            hovertemplate="%{customdata}",
        )

    def objective(value: float, name: str, colour: str) -> go.Scatter:
        return go.Scatter(
            x=[rates[0], rates[-1]],
            y=[value, value],
            name=tr("{name} objective ({value})", name=name, value=numbers.seconds(value)),
            mode="lines",
            line={"color": colour, "width": 1.5, "dash": "dash"},
            hoverinfo="skip",
        )

    top = float(max(table["ttft_p95_s"].max(), wanted.ttft_p95_s)) * 2
    bottom = float(min(table["tpot_p50_s"].min(), wanted.tpot_p95_s)) / 2
    figure = go.Figure(
        [
            percentile("ttft_p95_s", "TTFT p95", colours.revenue, "solid"),
            percentile("ttft_p50_s", "TTFT p50", colours.revenue, "dot"),
            percentile("tpot_p95_s", "TPOT p95", colours.serving, "solid"),
            percentile("tpot_p50_s", "TPOT p50", colours.serving, "dot"),
            objective(wanted.ttft_p95_s, "TTFT", colours.revenue),
            objective(wanted.tpot_p95_s, "TPOT", colours.serving),
        ],
        layout(
            tr(
                "One replica sustains {rate} requests per second within the objective",
                rate=numbers.count(surface.capacity_rps),
            ),
            tr(
                "Time to first token (TTFT) and per output token (TPOT); request by request on {kind} step times",
                kind=tr(result.profile.kind),
            ),
            colours,
            xaxis={"title": {"text": tr("requests per second on one replica")}, "rangemode": "tozero"},
            yaxis={
                "title": {"text": tr("latency (s, log scale)")},
                "type": "log",
                "range": [float(np.log10(bottom)), float(np.log10(top))],
                "dtick": 1,
            },
            height=440,
        ),
    )
    figure.add_shape(
        type="line",
        x0=surface.capacity_rps,
        x1=surface.capacity_rps,
        y0=0,
        y1=1,
        yref="paper",
        line={"color": colours.cash, "width": 2},
    )
    figure.add_annotation(
        x=surface.capacity_rps,
        y=0.03,
        yref="paper",
        text=tr("capacity") + " ",
        showarrow=False,
        xanchor="right",
        font={"color": colours.cash},
    )
    return figure


def versions(result: Result, theme: Theme = "light") -> go.Figure:
    """Quality of the model in use, month by month, against the competitor; releases and failed gates marked."""
    colours, table = palette(theme), result.monthly
    ours = line(table, "model_quality", tr("our model"), colours.training, lambda v: f"{v:.3f}")
    ours.line.shape = "hv"
    ours.customdata = [
        tr(
            "{quality} (version {version}, loss {loss} nats/token)",
            quality=f"{quality:.3f}",
            version=version,
            loss=f"{loss:.3f}",
        )
        for quality, version, loss in zip(
            table["model_quality"], table["model_version"], table["model_loss"], strict=True
        )
    ]
    traces: list[Any] = [
        ours,
        line(
            table,
            "competitor_quality",
            tr("best competitor"),
            colours.other,
            lambda v: f"{v:.3f}",
            dash="dash",
        ),
    ]
    traces += _event_marks(result, colours)
    ahead = float(table["model_quality"].iloc[-1]) - float(table["competitor_quality"].iloc[-1])
    counts = {
        "releases": f"{result.loop['releases']:.0f}",
        "failed": f"{result.loop['failed_gates']:.0f}",
        "gap": f"{abs(ahead):.2f}",
    }
    if ahead >= 0:
        title = tr(
            "{releases} releases and {failed} failed gates: the model ends {gap} ahead of the best competitor",
            **counts,
        )
    else:
        title = tr(
            "{releases} releases and {failed} failed gates: the model ends {gap} behind the best competitor",
            **counts,
        )
    return go.Figure(
        traces,
        layout(
            title,
            tr("Quality index exp(−k (loss − E)), 1 is a perfect model; predicted by the scaling law"),
            colours,
            xaxis=month_axis(),
            yaxis={"title": {"text": tr("quality (index, 0 to 1)")}},
        ),
    )


def profile_fit(result: Result, theme: Theme = "light") -> go.Figure:
    """Measured step times against those that the fitted model predicts; points that were not fitted stand out."""
    colours, profile = palette(theme), result.profile
    points = profile.measurements
    traces: list[Any] = []
    if points:
        predicted = [profile.step_time(point.prefill, point.decode_contexts) for point in points]
        ends = [min(point.time_s for point in points) / 1.3, max(point.time_s for point in points) * 1.3]
        traces.append(
            go.Scatter(
                x=ends,
                y=ends,
                mode="lines",
                name=tr("predicted = measured"),
                line={"color": colours.muted, "width": 1},
                hoverinfo="skip",
            )
        )
        for kind, colour in (("prefill", "revenue"), ("decode", "serving"), ("mixed", "cash")):
            for held_out in (False, True):
                chosen = [
                    (p, t)
                    for p, t in zip(points, predicted, strict=True)
                    if p.kind == kind and p.held_out == held_out
                ]
                if chosen:
                    traces.append(_points(chosen, tr(kind), held_out, getattr(colours, colour)))
        fit = profile.fit
        title = tr(
            "Step times are predicted within {median} (median) and {p95} (p95) on {points} held-out steps",
            median=numbers.percent(fit.median_relative_error, 1),
            p95=numbers.percent(fit.p95_relative_error, 1),
            points=fit.held_out_points,
        )
    else:
        title = tr("This profile is predicted: no step of it was measured")
    return go.Figure(
        traces,
        layout(
            title,
            tr(
                "{model} on {machine}, {date}; open markers were held out of the fit",
                model=profile.model.name,
                machine=profile.hardware.name,
                date=profile.created_at[:10],
            ),
            colours,
            xaxis={"title": {"text": tr("measured step time (s, log scale)")}, "type": "log", "dtick": "D2"},
            yaxis={"title": {"text": tr("predicted step time (s, log scale)")}, "type": "log", "dtick": "D2"},
            hovermode="closest",
            height=440,
        ),
    )


def _points(chosen: list[tuple[Any, float]], kind: str, held_out: bool, colour: str) -> go.Scatter:
    words = [
        tr(
            "{kind}: {tokens} prompt tokens, {decodes} decodes<br>measured {measured}, predicted {predicted}",
            kind=kind,
            tokens=sum(tokens for tokens, _ in point.prefill),
            decodes=len(point.decode_contexts),
            measured=numbers.seconds(point.time_s),
            predicted=numbers.seconds(time_s),
        )
        for point, time_s in chosen
    ]
    return go.Scatter(
        x=[point.time_s for point, _ in chosen],
        y=[time_s for _, time_s in chosen],
        mode="markers",
        name=tr("{kind}, held out", kind=kind) if held_out else kind,
        marker={
            "color": colour,
            "size": 10 if held_out else 7,
            "symbol": "circle-open" if held_out else "circle",
            "line": {"width": 2 if held_out else 0, "color": colour},
        },
        customdata=words,
        hovertemplate="%{customdata}<extra></extra>",
    )


def _event_marks(result: Result, colours: Palette) -> list[go.Scatter]:
    """Releases (stars) and failed gates (crosses) as the training stage reported them."""
    table, events = result.monthly, result.events
    marks = []
    for name, kind, symbol, colour in (
        (tr("passed the gate"), "gate_passed", "star", colours.cash),
        (tr("failed the gate"), "gate_failed", "x", colours.loss),
    ):
        rows = events[events["kind"] == kind]
        if len(rows):
            months = rows["month_index"].to_numpy()
            marks.append(
                go.Scatter(
                    x=[str(table["month"].iloc[month]) for month in months],
                    y=[float(table["model_quality"].iloc[month]) for month in months],
                    name=name,
                    mode="markers",
                    marker={"symbol": symbol, "size": 11, "color": colour},
                    customdata=list(map(event_in_words, rows["kind"], rows["values"])),
                    hovertemplate="%{customdata}<extra></extra>",
                )
            )
    return marks
