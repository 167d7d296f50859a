"""The report as PDF: A4, cover, contents, page numbers, figures as vectors; set by Typst, as sent to a board."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.utils.message import Message
from engine.utils.progress import Progress, no_progress, part_of
from sim.company.provenance import program_version, provenance_rows
from sim.figures.theme import palette
from sim.i18n import numbers
from sim.i18n.translate import language as language_now
from sim.i18n.translate import speaking, tr
from sim.report import content
from sim.report.content import Table, split_columns
from sim.report.pdf_pictures import Picture, draw_pictures
from sim.utils.typst import document_fonts, typeset

if TYPE_CHECKING:
    from sim.company.simulate import Result
    from sim.study.monte_carlo import MonteCarlo

_TEMPLATE = Path(__file__).parent / "templates" / "report.typ"
_MOST_COLUMNS = 8  # of a table across a page
# Letters without a space: beyond, a line may break within. A hash stays whole.
_LONG_WORD, _LONG_NAME, _LONG_LABEL = 64, 16, 12


def report_pdf(
    result: Result,
    sections: Iterable[str] | None = None,
    language: str | None = None,
    progress: Progress | None = None,
    study: MonteCarlo | None = None,
) -> bytes:
    """The report as PDF.

    Args:
        result: the run.
        sections: names out of `SECTIONS`; all when None. The cover is always there.
        language: "en" or "zh"; the language of the moment when None.
        progress: called with (fraction done, what is being done); whatever it raises ends the work.
        study: a Monte Carlo study of the same scenario, for the section "uncertainty".

    Raises:
        InputError: an unknown section or language; no browser to draw the figures with; no font for Chinese text.
    """
    chosen = content.chosen_sections(sections)
    report = progress or no_progress
    with speaking(language or language_now()):
        drawn = content.report_figures(result, chosen, study)
        figures = {name: figure for section in drawn.values() for name, figure in section.items()}
        pictures: dict[str, Picture] = {}
        if figures:
            fonts = document_fonts(chinese_first=language_now() == "zh")
            pictures = draw_pictures(figures, fonts, part_of(report, 0.0, 0.9))
        report(0.9, Message("typesetting the PDF"))
        shown = {section: [pictures[name] for name in names] for section, names in drawn.items()}
        data = _breakable(_data(result, chosen, shown, study), _LONG_WORD)
        data["title"], data["name"] = result.scenario.name, _breakable(result.scenario.name, _LONG_NAME)
        pdf = typeset(_TEMPLATE, data, {name: one.svg for name, one in pictures.items()})
        report(1.0, Message("done"))
    return pdf


def _data(
    result: Result, chosen: list[str], pictures: dict[str, list[Picture]], study: MonteCarlo | None
) -> dict[str, Any]:
    assumptions = content.assumption_rows(result)
    identity = content.identity(result, study)
    used = [row for row in assumptions if row["value"] != numbers.UNKNOWN]
    statements = [annual for annual, _ in content.statements(result)]
    return {
        "language": language_now(),
        "colours": asdict(palette("light")),
        "sections": chosen,
        "titles": {name: tr(title) for name, title in content.SECTIONS.items()},
        "name": result.scenario.name,
        "opening": content.opening(result),
        "headline": content.headline_rows(result),
        "identity": identity,
        "footer": tr(
            "Scenario {scenario} · seed {seed} · model-flywheel {version}",
            scenario=result.scenario.content_hash[:12],
            seed=result.seed,
            version=program_version(),
        ),
        "uncertainty": _tables(content.uncertainty_tables(study)) if study else [],
        "figures": {
            section: [{"name": one.name, "title": one.title, "subtitle": one.subtitle} for one in those]
            for section, those in pictures.items()
        },
        "statements": _tables(statements),
        "tables": _tables(content.finance_tables(result)),
        "cohorts": _tables(content.cohort_tables(result)),
        "events": content.event_rows(result),
        "kinds": {kind: [tr(word), tr(meaning)] for kind, (word, meaning) in content.KINDS.items()},
        "assumptions": [row | {"source": row["source"].replace("(", "(\u200b")} for row in used],
        "provenance": provenance_rows(result),
        "yaml": re.sub(" {2,}#", "  #", result.scenario.to_yaml()),
        "words": {
            "contents": tr("Contents"),
            "simulated": tr("Results are simulated; what they rest on stands under “{title}”, each value with "
                            "its kind and source.", title=tr(content.SECTIONS["assumptions"])),
            "page": tr("Page {page} of {pages}", page="<page>", pages="<pages>"),
            "uncertainty": content.uncertainty_note(study) if study else "",
            "repeat": tr("The same numbers again, with the same profile:"),
            "usd": tr("USD, from the double-entry ledger; amounts in brackets are negative."),
            "cohorts": tr("A quarter has a share once all its months have reached that age."),
            "off": tr("{count} optional settings are off and not listed.", count=len(assumptions) - len(used)),
            "event_head": [tr("Month"), tr("Day"), tr("Stage"), tr("Event")],
            "assumption_head": [tr("Key"), tr("Value"), tr("Unit"), tr("Kind"), tr("Source")],
        },
    }  # fmt: skip


def _tables(tables: list[Table]) -> list[dict[str, Any]]:
    """Tables as the template takes them: under one title, in as many parts as the page's width requires."""
    return [
        {
            "title": table.title,
            "parts": [
                {
                    "head": _breakable(part.head, _LONG_LABEL),
                    "rows": part.rows,
                    "total_rows": sorted(part.total_rows),
                }
                for part in split_columns(table, _MOST_COLUMNS)
            ],
        }
        for table in tables
    ]


def _breakable(value: Any, longest: int) -> Any:
    """The same data with a place to break in every word that is too long, so that no line leaves its place."""
    if isinstance(value, dict):
        return {key: _breakable(entry, longest) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_breakable(entry, longest) for entry in value]
    if not isinstance(value, str) or len(value) <= longest:
        return value
    return " ".join(_cut(word, longest) for word in value.split(" "))


def _cut(word: str, longest: int) -> str:
    if len(word) <= longest:
        return word
    return "\u200b".join(word[start : start + longest] for start in range(0, len(word), longest))
