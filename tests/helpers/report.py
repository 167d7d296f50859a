"""Runs and names that the tests of the reports share."""

from __future__ import annotations

import dataclasses
import re

from hypothesis import strategies as st

from sim import Result, Scenario, simulate
from tests.helpers.company import closed_form_surface

HOSTILE = (
    '<script>alert("x")</script><b>&amp;',
    '=HYPERLINK("http://evil.example","click")',
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\u202eright to left שלום مرحبا",
    '#eval("1+1") #include "/etc/passwd"',
    "$x^2$ *bold* _it_ `raw` // comment /* open",
    "] } ) \\ \" ' {{ name }} {% raw %} {tr}",
    "🎉🚀 中文名称",
    "W" * 120,
    "https://evil.example/?a=1&b=2 mailto:a@b.c",
)
NAMES = st.sampled_from(HOSTILE) | st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Cn", "Co")), min_size=1, max_size=120
).filter(lambda name: bool(name.strip()))


def run(**overrides: object) -> Result:
    """The default company on a capacity in closed form."""
    scenario = Scenario.load("api_startup")
    return simulate(scenario.override(overrides) if overrides else scenario, surface=closed_form_surface())


def named(result: Result, name: str) -> Result:
    """The same run under another name."""
    return dataclasses.replace(result, scenario=result.scenario.override({"name": name}))


def squeezed(text: str) -> str:
    """Text without what a line break may change."""
    return re.sub(r"[\s\u200b\u00ad-]+", "", text)
