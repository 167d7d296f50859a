"""Page Decide: the value that reaches a target, and the setting of several levers that serves a goal best.

What was asked stands in the address in the words of the command line (`flywheel study goal-seek | optimise`), so a
link repeats the same question.
"""

from __future__ import annotations

import streamlit as st

from sim.i18n.translate import mark, tr
from sim.ui import components, sidebar, url_state
from sim.ui.pages import decide_best, decide_seek
from sim.ui.study_jobs import say_applied, studied

SECTIONS = {"seek": mark("Reach a target"), "optimise": mark("Find the best")}

result = sidebar.run_on_show()
components.heading(
    result, tr("The best choice for a goal, and the price, load or cost that reaches a target.")
)
say_applied()
section = url_state.choice(
    st.segmented_control,
    tr("What to decide"),
    {name: tr(title) for name, title in SECTIONS.items()},
    key="decide",
    label_visibility="collapsed",
    persist_state="session",
)
{"seek": decide_seek, "optimise": decide_best}[section].draw(studied(result), result.profile)
