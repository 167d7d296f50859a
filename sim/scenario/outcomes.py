"""The numbers that a run comes to, by name: what each is called, its unit, and which way is better."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sim.i18n import numbers
from sim.i18n.translate import mark, tr


@dataclass(frozen=True)
class Outcome:
    """How an outcome is called and read: `label` and `unit` are English, to be translated by `tr`."""

    label: str
    unit: str
    higher_is_better: bool | None  # None: neither


OUTCOMES: dict[str, Outcome] = {
    "arr_usd_end": Outcome(mark("ARR at the end"), "USD", True),
    "revenue_usd_total": Outcome(mark("Revenue, whole run"), "USD", True),
    "revenue_usd_last12": Outcome(mark("Revenue, last 12 months"), "USD", True),
    "profit_usd_total": Outcome(mark("Net income, whole run"), "USD", True),
    "profit_usd_last12": Outcome(mark("Net income, last 12 months"), "USD", True),
    "free_cash_flow_usd_total": Outcome(mark("Free cash flow, whole run"), "USD", True),
    "gross_margin_last12": Outcome(mark("Gross margin, last 12 months"), "fraction", True),
    "gross_margin_total": Outcome(mark("Gross margin, whole run"), "fraction", True),
    "cash_usd_end": Outcome(mark("Cash at the end"), "USD", True),
    "cash_usd_min": Outcome(mark("Lowest cash"), "USD", True),
    "ruined": Outcome(mark("Out of cash"), "0 or 1", False),
    "cash_out_month_index": Outcome(mark("Month in which cash runs out"), "month of the run", True),
    "breakeven_month_index": Outcome(mark("Month of break-even"), "month of the run", False),
    "runway_months_min": Outcome(mark("Shortest runway"), "months", True),
    "customers_end": Outcome(mark("Paying customers at the end"), "customers", True),
    "ltv_to_cac_last": Outcome(mark("LTV / CAC at the end"), "times", True),
    "cac_payback_months_last": Outcome(mark("CAC payback at the end"), "months", False),
    "nrr_last": Outcome(mark("Net revenue retention at the end"), "fraction", True),
    "rule_of_40_last": Outcome(mark("Rule of 40 at the end"), "percentage points", True),
    "compute_share_of_revenue": Outcome(mark("Compute share of revenue"), "fraction", False),
    "serving_cost_usd_per_mtok_last": Outcome(
        mark("Serving cost at the end"), "USD per million tokens", False
    ),
    "price_usd_per_mtok_last": Outcome(mark("Revenue per token at the end"), "USD per million tokens", None),
    "replicas_peak": Outcome(mark("Replicas at the peak"), "replicas", None),
    "utilisation_mean": Outcome(mark("Fleet utilisation"), "fraction", True),
    "served_fraction_min": Outcome(mark("Requests served in the worst month"), "fraction", True),
    "ttft_p95_s_max": Outcome(mark("Time to first token (p95) in the worst month"), "s", False),
    "tpot_p95_s_max": Outcome(mark("Time per output token (p95) in the worst month"), "s", False),
    "model_quality_end": Outcome(mark("Model quality at the end"), "fraction", True),
    "releases": Outcome(mark("Model releases"), "releases", None),
    "founders_share_end": Outcome(mark("Founders' share at the end"), "fraction", True),
}

# What sums a study up, in the order of reading.
MAIN_OUTCOMES = (
    "arr_usd_end",
    "revenue_usd_total",
    "profit_usd_total",
    "gross_margin_last12",
    "cash_usd_end",
    "cash_usd_min",
    "breakeven_month_index",
    "customers_end",
    "ltv_to_cac_last",
)


def shown(name: str, value: float) -> str:
    """An outcome's value as a person reads it: $1.2M, 68%, 14 months, month 15 (the first of the run is 0)."""
    unit = OUTCOMES[name].unit if name in OUTCOMES else ""
    if unit == "month of the run" and not math.isnan(value):
        return tr("never") if math.isinf(value) else tr("month {number}", number=f"{value:.0f}")
    if unit.startswith("USD"):
        return numbers.usd(value)
    if unit == "fraction" or name == "ruined":
        return numbers.percent(value, 1)
    if unit == "months":
        return numbers.months(value)
    return numbers.seconds(value) if unit == "s" else numbers.count(value)
