"""Page Overview: the run on one screen; the band of other random outcomes joins when it is computed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from engine.utils.progress import Progress
from sim.figures.cash_band import cash_with_ruin
from sim.figures.money import cash
from sim.i18n import numbers
from sim.i18n.translate import tr
from sim.scenario.metrics import MONTHLY, OUTCOMES
from sim.ui import components, sidebar
from sim.ui.jobs import Job, bench

if TYPE_CHECKING:
    from sim.study.monte_carlo import MonteCarlo

_RUNS = 100
_STILL_S = 1.5


def many_runs(progress: Progress) -> MonteCarlo:
    """Monte Carlo study of the company: other random numbers, uncertain assumptions drawn."""
    from sim.study.monte_carlo import around
    from sim.study.runs.options import RunOptions

    # One core: the other one draws the pages.
    return around(result, _RUNS, fans=("cash_usd",), options=RunOptions(workers=1, progress=progress))


def cash_card() -> None:
    """Draw cash; the band of the Monte Carlo study joins when it is done."""
    unsure = {key: str(value) for key, value in result.scenario.uncertain.items()}
    key = (
        "many_runs",
        result.scenario.canonical_json(),
        str(unsure),
        result.seed,
        result.profile.content_hash,
    )
    before = st.session_state.get("many_runs_key")
    if before is not None and before != key:  # of a company no longer shown
        last = bench().find(before)
        if last is not None and not last.future.done():
            bench().forget(before)
    st.session_state["many_runs_key"] = key
    job: Job[MonteCarlo] | None = bench().find(key)
    if job is None:
        components.chart(cash(result, components.theme()), "cash", beneath=lambda: start_when_unchanged(key))
    elif job.future.done() and job.future.exception() is None:
        components.chart(cash_with_ruin(result, job.future.result(), components.theme()), "cash")
    else:
        found = job
        components.chart(
            cash(result, components.theme()),
            "cash",
            beneath=lambda: components.outcome(found, tr("Other luck")),
        )


@components.fragment(run_every=_STILL_S / 2)
def start_when_unchanged(key: tuple[object, ...]) -> None:
    """Start the study once the company has not been changed for `_STILL_S` seconds."""
    changed, since_s = st.session_state.get("many_runs_waits", (None, 0.0))
    if changed != key:
        st.session_state["many_runs_waits"] = (key, time.monotonic())
    elif time.monotonic() - since_s >= _STILL_S:
        bench().start(key, many_runs, lane="idle")
        st.rerun()
    st.caption(tr("What other luck would make of it is tried in a moment."))


result = sidebar.run_on_show()
monthly, found = result.monthly, result.headline
first, last = monthly["month"].iloc[0], monthly["month"].iloc[-1]
components.heading(
    result,
    tr(
        "{first} to {last} · served by {model}, {kind} on {machine} ({date})",
        first=first,
        last=last,
        model=result.profile.model.name,
        kind=tr(result.profile.kind),
        machine=result.profile.hardware.name,
        date=result.profile.created_at[:10],
    ),
)

margin = monthly["gross_margin"].clip(lower=-2)  # the first months would flatten all others
runway = monthly["runway_months"]
with st.grid(4, min_column_width=160, gap="small"):
    components.metric(
        tr(OUTCOMES["arr_usd_end"].label),
        numbers.usd(found["arr_usd_end"]),
        monthly["arr_usd"],
        tr("{revenue} revenue in all", revenue=numbers.usd(found["revenue_usd_total"])),
        tr(OUTCOMES["arr_usd_end"].meaning),
    )
    components.metric(
        tr(MONTHLY["gross_margin"].label),
        numbers.percent(found["gross_margin_last12"]),
        margin,
        tr("last twelve months"),
        tr(OUTCOMES["gross_margin_last12"].meaning),
    )
    out = str(found["cash_out_month"])
    components.metric(
        tr(OUTCOMES["cash_usd_end"].label),
        numbers.usd(found["cash_usd_end"]),
        monthly["cash_usd"],
        tr("lowest {cash}", cash=numbers.usd(found["cash_usd_min"]))
        if out == "never"
        else tr("runs out in {month}", month=out),
        tr(OUTCOMES["cash_usd_end"].meaning),
    )
    components.metric(
        tr(OUTCOMES["runway_months_min"].label),
        numbers.months(runway.min()),
        runway[np.isfinite(runway)],
        tr("break-even in {month}", month=found["breakeven_month"])
        if found["breakeven_month"] != "never"
        else tr("no break-even in this run"),
        tr(
            "Months that the cash lasts at the burn of three months. Break-even: the first of three profitable months."
        ),
    )
    components.metric(
        tr(MONTHLY["customers"].title),
        numbers.count(found["customers_end"]),
        monthly["customers"],
        f"{tr(MONTHLY['ltv_to_cac'].label)} {numbers.count(found['ltv_to_cac_last'], 2)}",
        tr("At the end of the run; lifetime value against the cost of winning a customer."),
    )
    components.metric(
        tr("Cost per 1M tokens"),
        numbers.usd(found["serving_cost_usd_per_mtok_last"]),
        monthly["serving_cost_usd_per_mtok"],
        tr("sold for {price}", price=numbers.usd(found["price_usd_per_mtok_last"])),
        tr(OUTCOMES["serving_cost_usd_per_mtok_last"].meaning),
    )
    components.metric(
        tr("Compute of revenue"),
        numbers.percent(found["compute_share_of_revenue"]),
        monthly["compute_serving_usd"] + monthly["compute_training_usd"],
        tr("serving and training"),
        tr(OUTCOMES["compute_share_of_revenue"].meaning),
    )
    components.metric(
        tr("Fleet at its peak"),
        tr("{count} replicas", count=numbers.count(found["replicas_peak"])),
        monthly["replicas_mean"],
        tr("{share} used on average", share=numbers.percent(found["utilisation_mean"])),
        tr("Machines at the busiest hour; use of what they can carry within the latency objective."),
    )
components.let_paint()
with st.grid(2, min_column_width=340, gap="small"):
    components.figure(result, "revenue")
    components.figure(result, "margin")
    cash_card()
    components.figure(result, "fleet")
    components.figure(result, "cost_per_mtok")
    components.figure(result, "customers")
