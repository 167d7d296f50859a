"""Pictures of the figures for paper: Plotly draws them in a headless Chrome, one browser for all of them.

Each figure is drawn without its title (the page sets that as text) in the fonts that the document is set in, so that
letters measured by the browser fit where the document puts them. Nothing is fetched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import InputError
from engine.utils.message import Message
from engine.utils.progress import Progress, no_progress

if TYPE_CHECKING:
    import plotly.graph_objects as go

SIZE_PX = (760, 415)  # two with their titles fill a page of A4


@dataclass(frozen=True)
class Picture:
    """A figure on paper: what it finds, what is drawn, and the drawing as SVG."""

    name: str
    title: str
    subtitle: str
    svg: bytes


def draw_pictures(
    figures: Mapping[str, go.Figure], fonts: list[str], progress: Progress | None = None
) -> dict[str, Picture]:
    """Figures as SVG, by their names.

    Args:
        figures: {name: figure with its title}.
        fonts: families of the text, best first.
        progress: called with (fraction done, what is being done); whatever it raises ends the drawing.

    Raises:
        InputError: kaleido or a Chrome to draw with is missing, or the browser broke.
    """
    from sim.figures.theme import without_title

    bare = {name: without_title(figure) for name, figure in figures.items()}
    for _, _, figure in bare.values():
        figure.layout.font.family = ", ".join(f"'{name}'" for name in fonts)
    drawn = _draw({name: figure for name, (_, _, figure) in bare.items()}, progress or no_progress)
    return {name: Picture(name, title, subtitle, drawn[name]) for name, (title, subtitle, _) in bare.items()}


def _draw(figures: dict[str, go.Figure], progress: Progress) -> dict[str, bytes]:
    try:
        from kaleido import Kaleido
        from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError, KaleidoError
    except ImportError:
        raise InputError(
            "PDF: kaleido, which draws the figures, is not installed: pip install 'model-flywheel[report]'"
        ) from None

    async def draw() -> dict[str, bytes]:
        drawn = {}
        progress(0.0, Message("starting a browser to draw with"))
        async with Kaleido(mathjax=False) as browser:  # False: nothing from a content network
            for index, (name, figure) in enumerate(figures.items()):
                number, total = index + 1, len(figures)
                text = Message("drawing figure {number} of {total}", number=number, total=total)
                progress(number / (total + 1), text)
                size = dict(zip(("width", "height"), SIZE_PX, strict=True))
                drawn[name] = await browser.calc_fig(figure, opts={"format": "svg", **size})
        return drawn

    try:
        return _run(draw)
    except ChromeNotFoundError:
        raise InputError(
            "PDF: found no Chrome or Chromium to draw the figures with; install one, on Debian: "
            "apt install chromium, or name it in BROWSER_PATH"
        ) from None
    except (BrowserFailedError, BrowserClosedError, KaleidoError) as error:
        words = " ".join(str(error).split())[:300]
        raise InputError(f"PDF: the browser that draws the figures failed: {words}") from None


def _run(draw: Callable[[], object]) -> dict[str, bytes]:
    """Run to the end, whether or not this thread already has an event loop (a notebook has one)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(draw())  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, draw()).result()  # type: ignore[arg-type]
