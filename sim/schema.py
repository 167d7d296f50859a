"""The sections of a scenario: every assumption about the company, with unit, meaning, bounds and source.

A field's unit and (for published defaults) its source and date travel in `json_schema_extra`; the assumptions
table of a report is read from here. Numbers are strict: a text or a yes/no where a number belongs is refused.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

BESIROGLU = "Besiroglu et al. 2024, arXiv:2404.10102"
NEBIUS = "Nebius list price, skypilot-catalog v8, commit 0082b0435f39"


class Section(BaseModel):
    """A part of a scenario: unknown keys refused, immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True
    )


def quantity(
    default: Any,
    unit: str,
    meaning: str,
    *,
    source: str | None = None,
    date: str | None = None,
    **bounds: Any,
) -> Any:
    """A field with its unit, its meaning, and where its default comes from (None: assumed)."""
    return Field(
        default=default,
        description=meaning,
        json_schema_extra={"unit": unit, "source": source, "date": date},
        **bounds,
    )


def fraction(default: float, meaning: str) -> Any:
    """A field between 0 and 1."""
    return quantity(default, "fraction", meaning, ge=0, le=1)


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


class Training(Section):
    """Stage 2: runs on a rented cluster, a scaling law, a gate before release."""

    base_effective_tokens: float = quantity(
        1e10, "effective tokens", "what the starting model knows of this domain, as in-domain tokens", gt=0
    )
    loss_irreducible: float = quantity(
        1.8172, "nats per token", "E of L = E + A/N^alpha + B/D^beta", source=BESIROGLU, date="2024", ge=0
    )
    loss_a: float = quantity(
        482.01, "nats per token", "A of the scaling law", source=BESIROGLU, date="2024", gt=0
    )
    loss_alpha: float = quantity(
        0.3478, "exponent", "alpha of the scaling law", source=BESIROGLU, date="2024", gt=0, le=2
    )
    loss_b: float = quantity(
        2085.43, "nats per token", "B of the scaling law", source=BESIROGLU, date="2024", gt=0
    )
    loss_beta: float = quantity(
        0.3658, "exponent", "beta of the scaling law", source=BESIROGLU, date="2024", gt=0, le=2
    )
    quality_per_nat: float = quantity(
        1.0, "1 per nat", "k of quality = exp(-k (loss - E)): 1 is a perfect model", gt=0, le=20
    )
    cadence_months: float = quantity(3.0, "months", "time between the starts of two runs", gt=0, le=120)
    min_new_data_share: float = quantity(
        0.02, "fraction of effective tokens", "new data below which a run is not worth starting", ge=0, le=10
    )
    replay_tokens: float = quantity(
        1e11, "tokens", "general text repeated in each run so that the model forgets nothing", ge=0
    )
    epochs: float = quantity(2.0, "passes", "how often a run reads the in-domain pool", gt=0, le=100)
    experiments_factor: float = quantity(
        10.0, "FLOP per FLOP of the final run", "compute of trials and ablations before the final run", ge=0
    )
    accelerators: int = quantity(8, "accelerators", "size of the rented cluster", ge=1, le=1_000_000)
    accelerator_price_usd_per_hour: float = quantity(
        2.95, "USD per accelerator-hour", "rent of one H100 SXM", source=NEBIUS, date="2026", ge=0
    )
    accelerator_peak_flops: float = quantity(
        989e12, "FLOP/s", "dense bf16 peak of one accelerator", source="NVIDIA H100 SXM data sheet", gt=0
    )
    mfu: float = quantity(0.40, "fraction of peak", "model FLOP utilisation in training", gt=0, le=1)
    run_noise: float = quantity(0.01, "nats per token", "standard deviation of a run's true loss", ge=0, le=1)
    evaluation_noise: float = quantity(
        0.005, "nats per token", "standard deviation of the loss measured at the gate", ge=0, le=1
    )
    min_improvement: float = quantity(
        0.002, "nats per token", "measured gain that the gate asks before a release", ge=0, le=5
    )


