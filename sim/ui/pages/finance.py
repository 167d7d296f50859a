"""Page Finance: the statements, recurring revenue and its cohorts, and the unit economics, from the ledger."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from sim.accounting.labels import TOTALS, by_year, line_label, used
from sim.figures.finance import Measure, cohort_map, cohorts_kept
from sim.i18n import numbers
from sim.i18n.translate import mark, tr
from sim.report.finance_tables import shown_tables
from sim.scenario.metrics import MONTHLY
from sim.scenario.units import MONEY, SHARES
from sim.ui import components, sidebar, url_state

_STATEMENTS = {
    "income": mark("Income"),
    "balance_sheet": mark("Balance sheet"),
    "cash_flow": mark("Cash flow"),
}
_PERIODS = {"years": mark("Years"), "months": mark("Months")}
_MEASURES = {"customers": mark("Customers"), "mrr": mark("What they pay")}
_METRICS = {
    name: MONTHLY[name]
    for name in (
        "mrr_usd",
        "arpu_usd",
        "cac_usd",
        "ltv_usd",
        "ltv_to_cac",
        "cac_payback_months",
        "churn_rate",
        "nrr",
        "grr",
        "burn_multiple",
        "rule_of_40",
    )
}
_COLUMN_FORMATS = {
    **dict.fromkeys(MONEY, "dollar"),
    **dict.fromkeys(SHARES, "percent"),
    "ratio": "%.2f",
    "months": "%.1f",
    "percentage points": "%.0f",
}

result = sidebar.run_on_show()
monthly = result.monthly
components.heading(result, tr("Every dollar is posted in a double-entry ledger; these are queries over it."))
with st.container(horizontal=True, vertical_alignment="bottom"):
    which = url_state.choice(
        st.segmented_control,
        tr("Statement"),
        {name: tr(label) for name, label in _STATEMENTS.items()},
        key="statement",
    )
    period = url_state.choice(
        st.segmented_control,
        tr("Period"),
        {name: tr(label) for name, label in _PERIODS.items()},
        key="period",
    )
frame = getattr(result.statements, which)()
if period == "years":
    frame = by_year(frame, balances=which == "balance_sheet")
frame = used(frame)
lines = frame.round().T
sums = [line_label(name) for name in frame.columns if name in TOTALS]
lines.index = pd.Index([line_label(name) for name in frame.columns], name=tr("USD"))
st.dataframe(
    lines.style.format(numbers.usd_exact).set_properties(
        subset=(sums, slice(None)), **{"font-weight": "bold"}
    ),
    height="content",
    alt=tr("{statement} in USD", statement=tr(_STATEMENTS[which])),
)
components.figures(result, "mrr", "margin")
st.subheader(tr("Cohorts"))
measure: Measure = url_state.choice(  # type: ignore[assignment]
    st.segmented_control,
    tr("Share of"),
    {name: tr(label) for name, label in _MEASURES.items()},
    key="cohort_measure",
)
components.chart(
    cohort_map(result, components.theme(), measure),
    "cohort_map",
    cohorts_kept(result, measure).rename_axis("quarter").add_prefix("age_months_").reset_index(),
)
st.subheader(tr("Metrics by month"))
last = st.pills(
    tr("Shown"),
    list(_METRICS),
    selection_mode="multi",
    key="ratios",
    label_visibility="collapsed",
    format_func=lambda key: tr(_METRICS[key].title),
)
columns = {key: metric for key, metric in _METRICS.items() if not last or key in last}
st.dataframe(
    monthly[["month", *columns]],
    hide_index=True,
    height=320,
    column_config={
        "month": st.column_config.TextColumn(tr("Month"), pinned=True),
        **{
            key: st.column_config.NumberColumn(tr(metric.title), format=_COLUMN_FORMATS[metric.unit])
            for key, metric in columns.items()
        },
    },
    alt=tr("Metrics by month"),
)
for title, table in shown_tables(result).items():
    st.subheader(title)
    st.table(table, border="horizontal", alt=title)
components.figures(result, "revenue", "cash")
