"""Page Serving lab: latency against load, a batch at work, capacity per dollar, and the fleet of the company."""

from __future__ import annotations

from typing import Any

import streamlit as st

from engine.utils.progress import Progress
from sim.capacity.goals import Objective
from sim.capacity.lab import BatchWatch, LoadTrial, try_load, watch_batch
from sim.company.simulate import Result
from sim.figures import operations, serving
from sim.i18n import numbers
from sim.i18n.translate import mark, tr
from sim.serving.fleet_config import ROUTERS
from sim.ui import components, sidebar, url_state
from sim.ui.jobs import bench
from sim.ui.pages import serving_hardware
from sim.workload.traffic_classes import TRAFFIC_CLASSES

_PATIENCE_S = 1.0  # most replays take less: no progress bar flashes up
SECTIONS = {
    "load": mark("Latency and load"),
    "batch": mark("Batch time line"),
    "hardware": mark("Hardware"),
    "fleet": mark("Fleet"),
}
_ROUTERS = {
    "least_outstanding": mark("fewest requests"),
    "least_outstanding_tokens": mark("fewest tokens"),
    "round_robin": mark("in turn"),
    "power_of_two": mark("better of two"),
    "prefix_aware": mark("known prefix"),
}
MIX = ""  # stands for the scenario's own traffic


def _latency_and_load(result: Result) -> None:
    trial = _trial(result)
    theme = components.theme()
    with st.grid(2, min_column_width=340, gap="medium"):
        curve = operations.latency(result, theme)
        if trial is not None and trial[1]:
            curve = serving.with_trial(curve, trial[0], theme)
        components.chart(curve, "latency", result.surface.table)
        if trial is not None:
            components.chart(serving.distributions(trial[0], theme), "distributions")
    if trial is not None:
        _numbers(trial[0])


def _trial(result: Result) -> tuple[LoadTrial, bool] | None:
    """The form of a trial, what came out, and whether its traffic is the scenario's; None while it is under way."""
    capacity = f"{result.surface.capacity_rps:.3g}"
    with st.form("trial_form"):
        with st.grid(5, min_column_width=150, gap="small"):
            rate_rps = st.number_input(
                tr("Rate (requests per second)"),
                1e-4,
                1e6,
                float(capacity),
                key=f"trial_rate_{capacity}",  # another scenario begins at its own capacity
                persist_state="session",
                format="%.4g",
                help=tr("Of all requests; arrivals are Poisson."),
            )
            replicas = st.number_input(
                tr("Replicas"), 1, 256, 1, key="trial_replicas", persist_state="session"
            )
            traffic = _traffic("trial_traffic")
            router = st.selectbox(
                tr("Router sends to"),
                ROUTERS,
                format_func=lambda name: tr(_ROUTERS[name]),
                key="trial_router",
                persist_state="session",
            )
            requests = st.select_slider(
                tr("Requests"),
                [1000, 4000, 20_000, 60_000],
                4000,
                key="trial_requests",
                persist_state="session",
                format_func=numbers.count,
            )
        with st.container(horizontal=True, vertical_alignment="bottom"):
            scales = st.toggle(
                tr("Autoscaler"),
                key="trial_scales",
                persist_state="session",
                help=tr(
                    "Orders a replica when more than half a batch is outstanding on each; it comes after two minutes."
                ),
            )
            most = st.number_input(
                tr("Most replicas"), 1, 256, 8, key="trial_most", persist_state="session", width=140
            )
            st.form_submit_button(tr("Run the trial"), type="primary", icon=":material/play_arrow:")
    profile, wanted, scenario = result.profile, _objective(result), result.scenario
    mix = {traffic: 1.0} if traffic else dict(scenario.market.traffic)
    asked: dict[str, Any] = {
        "rate_rps": float(rate_rps),
        "replicas": int(replicas),
        "router": router,
        "requests": int(requests),
        "most_replicas": int(most) if scales else None,
        "price_usd_per_hour": scenario.deployment.replica_price_usd_per_hour,
        "seed": scenario.seed,
    }

    def tried(progress: Progress) -> LoadTrial:
        return try_load(profile, mix, objective=wanted, progress=progress, **asked)

    key = ("trial", profile.content_hash, wanted, tuple(mix.items()), tuple(asked.items()))
    found = components.outcome(bench().start(key, tried, patience_s=_PATIENCE_S), tr("Trial"))
    return None if found is None else (found, traffic == MIX)


def _traffic(key: str) -> str:
    chosen: str = st.selectbox(
        tr("Traffic"),
        [MIX, *TRAFFIC_CLASSES],
        format_func=lambda name: name or tr("as in the scenario"),
        key=key,
        persist_state="session",
    )
    return chosen


