"""Bills against arithmetic by hand, against the meter's rows, and against the simulated company's ledger."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from engine.errors import InputError
from engine.usage.api_keys import ApiKey, ApiKeys
from engine.usage.database import open_database
from engine.usage.meter import STATUSES, Meter, Usage, Used, used_by_key
from sim.billing.charges import token_prices
from sim.billing.invoice_files import invoice_pdf, invoices_csv, usd, write_bill
from sim.billing.invoices import Bill, Invoice, bill, bill_usage
from sim.cli import billing
from sim.i18n.translate import speaking
from sim.scenario.scenario import Scenario
from sim.utils.paths import scenarios_dir
from tests.helpers.company import OUTPUT_TOKENS, PROMPT_TOKENS
from tests.helpers.postgres import new_database
from tests.sim.stages.test_market import company, run

MICRO = Decimal("0.000001")


def at(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()


def key(key_id: str = "key_a", **changes: Any) -> ApiKey:
    values: dict[str, Any] = {
        "key_id": key_id,
        "prefix": "fw-abcdefg",
        "name": "production",
        "customer": "Acme",
        "plan": "plan",
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "budget_micro_usd_per_month": None,
        "priority": 0,
        "created_s": at("2026-01-05"),
        "expires_at_s": None,
        "revoked_s": None,
    }
    return ApiKey(**(values | changes))


def used(prompt: int, cached: int, output: int, key_id: str = "key_a", **changes: Any) -> Used:
    return replace(Used(key_id, "small", True, 10, prompt, cached, output, 77, at("2026-11-20")), **changes)


def offer(plan: dict[str, Any], **more: Any) -> Scenario:
    """A company with one plan at 0.20 and 0.80 USD per million tokens."""
    prices = {"market__price_usd_per_mtok_prompt": 0.2, "market__price_usd_per_mtok_output": 0.8}
    return company(plan, **(prices | more))


def lines(billed: Bill) -> list[tuple[str, int]]:
    (invoice,) = billed.invoices
    return [(line.kind, line.amount_micro_usd) for line in invoice.lines]


def test_tokens_by_hand() -> None:
    cheaper = {"cached_prompt_share": 0.9, "discount": 0.3}
    scenario = offer({"pays_per_token": True}, market__cache_discount=cheaper)
    use = [used(1_000_000, 400_000, 50_000), used(10, 0, 3, model="big"), used(7, 0, 5, is_billed=False)]
    billed = bill_usage(use, [key()], scenario, "2026-11")
    # 600,000 × 0.20, 400,000 × 0.14 (0.20 less 30 %), 50,000 × 0.80; then 10 × 0.20 and 3 × 0.80 = 2.4.
    assert lines(billed) == [
        ("prompt", 120_000), ("cached", 56_000), ("output", 40_000), ("prompt", 2), ("output", 2), ("failed", 0),
    ]  # fmt: skip
    (invoice,) = billed.invoices
    assert invoice.total_micro_usd == 216_004
    assert invoice.to_pay_cents == 22
    assert invoice.tokens == 1_050_000 + 13 + 12
    assert (invoice.requests, invoice.cost_micro_usd) == (30, 231)
    assert (invoice.number, invoice.dated, invoice.due) == ("2026-11-0001", "2026-12-01", "2026-12-01")


def test_half_a_micro_dollar_goes_to_the_even_one() -> None:
    scenario = offer({"pays_per_token": True}, market__price_usd_per_mtok_prompt=0.1)
    halves = [(5, 0), (15, 2), (25, 2), (35, 4)]  # 0.5, 1.5, 2.5 and 3.5 micro-dollars
    for tokens, rounded in halves:
        assert lines(bill_usage([used(tokens, 0, 0)], [key()], scenario, "2026-11")) == [("prompt", rounded)]


def test_included_tokens_by_hand() -> None:
    scenario = offer({"pays_per_token": True, "monthly_fee_usd": 9.0, "included_tokens_per_month": 1e6})
    # 1.6 of 2 million tokens are beyond... a million is covered: half of 0.32 + 0.32.
    billed = bill_usage([used(1_600_000, 0, 400_000)], [key()], scenario, "2026-11")
    assert lines(billed) == [
        ("fee", 9_000_000), ("prompt", 320_000), ("output", 320_000), ("included", -320_000),
    ]  # fmt: skip
    all_covered = bill_usage([used(900_000, 0, 100_000)], [key()], scenario, "2026-11")
    assert all_covered.invoices[0].total_micro_usd == 9_000_000


def test_seats_are_the_most_keys_that_were_good_at_once() -> None:
    scenario = offer({"monthly_fee_usd": 12.0, "seats": {"per_customer": 99.0}})
    keys = [
        key("a"),
        key("b", revoked_s=at("2026-11-10")),
        key("c", created_s=at("2026-11-10")),  # in the place of b
        key("d", expires_at_s=at("2026-11-01")),  # over before the month
        key("e", created_s=at("2026-12-01")),  # after it
    ]
    (invoice,) = bill_usage([], keys, scenario, "2026-11").invoices
    (fee,) = invoice.lines
    assert (fee.kind, fee.quantity, fee.amount_micro_usd) == ("fee", 2, 24_000_000)


def test_a_fee_is_owed_while_a_key_is_good_and_a_free_plan_owes_nothing() -> None:
    scenario = offer({"monthly_fee_usd": 12.0, "onboarding_fee_usd": 100.0})
    keys = [key(revoked_s=at("2026-03-01"))]
    owed = {month: bill_usage([], keys, scenario, f"2026-{month:02d}").invoices for month in range(1, 6)}
    assert [sum(i.total_micro_usd for i in owed[month]) for month in owed] == [
        112_000_000,
        12_000_000,
        0,
        0,
        0,
    ]
    free = offer({"pays_per_token": False})
    assert bill_usage([], [key()], free, "2026-11").invoices == ()
    assert lines(bill_usage([used(5, 0, 5)], [key()], free, "2026-11")) == [("prompt", 0), ("output", 0)]


def test_a_trial_is_listed_and_not_charged_and_what_begins_begins_after_it() -> None:
    plan = {
        "monthly_fee_usd": 10.0,
        "pays_per_token": True,
        "onboarding_fee_usd": 5.0,
        "trial": {"months": 2},
    }
    months = [
        lines(bill_usage([used(10**6, 0, 0)], [key()], offer(plan), f"2026-{month:02d}"))
        for month in (1, 2, 3, 4)
    ]
    tried = [("fee", 10_000_000), ("prompt", 200_000), ("trial", -10_200_000)]
    assert months[:2] == [tried, tried]
    assert months[2] == [("onboarding", 5_000_000), ("fee", 10_000_000), ("prompt", 200_000)]
    assert months[3] == months[2][1:]


def test_a_contract_by_hand() -> None:
    contract = {"months": 6, "minimum_usd_per_month": 50.0, "prepaid_months": 3}
    scenario = offer({"monthly_fee_usd": 20.0, "pays_per_token": True, "contract": contract})
    first = bill_usage([used(10**6, 0, 0)], [key()], scenario, "2026-01")
    # Three months of 50 in advance; of this month 20.20 is used and 29.80 is missing; it is paid already.
    assert lines(first) == [
        ("fee", 20_000_000), ("prompt", 200_000), ("commitment", 29_800_000), ("advance", 150_000_000),
        ("drawn", -50_000_000),
    ]  # fmt: skip
    second = bill_usage([used(0, 0, 10**8)], [key()], scenario, "2026-02")
    assert lines(second) == [("fee", 20_000_000), ("output", 80_000_000), ("drawn", -50_000_000)]


def test_a_contract_binds_to_the_end_of_its_term() -> None:
    scenario = offer({"monthly_fee_usd": 20.0, "contract": {"months": 6, "minimum_usd_per_month": 50.0}})
    keys = [key(created_s=at("2026-02-14"), revoked_s=at("2026-09-03"))]  # terms: to July, to January
    months = [f"2026-{month:02d}" for month in range(1, 13)] + ["2027-01", "2027-02"]
    totals = [
        sum(i.total_micro_usd for i in bill_usage([], keys, scenario, month).invoices) for month in months
    ]
    assert totals == [0] + [50_000_000] * 12 + [0]


def test_who_comes_back_owes_nothing_for_the_time_between() -> None:
    keys = [
        key("old", created_s=at("2026-01-20"), revoked_s=at("2026-02-20")),
        key("new", created_s=at("2026-07-04")),
    ]
    months = [f"2026-{month:02d}" for month in range(1, 13)]

    def totals(plan: dict[str, Any]) -> list[float]:
        invoices = [bill_usage([], keys, offer(plan), month).invoices for month in months]
        return [sum(one.total_micro_usd for one in each) / 1e6 for each in invoices]

    plain = totals({"monthly_fee_usd": 12.0, "onboarding_fee_usd": 100.0})
    assert plain == [112, 12, 0, 0, 0, 0, 12, 12, 12, 12, 12, 12]
    # A term of four months, two of them in advance; a new term from July on.
    contract = {"months": 4, "prepaid_months": 2}
    prepaid = totals({"monthly_fee_usd": 12.0, "contract": contract})
    assert prepaid == [24, 0, 24, 0, 0, 0, 24, 0, 24, 0, 24, 0]
    # Two seats in the months in which both keys are good; the term in which they ended is paid for both.
    keys.append(key("second", created_s=at("2026-02-01"), revoked_s=at("2026-02-02")))
    seats = totals({"monthly_fee_usd": 12.0, "seats": {"per_customer": 9.0}, "contract": {"months": 4}})
    assert seats == [12, 24, 24, 24, 0, 0, 12, 12, 12, 12, 12, 12]


def test_sales_tax_by_hand() -> None:
    scenario = offer(
        {"monthly_fee_usd": 10.0}, market__terms={"sales_tax_rate": 0.19, "customer_payment_days": 14.0}
    )
    billed = bill_usage([], [key()], scenario, "2026-11")
    assert lines(billed) == [("fee", 10_000_000), ("tax", 1_900_000)]
    assert billed.invoices[0].net_micro_usd == 10_000_000
    assert billed.invoices[0].due == "2026-12-15"


AGREE: dict[str, dict[str, Any]] = {
    "tokens": {"pays_per_token": True},
    "cheaper": {"pays_per_token": True, "cache": True},
    "follows": {"pays_per_token": True, "follows": True},
    "fee": {"monthly_fee_usd": 12.5},
    "bundle": {"monthly_fee_usd": 19.0, "pays_per_token": True, "included_tokens_per_month": 5e7},
    "seats": {"monthly_fee_usd": 9.99, "seats": {"per_customer": 3.0}},
    "minimum": {"pays_per_token": True, "contract": {"minimum_usd_per_month": 400.0, "renewal_share": 1.0}},
    "prepaid": {
        "monthly_fee_usd": 25.0,
        "pays_per_token": True,
        "contract": {"minimum_usd_per_month": 30.0, "prepaid_months": 4, "renewal_share": 1.0},
    },
    "taxed": {"monthly_fee_usd": 33.33, "pays_per_token": True, "tax": True},
}


@pytest.mark.parametrize("plan", AGREE.values(), ids=AGREE.keys())
def test_a_real_bill_is_the_simulated_one_when_the_same_was_used(plan: dict[str, Any]) -> None:
    more: dict[str, Any] = {}
    plan = dict(plan)
    if plan.pop("cache", False):
        more["market__cache_discount"] = {"cached_prompt_share": 0.4, "discount": 0.3}
    if plan.pop("follows", False):
        more["market__price_follows_reference"] = 0.5
    if plan.pop("tax", False):
        more["market__terms"] = {"sales_tax_rate": 0.077, "payment_fee_share": 0.0, "payment_fee_usd": 0.0}
    scenario = offer(plan | {"initial_customers": 1, "requests_per_month": 100_000.0}, **more)
    ledger = run(scenario).ledger.to_frame()
    booked = (
        ledger[ledger["party"] == "plan/000"].groupby(["month_index", "account"])["amount_microusd"].sum()
    )
    keys = [key(f"k{i}", created_s=at("2026-01-01")) for i in range(3)]
    requests = 100_000
    use = used(
        int(PROMPT_TOKENS) * requests,
        int(0.4 * PROMPT_TOKENS * requests),
        int(OUTPUT_TOKENS) * requests,
        "k0",
    )
    for index in range(12):
        billed = bill_usage([use], keys, scenario, f"2026-{index + 1:02d}")
        assert billed.invoices[0].total_micro_usd > 0 or any(
            line.kind == "drawn" for line in billed.invoices[0].lines
        )
        sums = dict.fromkeys(("tokens", "seats", "commitments", "ahead", "tax"), 0)
        place = {
            "fee": "seats", "commitment": "commitments", "advance": "ahead", "drawn": "ahead", "tax": "tax",
        }  # fmt: skip
        for line in billed.invoices[0].lines:
            sums[place.get(line.kind, "tokens")] += line.amount_micro_usd
        simulated = {
            name: -int(booked.get((index, account), 0))
            for name, account in [
                ("tokens", "revenue_tokens"),
                ("seats", "revenue_seats"),
                ("commitments", "revenue_commitments"),
                ("ahead", "deferred_revenue"),
                ("tax", "sales_tax_payable"),
            ]
        }
        # Three lines of tokens are rounded where the simulation rounds their sum.
        for name, amount in sums.items():
            # A price that follows the market is rounded to a millionth of a dollar per million tokens.
            near = 3 + (use.prompt_tokens / 1e6 if "market__price_follows_reference" in more else 0)
            assert amount == pytest.approx(simulated[name], abs=near), (index, name)


_usages = st.builds(
    Usage,
    request_id=st.uuids().map(str),
    key_id=st.sampled_from(["k1", "k2", "k3", "nobody's"]),
    model=st.sampled_from(["small", "big/model:7b"]),
    prompt_tokens=st.integers(1000, 10**9),
    cached_tokens=st.integers(0, 1000),
    output_tokens=st.integers(0, 10**9),
    arrived_s=st.just(at("2026-10-31")),
    first_token_s=st.none(),
    finished_s=st.one_of(
        st.sampled_from([at("2026-11-01"), at("2026-12-01"), math.nextafter(at("2026-12-01"), 0)]),
        st.floats(at("2026-10-30"), at("2026-12-02")),
    ),
    status=st.sampled_from(STATUSES),
    cost_micro_usd=st.integers(0, 10**6),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(_usages, max_size=40), st.integers(0, 10**7), st.integers(0, 10**7))
def test_the_lines_add_up_to_the_meter(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Usage], prompt_price: int, output_price: int
) -> None:
    scenario = company({"pays_per_token": True}).override(
        {
            "market.price_usd_per_mtok_prompt": prompt_price / 1e6,
            "market.price_usd_per_mtok_output": output_price / 1e6,
        }
    )
    path = tmp_path_factory.mktemp("bill")
    url = f"sqlite:///{path}/usage.db"
    with Meter(url) as meter:
        for future in [meter.submit(row) for row in rows]:
            future.result(20)
    engine = open_database(url, create=False)
    sums = used_by_key(engine, at("2026-11-01"), at("2026-12-01"))
    engine.dispose()
    keys = [key("k1"), key("k2"), key("k3", customer="Beta")]
    billed = bill_usage(sums, keys, scenario, "2026-11")
    inside = [row for row in rows if at("2026-11-01") <= row.finished_s < at("2026-12-01")]
    table = list(csv.DictReader(io.StringIO(invoices_csv(billed.invoices))))
    for one in ("k1", "k2", "k3"):
        for model in ("small", "big/model:7b"):
            own = [row for row in inside if (row.key_id, row.model) == (one, model)]
            shown = {row["kind"]: row for row in table if (row["key_id"], row["model"]) == (one, model)}
            good = [row for row in own if row.status in ("stop", "length", "cancelled")]
            counted = {
                "prompt": sum(row.prompt_tokens - row.cached_tokens for row in good),
                "cached": sum(row.cached_tokens for row in good),
                "output": sum(row.output_tokens for row in good),
                "failed": sum(row.prompt_tokens + row.output_tokens for row in own if row not in good),
            }
            assert {k: int(row["quantity"]) for k, row in shown.items()} == {
                k: n for k, n in counted.items() if n
            }
    for row in table:
        exact = Decimal(row["quantity"]) * Decimal(row["unit_price_usd"]) / Decimal(row["price_per_units"])
        assert Decimal(row["amount_usd"]) == exact.quantize(MICRO, ROUND_HALF_EVEN)
    for invoice in billed.invoices:
        own_lines = [Decimal(row["amount_usd"]) for row in table if row["invoice"] == invoice.number]
        assert sum(own_lines) == Decimal(invoice.total_micro_usd) * MICRO
    everybody = sum(invoice.tokens for invoice in billed.invoices)
    everybody += sum(one.prompt_tokens + one.output_tokens for one in billed.unassigned)
    assert everybody == sum(row.prompt_tokens + row.output_tokens for row in inside)
    assert sum(invoice.requests for invoice in billed.invoices) == sum(
        row.key_id != "nobody's" for row in inside
    )


@given(st.integers(-(10**15), 10**15), st.integers(0, 6))
def test_money_is_written_as_it_is(micro: int, decimals: int) -> None:
    exact = (Decimal(micro) * MICRO).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_EVEN)
    assert Decimal(usd(micro, decimals)) == exact


def metered(url: str) -> None:
    """A few requests of November 2026 by two customers."""
    with Meter(url) as meter:
        futures = [
            meter.submit(
                Usage(f"r{i}", f"key_{i % 3}", "small", 1000 + i, i, 200, 1.0, None, at("2026-11-01") + 3600 * i,
                      STATUSES[i % 5], 3)
            )
            for i in range(300)
        ]  # fmt: skip
        for future in futures:
            future.result(20)


def made_keys(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("engine.usage.api_keys.time.time", lambda: at("2026-08-03"))
        for i, customer in enumerate(("Acme", "Bertha & Söhne", "Acme")):
            patch.setattr("engine.usage.api_keys.secrets.token_hex", lambda _bytes, i=i: str(i))
            ApiKeys(url).create("n", customer=customer, plan="plan" if i else None)


def test_sqlite_and_postgresql_give_the_same_files_and_so_does_a_second_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = offer({"pays_per_token": True, "monthly_fee_usd": 3.0})
    folders = []
    for place, url in enumerate((f"sqlite:///{tmp_path}/usage.db", new_database())):
        metered(url)
        made_keys(url, monkeypatch)
        for again in range(2):
            billed = bill(url, scenario, "2026-11", now_s=at("2027-05-01") + 999 * again, default_plan="plan")
            folders.append(tmp_path / f"{place}{again}")
            write_bill(billed, folders[-1])
    first = {path.name: path.read_bytes() for path in folders[0].iterdir()}
    assert sorted(first) == [
        "2026-11-0001.csv", "2026-11-0001.pdf", "2026-11-0002.csv", "2026-11-0002.pdf", "2026-11.csv",
    ]  # fmt: skip
    for folder in folders[1:]:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_a_running_month_is_preliminary_and_one_to_come_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/usage.db"
    metered(url)
    made_keys(url, monkeypatch)
    scenario = offer({"pays_per_token": True})
    running = bill(url, scenario, "2026-11", now_s=at("2026-12-01") - 1, default_plan="plan")
    assert running.is_preliminary
    assert running.invoices[0].dated == "2026-11-13"  # the day of the last request: 299 hours after the first
    assert "Preliminary" in pdf_text(running.company, running.invoices[0])
    over = bill(url, scenario, "2026-11", now_s=at("2026-12-01"), default_plan="plan")
    assert not over.is_preliminary
    assert [i.total_micro_usd for i in over.invoices] == [i.total_micro_usd for i in running.invoices]
    assert "Preliminary" not in pdf_text(over.company, over.invoices[0])
    with pytest.raises(InputError, match="2026-12, which has not begun, allowed: up to 2026-11"):
        bill(url, scenario, "2026-12", now_s=at("2026-11-30"))


def test_a_customers_number_never_becomes_anothers() -> None:
    scenario = offer({"pays_per_token": True})
    old, new = key("a", customer="Zeta"), key("b", customer="Alpha", created_s=at("2026-12-07"))
    before = bill_usage([used(1, 0, 1, "a")], [old], scenario, "2026-11").invoices
    after = bill_usage([used(1, 0, 1, "a")], [new, old], scenario, "2026-11").invoices
    assert before == after
    both = bill_usage([used(1, 0, 1, "a"), used(1, 0, 1, "b")], [new, old], scenario, "2026-12").invoices
    assert [(i.number, i.customer) for i in both] == [("2026-12-0001", "Zeta"), ("2026-12-0002", "Alpha")]


@pytest.mark.parametrize(
    ("plan", "default_plan", "found"),
    [
        ("gold", None, r"key key_a \(production, Acme\): found plan 'gold', allowed: plan"),
        (None, None, r"found no plan, allowed: plan; or give --default-plan"),
        (None, "gold", r"--default-plan: found 'gold', allowed: plan"),
    ],
)
def test_an_unknown_plan_is_told_with_its_key(plan: str | None, default_plan: str | None, found: str) -> None:
    scenario = offer({"pays_per_token": True})
    with pytest.raises(InputError, match=found):
        bill_usage([used(1, 0, 1)], [key(plan=plan)], scenario, "2026-11", default_plan=default_plan)


def test_a_forgotten_key_on_a_plan_that_is_no_more_does_not_stop_the_bill() -> None:
    scenario = offer({"pays_per_token": True})
    keys = [key("old", plan="gone", revoked_s=at("2026-05-01")), key()]
    assert bill_usage([used(1, 0, 10**6)], keys, scenario, "2026-11").invoices[0].total_micro_usd == 800_000


def test_every_shipped_plan_can_be_billed() -> None:
    for path in scenarios_dir().glob("*.yaml"):
        scenario = Scenario.load(path)
        names = list(token_prices(scenario, "2027-03"))
        keys = [
            key(name, plan=name, customer=name, created_s=at("2026-01-05") + i)
            for i, name in enumerate(names)
        ]
        use = [used(10**9, 10**8, 10**8, name) for name in names]
        billed = bill_usage(use, keys, scenario, "2027-03")
        assert [i.customer for i in billed.invoices] == names
        assert all(i.total_micro_usd >= 0 and i.tokens == 11 * 10**8 for i in billed.invoices)


def pdf_text(company_name: str, invoice: Invoice) -> str:
    return text_of(invoice_pdf(company_name, invoice))


def text_of(pdf: bytes) -> str:
    import pymupdf

    with pymupdf.open(stream=pdf) as document:
        return "\n".join(page.get_text() for page in document).replace("\u200b", "")


def test_the_pdf_shows_the_invoice_and_takes_no_text_as_markup(tmp_path: Path) -> None:
    scenario = offer({"pays_per_token": True}, market__terms={"sales_tax_rate": 0.19})
    wild = key(customer="#panic() *Bold* $x^2$ <b> \\ Ltd", name="_under_ `raw` [x] @ref")
    billed = bill_usage([used(123_456_789, 0, 987_654)], [wild], scenario, "2026-11")
    text = pdf_text("Company #1 & Co", billed.invoices[0])
    # 123,456,789 × 0.20 and 987,654 × 0.80; 19 % of the sum.
    for shown in (
        "Company #1 & Co", "#panic() *Bold* $x^2$ <b> \\ Ltd", "_under_ `raw` [x] @ref", "2026-11-0001",
        "2026-11-01 – 2026-11-30", "123,456,789", "0.20", "24.691358", "987,654", "0.790123", "25.481481",
        "Sales tax 19%", "4.841481", "30.322962", "30.32",
    ):  # fmt: skip
        assert shown in text
    with speaking("zh"):
        *_, pdf = write_bill(billed, tmp_path)
    chinese = text_of(pdf.read_bytes())
    assert "24.691358" in chinese
    assert "账单" in chinese


def test_a_long_invoice_breaks_over_pages_and_keeps_every_line() -> None:
    scenario = offer({"pays_per_token": True})
    keys = [key(f"key_{i:03d}", name=f"team {i:03d} " + "long name " * 15) for i in range(70)]
    use = [used(1_000_000 + i, 0, 10, f"key_{i:03d}", model="x" * 180) for i in range(70)]
    (invoice,) = bill_usage(use, keys, scenario, "2026-11").invoices
    text = pdf_text("A company", invoice)
    assert all(f"1,000,{i:03d}" in text for i in range(70))
    assert text.count("Unit price") > 2  # the head stands on each page


def test_the_command_writes_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/usage.db"
    metered(url)
    made_keys(url, monkeypatch)
    monkeypatch.setattr("time.time", lambda: at("2027-01-15"))
    words = [
        "--month",
        "2026-11",
        "--scenario",
        "api_startup",
        "--database",
        url,
        "--out",
        f"{tmp_path}/bills",
    ]
    with pytest.raises(InputError, match="found no plan"):
        command(*words)
    with pytest.raises(InputError, match="found plan 'plan', allowed: trial, developers"):
        command(*words, "--default-plan", "developers")
    scenario = tmp_path / "company.yaml"
    offer({"pays_per_token": True}).save(scenario)
    words[3] = str(scenario)
    found = json.loads(command(*words, "--default-plan", "plan", "--json"))
    assert [i["customer"] for i in found["invoices"]] == ["Acme", "Bertha & Söhne"]
    assert sum(i["requests"] for i in found["invoices"]) == 300
    assert sum(i["measured_cost_micro_usd"] for i in found["invoices"]) == 900
    assert all(Path(name).stat().st_size > 100 for name in found["files"])
    shown = command(*words, "--default-plan", "plan", "--no-pdf")
    assert "2026-11-0001" in shown
    assert "Bertha & Söhne" in shown


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--month", "november"], "allowed: YYYY-MM"),
        (["--month", "2026-11"], "no such file"),
        (["--month", "2026-11", "--database", "mysql://x"], "allowed: sqlite:///FILE"),
        (["--month", "2026-11", "--scenario", "nowhere"], "nowhere"),
        (["--month", "2026-11", "--lang", "fr"], "fr"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path: Path, words: list[str], found: str) -> None:
    database = [] if "--database" in words else ["--database", f"sqlite:///{tmp_path}/usage.db"]
    if "--lang" in words:
        ApiKeys(database[1]).close()
    with pytest.raises(InputError, match=found) as caught:
        command(*words, *database, "--out", f"{tmp_path}/bills")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bills").exists()


def command(*words: str) -> str:
    """What `flywheel bill WORDS` prints."""
    app = typer.Typer()
    app.command()(billing.bill)
    result = CliRunner().invoke(app, list(words), catch_exceptions=False, standalone_mode=False)
    assert result.exit_code == 0, result.output
    return result.stdout
