"""Stage 4 of a scenario: customers, the plans they can sign, what they pay, and whom they compare with.

The keys of `market` itself describe one segment; `market.segments` adds more with the same keys.
"""

from __future__ import annotations

from pydantic import Field

from sim.scenario.schema.base import Section, fraction, option, quantity


class Trial(Section):
    """Signups use the plan unpaid at first; then they begin to pay or go."""

    months: int = quantity(1, "months", "how long the trial lasts", ge=1, le=24)
    conversion: float = fraction(0.15, "trial users who begin to pay at its end, at par quality")


class Seats(Section):
    """The fee is asked per seat, and teams grow (or shrink)."""

    per_customer: float = quantity(5.0, "seats per customer", "at signing", gt=0, le=1e6)
    growth_per_month: float = quantity(
        0.0, "fraction per month", "how a customer's seats grow with his age", gt=-1, le=1
    )
    growth_months: int = quantity(24, "months", "age at which seats stop growing", ge=0, le=600)


class Contract(Section):
    """A commitment for a term: no customer leaves within it; at its end it is renewed or lost."""

    months: int = quantity(12, "months", "length of the term, and of each renewal", ge=1, le=120)
    minimum_usd_per_month: float = quantity(
        0.0, "USD per customer and month", "least that fees and usage together come to (take or pay)", ge=0
    )
    renewal_share: float = fraction(0.85, "contracts renewed at the end of a term, at par quality")
    prepaid_months: int = quantity(
        0, "months", "fees and minimum invoiced in advance for so long; 0 invoices each month", ge=0, le=120
    )
    commission_share: float = fraction(0.0, "of the first year's fees and minimum, paid to sales at signing")


class FineTuningService(Section):
    """Customers' own models, tuned by the company and billed by the token trained. Not recurring revenue."""

    mtok_per_month: float = quantity(
        10.0, "million tokens per customer and month", "mean that customers have tuned", ge=0
    )
    price_usd_per_mtok: float = quantity(8.0, "USD per million trained tokens", "what they pay", ge=0)
    cost_usd_per_mtok: float = quantity(2.0, "USD per million trained tokens", "compute it takes", ge=0)


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
    feedback_opt_in: float | None = option(
        None, "fraction", "usage that may be trained on; null takes data.feedback_opt_in", ge=0, le=1
    )
    included_tokens_per_month: float = option(
        0.0, "tokens per customer and month", "usage that the fee covers before tokens are billed", ge=0
    )
    on_premise: bool = option(
        False,
        "yes or no",
        "the model runs on the customer's machines: the fee is a licence, no fleet serves it",
    )
    partner_share: float = option(
        0.0, "fraction of revenue", "paid on to the marketplace or reseller that brought it", ge=0, le=1
    )
    customer_sales_usd_per_month: float = option(
        0.0, "USD per customer and month", "what a customer earns with the product", ge=0
    )
    share_of_customer_sales: float = option(
        0.0, "fraction", "of a customer's sales that he pays to the company", ge=0, le=1
    )
    trial: Trial | None = Field(default=None, description="unpaid start of a paying plan; null: none")
    seats: Seats | None = Field(default=None, description="the fee is per seat; null: per customer")
    contract: Contract | None = Field(default=None, description="committed term; null: month to month")
    fine_tuning: FineTuningService | None = Field(
        default=None, description="tuning billed by the token; null: none"
    )


MAIN_SEGMENT = "main"  # how tables call the segment that the keys of `market` itself describe


class Competitor(Section):
    """One rival offer. Customers weigh several by value for money."""

    price_usd_per_mtok: float = quantity(
        0.15, "USD per million tokens, prompt and output together", "its price at the start", gt=0
    )
    price_decline_per_year: float = quantity(
        0.15, "fraction per year", "how fast it gets cheaper", ge=0, lt=1
    )
    quality: float = fraction(0.30, "its quality index at the start")
    gap_closed_per_year: float = fraction(0.05, "part of its distance to a perfect model closed in a year")
    enters_month: int = quantity(0, "month of the run", "first month in which it is on offer", ge=0, le=600)
    price_cut_month: int | None = quantity(
        None, "month of the run", "from which it charges less in a price war; null: never", ge=0, le=600
    )
    price_cut_share: float = quantity(0.0, "fraction", "how much less from that month on", ge=0, lt=1)


