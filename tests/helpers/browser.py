"""The app on a free port, and a browser page that notes what goes wrong and what leaves the machine."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.places import ROOT

CHROMIUM = Path("/usr/bin/chromium")
DESK = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
PATIENCE_MS = 180_000  # a loaded machine; the usual wait is a second
# Streamlit looks for its server below the page's own path first: two "not found" that it means to get.
_EXPECTED = "/_stcore/"
_OURS = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:", "file:", "about:")


@contextmanager
def app_running(folder: Path) -> Iterator[str]:
    """Address of the app, served in `folder` (where it keeps what a user saves) until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = folder / ".streamlit"
    if not settings.exists():
        settings.symlink_to(ROOT / ".streamlit")
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py")),
            *("--server.port", str(port), "--server.address", "127.0.0.1", "--server.headless", "true"),
            *("--server.fileWatcherType", "none"),
        ],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/_stcore/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.25)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=20)


@contextmanager
def browser_running() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield opened
        opened.close()


class Watched:
    """A page that notes what goes wrong and what leaves the machine."""

    def __init__(self, browser: Any, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.problems: list[str] = []
        self.outside: list[str] = []
        self.page = self.tab()

    def tab(self) -> Any:
        """Another tab, watched too."""
        page = self.context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._console)
        page.on("request", self._request)
        return page

    def clean(self) -> bool:
        """Whether nothing went wrong and nothing was asked of another machine."""
        assert self.problems == []
        assert self.outside == []
        return True

    def wide(self) -> bool:
        """Whether the page is wider than the screen."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))

    def _console(self, message: Any) -> None:
        if message.type == "error" and _EXPECTED not in str(message.location.get("url", "")):
            self.problems.append(message.text)

    def _request(self, request: Any) -> None:
        if not request.url.startswith(_OURS):
            self.outside.append(request.url)


def settled(page: Any) -> None:
    """Wait until the page is drawn and nothing runs."""
    page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for(timeout=PATIENCE_MS)


def metric(page: Any, label: str) -> str:
    """The value of a headline number on screen."""
    card = page.locator('[data-testid="stMetric"]').filter(has_text=re.compile(re.escape(label)))
    return str(card.locator('[data-testid="stMetricValue"]').inner_text())
