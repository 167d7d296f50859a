"""The Serving lab's choice of hardware: what a dollar buys on each machine, and the cheapest fleets for a rate."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from engine.errors import InputError
from engine.models.catalog import catalog, find_model
from engine.prediction.engine_efficiency import ENGINES, PRECISIONS
from engine.profile.hardware import CATALOG
from engine.profile.profile import Profile
from engine.utils.progress import Progress
from sim.capacity.configurations import (
    Configuration,
    Refused,
    measured_configurations,
    predicted_configurations,
)
from sim.capacity.goals import Objective, goal_of
from sim.capacity.lab import HardwareComparison, compare_hardware
from sim.capacity.offered_load import traffic_load
from sim.company.simulate import Result
from sim.figures import hardware
from sim.i18n.translate import mark, tr
from sim.ui import components
from sim.ui.jobs import bench
from sim.workload.traffic_classes import TRAFFIC_CLASSES

_PRICED = tuple(row.name for row in CATALOG if row.price_usd_per_hour is not None and row.peak_bf16_flops)
_OURS = "ours"
_ENGINES = {
    **{name: name for name in ENGINES},
    _OURS: mark("our measured profile, carried over"),
}
_AGAINST = {"e2e_p95_s": "E2E p95", "ttft_p95_s": "TTFT p95", "tpot_p95_s": "TPOT p95"}
MIX = ""  # stands for the scenario's own traffic


def draw(result: Result) -> None:
    """Draw the form and the result of the last search."""
    asked = _form(result)
    if asked is not None:
        st.session_state["hardware"] = asked
    asked = st.session_state.get("hardware")
    if asked is None:
        st.caption(
            tr(
                "Ranks machines of the catalog for this model and load: step times are predicted from data sheets and "
                "published benchmarks, or measured where a profile of this model is there; both are marked."
            )
        )
        return
    profile = result.profile

    def compared(progress: Progress) -> HardwareComparison:
        return _compare(asked, profile, progress)

    key = ("hardware", profile.content_hash, repr(asked))
    found = components.outcome(bench().start(key, compared), tr("Comparing hardware"))
    if found is None:
        return
    theme = components.theme()
    with st.grid(2, min_column_width=340, gap="medium"):
        components.chart(hardware.per_dollar(found, theme), "per_dollar", found.per_dollar)
        components.chart(
            hardware.cost_against_latency(found, asked["against"], theme),
            "cost_against_latency",
            found.found.table,
        )
    _ranking(found)


def _form(result: Result) -> dict[str, Any] | None:
    """What to compare; None until the button is pressed."""
    wanted = result.scenario.deployment
    models = list(catalog())
    served = _known_as(wanted.model)
    with st.form("hardware_form"):
        with st.grid(4, min_column_width=200, gap="small"):
            model = st.selectbox(
                tr("Model"),
                models,
                index=models.index(served) if served in models else 0,
                key="hw_model",
                persist_state="session",
            )
            precision = st.selectbox(tr("Weights"), PRECISIONS, key="hw_precision", persist_state="session")
            engine = st.selectbox(
                tr("Serve as"),
                list(_ENGINES),
                format_func=lambda name: tr(_ENGINES[name]),
                key="hw_engine",
                persist_state="session",
                help=tr(
                    "Efficiencies fitted on published benchmarks of an engine, or those of our own profile carried "
                    "over to other hardware by its roofline."
                ),
            )
            traffic = st.selectbox(
                tr("Traffic"),
                [MIX, *TRAFFIC_CLASSES],
                format_func=lambda name: name or tr("as in the scenario"),
                key="hw_traffic",
                persist_state="session",
            )
        accelerators = st.multiselect(
            tr("Accelerators"), _PRICED, list(_PRICED), key="hw_accelerators", persist_state="session"
        )
        with st.grid(5, min_column_width=150, gap="small"):
            ranks = st.multiselect(
                tr("Accelerators per replica"),
                [1, 2, 4, 8],
                [1],
                key="hw_ranks",
                persist_state="session",
                help=tr("Tensor parallelism: so many share a replica."),
            )
            number = partial(st.number_input, persist_state="session", format="%.4g")
            rate_rps = number(tr("Rate (requests per second)"), 0.001, 1e6, 20.0, key="hw_rate")
            ttft_s = number(tr("TTFT p95 (s)"), 0.001, 3600.0, max(wanted.ttft_p95_s, 0.001), key="hw_ttft")
            tpot_s = number(tr("TPOT p95 (s)"), 0.0001, 600.0, max(wanted.tpot_p95_s, 0.0001), key="hw_tpot")
            against = st.selectbox(
                tr("Cost against"),
                list(_AGAINST),
                format_func=lambda name: _AGAINST[name],
                key="hw_against",
                persist_state="session",
            )
        pressed = st.form_submit_button(tr("Compare"), type="primary", icon=":material/leaderboard:")
    if not pressed:
        return None
    mix = {traffic: 1.0} if traffic else dict(result.scenario.market.traffic)
    return {
        "model": model,
        "precision": precision,
        "engine": engine,
        "mix": mix,
        "accelerators": list(accelerators),
        "ranks": sorted(ranks),
        "rate_rps": float(rate_rps),
        "ttft_p95_s": float(ttft_s),
        "tpot_p95_s": float(tpot_s),
        "against": against,
    }


def _compare(asked: dict[str, Any], profile: Profile, progress: Progress) -> HardwareComparison:
    if not asked["accelerators"] or not asked["ranks"]:
        raise InputError("accelerators: found none, allowed is one or more, and how many share a replica")
    ours = asked["engine"] == _OURS
    found: list[Configuration]
    refused: list[Refused]
    found, refused = predicted_configurations(
        asked["model"],
        asked["accelerators"],
        precisions=[asked["precision"]],
        tensor_parallel=asked["ranks"],
        engines=["vllm"] if ours else [asked["engine"]],
        source=profile if ours else None,
    )
    if profile.kind == "measured" and _known_as(profile.model.name) == asked["model"]:
        found += measured_configurations([profile])
    if not found:
        raise InputError(f"no configuration is left: {refused[0].name}: {refused[0].reason}")
    # All get the same requests: those that fit the smallest context and cache among them.
    longest = min(min(each.profile.model.max_context_tokens, each.scheduler.cache_tokens) for each in found)
    load = traffic_load(asked["mix"], max_context_tokens=longest)
    goal = goal_of(Objective(asked["ttft_p95_s"], asked["tpot_p95_s"]))
    comparison = compare_hardware(
        load, goal, asked["rate_rps"], found, against=asked["against"], progress=progress
    )
    comparison.refused[:0] = refused
    return comparison


def _known_as(model: str) -> str:
    """The catalog's name of a model; empty if it has none."""
    try:
        return find_model(model).name
    except InputError:
        return ""


