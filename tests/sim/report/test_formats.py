"""Every format from one run: tables that hold its numbers, JSON in its schema, sections, languages, escaping."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pymupdf
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from sim import Result, Scenario, outputs, simulate
from sim.figures.study import report_figures
from sim.i18n import numbers
from sim.i18n.translate import speaking, tr
from sim.outputs import result_json, result_schema, result_tables, write_outputs
from sim.report.content import SECTIONS, cohort_tables, uncertainty_tables
from sim.report.html import report_html
from sim.report.pdf import report_pdf
from sim.study.monte_carlo import MonteCarlo, monte_carlo
from sim.study.runs.options import RunOptions
from sim.utils.serialise import table_csv
from tests.helpers.company import closed_form_surface
from tests.helpers.report import HOSTILE, NAMES, named, run, squeezed


@pytest.fixture(scope="module")
def result() -> Result:
    return run()


@pytest.fixture(scope="module")
def short() -> Result:
    return run(horizon_months=3)


def test_result_json_keeps_its_published_schema(result: Result) -> None:
    schema = result_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    content = json.loads(result_json(result))
    assert content["$schema"] == schema["$id"]
    assert re.fullmatch(r"urn:model-flywheel:result:\d+", schema["$id"])
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(content)
    for broken in (
        {**content, "scenario_hash": "short"},
        {**content, "headline": {**content["headline"], "cash_out_month": "soon"}},
        {key: value for key, value in content.items() if key != "command"},
    ):
        assert not validator.is_valid(broken)


@pytest.mark.parametrize("scenario", ["platform", "downturn_funding", "on_premise_licence"])
def test_other_companies_keep_the_schema(scenario: str) -> None:
    made = simulate(
        Scenario.load(scenario).override({"horizon_months": 6}), surface=closed_form_surface(40, 50)
    )
    jsonschema.Draft202012Validator(result_schema()).validate(json.loads(result_json(made)))


def test_every_table_comes_as_csv_and_parquet(result: Result, tmp_path: Path) -> None:
    write_outputs(result, tmp_path, formats=["csv", "parquet"])
    tables = result_tables(result)
    assert set(tables) >= {"monthly", "ledger", "income", "balance_sheet", "cash_flow", "cohorts"}
    names = {f"{name}.{kind}" for name in tables for kind in ("csv", "parquet")}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name, table in tables.items():
        pd.testing.assert_frame_equal(
            pd.read_parquet(tmp_path / f"{name}.parquet"), table.reset_index(drop=True)
        )
        read = pd.read_csv(tmp_path / f"{name}.csv", keep_default_na=False, na_values=[""])
        assert list(read.columns) == list(table.columns)
        for column in table.select_dtypes("number"):
            assert np.allclose(read[column].astype(float), table[column], equal_nan=True), (name, column)
    balance = pd.read_parquet(tmp_path / "balance_sheet.parquet")
    assert np.allclose(balance["total_assets"], balance["total_liabilities"] + balance["total_equity"])


@settings(deadline=None)
@given(text=st.sampled_from(HOSTILE) | st.text(max_size=30))
def test_text_in_a_csv_is_no_formula(text: str) -> None:
    made = table_csv(pd.DataFrame({"name": [text], "amount_usd": [-1.5]}))
    cell, amount = list(csv.reader(io.StringIO(made, newline="")))[1]
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    said = text.replace("\r", " ")
    assert cell in (said, f"'{said}")
    assert float(amount) == -1.5


class _Page(HTMLParser):
    """The elements of a page, its title, and what its heading says."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.inside = ""
        self.heading = ""
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside = tag
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "h1":
            self.heading += data


@pytest.fixture(scope="module")
def plain(short: Result) -> _Page:
    page = _Page()
    page.feed(report_html(named(short, "plain"), ["summary", "scenario"]))
    return page


@settings(max_examples=8, deadline=None)
@given(name=NAMES)
@example(name=HOSTILE[0])
@example(name=HOSTILE[8])
def test_a_name_is_text_in_the_page(short: Result, plain: _Page, name: str) -> None:
    page = _Page()
    page.feed(report_html(named(short, name), ["summary", "scenario"]))
    assert page.heading == name
    assert page.tags == plain.tags
    assert page.handlers == plain.handlers == []


def test_only_the_sections_asked_for(result: Result) -> None:
    page = report_html(result, ["statements"])
    assert "<h2>Statements</h2>" in page
    for name in SECTIONS:
        if name != "statements":
            assert f"<h2>{SECTIONS[name]}</h2>" not in page
    assert "Plotly" not in page.split("</main>")[0]
    assert len(page) < 200_000  # no figures, no library
    # What it takes to make it again is in every report.
    for word in (result.scenario.content_hash, result.profile.content_hash, "flywheel run api_startup"):
        assert word in page


