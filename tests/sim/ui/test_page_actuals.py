"""The page Plan and actual: compares what it is asked to, and opens no database that it shouldn't."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.helpers.actuals import Truth, plan_of, write_company
from tests.helpers.app import drawn
from tests.helpers.places import APP

TRUTH = Truth(months=2, free=4, paid=6)


def opened(monkeypatch: pytest.MonkeyPatch, folder: Path, database: str | None = None) -> AppTest:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("FLYWHEEL_DATABASE", raising=False)
    if database is not None:
        monkeypatch.setenv("FLYWHEEL_DATABASE", database)
    app = AppTest.from_file(str(APP), default_timeout=60)
    app.run()
    return drawn(app.switch_page("sim/ui/pages/actuals.py"))


def test_only_databases_of_this_place_are_offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside / "out", outside):
        folder.mkdir(parents=True)
    app = opened(monkeypatch, inside)
    assert any("No usage database is here" in info.value for info in app.info)
    write_company(inside / "out" / "usage.db", TRUTH)
    write_company(outside / "other.db", TRUTH)
    (inside / "out" / "link.db").symlink_to(outside / "other.db")
    app = opened(monkeypatch, inside)
    assert app.selectbox(key="usage_database").options == ["out/usage.db"]


def test_a_wrong_plan_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    app = opened(monkeypatch, tmp_path / "out", write_company(tmp_path / "elsewhere.db", TRUTH))
    app.button(key="FormSubmitter:actuals-Compare").click()
    drawn(app)
    assert any(
        "found plan 'free', allowed: trial, developers" in error.value.replace("\\", "")
        for error in app.error
    )
    assert len(app.get("plotly_chart")) == 0


def test_a_comparison_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "out" / "scenarios").mkdir(parents=True)
    plan = plan_of(TRUTH, horizon_months=6, name="Drawn company", deployment__ttft_p95_s=15.0)
    plan.save(tmp_path / "out" / "scenarios" / "mine.yaml")
    write_company(tmp_path / "out" / "usage.db", TRUTH)
    app = opened(monkeypatch, tmp_path)
    app.selectbox(key="scenario").set_value("mine")
    drawn(app)
    app.text_input(key="actual_months").set_value("2026-01..2026-02")
    app.button(key="FormSubmitter:actuals-Compare").click()
    drawn(app)
    assert len(app.get("plotly_chart")) == 8
    said = " ".join(str(entry.value) for entry in app.markdown).replace("\\", "")
    assert "Recurring revenue was" in said
    assert "No bank rows" in said
    assert "Churn per month, paid" in app.dataframe[0].value.iloc[:, 0].tolist()
    shown = {entry.label: str(entry.value) for entry in app.metric}
    assert shown["Cash, 2026-02"] == "–"
