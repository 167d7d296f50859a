"""Take the README's pictures again: app and report, in `.github/pictures/`, each under 300 KB.

Run with `make screenshots`. Needs Chromium and Playwright; uses this machine's profile of the default scenario.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from sim import Scenario, simulate
from sim.report import write_outputs

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / ".github" / "pictures"
CHROMIUM = "/usr/bin/chromium"
LARGEST_BYTES = 300_000


def main() -> None:
    """Start the app, write a report, and photograph both."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py"), "--server.headless", "true"),
            *(
                "--server.port",
                str(port),
                "--server.address",
                "127.0.0.1",
                "--server.fileWatcherType",
                "none",
            ),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    try:
        with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1440, "height": 1000}, color_scheme="light")
            _wait_for(f"http://127.0.0.1:{port}/_stcore/health")
            page.goto(f"http://127.0.0.1:{port}")
            page.get_by_text("ARR at the end").wait_for(timeout=120_000)
            page.locator(".js-plotly-plot .main-svg").nth(2).wait_for()
            _photograph(page, PICTURES / "app.png")
            report = write_outputs(simulate(Scenario.load("api_startup")), folder)
            page.set_viewport_size({"width": 1280, "height": 1300})
            page.goto(report.as_uri())
            page.locator(".js-plotly-plot").last.wait_for()
            _photograph(page, PICTURES / "report.png")
            browser.close()
    finally:
        server.terminate()
        server.wait(timeout=10)


def _photograph(page: Page, path: Path) -> None:
    page.wait_for_timeout(1500)  # sparklines grow for a moment
    page.screenshot(path=path)
    with Image.open(path) as picture:
        # 128 colours are enough for flat areas, and a third of the bytes.
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    if size > LARGEST_BYTES:
        raise SystemExit(f"{path}: {size:,} bytes, allowed: at most {LARGEST_BYTES:,}")
    print(f"{path}: {size:,} bytes")


def _wait_for(url: str) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except OSError:
            time.sleep(0.25)
        else:
            return
    raise SystemExit(f"{url}: the app did not start within 30 s")


if __name__ == "__main__":
    main()
