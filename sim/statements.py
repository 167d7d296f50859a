"""The three statements by month, read from the ledger: income, balance sheet, cash flow.

Cash flow uses the indirect method (net income, then what working capital held back), as a finance lead expects.
Everything is computed in whole micro-dollars; the frames give USD unless `exact=True` asks for the integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.ledger import MICRO_PER_USD, Kind, Ledger


@dataclass(frozen=True)
class Statements:
    """Statements of the first `months` months of a ledger; rows are months, columns are lines.

    Invariants (tested): assets = liabilities + equity, and the month's cash flow = the change of the cash account.
    """

    ledger: Ledger
    labels: list[str]

    def income(self, *, exact: bool = False) -> pd.DataFrame:
        """Revenue, cost of goods sold, operating expense by account, and the profits between them."""
        flows = self._flows()
        lines: dict[str, NDArray[np.int64]] = {}
        sums: dict[str, NDArray[np.int64]] = {}
        for kind, total in (("revenue", "revenue"), ("cogs", "cogs"), ("opex", "opex")):
            sign = -1 if kind == "revenue" else 1
            accounts = self._accounts(kind)  # type: ignore[arg-type]
            for account in accounts:
                lines[account] = sign * flows[account]
            sums[total] = sign * sum((flows[a] for a in accounts), np.zeros(len(self.labels), dtype=np.int64))
            lines[f"total_{total}"] = sums[total]
            if kind == "cogs":
                lines["gross_profit"] = sums["revenue"] - sums["cogs"]
        lines["net_income"] = sums["revenue"] - sums["cogs"] - sums["opex"]
        return self._frame(lines, exact)

    def balance_sheet(self, *, exact: bool = False) -> pd.DataFrame:
        """Closing balances of each month; equity holds what was paid in and what was earned so far."""
        flows = self._flows()
        zero = np.zeros(len(self.labels), dtype=np.int64)
        lines: dict[str, NDArray[np.int64]] = {}
        for kind, sign in (("asset", 1), ("liability", -1), ("equity", -1)):
            accounts = self._accounts(kind)  # type: ignore[arg-type]
            for account in accounts:
                lines[account] = sign * np.cumsum(flows[account])
            total = sum((lines[account] for account in accounts), zero)
            if kind == "equity":
                lines["retained_earnings"] = np.cumsum(self.income(exact=True)["net_income"].to_numpy())
                total = total + lines["retained_earnings"]
            lines[{"asset": "total_assets", "liability": "total_liabilities", "equity": "total_equity"}[kind]] = (
                total
            )
        return self._frame(lines, exact)

    def cash_flow(self, *, exact: bool = False) -> pd.DataFrame:
        """From net income to the change of cash, by the indirect method."""
        flows = self._flows()
        zero = np.zeros(len(self.labels), dtype=np.int64)
        lines: dict[str, NDArray[np.int64]] = {
            "net_income": self.income(exact=True)["net_income"].to_numpy()
        }
        operating = lines["net_income"].copy()
        for kind in ("asset", "liability"):
            for account in self._accounts(kind):  # type: ignore[arg-type]
                if account != "cash":
                    lines[f"change_in_{account}"] = -flows[account]
                    operating = operating - flows[account]
        lines["operating_cash_flow"] = operating
        financing = sum((-flows[account] for account in self._accounts("equity")), zero)
        lines["financing_cash_flow"] = financing
        lines["net_cash_flow"] = operating + financing
        lines["closing_cash"] = np.cumsum(flows["cash"])
        lines["opening_cash"] = lines["closing_cash"] - flows["cash"]
        return self._frame(lines, exact)

    def _flows(self) -> dict[str, NDArray[np.int64]]:
        totals = self.ledger.monthly_micro(len(self.labels))
        return {account: totals[index] for index, account in enumerate(self.ledger.accounts)}

    def _accounts(self, kind: Kind) -> list[str]:
        return [account for account, its_kind in self.ledger.chart.items() if its_kind == kind]

    def _frame(self, lines: dict[str, NDArray[np.int64]], exact: bool) -> pd.DataFrame:
        frame = pd.DataFrame(lines, index=pd.Index(self.labels, name="month"))
        return frame if exact else frame / MICRO_PER_USD
