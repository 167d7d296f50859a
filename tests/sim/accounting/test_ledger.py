"""The books balance whatever is posted, and the statements tie out to the micro-dollar."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.accounting.ledger import CHART, HOURS_PER_MONTH, Ledger, micro
from sim.accounting.statements import Statements

MONTHS = 5
ACCOUNTS = sorted(CHART)
AMOUNTS = st.integers(-(10**15), 10**15)


@st.composite
def balanced(draw: st.DrawFn) -> tuple[float, list[tuple[str, int]]]:
    """One balanced movement at some time within the horizon: free lines and one that closes the gap."""
    lines = draw(st.lists(st.tuples(st.sampled_from(ACCOUNTS), AMOUNTS), min_size=1, max_size=5))
    closing = (draw(st.sampled_from(ACCOUNTS)), -sum(amount for _, amount in lines))
    time_h = draw(st.floats(0, MONTHS * HOURS_PER_MONTH, exclude_max=True))
    return time_h, [*lines, closing]


def booked(movements: list[tuple[float, list[tuple[str, int]]]]) -> Ledger:
    ledger = Ledger()
    for number, (time_h, entries) in enumerate(movements):
        ledger.post(time_h, f"movement {number % 3}", entries, "somebody")
    return ledger


@given(st.lists(balanced(), max_size=12))
def test_any_sequence_of_postings_balances(movements: list[tuple[float, list[tuple[str, int]]]]) -> None:
    ledger = booked(movements)
    assert ledger.trial_balance()["balance_microusd"].sum() == 0
    frame = ledger.to_frame()
    assert (frame.groupby("posting")["amount_microusd"].sum() == 0).all()
    assert len(frame) == sum(len(entries) for _, entries in movements)
    assert (ledger.monthly_micro(MONTHS).sum(axis=0) == 0).all()


@given(st.lists(balanced(), max_size=12))
def test_statements_tie_out_to_the_micro_dollar(movements: list[tuple[float, list[tuple[str, int]]]]) -> None:
    ledger = booked(movements)
    statements = Statements(ledger, [f"2026-{month + 1:02d}" for month in range(MONTHS)])
    sheet = statements.balance_sheet(exact=True)
    assert (sheet["total_assets"] == sheet["total_liabilities"] + sheet["total_equity"]).all()
    flow = statements.cash_flow(exact=True)
    assert (flow["net_cash_flow"] == flow["closing_cash"] - flow["opening_cash"]).all()
    assert (flow["closing_cash"] == sheet["cash"]).all()
    assert flow["closing_cash"].iloc[-1] == ledger.balance_micro("cash")
    income = statements.income(exact=True)
    costs = income[["total_cogs", "total_opex", "total_interest", "income_tax"]].sum(axis=1)
    assert (income["net_income"] == income["total_revenue"] - costs).all()
    assert ledger.profit_micro() == income["net_income"].sum()


@pytest.mark.parametrize(
    "entries",
    [
        [("cash", 1)],
        [("cash", 2), ("marketing", -1)],
        [("cash", 1.0), ("marketing", -1.0)],
        [("cash", True), ("marketing", -1)],
        [("petty_cash", 1), ("cash", -1)],
        [],
    ],
)
def test_a_wrong_posting_leaves_no_trace(entries: list[tuple[str, int]]) -> None:
    ledger = Ledger()
    with pytest.raises(ValueError, match="posting 'wrong'"):
        ledger.post(0.0, "wrong", entries)
    assert len(ledger) == 0
    assert ledger.to_frame().empty


@pytest.mark.parametrize("time_h", [-1.0, math.nan, math.inf])
def test_time_must_be_real(time_h: float) -> None:
    with pytest.raises(ValueError, match="time_h"):
        Ledger().post(time_h, "when", [("cash", 1), ("paid_in_capital", -1)])


def test_accounts_by_month_and_party() -> None:
    ledger = Ledger()
    ledger.post(10, "invoice", [("receivable", micro(7)), ("revenue_seats", -micro(7))], "plus/000")
    ledger.post(729.9, "invoice", [("receivable", micro(5)), ("revenue_seats", -micro(5))], "plus/001")
    ledger.post(730, "invoice", [("receivable", micro(2)), ("revenue_seats", -micro(2))], "plus/000")
    ledger.post(731, "paid", [("cash", micro(7)), ("receivable", -micro(7))])
    seats = ledger.monthly_micro(2)[ledger.accounts.index("revenue_seats")]
    assert seats.tolist() == [-12_000_000, -2_000_000]
    by_party = ledger.monthly_by_party(["revenue_seats"], 2)
    assert {name: values.tolist() for name, values in by_party.items()} == {
        "plus/000": [7_000_000, 2_000_000],
        "plus/001": [5_000_000, 0],
    }
    assert ledger.trial_balance().loc["receivable", "debit_usd"] == 7
    assert ledger.trial_balance().loc["revenue_seats", "credit_usd"] == 14


def test_the_hash_sees_every_change() -> None:
    def one(time_h: float = 1.0, memo: str = "a", amount: int = 5, party: str = "p") -> str:
        ledger = Ledger()
        ledger.post(time_h, memo, [("cash", amount), ("paid_in_capital", -amount)], party)
        return ledger.content_hash()

    assert one() == one()
    assert len({one(), one(time_h=2.0), one(memo="b"), one(amount=6), one(party="q")}) == 5


@given(
    st.lists(
        st.tuples(st.sampled_from(["a/000", "a/001", "b/000"]), st.lists(AMOUNTS, min_size=3, max_size=3))
    ),
    st.floats(0, 1000),
)
def test_many_postings_at_once_are_the_same_as_one_by_one(
    rows: list[tuple[str, list[int]]], time_h: float
) -> None:
    accounts = ["cash", "revenue_seats", "revenue_tokens", "receivable"]
    one, many = Ledger(), Ledger()
    balanced_rows = [(party, [*amounts, -sum(amounts)]) for party, amounts in rows]
    for party, amounts in balanced_rows:
        entries = [(a, amount) for a, amount in zip(accounts, amounts, strict=True) if amount]
        if entries:
            one.post(time_h, "invoices", entries, party)
    table = np.array([amounts for _, amounts in balanced_rows], dtype=np.int64).reshape(-1, len(accounts))
    many.post_many(time_h, "invoices", [party for party, _ in rows], accounts, table)
    assert one.content_hash() == many.content_hash()
    assert [one.balance_micro(account) for account in accounts] == [
        many.balance_micro(account) for account in accounts
    ]


@pytest.mark.parametrize(
    ("time_h", "accounts", "amounts", "said"),
    [
        (-1.0, ["cash", "receivable"], [[1, -1]], "not negative"),
        (0.0, ["cash", "gold"], [[1, -1]], "unknown account 'gold'"),
        (0.0, ["cash", "receivable"], [[1, -2]], "differ by -1"),
        (0.0, ["cash"], [[1, -1]], "allowed: int64"),
    ],
)
def test_a_wrong_batch_posts_nothing(
    time_h: float, accounts: list[str], amounts: list[list[int]], said: str
) -> None:
    ledger = Ledger()
    with pytest.raises(ValueError, match=said):
        ledger.post_many(time_h, "wrong", ["a"], accounts, np.array(amounts, dtype=np.int64))
    assert len(ledger) == 0


def test_a_running_balance_is_that_after_everything_of_its_hour() -> None:
    ledger = Ledger()
    for hour, amount in ((5.0, 10), (5.0, -30), (2.0, 7), (9.0, 40)):
        ledger.post(hour, "m", [("cash", amount), ("paid_in_capital", -amount)])
    hours, cash = ledger.running("cash")
    assert hours.tolist() == [2, 5, 9]
    assert cash.tolist() == [7, -13, 27]
    assert len(ledger.running("debt")[0]) == 0


def test_micro_dollars_round_to_the_nearest() -> None:
    assert micro(0.1) * 3 == micro(0.3)
    assert micro(1e-7) == 0
    assert micro(-1.25) == -1_250_000


def test_years_of_postings_stay_small() -> None:
    ledger = Ledger()
    for hour in range(20_000):
        ledger.post(float(hour), "hourly", [("cash", 1), ("paid_in_capital", -1)])
    assert ledger.balance_micro("cash") == 20_000
    assert int(np.abs(ledger.monthly_micro(28)).sum()) == 40_000
