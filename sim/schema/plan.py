"""What a customer can sign: a plan, with its optional parts (trial, seats, contract, fine-tuning)."""

from __future__ import annotations

from pydantic import Field

from sim.schema.base import Section, fraction, option, quantity


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
    """A commitment for a term: nobody leaves within it, and its end is a decision."""

    months: int = quantity(12, "months", "length of the term, and of each renewal", ge=1, le=120)
    minimum_usd_per_month: float = quantity(
        0.0, "USD per customer and month", "least that fees and usage together come to (take or pay)", ge=0
    )
    renewal_share: float = fraction(0.85, "contracts renewed at the end of a term, at par quality")
    prepaid_months: int = quantity(
        0, "months", "fees and minimum invoiced in advance for so long; 0 invoices each month", ge=0, le=120
    )
    commission_share: float = fraction(0.0, "of the first year's fees and minimum, paid to sales at signing")


class FineTuning(Section):
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
    fine_tuning: FineTuning | None = Field(default=None, description="tuning billed by the token; null: none")
