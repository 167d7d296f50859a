"""Page Decide: the value that reaches a target, and the setting of several levers that serves a goal best.

What was asked stands in the address in the words of the command line (`flywheel study goal-seek | optimise`), so a
link asks the same again.
"""

from __future__ import annotations

import streamlit as st

from sim.language import mark, tr
from sim.ui import controls, decide_best, decide_seek, link, parts
from sim.ui.studies import say_applied, studied

SECTIONS = {"seek": mark("Reach a target"), "optimise": mark("Find the best")}

result = controls.run_on_show()
parts.heading(result, tr("The best choice for a goal, and the price, load or cost that reaches a target."))
say_applied()
section = link.choice(
    st.segmented_control,
    tr("What to decide"),
    {name: tr(title) for name, title in SECTIONS.items()},
    key="decide",
    label_visibility="collapsed",
    persist_state="session",
)
{"seek": decide_seek, "optimise": decide_best}[section].draw(studied(result), result.profile)
