"""A company with every market and finance feature on: three segments, contracts, debt, leases, taxes."""

from __future__ import annotations

from typing import Any

THREE_SEGMENTS: dict[str, Any] = {
    "name": "Three segments",
    "horizon_months": 36,
    "data": {"initial_pool_tokens": 1e8},
    "market": {
        "segments": {
            "consumer": {
                "marketing_usd_per_month": 20_000.0,
                "signup_cost_usd": 12.0,
                "addressable_customers": 3e5,
                "saturation_signups_per_month": 8000.0,
                "quality_memory_months": 3.0,
                "signup_per_latency": 0.5,
                "terms": {"sales_tax_rate": 0.2, "bad_debt_share": 0.004},
                "plans": {
                    "free": {
                        "signup_share": 0.8,
                        "requests_per_month": 20.0,
                        "churn_per_month": 0.15,
                        "converts_to": "plus",
                        "conversion_per_month": 0.02,
                    },
                    "plus": {
                        "signup_share": 0.2,
                        "monthly_fee_usd": 12.0,
                        "reference_fee_usd": 15.0,
                        "requests_per_month": 150.0,
                        "initial_customers": 500,
                        "churn_per_month": 0.06,
                        "trial": {"months": 1, "conversion": 0.3},
                    },
                },
            },
            "developers": {
                "organic_signups_per_month": 40.0,
                "request_size": 1.5,
                "churn_per_price": 0.5,
                "price_follows_reference": 0.5,
                "cache_discount": {"cached_prompt_share": 0.4, "discount": 0.5},
                "competitors": {
                    "big": {"price_usd_per_mtok": 0.2, "quality": 0.45},
                    "cheap": {
                        "price_usd_per_mtok": 0.1,
                        "quality": 0.25,
                        "price_cut_month": 12,
                        "price_cut_share": 0.3,
                    },
                    "late": {"price_usd_per_mtok": 0.08, "quality": 0.5, "enters_month": 20},
                },
                "plans": {
                    "metered": {
                        "signup_share": 0.9,
                        "pays_per_token": True,
                        "requests_per_month": 30_000.0,
                        "initial_customers": 80,
                        "usage_growth_per_month": 0.03,
                        "fine_tuning": {"mtok_per_month": 1.0},
                    },
                    "bundle": {
                        "signup_share": 0.1,
                        "monthly_fee_usd": 99.0,
                        "pays_per_token": True,
                        "included_tokens_per_month": 3e8,
                        "requests_per_month": 300_000.0,
                        "partner_share": 0.2,
                    },
                },
            },
            "enterprise": {
                "organic_signups_per_month": 0.5,
                "marketing_usd_per_month": 5000.0,
                "signup_cost_usd": 15_000.0,
                "saturation_signups_per_month": 5.0,
                "addressable_customers": 500.0,
                "addressable_growth_per_year": 0.1,
                "wins_per_salesperson_per_month": 0.3,
                "terms": {
                    "customer_payment_days": 45.0,
                    "payment_fee_share": 0.0,
                    "payment_fee_usd": 0.0,
                    "late_share": 0.3,
                    "late_days": 40.0,
                    "bad_debt_share": 0.01,
                },
                "plans": {
                    "committed": {
                        "signup_share": 0.6,
                        "pays_per_token": True,
                        "requests_per_month": 400_000.0,
                        "initial_customers": 3,
                        "contract": {
                            "months": 12,
                            "minimum_usd_per_month": 4000.0,
                            "renewal_share": 0.8,
                            "prepaid_months": 12,
                            "commission_share": 0.1,
                        },
                    },
                    "seats": {
                        "signup_share": 0.2,
                        "monthly_fee_usd": 30.0,
                        "requests_per_month": 20_000.0,
                        "seats": {"per_customer": 40.0, "growth_per_month": 0.03},
                        "contract": {"months": 24, "renewal_share": 0.7, "prepaid_months": 6},
                    },
                    "on_premise": {
                        "signup_share": 0.1,
                        "monthly_fee_usd": 8000.0,
                        "on_premise": True,
                        "onboarding_fee_usd": 20_000.0,
                        "support_usd_per_month": 500.0,
                        "contract": {"months": 12, "prepaid_months": 12},
                    },
                    "agent": {
                        "signup_share": 0.1,
                        "customer_sales_usd_per_month": 50_000.0,
                        "share_of_customer_sales": 0.05,
                        "requests_per_month": 50_000.0,
                    },
                },
            },
        }
    },
    "finance": {
        "initial_cash_usd": 2e6,
        "cash_interest_per_year": 0.03,
        "locations": {"lisbon": {"cost_factor": 0.6, "office_usd_per_month": 300.0}},
        "people": {
            "engineers": {
                "function": "research",
                "headcount": 6.0,
                "hiring_plan": {"3": 2.0, "14": -3.0},
                "severance_months": 2.0,
                "hiring_cost_usd": 15_000.0,
                "raise_per_year": 0.04,
                "location": "lisbon",
            },
            "sellers": {
                "function": "sales",
                "headcount": 2.0,
                "hires_per_year": 2.0,
                "ramp_months": 4.0,
                "sells_to": "enterprise",
            },
            "support": {"function": "support", "headcount": 2.0, "cost_usd_per_year": 60_000.0},
        },
        "funding": {
            "seed": {"month": 2, "amount_usd": 1e6, "pre_money_usd": 6e6, "option_pool_share": 0.1},
            "bridge": {
                "amount_usd": 3e6,
                "pre_money_usd": 10e6,
                "runway_below_months": 9.0,
                "chance_per_month": 0.4,
                "fee_share": 0.02,
            },
        },
        "loans": {
            "venture": {
                "month": 4,
                "amount_usd": 5e5,
                "interest_only_months": 6,
                "term_months": 24,
                "fee_share": 0.01,
            }
        },
        "equipment": {
            "servers": {
                "month": 1, "units": 3.0, "price_usd": 20_000.0, "life_months": 18, "salvage_share": 0.1,
                "use": "serving", "capacity": 2.0, "upkeep_usd_per_month": 50.0,
            },
        },
        "leases": {"office": {"payment_usd_per_month": 7000.0, "term_months": 30, "deposit_usd": 21_000.0}},
        "taxes": {"income_tax_rate": 0.21},
    },
}  # fmt: skip
