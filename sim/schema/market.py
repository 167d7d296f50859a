"""Stage 4 of a scenario: customers, plans, prices."""

from __future__ import annotations

from pydantic import Field

from sim.schema.base import Section, fraction, quantity


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
