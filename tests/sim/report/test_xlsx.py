"""The workbook calculates: LibreOffice, given nothing but the formulas, comes to the numbers of the run."""

from __future__ import annotations

import io
import math
import re
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path

import openpyxl
import pytest
from hypothesis import example, given, settings

from sim import Result, Scenario, simulate
from sim.accounting.labels import STATEMENTS
from sim.cli.options import parse_overrides
from sim.i18n.translate import speaking, tr
from sim.report.xlsx.report import report_xlsx
from tests.helpers.company import closed_form_surface
from tests.helpers.report import HOSTILE, NAMES, named, run

SPOILED = 12345.678
# LibreOffice otherwise trusts the values in the file.
ALWAYS_RECALCULATE = """<?xml version="1.0" encoding="UTF-8"?>
<oor:items xmlns:oor="http://openoffice.org/2001/registry">
<item oor:path="/org.openoffice.Office.Calc/Formula/Load"><prop oor:name="OOXMLRecalcMode" oor:op="fuse">
<value>0</value></prop></item></oor:items>
"""


def recalculated(folder: Path, *files: Path) -> list[openpyxl.Workbook]:
    """The files as LibreOffice calculates them, its profile in `folder`."""
    soffice = shutil.which("soffice")
    if soffice is None:
        pytest.skip("LibreOffice (soffice) is not installed")
    user = folder / "profile" / "user"
    user.mkdir(parents=True)
    (user / "registrymodifications.xcu").write_text(ALWAYS_RECALCULATE)
    out = folder / "recalculated"
    words = [soffice, f"-env:UserInstallation={(folder / 'profile').as_uri()}", "--headless", "--convert-to"]
    words += ["xlsx:Calc MS Excel 2007 XML", "--outdir", str(out), *map(str, files)]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    return [openpyxl.load_workbook(out / file.name, data_only=True) for file in files]


