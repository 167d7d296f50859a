"""The language that people read: English in the code, others in `sim/i18n/locale/LANGUAGE.po`.

`tr("{share} of revenue", share="12%")` gives the sentence in the language of the moment. A sentence without a
translation stays English; `tests/sim/i18n/test_translations.py` finds it, `python tests/tools/translations.py` brings
the file up to date. What machines read (keys, columns, logs, errors of the command line) is English always, and no
result depends on the language: the engine hands on a `Message` (template and values), the simulation events of a kind
(`sim.i18n.event_messages`), and both become words where they are shown (`worded`, `event_in_words`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from engine.errors import InputError
from engine.utils.message import Message

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


def worded(text: str) -> str:
    """A text of the engine or the simulation in the language of the moment: a `Message` by its parts, else as it is."""
    return tr(text.template, **text.values) if isinstance(text, Message) else tr(text)


def language() -> str:
    """Code of the language of the moment: "en" or "zh"."""
    return _current.get()


def set_language(code: str) -> None:
    """Set the language of the current thread or task.

    Raises:
        InputError: no translation into this language.
    """
    if code not in LANGUAGES:
        raise InputError(f"language: found {code!r}, allowed: {', '.join(LANGUAGES)}")
    _current.set(code)


@contextmanager
def speaking(code: str) -> Iterator[None]:
    """Use a language within a `with` block."""
    before = _current.get()
    set_language(code)
    try:
        yield
    finally:
        _current.set(before)


@cache
def _catalog(code: str) -> dict[str, str]:
    from babel.messages.pofile import read_po

    with (Path(__file__).with_name("locale") / f"{code}.po").open("rb") as file:
        return {
            str(message.id): str(message.string) for message in read_po(file) if message.id and message.string
        }
