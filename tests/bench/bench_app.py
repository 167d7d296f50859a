"""Time from opening the app to its first picture, and from a changed price to the redrawn page, in headless Chromium.

Run on an idle machine: `python tests/bench/bench_app.py [--repeats 5]`. The server is warm (one visit before the clock
starts), each visit is a new browser context, so nothing is cached in the browser. Prints one JSON object; aims: first
paint ≤ 2 s, redraw ≤ 1 s.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from tests.helpers.browser import DESK, PHONE, app_running, browser_running, metric, settled

LEVER = "Price of output tokens (USD per million)"


def first_paint_s(browser: Any, url: str, screen: dict[str, int]) -> dict[str, float]:
    """Seconds from opening the address to the headline, to the first chart, and to the whole page drawn."""
    context = browser.new_context(viewport=screen)
    page = context.new_page()
    start_s = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.get_by_test_id("stMetricValue").first.wait_for()
    headline_s = time.perf_counter() - start_s
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    chart_s = time.perf_counter() - start_s
    page.locator(".js-plotly-plot .main-svg").nth(11).wait_for(state="attached")
    settled(page)
    whole_s = time.perf_counter() - start_s
    context.close()
    return {"headline_s": headline_s, "first_chart_s": chart_s, "whole_page_s": whole_s}


def redraw_s(browser: Any, url: str, prices: list[float]) -> list[float]:
    """Seconds from pressing Run after a changed price to the page with other numbers, for prices never run before."""
    context = browser.new_context(viewport=DESK)
    page = context.new_page()
    page.goto(url)
    page.get_by_test_id("stMetricValue").nth(7).wait_for()
    settled(page)
    found = []
    for price in prices:
        before = metric(page, "Cost per 1M tokens"), metric(page, "ARR at the end")
        page.get_by_label(LEVER, exact=True).fill(str(price))
        start_s = time.perf_counter()
        page.get_by_role("button", name="Run", exact=True).click()
        page.wait_for_function(
            """before => [...document.querySelectorAll('[data-testid="stMetric"]')]
                .some(card => card.innerText.includes('ARR at the end') && !card.innerText.includes(before))""",
            arg=before[1],
            polling=10,
        )
        settled(page)
        found.append(time.perf_counter() - start_s)
    context.close()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="visits and changed prices")
    repeats = parser.parse_args().repeats
    with (
        tempfile.TemporaryDirectory() as folder,
        app_running(Path(folder)) as url,
        browser_running() as browser,
    ):
        first_paint_s(browser, url, DESK)
        desk = [first_paint_s(browser, url, DESK) for _ in range(repeats)]
        phone = [first_paint_s(browser, url, PHONE) for _ in range(repeats)]
        changed = redraw_s(browser, url, [0.4 + 0.05 * number for number in range(repeats)])
    found = {
        "desk": {name: round(median(visit[name] for visit in desk), 2) for name in desk[0]},
        "phone": {name: round(median(visit[name] for visit in phone), 2) for name in phone[0]},
        "redraw_s": {"median": round(median(changed), 2), "worst": round(max(changed), 2)},
        "repeats": repeats,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
