"""The monthly table: one row per month, money from the ledger, the rest from what the stages recorded.

`STAGE_COLUMNS` lists what the stages of data, training and deployment record besides money: name → meaning, with unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from sim.accounting import saas_metrics
from sim.accounting.ledger import HOURS_PER_MONTH, MICRO_PER_USD
from sim.accounting.parties import read_party
from sim.accounting.saas_metrics import FloatArray
from sim.accounting.statements import Statements
from sim.stages.finance.funding import founders_share
from sim.stages.world import World

STAGE_COLUMNS: dict[str, str] = {
    "source_tokens": "raw tokens that arrived from sources",
    "source_tokens_kept": "tokens of these that entered the pool",
    "source_tokens_repeated": "clean tokens that only repeated what a source had given before",
    "opted_in_tokens": "served tokens that may be learnt from",
    "synthetic_tokens": "kept tokens that the company's own fleet wrote",
    "synthetic_replica_h": "replica-hours of writing them",
    "labelling_h": "hours of labellers",
    "labelled_tokens": "usable tokens that labellers wrote",
    "preference_pairs": "usable comparisons of answers, by labellers and by users",
    "processing_cpu_h": "vCPU-hours of cleaning, deduplication and filtering",
    "stored_tb": "terabytes kept at the month's end, copies included",
    "data_pool_effective_tokens": "what the pool teaches, in effective tokens",
    "data_pool_crawled_tokens": "tokens of the pool that were crawled without anybody's leave",
    "sources_withdrawn": "sources that their owners took back",
    "legal_claims": "claims over training text",
    "cluster_hours": "hours of the training cluster in runs",
    "training_accelerator_h": "accelerator-hours of runs",
    "training_lost_h": "cluster hours of runs in which no new work was done: checkpoints, failures, restarts",
    "training_failures": "failures that the runs finished this month went through",
    "training_energy_kwh": "electricity of runs, kWh",
    "training_co2_kg": "CO2e of that electricity, kg",
    "reinforcement_replica_h": "replica-hours of serving machines that wrote samples for reinforcement",
    "evaluations": "candidates measured at the gate",
    "failed_gates": "candidates refused",
    "safety_incidents": "harmful answers that made news",
    "replicas_on_demand_mean": "on-demand replicas, mean over the month",
    "replicas_spot_mean": "spot replicas, mean over the month",
    "replica_h_idle": "reserved replica-hours that demand left idle",
    "idle_replica_h_used": "of these, hours that training or synthetic text used",
    "spot_interruptions": "spot replicas that the cloud took back",
    "outages": "outages of regions",
    "outage_h": "hours of outages, regions added up",
    "uptime": "fraction of the month in service, weighted by the regions' traffic",
    "credit_share": "fraction of the month's invoices given back for outages",
    "rollbacks": "versions rolled back",
    "support_tickets": "tickets answered",
    "scarce": "1 in a shortage of accelerators",
}


SERVING_ACCOUNTS = (
    "serving_reserved",
    "serving_on_demand",
    "serving_owned",
    "lease_serving",
    "depreciation_serving",
)
TRAINING_ACCOUNTS = ("training_compute", "lease_training", "depreciation_training")


def month_labels(start_month: str, months: int) -> list[str]:
    """["2026-01", "2026-02", …]."""
    year, month = (int(part) for part in start_month.split("-"))
    first = year * 12 + month - 1
    return [f"{index // 12:04d}-{index % 12 + 1:02d}" for index in range(first, first + months)]


@dataclass(frozen=True)
class _Sources:
    """What the columns are made of: statements [months] and what the stages recorded."""

    world: World
    income: pd.DataFrame
    cash: pd.DataFrame
    balance: pd.DataFrame

    def money(self, *accounts: str) -> FloatArray:
        """Sum of lines of the income statement, USD per month."""
        zero = np.zeros(self.world.months)
        return np.asarray(sum((self.income[account].to_numpy() for account in accounts), zero))

    def seen(self, name: str) -> FloatArray:
        """What stages recorded under this name; zeros when none did."""
        return self.world.records.get(name, np.zeros(self.world.months))

    def free_cash_flow(self) -> FloatArray:
        """Operating plus investing cash flow, USD per month."""
        return np.asarray(self.cash["operating_cash_flow"] + self.cash["investing_cash_flow"])


def monthly_table(world: World, statements: Statements) -> pd.DataFrame:
    """All monthly figures; units stand in the column names, shares are fractions, undefined is NaN.

    Returns:
        One row per month. Months are text ("2026-01"), counts of customers and the model's version integers.
    """
    sources = _Sources(world, statements.income(), statements.cash_flow(), statements.balance_sheet())
    frame = pd.DataFrame(
        {
            "month": statements.labels,
            **_income(sources),
            **_cash(sources),
            **_customers(sources),
            **_service_and_model(sources),
            **_accounts(sources),
            "rule_of_40": _rule_of_40(sources.money("total_revenue"), sources.free_cash_flow()),
            **{name: sources.seen(name) for name in STAGE_COLUMNS},
        }
    )
    counts = ["customers", "customers_free", "new_customers", "churned_customers", "trial_customers"]
    frame[counts] = frame[counts].astype(np.int64)
    return frame


def _income(sources: _Sources) -> dict[str, FloatArray]:
    """Revenue, costs and profit."""
    money = sources.money
    revenue, cogs = money("total_revenue"), money("total_cogs")
    return {
        "revenue_usd": revenue,
        "revenue_tokens_usd": money("revenue_tokens"),
        "revenue_seats_usd": money("revenue_seats"),
        "revenue_services_usd": money("revenue_services"),
        "compute_serving_usd": money(*SERVING_ACCOUNTS),
        "compute_training_usd": money(*TRAINING_ACCOUNTS),
        "data_usd": money("data"),
        "support_usd": money("support", "people_support"),
        "payment_fees_usd": money("payment_fees"),
        "cogs_usd": cogs,
        "gross_profit_usd": revenue - cogs,
        "gross_margin": saas_metrics.divide(revenue - cogs, revenue),
        "people_usd": money("people_research", "people_sales", "people_general", "people_support"),
        "marketing_usd": money("marketing"),
        "other_opex_usd": money("other_opex"),
        "opex_usd": money("total_opex"),
        "net_income_usd": money("net_income"),
    }


def _cash(sources: _Sources) -> dict[str, object]:
    """Cash, burn and runway."""
    closing, burn = sources.cash["closing_cash"].to_numpy(), -sources.free_cash_flow()
    runway = [saas_metrics.runway_months(cash, burn[: month + 1]) for month, cash in enumerate(closing)]
    return {"cash_usd": closing, "net_burn_usd": burn, "runway_months": runway}


def _customers(sources: _Sources) -> dict[str, object]:
    """Recurring revenue, customers and what they are worth.

    CAC, LTV and burn multiple look at three months: one quiet month would otherwise divide by almost nothing.
    """
    money, seen = sources.money, sources.seen
    trailing, divide = saas_metrics.trailing, saas_metrics.divide
    revenue, cogs, mrr = money("total_revenue"), money("total_cogs"), money(*saas_metrics.MRR_ACCOUNTS)
    billed, churned, new = seen("billed_customers"), seen("churned_customers"), seen("new_customers")
    arpu = divide(mrr, billed)
    margin_3 = divide(trailing(revenue - cogs), trailing(revenue))
    cac = divide(trailing(money(*saas_metrics.SALES_ACCOUNTS)), trailing(new))
    ltv = divide(arpu * margin_3, divide(trailing(churned), trailing(billed)))
    burnt, gained = trailing(-sources.free_cash_flow()), 12 * _gain(mrr, saas_metrics.TRAILING_MONTHS)
    nrr, grr = _retention(sources.world)
    return {
        "mrr_usd": mrr,
        "arr_usd": 12 * mrr,
        "customers": seen("customers"),
        "customers_free": seen("customers_free"),
        "new_customers": new,
        "churned_customers": churned,
        "churn_rate": divide(churned, billed),
        "nrr": nrr,
        "grr": grr,
        "cac_usd": cac,
        "ltv_usd": ltv,
        "ltv_to_cac": divide(ltv, cac),
        "cac_payback_months": [
            saas_metrics.cac_payback_months(c, a, g) for c, a, g in zip(cac, arpu, margin_3, strict=True)
        ],
        "burn_multiple": [
            saas_metrics.burn_multiple(float(b), float(a)) for b, a in zip(burnt, gained, strict=True)
        ],
        "arpu_usd": arpu,
    }


def _service_and_model(sources: _Sources) -> dict[str, object]:
    """Requests, replicas, latency and cost of serving; the model and its data."""
    money, seen = sources.money, sources.seen
    mtok = (seen("prompt_tokens") + seen("output_tokens")) / 1e6
    return {
        "requests": seen("requests"),
        "prompt_tokens": seen("prompt_tokens"),
        "output_tokens": seen("output_tokens"),
        "served_fraction": seen("served_fraction"),
        "replicas_mean": seen("replicas_mean"),
        "replicas_peak": seen("replicas_peak"),
        "replicas_reserved": seen("replicas_reserved"),
        "utilisation": seen("utilisation"),
        "ttft_p95_s": seen("ttft_p95_s"),
        "tpot_p95_s": seen("tpot_p95_s"),
        "serving_cost_usd_per_mtok": saas_metrics.divide(money(*SERVING_ACCOUNTS), mtok),
        "price_usd_per_mtok": saas_metrics.divide(money(*saas_metrics.MRR_ACCOUNTS), mtok),
        "energy_kwh": seen("energy_kwh"),
        "model_version": seen("model_version").astype(np.int64),
        "model_loss": seen("model_loss"),
        "model_quality": seen("model_quality"),
        "competitor_quality": seen("competitor_quality"),
        "data_pool_tokens": seen("data_pool_tokens"),
        "feedback_tokens": seen("feedback_tokens"),
        "training_flop": seen("training_flop"),
    }


def _accounts(sources: _Sources) -> dict[str, object]:
    """Single lines of the statements, balances, and what is sold but not yet earned."""
    money, seen, balance = sources.money, sources.seen, sources.balance
    depreciation = sources.cash["depreciation"].to_numpy()
    return {
        "reserved_usd": money("serving_reserved"),
        "on_demand_usd": money("serving_on_demand"),
        "headcount": seen("headcount"),
        "revenue_commitments_usd": money("revenue_commitments"),
        "revenue_licences_usd": money("revenue_licences"),
        "revenue_shared_usd": money("revenue_shared"),
        "revenue_fine_tuning_usd": money("revenue_fine_tuning"),
        "sla_credits_usd": 0.0 - money("sla_credits"),
        "partner_share_usd": money("partner_share"),
        "compute_fine_tuning_usd": money("fine_tuning_compute"),
        "depreciation_usd": depreciation,
        "ebitda_usd": money("operating_income") + depreciation,
        "operating_income_usd": money("operating_income"),
        "interest_usd": money("total_interest"),
        "income_tax_usd": money("income_tax"),
        "capex_usd": 0.0 - sources.cash["investing_cash_flow"].to_numpy(),
        "free_cash_flow_usd": sources.free_cash_flow(),
        "receivable_usd": (balance["receivable"] + balance["bad_debt_allowance"]).to_numpy(),
        "payable_usd": balance["payable"].to_numpy(),
        "deferred_revenue_usd": balance["deferred_revenue"].to_numpy(),
        "debt_usd": balance["debt"].to_numpy(),
        "backlog_usd": seen("backlog_usd"),
        "tax_losses_usd": seen("tax_losses_usd"),
        "trial_customers": seen("trial_customers"),
        "billed_tokens": seen("billed_tokens"),
        "free_tokens": seen("free_tokens"),
        "failed_tokens": seen("failed_tokens"),
    }


def _retention(world: World) -> tuple[FloatArray, FloatArray]:
    """NRR and GRR by month, over the cohorts of all plans in the ledger."""
    by_party = world.ledger.monthly_by_party(saas_metrics.MRR_ACCOUNTS, world.months)
    keys = [(str(plan), cohort) for plan, cohort in map(read_party, by_party) if cohort is not None]
    nothing = np.zeros((0, world.months))
    mrr = np.stack(list(by_party.values())) / MICRO_PER_USD if keys else nothing
    customers = np.stack([world.billed[plan][cohort] for plan, cohort in keys]) if keys else nothing
    joined = np.array([cohort for _, cohort in keys], dtype=np.int64)
    return saas_metrics.retention(joined, mrr, customers)


def headline(table: pd.DataFrame, world: World) -> dict[str, float | str]:
    """Headline metrics of a run: {name: value}; months are text, "never" if they don't come."""
    last = table.iloc[-1]
    year = table.tail(12)
    revenue = float(table["revenue_usd"].sum())
    compute = float(table["compute_serving_usd"].sum() + table["compute_training_usd"].sum())
    return {
        "arr_usd_end": float(last["arr_usd"]),
        "revenue_usd_total": revenue,
        "gross_margin_last12": saas_metrics.gross_margin(
            float(year["revenue_usd"].sum()), float(year["cogs_usd"].sum())
        ),
        "gross_margin_total": saas_metrics.gross_margin(revenue, float(table["cogs_usd"].sum())),
        "cash_usd_min": float(table["cash_usd"].min()),
        "cash_usd_end": float(last["cash_usd"]),
        "cash_out_month": _first(table, table["cash_usd"] < 0),
        "cash_out_date": _cash_out_date(world, list(table["month"])),
        "breakeven_month": _break_even(table),
        "customers_end": float(last["customers"]),
        "serving_cost_usd_per_mtok_last": float(last["serving_cost_usd_per_mtok"]),
        "price_usd_per_mtok_last": float(last["price_usd_per_mtok"]),
        "replicas_peak": float(table["replicas_peak"].max()),
        "utilisation_mean": float(
            np.average(table["utilisation"], weights=np.maximum(table["replicas_mean"], 1e-9))
        ),
        "ltv_to_cac_last": float(last["ltv_to_cac"]),
        "nrr_last": float(last["nrr"]),
        "releases": float(world.records.get("releases", np.zeros(1)).sum()),
        "compute_share_of_revenue": saas_metrics.ratio(compute, revenue),
        "rule_of_40_last": float(last["rule_of_40"]),
        "founders_share_end": founders_share(world.rounds),
    }


