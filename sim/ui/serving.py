"""Page Serving: what was measured, what one replica sustains, and the fleet that follows demand."""

from __future__ import annotations

import streamlit as st

from engine.profile import describe
from sim.ui import controls, parts

result = controls.run_on_show()
profile = result.profile
parts.heading(
    result, "How fast the model serves, what one replica sustains, and how many replicas that takes."
)
st.badge(
    profile.kind,
    icon=":material/straighten:" if profile.kind == "measured" else ":material/query_stats:",
    color="green" if profile.kind == "measured" else "orange",
    help=f"Step times of {profile.model.name} on {profile.hardware.name}, {profile.created_at}.",
)
parts.figures(result, "latency", "profile", "fleet", "fleet_day")
st.subheader("The profile in numbers")
st.table(dict(describe(profile)), border="horizontal", alt="What the profile measured")
