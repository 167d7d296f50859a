"""The report as one HTML file that opens without network: styles, figures and the Plotly library stand in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.company.provenance import provenance_rows
from sim.i18n.translate import language as language_now
from sim.i18n.translate import speaking, tr
from sim.report import content

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from sim.company.simulate import Result
    from sim.study.monte_carlo import MonteCarlo

_TEMPLATE = Path(__file__).parent / "templates" / "report.html.j2"
_HTML_LANGUAGE = {"en": "en", "zh": "zh-Hans"}


def report_html(
    result: Result,
    sections: Iterable[str] | None = None,
    language: str | None = None,
    study: MonteCarlo | None = None,
) -> str:
    """The report as HTML.

    Args:
        result: the run.
        sections: names out of `SECTIONS`; all when None.
        language: "en" or "zh"; the language of the moment when None.
        study: a Monte Carlo study of the same scenario, for the section "uncertainty".

    Raises:
        InputError: an unknown section or language.
    """
    chosen = content.chosen_sections(sections)
    with speaking(language or language_now()):
        return _render(result, chosen, study)


def _render(result: Result, chosen: list[str], study: MonteCarlo | None) -> str:
    from jinja2 import Environment
    from plotly.offline import get_plotlyjs

    from sim.figures.theme import FONT, css_variables, dark_for_light

    environment = Environment(autoescape=True, trim_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    *identity, (_, command) = content.identity(result, study)
    drawn = content.report_figures(result, chosen, study)
    return template.render(
        tr=tr,
        language=_HTML_LANGUAGE[language_now()],
        sections=chosen,
        titles={name: tr(title) for name, title in content.SECTIONS.items()},
        name=result.scenario.name,
        opening=content.opening(result),
        headline=content.headline_rows(result),
        uncertainty=content.uncertainty_tables(study) if study else [],
        uncertainty_note=content.uncertainty_note(study) if study else "",
        figures={section: _figures(figures) for section, figures in drawn.items()},
        statements=content.statements(result),
        tables=content.finance_tables(result),
        cohorts=content.cohort_tables(result),
        events=content.event_rows(result),
        kinds={kind: (tr(word), tr(meaning)) for kind, (word, meaning) in content.KINDS.items()},
        assumptions=content.assumption_rows(result),
        provenance=provenance_rows(result),
        identity=identity,
        command=command,
        scenario_yaml=result.scenario.to_yaml(),
        css_light=css_variables("light"),
        css_dark=css_variables("dark"),
        font=FONT,
        dark_for_light=json.dumps(dark_for_light()),
        # Plotly links to itself and to map makers; a file that needs no network shows none of these.
        plotly_js=re.sub(r"""(src|href)=(["'])https?://[^"'\\]*""", r"\1=\2#", get_plotlyjs())
        if drawn
        else "",
    )


def _figures(drawn: dict[str, go.Figure]) -> list[dict[str, Any]]:
    from sim.figures.theme import without_title

    figures = []
    for name, whole in drawn.items():
        title, subtitle, figure = without_title(whole)
        # "<" would end the script element early; JSON reads the escape as the same character.
        text = figure.to_json().replace("<", "\\u003c")
        figures.append({"name": name, "title": title, "subtitle": subtitle, "json": text})
    return figures