def _numbers(trial: LoadTrial) -> None:
    found = trial.figures
    most = len(trial.stats.up_s)
    rows = [
        (
            tr("Goodput (requests/s)"),
            numbers.count(found["goodput_rps"]),
            tr("Requests per second that meet TTFT and TPOT objective both."),
        ),
        (
            tr("Output (tokens/s)"),
            numbers.count(found["output_tokens_per_s"]),
            tr("Output tokens per second of the whole fleet."),
        ),
        (
            tr("Batch, busy"),
            f"{numbers.count(found['batch_mean'])}, {numbers.percent(found['busy_fraction'])}",
            tr(
                "Requests in a step, and the share of the paid time in steps. {count} replicas at most.",
                count=most,
            ),
        ),
        (
            tr("A million tokens"),
            numbers.usd(found.get("usd_per_mtok")),
            tr("Prompt and output; the price of all machine time of the trial, idle time too."),
        ),
    ]
    with st.grid(4, min_column_width=160, gap="small"):
        for label, value, meaning in rows:
            components.metric(label, value, help=meaning)
    measures = (("ttft", tr("TTFT")), ("tpot", tr("TPOT")), ("e2e", tr("E2E")), ("queue", tr("Queue")))
    statistics = (("mean", tr("mean")), ("p50", "p50"), ("p95", "p95"), ("p99", "p99"))
    st.table(
        {
            tr("Latency"): [name for _, name in measures],
            **{
                title: [numbers.seconds(found[f"{measure}_{statistic}_s"]) for measure, _ in measures]
                for statistic, title in statistics
            },
        },
        border="horizontal",
        alt=tr("Latencies of the trial"),
    )


def _batch(result: Result) -> None:
    capacity = f"{result.surface.capacity_rps:.3g}"
    with st.form("batch_form"):
        with st.grid(4, min_column_width=160, gap="small"):
            rate_rps = st.number_input(
                tr("Rate (requests per second)"),
                1e-4,
                1e6,
                float(capacity),
                key=f"batch_rate_{capacity}",
                persist_state="session",
                format="%.4g",
            )
            requests = st.select_slider(
                tr("Requests"), [60, 150, 300, 600], 300, key="batch_requests", persist_state="session"
            )
            cache_percent = st.slider(
                tr("KV cache (% of the profile's)"),
                2,
                100,
                100,
                key="batch_cache",
                persist_state="session",
                help=tr("With a small cache requests are thrown out of the batch and computed again."),
            )
            traffic = _traffic("batch_traffic")
        st.form_submit_button(tr("Watch"), type="primary", icon=":material/timeline:")
    profile, seed = result.profile, result.scenario.seed
    mix = {traffic: 1.0} if traffic else dict(result.scenario.market.traffic)
    asked = (float(rate_rps), int(requests), cache_percent / 100, seed)

    def watched(progress: Progress) -> BatchWatch:
        return watch_batch(
            profile,
            mix,
            asked[0],
            requests=asked[1],
            cache_share=asked[2],
            seed=seed,
            progress=progress,
        )

    key = ("batch", profile.content_hash, tuple(mix.items()), asked)
    found = components.outcome(bench().start(key, watched, patience_s=_PATIENCE_S), tr("Batch time line"))
    if found is None:
        return
    components.chart(serving.batch_time_line(found, components.theme()), "batch_time_line", found.steps)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            tr("Time line for Perfetto"),
            found.trace_json,
            file_name="batch.perfetto.json",
            mime="application/json",
            icon=":material/download:",
            on_click="ignore",
            key="perfetto",
        )
        st.caption(tr("Every step and request, to be opened at ui.perfetto.dev or chrome://tracing."))


def _objective(result: Result) -> Objective:
    wanted = result.scenario.deployment
    return Objective(wanted.ttft_p95_s, wanted.tpot_p95_s)


shown = sidebar.run_on_show()
components.heading(
    shown, tr("How fast the model serves, what one replica sustains, and what hardware gives for a dollar.")
)
measured = shown.profile.kind == "measured"
st.badge(
    tr("measured step times") if measured else tr("predicted step times"),
    icon=":material/straighten:" if measured else ":material/query_stats:",
    color="green" if measured else "orange",
    help=tr(
        "Step times of {model} on {machine}, {date}; requests, queues and batches are simulated.",
        model=shown.profile.model.name,
        machine=shown.profile.hardware.name,
        date=shown.profile.created_at[:10],
    ),
)
section = url_state.choice(
    st.segmented_control,
    tr("What to look at"),
    {name: tr(title) for name, title in SECTIONS.items()},
    key="lab",
    label_visibility="collapsed",
)
if section == "load":
    _latency_and_load(shown)
elif section == "batch":
    _batch(shown)
elif section == "hardware":
    serving_hardware.draw(shown)
else:
    components.figures(shown, "fleet", "fleet_day")
