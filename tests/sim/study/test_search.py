"""Expressions, Shapley's values, waterfalls, crossings, indices and searches, against what is known of them."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from sim.scenario.conditions import Measure, parse_condition, parse_goal, parse_measure
from sim.scenario.distributions import parse_distribution
from sim.study.estimates import estimate, half_width, wilson
from sim.study.goal_seek import find_crossings
from sim.study.indices import GRID_HIGH, GRID_LOW, LEVELS, morris, sobol
from sim.study.inputs import Input
from sim.study.levers import Lever, parse_bounds, spread
from sim.study.optimise import pareto, search
from sim.study.shapley import contributions, drawn_orders, shapley, whole_parts
from sim.study.waterfall import Term, waterfall

RUNS = pd.DataFrame(
    {
        "out.cash": [5.0, -2.0, 3.0, 4.0],
        "out.ruined": [0.0, 1.0, 0.0, 0.0],
        "out.breakeven_month_index": [3.0, math.nan, 8.0, 9.0],
        "out.margin": [0.5, math.nan, 0.7, 0.6],
    }
)


@pytest.mark.parametrize(
    ("text", "holds", "violation"),
    [
        ("cash >= -2", True, 0.0),
        ("cash >= 0", False, 2.0),  # in every run: the worst misses by 2
        ("mean(cash) = 2.5", True, 0.0),
        ("p(ruined) <= 25%", True, 0.0),
        ("p(ruined) <= 0.05", False, 0.2),
        ("p(cash > 3) >= 0.5", True, 0.0),
        ("max(cash) < 5", False, 0.0),
        ("p50(cash) >= 3.5", True, 0.0),
        ("breakeven_month_index <= 12", False, math.inf),  # one run never breaks even
        ("breakeven_month_index >= 3", True, 0.0),
        ("margin >= 0", False, math.inf),  # nothing to divide by
    ],
)
def test_conditions(text: str, holds: bool, violation: float) -> None:
    condition = parse_condition(text)
    assert condition.holds(RUNS) is holds
    assert condition.violation(RUNS) == pytest.approx(violation)
    assert (condition.violation(RUNS) > 0) is not holds
    assert parse_condition(str(condition)) == condition


def test_a_condition_in_each_run() -> None:
    assert parse_condition("cash >= 3").holds_in(RUNS).tolist() == [True, False, True, True]
    assert parse_condition("breakeven_month_index <= 8").holds_in(RUNS).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("text", "value"), [("x >= $1.5M", 1.5e6), ("x<= 5%", 0.05), ("x > 1_000", 1000.0), ("x = -2e-3", -0.002)]
)
def test_numbers_of_conditions(text: str, value: float) -> None:
    assert parse_condition(text).value == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["cash", "a < 1 < 2", "p(ruined", "q(x) < 1", "x < abc", "p101(x) > 0", "p(p(x) > 1) > 0", "< 3", "x < 1k%"]
)  # fmt: skip
def test_bad_conditions_are_one_line(text: str) -> None:
    with pytest.raises(InputError) as error:
        parse_condition(text)
    assert "allowed" in str(error.value)
    assert "\n" not in str(error.value)


def test_goals_and_unknown_outcomes() -> None:
    goal = parse_goal("max p25(cash)")
    assert goal.measure.of(RUNS) == np.percentile([5, -2, 3, 4], 25)
    assert str(goal) == "max p25(cash)"
    for wrong in ("cash", "most cash", "max"):
        with pytest.raises(InputError, match="allowed"):
            parse_goal(wrong)
    with pytest.raises(InputError, match="outcome cahs: unknown, nearest is cash"):
        parse_measure("cahs").of(RUNS)


def test_intervals_of_measures() -> None:
    # Student's t with 3 degrees of freedom: 3.1824; sd of 5, −2, 3, 4 is 3.1091.
    assert half_width(RUNS["out.cash"].to_numpy()) == pytest.approx(3.182446 * 3.109126 / 2, rel=1e-5)
    # Wilson's interval of 10 of 50, as in the literature: 0.1124 to 0.3304.
    assert wilson(10, 50) == pytest.approx((0.112, 0.330), abs=5e-4)
    found = estimate(parse_measure("p(ruined)"), RUNS)
    assert found.low < found.value == 0.25 < found.high
    many = pd.DataFrame({"out.x": np.arange(1.0, 101.0)})
    middle = estimate(parse_measure("p50(x)"), many)  # ranks 40 and 61 of 100 (Conover's table)
    assert (middle.low, middle.high) == (40.0, 61.0)
    assert math.isnan(estimate(Measure("cash", "min"), RUNS).low)


def brute_shapley(players: int, worth: dict[frozenset[int], Fraction]) -> list[Fraction]:
    """The definition: the mean contribution over all orders."""
    orders = list(permutations(range(players)))
    total = [Fraction(0)] * players
    for order in orders:
        inside: frozenset[int] = frozenset()
        for player in order:
            total[player] += worth[inside | {player}] - worth[inside]
            inside |= {player}
    return [value / len(orders) for value in total]


@st.composite
def games(draw: st.DrawFn) -> tuple[int, dict[frozenset[int], Fraction]]:
    players = draw(st.integers(1, 4))
    values = draw(st.lists(st.integers(-(10**12), 10**12), min_size=2**players, max_size=2**players))
    sets = [frozenset(i for i in range(players) if mask >> i & 1) for mask in range(2**players)]
    return players, {one: Fraction(value, 10**6) for one, value in zip(sets, values, strict=True)}


@given(games())
@settings(max_examples=40, deadline=None)
def test_shapley_is_its_definition_and_adds_up(game: tuple[int, dict[frozenset[int], Fraction]]) -> None:
    players, worth = game
    found = shapley(players, worth.__getitem__)
    assert found == brute_shapley(players, worth)
    total = worth[frozenset(range(players))] - worth[frozenset()]
    assert sum(found) == total
    for order in drawn_orders(players, 2, seed=1):
        assert sum(contributions(order, worth.__getitem__)) == total


@given(st.lists(st.integers(-1000, 1000), min_size=4, max_size=4))
@settings(deadline=None)
def test_shapley_treats_equal_causes_alike_and_idle_ones_as_nothing(by_size: list[int]) -> None:
    def worth(coalition: frozenset[int]) -> Fraction:
        return Fraction(by_size[len(coalition - {3})])  # 3 changes nothing, the others count alike

    found = shapley(4, worth)
    assert found[0] == found[1] == found[2]
    assert found[3] == 0


def test_shapley_of_the_glove_game() -> None:
    # One left glove, two right ones, a pair is worth 1: 2/3 for the left, 1/6 for each right.
    def worth(coalition: frozenset[int]) -> Fraction:
        return Fraction(int(0 in coalition and len(coalition) > 1))

    assert shapley(3, worth) == [Fraction(2, 3), Fraction(1, 6), Fraction(1, 6)]


@given(
    st.integers(-(10**15), 10**15),
    st.lists(st.fractions(-(10**9), 10**9, max_denominator=10**7), min_size=1, max_size=12),
)
@settings(max_examples=30, deadline=None)
def test_a_waterfall_adds_up_to_the_micro_dollar(start: int, changes: list[Fraction]) -> None:
    begin = Fraction(start, 10**6)
    whole = Fraction(round(sum(changes) * 10**6), 10**6)
    changes = [*changes, whole - sum(changes)]
    terms = [Term(str(n), change, math.nan) for n, change in enumerate(changes)]
    bars = waterfall(begin, begin + whole, terms, ("A", "B"), money=True)
    inner = bars[bars["kind"] == "change"]
    micro = bars["change_micro_usd"].tolist()
    assert micro[0] + sum(inner["change_micro_usd"].tolist()) == micro[-1]
    exact = {term.name: term.change * 10**6 for term in terms}
    for name, part in zip(inner["term"], inner["change_micro_usd"], strict=True):
        assert abs(part - exact[name]) < 1
    assert (bars["top"] >= bars["bottom"]).all()
    assert inner["running"].iloc[-1] == bars["running"].iloc[-1]


def test_a_waterfall_refuses_terms_that_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="add up to 1, not to 2"):
        waterfall(Fraction(0), Fraction(2), [Term("a", Fraction(1), 0.0)], ("A", "B"), money=True)
    assert whole_parts([Fraction(1, 3)] * 3) == [1, 0, 0]
    with pytest.raises(ValueError, match="whole"):
        whole_parts([Fraction(1, 3)])


@given(st.floats(0.2, 5.0), st.floats(0.05, 0.95), st.booleans())
@settings(max_examples=40, deadline=None)
def test_goal_seek_of_a_monotone_curve(power: float, place: float, falling: bool) -> None:
    sign = -1.0 if falling else 1.0
    target = sign * place**power
    found = find_crossings(
        lambda values: [sign * value**power for value in values], target, [0.0, 0.3, 0.7, 1.0], tolerance=1e-9
    )
    assert len(found) == 1
    assert found[0].kind == "reached"
    assert found[0].value == pytest.approx(place, abs=1e-6)
    assert found[0].below <= found[0].value <= found[0].above


def test_every_crossing_of_a_curve_is_found() -> None:
    found = find_crossings(np.sin, 0.5, np.linspace(0, 12, 13).tolist(), tolerance=1e-8)
    known = [math.pi / 6, 5 * math.pi / 6, 13 * math.pi / 6, 17 * math.pi / 6]
    assert [one.value for one in found] == pytest.approx(known, abs=1e-6)


def test_a_jump_is_called_a_jump() -> None:
    (jump,) = find_crossings(np.floor, 2.5, [0.0, 2.0, 4.0])
    assert jump.kind == "jump"
    assert (jump.outcome_below, jump.outcome_above) == (2.0, 3.0)
    assert jump.below < 3 <= jump.above
    (whole,) = find_crossings(np.square, 30.0, [0.0, 10.0, 20.0], whole=True)
    assert (whole.kind, whole.below, whole.above) == ("jump", 5.0, 6.0)
    (exact,) = find_crossings(np.square, 36.0, [0.0, 10.0, 20.0], whole=True)
    assert (exact.kind, exact.value) == ("reached", 6.0)


def test_no_crossing_and_an_undefined_curve() -> None:
    assert find_crossings(np.square, -1.0, [0.0, 1.0, 2.0]) == []
    assert find_crossings(lambda values: [math.nan] * len(values), 0.0, [0.0, 1.0]) == []

    def hole(values: list[float]) -> list[float]:
        return [math.nan if 0.4 < value < 0.6 else value for value in values]

    (beside,) = find_crossings(hole, 0.5, [0.0, 1.0])
    assert beside.outcome_below < 0.5 < beside.outcome_above


A, B = 7.0, 0.1
UNIFORM = parse_distribution(f"~ uniform({-math.pi}, {math.pi})")
ISHIGAMI = [Input(name, 0.0, -1.0, 1.0, distribution=UNIFORM) for name in ("x1", "x2", "x3")]


def ishigami(shares: np.ndarray) -> np.ndarray:
    points = np.array([[one.at(u) for one, u in zip(ISHIGAMI, row, strict=True)] for row in shares.tolist()])
    x1, x2, x3 = points.T
    return np.sin(x1) + A * np.sin(x2) ** 2 + B * x3**4 * np.sin(x1)


def test_sobol_indices_of_ishigami() -> None:
    """T. Ishigami and T. Homma (1990): variances in closed form."""
    alone = 0.5 * (1 + B * math.pi**4 / 5) ** 2, A**2 / 8, 0.0
    together = 8 * B**2 * math.pi**8 / 225  # of x1 and x3
    variance = sum(alone) + together
    table = sobol(ishigami, ["x1", "x2", "x3"], 2048, seed=0).set_index("key").loc[["x1", "x2", "x3"]]
    totals = alone[0] + together, alone[1], together
    assert table["s1"].to_numpy() == pytest.approx(np.array(alone) / variance, abs=0.03)
    assert table["st"].to_numpy() == pytest.approx(np.array(totals) / variance, abs=0.03)
    for column, known in (("s1", alone), ("st", totals)):
        for key, value in zip(table.index, known, strict=True):
            width = table.loc[key, f"{column}_high"] - table.loc[key, f"{column}_low"]
            assert 0 < width < 0.2
            # Half as wide again as a 95 % interval: wrong once in 300.
            assert abs(table.loc[key, column] - value / variance) <= 0.75 * width


def test_morris_of_ishigami_on_its_whole_grid() -> None:
    """The mean over random paths tends to the mean over every edge of the grid, which is counted here."""
    levels = GRID_LOW + (GRID_HIGH - GRID_LOW) * np.arange(LEVELS) / (LEVELS - 1)
    step = LEVELS // 2
    grid = np.array([[a, b, c] for a in levels for b in levels for c in levels])
    effects: list[list[float]] = [[], [], []]
    for which in range(3):
        for point in grid:
            place = int(np.argmin(abs(levels - point[which])))
            if place + step < LEVELS:
                moved = point.copy()
                moved[which] = levels[place + step]
                rise = float((ishigami(moved[None]) - ishigami(point[None]))[0])
                effects[which].append(rise / (step / (LEVELS - 1)))
    table = morris(ishigami, ["x1", "x2", "x3"], 300, seed=1).set_index("key")
    for name, known in zip(("x1", "x2", "x3"), effects, strict=True):
        assert table.loc[name, "mu_star"] == pytest.approx(np.mean(np.abs(known)), rel=0.12)
        assert table.loc[name, "sigma"] == pytest.approx(np.std(known), rel=0.12)


def test_a_linear_function_has_no_surprises() -> None:
    slopes = np.array([3.0, -2.0, 1.0, 0.0])

    def line(shares: np.ndarray) -> np.ndarray:
        return 100 + shares @ slopes

    names = ["a", "b", "c", "idle"]
    screened = morris(line, names, 4, seed=0)
    assert screened["key"].tolist() == names
    assert screened["mu"].to_numpy() == pytest.approx(slopes * (GRID_HIGH - GRID_LOW))
    assert screened["sigma"].to_numpy() == pytest.approx(0.0, abs=1e-9)
    shares = sobol(line, names, 1024, seed=0)
    assert shares["key"].tolist() == names
    assert shares["s1"].to_numpy() == pytest.approx(slopes**2 / (slopes**2).sum(), abs=0.02)
    assert shares["st"].to_numpy() == pytest.approx(slopes**2 / (slopes**2).sum(), abs=0.02)


def test_indices_refuse_what_has_none() -> None:
    with pytest.raises(InputError, match="not a number at 100% of the points"):
        morris(lambda shares: np.full(len(shares), np.nan), ["a", "b"], 4, seed=0)
    with pytest.raises(InputError, match="power of two"):
        sobol(lambda shares: shares[:, 0], ["a"], 100, seed=0)
    assert sobol(lambda shares: np.ones(len(shares)), ["a", "b"], 8, seed=0)["st"].isna().all()


def frames_of(values: list[dict[str, float]]) -> list[pd.DataFrame]:
    return [
        pd.DataFrame([{f"out.{name}": value for name, value in one.items()} | {"error": ""}])
        for one in values
    ]


def test_search_finds_a_known_optimum() -> None:
    levers = [Lever("x", -5, 5), Lever("n", 0, 20, whole=True), Lever("kind", choices=("a", "b"))]

    def evaluate(batch: list[dict]) -> list[pd.DataFrame]:
        return frames_of(
            [{"f": -((c["x"] - 2) ** 2) - 0.1 * (c["n"] - 7) ** 2 - (c["kind"] == "b")} for c in batch]
        )

    tried = search(evaluate, levers, [parse_goal("max f")], trials=90, seed=3)
    best = tried.loc[tried["max f"].idxmax()]
    assert best["x"] == pytest.approx(2, abs=0.3)
    assert (best["n"], best["kind"]) == (7, "a")
    again = search(evaluate, levers, [parse_goal("max f")], trials=24, seed=3)
    pd.testing.assert_frame_equal(again, search(evaluate, levers, [parse_goal("max f")], trials=24, seed=3))
    assert not again["x"].equals(search(evaluate, levers, [parse_goal("max f")], trials=24, seed=4)["x"])


def test_search_keeps_to_its_conditions() -> None:
    def evaluate(batch: list[dict]) -> list[pd.DataFrame]:
        return frames_of([{"gain": c["x"], "risk": c["x"] ** 2} for c in batch])

    tried = search(
        evaluate, [Lever("x", 0, 10)], [parse_goal("max gain")], [parse_condition("risk <= 4")], trials=80
    )
    able = tried[tried["feasible"]]
    assert able["max gain"].max() == pytest.approx(2, abs=0.1)
    assert (able["x"] <= 2).all()
    assert (tried[~tried["feasible"]]["violation"] > 0).all()


def test_search_passes_by_what_fails_and_starts_with_what_is() -> None:
    def evaluate(batch: list[dict]) -> list[pd.DataFrame]:
        frames = frames_of([{"f": c["x"]} for c in batch])
        for frame, candidate in zip(frames, batch, strict=True):
            frame["error"] = "" if candidate["x"] < 3 else "broken"
        return frames

    tried = search(evaluate, [Lever("x", 0, 10)], [parse_goal("max f")], trials=60, start={"x": 1.25})
    assert tried["x"].iloc[0] == 1.25
    assert tried["max f"].max() == pytest.approx(3, abs=0.2)
    assert tried[tried["error"] != ""]["max f"].isna().all()


def test_a_front_of_two_goals() -> None:
    """Schaffer's problem: every x from 0 to 2 is on the front of x² and (x − 2)², and no other."""

    def evaluate(batch: list[dict]) -> list[pd.DataFrame]:
        return frames_of([{"f": c["x"] ** 2, "g": (c["x"] - 2) ** 2} for c in batch])

    goals = [parse_goal("min f"), parse_goal("min g")]
    tried = search(evaluate, [Lever("x", -10, 10)], goals, trials=160)
    front = tried[pareto(-tried[["min f", "min g"]].to_numpy())]
    assert front["x"].between(-0.25, 2.25).all()
    assert front["x"].min() < 0.5
    assert front["x"].max() > 1.5


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_nothing_beats_a_front(points: list[tuple[int, int]]) -> None:
    values = np.array(points, dtype=float)
    front = pareto(values)
    for index, one in enumerate(points):
        beaten = any(
            other[0] >= one[0] and other[1] >= one[1] and other != one for other in points
        )  # both at least as good, and not the same
        assert front[index] == (not beaten)


def test_ranges() -> None:
    assert parse_bounds("0.1..5") == (0.1, 5.0, False)
    assert parse_bounds("1e-3 .. 2e6 log") == (0.001, 2e6, True)
    assert spread(1, 100, 3, log=True, whole=False) == pytest.approx([1, 10, 100])
    assert spread(1, 4, 13, log=False, whole=True) == [1.0, 2.0, 3.0, 4.0]
    for wrong in ("5..1", "a..b", "3", "0..2 log", "1..inf"):
        with pytest.raises(InputError, match="allowed"):
            parse_bounds(wrong)
