"""The metrics against examples worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sim.accounting import saas_metrics


def test_unit_economics_by_hand() -> None:
    # 100 USD per customer and month, 80 % margin, 4 % churn: 80 / 0.04 = 2,000.
    assert saas_metrics.ltv_usd(100, 0.8, 0.04) == pytest.approx(2000)
    assert saas_metrics.cac_usd(30_000, 60) == 500
    assert saas_metrics.cac_payback_months(500, 100, 0.8) == 6.25
    assert saas_metrics.gross_margin(1000, 300) == 0.7
    # 900,000 burnt to add 600,000 of ARR.
    assert saas_metrics.burn_multiple(900_000, 600_000) == 1.5
    # 30 % growth and 12 % free-cash-flow margin.
    assert saas_metrics.rule_of_40(0.30, 0.12) == pytest.approx(42)


def test_undefined_is_nan() -> None:
    assert math.isnan(saas_metrics.cac_usd(100, 0))
    assert math.isnan(saas_metrics.ltv_usd(100, 0.8, 0))
    assert math.isnan(saas_metrics.gross_margin(0, 10))
    assert math.isnan(saas_metrics.cac_payback_months(500, 100, -0.1))
    assert math.isnan(saas_metrics.burn_multiple(100, -5))


def test_runway_takes_the_last_three_months() -> None:
    # Mean of 100, 200 and 300 is 200; the 9,000 four months ago doesn't count.
    assert saas_metrics.runway_months(1000, np.array([9000.0, 100.0, 200.0, 300.0])) == 5
    assert saas_metrics.runway_months(1000, np.array([100.0, -50.0, -60.0])) == math.inf
    assert saas_metrics.runway_months(-5, np.array([100.0])) == 0


def test_trailing_sums() -> None:
    assert saas_metrics.trailing(np.array([1.0, 2.0, 3.0, 4.0])).tolist() == [1, 3, 6, 9]


def test_retention_by_hand() -> None:
    # Two customers of month 0 paid 100 together in month 1; one left, the other grew to 80 in month 13.
    # The cohort of month 1 paid 60 and shrinks to 30; the cohort of month 2 came too late to count.
    mrr, customers = np.zeros((3, 14)), np.zeros((3, 14))
    mrr[0, [1, 13]] = 100, 80
    mrr[1, [1, 13]] = 60, 30
    mrr[2, 13] = 500
    customers[0, [1, 13]] = 2, 1
    customers[1, [1, 13]] = 1, 1
    net, gross = saas_metrics.retention(np.array([0, 1, 2]), mrr, customers)
    assert net[13] == pytest.approx((80 + 30) / 160)
    # The survivor of month 0 counts for at most the 50 that he paid then.
    assert gross[13] == pytest.approx((50 + 30) / 160)
    assert np.isnan(net[:12]).all()
    assert np.isnan(gross[:12]).all()
