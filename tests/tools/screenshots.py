"""Take the README's pictures again: app and report, in `.github/pictures/`, each under 300 KB.

Run with `make screenshots`. Needs Chromium and Playwright; uses this machine's profile of the default scenario.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from sim import Scenario, simulate
from sim.outputs import write_outputs
from tests.helpers.browser import DESK, PHONE, app_running, browser_running, settled
from tests.helpers.places import ROOT

PICTURES = ROOT / ".github" / "pictures"
LARGEST_BYTES = 300_000
STUDY_MS = 180_000
# Every page of the app: address, and what is there when it is drawn.
PAGES = {
    "overview": ("", ".js-plotly-plot .main-svg"),
    "scenario": ("scenario", "[data-testid=stTextInput]"),
    "compare": ("compare", "h1"),
    "uncertainty": ("uncertainty", "h1"),
    "decide": ("decide", "h1"),
    "serving": ("serving", ".js-plotly-plot .main-svg"),
    "engine": ("engine", "h1"),
    "training_lab": ("training_lab", "h1"),
    "flywheel": ("flywheel", "h1"),
    "finance": ("finance", "h1"),
    "actuals": ("actuals", "h1"),
    "report": ("handover", "h1"),
}


def main() -> None:
    """The README's pictures; with a folder given, every page there on both screens in both colour schemes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--every-page", type=Path, metavar="FOLDER", help="photograph all pages, to be looked at"
    )
    parser.add_argument("--pages", nargs="*", choices=list(PAGES), default=list(PAGES), help="which of them")
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        app_running(Path(folder)) as url,
        browser_running() as browser,
    ):
        if asked.every_page is not None:
            asked.every_page.mkdir(parents=True, exist_ok=True)
            every_page(browser, url, asked.every_page, asked.pages)
        else:
            readme(browser, url, Path(folder))


def readme(browser: Any, url: str, folder: Path) -> None:
    """The app's first page with its band of luck, the page Uncertainty, and the report."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1440, "height": 1000}, color_scheme="light")
    page.goto(url)
    page.get_by_text("Cash runs out in").wait_for(timeout=STUDY_MS)
    page.locator(".js-plotly-plot .main-svg").nth(2).wait_for()
    _photograph(page, PICTURES / "app.png")
    page.goto(f"{url}/uncertainty")
    page.locator(".js-plotly-plot .main-svg").nth(2).wait_for(timeout=STUDY_MS)
    settled(page)
    _photograph(page, PICTURES / "uncertainty.png")
    report = write_outputs(simulate(Scenario.load("api_startup")), folder / "report")
    page.set_viewport_size({"width": 1280, "height": 1300})
    page.goto(report.as_uri())
    page.locator(".js-plotly-plot").last.wait_for()
    _photograph(page, PICTURES / "report.png")


def every_page(browser: Any, url: str, folder: Path, names: list[str]) -> None:
    """Whole pages, 1440 and 390 wide, light and dark."""
    for scheme in ("light", "dark"):
        for screen in (DESK, PHONE):
            context = browser.new_context(viewport=screen, color_scheme=scheme)
            page = context.new_page()
            for name in names:
                address, there = PAGES[name]
                page.set_viewport_size(screen)
                page.goto(f"{url}/{address}")
                page.locator(there).first.wait_for(timeout=STUDY_MS)
                settled(page)
                page.wait_for_timeout(1500)
                height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
                page.set_viewport_size({"width": screen["width"], "height": min(height, 8000)})
                page.wait_for_timeout(1500)
                path = folder / f"{name}-{screen['width']}-{scheme}.png"
                page.screenshot(path=path)
                print(path)
            context.close()


def _photograph(page: Any, path: Path) -> None:
    page.wait_for_timeout(1500)  # sparklines grow for a moment
    page.screenshot(path=path)
    with Image.open(path) as picture:
        # 128 colours are enough for flat areas, and a third of the bytes.
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    if size > LARGEST_BYTES:
        raise SystemExit(f"{path}: {size:,} bytes, allowed: at most {LARGEST_BYTES:,}")
    print(f"{path}: {size:,} bytes")


if __name__ == "__main__":
    main()
