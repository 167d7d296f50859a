"""The web app: navigation only. `flywheel app` or `streamlit run app.py`; pages and controls are in `sim/ui/`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamlit import Page

# A wheel, drawn here: an icon named ":material/…:" in this place is fetched from Google (those of pages are not).
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke="#0072b2" stroke-width="3">'
    '<path d="M20 12a8 8 0 1 1-3-6.2"/><path d="M20 2v5h-5"/></svg>'
)


def main() -> None:
    """Draw the frame, then the page that the visitor is on."""
    import streamlit as st

    from sim.i18n.translate import tr
    from sim.ui import sidebar

    st.set_page_config(page_title=tr("Model flywheel"), page_icon=ICON, layout="wide")
    with st.sidebar:
        levers = st.container()  # stands above the language, which is to be known first
        sidebar.language_switch()
    shown = st.navigation(pages(), expanded=True)
    with levers:
        sidebar.sidebar()
    shown.run()


def pages() -> dict[str, list[Page]]:
    """The pages by section, titles in the current language; the first one is where a visit begins."""
    import streamlit as st

    from sim.i18n.translate import tr
    from sim.ui import pages as rooms

    def page(file: str, title: str, icon: str, help: str, url: str | None = None) -> Page:
        path = Path(rooms.__file__).parent / f"{file}.py"  # in a wheel this script lies elsewhere
        first = file == "overview"
        return st.Page(path, title=title, icon=icon, help=help, url_path=url or file, default=first)

    return {
        tr("Company"): [
            page(
                "overview",
                tr("Overview"),
                ":material/dashboard:",
                tr("Headline numbers, revenue and compute, margin, cash with its risk of ruin, the fleet."),
            ),
            page(
                "scenario",
                tr("Scenario"),
                ":material/tune:",
                tr("Every assumption with its unit and source: change, save, import and export them."),
            ),
            page(
                "compare",
                tr("Compare"),
                ":material/compare_arrows:",
                tr("Scenarios side by side, and their difference explained term by term."),
            ),
            page(
                "uncertainty",
                tr("Uncertainty"),
                ":material/scatter_plot:",
                tr("What chance and unsure assumptions do to the outcome, and which of them decide it."),
            ),
            page(
                "decide",
                tr("Decide"),
                ":material/target:",
                tr("The best choice for a goal, and the price, load or cost that reaches a target."),
            ),
        ],
        tr("Machine"): [
            page(
                "serving",
                tr("Serving lab"),
                ":material/speed:",
                tr("Latency against load, what one replica sustains, and which hardware serves cheapest."),
            ),
            page(
                "engine",
                tr("Engine"),
                ":material/memory:",
                tr("The real model: measure this machine, ask it, look inside."),
            ),
            page(
                "training_lab",
                tr("Training lab"),
                ":material/model_training:",
                tr("Loss curves, the scaling law and its fit, and the plan of a training run."),
            ),
            page(
                "flywheel",
                tr("Flywheel"),
                ":material/cycle:",
                tr("Usage becomes data, data a better model, a better model customers: month by month."),
            ),
        ],
        tr("Money"): [
            page(
                "finance",
                tr("Finance"),
                ":material/account_balance:",
                tr("Statements, cohorts and unit economics, from the double-entry ledger."),
            ),
            page(
                "actuals",
                tr("Plan and actual"),
                ":material/rule:",
                tr("What was planned, what happened, and what that means for the months to come."),
            ),
            page(
                "report",
                tr("Report"),
                ":material/description:",
                tr("Send the run: report as HTML or PDF, workbook, and the data behind it."),
                "handover",
            ),
        ],
    }


if __name__ == "__main__":  # not in the worker process of a study, which imports this file anew
    main()
