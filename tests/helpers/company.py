"""A capacity surface with a closed form, so that tests of the company need no request-level simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sim.capacity.surface import CapacitySurface

PROMPT_TOKENS = 1155.0
OUTPUT_TOKENS = 211.0


def closed_form_surface(capacity_rps: float = 0.4, saturation_rps: float = 0.5) -> CapacitySurface:
    """Latency grows like 1 / (1 − load); tokens per request like the Azure conversation trace."""
    rates = np.linspace(0.01, 0.99, 50) * saturation_rps
    load = rates / saturation_rps
    table = pd.DataFrame(
        {
            "rate_rps": rates,
            "load": load,
            "ttft_p50_s": 0.5 / (1 - load),
            "ttft_p95_s": 1.5 / (1 - load),
            "tpot_p50_s": 0.05 / (1 - load),
            "tpot_p95_s": 0.08 / (1 - load),
            "e2e_p95_s": 20 / (1 - load),
            "busy_fraction": load,
            "output_tokens_per_s": rates * OUTPUT_TOKENS,
            "batch_mean": load / (1 - load),
        }
    )
    return CapacitySurface(
        capacity_rps=capacity_rps,
        saturation_rps=saturation_rps,
        prompt_tokens_mean=PROMPT_TOKENS,
        output_tokens_mean=OUTPUT_TOKENS,
        table=table,
        provenance={"method": "closed form for tests"},
    )