def test_in_chinese(result: Result) -> None:
    page = report_html(result, ["summary", "statements"], "zh")
    assert '<html lang="zh-Hans">' in page
    assert '<html lang="en">' in report_html(result, ["summary"])
    with speaking("zh"):
        assert f"<h2>{tr(SECTIONS['statements'])}</h2>" in page
        assert tr("ARR at the end") in page


def test_unknown_choices_are_one_line_and_nothing_is_written(result: Result, tmp_path: Path) -> None:
    for choice, message in (
        ({"formats": ["docx"]}, "formats: found docx, allowed: html, pdf"),
        ({"formats": []}, "formats: found none"),
        ({"sections": ["weather"]}, "sections: found 'weather', allowed: summary"),
        ({"language": "xx"}, "language: found 'xx', allowed: en, zh"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            write_outputs(result, tmp_path / "out", **choice)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_the_first_format_is_the_path_given(result: Result, tmp_path: Path) -> None:
    assert write_outputs(result, tmp_path, formats=["json", "xlsx"]) == tmp_path / "report.xlsx"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.xlsx", "result.json"]


def test_a_cancelled_report_leaves_the_old_files(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cancelled(Exception):
        pass

    write_outputs(result, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def cancel(fraction: float, doing: str) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        write_outputs(named(result, "other"), tmp_path, ["html", "pdf"], ["summary"], progress=cancel)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_cohorts_by_quarter_from_the_posting_lines(result: Result) -> None:
    """Recurring revenue of the first quarter's customers a year on, from the ledger's lines."""
    customers, revenue = cohort_tables(result)
    lines = result.ledger.to_frame()
    recurring = lines[lines["account"] == "revenue_tokens"]
    joined = recurring["party"].str.extract(r"/(\d{3})$")[0].astype(float)
    age = recurring["month_index"] - joined
    first = (joined < 3) & (age == 0)
    later = (joined < 3) & (age == 12)
    usd = -recurring["amount_microusd"] / 1e6
    kept = usd[later].sum() / usd[first].sum()
    row = dict(zip(revenue.head, revenue.rows[0], strict=True))
    assert row["Joined in"] == "2026 Q1"
    assert row["after 12 months"] == f"{kept:.0%}"
    # The last quarter has no month of age 12 yet.
    assert dict(zip(customers.head, customers.rows[-1], strict=True))["after 12 months"] == "–"


@pytest.fixture(scope="module")
def study() -> MonteCarlo:
    """Eight runs of six months on this process."""
    return monte_carlo(
        Scenario.load("api_startup").override({"horizon_months": 6}),
        runs=8,
        targets=["cash_usd_end > 0"],
        options=RunOptions(workers=1),
    )


def test_a_study_is_told_with_its_percentiles(short: Result, study: MonteCarlo) -> None:
    page = report_html(short, ["uncertainty"], study=study)
    assert "<h2>Uncertainty</h2>" in page
    assert "<h2>Uncertainty</h2>" not in report_html(short)
    cash = np.sort(study.runs["out.cash_usd_end"])
    table = next(table for table in uncertainty_tables(study) if "median" in table.head)
    row = next(row for row in table.rows if row[0] == "Cash at the end")
    said = dict(zip(table.head, row, strict=True))
    assert said["mean"] == numbers.usd(cash.mean())
    chance = next(row for row in uncertainty_tables(study)[1].rows if row[0] == "cash_usd_end > 0")
    assert chance[1] == numbers.percent(float(np.mean(cash > 0)), 1)
    titles = [squeezed(str(figure.layout.title.text)) for figure in report_figures(study).values()]
    assert len(titles) == 3
    assert page.count("<figure ") == 3
    text = report_pdf(short, ["uncertainty"], study=study)
    with pymupdf.open(stream=text) as document:
        told = squeezed("".join(page.get_text() for page in document))
    assert squeezed(said["median"]) in told
    assert all(title in told for title in titles)


def test_the_command_writes_what_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    from sim.cli import app

    monkeypatch.chdir(tmp_path)
    words = [
        "flywheel",
        "run",
        "api_startup",
        "--set",
        "horizon_months=2",
        "--format",
        "xlsx,json",
        "--out",
        "o",
    ]
    monkeypatch.setattr(sys, "argv", [*words, "--lang", "zh", "--sections", "summary"])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 0
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["report.xlsx", "result.json"]
    assert "ARR at the end" in capsys.readouterr().out  # the terminal speaks English
    monkeypatch.setattr(sys, "argv", [*words[:-1], "p", "--format", "docx"])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 2
    assert "formats: found docx" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
    assert outputs.FORMATS == ("html", "pdf", "xlsx", "csv", "parquet", "json")
