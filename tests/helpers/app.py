"""The app in Streamlit's test harness: a page when its work in the background is done."""

from __future__ import annotations

import time

from streamlit.testing.v1 import AppTest

from sim.ui import components

components.PAINT_S = 0.0  # no browser here


def drawn(app: AppTest, patience_s: float = 120.0) -> AppTest:
    """Rerun until no work in the background is under way, as the browser's polling does."""
    app.run()
    until_s = time.monotonic() + patience_s
    while app.get("progress") and time.monotonic() < until_s:
        time.sleep(0.05)
        app.run()
    assert [error.value for error in app.exception] == []
    return app