class CacheDiscount(Section):
    """Prompt tokens found in the prefix cache are billed at less."""

    cached_prompt_share: float = fraction(0.3, "prompt tokens that the prefix cache holds")
    discount: float = fraction(0.5, "taken off the price of such a token")


class Terms(Section):
    """How customers of a segment pay."""

    customer_payment_days: float = quantity(
        0.0, "days", "from invoice to money: 0 cards, 30 companies", ge=0, le=365
    )
    payment_fee_share: float = fraction(0.029, "of each invoice kept by the payment processor")
    payment_fee_usd: float = quantity(
        0.30, "USD per paying customer and month", "fixed part of the fee", ge=0
    )
    late_share: float = fraction(0.0, "of invoiced money that comes late")
    late_days: float = quantity(30.0, "days", "how late that is", ge=0, le=365)
    bad_debt_share: float = fraction(0.0, "of invoiced money that never comes")
    write_off_days: float = quantity(
        90.0, "days after the due date", "when money that never comes is given up", ge=0, le=730
    )
    sales_tax_rate: float = quantity(
        0.0, "fraction of the invoice", "sales or value-added tax, collected for the state", ge=0, le=1
    )


class Segment(Section):
    """Customers of one kind: how they come, what they pay, why they leave."""

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
    plans: dict[str, Plan] = Field(default_factory=dict, description="what customers can sign, by name")
    reach_share: float = option(
        1.0,
        "fraction of addressable customers",
        "whom language, channels and law let the company reach",
        gt=0,
        le=1,
    )
    addressable_growth_per_year: float = option(
        0.0, "fraction per year", "how the number of addressable customers grows", gt=-1, le=10
    )
    wins_per_salesperson_per_month: float = option(
        0.0,
        "signups per salesperson and month",
        "what a ramped salesperson wins at par quality",
        ge=0,
        le=1e4,
    )
    signup_per_latency: float = option(
        0.0, "exponent", "signups × (felt / objective latency)^-c of last month's service", ge=0, le=20
    )
    churn_per_price: float = option(0.0, "exponent", "churn hazard × (price / reference)^c", ge=0, le=20)
    churn_per_incident: float = option(
        0.0, "lost customers per month per safety incident", "what an incident costs", ge=0, le=1
    )
    price_follows_reference: float = option(
        0.0, "exponent", "own token prices move with (reference / its start)^c: 0 stay, 1 follow", ge=0, le=1
    )
    reference_fee_decline_per_year: float = option(
        0.0, "fraction per year", "how fast competitors cut their fees", ge=0, lt=1
    )
    quality_memory_months: float = option(
        0.0,
        "months",
        "how long customers take to feel a change of relative quality (time constant)",
        ge=0,
        le=120,
    )
    request_size: float = option(
        1.0,
        "mean requests",
        "tokens and load of a request against the mean one of market.traffic",
        gt=0,
        le=1000,
    )
    competitors: dict[str, Competitor] = Field(
        default_factory=dict,
        description="rivals by name; when given they replace the reference price and competitor quality above",
        json_schema_extra={"optional": True},
        max_length=50,
    )
    cache_discount: CacheDiscount | None = Field(
        default=None, description="cheaper cached prompt tokens; null: none"
    )
    terms: Terms | None = Field(
        default=None, description="how these customers pay; null: the terms under finance"
    )


class Market(Segment):
    """Stage 4: who comes, what they pay, who leaves."""

    traffic: dict[str, float] = Field(
        default_factory=lambda: {"chat": 1.0},
        description="share of requests by traffic class (see sim.workload)",
        json_schema_extra={"unit": "fraction of requests"},
        min_length=1,
    )
    demand_noise: float = quantity(
        0.10, "standard deviation of the logarithm", "hour-to-hour noise of demand", ge=0, le=2
    )
    segments: dict[str, Segment] = Field(
        default_factory=dict,
        description="further kinds of customers by name, each with the keys above (but one traffic for all)",
        json_schema_extra={"optional": True},
        max_length=50,
    )
