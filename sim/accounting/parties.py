"""Names of the parties of a posting: made here, and read back here.

Each party has one name, and no two share one within the accounts of `PLAN_ACCOUNTS`:

    customers of a plan who joined in one month  PLAN/007
    a plan as a whole                            PLAN; with "/" behind it where that would read as something else
    those who answer incidents and tickets       `SUPPLIERS`; they belong to no plan

In all other accounts a party is a supplier, an investor or the customers of a whole segment, by their own names.
"""

from __future__ import annotations

from sim.scenario.schema.market import MAIN_SEGMENT

ON_CALL, SUPPORT_DESK = "on-call", "support desk"
SUPPLIERS = frozenset({ON_CALL, SUPPORT_DESK})
# Accounts whose parties are plans, cohorts and `SUPPLIERS`; what stands in others belongs to no plan alone.
PLAN_ACCOUNTS = frozenset(
    {
        "revenue_tokens",
        "revenue_seats",
        "revenue_commitments",
        "revenue_licences",
        "revenue_shared",
        "revenue_services",
        "revenue_fine_tuning",
        "sla_credits",
        "support",
        "payment_fees",
        "partner_share",
        "fine_tuning_compute",
        "sales_commissions",
    }
)


def cohort_party(plan: str, cohort: int) -> str:
    """The customers of a plan (its `plan_key`) who joined in month `cohort` of the run."""
    return f"{plan}/{cohort:03d}"


def plan_party(plan: str) -> str:
    """A plan as a whole, by its `plan_key`."""
    _, slash, last = plan.rpartition("/")
    is_ambiguous = plan in SUPPLIERS or (slash and (not last or last.isdecimal()))
    return f"{plan}/" if is_ambiguous else plan


def read_party(name: str) -> tuple[str | None, int | None]:
    """(plan, month of joining) of a party in one of `PLAN_ACCOUNTS`: None for no plan, and for the plan as a whole."""
    if name in SUPPLIERS:
        return None, None
    plan, slash, last = name.rpartition("/")
    if slash and last.isdecimal():
        return plan, int(last)
    return (plan, None) if slash and not last else (name, None)


def customers_party(segment: str) -> str:
    """The customers of a segment together, who pay its invoices."""
    return "customers" if segment == MAIN_SEGMENT else f"customers, {segment}"


def advertising_party(segment: str) -> str:
    """Those who are paid to market to a segment."""
    return "advertising" if segment == MAIN_SEGMENT else f"advertising, {segment}"
