"""The pages Flywheel, Training lab and Finance: every control does what it says."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from tests.helpers.app import drawn
from tests.helpers.places import APP


def opened(page: str) -> AppTest:
    app = AppTest.from_file(str(APP), default_timeout=60)
    app.run()
    return drawn(app.switch_page(f"sim/ui/pages/{page}.py"))


def text_of(app: AppTest) -> str:
    return " ".join(str(entry.value) for entry in (*app.markdown, *app.caption))


def test_the_wheel_and_its_events() -> None:
    app = opened("flywheel")
    assert len(app.get("plotly_chart")) == 4
    everything = len(app.dataframe[-1].value)
    app.button_group(key="stages").set_value(["training"])
    drawn(app)
    shown = app.dataframe[-1].value
    assert 0 < len(shown) < everything
    assert set(shown["stage"]) == {"training"}


def test_statements_cohorts_and_metrics() -> None:
    app = opened("finance")
    lines = {"income": "Net income", "balance_sheet": "Total assets", "cash_flow": "Closing cash"}
    for statement, line in lines.items():
        app.button_group(key="statement").set_value(statement)
        drawn(app)
        assert line in app.dataframe[0].value.index
        assert list(app.dataframe[0].value.columns) == ["2026", "2027", "2028"]
    app.button_group(key="period").set_value("months")
    assert "of the customers of a quarter are left" in text_of(app)
    app.button_group(key="cohort_measure").set_value("mrr")
    app.button_group(key="ratios").set_value(["nrr"])
    drawn(app)
    assert len(app.dataframe[0].value.columns) == 36
    assert "of what they paid at first" in text_of(app)
    assert list(app.dataframe[1].value.columns) == ["month", "nrr"]


def test_a_run_is_planned_by_its_numbers() -> None:
    app = opened("training_lab")
    app.button_group(key="training_view").set_value("plan")
    drawn(app)
    app.number_input(key="n").set_value(1.0)
    app.number_input(key="d").set_value(20.0)
    app.number_input(key="accelerators").set_value(8)
    drawn(app)
    shown = {entry.label: str(entry.value) for entry in app.metric}
    assert shown["Compute (FLOP)"] == "1.20e+20"
    assert shown["Tokens per parameter"] == "20"
    app.number_input(key="n").set_value(1000.0)
    app.number_input(key="accelerators").set_value(1)
    drawn(app)
    assert any("doesn't fit" in warning.value for warning in app.warning)


def test_the_law_and_the_companys_runs_are_shown() -> None:
    app = opened("training_lab")
    app.button_group(key="training_view").set_value("law")
    drawn(app)
    assert len(app.get("plotly_chart")) == 1
    app.button_group(key="training_view").set_value("company")
    drawn(app)
    assert (app.dataframe[0].value["training_flop"] > 0).all()


@pytest.mark.slow
def test_a_training_runs_for_real_and_says_what_came_out() -> None:
    app = opened("training_lab")
    app.number_input(key="layers").set_value(1)
    app.number_input(key="hidden_size").set_value(32)
    app.number_input(key="steps").set_value(10)
    app.number_input(key="sequence").set_value(32)
    app.number_input(key="library_mb").set_value(0.2)
    next(button for button in app.button if button.label == "Train").click()
    drawn(app, patience_s=200.0)
    assert not app.error
    assert len(app.get("plotly_chart")) == 1
    assert "What came out" in text_of(app)
    assert app.code[-1].value
