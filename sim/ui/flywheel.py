"""Page Flywheel: usage becomes data, data a better model, a better model customers."""

from __future__ import annotations

import streamlit as st

from sim import human
from sim.ui import controls, parts

result = controls.run_on_show()
monthly, loop = result.monthly, result.loop
parts.heading(result, "The loop: usage becomes data, data a better model, a better model more customers.")
with st.grid(5, min_column_width=150, gap="small"):
    parts.metric(
        "Training pool",
        f"{human.count(loop['pool_tokens'])} tokens",
        monthly["data_pool_tokens"],
        "at the end",
    )
    parts.metric("Training", f"{loop['training_flop']:.1e} FLOP", monthly["training_flop"], "over the run")
    parts.metric(
        "Model quality",
        f"{loop['quality_end']:.2f}",
        monthly["model_quality"],
        f"from {loop['quality_start']:.2f}",
        "Index exp(−k (loss − E)): 1 is a perfect model. Predicted by the scaling law.",
    )
    parts.metric("Paying customers", human.count(loop["customers_end"]), monthly["customers"], "at the end")
    parts.metric(
        "Usage",
        f"{human.count(loop['served_tokens'])} tokens",
        monthly["prompt_tokens"] + monthly["output_tokens"],
        f"{human.count(loop['feedback_tokens'])} fed back",
    )
parts.figures(result, "flywheel")
parts.figures(result, "customers", "versions")
st.subheader("What happened")
events = result.events.copy()
events["month"] = [monthly["month"].iloc[index] for index in events["month_index"]]
stages = st.pills("Stages", sorted(events["stage"].unique()), selection_mode="multi", key="stages")
shown = events[events["stage"].isin(stages)] if stages else events
st.dataframe(
    shown[["month", "day", "stage", "what"]],
    hide_index=True,
    height=320,
    alt="Events of the run in order of time",
)
