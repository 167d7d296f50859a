"""Billing: what a month's usage and commitments come to, invoice by invoice.

Models the billing system. Every cohort of every paying plan gets its own posting, so that retention is a query
over the ledger. An invoice is what was earned this month less what was invoiced ahead and what outages give
back; the payment processor keeps its fee from what it passes on; sales tax is collected for the state and owed
to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sim.accounting.ledger import MICRO_PER_USD, micro, whole_micro
from sim.accounting.parties import customers_party
from sim.stages.market import contracts
from sim.stages.market.plan_book import (
    Cohorts,
    FloatArray,
    PlanBook,
    beyond_included,
    price_factor,
    seats,
    usd_per_request,
)
from sim.stages.payments import buy, collect, terms_of

if TYPE_CHECKING:
    from sim.scenario.schema import Plan, Terms
    from sim.stages.market.competition import Offer
    from sim.stages.market.segments import Customers
    from sim.stages.world import World


def invoice_ahead(world: World, customers: Customers, book: PlanBook) -> None:
    """Invoice prepaid fees and minimums of contracts whose next time begins: a liability until earned."""
    cohorts = contracts.to_invoice_ahead(book, world.month)
    if not len(cohorts):
        return
    assert book.plan.contract is not None
    count = book.customers[cohorts]
    monthly = contracts.committed_micro(book.plan, world.month, cohorts, count)
    book.advance_micro[cohorts] = monthly
    ahead = monthly * book.plan.contract.prepaid_months
    lines = {"deferred_revenue": -ahead}
    _post(world, customers, book, "invoices in advance", cohorts, ahead, lines)


def invoice(world: World, customers: Customers, book: PlanBook, requests: FloatArray, offer: Offer) -> float:
    """Invoice a plan cohort by cohort for the month; returns the revenue in USD.

    Args:
        world: the company.
        customers: the segment.
        book: the plan.
        requests: served this month, by cohort.
        offer: the best rival offer (own prices may follow it).
    """
    month, plan, segment = world.month, book.plan, customers.segment
    if book.key not in world.billed:
        world.billed[book.key] = np.zeros((world.months, world.months))
    world.billed[book.key][:, month] = book.customers
    cohorts = np.flatnonzero(book.customers)
    if not len(cohorts):
        return 0.0
    count = book.customers[cohorts]
    earned = _earned(plan, month, cohorts, count)
    if plan.pays_per_token:
        each_usd = usd_per_request(
            segment, world.surface.prompt_tokens_mean, world.surface.output_tokens_mean
        )
        each_usd *= segment.request_size * price_factor(segment, offer.price_usd_per_mtok)
        size = (world.surface.prompt_tokens_mean + world.surface.output_tokens_mean) * segment.request_size
        share = beyond_included(plan, count, requests[cohorts] * size)
        earned["revenue_tokens"] = whole_micro(requests[cohorts] * share * each_usd)
    if book.joined and plan.onboarding_fee_usd > 0:
        earned["revenue_services"][-1] += micro(book.joined * plan.onboarding_fee_usd)
    ahead = _top_up(plan, month, cohorts, count, earned, book.advance_micro[cohorts])
    total = np.sum(list(earned.values()), axis=0)
    lines = {"deferred_revenue": ahead} | {account: -amounts for account, amounts in earned.items()}
    charged = total - ahead
    if world.service.credit_share > 0:
        lines["sla_credits"] = whole_micro(charged / MICRO_PER_USD * world.service.credit_share)
        charged = charged - lines["sla_credits"]
    _post(world, customers, book, "invoices", cohorts, charged, lines)
    revenue_usd = int((charged + ahead).sum()) / MICRO_PER_USD
    buy(world, "partner_share", revenue_usd * plan.partner_share, "revenue shared with partners", book.party)
    if plan.fine_tuning is not None:
        cost = plan.fine_tuning.mtok_per_month * plan.fine_tuning.cost_usd_per_mtok
        buy(world, "fine_tuning_compute", int(count.sum()) * cost, "customers' models tuned", book.party)
    return revenue_usd


def _earned(plan: Plan, month: int, cohorts: Cohorts, count: Cohorts) -> dict[str, Cohorts]:
    """Revenue by account and cohort, in micro-dollars; tokens and minimums are to be filled in.

    The accounts stand in the order in which an invoice lists them.
    """
    fee_usd = plan.monthly_fee_usd * seats(plan, month, cohorts)
    earned = {
        "revenue_licences" if plan.on_premise else "revenue_seats": whole_micro(count * fee_usd),
        "revenue_tokens": np.zeros(len(cohorts), dtype=np.int64),
        "revenue_services": whole_micro(count * plan.services_usd_per_month),
    }
    shared_usd = plan.customer_sales_usd_per_month * plan.share_of_customer_sales
    if shared_usd > 0:
        earned["revenue_shared"] = whole_micro(count * shared_usd)
    if plan.fine_tuning is not None:
        tuned_usd = plan.fine_tuning.mtok_per_month * plan.fine_tuning.price_usd_per_mtok
        earned["revenue_fine_tuning"] = whole_micro(count * tuned_usd)
    return earned


def _top_up(
    plan: Plan, month: int, cohorts: Cohorts, count: Cohorts, earned: dict[str, Cohorts], ahead: Cohorts
) -> Cohorts:
    """Add what minimums ask beyond usage; returns the part of the month that was invoiced ahead, in micro-dollars."""
    if plan.contract is None:
        return np.zeros(len(cohorts), dtype=np.int64)
    used = earned["revenue_licences" if plan.on_premise else "revenue_seats"] + earned["revenue_tokens"]
    least = contracts.committed_micro(plan, month, cohorts, count)
    earned["revenue_commitments"] = contracts.commitment_micro(least, ahead, used)
    return ahead


def _post(
    world: World,
    customers: Customers,
    book: PlanBook,
    memo: str,
    cohorts: Cohorts,
    invoiced: Cohorts,
    lines: dict[str, Cohorts],
) -> None:
    """Post invoices over these amounts against these lines, and let their money come in."""
    terms: Terms = terms_of(customers.segment.terms, world.scenario.finance)
    invoiced_usd = invoiced / MICRO_PER_USD
    fixed_usd = (invoiced > 0) * book.customers[cohorts] * terms.payment_fee_usd
    fee = np.minimum(invoiced, whole_micro(invoiced_usd * terms.payment_fee_share + fixed_usd))
    receivable = invoiced - fee
    columns = {"receivable": receivable, "payment_fees": fee} | lines
    if terms.sales_tax_rate > 0:
        tax = whole_micro(invoiced_usd * terms.sales_tax_rate)
        columns["receivable"] = receivable = receivable + tax
        columns["sales_tax_payable"] = -tax
    parties = [book.parties[cohort] for cohort in cohorts.tolist()]
    table = np.array(list(columns.values()), dtype=np.int64).T
    world.ledger.post_many(world.env.now, memo, parties, list(columns), table)
    collect(world, int(receivable.sum()), terms, customers_party(customers.name))