def _ranking(comparison: HardwareComparison) -> None:
    table = comparison.found.table
    if not table.empty:
        st.subheader(tr("Cheapest fleets"))
        shown = pd.DataFrame(
            {
                tr("Replicas"): table["replicas"],
                tr("Configuration"): table["configuration"],
                tr("Step times"): [tr(hardware.KINDS[kind]) for kind in table["kind"]],
                tr("USD per hour"): table["usd_per_hour"],
                tr("from"): table["usd_per_hour_low"],
                tr("to"): table["usd_per_hour_high"],
                tr("USD per million tokens"): table["usd_per_mtok"],
                tr("TTFT p95 (s)"): table["ttft_p95_s"],
                tr("TPOT p95 (s)"): table["tpot_p95_s"],
                tr("E2E p95 (s)"): table["e2e_p95_s"],
                tr("Used"): table["capacity_used"],
            }
        )
        money = st.column_config.NumberColumn(format="$%.2f")
        st.dataframe(
            shown,
            hide_index=True,
            width="stretch",
            column_config={
                tr("USD per hour"): money,
                tr("from"): st.column_config.NumberColumn(
                    format="$%.2f", help=tr("With the 90% interval of the step times.")
                ),
                tr("to"): st.column_config.NumberColumn(
                    format="$%.2f", help=tr("With the 90% interval of the step times.")
                ),
                tr("USD per million tokens"): st.column_config.NumberColumn(format="$%.4f"),
                **{
                    tr(name): st.column_config.NumberColumn(format="%.3g")
                    for name in (mark("TTFT p95 (s)"), mark("TPOT p95 (s)"), mark("E2E p95 (s)"))
                },
                tr("Used"): st.column_config.ProgressColumn(
                    format="percent",
                    min_value=0,
                    max_value=1,
                    help=tr("Share of the fleet's capacity within the objectives that the rate takes."),
                ),
            },
        )
    others = [*comparison.refused, *comparison.found.skipped]
    if others:
        with st.expander(tr("Not offered, and why: {count}", count=len(others)), icon=":material/block:"):
            st.table(
                {components.plain(each.name): components.plain(each.reason) for each in others},
                border="horizontal",
                alt=tr("Configurations that are not offered, and why"),
            )
