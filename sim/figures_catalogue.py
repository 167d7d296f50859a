"""All figures of a run, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable

import plotly.graph_objects as go

from sim import figures, figures_finance, figures_loop, figures_model


def all_figures() -> dict[str, Callable[..., go.Figure]]:
    """{name: figure function} in the order of the report."""
    return {
        "revenue": figures.revenue_and_compute,
        "margin": figures.gross_margin,
        "cash": figures.cash,
        "cost_per_mtok": figures.cost_and_price,
        "customers": figures.customers,
        "mrr": figures_finance.mrr_movements,
        "cohorts": figures_finance.cohort_map,
        "fleet": figures_model.fleet_by_month,
        "fleet_day": figures_model.fleet_by_hour,
        "latency": figures_model.latency,
        "flywheel": figures_loop.flywheel,
        "versions": figures_model.versions,
        "profile": figures_model.profile_fit,
    }
