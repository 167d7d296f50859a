"""The three statements by month, read from the ledger: income, balance sheet, cash flow.

Cash flow uses the indirect method (net income, then what working capital held back), as a finance lead
expects. Everything is computed in whole micro-dollars; the frames give USD unless `exact=True` asks for the
integers.
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

    Invariants (tested): assets = liabilities + equity, and the month's cash flow = the change of the cash
    account.
    """

    ledger: Ledger
    labels: list[str]

    def income(self, *, exact: bool = False) -> pd.DataFrame:
        """Revenue, cost of goods sold, operating expense by account, and the profits between them."""
        revenue, revenue_total = self._section("revenue", sign=-1)
        cogs, cogs_total = self._section("cogs")
        opex, opex_total = self._section("opex")
        lines = {**revenue, "total_revenue": revenue_total, **cogs, "total_cogs": cogs_total}
        lines |= {"gross_profit": revenue_total - cogs_total, **opex, "total_opex": opex_total}
        lines["net_income"] = revenue_total - cogs_total - opex_total
        return self._frame(lines, exact)

    def balance_sheet(self, *, exact: bool = False) -> pd.DataFrame:
        """Closing balances of each month; equity holds what was paid in and what was earned so far."""
        assets, assets_total = self._section("asset", running=True)
        liabilities, liabilities_total = self._section("liability", sign=-1, running=True)
        equity, paid_in = self._section("equity", sign=-1, running=True)
        retained = np.cumsum(self.income(exact=True)["net_income"].to_numpy())
        lines = {**assets, "total_assets": assets_total}
        lines |= {**liabilities, "total_liabilities": liabilities_total}
        lines |= {**equity, "retained_earnings": retained, "total_equity": paid_in + retained}
        return self._frame(lines, exact)

    def cash_flow(self, *, exact: bool = False) -> pd.DataFrame:
        """From net income to the change of cash, by the indirect method."""
        cash = self._section("asset")[0]["cash"]
        working = {
            f"change_in_{name}": -flow for name, flow in self._section("asset")[0].items() if name != "cash"
        }
        working |= {f"change_in_{name}": -flow for name, flow in self._section("liability")[0].items()}
        net_income = self.income(exact=True)["net_income"].to_numpy()
        operating = net_income + sum(working.values(), np.zeros_like(net_income))
        financing = self._section("equity", sign=-1)[1]
        closing = np.cumsum(cash)
        lines = {
            "net_income": net_income,
            **working,
            "operating_cash_flow": operating,
            "financing_cash_flow": financing,
            "net_cash_flow": operating + financing,
            "opening_cash": closing - cash,
            "closing_cash": closing,
        }
        return self._frame(lines, exact)

    def _section(
        self, kind: Kind, sign: int = 1, running: bool = False
    ) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
        """Lines and total of all accounts of one type, per month or as running balance, in micro-dollars."""
        totals = self.ledger.monthly_micro(len(self.labels))
        lines = {}
        for index, (account, its_kind) in enumerate(self.ledger.chart.items()):
            if its_kind == kind:
                lines[account] = sign * (np.cumsum(totals[index]) if running else totals[index])
        return lines, np.asarray(sum(lines.values(), np.zeros(len(self.labels), dtype=np.int64)))

    def _frame(self, lines: dict[str, NDArray[np.int64]], exact: bool) -> pd.DataFrame:
        frame = pd.DataFrame(lines, index=pd.Index(self.labels, name="month"))
        return frame if exact else frame / MICRO_PER_USD
