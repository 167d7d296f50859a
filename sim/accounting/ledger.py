"""The books: double entry in integer micro-dollars, kept in columns.

Models the general ledger of a company. Every event that moves money is one posting of two or more lines whose
debits (positive) and credits (negative) add up to exactly zero; nothing else holds an amount of money
anywhere. Reports are queries over the lines (`sim.accounting.statements`, `sim.accounting.saas_metrics`), so they
cannot disagree with each other.

A month of the books is 730 hours (8,760 / 12): months are comparable and the time axis stays one number.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas as pd

HOURS_PER_MONTH = 730
SECONDS_PER_MONTH = HOURS_PER_MONTH * 3600
MICRO_PER_USD = 1_000_000

Kind = Literal["asset", "liability", "equity", "revenue", "cogs", "opex", "interest", "tax"]

# Account → its type. COGS and opex follow the SaaS definitions: training and research are operating expense.
CHART: dict[str, Kind] = {
    "cash": "asset",
    "receivable": "asset",
    "bad_debt_allowance": "asset",  # less than zero: what of the receivable will never come
    "deposits": "asset",
    "equipment": "asset",
    "accumulated_depreciation": "asset",  # less than zero: what of the equipment is worn off
    "right_of_use": "asset",
    "payable": "liability",
    "sales_tax_payable": "liability",
    "income_tax_payable": "liability",
    "deferred_revenue": "liability",
    "lease_liability": "liability",
    "debt": "liability",
    "paid_in_capital": "equity",
    "revenue_tokens": "revenue",
    "revenue_seats": "revenue",
    "revenue_commitments": "revenue",  # minimums beyond what was used
    "revenue_licences": "revenue",
    "revenue_shared": "revenue",  # a share of what customers earn
    "revenue_services": "revenue",
    "revenue_fine_tuning": "revenue",
    "sla_credits": "revenue",  # less than zero: given back for outages
    "serving_reserved": "cogs",
    "serving_on_demand": "cogs",
    "serving_owned": "cogs",  # upkeep of own machines
    "lease_serving": "cogs",
    "depreciation_serving": "cogs",
    "fine_tuning_compute": "cogs",
    "support": "cogs",
    "people_support": "cogs",
    "payment_fees": "cogs",
    "partner_share": "cogs",
    "training_compute": "opex",
    "lease_training": "opex",
    "depreciation_training": "opex",
    "data": "opex",
    "people_research": "opex",
    "people_sales": "opex",
    "people_general": "opex",
    "recruiting": "opex",
    "severance": "opex",
    "marketing": "opex",
    "sales_commissions": "opex",
    "bad_debt": "opex",
    "legal": "opex",
    "lease_general": "opex",
    "depreciation_general": "opex",
    "other_opex": "opex",
    "interest_income": "interest",
    "interest_expense": "interest",
    "income_tax": "tax",
}
PROFIT_KINDS: tuple[Kind, ...] = ("revenue", "cogs", "opex", "interest", "tax")


def micro(usd: float) -> int:
    """US dollars as whole micro-dollars (money is rounded only here)."""
    return round(usd * MICRO_PER_USD)


def whole_micro(usd: ArrayLike) -> NDArray[np.int64]:
    """`micro` of each element."""
    return np.asarray(np.rint(np.asarray(usd, dtype=np.float64) * MICRO_PER_USD), dtype=np.int64)


class Ledger:
    """An append-only list of balanced postings over a fixed chart of accounts.

    Lines are held in typed columns, so that years of postings take megabytes and a query is one numpy call.
    """

    def __init__(self, chart: dict[str, Kind] | None = None) -> None:
        self.chart: dict[str, Kind] = dict(chart or CHART)
        self.accounts: list[str] = list(self.chart)
        self._account_index = {name: index for index, name in enumerate(self.accounts)}
        self._words: dict[str, int] = {}  # memos and parties repeat: store each once
        self._posting_time_h = array("d")
        self._posting_memo = array("q")
        self._posting_party = array("q")
        self._line_posting = array("q")
        self._line_account = array("q")
        self._line_micro = array("q")
        self._balances = [0] * len(self.accounts)  # of the lines so far: asked every month by the stages

    def __len__(self) -> int:
        """Number of postings."""
        return len(self._posting_time_h)

    def post(self, time_h: float, memo: str, entries: Sequence[tuple[str, int]], party: str = "") -> None:
        """Record one movement, whole or not at all.

        Args:
            time_h: simulated hours since the start of the first month.
            memo: what happened, in words.
            entries: (account, micro-dollars); debits positive, credits negative; they must add up to zero.
            party: with whom (a supplier, or a plan and cohort of customers).

        Raises:
            ValueError: unknown account, amount that is not an int, time that is not finite and ≥ 0,
            unbalanced.
        """
        if not (math.isfinite(time_h) and time_h >= 0):
            raise ValueError(f"posting {memo!r}: time_h is {time_h}, allowed: finite and not negative")
        total = 0
        for account, amount in entries:
            if account not in self._account_index:
                raise ValueError(f"posting {memo!r}: unknown account {account!r}")
            if type(amount) is not int:
                raise ValueError(f"posting {memo!r}: {account} gets {amount!r}, allowed: whole micro-dollars")
            total += amount
        if total != 0 or not entries:
            raise ValueError(f"posting {memo!r}: debits and credits differ by {total} micro-dollars")
        posting = len(self._posting_time_h)
        self._posting_time_h.append(time_h)
        self._posting_memo.append(self._word(memo))
        self._posting_party.append(self._word(party))
        for account, amount in entries:
            self._line_posting.append(posting)
            self._line_account.append(self._account_index[account])
            self._line_micro.append(amount)
            self._balances[self._account_index[account]] += amount

    def post_many(
        self,
        time_h: float,
        memo: str,
        parties: Sequence[str],
        accounts: Sequence[str],
        amounts: NDArray[np.int64],
    ) -> None:
        """One posting per party, as `post` would make them in turn; whole or not at all.

        Args:
            time_h: as in `post`.
            memo: as in `post`, the same for all.
            parties: one per posting.
            accounts: of the columns of `amounts`.
            amounts: micro-dollars, debits positive; shape [parties, accounts]. Zeros make no line, and a row
            of zeros no posting.

        Raises:
            ValueError: as in `post`.
        """
        if not (math.isfinite(time_h) and time_h >= 0):
            raise ValueError(f"posting {memo!r}: time_h is {time_h}, allowed: finite and not negative")
        if amounts.dtype != np.int64 or amounts.shape != (len(parties), len(accounts)):
            raise ValueError(
                f"posting {memo!r}: amounts are {amounts.dtype} {amounts.shape}, "
                f"allowed: int64 ({len(parties)}, {len(accounts)})"
            )
        unknown = [account for account in accounts if account not in self._account_index]
        if unknown:
            raise ValueError(f"posting {memo!r}: unknown account {unknown[0]!r}")
        apart = amounts.sum(axis=1)
        if apart.any():
            raise ValueError(
                f"posting {memo!r}: debits and credits differ by {apart[apart != 0][0]} micro-dollars"
            )
        row, column = np.nonzero(amounts)
        if not len(row):
            return
        posted = np.flatnonzero(np.bincount(row))
        posting = np.searchsorted(posted, row)
        index = np.array([self._account_index[account] for account in accounts], dtype=np.int64)
        first, count = len(self._posting_time_h), len(posted)
        self._posting_time_h.extend([time_h] * count)
        self._posting_memo.extend([self._word(memo)] * count)
        self._posting_party.extend([self._word(parties[one]) for one in posted.tolist()])
        self._line_posting.frombytes((posting + first).astype(np.int64).tobytes())
        self._line_account.frombytes(index[column].tobytes())
        self._line_micro.frombytes(amounts[row, column].tobytes())
        for account, total in zip(index.tolist(), amounts.sum(axis=0).tolist(), strict=True):
            self._balances[account] += total

    def balance_micro(self, account: str) -> int:
        """Debits less credits of one account so far, in micro-dollars."""
        return self._balances[self._account_index[account]]

    def profit_micro(self) -> int:
        """Net income so far, in micro-dollars."""
        kinds = zip(self._balances, self.chart.values(), strict=True)
        return -sum(balance for balance, kind in kinds if kind in PROFIT_KINDS)

    def running(self, account: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Distinct times at which an account moved (hours), and its balance after each, in micro-dollars."""
        posting, accounts, amount = self._columns()
        chosen = accounts == self._account_index[account]
        times = np.array(self._posting_time_h, dtype=np.float64)[posting[chosen]]
        order = np.argsort(times, kind="stable")
        times, balance = times[order], np.cumsum(amount[chosen][order])
        last = np.append(times[1:] != times[:-1], True)[: len(times)]
        return times[last], balance[last]

    def monthly_micro(self, months: int) -> NDArray[np.int64]:
        """Debits less credits per account and month, in micro-dollars; shape [accounts, months], exact."""
        posting, account, amount = self._columns()
        totals = np.zeros((len(self.accounts), months), dtype=np.int64)
        if len(posting):
            month = self._posting_months()[posting]
            inside = month < months
            np.add.at(totals, (account[inside], month[inside]), amount[inside])
        return totals

    def monthly_by_party(self, accounts: Sequence[str], months: int) -> dict[str, NDArray[np.int64]]:
        """Credits less debits of some accounts by party: {party: micro-dollars [months]}, exact."""
        posting, account, amount = self._columns()
        chosen = np.isin(account, [self._account_index[name] for name in accounts])
        posting, amount = posting[chosen], amount[chosen]
        if not len(posting):
            return {}
        month = self._posting_months()[posting]
        word = np.array(self._posting_party, dtype=np.int64)[posting]
        distinct, row = np.unique(word, return_inverse=True)
        totals = np.zeros((len(distinct), months), dtype=np.int64)
        inside = month < months
        np.add.at(totals, (row[inside], month[inside]), -amount[inside])
        words = list(self._words)
        return {words[index]: totals[position] for position, index in enumerate(distinct)}

    def trial_balance(self) -> pd.DataFrame:
        """Every account with its type and its balance as debit or credit, in USD; both add up alike."""
        import pandas as pd  # a bill needs the ledger's words and no table

        balances = self.monthly_micro(self._months()).sum(axis=1)
        return pd.DataFrame(
            {
                "account": self.accounts,
                "type": [self.chart[name] for name in self.accounts],
                "debit_usd": np.maximum(balances, 0) / MICRO_PER_USD,
                "credit_usd": np.maximum(-balances, 0) / MICRO_PER_USD,
                "balance_microusd": balances,
            }
        ).set_index("account")

    def to_frame(self) -> pd.DataFrame:
        """One row per line: posting, time_h, month_index, memo, party, account, type, amount_microusd.

        Debits are positive.
        """
        import pandas as pd

        posting, account, amount = self._columns()
        words = np.array(list(self._words), dtype=object)
        memo = np.array(self._posting_memo, dtype=np.int64)
        party = np.array(self._posting_party, dtype=np.int64)
        types = np.array([self.chart[name] for name in self.accounts], dtype=object)
        names = np.array(self.accounts, dtype=object)
        return pd.DataFrame(
            {
                "posting": posting,
                "time_h": np.array(self._posting_time_h, dtype=np.float64)[posting],
                "month_index": self._posting_months()[posting],
                "memo": words[memo[posting]] if len(posting) else [],
                "party": words[party[posting]] if len(posting) else [],
                "account": names[account],
                "type": types[account],
                "amount_microusd": amount,
            }
        )

    def content_hash(self) -> str:
        """sha256 over every posting in order: equal hashes mean the same books, line for line."""
        digest = hashlib.sha256()
        for column in (
            self._posting_time_h,
            self._posting_memo,
            self._posting_party,
            self._line_posting,
            self._line_account,
            self._line_micro,
        ):
            digest.update(column.tobytes())
        digest.update("\0".join([*self.accounts, *self._words]).encode())
        return digest.hexdigest()

    def _word(self, text: str) -> int:
        return self._words.setdefault(text, len(self._words))

    def _columns(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        # Copies, because an array that numpy looks into cannot grow.
        return (
            np.array(self._line_posting, dtype=np.int64),
            np.array(self._line_account, dtype=np.int64),
            np.array(self._line_micro, dtype=np.int64),
        )

    def _posting_months(self) -> NDArray[np.int64]:
        times = np.array(self._posting_time_h, dtype=np.float64)
        return np.floor_divide(times, HOURS_PER_MONTH).astype(np.int64)

    def _months(self) -> int:
        return int(max(self._posting_time_h, default=0.0) // HOURS_PER_MONTH) + 1
