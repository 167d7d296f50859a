"""Page Overview: what the run shows, on one screen."""

from __future__ import annotations

import streamlit as st

from sim import human
from sim.ui import controls, parts

result = controls.run_on_show()
monthly, found = result.monthly, result.headline
first, last = monthly["month"].iloc[0], monthly["month"].iloc[-1]
parts.heading(
    result,
    f"{first} to {last} · served by {result.profile.model.name}, "
    f"{result.profile.kind} on {result.profile.hardware.name} ({result.profile.created_at[:10]})",
)

margin = monthly["gross_margin"].clip(lower=-2)  # the first months would flatten all others
with st.grid(4, min_column_width=160, gap="small"):
    parts.metric(
        "ARR at the end",
        human.usd(found["arr_usd_end"]),
        monthly["arr_usd"],
        f"{human.usd(found['revenue_usd_total'])} revenue in all",
        "Annual recurring revenue: twelve times the recurring revenue of the last month.",
    )
    parts.metric(
        "Gross margin",
        human.percent(found["gross_margin_last12"]),
        margin,
        "last twelve months",
        "(Revenue − cost of goods sold) / revenue. Serving is cost of goods, training is operating expense.",
    )
    out = str(found["cash_out_month"])
    parts.metric(
        "Cash at the end",
        human.usd(found["cash_usd_end"]),
        monthly["cash_usd"],
        f"lowest {human.usd(found['cash_usd_min'])}" if out == "never" else f"runs out in {out}",
        "Cash at month end. Below zero the company is insolvent unless it raises money.",
    )
    parts.metric(
        "Break-even",
        str(found["breakeven_month"]),
        monthly["net_income_usd"],
        "net income by month",
        "The first of three months in a row with a positive net income.",
    )
    parts.metric(
        "Paying customers",
        human.count(found["customers_end"]),
        monthly["customers"],
        f"LTV / CAC {human.count(found['ltv_to_cac_last'], 2)}",
        "At the end of the run; lifetime value against the cost of winning a customer.",
    )
    parts.metric(
        "Cost of a million tokens",
        human.usd(found["serving_cost_usd_per_mtok_last"]),
        monthly["serving_cost_usd_per_mtok"],
        f"sold for {human.usd(found['price_usd_per_mtok_last'])}",
        "Serving cost of prompt and output tokens together, in the last month.",
    )
    parts.metric(
        "Compute of revenue",
        human.percent(found["compute_share_of_revenue"]),
        monthly["compute_serving_usd"] + monthly["compute_training_usd"],
        "serving and training",
        "What serving and training cost, as a share of all revenue.",
    )
    parts.metric(
        "Fleet at its peak",
        f"{human.count(found['replicas_peak'])} replicas",
        monthly["replicas_mean"],
        f"{human.percent(found['utilisation_mean'])} used on average",
        "Machines at the busiest hour; use of what they can carry within the latency objective.",
    )
parts.figures(result, "revenue", "margin", "cash", "cost_per_mtok")
