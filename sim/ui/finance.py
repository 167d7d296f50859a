"""Page Finance: the statements and the unit economics, from the ledger."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from sim import human
from sim.shown_tables import shown_tables
from sim.ui import controls, parts

_STATEMENTS = {"Income": "income", "Balance sheet": "balance_sheet", "Cash flow": "cash_flow"}
_UNIT_ECONOMICS = {
    "mrr_usd": ("MRR", "dollar"),
    "arpu_usd": ("Revenue per customer and month", "dollar"),
    "cac_usd": ("Cost of winning a customer (CAC)", "dollar"),
    "ltv_usd": ("Lifetime value (LTV)", "dollar"),
    "ltv_to_cac": ("LTV / CAC", "%.2f"),
    "churn_rate": ("Churn per month", "percent"),
    "nrr": ("Net revenue retention", "percent"),
    "burn_multiple": ("Burn multiple", "%.2f"),
}


def by_year(frame: pd.DataFrame, *, balances: bool) -> pd.DataFrame:
    """Months to calendar years: flows are added up, balances are those at the end."""
    groups = frame.groupby([str(month)[:4] for month in frame.index])
    yearly = groups.last() if balances else groups.sum()
    if "closing_cash" in yearly:
        yearly["opening_cash"], yearly["closing_cash"] = (
            groups["opening_cash"].first(),
            groups["closing_cash"].last(),
        )
    return yearly


result = controls.run_on_show()
monthly = result.monthly
parts.heading(result, "Every dollar is posted in a double-entry ledger; these are queries over it.")
row = st.container(horizontal=True, vertical_alignment="bottom")
which = row.segmented_control(
    "Statement", list(_STATEMENTS), default="Income", required=True, key="statement"
)
period = row.segmented_control("Period", ["Years", "Months"], default="Years", required=True, key="period")
frame = getattr(result.statements, _STATEMENTS[which])()
if period == "Years":
    frame = by_year(frame, balances=which == "Balance sheet")
lines = frame.loc[:, frame.abs().sum() > 0].round().T
lines.index = pd.Index([str(name).replace("_", " ").capitalize() for name in lines.index], name="USD")
totals = [name for name in lines.index if name.startswith(("Total", "Net", "Gross", "Operating", "Closing"))]
st.dataframe(
    lines.style.format(human.usd_exact).set_properties(
        subset=(totals, slice(None)), **{"font-weight": "bold"}
    ),
    height="content",
    alt=f"{which} by {period.lower()}, USD",
)
st.subheader("Metrics by month")
last = st.pills(
    "Shown",
    [name for name, _ in _UNIT_ECONOMICS.values()],
    selection_mode="multi",
    key="ratios",
    label_visibility="collapsed",
)
columns = {key: value for key, value in _UNIT_ECONOMICS.items() if not last or value[0] in last}
st.dataframe(
    monthly[["month", *columns]],
    hide_index=True,
    height=320,
    column_config={
        "month": st.column_config.TextColumn("Month", pinned=True),
        **{key: st.column_config.NumberColumn(name, format=style) for key, (name, style) in columns.items()},
    },
    alt="Metrics by month",
)
for title, table in shown_tables(result).items():
    st.subheader(title)
    st.table(table, border="horizontal", alt=title)
parts.figures(result, "margin", "cash")
