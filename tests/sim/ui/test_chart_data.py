"""The table beneath a chart holds what the chart draws; values keep their meaning on the way into a link and back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as some

from sim import Scenario, simulate
from sim.figures.cash_band import cash_with_ruin
from sim.figures.catalogue import all_figures
from sim.ui.chart_data import chart_data
from sim.ui.url_state import as_text, from_text
from tests.helpers.company import closed_form_surface

AXES = {"xaxis": {"title": {"text": "month"}}, "yaxis": {"title": {"text": "USD"}}}


def test_lines_and_bars_stand_below_one_another_under_the_names_of_the_axes() -> None:
    figure = go.Figure(
        [
            go.Scatter(x=["2026-01", "2026-02"], y=[1.0, None], name="cash"),
            go.Bar(x=["2026-01"], y=[3.0], name="burn"),
        ],
        AXES,
    )
    table = chart_data(figure)
    assert list(table.columns) == ["series", "month", "USD"]
    assert list(table["series"]) == ["cash", "cash", "burn"]
    assert list(table["USD"])[::2] == [1.0, 3.0]
    assert pd.isna(table["USD"].iloc[1])


def test_a_heat_map_gives_a_row_for_each_cell() -> None:
    figure = go.Figure(
        go.Heatmap(x=["a", "b", "c"], y=[1, 2], z=[[1, 2, 3], [4, 5, 6]], name="kept"),
        {"xaxis": {"title": {"text": "plan"}}, "yaxis": {"title": {"text": "age"}}},
    )
    table = chart_data(figure).set_index(["plan", "age"])["value"]
    assert table["c", 1] == 3
    assert table["a", 2] == 4
    assert len(table) == 6


def test_a_flow_diagram_gives_a_row_for_each_flow() -> None:
    flows = go.Sankey(
        node={"label": ["data", "model"]}, link={"source": [0, 1], "target": [1, 0], "value": [2, 5]}
    )
    table = chart_data(go.Figure(flows))
    assert table.to_numpy().tolist() == [["data", "model", 2], ["model", "data", 5]]


def test_a_second_axis_has_its_own_column() -> None:
    figure = go.Figure(
        [go.Scatter(x=[1], y=[2], name="left"), go.Scatter(x=[1], y=[9], name="right", yaxis="y2")],
        {**AXES, "yaxis2": {"title": {"text": "share"}}},
    )
    assert list(chart_data(figure).columns) == ["series", "month", "USD", "share"]


def test_every_figure_of_a_run_has_data_to_download() -> None:
    result = simulate(Scenario.load("api_startup"), surface=closed_form_surface())
    for name, draw in all_figures().items():
        table = chart_data(draw(result))
        assert len(table) > 0, name
        assert table.select_dtypes("number").size or table.notna().any().all(), name
    monthly = chart_data(all_figures()["cash"](result))
    drawn = monthly[monthly["series"] == "cash"]["USD"].astype(float)
    np.testing.assert_allclose(drawn, result.monthly["cash_usd"])


@pytest.mark.parametrize(("ruined", "said"), [(0.0, "none of 40 runs"), (0.25, "25% of 40 runs")])
def test_the_band_holds_what_it_says(ruined: float, said: str) -> None:
    result = simulate(Scenario.load("api_startup"), surface=closed_form_surface())
    months = list(result.monthly["month"])
    fan = pd.DataFrame({"month": months, **{f"p{level}": float(level) for level in (5, 25, 75, 95)}})
    study: Any = SimpleNamespace(
        fans={"cash_usd": fan},
        ruin=pd.DataFrame({"probability": [0.0, ruined]}),
        runs=range(42),
        failed=2,
        uncertain={},
    )
    figure = cash_with_ruin(result, study)
    assert said in figure.layout.title.text
    bands = {trace.name: trace for trace in figure.select_traces({"type": "scatter", "fill": "tonexty"})}
    assert set(bands["90% of runs"].y) == {95.0}
    assert set(bands["50% of runs"].y) == {75.0}
    line = next(trace for trace in figure.data if trace.name == "cash")
    np.testing.assert_allclose(line.y, result.monthly["cash_usd"])


scalars = (
    some.none()
    | some.booleans()
    | some.integers(-(10**12), 10**12)
    | some.floats(allow_nan=False, allow_infinity=False).map(lambda x: float(f"{x:.12g}"))
    | some.text(some.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=40)
)


@given(scalars | some.lists(scalars, max_size=4))
def test_a_value_survives_the_way_through_a_link(value: Any) -> None:
    assert from_text(as_text(value)) == value
    assert type(from_text(as_text(value))) in (type(value), int, float)
