"""Stage 4, market: signups, usage, invoices and churn, segment by segment.

Models the commercial side. At a month's opening each segment spends on marketing, wins customers
(`sim.stages.market.segments`) and asks for usage; the fleet serves all segments together. At the close each plan is
invoiced for what was served (`sim.stages.market.invoicing`), supported, and loses customers or renews contracts
(`sim.stages.market.contracts`). What customers compare with is in `sim.stages.market.competition`.
"""

from __future__ import annotations

from simpy.events import ProcessGenerator

from sim.accounting.ledger import SECONDS_PER_MONTH
from sim.accounting.parties import advertising_party
from sim.scenario.plans import is_paying, segments_of
from sim.stages.market import contracts, invoicing, segments
from sim.stages.market.competition import Offer, elsewhere
from sim.stages.market.segments import Customers
from sim.stages.payments import buy
from sim.stages.world import CLOSING_HOUR, OPENING_HOUR, World


def run(world: World) -> ProcessGenerator:
    """Month by month: win customers, ask for their usage, invoice what was served, lose some."""
    all_customers = [
        segments.open_segment(world, name, segment)
        for name, segment in segments_of(world.scenario.market).items()
    ]
    for month in range(world.months):
        yield world.until(month, OPENING_HOUR)
        offers = [elsewhere(customers.segment, month) for customers in all_customers]
        world.record("competitor_quality", offers[0].quality)
        asked = 0.0
        for customers, offer in zip(all_customers, offers, strict=True):
            asked += _open(world, customers, month, offer)
        world.demand_rps = asked / SECONDS_PER_MONTH

        yield world.until(month, CLOSING_HOUR)
        scale = _served_share(world, month)
        for customers, offer in zip(all_customers, offers, strict=True):
            _close(world, customers, month, offer, scale)


def _open(world: World, customers: Customers, month: int, offer: Offer) -> float:
    """Win customers and invoice ahead; returns the requests asked of the fleet, in mean requests."""
    segment = customers.segment
    segments.perceived_advantage(customers, world.live.quality, offer)
    spend_usd = segment.marketing_usd_per_month + segment.marketing_share_of_revenue * customers.revenue_usd
    buy(world, "marketing", spend_usd, "marketing", advertising_party(customers.name))
    segments.sign_up(world, customers, month, spend_usd, offer)
    for book in customers.books.values():
        invoicing.invoice_ahead(world, customers, book)
        commission_usd = contracts.commission_usd(book.plan, book.joined)
        buy(world, "sales_commissions", commission_usd, "commissions", book.party)
    return segments.request_usage(world, customers, month, offer)


def _served_share(world: World, month: int) -> float:
    """Usage delivered over usage asked, the same for all segments: the fleet served the demand with its noise."""
    asked = world.demand_rps * SECONDS_PER_MONTH
    scale = float(world.records["requests"][month]) / asked if asked > 0 else 0.0
    if "failed_tokens" in world.records:
        served = world.records["prompt_tokens"][month] + world.records["output_tokens"][month]
        scale *= 1 - float(world.records["failed_tokens"][month] / served) if served > 0 else 1.0
    return scale


def _close(world: World, customers: Customers, month: int, offer: Offer, scale: float) -> None:
    """Invoice and support each plan, then lose customers."""
    surface, size = world.surface, customers.segment.request_size
    tokens_per_request = (surface.prompt_tokens_mean + surface.output_tokens_mean) * size
    customers.revenue_usd = 0.0
    for book in customers.books.values():
        plan, paying = book.plan, is_paying(book.plan)
        count = int(book.customers.sum())
        if paying:
            customers.revenue_usd += invoicing.invoice(world, customers, book, book.requests * scale, offer)
            world.record("billed_customers", count)
        buy(world, "support", float(count) * plan.support_usd_per_month, "support", book.party)
        used = float(book.requests.sum()) * scale * tokens_per_request
        tried = book.trial_requests * scale * tokens_per_request
        world.record("billed_tokens", used if paying else 0.0)
        world.record("free_tokens", tried if paying else used + tried)
        world.record_plan(book.key, "tokens", used + tried)
        world.record_plan(book.key, "billed", count if paying else 0)
    segments.churn(world, customers, month, offer)
    for book in customers.books.values():
        count = int(book.customers.sum())
        world.record("customers" if is_paying(book.plan) else "customers_free", count)
        world.record("trial_customers", int(book.trials.sum()))
        world.record("backlog_usd", contracts.backlog_usd(book, month))
        world.record_plan(book.key, "customers", count)
        world.record_plan(book.key, "trials", int(book.trials.sum()))