def spoil(content: bytes) -> bytes:
    """The workbook with a wrong value beside every formula: only calculating makes it right again."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(stream, "w") as after:
        for name in before.namelist():
            part = before.read(name)
            if name.startswith("xl/worksheets/"):
                part = re.sub(rb"</f><v>[^<]*</v>", f"</f><v>{SPOILED}</v>".encode(), part)
            after.writestr(name, part)
    return stream.getvalue()


def formulas(book: openpyxl.Workbook) -> list[tuple[str, str]]:
    """(sheet, cell) of every formula."""
    return [
        (sheet.title, cell.coordinate)
        for sheet in book
        for row in sheet.iter_rows()
        for cell in row
        if cell.data_type == "f"
    ]


def assert_calculates(content: bytes, calculated: openpyxl.Workbook) -> None:
    written = openpyxl.load_workbook(io.BytesIO(content), data_only=True)
    where = formulas(openpyxl.load_workbook(io.BytesIO(content)))
    assert len(where) > 1000
    for sheet, cell in where:
        expected, found = written[sheet][cell].value, calculated[sheet][cell].value
        if isinstance(expected, (int, float)):
            assert isinstance(found, (int, float)), (sheet, cell, expected, found)
            # A ten-thousandth of a dollar: differences of large amounts leave rounding behind.
            assert math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-4), (sheet, cell, expected, found)
        else:
            assert (found or "") == (expected or ""), (sheet, cell, expected, found)
    for sheet in calculated:
        for row in sheet.iter_rows():
            assert not [cell.coordinate for cell in row if cell.data_type == "e"], sheet.title


@pytest.fixture(scope="module")
def result() -> Result:
    return run()


@pytest.fixture(scope="module")
def content(result: Result) -> bytes:
    return report_xlsx(result)


@pytest.fixture(scope="module")
def book(content: bytes) -> openpyxl.Workbook:
    return openpyxl.load_workbook(io.BytesIO(content))


@pytest.fixture(scope="module")
def values(content: bytes) -> openpyxl.Workbook:
    return openpyxl.load_workbook(io.BytesIO(content), data_only=True)


def row_of(sheet: openpyxl.worksheet.worksheet.Worksheet, label: str) -> int:
    return next(cell.row for cell in sheet["A"] if cell.value == label)


def test_libreoffice_comes_to_the_same_numbers(content: bytes, tmp_path: Path) -> None:
    spoiled, edited = tmp_path / "spoiled.xlsx", tmp_path / "edited.xlsx"
    spoiled.write_bytes(spoil(content))
    changed = openpyxl.load_workbook(io.BytesIO(content))
    sheet = changed["Assumptions"]
    sheet.cell(row_of(sheet, "market.price_usd_per_mtok_output"), 2).value = 0.95
    sheet.cell(row_of(sheet, "deployment.model"), 2).value = "it's ours"
    changed.save(edited)
    calculated, with_changes = recalculated(tmp_path, spoiled, edited)
    assert_calculates(content, calculated)
    # What a person changed is what the command on the sheet sets.
    words = shlex.split(with_changes["Assumptions"]["A5"].value)
    assert words[:3] == ["flywheel", "run", "api_startup"]
    pairs = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    found = parse_overrides(pairs)
    assert found == {"market.price_usd_per_mtok_output": 0.95, "deployment.model": "it's ours"}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["platform", "on_premise_licence", "downturn_funding", "three_segments"])
def test_other_companies_calculate_too(scenario: str, tmp_path: Path) -> None:
    made = report_xlsx(simulate(Scenario.load(scenario), surface=closed_form_surface(40, 50)))
    file = tmp_path / "spoiled.xlsx"
    file.write_bytes(spoil(made))
    assert_calculates(made, recalculated(tmp_path, file)[0])


def test_totals_are_formulas_and_lines_are_the_ledgers(result: Result, book: openpyxl.Workbook) -> None:
    income = book["Income statement"]
    for label in ("Total revenue", "Gross profit", "Gross margin", "Net income"):
        row = income[row_of(income, label)]
        assert all(cell.data_type == "f" for cell in row[1:]), label
    revenue = income[row_of(income, "Revenue from tokens")]
    years = len({month[:4] for month in result.monthly["month"]})
    assert all(str(cell.value).startswith("=SUM(") for cell in revenue[1 : 1 + years])
    exact = result.statements.income(exact=True)["revenue_tokens"]
    assert [round(cell.value * 1e6) for cell in revenue[1 + years :]] == list(exact)
    cash = book["Cash flow"]
    assert all(cell.data_type == "f" for row in cash.iter_rows(min_row=5, min_col=2) for cell in row)


def test_names_stand_for_the_headline(
    result: Result, book: openpyxl.Workbook, values: openpyxl.Workbook
) -> None:
    for name, key in (
        ("ARR_end", "arr_usd_end"),
        ("Revenue_total", "revenue_usd_total"),
        ("Cash_min", "cash_usd_min"),
        ("LTV_to_CAC", "ltv_to_cac_last"),
        ("Break_even_month", "breakeven_month"),
        ("Fleet_utilisation", "utilisation_mean"),
    ):
        sheet, cell = next(iter(book.defined_names[name].destinations))
        assert book[sheet][cell].data_type == "f"
        assert values[sheet][cell].value == result.headline[key], name


def test_it_reads_like_a_workbook_for_people(result: Result, book: openpyxl.Workbook) -> None:
    assert book.sheetnames == [
        *("Summary", "Assumptions", "Income statement", "Balance sheet", "Cash flow", "Metrics"),
        *("Unit economics", "Cohorts", "Trial balance", "Sources"),
    ]
    for name in ("Assumptions", *STATEMENTS.values(), "Metrics"):
        assert book[name].freeze_panes is not None
        assert book[name].print_title_rows
        assert book[name].page_setup.paperSize == 9
    summary = {row[0].value: row[1].value for row in book["Summary"].iter_rows()}
    assert summary["Scenario hash"] == result.scenario.content_hash
    assert summary["Profile hash"] == result.profile.content_hash
    assert summary["Command"] == "flywheel run api_startup"
    assert summary["Seed"] == "7"
    kinds = {row[3].value for row in book["Assumptions"].iter_rows(min_row=7)}
    assert {"measured", "sourced", "assumed"} <= kinds


def test_the_trial_balance_is_the_ledgers(result: Result, values: openpyxl.Workbook) -> None:
    sheet = values["Trial balance"]
    last = {row[0].value: row[-1].value for row in sheet.iter_rows(min_row=5)}
    micro = result.ledger.to_frame().groupby("account")["amount_microusd"].sum()
    assert round(last["Cash"] * 1e6) == micro["cash"]
    assert round(last["Payable"] * 1e6) == micro["payable"]
    assert last["Debits less credits"] == 0


def test_the_same_run_gives_the_same_bytes(content: bytes) -> None:
    assert report_xlsx(run()) == content


def test_in_chinese(result: Result) -> None:
    book = openpyxl.load_workbook(io.BytesIO(report_xlsx(result, "zh")))
    with speaking("zh"):
        assert book.sheetnames[0] == tr("Summary")
        assert tr(STATEMENTS["income"]) in book.sheetnames
        labels = [cell.value for cell in book[tr(STATEMENTS["income"])]["A"]]
        assert tr("Total revenue") in labels


def test_a_run_of_one_month(tmp_path: Path) -> None:
    made = report_xlsx(run(horizon_months=1))
    summary = openpyxl.load_workbook(io.BytesIO(made), data_only=True)["Summary"]
    assert summary["A1"].value


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(name=NAMES)
@example(name=HOSTILE[1])
@example(name=HOSTILE[2])
@example(name=HOSTILE[3])
@example(name=HOSTILE[4])
def test_a_name_is_text_and_nothing_else(short: Result, name: str) -> None:
    content = report_xlsx(named(short, name))
    cell = openpyxl.load_workbook(io.BytesIO(content))["Summary"]["A1"]
    assert cell.value == name
    assert cell.data_type == "s"
    with zipfile.ZipFile(io.BytesIO(content)) as parts:
        for part in parts.namelist():
            text = parts.read(part).decode("utf-8")
            assert "<hyperlink" not in text
            assert not re.search(r"<f>[^<]*(HYPERLINK|calc)", text)


@pytest.fixture(scope="module")
def short() -> Result:
    return run(horizon_months=3)


def test_names_of_plans_are_text_too() -> None:
    values = Scenario.load("api_startup").override({"horizon_months": 3}).model_dump(mode="python")
    evil = '=HYPERLINK("http://evil.example")'
    plans = values["market"]["plans"]
    plans[evil] = plans.pop("developers")
    plans["trial"]["converts_to"] = evil
    made = report_xlsx(simulate(Scenario.parse(values), surface=closed_form_surface()))
    book = openpyxl.load_workbook(io.BytesIO(made))
    heads = [cell for cell in book["Unit economics"][4] if cell.value == evil]
    assert heads
    assert all(cell.data_type == "s" for cell in heads)
    assert not any("HYPERLINK" in str(book[sheet][cell].value) for sheet, cell in formulas(book))
