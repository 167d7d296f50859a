"""The web app: navigation only. `flywheel app` or `streamlit run app.py`; pages and controls are in `sim/ui/`."""

from __future__ import annotations

import streamlit as st

from sim.ui import controls

# A wheel, drawn here: an icon named ":material/…:" in this place is fetched from Google (those of pages are not).
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke="#0072b2" stroke-width="3">'
    '<path d="M20 12a8 8 0 1 1-3-6.2"/><path d="M20 2v5h-5"/></svg>'
)
st.set_page_config(page_title="Model flywheel", page_icon=ICON, layout="wide")

page = st.navigation(
    [
        st.Page(
            "sim/ui/overview.py",
            title="Overview",
            icon=":material/dashboard:",
            help="What the run shows: headline numbers, revenue and compute, margin, cash, cost per token.",
            default=True,
        ),
        st.Page(
            "sim/ui/scenario.py",
            title="Scenario",
            icon=":material/tune:",
            help="Every assumption with its unit and source; change any of them, save the scenario as YAML.",
        ),
        st.Page(
            "sim/ui/serving.py",
            title="Serving",
            icon=":material/speed:",
            help="What was measured of the model on its machine, what one replica sustains, and the fleet.",
        ),
        st.Page(
            "sim/ui/flywheel.py",
            title="Flywheel",
            icon=":material/cycle:",
            help="Usage becomes data, data a better model, a better model customers: the loop and its events.",
        ),
        st.Page(
            "sim/ui/finance.py",
            title="Finance",
            icon=":material/account_balance:",
            help="Income, balance sheet, cash flow and unit economics, from the double-entry ledger.",
        ),
        st.Page(
            "sim/ui/handover.py",
            title="Report",
            icon=":material/description:",
            help="Download the run: one HTML report that opens without a network, and the data behind it.",
        ),
    ]
)
controls.sidebar()
page.run()