class Deployment(Section):
    """Stage 3: the fleet that serves, sized hour by hour from the capacity surface of the measured model."""

    model: str = quantity("smollm2-135m", "name", "served model; its profile gives speed, size and price")
    ttft_p95_s: float = quantity(
        10.0, "s", "objective: 95th percentile of the time to first token", gt=0, le=3600
    )
    tpot_p95_s: float = quantity(
        0.5, "s", "objective: 95th percentile of the time per output token", gt=0, le=600
    )
    replica_price_usd_per_hour: float | None = quantity(
        None, "USD per replica-hour", "price of one serving machine; null takes the profile's", ge=0
    )
    price_decline_per_year: float = quantity(
        0.10, "fraction per year", "how fast serving machines get cheaper", ge=0, lt=1
    )
    headroom: float = quantity(
        0.20, "fraction", "capacity ordered above the demand that is seen", ge=0, le=10
    )
    min_replicas: int = quantity(2, "replicas", "smallest fleet, for availability", ge=1, le=1_000_000)
    provisioning_delay_h: float = quantity(
        0.1, "h", "from ordering a machine to serving; demand may outgrow the fleet meanwhile", ge=0, le=24
    )
    reserved_share: float = quantity(
        0.6, "fraction of the mean fleet", "replicas reserved (paid always), rest on demand", ge=0, le=3
    )
    reserved_discount: float = fraction(0.30, "discount on reserved replicas")
    reserved_term_months: int = quantity(6, "months", "how long a reservation binds", ge=1, le=60)
    rollout_days: float = quantity(
        7.0, "days", "from a passed gate to all users on the new version", ge=0, le=365
    )
    support_usd_per_incident_hour: float = quantity(
        50.0, "USD per hour with unserved requests", "people handling the incident", ge=0
    )


class Plan(Section):
    """What a customer can sign: a fee, a price per token, or both. Neither makes it a free plan."""

    signup_share: float = fraction(1.0, "new customers who start on this plan")
    monthly_fee_usd: float = quantity(0.0, "USD per customer and month", "subscription or contract fee", ge=0)
    reference_fee_usd: float = quantity(
        0.0, "USD per customer and month", "what comparable offers ask; 0 means no comparison", ge=0
    )
    pays_per_token: bool = quantity(False, "yes or no", "usage is billed at the prices per million tokens")
    onboarding_fee_usd: float = quantity(
        0.0, "USD per new customer", "one-off service (fine-tuning, integration)", ge=0
    )
    services_usd_per_month: float = quantity(
        0.0, "USD per customer and month", "mean of further fine-tuning work, not recurring", ge=0
    )
    initial_customers: int = quantity(0, "customers", "on this plan at the start", ge=0, le=10**9)
    requests_per_month: float = quantity(
        0.0, "requests per customer and month", "mean usage at the reference price", ge=0
    )
    usage_growth_per_month: float = quantity(
        0.0, "fraction per month", "how a customer's usage grows with his age (expansion)", gt=-1, le=1
    )
    usage_growth_months: int = quantity(12, "months", "age at which usage stops growing", ge=0, le=600)
    churn_per_month: float = fraction(0.03, "customers lost per month at par quality and objective latency")
    converts_to: str | None = quantity(None, "plan", "where free users go when they begin to pay")
    conversion_per_month: float = fraction(0.0, "free users who convert per month at par quality")
    support_usd_per_month: float = quantity(0.0, "USD per customer and month", "customer support", ge=0)


