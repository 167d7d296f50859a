"""The language that people read: English in the code, others in `sim/locale/LANGUAGE.po`.

`tr("{share} of revenue", share="12%")` gives the sentence in the language of the moment. A sentence without a
translation stays English; `tests/sim/i18n/test_translations.py` finds it, `python tests/tools/translations.py` brings
the file up to date. What machines read (keys, columns, logs, errors of the command line) is English always, and no
result depends on the language: sentences that the simulation or the engine words itself are told again where they are
shown (`retell`; their templates stand in `sim.i18n.event_messages` and `sim.i18n.engine_messages`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from engine.errors import InputError

LANGUAGES = {"en": "English", "zh": "中文"}
_current: ContextVar[str] = ContextVar("language", default="en")


def tr(text: str, **values: Any) -> str:
    """A sentence in the language of the moment, its {names} filled in."""
    language = _current.get()
    sentence = text if language == "en" else _catalog(language).get(text, text)
    return sentence.format(**values) if values else sentence


def mark(text: str) -> str:
    """A sentence that is translated later, by `tr` of a variable: for constants of a module."""
    return text


def retell(sentence: str, templates: Iterable[str]) -> str:
    """A sentence made in English of one of these templates, in the language of the moment.

    The {names} are read back out of the sentence; the first template that fits is taken. A sentence of none of them
    is looked up as it is, and stays English without a translation.
    """
    if _current.get() == "en":
        return sentence
    for template in templates:
        found = _pattern(template).fullmatch(sentence)
        if found:
            return tr(template, **found.groupdict())
    return tr(sentence)


def language() -> str:
    """Code of the language of the moment: "en" or "zh"."""
    return _current.get()


def set_language(code: str) -> None:
    """Speak this language from here on (in this thread or task).

    Raises:
        InputError: a language that there is no translation of.
    """
    if code not in LANGUAGES:
        raise InputError(f"language: found {code!r}, allowed: {', '.join(LANGUAGES)}")
    _current.set(code)


@contextmanager
def speaking(code: str) -> Iterator[None]:
    """Speak a language within a `with` block."""
    before = _current.get()
    set_language(code)
    try:
        yield
    finally:
        _current.set(before)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)  # text, name, text, name, … text
    names = [f"(?P<{part}>.+?)" if place % 2 else re.escape(part) for place, part in enumerate(parts)]
    return re.compile("".join(names), re.DOTALL)


@cache
def _catalog(code: str) -> dict[str, str]:
    from babel.messages.pofile import read_po

    with (Path(__file__).with_name("locale") / f"{code}.po").open("rb") as file:
        return {
            str(message.id): str(message.string) for message in read_po(file) if message.id and message.string
        }
