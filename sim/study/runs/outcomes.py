"""What a run comes to: one number each for growth, margin, cash, ruin, service, as a study compares them.

Money is month-end money: a company counts as ruined when a month closes with less than nothing in the bank, as
`cash_out_month` of a run's headline has it. A month that never came (break-even, cash out) is NaN.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sim.scenario.metrics import OUTCOMES

if TYPE_CHECKING:
    from sim.company.simulate import Result


def outcomes_of(result: Result) -> dict[str, float]:
    """Every outcome of a run, in the order of `OUTCOMES`; undefined is NaN, endless runway is infinite."""
    table, head = result.monthly, result.headline
    year, last = table.tail(12), table.iloc[-1]
    broke = np.flatnonzero(table["cash_usd"].to_numpy() < 0)
    found = {
        **{name: float(head[name]) for name in OUTCOMES if name in head},
        "revenue_usd_last12": float(year["revenue_usd"].sum()),
        "profit_usd_total": float(table["net_income_usd"].sum()),
        "profit_usd_last12": float(year["net_income_usd"].sum()),
        "free_cash_flow_usd_total": float(table["free_cash_flow_usd"].sum()),
        "ruined": float(len(broke) > 0),
        "cash_out_month_index": float(broke[0]) if len(broke) else math.nan,
        "breakeven_month_index": _month_index(list(table["month"]), str(head["breakeven_month"])),
        "runway_months_min": float(table["runway_months"].min()),
        "cac_payback_months_last": float(last["cac_payback_months"]),
        "served_fraction_min": float(table["served_fraction"].min()),
        "ttft_p95_s_max": float(table["ttft_p95_s"].max()),
        "tpot_p95_s_max": float(table["tpot_p95_s"].max()),
        "model_quality_end": float(last["model_quality"]),
    }
    return {name: found[name] for name in OUTCOMES}


def _month_index(labels: list[str], label: str) -> float:
    return float(labels.index(label)) if label in labels else math.nan