class Market(Section):
    """Stage 4: who comes, what they pay, who leaves."""

    traffic: dict[str, float] = Field(
        default_factory=lambda: {"chat": 1.0},
        description="share of requests by traffic class (see sim.workload)",
        json_schema_extra={"unit": "fraction of requests"},
        min_length=1,
    )
    price_usd_per_mtok_prompt: float = quantity(
        0.10, "USD per million prompt tokens", "what customers pay", ge=0
    )
    price_usd_per_mtok_output: float = quantity(
        0.40, "USD per million output tokens", "what customers pay", ge=0
    )
    reference_price_usd_per_mtok: float = quantity(
        0.15,
        "USD per million tokens, prompt and output together",
        "what comparable offers cost at the start",
        gt=0,
    )
    reference_price_decline_per_year: float = quantity(
        0.15, "fraction per year", "how fast competitors cut their prices", ge=0, lt=1
    )
    signup_elasticity: float = quantity(
        1.0, "exponent", "signups fall with (price / reference)^-e", ge=0, le=10
    )
    usage_elasticity: float = quantity(
        0.5, "exponent", "token-billed usage falls with (price / reference)^-e", ge=0, le=10
    )
    addressable_customers: float = quantity(
        1e5, "customers", "everybody who could ever sign; growth slows on the way", gt=0
    )
    organic_signups_per_month: float = quantity(
        5.0, "customers per month", "who come by themselves (search, press)", ge=0
    )
    word_of_mouth_per_month: float = quantity(
        0.02, "signups per customer and month", "referrals at par quality", ge=0, le=2
    )
    marketing_usd_per_month: float = quantity(
        20_000.0, "USD per month", "fixed part of the marketing budget", ge=0
    )
    marketing_share_of_revenue: float = quantity(
        0.15, "fraction of last month's revenue", "growing part of the marketing budget", ge=0, le=5
    )
    signup_cost_usd: float = quantity(
        300.0, "USD per signup", "marketing cost of the first signups, before saturation", gt=0
    )
    saturation_signups_per_month: float = quantity(
        500.0, "customers per month", "most that marketing can ever bring in a month", gt=0
    )
    demand_noise: float = quantity(
        0.10, "standard deviation of the logarithm", "hour-to-hour noise of demand", ge=0, le=2
    )
    competitor_quality: float = fraction(0.30, "quality index of the best competitor at the start")
    competitor_gap_closed_per_year: float = fraction(
        0.05, "part of its distance to a perfect model that the competitor closes in a year"
    )
    churn_per_quality: float = quantity(
        5.0, "exponent per quality point", "churn hazard × exp(-c (quality - competitor's))", ge=0, le=100
    )
    signup_per_quality: float = quantity(
        3.0,
        "exponent per quality point",
        "signups, conversion × exp(c (quality - competitor's))",
        ge=0,
        le=100,
    )
    churn_per_latency: float = quantity(
        0.5,
        "exponent",
        "churn hazard × (felt / objective latency)^c when slower than the objective",
        ge=0,
        le=20,
    )
    churn_per_unserved: float = quantity(
        2.0, "lost customers per month per fraction of requests unserved", "what outages cost", ge=0, le=100
    )
    plans: dict[str, Plan] = Field(
        default_factory=dict, description="what customers can sign, by name", min_length=1
    )


class Role(Section):
    """People of one kind."""

    function: Literal["research", "sales", "general"] = quantity(
        "general", "research, sales or general", "where the salary shows in the books"
    )
    headcount: float = quantity(1.0, "people", "at the start", ge=0, le=1e6)
    hires_per_year: float = quantity(
        0.0, "people per year", "steady growth (negative: reduction)", ge=-1e6, le=1e6
    )
    cost_usd_per_year: float = quantity(
        120_000.0, "USD per person and year", "salary with everything the employer pays", ge=0
    )


class FundingRound(Section):
    """Money paid in for shares."""

    month: int = quantity(0, "month of the run, 0 is the first", "when it is paid in", ge=0, le=600)
    amount_usd: float = quantity(0.0, "USD", "paid in", ge=0)


class Finance(Section):
    """People, other cost, payment terms and funding."""

    initial_cash_usd: float = quantity(1e6, "USD", "in the bank at the start", ge=0)
    funding: dict[str, FundingRound] = Field(default_factory=dict, description="funding rounds by name")
    people: dict[str, Role] = Field(default_factory=dict, description="people by role")
    other_opex_usd_per_month: float = quantity(
        10_000.0, "USD per month", "office, software, legal, insurance", ge=0
    )
    customer_payment_days: float = quantity(
        0.0, "days", "from invoice to money: 0 cards, 30 companies", ge=0, le=365
    )
    supplier_payment_days: float = quantity(
        30.0, "days", "from a supplier's bill to its payment", ge=0, le=365
    )
    payment_fee_share: float = fraction(0.029, "of each invoice kept by the payment processor")
    payment_fee_usd: float = quantity(
        0.30, "USD per paying customer and month", "fixed part of the fee", ge=0
    )


class ScenarioFields(Section):
    """A whole company: its four stages, its market and its money."""

    name: str = quantity("A company", "text", "title shown in reports", min_length=1, max_length=120)
    start_month: str = quantity(
        "2026-01", "YYYY-MM", "first month of the run", pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])$"
    )
    horizon_months: int = quantity(36, "months", "how long to run", ge=1, le=240)
    seed: int = quantity(0, "integer", "of the random streams", ge=0, le=2**63 - 1)
    data: Data = Field(default_factory=Data, description="stage 1: training text")
    training: Training = Field(default_factory=Training, description="stage 2: model versions")
    deployment: Deployment = Field(default_factory=Deployment, description="stage 3: the serving fleet")
    market: Market = Field(description="stage 4: customers and prices")
    finance: Finance = Field(default_factory=Finance, description="people, terms, funding")
    sources: dict[str, str] = Field(
        default_factory=dict,
        description='where values come from: {dotted key: "source, date"}',
        json_schema_extra={"unit": "source, date"},
    )
