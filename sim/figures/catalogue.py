"""All figures of a run, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable

import plotly.graph_objects as go

from sim.figures import finance, flywheel, money, operations


def all_figures() -> dict[str, Callable[..., go.Figure]]:
    """{name: figure function} in the order of the report."""
    return {
        "revenue": money.revenue_and_compute,
        "margin": money.gross_margin,
        "cash": money.cash,
        "cost_per_mtok": money.cost_and_price,
        "customers": money.customers,
        "mrr": finance.mrr_movements,
        "cohorts": finance.cohort_map,
        "fleet": operations.fleet_by_month,
        "fleet_day": operations.fleet_by_hour,
        "latency": operations.latency,
        "flywheel": flywheel.flywheel,
        "versions": operations.versions,
        "profile": operations.profile_fit,
    }
