"""Stage 1 of a scenario: training text, where it comes from and what happens to it.

The optional parts (`processing`, `labelling`, `synthetic`, `storage`) are null when the company does without.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sim.scenario.schema.base import NEBIUS, Section, fraction, option, quantity

Transfer = Annotated[float, Field(ge=0, le=1)]
MOST_SOURCES = 100  # each month draws for so many, so that one more source changes no other's draws


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
    licence: Literal["open", "bought", "crawled"] = option(
        "open", "open, bought or crawled", "on what ground the company holds the text"
    )
    licence_usd_per_month: float = option(0.0, "USD per month", "flat fee besides the price per token", ge=0)
    language: str = option("en", "code", "language of the text; see language_transfer", max_length=40)
    domain: str = option("general", "name", "what the text is about; see domain_transfer", max_length=40)
    filter_yield: float = option(
        1.0, "fraction", "clean unique tokens that the quality filter keeps", ge=0, le=1
    )
    unique_tokens: float | None = option(
        None,
        "tokens",
        "distinct clean text that the source can ever give; arrivals repeat it more and more; null: no end",
        gt=0,
    )
    half_life_months: float | None = option(
        None, "months", "until the text teaches half as much (news, prices, code); null: never stale", gt=0
    )
    withdrawals_per_year: float = option(
        0.0, "events per year", "how often the owner takes the source back (then it is gone)", ge=0, le=50
    )
    withdrawal_deletes: bool = option(
        True, "yes or no", "a withdrawal also takes the text already held out of the pool"
    )
    claims_per_year: float = option(
        0.0, "events per year", "how often somebody claims damages for the use of this text", ge=0, le=50
    )
    claim_usd: float = option(
        0.0, "USD per claim", "mean cost of a claim, lawyers included (exponential)", ge=0
    )


class Processing(Section):
    """What it takes in computer time to turn raw text into training text; each step sees what the last kept."""

    clean_cpu_h_per_gtok: float = quantity(
        1.0, "vCPU-hours per billion raw tokens", "extraction, language, rules", ge=0
    )
    deduplicate_cpu_h_per_gtok: float = quantity(
        1.0, "vCPU-hours per billion cleaned tokens", "exact and near duplicates", ge=0
    )
    filter_cpu_h_per_gtok: float = quantity(
        5.0, "vCPU-hours per billion unique tokens", "a small model that rates quality", ge=0
    )
    cpu_usd_per_h: float = quantity(
        0.0248,
        "USD per vCPU-hour",
        "rent of one virtual core (2 vCPU, 8 GB at 0.0496)",
        source=NEBIUS,
        date="2026",
        ge=0,
    )


class Labelling(Section):
    """People who write answers (demonstrations) and compare answers (preference pairs)."""

    people: float = quantity(1.0, "people", "who label all month", ge=0, le=1e6)
    usd_per_hour: float = quantity(25.0, "USD per hour", "one labeller, with everything", ge=0)
    hours_per_month: float = quantity(150.0, "hours per person and month", "paid", ge=0, le=730)
    preference_share: float = fraction(0.5, "of the time spent comparing answers; the rest writes them")
    pairs_per_hour: float = quantity(20.0, "comparisons per hour", "one person's pace", ge=0)
    demonstrations_per_hour: float = quantity(4.0, "answers per hour", "one person's pace", ge=0)
    tokens_per_demonstration: float = quantity(400.0, "tokens", "question and answer", gt=0)
    usable_share: float = fraction(0.9, "labels that pass the second look")
    quality: float = quantity(
        1.0,
        "effective tokens per token",
        "what a written answer teaches in continued training (fine-tuning counts on its own)",
        ge=0,
        le=1000,
    )
    half_life_months: float | None = quantity(
        None, "months", "until labels teach half as much; null: never stale", gt=0
    )


class Synthetic(Section):
    """Text that the served model writes on the company's own fleet."""

    tokens_per_month: float = quantity(0.0, "output tokens per month", "written, before selection", ge=0)
    kept_share: float = fraction(0.5, "written tokens that pass selection and deduplication")
    quality: float = quantity(
        0.5,
        "effective tokens per token",
        "what a kept token teaches, against bought text",
        ge=0,
        le=100,
    )
    most_pool_share: float = fraction(
        0.5, "largest part of the pool: a model fed on its own output forgets (Shumailov et al. 2024)"
    )
    uses_idle_fleet: bool = quantity(
        True, "yes or no", "reserved replicas that demand leaves idle write first; the rest is on demand"
    )
    half_life_months: float | None = quantity(
        None, "months", "until it teaches half as much; null: never stale", gt=0
    )


class Storage(Section):
    """Where the pool and what was served to consenting users lie."""

    usd_per_tb_month: float = quantity(
        23.0, "USD per TB and month", "object storage", source="AWS S3 Standard list price", date="2025", ge=0
    )
    bytes_per_token: float = quantity(4.5, "bytes per token", "text with its metadata", gt=0)
    raw_kept_share: float = fraction(1.0, "raw text that is kept besides the cleaned")
    copies: float = quantity(2.0, "copies", "of everything", ge=1, le=20)


class Data(Section):
    """Stage 1: the pool of training text, bought and given back by users."""

    initial_pool_tokens: float = quantity(
        0.0, "tokens", "clean in-domain text held at the start (already paid)", ge=0
    )
    sources: dict[str, DataSource] = Field(
        default_factory=dict, description="text streams by name", max_length=MOST_SOURCES
    )
    language_transfer: dict[str, Transfer] = Field(
        default_factory=dict,
        description="what a token of a language teaches for the served ones; 1 where not listed",
        json_schema_extra={"unit": "fraction", "optional": True},
    )
    domain_transfer: dict[str, Transfer] = Field(
        default_factory=dict,
        description="what a token of a domain teaches for the served one; 1 where not listed",
        json_schema_extra={"unit": "fraction", "optional": True},
    )
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
    feedback_half_life_months: float | None = option(
        None, "months", "until feedback teaches half as much; null: never stale", gt=0
    )
    feedback_pairs_per_million_requests: float = option(
        0.0,
        "preference pairs per million opted-in requests",
        "answers that users compare (thumbs, a second try)",
        ge=0,
    )
    labelled_share: float = fraction(0.01, "kept feedback tokens that people label")
    labelling_usd_per_mtok: float = quantity(2000.0, "USD per million labelled tokens", "people's work", ge=0)
    processing: Processing | None = option(
        None, "section", "computer time of cleaning, deduplication and filtering; null: not counted"
    )
    labelling: Labelling | None = option(
        None, "section", "people who write and compare answers; null: nobody"
    )
    synthetic: Synthetic | None = option(
        None, "section", "text written by the company's own fleet; null: none"
    )
    storage: Storage | None = option(None, "section", "keeping the text; null: not counted")


class Loop(Section):
    """Usage → consented text → better model → customers → usage."""

    cut: bool = option(
        False, "yes or no", "nothing that users send is trained on: run with and without to see its worth"
    )
