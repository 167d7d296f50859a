"""App and report in a real browser: the headline shows, figures are drawn, nothing is fetched from outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sim import Scenario, simulate
from sim.figures.catalogue import all_figures
from sim.outputs import write_outputs
from tests.helpers.browser import CHROMIUM, DESK, PHONE, Watched, app_running, browser_running
from tests.helpers.company import closed_form_surface

LOOKS = [pytest.param(DESK, "light", id="desk-light"), pytest.param(PHONE, "dark", id="phone-dark")]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browser_running() as opened:
        yield opened


@pytest.fixture(scope="module")
def app_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with app_running(tmp_path_factory.mktemp("app")) as url:
        yield url


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = simulate(Scenario.load("api_startup"), surface=closed_form_surface())
    return write_outputs(result, tmp_path_factory.mktemp("report"))


@pytest.mark.parametrize(("screen", "scheme"), LOOKS)
def test_the_app_shows_the_headline(browser: Any, app_url: str, screen: dict[str, int], scheme: str) -> None:
    watched = Watched(browser, viewport=screen, color_scheme=scheme)
    watched.page.goto(app_url)
    watched.page.get_by_text("ARR at the end").wait_for(timeout=60_000)
    watched.page.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=30_000)
    assert watched.problems == []
    assert watched.outside == []
    assert not watched.wide()
    watched.context.close()


def test_a_link_opens_its_scenario(browser: Any, app_url: str) -> None:
    watched = Watched(browser, viewport=DESK)
    watched.page.goto(f"{app_url}/finance?scenario=chat_subscription")
    watched.page.get_by_role("heading", name="Chat subscription").wait_for(timeout=60_000)
    assert watched.problems == []
    watched.context.close()


@pytest.mark.parametrize(("screen", "scheme"), LOOKS)
def test_the_report_opens_without_network(
    browser: Any, report: Path, screen: dict[str, int], scheme: str
) -> None:
    watched = Watched(browser, viewport=screen, color_scheme=scheme, offline=True)
    watched.page.goto(report.as_uri())
    drawn = watched.page.locator(".js-plotly-plot")
    drawn.last.wait_for()
    assert drawn.count() == len(all_figures())
    empty = watched.page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].filter(p => !p.querySelector("
        "'.trace, .points, .sankey-node, .scatterlayer path, .heatmaplayer image')).map(p => p.dataset.figure)"
    )
    assert empty == []
    assert watched.page.evaluate("document.documentElement.dataset.theme") == scheme
    assert watched.problems == []
    assert watched.outside == []
    assert not watched.wide()
    watched.context.close()


def test_the_reports_colours_can_be_switched(browser: Any, report: Path) -> None:
    watched = Watched(browser, viewport=DESK, color_scheme="light", offline=True)
    watched.page.goto(report.as_uri())
    ground = "getComputedStyle(document.querySelector('.js-plotly-plot .main-svg')).background"
    before = watched.page.evaluate(ground)
    watched.page.get_by_role("button", name="Dark").click()
    assert watched.page.evaluate(ground) != before
    assert watched.problems == []
    watched.context.close()
