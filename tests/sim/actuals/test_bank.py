"""Bank rows: read as decimal, wrong ones named, repeated ones counted once."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InputError
from sim.actuals.bank import bank_in, read_bank, read_categories

HEAD = "date,amount_usd,category,counterparty,note\n"


def read(rows: str, keep_repeated: bool = False) -> list[tuple[int, int, str]]:
    found = bank_in((HEAD + rows).encode(), "bank.csv", keep_repeated=keep_repeated)
    return [(row.line, row.amount_micro, row.account) for row in found.rows]


def test_rows_become_lines_of_the_chart() -> None:
    rows = "2026-01-03,-49.99,office,Landlord,rent\n2026-01-02,1000,customers,Acme,\n2026-01-04,-7.5,refunds,Acme,\n"
    assert read(rows) == [
        (3, 1_000_000_000, "receivable"),
        (2, -49_990_000, "other_opex"),
        (4, -7_500_000, "sla_credits"),
    ]


@given(st.decimals(min_value=-(10**11), max_value=10**11, places=6, allow_nan=False))
def test_money_is_exact(usd: Decimal) -> None:
    assert read(f"2026-01-03,{usd:f},office,,\n") == [(2, int(usd * 10**6), "other_opex")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("2026-13-01,1,office,,", "line 2: date: found '2026-13-01', allowed: YYYY-MM-DD"),
        ("2026-1-1,1,office,,", "line 2: date"),
        ('2026-01-01,"1,000.00",office,,', "line 2: amount_usd: found '1,000.00', allowed: a decimal"),
        ("2026-01-01,nan,office,,", "line 2: amount_usd: found 'nan'"),
        ("2026-01-01,0.0000001,office,,", "line 2: amount_usd"),
        ("2026-01-01,1e30,office,,", "line 2: amount_usd"),
        ("2026-01-01,1,offices,,", "line 2: category: found 'offices', allowed: opening_cash, "),
        ("2026-01-01,1,office", "line 2: found 3 cells, allowed: 5"),
        ('2026-01-01,1,"office', "not CSV"),
    ],
)
def test_a_wrong_row_is_named(row: str, said: str) -> None:
    with pytest.raises(InputError, match=r"bank\.csv") as error:
        read(row)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(InputError, match="no column amount_usd"):
        bank_in(b"date,amount,category\n", "bank.csv")
    with pytest.raises(InputError, match="no column category or account"):
        bank_in(b"date,amount_usd\n", "bank.csv")


def test_a_repeated_row_counts_once() -> None:
    row = "2026-01-03,-5,office,A,x\n"
    assert len(read(row + row)) == 1
    assert len(read(row + row, keep_repeated=True)) == 2
    found = bank_in((HEAD + row + row).encode(), "bank.csv")
    assert found.repeated_lines == (3,)


def test_an_id_says_which_row_it_is() -> None:
    head = b"id,date,amount_usd,category\n"
    same = bank_in(
        head + b"a,2026-01-03,-5,office\nb,2026-01-03,-5,office\na,2026-01-03,-5,office\n", "bank.csv"
    )
    assert [row.line for row in same.rows] == [2, 3]
    assert same.repeated_lines == (4,)
    with pytest.raises(InputError, match="line 3: id: found 'a' with other values than in line 2"):
        bank_in(head + b"a,2026-01-03,-5,office\na,2026-01-03,-6,office\n", "bank.csv")


def test_own_categories(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("AWS: serving_reserved\n")
    (tmp_path / "bank.csv").write_text("date,amount_usd,category\n2026-01-03,-5,aws\n")
    found = read_bank(tmp_path / "bank.csv", read_categories(tmp_path / "map.yaml"))
    assert found.rows[0].account == "serving_reserved"
    (tmp_path / "map.yaml").write_text("aws: servers\n")
    with pytest.raises(InputError, match=r"map\.yaml: aws: found 'servers', allowed: cash, "):
        read_categories(tmp_path / "map.yaml")