def _rule_of_40(revenue: FloatArray, free_cash_flow: FloatArray) -> FloatArray:
    """Percentage points by month: growth over the year before, plus the margin of the last 12 months."""
    year = saas_metrics.trailing(revenue, 12)
    before = np.concatenate([np.zeros(min(12, len(year))), year])[: len(year)]
    before[: min(23, len(year))] = 0  # no whole year to compare with
    growth = saas_metrics.divide(year - before, before)
    margin = saas_metrics.divide(saas_metrics.trailing(free_cash_flow, 12), year)
    return np.array([saas_metrics.rule_of_40(g, m) for g, m in zip(growth, margin, strict=True)])


def _cash_out_date(world: World, labels: list[str]) -> str:
    """Day on which the cash first falls below zero, within a month too; a month has 30.4 days here."""
    hours, cash = world.ledger.running("cash")
    below = np.flatnonzero(cash < 0)
    if not len(below):
        return "never"
    hour = float(hours[below[0]])
    return f"{labels[int(hour // HOURS_PER_MONTH)]}-{int(hour % HOURS_PER_MONTH // 24) + 1:02d}"


def _first(table: pd.DataFrame, condition: pd.Series) -> str:
    return str(table["month"][condition].iloc[0]) if bool(condition.any()) else "never"


def _break_even(table: pd.DataFrame) -> str:
    """First of three months in a row with a positive net income: one good month is no break-even."""
    positive = table["net_income_usd"].to_numpy() > 0
    span = min(saas_metrics.TRAILING_MONTHS, len(positive))
    for month in range(len(positive) - span + 1):
        if positive[month : month + span].all():
            return str(table["month"].iloc[month])
    return "never"


def _gain(values: FloatArray, months: int) -> FloatArray:
    """Increase over the value `months` before (over zero at the start)."""
    before = np.concatenate([np.zeros(min(months, len(values))), values])[: len(values)]
    return np.asarray(values - before)
