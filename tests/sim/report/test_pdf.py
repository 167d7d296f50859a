"""The PDF is a document for a board: contents, page numbers, vector figures, the ledger's numbers, nothing cut off."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pymupdf
import pytest
import typst
from hypothesis import example, given, settings

from engine.errors import InputError
from sim import Result
from sim.figures.catalogue import all_figures
from sim.figures.theme import without_title
from sim.i18n.translate import speaking, tr
from sim.report.content import SECTIONS
from sim.report.pdf import report_pdf
from sim.report.pdf_pictures import draw_pictures
from sim.utils import typst as typst_document
from tests.helpers.report import HOSTILE, NAMES, named, run, squeezed

WORDS_ONLY = [name for name in SECTIONS if name not in ("figures", "scenario", "uncertainty")]
A4_PT = (595.28, 841.89)


def text_of(page: pymupdf.Page) -> str:
    """The text of a page, spaces and line breaks as one space."""
    return " ".join(page.get_text().replace("\u200b", "").split())


def assert_nothing_is_cut_off(document: pymupdf.Document) -> None:
    for page in document:
        for x0, y0, x1, y1, word, *_ in page.get_text("words"):
            inside = x0 > 40 and x1 < A4_PT[0] - 40 and y0 > 20 and y1 < A4_PT[1] - 15
            assert inside, (page.number, word)


@pytest.fixture(scope="module")
def result() -> Result:
    return run()


@pytest.fixture(scope="module")
def pdf(result: Result) -> bytes:
    return report_pdf(result)


@pytest.fixture(scope="module")
def document(pdf: bytes) -> pymupdf.Document:
    return pymupdf.open(stream=pdf)


def test_pages_are_a4_and_numbered(document: pymupdf.Document) -> None:
    assert len(document) > 8
    for number, page in enumerate(document, start=1):
        assert page.rect.width == pytest.approx(A4_PT[0], abs=0.5)
        assert page.rect.height == pytest.approx(A4_PT[1], abs=0.5)
        assert f"Page {number} of {len(document)}" in text_of(page)
    assert_nothing_is_cut_off(document)


def test_the_contents_lead_to_the_right_pages(document: pymupdf.Document) -> None:
    cover = document[0].get_text().replace("\u2060", "")
    assert "Contents" in cover
    bookmarks = {title: page for _, title, page in document.get_toc()}
    for name, title in SECTIONS.items():
        if name == "uncertainty":  # needs a study
            continue
        found = re.search(rf"^{re.escape(title)}[ .]+(\d+)$", cover, re.MULTILINE)
        assert found, title
        page = int(found.group(1))
        assert bookmarks[title] == page
        assert title == "Summary" or title in text_of(document[page - 1])  # the cover is the summary


def test_every_page_says_which_run_it_is(result: Result, document: pymupdf.Document) -> None:
    for page in document:
        assert result.scenario.content_hash[:12] in text_of(page)
        assert "seed 7" in text_of(page)
    cover = text_of(document[0])
    for word in (result.scenario.content_hash, result.profile.content_hash, "flywheel run api_startup"):
        assert word in cover


def test_every_figure_is_there_as_a_drawing(result: Result, document: pymupdf.Document) -> None:
    whole = [text_of(page) for page in document]
    drawings = [len(page.get_drawings()) for page in document]
    for draw in all_figures().values():
        title = without_title(draw(result))[0]
        pages = [number for number, text in enumerate(whole) if squeezed(title) in squeezed(text)]
        assert pages, title
        assert drawings[pages[0]] > 20, title
    # What the axes say is text, in place: drawn as vectors with their letters, not as a raster.
    assert any("Jan 2026" in text and "USD per month" in text for text in whole)
    # The one exception: Plotly paints the cells of a heat map.
    assert sum(len(page.get_images()) for page in document) <= 1


def test_statements_add_up_from_the_ledger(result: Result, document: pymupdf.Document) -> None:
    """Each year's revenue, wages and cash from the posting lines, not from the statements."""
    lines = result.ledger.to_frame()
    lines["usd"] = lines["amount_microusd"] / 1e6
    lines["year"] = 2026 + lines["month_index"] // 12
    page = next(page for page in document if "Income statement, by year" in text_of(page) and page.number > 0)
    text = text_of(page)

    def row(label: str, amounts: list[float]) -> str:
        return " ".join([label, *(f"{round(x):,}" if x >= 0 else f"({round(-x):,})" for x in amounts)])

    def sums(kind: str, sign: int = 1) -> list[float]:
        return [float(x) for x in sign * lines[lines["type"] == kind].groupby("year")["usd"].sum()]

    profit = [
        float(x)
        for x in -lines[~lines["type"].isin(["asset", "liability", "equity"])].groupby("year")["usd"].sum()
    ]
    cash = [float(x) for x in lines[lines["account"] == "cash"].groupby("year")["usd"].sum().cumsum()]
    assert row("Total revenue", sums("revenue", -1)) in text
    assert row("Total operating expense", sums("opex")) in text
    assert row("Net income", profit) in text
    assert row("Closing cash", cash) in text


