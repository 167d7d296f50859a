"""Who stands on the other side of a posting, as the ledger names them: made here, and read back here."""

from __future__ import annotations

from sim.scenario.schema.market import MAIN_SEGMENT


def party(plan: str, cohort: int) -> str:
    """The name under which the ledger knows the customers of a plan who joined in one month."""
    return f"{plan}/{cohort:03d}"


def cohort_of(party: str) -> tuple[str, int]:
    """(plan, month of joining) of the ledger's name for a cohort of customers, "plan/007"."""
    plan, _, cohort = party.rpartition("/")
    return plan, int(cohort)


def advertisers(segment: str) -> str:
    """The ledger's name for those who are paid to market to a segment."""
    return "advertising" if segment == MAIN_SEGMENT else f"advertising, {segment}"


def payers(segment: str) -> str:
    """The ledger's name for the customers of a segment together."""
    return "customers" if segment == MAIN_SEGMENT else f"customers, {segment}"
