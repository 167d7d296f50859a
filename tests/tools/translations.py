"""Every sentence that a person reads, and what it is in another language: `python tests/tools/translations.py`.

Brings `sim/i18n/locale/*.po` up to date: new sentences come in without a translation, behind the one that the sources
say before them; those that the program no longer says go; the others stay where they are. Prints which lack a
translation. The sentences are the first arguments of `tr`, `mark` and `Message`, those of the report's template, the
meanings and units of the scenario's schema, the units of metrics and the types of accounts.
"""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, get_args

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_file
from babel.messages.pofile import read_po, write_po
from pydantic import BaseModel

from engine.utils.files import write_atomically
from tests.helpers.places import ROOT

LOCALE = ROOT / "sim" / "i18n" / "locale"
HEADER = """# Made from the sources by `python tests/tools/translations.py`.
msgid ""
msgstr ""
"Language: {language}\\n"
"Content-Type: text/plain; charset=utf-8\\n"
"Content-Transfer-Encoding: 8bit\\n"

"""


def sentences() -> list[str]:
    """Every English sentence once, in the order of the files."""
    return list(dict.fromkeys((*_said(), *_schema(), *_words())))


def translations(language: str) -> dict[str, str]:
    """{English sentence: translation, "" when there is none} of a `.po` file."""
    return {str(one.id): str(one.string or "") for one in _read(language) if one.id}


def names_in(sentence: str) -> list[str]:
    """The {names} of a sentence, sorted; also those that Plotly fills in, as %{y}."""
    return sorted(re.findall(r"%?\{[^}]*\}", sentence))


def update(language: str) -> list[str]:
    """Write the `.po` file anew; gives the sentences that lack a translation."""
    known = translations(language)
    found = sentences()
    ordered = [sentence for sentence in known if sentence in found]
    for before, sentence in pairwise(["", *found]):
        if sentence not in known:
            ordered.insert(ordered.index(before) + 1 if before else 0, sentence)
    catalog = Catalog(locale=language, fuzzy=False)
    for sentence in ordered:
        catalog.add(sentence, known.get(sentence, ""))
    content = io.BytesIO()
    write_po(content, catalog, width=110, omit_header=True)
    text = HEADER.format(language=language) + content.getvalue().decode().lstrip("\n")
    write_atomically(LOCALE / f"{language}.po", text.rstrip("\n") + "\n")
    return [sentence for sentence in found if not known.get(sentence)]


def _read(language: str) -> Catalog:
    with (LOCALE / f"{language}.po").open("rb") as file:
        return read_po(file, locale=language)


def _said() -> Iterator[str]:
    for file in (
        ROOT / "app.py",
        *(file for room in ("sim", "engine") for file in sorted((ROOT / room).rglob("*.py"))),
    ):
        # Not babel's own extraction: it takes the word of `tr(row["label"])` for a sentence.
        calls = [
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call) and node.args
        ]
        for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
            first = call.args[0]
            if (
                isinstance(call.func, ast.Name)
                and call.func.id in ("tr", "mark", "Message")
                and isinstance(first, ast.Constant)
            ):
                yield str(first.value)
    for file in sorted((ROOT / "sim").rglob("*.j2")):
        for _line, words, _comments, _context in extract_from_file("jinja2", file, keywords={"tr": None}):
            yield words[0] if isinstance(words, tuple) else words


def _schema() -> Iterator[str]:
    from sim.scenario.schema import ScenarioFields

    seen: set[type] = set()

    def of(section: type[BaseModel]) -> Iterator[str]:
        if section in seen:
            return
        seen.add(section)
        for field in section.model_fields.values():
            extra = field.json_schema_extra
            unit = extra.get("unit") if isinstance(extra, dict) else None
            yield from (str(text) for text in (field.description, unit) if text)
            yield from within(field.annotation)

    def within(annotation: Any) -> Iterator[str]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from of(annotation)
        for inner in get_args(annotation):
            yield from within(inner)

    yield from of(ScenarioFields)


def _words() -> Iterator[str]:
    from sim.accounting.ledger import Kind
    from sim.scenario.units import Unit

    yield from get_args(Unit)
    yield from get_args(Kind)


if __name__ == "__main__":
    for code in sorted(file.stem for file in LOCALE.glob("*.po")):
        lacking = update(code)
        print(f"{code}: {len(sentences())} sentences, {len(lacking)} without a translation")
        for sentence in lacking:
            print(f"  {sentence}")
