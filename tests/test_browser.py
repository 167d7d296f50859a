"""App and report in a real browser: the headline shows, figures are drawn, nothing is fetched from outside."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_company import closed_form_surface

from sim import Scenario, simulate
from sim.figures import all_figures
from sim.report import write_outputs

ROOT = Path(__file__).parents[1]
CHROMIUM = Path("/usr/bin/chromium")
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1440, "height": 900}
# Streamlit looks for its server below the page's own path first: two "not found" that it means to get.
EXPECTED = "/_stcore/"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def app_url() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py")),
            *("--server.port", str(port), "--server.address", "127.0.0.1", "--server.headless", "true"),
            *("--server.fileWatcherType", "none"),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{url}/_stcore/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.25)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=10)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = simulate(Scenario.load("api_startup"), surface=closed_form_surface())
    return write_outputs(result, tmp_path_factory.mktemp("report"))


class _Watched:
    """A page that notes what goes wrong and what leaves the machine."""

    def __init__(self, browser: Any, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.outside: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._console)
        self.page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type == "error" and EXPECTED not in str(message.location.get("url", "")):
            self.problems.append(message.text)

    def _request(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:", "file:")):
            self.outside.append(request.url)

    def wide(self) -> bool:
        """Whether the page is wider than the screen."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))


@pytest.mark.parametrize("screen", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_app_shows_the_headline(browser: Any, app_url: str, screen: dict[str, int], scheme: str) -> None:
    watched = _Watched(browser, viewport=screen, color_scheme=scheme)
    watched.page.goto(app_url)
    watched.page.get_by_text("ARR at the end").wait_for(timeout=60_000)
    watched.page.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=30_000)
    assert watched.problems == []
    assert watched.outside == []
    assert not watched.wide()
    watched.context.close()


def test_a_link_opens_its_scenario(browser: Any, app_url: str) -> None:
    watched = _Watched(browser, viewport=DESK)
    watched.page.goto(f"{app_url}/finance?scenario=chat_subscription")
    watched.page.get_by_role("heading", name="Chat subscription").wait_for(timeout=60_000)
    assert watched.problems == []
    watched.context.close()


@pytest.mark.parametrize("screen", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_opens_without_network(
    browser: Any, report: Path, screen: dict[str, int], scheme: str
) -> None:
    watched = _Watched(browser, viewport=screen, color_scheme=scheme, offline=True)
    watched.page.goto(report.as_uri())
    drawn = watched.page.locator(".js-plotly-plot")
    drawn.last.wait_for()
    assert drawn.count() == len(all_figures())
    empty = watched.page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].filter(p => !p.querySelector("
        "'.trace, .points, .sankey-node, .scatterlayer path')).map(p => p.dataset.figure)"
    )
    assert empty == []
    assert watched.page.evaluate("document.documentElement.dataset.theme") == scheme
    assert watched.problems == []
    assert watched.outside == []
    assert not watched.wide()
    watched.context.close()


def test_the_reports_colours_can_be_switched(browser: Any, report: Path) -> None:
    watched = _Watched(browser, viewport=DESK, color_scheme="light", offline=True)
    watched.page.goto(report.as_uri())
    ground = "getComputedStyle(document.querySelector('.js-plotly-plot .main-svg')).background"
    before = watched.page.evaluate(ground)
    watched.page.get_by_role("button", name="Dark").click()
    assert watched.page.evaluate(ground) != before
    assert watched.problems == []
    watched.context.close()
