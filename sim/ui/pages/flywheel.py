"""Page Flywheel: usage becomes data, data a better model, a better model customers; played through the months."""

from __future__ import annotations

import streamlit as st

from sim.accounting.ledger import MICRO_PER_USD
from sim.figures.finance import money_by_month
from sim.figures.flywheel import loop_by_month, loop_film
from sim.i18n import numbers
from sim.i18n.event_messages import STAGES, event_in_words
from sim.i18n.translate import tr
from sim.scenario.metrics import MONTHLY
from sim.ui import components, sidebar

result = sidebar.run_on_show()
monthly, loop = result.monthly, result.loop
components.heading(
    result, tr("The loop: usage becomes data, data a better model, a better model more customers.")
)
with st.grid(5, min_column_width=140, gap="small"):
    components.metric(
        tr("Training pool"),
        tr("{count} tokens", count=numbers.count(loop["pool_tokens"])),
        monthly["data_pool_tokens"],
        tr("at the end"),
    )
    components.metric(
        tr("Training"), f"{loop['training_flop']:.1e} FLOP", monthly["training_flop"], tr("over the run")
    )
    components.metric(
        tr("Model quality"),
        f"{loop['quality_end']:.2f}",
        monthly["model_quality"],
        tr("from {quality}", quality=f"{loop['quality_start']:.2f}"),
        tr("Index exp(−k (loss − E)): 1 is a perfect model. Predicted by the scaling law."),
    )
    components.metric(
        tr(MONTHLY["customers"].title),
        numbers.count(loop["customers_end"]),
        monthly["customers"],
        tr("at the end"),
    )
    components.metric(
        tr("Usage"),
        tr("{count} tokens", count=numbers.count(loop["served_tokens"])),
        monthly["prompt_tokens"] + monthly["output_tokens"],
        tr("{count} fed back", count=numbers.count(loop["feedback_tokens"])),
    )
flows = loop_by_month(result).set_index(monthly["month"])
components.chart(
    loop_film(result, components.theme()),
    "loop_film",
    flows.join((money_by_month(result) / MICRO_PER_USD).add_suffix("_usd")).reset_index(),
)
components.figures(result, "flywheel", "versions")
components.figures(result, "customers")
st.subheader(tr("What happened"))
events = result.events.copy()
events["what"] = list(map(event_in_words, events["kind"], events["values"]))
events["month"] = [monthly["month"].iloc[index] for index in events["month_index"]]
stages = st.pills(
    tr("Stages"),
    sorted(events["stage"].unique()),
    selection_mode="multi",
    key="stages",
    format_func=lambda stage: tr(STAGES[stage]),
    bind="query-params",
)
shown = events[events["stage"].isin(stages)] if stages else events
shown = shown.assign(stage=[tr(STAGES[stage]) for stage in shown["stage"]])
st.dataframe(
    shown[["month", "day", "stage", "what"]],
    hide_index=True,
    height=320,
    column_config={"month": tr("Month"), "day": tr("Day"), "stage": tr("Stage"), "what": tr("What")},
    alt=tr("Events of the run in order of time"),
)
