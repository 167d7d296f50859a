"""Where training text comes from, what survives of it, and what the work costs.

Raw text is cleaned, deduplicated and filtered; each step reads what the one before kept, so its computer time
falls on that. A source with a finite stock repeats itself: when `n` clean tokens have been drawn at random
from a stock of `U`, the distinct part is U·(1 − exp(−n/U)) (sampling with replacement, the coupon collector's
law). So the yield of a crawl falls by itself, month after month.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sim.scenario.schema.data import Data, DataSource, Processing

_TOKENS_PER_GTOK = 1e9


@dataclass(frozen=True)
class Arrival:
    """One month of one source, in tokens: raw, after cleaning, after deduplication, after the filter."""

    raw: float
    cleaned: float
    unique: float
    kept: float
    repeated: float  # of the kept by the yields, those that only repeat what the source gave before


def arrival(source: DataSource, drawn_tokens: float) -> Arrival:
    """Tokens of a source in one month, after `drawn_tokens` clean tokens (repeats included) of earlier months."""
    raw = source.tokens_per_month
    cleaned = raw * source.cleaning_yield
    unique = cleaned * (1 - source.duplicate_share)
    drawn = unique * source.filter_yield
    kept = drawn
    if source.unique_tokens is not None:
        kept = distinct(source.unique_tokens, drawn_tokens + drawn) - distinct(
            source.unique_tokens, drawn_tokens
        )
    return Arrival(raw, cleaned, unique, kept, drawn - kept)


def distinct(stock_tokens: float, drawn_tokens: float) -> float:
    """Distinct tokens after drawing `drawn_tokens` at random from a stock."""
    return -stock_tokens * math.expm1(-drawn_tokens / stock_tokens)


def teaches(data: Data, source: DataSource) -> float:
    """Effective tokens per kept token: the source's quality, and how its language and domain carry over."""
    language = data.language_transfer.get(source.language, 1.0)
    return source.quality * language * data.domain_transfer.get(source.domain, 1.0)


def processing_cpu_h(processing: Processing, month: Arrival) -> float:
    """vCPU-hours to clean, deduplicate and filter one month of a source."""
    work = month.raw * processing.clean_cpu_h_per_gtok
    work += month.cleaned * processing.deduplicate_cpu_h_per_gtok
    work += month.unique * processing.filter_cpu_h_per_gtok
    return work / _TOKENS_PER_GTOK
