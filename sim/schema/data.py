"""Stage 1 of a scenario: training text."""

from __future__ import annotations

from pydantic import Field

from sim.schema.base import Section, fraction, quantity


class DataSource(Section):
    """One stream of text that the company buys or crawls."""

    tokens_per_month: float = quantity(0.0, "tokens per month", "raw text that arrives", ge=0)
    price_usd_per_mtok: float = quantity(0.0, "USD per million raw tokens", "licence or crawling cost", ge=0)
    cleaning_yield: float = fraction(0.5, "raw tokens that survive cleaning and filtering")
    duplicate_share: float = fraction(0.2, "cleaned tokens that are duplicates of text already held")
    quality: float = quantity(
        1.0,
        "effective tokens per token",
        "what a clean token teaches, against an in-domain one",
        ge=0,
        le=100,
    )


class Data(Section):
    """Stage 1: the pool of training text, bought and given back by users."""

    initial_pool_tokens: float = quantity(
        0.0, "tokens", "clean in-domain text held at the start (already paid)", ge=0
    )
    sources: dict[str, DataSource] = Field(default_factory=dict, description="text streams by name")
    feedback_opt_in: float = fraction(0.2, "usage whose customer lets the company train on it")
    feedback_yield: float = fraction(
        0.02, "opted-in tokens that survive cleaning, deduplication and selection"
    )
    feedback_quality: float = quantity(
        5.0,
        "effective tokens per token",
        "what a token of real usage teaches, against bought text",
        ge=0,
        le=100,
    )
    labelled_share: float = fraction(0.01, "kept feedback tokens that people label")
    labelling_usd_per_mtok: float = quantity(2000.0, "USD per million labelled tokens", "people's work", ge=0)
