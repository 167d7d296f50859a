"""Every page of the app draws the run on show; levers, edits and bad values do what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from sim.ui.controls import LEVERS, scenario_names

APP = Path(__file__).parents[1] / "app.py"
FIGURES = {"overview": 4, "scenario": 0, "serving": 4, "flywheel": 3, "finance": 2, "handover": 0}
PATIENCE = 60  # polls of a run whose capacity surface is not in the cache yet


def settled(app: AppTest) -> AppTest:
    """Rerun until the run on show is done, as the browser's polling does."""
    app.run()
    for _ in range(PATIENCE):
        if not app.get("progress"):
            break
        app.run()
    assert [error.value for error in app.exception] == []
    return app


@pytest.fixture
def app() -> AppTest:
    return settled(AppTest.from_file(str(APP), default_timeout=30))


def metric(app: AppTest, label: str) -> str:
    return next(str(entry.value) for entry in app.metric if entry.label == label)


def run_button(app: AppTest) -> None:
    next(button for button in app.button if button.label == "Run").click()
    settled(app)


def test_the_first_view_is_the_default_company_computed(app: AppTest) -> None:
    assert "API startup" in app.title[0].value
    assert len(app.metric) == 8
    assert all("nan" not in str(entry.value).lower() for entry in app.metric)
    assert not app.error


@pytest.mark.parametrize("page", list(FIGURES))
def test_every_page_is_drawn(app: AppTest, page: str) -> None:
    settled(app.switch_page(f"sim/ui/{page}.py"))
    assert app.title
    assert not app.error
    assert len(app.get("plotly_chart")) == FIGURES[page]


@pytest.mark.parametrize("name", scenario_names())
def test_every_shipped_scenario_can_be_chosen(app: AppTest, name: str) -> None:
    app.selectbox(key="scenario").select(name)
    settled(app)
    assert not app.error
    assert len(app.get("plotly_chart")) == FIGURES["overview"]


def test_a_changed_lever_changes_the_run_and_the_file_brings_it_back(app: AppTest) -> None:
    before = metric(app, "Cost of a million tokens")
    app.number_input(key="machine").set_value(0.2)
    run_button(app)
    assert metric(app, "Cost of a million tokens") != before
    next(button for button in app.button if button.label == "Back to the file").click()
    settled(app)
    assert metric(app, "Cost of a million tokens") == before


def test_every_lever_shows_its_unit_and_the_words_of_the_schema(app: AppTest) -> None:
    for lever in LEVERS:
        field = app.number_input(key=lever.name)
        assert lever.unit in field.label
        assert lever.key in field.help


def test_a_value_that_is_not_allowed_is_one_clear_line(app: AppTest) -> None:
    app.number_input(key="cadence").set_value(0.0)
    run_button(app)
    assert len(app.error) == 1
    assert "training.cadence_months: found 0.0, allowed: a number > 0" in app.error[0].value


def test_an_objective_that_cannot_be_met_is_one_clear_line(app: AppTest) -> None:
    app.session_state["edits"] = {"api_startup": {"deployment.ttft_p95_s": 0.001}}
    settled(app)
    assert any("allowed" in error.value for error in app.error)


def test_downloads_are_offered(app: AppTest) -> None:
    settled(app.switch_page("sim/ui/handover.py"))
    labels = " ".join(str(button.proto.label) for button in app.get("download_button"))
    for word in ("HTML", "CSV", "Parquet", "JSON", "YAML"):
        assert word in labels
