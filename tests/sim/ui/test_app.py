"""The frame of the app and its pages Overview, Scenario and Report: every control does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from sim.figures.theme import PALETTES
from sim.i18n.translate import speaking, tr
from sim.scenario.fields import leaves
from sim.scenario.scenario import Scenario
from sim.ui.scenario_store import shipped_names
from sim.ui.sidebar import LEVERS
from tests.helpers.app import drawn
from tests.helpers.places import APP, ROOT


def said(text: str) -> str:
    """Text on screen without the marks that keep Markdown from reading it."""
    return re.sub(r"\\(.)", r"\1", text)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.chdir(tmp_path)  # where "out/scenarios" lies
    return drawn(AppTest.from_file(str(APP), default_timeout=60))


@pytest.fixture
def editor(app: AppTest) -> AppTest:
    return drawn(app.switch_page("sim/ui/pages/scenario.py"))


def opened(query: dict[str, str | list[str]], page: str | None = None) -> AppTest:
    """The app as a link opens it."""
    app = AppTest.from_file(str(APP), default_timeout=60)
    for key, value in query.items():
        app.query_params[key] = value
    drawn(app)
    return drawn(app.switch_page(page)) if page else app


def metric(app: AppTest, label: str) -> str:
    return next(str(entry.value) for entry in app.metric if entry.label == label)


def press(app: AppTest, label: str) -> AppTest:
    next(button for button in app.button if button.label == label).click()
    return drawn(app)


def field(app: AppTest, key: str, scenario: str = "api_startup") -> Any:
    return app.text_input(key=f"field {scenario} {key}")


def type_in(app: AppTest, key: str, text: str) -> AppTest:
    field(app, key).set_value(text)
    return drawn(app)


def errors(app: AppTest) -> list[str]:
    return [said(error.value) for error in app.error]


def table(app: AppTest, column: str) -> pd.DataFrame:
    return next(frame.value for frame in app.dataframe if column in frame.value.columns)


# ------------------------------------------------------------------ frame


def test_the_first_view_is_the_default_company_computed(app: AppTest) -> None:
    assert "API startup" in said(app.title[0].value)
    assert len(app.metric) == 8
    assert all("nan" not in str(entry.value).lower() for entry in app.metric)
    assert len(app.get("plotly_chart")) == 6
    assert not app.error


def test_every_shipped_scenario_can_be_chosen(app: AppTest) -> None:
    for name in shipped_names():
        app.selectbox(key="scenario").select(name)
        drawn(app)
        assert errors(app) == [], name
        assert Scenario.load(name).name == said(app.title[0].value)
        assert len(app.get("plotly_chart")) == 6


def test_a_changed_lever_changes_the_run_and_the_file_brings_it_back(app: AppTest) -> None:
    before = metric(app, "Cost per 1M tokens")
    app.number_input(key="machine").set_value(0.2)
    press(app, "Run")
    assert metric(app, "Cost per 1M tokens") != before
    press(app, "Back to the file")
    assert metric(app, "Cost per 1M tokens") == before


def test_another_seed_is_another_luck(app: AppTest) -> None:
    before = metric(app, "ARR at the end")
    app.number_input(key="seed").set_value(123)
    press(app, "Run")
    assert metric(app, "ARR at the end") != before


def test_every_lever_shows_its_unit_and_the_words_of_the_schema(app: AppTest) -> None:
    for lever in LEVERS:
        shown = app.number_input(key=lever.name)
        assert lever.unit in shown.label
        assert lever.key in shown.help


def test_a_value_that_is_not_allowed_is_one_clear_line(app: AppTest) -> None:
    app.number_input(key="cadence").set_value(0.0)
    press(app, "Run")
    assert len(app.error) == 1
    assert "training.cadence_months: found 0.0, allowed: a number > 0" in errors(app)[0]


def test_an_objective_that_cannot_be_met_is_one_clear_line(app: AppTest) -> None:
    app.session_state["edits"] = {"api_startup": {"deployment.ttft_p95_s": 0.001}}
    drawn(app)
    assert any("allowed" in error for error in errors(app))
    assert app.metric  # the last run stays on show


def test_the_other_language_is_spoken_everywhere_and_stands_in_the_link(app: AppTest) -> None:
    app.session_state["lang"] = "zh"
    drawn(app)
    assert app.query_params["lang"] in ("zh", ["zh"])
    with speaking("zh"):
        assert {tr("Gross margin"), tr("Cash at the end")} <= {entry.label for entry in app.metric}
        assert app.selectbox(key="scenario").label == tr("Scenario")


# ------------------------------------------------------------------ links


def test_a_link_brings_back_scenario_levers_seed_edits_and_language() -> None:
    query: dict[str, str | list[str]] = {
        "scenario": "price_war",
        "price_out": "0.5",
        "seed": "11",
        "set": ["training.mfu:0.31", "market.demand_noise:0.2"],
    }
    app = opened(query)
    scenario, seed = app.session_state["asked"]
    assert seed == 11
    assert scenario.name == Scenario.load("price_war").name
    assert scenario.market.price_usd_per_mtok_output == 0.5
    assert (scenario.training.mfu, scenario.market.demand_noise) == (0.31, 0.2)
    assert app.query_params["set"] == ["training.mfu:0.31", "market.demand_noise:0.2"]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("training.mfu:7", "found 7"),
        ("training.mfuu:0.3", "unknown key"),
        ("training.mfu", "allowed: key:value"),
        ("training.mfu:" + "9" * 3000, "allowed: at most"),
        ("training.mfu:&a [*a, *a]", "training.mfu"),
        ("training.mfu:!!python/object/apply:os.getcwd []", "text"),
    ],
)
def test_a_wrong_entry_of_a_link_is_said_and_left_out(entry: str, reason: str) -> None:
    app = opened({"set": [entry, "market.demand_noise:0.2"]})
    scenario, _ = app.session_state["asked"]
    assert scenario.training.mfu == Scenario.load("api_startup").training.mfu
    assert scenario.market.demand_noise == 0.2  # one wrong entry takes no other with it
    assert len(app.warning) == 1
    assert reason in said(app.warning[0].value)


def test_a_link_to_an_unknown_scenario_is_said() -> None:
    app = opened({"scenario": "no_such_company"})
    assert "no_such_company" in said(app.warning[0].value)
    assert app.metric


def test_the_link_to_copy_opens_the_same_run(app: AppTest) -> None:
    app.number_input(key="price_out").set_value(0.6)
    press(app, "Run")
    drawn(app.switch_page("sim/ui/pages/scenario.py"))
    app.session_state["section"] = "training"
    drawn(app)
    type_in(app, "training.mfu", "0.33")
    link = next(block.value for block in app.code if "price_out" in block.value)
    assert "price_out=0.6" in link
    assert "set=training.mfu%3A0.33" in link


# ------------------------------------------------------------------ overview


@pytest.mark.slow
def test_the_cash_gets_its_band_of_luck_once_the_company_stands_still(app: AppTest) -> None:
    key, since_s = app.session_state["many_runs_waits"]
    app.session_state["many_runs_waits"] = (key, since_s - 60.0)
    drawn(app)
    drawn(app)
    titles = [said(block.value) for block in app.markdown]
    assert any(re.search(r"Cash runs out in .* of 100 runs", title) for title in titles)


# ------------------------------------------------------------------ scenario


def test_every_assumption_has_a_field_with_meaning_and_unit(editor: AppTest) -> None:
    seen: set[str] = set()
    for section in ("market", "deployment", "training", "data", "finance", "run"):
        editor.session_state["section"] = section
        drawn(editor)
        parts = next((group.options for group in editor.get("button_group") if group.key == "part"), [""])
        for path in parts:
            editor.session_state["part"] = path
            drawn(editor)
            seen |= {
                str(entry.key).removeprefix("field api_startup ")
                for entry in editor.text_input
                if str(entry.key).startswith("field ")
            }
    wanted = {key for key, _, _ in leaves(Scenario.load("api_startup"))}
    assert wanted <= seen


def test_a_typed_value_runs_at_once_and_shows_in_the_difference(editor: AppTest) -> None:
    type_in(editor, "market.demand_noise", "0.25")
    assert editor.session_state["asked"][0].market.demand_noise == 0.25
    row = table(editor, "Before").iloc[0]
    assert list(row[["Key", "Before", "After"]]) == ["market.demand_noise", "0.1", "0.25"]
    type_in(editor, "market.demand_noise", "0.1")  # as in the file again: no edit
    assert not any("Before" in frame.value.columns for frame in editor.dataframe)
    assert "set" not in editor.query_params


def test_a_lever_typed_over_moves_in_the_sidebar_too(editor: AppTest) -> None:
    type_in(editor, "market.price_usd_per_mtok_output", "1.5")
    assert editor.number_input(key="price_out").value == 1.5
    type_in(editor, "market.price_usd_per_mtok_output", "-3")
    assert "found -3, allowed: a number ≥ 0" in errors(editor)[0]
    assert field(editor, "market.price_usd_per_mtok_output").value == "-3"  # what was typed stays
    assert editor.number_input(key="price_out").value == 1.5  # and harms nothing
    press(editor, "Back to the file")
    assert not editor.error
    assert field(editor, "market.price_usd_per_mtok_output").value.startswith("~ lognormal(")


def test_what_is_unsure_is_shown_and_typed_as_text(editor: AppTest) -> None:
    key = "market.price_usd_per_mtok_output"
    type_in(editor, key, "~ uniform(0.5, 0.9)")
    scenario = editor.session_state["asked"][0]
    assert scenario.market.price_usd_per_mtok_output == pytest.approx(0.7)  # its median
    assert scenario.uncertain[key].text == "~ uniform(low=0.5, high=0.9)"
    type_in(editor, key, "~ uniform(0.9, 0.5)")
    assert len(errors(editor)) == 1
    type_in(editor, key, "0.8")  # the median of the file's own distribution, now certain
    assert key not in editor.session_state["asked"][0].uncertain
    assert table(editor, "Before").iloc[0]["After"] == "0.8"
    editor.number_input(key="price_out").set_value(0.6)  # a lever moved later has the last word
    press(editor, "Run")
    assert editor.session_state["asked"][0].market.price_usd_per_mtok_output == 0.6


def test_search_finds_assumptions_of_all_sections(editor: AppTest) -> None:
    editor.text_input(key="search").set_value("price per hour")
    drawn(editor)
    keys = [str(entry.key) for entry in editor.text_input if str(entry.key).startswith("field ")]
    assert any("deployment." in key for key in keys)


def test_a_scenario_is_saved_and_chosen(editor: AppTest, tmp_path: Path) -> None:
    type_in(editor, "market.demand_noise", "0.25")
    editor.text_input(key="save_as").set_value("mine")
    press(editor, "Save")
    drawn(editor)
    assert editor.selectbox(key="scenario").value == "mine"
    assert Scenario.load(tmp_path / "out/scenarios/mine.yaml").market.demand_noise == 0.25
    assert editor.session_state["asked"][0].market.demand_noise == 0.25


@pytest.mark.parametrize("name", ["api_startup", "../escape", "", "a/b"])
def test_a_name_that_is_no_new_file_is_refused(editor: AppTest, name: str, tmp_path: Path) -> None:
    editor.text_input(key="save_as").set_value(name)
    press(editor, "Save")
    assert any("allowed" in error for error in errors(editor))
    assert not list(tmp_path.rglob("*.yaml"))


def test_an_imported_scenario_can_be_chosen(editor: AppTest) -> None:
    content = Scenario.load("price_war").override({"market.demand_noise": 0.3}).to_yaml()
    editor.file_uploader(key="import").set_value([("rival.yaml", content.encode(), "application/yaml")])
    drawn(editor)
    assert editor.selectbox(key="scenario").value == "rival"
    assert editor.session_state["asked"][0].market.demand_noise == 0.3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"market: [", "not YAML"),
        (b"name: X\nmarkett: {}\n", "markett: unknown key"),
        (b"name: X\n" + b"#" * 1_000_001, "allowed: at most 1,000,000"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(editor: AppTest, content: bytes, reason: str) -> None:
    editor.file_uploader(key="import").set_value([("wrong.yaml", content, "application/yaml")])
    drawn(editor)
    assert len(errors(editor)) == 1
    assert reason in errors(editor)[0]
    assert "\n" not in errors(editor)[0]
    assert editor.selectbox(key="scenario").value == "api_startup"


def test_the_whole_scenario_can_be_edited_as_yaml(editor: AppTest) -> None:
    editor.session_state["section"] = "yaml"
    drawn(editor)
    area = editor.text_area[0]
    area.set_value(str(area.value).replace("demand_noise: 0.1", "demand_noise: 0.4"))
    press(editor, "Use this text")
    drawn(editor)
    assert editor.session_state["asked"][0].market.demand_noise == 0.4


def test_what_the_run_rests_on_can_be_told_apart(editor: AppTest) -> None:
    everything = table(editor, "Source")
    editor.session_state["kinds"] = ["measured"]
    drawn(editor)
    measured = table(editor, "Source")
    assert 0 < len(measured) < len(everything)
    assert set(measured["Kind"]) == {"measured"}


# ------------------------------------------------------------------ report


def test_a_report_is_made_in_the_background_and_downloaded(app: AppTest) -> None:
    drawn(app.switch_page("sim/ui/pages/report.py"))
    app.session_state["formats"] = ["html", "xlsx"]
    app.session_state["sections"] = ["summary", "provenance"]
    drawn(app)
    press(app, "Make the report")
    drawn(app)
    labels = [button.proto.label for button in app.get("download_button")]
    assert [label.split(" (")[0] for label in labels[:2]] == ["Download HTML", "Download XLSX"]
    for word in ("CSV", "Parquet", "JSON", "YAML"):
        assert any(word in label for label in labels)


def test_a_report_needs_a_format_and_a_section(app: AppTest) -> None:
    drawn(app.switch_page("sim/ui/pages/report.py"))
    for key in ("formats", "sections"):
        app.session_state[key] = []
        drawn(app)
        assert app.button(key="make").disabled


def test_the_colours_are_those_of_the_figures() -> None:
    settings = (ROOT / ".streamlit" / "config.toml").read_text()
    for name, colours in PALETTES.items():
        section = settings.split(f"[theme.{name}]")[1].split("[theme.")[0]
        assert f'backgroundColor = "{colours.background}"' in section
        assert f'textColor = "{colours.text}"' in section
        assert f'primaryColor = "{colours.revenue}"' in section
