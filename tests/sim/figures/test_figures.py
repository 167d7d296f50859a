"""Every figure of every shipped scenario can be drawn, says what it shows, and turns dark by exchanging colours."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import Result, Scenario, simulate
from sim.figures.catalogue import all_figures
from sim.figures.theme import PALETTES, dark_for_light, palette, without_title
from sim.i18n import numbers
from tests.helpers.company import closed_form_surface
from tests.helpers.places import ROOT
from tests.helpers.profile import synthetic_profile

SCENARIOS = ("api_startup", "chat_subscription", "enterprise_finetune")
NAMES = tuple(all_figures())
MONEY = ("revenue", "cash")


@pytest.fixture(scope="module", params=SCENARIOS)
def result(request: pytest.FixtureRequest) -> Result:
    return simulate(Scenario.load(request.param), surface=closed_form_surface())


@pytest.fixture(scope="module")
def startup() -> Result:
    return simulate(Scenario.load("api_startup"), surface=closed_form_surface())


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_a_title_axis_units_and_finite_data(result: Result, name: str) -> None:
    figure = all_figures()[name](result)
    assert figure.layout.title.text
    assert figure.layout.title.subtitle.text
    assert "nan" not in figure.layout.title.text.lower()
    assert len(figure.data) >= 1
    if figure.data[0].type != "sankey":
        for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
            assert axis.title.text
    text = figure.to_json()
    assert "NaN" not in text
    assert "Infinity" not in text


@pytest.mark.parametrize("name", NAMES)
def test_a_light_figure_turns_dark_by_exchanging_colours(startup: Result, name: str) -> None:
    exchange = dark_for_light()
    light = all_figures()[name](startup, "light").to_json()
    turned = re.sub("#[0-9a-f]{6}", lambda match: exchange[match.group()], light)
    assert json.loads(turned) == json.loads(all_figures()[name](startup, "dark").to_json())


@pytest.mark.parametrize("name", NAMES)
def test_titles_go_to_the_page_and_leave_the_figure(startup: Result, name: str) -> None:
    drawn = all_figures()[name](startup)
    title, subtitle, bare = without_title(drawn)
    assert (title, subtitle) == (drawn.layout.title.text, drawn.layout.title.subtitle.text)
    assert bare.layout.title.text is None


def test_money_axes_are_in_dollars(startup: Result) -> None:
    for name in MONEY:
        assert all_figures()[name](startup).layout.yaxis.tickprefix == "$"


def test_the_month_in_which_cash_runs_out_is_marked() -> None:
    poor = Scenario.load("api_startup").override({"finance.initial_cash_usd": 50_000, "finance.funding": {}})
    result = simulate(poor, surface=closed_form_surface())
    out = str(result.headline["cash_out_month"])
    assert out != "never"
    figure = all_figures()["cash"](result)
    assert out in figure.layout.title.text
    assert figure.layout.annotations[0].x == out


def test_held_out_points_are_told_apart(startup: Result) -> None:
    traces = {trace.name: trace for trace in all_figures()["profile"](startup).data}
    held_out = [trace for name, trace in traces.items() if name.endswith("held out")]
    assert sum(len(trace.x) for trace in held_out) == startup.profile.fit.held_out_points
    assert {trace.marker.symbol for trace in held_out} == {"circle-open"}


def test_a_predicted_profile_is_called_so() -> None:
    result = simulate(
        Scenario.load("api_startup"), profile=synthetic_profile(), surface=closed_form_surface()
    )
    assert "predicted" in all_figures()["profile"](result).layout.title.text
    assert "predicted" in all_figures()["latency"](result).layout.title.subtitle.text


def test_a_month_long_run_can_be_drawn() -> None:
    result = simulate(
        Scenario.load("api_startup").override({"horizon_months": 1}), surface=closed_form_surface()
    )
    for draw in all_figures().values():
        draw(result)


def _luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_lines_stand_out_from_the_ground(theme: str) -> None:
    colours = palette(theme)  # type: ignore[arg-type]
    for ground in (colours.background, colours.surface):
        assert _contrast(colours.text, ground) >= 7
        assert _contrast(colours.muted, ground) >= 4.5
    for line in ("revenue", "serving", "training", "cash", "demand", "loss"):
        assert _contrast(getattr(colours, line), colours.background) >= 3, line


def test_no_two_light_colours_are_the_same() -> None:
    values = list(vars(PALETTES["light"]).values())
    assert len(set(values)) == len(values)
    assert len(dark_for_light()) == len(values)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_app_has_the_colours_of_the_figures(theme: str) -> None:
    import tomllib

    config = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())
    colours, told = palette(theme), config["theme"][theme]  # type: ignore[arg-type]
    assert told["backgroundColor"] == colours.background
    assert told["secondaryBackgroundColor"] == colours.surface
    assert told["textColor"] == colours.text
    assert told["primaryColor"] == colours.revenue
    assert config["browser"]["gatherUsageStats"] is False


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12, "12"),
        (1452, "1,452"),
        (9999.6, "10k"),
        (3.4e9, "3.4B"),
        (999_950, "1M"),
        (999_499, "999k"),
        (-1234567, "−1.23M"),
        (0.0513104, "0.0513"),
        (math.inf, "∞"),
        (math.nan, numbers.UNKNOWN),
        (None, numbers.UNKNOWN),
    ],
)
def test_counts_are_written_as_people_read_them(value: float, text: str) -> None:
    assert numbers.count(value) == text


def test_money_percent_and_time_are_written_as_people_read_them() -> None:
    assert numbers.usd(1.2e6) == "$1.2M"
    assert numbers.usd(-350_000) == "−$350k"
    assert numbers.usd(2.5) == "$2.50"
    assert numbers.usd(0.0513104) == "$0.0513"
    assert numbers.usd_exact(-350.4) == "(350)"
    assert numbers.percent(-0.256) == "−26%"
    assert numbers.seconds(0.351) == "351 ms"
    assert numbers.months(math.inf) == "not burning"


@given(st.floats(min_value=1e-6, max_value=1e24))
def test_a_written_count_is_within_half_a_percent_of_the_number(value: float) -> None:
    text = numbers.count(value).replace(",", "")
    steps = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21, "Y": 1e24}
    read = float(text[:-1]) * steps[text[-1]] if text[-1] in steps else float(text)
    assert read == pytest.approx(value, rel=0.0051)
