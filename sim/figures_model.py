"""Figures about the model and the machines: the fleet, latency, the flywheel, versions, the measured profile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from sim import human
from sim.figures import MONTH_AXIS, bars, finite, line
from sim.theme import Palette, Theme, layout, palette

if TYPE_CHECKING:
    from sim.company import Result


def fleet_by_month(result: Result, theme: Theme = "light") -> go.Figure:
    """Replicas by month (reserved, on demand, peak) and how busy they are."""
    colours, table = palette(theme), result.monthly
    on_demand = table.assign(on_demand=(table["replicas_mean"] - table["replicas_reserved"]).clip(lower=0))
    used = line(table, "utilisation", "utilisation", colours.cash, human.percent)
    used.yaxis = "y2"
    title = (
        f"The fleet peaks at {human.count(result.headline['replicas_peak'])} replicas "
        f"and is {human.percent(result.headline['utilisation_mean'])} used on average"
    )
    return go.Figure(
        [
            bars(on_demand, "replicas_reserved", "reserved (mean)", colours.revenue, human.count),
            bars(on_demand, "on_demand", "on demand (mean)", colours.on_demand, human.count),
            line(table, "replicas_peak", "peak", colours.demand, human.count, dash="dot"),
            used,
        ],
        layout(
            title,
            "Above: share of the capacity under the latency objective that is used. Below: replicas. Simulated",
            colours,
            xaxis={**MONTH_AXIS, "anchor": "y"},
            yaxis={"title": {"text": "replicas"}, "domain": [0, 0.68], "exponentformat": "B"},
            yaxis2={"title": {"text": "used"}, "domain": [0.76, 1], "tickformat": ".0%", "range": [0, 1.05]},
        ),
    )


def fleet_by_hour(result: Result, theme: Theme = "light") -> go.Figure:
    """Reserved and on-demand replicas against demand by hour of day, in the last month."""
    colours = palette(theme)
    day = result.daily_fleet[result.daily_fleet["month_index"] == result.daily_fleet["month_index"].max()]
    hours = [int(hour) for hour in day["hour_of_day"]]
    needed = day["demand_rps"] / result.surface.capacity_rps
    low, high = float(day["demand_rps"].min()), float(day["demand_rps"].max())
    swing = f"{high / low:.1f} times" if low > 0 else "far more than"
    paid_idle = bool((day["replicas_reserved"] > needed).any())
    title = f"At the busiest hour demand is {swing} that of the quietest" + (
        "; some reserved replicas idle in the quiet hours" if paid_idle else ""
    )

    def stack(column: str, name: str, colour: str) -> go.Bar:
        values = day[column]
        return go.Bar(
            x=hours,
            y=finite(values),
            name=name,
            marker={"color": colour},
            customdata=[human.count(value) for value in values],
            hovertemplate="%{customdata}",
        )

    demand = go.Scatter(
        x=hours,
        y=finite(needed),
        name="needed for the demand",
        mode="lines+markers",
        line={"color": colours.demand, "width": 2, "shape": "spline"},
        customdata=[
            f"{human.count(need)} ({human.count(rate)} requests/s)"
            for need, rate in zip(needed, day["demand_rps"], strict=True)
        ],
        hovertemplate="%{customdata}",
    )
    return go.Figure(
        [
            stack("replicas_reserved", "reserved", colours.revenue),
            stack("replicas_on_demand", "on demand", colours.on_demand),
            demand,
        ],
        layout(
            title,
            f"Mean week of the last month ({result.monthly['month'].iloc[-1]}), simulated",
            colours,
            xaxis={"title": {"text": "hour of day (h)"}, "dtick": 3, "showgrid": False, "zeroline": False},
            yaxis={"title": {"text": "replicas"}, "exponentformat": "B"},
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
            customdata=[human.seconds(value) for value in table[column]],
            hovertemplate="%{customdata}",
        )

    def objective(value: float, name: str, colour: str) -> go.Scatter:
        return go.Scatter(
            x=[rates[0], rates[-1]],
            y=[value, value],
            name=f"{name} objective ({human.seconds(value)})",
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
            f"One replica sustains {human.count(surface.capacity_rps)} requests per second within the objective",
            "Time to first token (TTFT) and per output token (TPOT); request by request on "
            f"{result.profile.kind} step times",
            colours,
            xaxis={"title": {"text": "requests per second on one replica"}, "rangemode": "tozero"},
            yaxis={
                "title": {"text": "latency (s, log scale)"},
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
        text="capacity ",
        showarrow=False,
        xanchor="right",
        font={"color": colours.cash},
    )
    return figure


def flywheel(result: Result, theme: Theme = "light") -> go.Figure:
    """The loop data → training → model → usage → data; widths are tokens of the training pool."""
    colours, loop = palette(theme), result.loop
    feedback, bought, held = (
        loop[k] for k in ("feedback_tokens", "source_tokens_kept", "initial_pool_tokens")
    )
    pool = max(feedback + bought + held, 1.0)
    nodes = [
        f"held at the start<br>{human.count(held)} tokens",
        f"bought, crawled<br>{human.count(bought)} tokens kept",
        f"feedback of users<br>{human.count(feedback)} tokens kept",
        # On a narrow screen these two would lie over each other: one stands high, the other low.
        f"training pool<br>{human.count(loop['pool_tokens'])} tokens<br> <br> <br> ",
        f" <br> <br> <br>model<br>quality {loop['quality_start']:.2f} → {loop['quality_end']:.2f}",
    ]
    read = (
        f"{human.count(loop['trained_tokens'])} tokens read in {loop['training_flop']:.1e} FLOP of training: "
        f"{loop['releases']:.0f} releases, {loop['failed_gates']:.0f} failed gates"
    )
    given_back = (
        f"{human.count(loop['served_tokens'])} tokens served → {human.count(loop['opted_in_tokens'])} opted in "
        f"→ {human.count(feedback)} kept"
    )
    links = [
        (0, 3, held, colours.link, f"{human.count(held)} tokens held at the start"),
        (
            1,
            3,
            bought,
            colours.link,
            f"{human.count(bought)} of {human.count(loop['source_tokens'])} tokens kept",
        ),
        (2, 3, feedback, colours.link_feedback, given_back),
        (3, 4, pool, colours.link, read),
    ]
    # What users give back enters at the left: a Sankey with a loop drawn round it is unreadable.
    kept = [link for link in links if link[2] > 0]
    source, target, value, colour, words = (list(column) for column in zip(*kept, strict=True))
    share = feedback / pool
    title = (
        f"Feedback from usage is {human.percent(share)} of the training pool; "
        f"quality rises from {loop['quality_start']:.2f} to {loop['quality_end']:.2f}"
        if feedback > 0
        else f"No feedback enters the pool; quality goes from {loop['quality_start']:.2f} to {loop['quality_end']:.2f}"
    )
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
            f"Widths: tokens of the pool. Green, the way back: {given_back}. Simulated, whole run",
            colours,
            hovermode="closest",
        ),
    )
    figure.update_layout(margin={"t": 110, "b": 30})
    return figure


def versions(result: Result, theme: Theme = "light") -> go.Figure:
    """Quality of the model in use, month by month, against the competitor; releases and failed gates marked."""
    colours, table = palette(theme), result.monthly
    ours = line(table, "model_quality", "our model", colours.training, lambda v: f"{v:.3f}")
    ours.line.shape = "hv"
    ours.customdata = [
        f"{quality:.3f} (version {version}, loss {loss:.3f} nats/token)"
        for quality, version, loss in zip(
            table["model_quality"], table["model_version"], table["model_loss"], strict=True
        )
    ]
    traces: list[Any] = [
        ours,
        line(
            table, "competitor_quality", "best competitor", colours.other, lambda v: f"{v:.3f}", dash="dash"
        ),
    ]
    traces += _event_marks(result, colours)
    ahead = float(table["model_quality"].iloc[-1]) - float(table["competitor_quality"].iloc[-1])
    title = (
        f"{result.loop['releases']:.0f} releases and {result.loop['failed_gates']:.0f} failed gates: the model ends "
        f"{abs(ahead):.2f} {'ahead of' if ahead >= 0 else 'behind'} the best competitor"
    )
    return go.Figure(
        traces,
        layout(
            title,
            "Quality index exp(−k (loss − E)), 1 is a perfect model; predicted by the scaling law",
            colours,
            xaxis=MONTH_AXIS,
            yaxis={"title": {"text": "quality (index, 0 to 1)"}},
        ),
    )


def profile_fit(result: Result, theme: Theme = "light") -> go.Figure:
    """Measured step times against those that the fitted model predicts; points the fit never saw stand out."""
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
                name="predicted = measured",
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
                    traces.append(_points(chosen, kind, held_out, getattr(colours, colour)))
        fit = profile.fit
        title = (
            f"Step times are predicted within {human.percent(fit.median_relative_error, 1)} (median) and "
            f"{human.percent(fit.p95_relative_error, 1)} (p95) on {fit.held_out_points} held-out steps"
        )
    else:
        title = "This profile is predicted: no step of it was measured"
    return go.Figure(
        traces,
        layout(
            title,
            f"{profile.model.name} on {profile.hardware.name}, {profile.created_at[:10]}; "
            "open markers were held out of the fit",
            colours,
            xaxis={"title": {"text": "measured step time (s, log scale)"}, "type": "log", "dtick": "D2"},
            yaxis={"title": {"text": "predicted step time (s, log scale)"}, "type": "log", "dtick": "D2"},
            hovermode="closest",
            height=440,
        ),
    )


def _points(chosen: list[tuple[Any, float]], kind: str, held_out: bool, colour: str) -> go.Scatter:
    words = [
        f"{kind}: {sum(tokens for tokens, _ in point.prefill)} prompt tokens, {len(point.decode_contexts)} decodes<br>"
        f"measured {human.seconds(point.time_s)}, predicted {human.seconds(time_s)}"
        for point, time_s in chosen
    ]
    return go.Scatter(
        x=[point.time_s for point, _ in chosen],
        y=[time_s for _, time_s in chosen],
        mode="markers",
        name=f"{kind}, held out" if held_out else kind,
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
    training = events[events["stage"] == "training"]
    passed = training["what"].str.contains("passed the gate")
    marks = []
    for name, rows, symbol, colour in (
        ("passed the gate", training[passed], "star", colours.cash),
        ("failed the gate", training[training["what"].str.contains("gate failed")], "x", colours.loss),
    ):
        if len(rows):
            months = rows["month_index"].to_numpy()
            marks.append(
                go.Scatter(
                    x=[str(table["month"].iloc[month]) for month in months],
                    y=[float(table["model_quality"].iloc[month]) for month in months],
                    name=name,
                    mode="markers",
                    marker={"symbol": symbol, "size": 11, "color": colour},
                    customdata=list(rows["what"]),
                    hovertemplate="%{customdata}<extra></extra>",
                )
            )
    return marks
