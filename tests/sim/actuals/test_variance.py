"""Variance: causes add up to the last micro-dollar and token, and are what arithmetic by hand gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sim.actuals.variance import PlanUsage, Sold, revenue_variance, usage_variance

SOLD = st.builds(Sold, st.integers(-(10**12), 10**15), st.integers(0, 10**13))
ASKED = st.builds(PlanUsage, st.integers(0, 10**6), st.integers(0, 10**9), st.integers(0, 10**13)).map(
    lambda one: one if one.requests else PlanUsage(one.customers, 0, 0)
)


@given(st.dictionaries(st.sampled_from("abcd"), SOLD), st.dictionaries(st.sampled_from("abcd"), SOLD))
def test_revenue_adds_up(planned: dict[str, Sold], actual: dict[str, Sold]) -> None:
    causes = revenue_variance(planned, actual)
    difference = sum(one.revenue_micro for one in actual.values())
    difference -= sum(one.revenue_micro for one in planned.values())
    assert sum(causes.values()) == difference


@given(st.dictionaries(st.sampled_from("abcd"), ASKED), st.dictionaries(st.sampled_from("abcd"), ASKED))
def test_usage_adds_up(planned: dict[str, PlanUsage], actual: dict[str, PlanUsage]) -> None:
    difference = sum(one.tokens for one in actual.values()) - sum(one.tokens for one in planned.values())
    assert sum(usage_variance(planned, actual).values()) == difference


def test_price_volume_mix_by_hand() -> None:
    planned = {"a": Sold(1000, 100), "b": Sold(3000, 100)}  # 10 and 30 each, 20 on average
    actual = {"a": Sold(1800, 150), "b": Sold(4500, 150)}  # 12 and 30 each
    # Volume: 100 more at 20. Mix: the same shares, so none. Price: 150 × 2.
    assert revenue_variance(planned, actual) == {"volume": 2000, "price": 300, "mix": 0, "without_usage": 0}
    moved = {"a": Sold(500, 50), "b": Sold(4500, 150)}  # 50 tokens went to the dearer plan: 50 × 20
    assert revenue_variance(planned, moved) == {"volume": 0, "price": 0, "mix": 1000, "without_usage": 0}


def test_revenue_without_tokens_is_a_cause_of_its_own() -> None:
    causes = revenue_variance({"a": Sold(500, 0)}, {"a": Sold(900, 0), "b": Sold(70, 7)})
    assert causes == {"volume": 70, "price": 0, "mix": 0, "without_usage": 400}


def test_usage_by_hand() -> None:
    planned, twice = {"a": PlanUsage(10, 100, 1000)}, {"a": PlanUsage(20, 200, 2000)}
    assert usage_variance(planned, twice) == {
        "customers": 1000,
        "requests_per_customer": 0,
        "tokens_per_request": 0,
    }
    # All three double, 1,000 to 8,000: alike by symmetry, 7,000 in three parts.
    assert sorted(usage_variance(planned, {"a": PlanUsage(20, 400, 8000)}).values()) == [2333, 2333, 2334]
    assert usage_variance({}, {"a": PlanUsage(5, 50, 500)})["customers"] == 500
