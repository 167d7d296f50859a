"""The three statements by month, read from the ledger: income, balance sheet, cash flow.

Cash flow uses the indirect method (net income, then what working capital held back), as a finance lead
expects. Everything is computed in whole micro-dollars; the frames give USD unless `exact=True` asks for the
integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.accounting.ledger import MICRO_PER_USD, Kind, Ledger

_EQUIPMENT = ("equipment", "accumulated_depreciation")


@dataclass(frozen=True)
class Statements:
    """Statements of a ledger that is complete; rows are months, columns are lines.

    Invariants (tested): assets = liabilities + equity, and the month's cash flow = the change of the cash
    account.
    """

    ledger: Ledger
    labels: list[str]

    def income(self, *, exact: bool = False) -> pd.DataFrame:
        """Revenue, cost of goods sold, operating expense, interest and tax by account, and the profits between."""
        revenue, revenue_total = self._section("revenue", sign=-1)
        cogs, cogs_total = self._section("cogs")
        opex, opex_total = self._section("opex")
        interest, interest_total = self._section("interest")
        tax, tax_total = self._section("tax")
        operating = revenue_total - cogs_total - opex_total
        lines = {**revenue, "total_revenue": revenue_total, **cogs, "total_cogs": cogs_total}
        lines |= {"gross_profit": revenue_total - cogs_total, **opex, "total_opex": opex_total}
        # Interest earned counts as a negative cost, so that lines of cost add up.
        lines |= {"operating_income": operating, **interest, "total_interest": interest_total}
        lines |= {"income_before_tax": operating - interest_total, **tax}
        lines["net_income"] = operating - interest_total - tax_total
        return self._frame(lines, exact)

    def balance_sheet(self, *, exact: bool = False) -> pd.DataFrame:
        """Closing balances of each month; equity is paid-in capital and retained earnings."""
        assets, assets_total = self._section("asset", running=True)
        liabilities, liabilities_total = self._section("liability", sign=-1, running=True)
        equity, paid_in = self._section("equity", sign=-1, running=True)
        retained = np.cumsum(self.income(exact=True)["net_income"].to_numpy())
        lines = {**assets, "total_assets": assets_total}
        lines |= {**liabilities, "total_liabilities": liabilities_total}
        lines |= {**equity, "retained_earnings": retained, "total_equity": paid_in + retained}
        return self._frame(lines, exact)

    def cash_flow(self, *, exact: bool = False) -> pd.DataFrame:
        """From net income to the change of cash, by the indirect method.

        Operating: net income, depreciation (which costs no cash), and the change of working capital. Investing:
        equipment bought less proceeds of retired equipment. Financing: shares and debt.
        """
        assets, liabilities = self._section("asset")[0], self._section("liability")[0]
        cash = assets.pop("cash")
        income = self.income(exact=True)
        net_income = income["net_income"].to_numpy()
        depreciation = np.zeros_like(net_income)
        for account in self.ledger.chart:
            if account.startswith("depreciation_"):
                depreciation = depreciation + income[account].to_numpy()
        # Cost, wear and retirement together: what remains is the cash that went into equipment.
        worn = sum(
            (assets.pop(account) for account in _EQUIPMENT if account in assets), np.zeros_like(net_income)
        )
        investing = -(worn + depreciation)
        borrowed = -liabilities.pop("debt") if "debt" in liabilities else np.zeros_like(net_income)
        working = {f"change_in_{name}": -flow for name, flow in (assets | liabilities).items()}
        operating = net_income + depreciation + sum(working.values(), np.zeros_like(net_income))
        shares = self._section("equity", sign=-1)[1]
        closing = np.cumsum(cash)
        lines = {
            "net_income": net_income,
            "depreciation": depreciation,
            **working,
            "operating_cash_flow": operating,
            "investing_cash_flow": investing,
            "shares_sold": shares,
            "debt_drawn_less_repaid": borrowed,
            "financing_cash_flow": shares + borrowed,
            "net_cash_flow": operating + investing + shares + borrowed,
            "opening_cash": closing - cash,
            "closing_cash": closing,
        }
        return self._frame(lines, exact)

    @cached_property
    def _totals(self) -> NDArray[np.int64]:
        return self.ledger.monthly_micro(len(self.labels))

    def _section(
        self, kind: Kind, sign: int = 1, running: bool = False
    ) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
        """Lines and total of all accounts of one type, per month or as running balance, in micro-dollars."""
        lines = {}
        for index, (account, its_kind) in enumerate(self.ledger.chart.items()):
            if its_kind == kind:
                lines[account] = sign * (np.cumsum(self._totals[index]) if running else self._totals[index])
        return lines, np.asarray(sum(lines.values(), np.zeros(len(self.labels), dtype=np.int64)))

    def _frame(self, lines: dict[str, NDArray[np.int64]], exact: bool) -> pd.DataFrame:
        frame = pd.DataFrame(lines, index=pd.Index(self.labels, name="month"))
        return frame if exact else frame / MICRO_PER_USD
