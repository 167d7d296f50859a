"""The report opens without network, tells what it rests on, repeats itself; outputs are whole or not there."""

from __future__ import annotations

import json
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from engine.errors import InputError
from sim import Result, Scenario, outputs, simulate
from sim.company.provenance import changes, command_line
from sim.figures.catalogue import all_figures
from sim.outputs import FILES, write_outputs
from sim.report.content import headline_rows
from sim.report.html import report_html
from sim.utils.serialise import json_ready
from tests.helpers.company import closed_form_surface
from tests.helpers.imports import loaded_by
from tests.helpers.profile import synthetic_profile


@pytest.fixture(scope="module")
def result() -> Result:
    return simulate(Scenario.load("api_startup"), surface=closed_form_surface())


@pytest.fixture(scope="module")
def html(result: Result) -> str:
    return report_html(result)


class _Links(HTMLParser):
    """Whatever a browser would fetch, and whether every element is closed."""

    VOID = frozenset({"meta", "link", "img", "br", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_fetches_nothing(html: str) -> None:
    assert not re.search(r'(src|href)\s*=\s*\\?["\']\s*(https?:)?//', html)
    assert "@import" not in html.split("</style>")[0]
    links = _Links()
    links.feed(html)
    assert links.open == []
    assert [link for link in links.fetched if not link.startswith("#")] == []


def test_every_figure_is_in_the_report(html: str) -> None:
    for name in all_figures():
        found = re.search(rf'id="data-{name}">(.*?)</script>', html, re.S)
        assert found
        assert json.loads(found.group(1))["data"]


def test_names_from_a_scenario_are_text_and_nothing_else() -> None:
    evil = '<script>alert("x")</script><b>&'
    scenario = Scenario.load("api_startup").override({"name": evil, "horizon_months": 2})
    page = report_html(simulate(scenario, surface=closed_form_surface()))
    assert evil not in page
    assert '<script>alert("x")' not in page
    assert "&lt;script&gt;" in page
    _Links().feed(page)


def test_the_report_says_where_its_numbers_come_from(result: Result, html: str) -> None:
    for word in (
        result.profile.hardware.name,
        result.profile.content_hash,
        result.profile.software["torch"],
        result.scenario.content_hash,
        result.ledger.content_hash(),
        "Error on held-out steps",
        "Power under load",
        "flywheel run api_startup",
    ):
        assert word in html
    for kind in ("measured", "sourced", "assumed"):
        assert f'<span class="badge {kind}">{kind}</span></td>' in html
    for assumption in result.assumptions:
        assert f"<code>{assumption.key}</code>" in html


def test_a_predicted_profile_is_labelled() -> None:
    scenario = Scenario.load("api_startup").override({"horizon_months": 2})
    page = report_html(simulate(scenario, profile=synthetic_profile(), surface=closed_form_surface()))
    assert "simulated on a predicted profile" in page
    assert '<span class="badge predicted">predicted</span></td>' in page


def test_outputs_are_whole_and_the_same_run_gives_the_same_bytes(result: Result, tmp_path: Path) -> None:
    first = write_outputs(result, tmp_path / "a")
    again = simulate(Scenario.load("api_startup"), surface=closed_form_surface())
    second = write_outputs(again, tmp_path / "deep" / "b")
    assert first == tmp_path / "a" / "report.html"
    for folder in (first.parent, second.parent):
        assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes(), name


def test_outputs_hold_the_run(result: Result, tmp_path: Path) -> None:
    folder = write_outputs(result, tmp_path).parent
    months = pd.read_csv(folder / "monthly.csv")
    assert list(months.columns) == list(result.monthly.columns)
    assert np.allclose(months["revenue_usd"], result.monthly["revenue_usd"])
    ledger = pd.read_parquet(folder / "ledger.parquet")
    assert ledger["amount_microusd"].sum() == 0
    assert len(ledger) == len(result.ledger.to_frame())

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is not JSON")

    content = json.loads((folder / "result.json").read_text(), parse_constant=refuse)
    assert content["headline"]["arr_usd_end"] == result.headline["arr_usd_end"]
    assert content["ledger_hash"] == result.ledger.content_hash()
    assert Scenario.parse(content["scenario"]).content_hash == result.scenario.content_hash


def test_a_failure_leaves_the_old_files(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_outputs(result, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(_result: Result) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs, "result_json", full_disk)
    with pytest.raises(InputError, match="No space left"):
        write_outputs(result, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_in_the_place_of_the_folder_is_one_clear_line(result: Result, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="taken: cannot write there"):
        write_outputs(result, tmp_path / "taken")


def test_headline_rows_are_words(result: Result) -> None:
    rows = headline_rows(result)
    assert all(isinstance(label, str) and isinstance(value, str) for label, value in rows)
    assert len({label for label, _ in rows}) == len(rows)
    assert "nan" not in str(rows).lower()


def test_json_ready_takes_whatever_a_result_holds() -> None:
    value = {
        "nan": math.nan,
        "inf": np.float64("inf"),
        "int": np.int64(3),
        "yes": np.bool_(True),
        "array": np.array([1.0, math.nan]),
        "frame": pd.DataFrame({"a": [1], "b": [math.nan]}),
        "path": Path("x"),
        3: (1, None),
    }
    assert json_ready(value) == {
        "nan": None,
        "inf": None,
        "int": 3,
        "yes": True,
        "array": [1.0, None],
        "frame": [{"a": 1, "b": None}],
        "path": "x",
        "3": [1, None],
    }


def test_the_command_repeats_the_run() -> None:
    base = Scenario.load("api_startup")
    assert command_line(base, base.seed) == "flywheel run api_startup"
    changed = base.override({"market.price_usd_per_mtok_output": 0.9, "name": "it's ours"})
    assert changes(base, changed) == {"name": "it's ours", "market.price_usd_per_mtok_output": 0.9}
    words = shlex.split(command_line(changed, 11))
    assert words[:3] == ["flywheel", "run", "api_startup"]
    from sim.cli.options import parse_overrides

    pairs = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    assert base.override(parse_overrides(pairs)).content_hash == changed.content_hash
    assert words[-2:] == ["--seed", "11"]


def test_a_scenario_made_in_code_is_repeated_from_its_yaml() -> None:
    values = Scenario.load("api_startup").model_dump(mode="python")
    made = Scenario.parse(values)
    assert command_line(made, made.seed) == "flywheel run scenario.yaml"


def test_writing_a_report_needs_no_torch() -> None:
    assert loaded_by("sim.outputs, sim.figures.money, sim.figures.operations", ["torch"]) == []


def test_the_command_shows_letters_that_turn_the_direction_of_writing() -> None:
    """Printed as they are they would show another command than the one that runs."""
    base = Scenario.load("api_startup")
    words = command_line(base.override({"name": "a\u202eb 中文"}), base.seed)
    assert "\u202e" not in words
    assert "\\u202e" in words
    assert "中文" in words
