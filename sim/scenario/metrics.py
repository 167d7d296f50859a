"""Every metric that a person reads: its name, unit, format, which way is better, and what it means.

Terminal, app, figures, reports and studies take labels and units from here. `OUTCOMES` are single numbers of a run,
`HEADLINE` those that sum it up, `MONTHLY` columns of the monthly table, `PER_PLAN` the unit economics of a plan.
Formulas are in `sim.accounting.saas_metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sim.i18n.translate import mark
from sim.scenario.units import Unit, in_unit

# How a sheet writes the number: money in whole USD, prices with four decimals, other numbers with two.
Format = Literal["money", "price", "percent", "number", "count", "plain_number"]


@dataclass(frozen=True)
class Metric:
    """A metric; `label`, `unit` and `title` are English, to be translated by `tr`."""

    name: str
    label: str
    unit: Unit
    higher_is_better: bool | None  # None: neither
    format: Format
    meaning: str
    short: str = ""

    @property
    def title(self) -> str:
        """The label for charts and columns of the app, where no unit stands beside it."""
        return self.short or self.label


def _by_name(metrics: Iterable[Metric]) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


OUTCOMES = _by_name(
    (
        Metric(
            "arr_usd_end", mark("ARR at the end"), "USD", True, "money",
            mark("Annual recurring revenue: twelve times the recurring revenue of the last month."),
        ),
        Metric(
            "revenue_usd_total", mark("Revenue, whole run"), "USD", True, "money",
            "Revenue of all months, as in the income statement.",
        ),
        Metric(
            "revenue_usd_last12", mark("Revenue, last 12 months"), "USD", True, "money",
            "Revenue of the last twelve months, or of all where the run is shorter.",
        ),
        Metric(
            "profit_usd_total", mark("Net income, whole run"), "USD", True, "money",
            "Revenue less all costs, interest and tax, over all months.",
        ),
        Metric(
            "profit_usd_last12", mark("Net income, last 12 months"), "USD", True, "money",
            "Net income of the last twelve months.",
        ),
        Metric(
            "free_cash_flow_usd_total", mark("Free cash flow, whole run"), "USD", True, "money",
            "Operating plus investing cash flow, over all months.",
        ),
        Metric(
            "gross_margin_last12", mark("Gross margin, last 12 months"), "fraction", True, "percent",
            mark("(Revenue − cost of goods sold) / revenue. Serving is cost of goods, training is operating expense."),
        ),
        Metric(
            "gross_margin_total", mark("Gross margin, whole run"), "fraction", True, "percent",
            "(Revenue − cost of goods sold) / revenue, over all months.",
        ),
        Metric(
            "cash_usd_end", mark("Cash at the end"), "USD", True, "money",
            mark("Cash at month end. Below zero the company is insolvent unless it raises money."),
        ),
        Metric(
            "cash_usd_min", mark("Lowest cash"), "USD", True, "money",
            "The smallest cash at the end of a month.",
        ),
        Metric(
            "ruined", mark("Out of cash"), "0 or 1", False, "percent",
            "1 when some month ends with cash below zero; over many runs, the share of them.",
        ),
        Metric(
            "cash_out_month_index", mark("Month in which cash runs out"), "month of the run", True, "plain_number",
            "The first month that ends with cash below zero, counted from 0; undefined when there is none.",
        ),
        Metric(
            "breakeven_month_index", mark("Month of break-even"), "month of the run", False, "plain_number",
            "The first of three months in a row with a positive net income, counted from 0.",
        ),
        Metric(
            "runway_months_min", mark("Shortest runway"), "months", True, "number",
            "The smallest of the monthly runways; infinite when no month burns cash.",
        ),
        Metric(
            "customers_end", mark("Paying customers at the end"), "customers", True, "count",
            "Paying customers at the end of the last month.",
        ),
        Metric(
            "ltv_to_cac_last", mark("LTV / CAC"), "ratio", True, "number",
            "Lifetime value against the cost of acquiring a customer, in the last month.",
        ),
        Metric(
            "cac_payback_months_last", mark("CAC payback at the end"), "months", False, "number",
            "Months of gross profit that repay the acquisition of a customer, in the last month.",
        ),
        Metric(
            "nrr_last", mark("Net revenue retention"), "fraction", True, "percent",
            "MRR in the last month of the customers of 12 months before, over their MRR then.",
        ),
        Metric(
            "rule_of_40_last", mark("Rule of 40 at the end"), "percentage points", True, "number",
            "Revenue growth over the year before plus free-cash-flow margin, over the last 12 months.",
        ),
        Metric(
            "compute_share_of_revenue", mark("Compute share of revenue"), "fraction", False, "percent",
            mark("What serving and training cost, as a share of all revenue."),
        ),
        Metric(
            "serving_cost_usd_per_mtok_last", mark("Serving cost per million tokens"),
            "USD per million tokens", False, "price",
            mark("Serving cost of prompt and output tokens together, in the last month."),
        ),
        Metric(
            "price_usd_per_mtok_last", mark("Revenue per million tokens"), "USD per million tokens", None, "price",
            "Recurring revenue over prompt and output tokens together, in the last month.",
        ),
        Metric(
            "replicas_peak", mark("Replicas at the peak"), "replicas", None, "count",
            "The most replicas in any hour of the run.",
        ),
        Metric(
            "utilisation_mean", mark("Fleet utilisation"), "fraction", True, "percent",
            "Traffic served over what the fleet can carry within the latency objective, weighted by replicas.",
        ),
        Metric(
            "served_fraction_min", mark("Requests served in the worst month"), "fraction", True, "percent",
            "The smallest monthly share of requests that were served.",
        ),
        Metric(
            "ttft_p95_s_max", mark("Time to first token (p95) in the worst month"), "s", False, "number",
            "The largest monthly 95th percentile of TTFT.",
        ),
        Metric(
            "tpot_p95_s_max", mark("Time per output token (p95) in the worst month"), "s", False, "number",
            "The largest monthly 95th percentile of TPOT.",
        ),
        Metric(
            "model_quality_end", mark("Model quality at the end"), "fraction", True, "percent",
            "Quality of the model in service in the last month.",
        ),
        Metric(
            "releases", mark("Model releases"), "releases", None, "count",
            "Versions of the model put into service.",
        ),
        Metric(
            "founders_share_end", mark("Founders' share at the end"), "fraction", True, "percent",
            "The founders' part of all shares after the last round.",
        ),
    )
)  # fmt: skip

_CALENDAR = _by_name(
    (
        Metric(
            "cash_out_month", mark("Cash out"), "calendar month", None, "plain_number",
            "The first month that ends with cash below zero.",
        ),
        Metric(
            "breakeven_month", mark("Break-even"), "calendar month", None, "plain_number",
            "The first of three months in a row with a positive net income.",
        ),
    )
)  # fmt: skip

# In the order of reading.
HEADLINE = {
    name: (OUTCOMES | _CALENDAR)[name]
    for name in (
        "arr_usd_end",
        "revenue_usd_total",
        "gross_margin_last12",
        "compute_share_of_revenue",
        "cash_usd_end",
        "cash_usd_min",
        "cash_out_month",
        "breakeven_month",
        "customers_end",
        "ltv_to_cac_last",
        "nrr_last",
        "serving_cost_usd_per_mtok_last",
        "price_usd_per_mtok_last",
        "replicas_peak",
        "utilisation_mean",
        "releases",
    )
}

# The main outcomes of a study, in the order of reading.
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

MONTHLY = _by_name(
    (
        Metric(
            "revenue_usd", mark("Revenue"), "USD per month", True, "money",
            "Revenue of the month, recurring or not.",
        ),
        Metric(
            "mrr_usd", mark("MRR"), "USD per month", True, "money",
            "Monthly recurring revenue: subscriptions and metered usage, without one-off services.",
        ),
        Metric("arr_usd", mark("ARR"), "USD", True, "money", "Annual recurring revenue: 12 × MRR."),
        Metric(
            "cogs_usd", mark("Cost of goods sold"), "USD per month", False, "money",
            "Serving, data, support, payment fees and what else a sale costs.",
        ),
        Metric(
            "gross_profit_usd", mark("Gross profit"), "USD per month", True, "money",
            "Revenue − cost of goods sold.",
        ),
        Metric(
            "gross_margin", mark("Gross margin"), "fraction of revenue", True, "percent",
            "(Revenue − cost of goods sold) / revenue.",
        ),
        Metric(
            "operating_income_usd", mark("Operating income"), "USD per month", True, "money",
            "Gross profit − operating expenses, before interest and tax.",
        ),
        Metric(
            "depreciation_usd", mark("Depreciation"), "USD per month", None, "money",
            "Depreciation of owned equipment.",
        ),
        Metric("ebitda_usd", mark("EBITDA"), "USD per month", True, "money", "Operating income + depreciation."),
        Metric(
            "net_income_usd", mark("Net income"), "USD per month", True, "money",
            "Revenue less all costs, interest and tax.",
        ),
        Metric(
            "free_cash_flow_usd", mark("Free cash flow"), "USD per month", True, "money",
            "Operating plus investing cash flow.",
        ),
        Metric("net_burn_usd", mark("Net burn"), "USD per month", False, "money", "− free cash flow."),
        Metric(
            "cash_usd", mark("Cash at month end"), "USD", True, "money",
            "Cash in the balance sheet; negative when the company is insolvent.", mark("Cash"),
        ),
        Metric(
            "runway_months", mark("Runway"), "months", True, "number",
            "Cash / mean net burn of three months; infinite when no cash is burnt.",
        ),
        Metric(
            "rule_of_40", mark("Rule of 40"), "percentage points", True, "number",
            "Revenue growth over the year before plus free-cash-flow margin, over 12 months.",
            mark("Rule of 40 (points)"),
        ),
        Metric(
            "burn_multiple", mark("Burn multiple"), "ratio", False, "number",
            "Net burn / net new ARR, over three months.",
        ),
        Metric(
            "customers", mark("Paying customers at month end"), "customers", True, "count",
            "Customers of paid plans at the end of the month.", mark("Paying customers"),
        ),
        Metric(
            "new_customers", mark("New customers"), "customers", True, "count",
            "Customers who began to pay in the month.",
        ),
        Metric(
            "churned_customers", mark("Churned customers"), "customers", False, "count",
            "Paying customers who left in the month.",
        ),
        Metric(
            "churn_rate", mark("Churn per month"), "fraction", False, "percent",
            "Churned customers / customers billed in the month.",
        ),
        Metric(
            "arpu_usd", mark("ARPU per month"), "USD per month", True, "number",
            "MRR / customers billed in the month.", mark("Revenue per customer and month"),
        ),
        Metric(
            "cac_usd", mark("CAC, three months"), "USD", False, "number",
            "Sales and marketing spend / new customers, over three months.", mark("Cost of winning a customer (CAC)"),
        ),
        Metric(
            "ltv_usd", mark("LTV"), "USD", True, "number",
            "Lifetime value: ARPU × gross margin / churn, the latter two over three months.",
            mark("Lifetime value (LTV)"),
        ),
        Metric("ltv_to_cac", mark("LTV / CAC"), "ratio", True, "number", "LTV / CAC of the month."),
        Metric(
            "cac_payback_months", mark("CAC payback"), "months", False, "number",
            "CAC / (ARPU × gross margin).", mark("CAC payback (months)"),
        ),
        Metric(
            "nrr", mark("Net revenue retention"), "fraction", True, "percent",
            "MRR of the customers of 12 months before, over their MRR then.",
        ),
        Metric(
            "grr", mark("Gross revenue retention"), "fraction", True, "percent",
            "Net revenue retention without expansion: no customer counts for more than then.",
        ),
        Metric(
            "compute_serving_usd", mark("Serving compute"), "USD per month", False, "money",
            "Reserved, on-demand, leased and owned capacity that serves.",
        ),
        Metric(
            "compute_training_usd", mark("Training compute"), "USD per month", False, "money",
            "Rented, leased and owned capacity that trains.",
        ),
        Metric(
            "prompt_tokens", mark("Prompt tokens"), "tokens", None, "count",
            "Prompt tokens of served requests in the month.",
        ),
        Metric(
            "output_tokens", mark("Output tokens"), "tokens", None, "count",
            "Output tokens of served requests in the month.",
        ),
        Metric(
            "serving_cost_usd_per_mtok", mark("Serving cost"), "USD per million tokens", False, "price",
            "Serving compute / prompt and output tokens together.", mark("Cost per million tokens"),
        ),
        Metric(
            "price_usd_per_mtok", mark("Recurring revenue"), "USD per million tokens", None, "price",
            "MRR / prompt and output tokens together.", mark("Revenue per million tokens"),
        ),
        Metric("replicas_mean", mark("Replicas"), "replicas", None, "number", "Replicas, mean over the month."),
        Metric(
            "model_quality", mark("Model quality"), "fraction", True, "percent",
            "Quality of the model in service at the end of the month.",
        ),
    )
)  # fmt: skip

# Of the last 12 months; customers include free users and trials.
PER_PLAN = _by_name(
    (
        Metric(
            "customers_mean", mark("Customers, mean (free users and trials included)"), "customers", True, "number",
            "Customers of the plan, mean over the months.", mark("Customers, mean"),
        ),
        Metric(
            "tokens_mtok", mark("Million tokens"), "million tokens", None, "number",
            "Prompt and output tokens.",
        ),
        Metric("revenue_usd", mark("Revenue"), "USD", True, "money", "Revenue of the plan."),
        Metric(
            "cogs_own_usd", mark("Cost of goods: its own"), "USD", False, "money",
            "Cost of goods that the plan alone causes.",
        ),
        Metric(
            "cogs_shared_usd", mark("Cost of goods: its share of the fleet"), "USD", False, "money",
            "The plan's part, by tokens, of what plans share.",
        ),
        Metric("cogs_usd", mark("Cost of goods"), "USD", False, "money", "Own plus shared cost of goods."),
        Metric("gross_profit_usd", mark("Gross profit"), "USD", True, "money", "Revenue − cost of goods."),
        Metric("gross_margin", mark("Gross margin"), "fraction", True, "percent", "Gross profit / revenue."),
        Metric(
            "revenue_usd_per_customer", mark("Revenue per customer and month"), "USD per month", True, "price",
            "Revenue / (mean customers × months).",
        ),
        Metric(
            "cogs_usd_per_customer", mark("Cost of goods per customer and month"), "USD per month", False, "price",
            "Cost of goods / (mean customers × months).",
        ),
        Metric(
            "gross_profit_usd_per_customer", mark("Gross profit per customer and month"),
            "USD per month", True, "price",
            "Gross profit / (mean customers × months).",
        ),
        Metric(
            "revenue_usd_per_mtok", mark("Revenue per million tokens"), "USD per million tokens", True, "price",
            "Revenue / million tokens.",
        ),
        Metric(
            "cogs_usd_per_mtok", mark("Cost of goods per million tokens"), "USD per million tokens", False, "price",
            "Cost of goods / million tokens.",
        ),
        Metric(
            "gross_profit_usd_per_mtok", mark("Gross profit per million tokens"),
            "USD per million tokens", True, "price",
            "Gross profit / million tokens.",
        ),
        Metric(
            "churn_per_month", mark("Churn per month"), "fraction", False, "percent",
            "Churned customers / customers billed.",
        ),
        Metric(
            "ltv_usd", mark("LTV"), "USD", True, "number",
            "Lifetime value: revenue per customer and month × gross margin / churn.",
        ),
    )
)  # fmt: skip


def shown(name: str, value: float) -> str:
    """An outcome's value as text; names that are no outcome are counts."""
    return in_unit(value, OUTCOMES[name].unit if name in OUTCOMES else "count")
