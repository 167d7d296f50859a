"""What a founder does in the app, in a real browser: change a price, compare, send the report, share the link."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymupdf
import pytest

from tests.helpers.browser import CHROMIUM, DESK, Watched, app_running, browser_running, metric, settled

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed"),
]
LEVER = "Price of output tokens (USD per million)"
HEADLINE = ("ARR at the end", "Gross margin", "Cash at the end", "Paying customers", "Cost per 1M tokens")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browser_running() as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def app_url(folder: Path) -> Iterator[str]:
    with app_running(folder) as url:
        yield url


@pytest.fixture
def watched(browser: Any) -> Iterator[Watched]:
    opened = Watched(browser, viewport=DESK, accept_downloads=True)
    yield opened
    opened.context.close()


def headline(page: Any) -> dict[str, str]:
    page.get_by_test_id("stMetricValue").nth(7).wait_for()
    settled(page)
    return {label: metric(page, label) for label in HEADLINE}


def go(page: Any, name: str) -> None:
    page.get_by_test_id("stSidebarNavLink").filter(has_text=name).click()


def downloaded(page: Any, button: str) -> bytes:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=re.compile(button)).click()
    return Path(waiting.value.path()).read_bytes()


def test_change_a_price_compare_send_the_report_and_share_the_link(watched: Watched, app_url: str) -> None:
    page = watched.page
    page.goto(app_url)
    before = headline(page)

    page.get_by_label(LEVER, exact=True).fill("0.5")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("1 value changed from the file.").wait_for()
    page.get_by_test_id("stMetricValue").get_by_text(before["ARR at the end"]).wait_for(state="detached")
    after = headline(page)
    assert after["ARR at the end"] != before["ARR at the end"]
    assert "price_out=0.5" in page.url
    link = page.url

    go(page, "Compare")
    page.get_by_text("Why api_startup (changed) differs from api_startup").wait_for()
    page.locator(".js-plotly-plot .main-svg").first.wait_for()

    go(page, "Report")
    page.get_by_role("button", name="Make the report").click()
    page.get_by_role("button", name=re.compile("Download PDF")).wait_for()
    document = pymupdf.open(stream=downloaded(page, "Download PDF"))
    text = " ".join(document[sheet].get_text() for sheet in range(3))
    assert "API startup" in text
    assert after["ARR at the end"] in text
    assert "in 9 of 10 runs" in text
    assert b"Plotly" in downloaded(page, "Download HTML")

    second = watched.tab()
    second.goto(link)
    assert headline(second) == after
    assert second.get_by_label(LEVER, exact=True).input_value() == "0.5"
    watched.clean()


def test_an_edit_is_marked_compared_saved_and_linked(watched: Watched, app_url: str, folder: Path) -> None:
    page = watched.page
    page.goto(f"{app_url}/scenario?section=training")
    field = page.get_by_label("mfu", exact=True)
    field.fill("7")
    field.press("Enter")
    page.get_by_text("found 7, allowed: a number > 0 ≤ 1").wait_for()
    assert field.input_value() == "7"  # what was typed stays
    field.fill("0.31")
    field.press("Enter")
    page.get_by_text("1 value changed from the file.").wait_for()
    settled(page)
    assert "set=training.mfu%3A0.31" in page.url

    second = watched.tab()
    second.goto(page.url)
    second.get_by_label("mfu", exact=True).wait_for()
    settled(second)
    assert second.get_by_label("mfu", exact=True).input_value() == "0.31"

    page.get_by_label("Name", exact=True).fill("leaner")
    page.get_by_label("Name", exact=True).press("Enter")
    settled(page)
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("out/scenarios/leaner.yaml").wait_for()
    assert "mfu: 0.31" in (folder / "out/scenarios/leaner.yaml").read_text()
    settled(page)
    assert "scenario=leaner" in page.url
    watched.clean()


@pytest.mark.slow
def test_a_page_change_loses_no_work(watched: Watched, app_url: str) -> None:
    page = watched.page
    page.goto(f"{app_url}/handover?seed=3")
    page.get_by_role("button", name="Make the report").click()
    page.get_by_text("The report:").wait_for()
    go(page, "Finance")
    page.get_by_text("double-entry").first.wait_for()
    settled(page)
    go(page, "Report")
    page.get_by_role("button", name=re.compile("Download PDF")).wait_for()
    watched.clean()


def test_work_can_be_cancelled_and_begun_again(watched: Watched, app_url: str) -> None:
    page = watched.page
    page.goto(f"{app_url}/handover?seed=4")
    page.get_by_role("button", name="Make the report").click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("The report was cancelled.").wait_for()
    page.get_by_role("button", name="Start again").wait_for()
    watched.clean()
