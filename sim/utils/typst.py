"""Typesetting: a PDF from a Typst template, its data and its pictures.

Data reaches the template as JSON in `sys.inputs.data` and pictures as SVG text in `sys.inputs` under
`picture-NAME`; a template reads them with `json(bytes(sys.inputs.data))` and `image(bytes(sys.inputs.at(…)))`. So
no text of a user is read as markup. The timestamp is fixed: equal input gives equal bytes.
Nothing is downloaded: templates import no packages, fonts are those of the system and the four within Typst.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import InputError

if TYPE_CHECKING:
    import typst

# Font families by preference: those that the machine has, then those within Typst.
SANS = ("Liberation Sans", "Arimo", "Helvetica Neue", "Arial", "DejaVu Sans")
CHINESE = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Microsoft YaHei",
)
_HAN = (("\u3400", "\u9fff"), ("\U00020000", "\U0003ffff"))


def typeset(template: Path, data: Mapping[str, Any], pictures: Mapping[str, bytes] | None = None) -> bytes:
    """The document as PDF.

    The template's `data` also holds `fonts`: the families to set the text in, which this
    machine has. A template that wants a date in the file's properties sets it itself (`set document(date: …)`).

    Args:
        template: a .typ file; it may read files beside and below itself.
        data: JSON values; numbers are finite.
        pictures: {name: SVG}.

    Raises:
        InputError: the text has Chinese characters and the machine has no font for them.
    """
    import typst

    families = document_fonts()
    text = json.dumps({**data, "fonts": families}, ensure_ascii=False, allow_nan=False)
    inputs = {"data": text}
    inputs |= {f"picture-{name}": svg.decode("utf-8") for name, svg in (pictures or {}).items()}
    if not set(families) & set(CHINESE) and any(_has_chinese(part) for part in inputs.values()):
        raise InputError(
            "PDF: the text has Chinese characters and this machine has no font for them; install one, "
            "on Debian: apt install fonts-noto-cjk"
        )
    compiled = typst.compile(
        str(template),
        root=str(template.parent),
        font_paths=_fonts(),
        format="pdf",
        sys_inputs=inputs,
        timestamp=0,
    )
    assert isinstance(compiled, bytes)  # one PDF, not a list of pages
    return compiled


def document_fonts(chinese_first: bool = False) -> list[str]:
    """Font families of this machine for text, by preference.

    Latin families come first; a picture, in which only the first family counts, may ask for Chinese ones first.
    """
    there = set(_fonts().families())
    order = (*CHINESE, *SANS) if chinese_first else (*SANS, *CHINESE)
    return [name for name in order if name in there] or ["Libertinus Serif"]


@cache
def _fonts() -> typst.Fonts:
    import typst

    return typst.Fonts()


def _has_chinese(text: str) -> bool:
    return any(low <= letter <= high for letter in text for low, high in _HAN)