def test_kinds_of_numbers_are_told_apart(result: Result, document: pymupdf.Document) -> None:
    text = " ".join(text_of(page) for page in document)
    kinds = {item.kind for item in result.assumptions if item.value is not None}
    assert {"measured", "sourced", "assumed"} <= kinds
    listed = text[text.rindex("optional settings are off") :]
    for kind in kinds:
        shown = sum(item.kind == kind and item.value is not None for item in result.assumptions)
        assert listed.count(f" {kind} ") >= shown


def test_the_same_run_gives_the_same_bytes(pdf: bytes) -> None:
    assert report_pdf(run()) == pdf


def test_only_the_sections_asked_for(result: Result) -> None:
    document = pymupdf.open(stream=report_pdf(result, ["statements", "provenance"]))
    text = " ".join(text_of(page) for page in document)
    assert "Balance sheet, by year" in text
    assert "Profile hash" in text
    assert "ARR at the end" not in text
    assert "Cohorts" not in text
    with pytest.raises(InputError, match="sections: found 'weather', allowed: summary, uncertainty, figures"):
        report_pdf(result, ["weather"])


def test_in_chinese(result: Result) -> None:
    document = pymupdf.open(stream=report_pdf(named(result, "模型飞轮"), WORDS_ONLY, "zh"))
    text = squeezed(" ".join(text_of(page) for page in document))
    with speaking("zh"):
        for name in WORDS_ONLY:
            assert squeezed(tr(SECTIONS[name])) in text
    assert "模型飞轮" in text
    fonts = {font[3] for page in document for font in page.get_fonts()}
    assert any("CJKsc" in font or "SC" in font for font in fonts)
    assert_nothing_is_cut_off(document)


@settings(max_examples=8, deadline=None)
@given(name=NAMES)
@example(name=HOSTILE[0])
@example(name=HOSTILE[6])
@example(name=HOSTILE[7])
@example(name=HOSTILE[10])
def test_a_name_is_text_and_nothing_else(result: Result, name: str) -> None:
    document = pymupdf.open(stream=report_pdf(named(result, name), ["summary", "provenance"]))
    assert document.metadata["title"] == name
    if name.isascii():
        assert squeezed(name) in squeezed(document[0].get_text())
    assert not any(page.get_links() and "uri" in page.get_links()[0] for page in document)
    assert_nothing_is_cut_off(document)


def test_a_figure_says_so_when_nothing_can_draw_it(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "kaleido", None)
        with pytest.raises(InputError, match=r"pip install 'model-flywheel\[report\]'"):
            report_pdf(result, ["figures"])
        report_pdf(result, ["summary"])  # needs no pictures
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chrome")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("choreographer.browsers.chromium.chromium_based_browsers", {})
    with pytest.raises(InputError, match="apt install chromium"):
        report_pdf(result, ["figures"])


def test_cancelling_ends_the_drawing(result: Result) -> None:
    class Cancelled(Exception):
        pass

    told: list[float] = []

    def tell(fraction: float, doing: str) -> None:
        told.append(fraction)
        if len(told) > 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        draw_pictures({name: draw(result) for name, draw in all_figures().items()}, ["DejaVu Sans"], tell)
    assert len(told) == 3


def test_chinese_without_a_font_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    template = tmp_path / "t.typ"
    template.write_text("#let data = json(bytes(sys.inputs.data))\n#set document(date: none)\n#data.name")
    monkeypatch.setattr(typst_document, "_fonts", lambda: typst.Fonts(include_system_fonts=False))
    assert typst_document.typeset(template, {"name": "plain"}).startswith(b"%PDF")
    with pytest.raises(InputError, match="apt install fonts-noto-cjk"):
        typst_document.typeset(template, {"name": "中文"})


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["platform", "three_segments", "enterprise_finetune"])
def test_nothing_is_cut_off_in_larger_companies(scenario: str) -> None:
    from sim import Scenario, simulate
    from tests.helpers.company import closed_form_surface

    made = simulate(
        Scenario.load(scenario).override({"horizon_months": 120}), surface=closed_form_surface(40, 50)
    )
    assert_nothing_is_cut_off(pymupdf.open(stream=report_pdf(made)))
