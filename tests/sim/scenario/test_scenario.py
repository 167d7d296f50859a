"""Scenarios: what is read, what is refused and how it is said, and what survives a save."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from engine.errors import InputError
from sim.scenario.fields import is_off, leaves
from sim.scenario.scenario import Scenario
from sim.utils.paths import scenarios_dir
from tests.helpers.market import THREE_SEGMENTS

SHIPPED = sorted(path.stem for path in scenarios_dir().glob("*.yaml"))
MINIMAL: dict[str, Any] = {"market": {"plans": {"api": {"pays_per_token": True}}}}


def refusal(text: str, tmp_path: Path) -> str:
    """The one line with which a scenario file is refused."""
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        Scenario.load(path)
    message = str(error.value)
    assert "\n" not in message
    assert "mine.yaml" in message
    return message


def test_three_scenarios_are_shipped() -> None:
    assert {"api_startup", "chat_subscription", "enterprise_finetune"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_key_is_documented_and_present(name: str) -> None:
    text = (scenarios_dir() / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# "), "a scenario opens with its story"
    in_sources = False
    seen = set()
    for line in text.splitlines():
        key = re.match(r"^(\s*)([^#\s][^:]*):\s*([^#]*)(#.*)?$", line)
        if key is None:
            continue
        in_sources = key[2] == "sources" if not key[1] else in_sources
        if key[3].strip() and not in_sources:
            assert key[4], f"{name}.yaml: {line.strip()}: no comment"
            assert len(key[4]) > 5
        seen.add(key[2])
    expected = {
        key.rsplit(".", 1)[-1]
        for key, value, field in leaves(Scenario.load(name))
        if not is_off(field, value)
    }
    assert expected <= seen, "every key of the schema is written out, but for features that are off"


def test_a_minimal_scenario_has_sourced_defaults() -> None:
    scenario = Scenario.parse(MINIMAL)
    assert scenario.training.loss_beta == 0.3658
    assert scenario.horizon_months == 36


def test_yaml_made_in_code_reads_back(tmp_path: Path) -> None:
    scenario = Scenario.parse(MINIMAL)
    scenario.save(tmp_path / "made.yaml")
    assert Scenario.load(tmp_path / "made.yaml").content_hash == scenario.content_hash
    assert "# what customers pay [USD per million output tokens]" in scenario.to_yaml()


def test_a_company_with_everything_reads_back(tmp_path: Path) -> None:
    scenario = Scenario.parse(THREE_SEGMENTS)
    scenario.save(tmp_path / "made.yaml")
    assert Scenario.load(tmp_path / "made.yaml").content_hash == scenario.content_hash
    changed = scenario.override({"market.segments.consumer.plans.plus.trial.months": 3})
    assert changed.market.segments["consumer"].plans["plus"].trial is not None
    assert "included_tokens_per_month: 3e8" in scenario.to_yaml()
    assert "wins_per_salesperson_per_month: 0 " not in scenario.to_yaml(), (
        "a feature that is off takes no line"
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_load_and_save_changes_nothing(name: str, tmp_path: Path) -> None:
    original = (scenarios_dir() / f"{name}.yaml").read_text(encoding="utf-8")
    Scenario.load(name).save(tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_text(encoding="utf-8") == original


def test_comments_survive_an_override(tmp_path: Path) -> None:
    original = Scenario.load("api_startup")
    changed = original.override({"market.price_usd_per_mtok_output": 2.0, "data.sources.crawl.quality": 0.4})
    changed.save(tmp_path / "changed.yaml")
    before = original.to_yaml().splitlines()
    after = (tmp_path / "changed.yaml").read_text(encoding="utf-8").splitlines()
    different = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert len(different) == 2
    assert all(b.partition("#")[2] == a.partition("#")[2] for a, b in different)
    again = Scenario.load(tmp_path / "changed.yaml")
    assert again.market.price_usd_per_mtok_output == 2.0
    assert again.content_hash == changed.content_hash != original.content_hash


def test_an_override_leaves_the_original_alone() -> None:
    scenario = Scenario.load("api_startup")
    text, key = scenario.to_yaml(), scenario.content_hash
    scenario.override({"horizon_months": 3, "finance.people.engineers.headcount": 9})
    assert scenario.to_yaml() == text
    assert scenario.content_hash == key


def test_an_override_makes_new_entries_and_drops_stale_sources() -> None:
    scenario = Scenario.load("api_startup")
    assert "finance.payment_fee_share" in scenario.sources
    changed = scenario.override(
        {"finance.payment_fee_share": 0.05, "finance.funding.a.month": 3, "finance.funding.a.amount_usd": 1e6}
    )
    assert "finance.payment_fee_share" not in changed.sources
    assert changed.finance.funding["a"].amount_usd == 1e6


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("market.price_usd_per_mtok_ouptut", 1, ["unknown key", "nearest is price_usd_per_mtok_output"]),
        ("markt.price", 1, ["unknown key", "nearest is market"]),
        ("price_usd_per_mtok_output", 1, ["it belongs at market.price_usd_per_mtok_output"]),
        ("market.plans.developers.churn", 0.1, ["nearest is churn_per_month"]),
        ("market.price_usd_per_mtok_output", -1, ["found -1", "≥ 0", "USD per million output tokens"]),
        (
            "market.price_usd_per_mtok_output",
            "2 EUR",
            ["found '2 EUR' (text)", "USD per million output tokens"],
        ),
        ("market.price_usd_per_mtok_output", True, ["found true", "a number"]),
        ("market.price_usd_per_mtok_output", float("nan"), ["found nan"]),
        ("market.price_usd_per_mtok_output", [1], ["found a list"]),
        ("training.mfu", 40, ["found 40", "≤ 1"]),
        ("horizon_months", 1.5, ["found 1.5", "a whole number"]),
        ("horizon_months.years", 1, ["horizon_months is a single value"]),
        ("start_month", "January", ["found 'January'", "YYYY-MM"]),
        ("finance.people.engineers.function", "boss", ["found 'boss'", "research, sales, general"]),
        ("market", 3, ["found 3", "a section of keys"]),
        ("market.traffic", {}, ["found a mapping", "at least one"]),
        ("market.traffic.chat", 0.5, ["market.traffic", "add up to 0.5"]),
        ("market.plans.trial.converts_to", "gold", ["found 'gold'", "developers"]),
        ("market.plans.developers.converts_to", "developers", ["only free users convert"]),
        ("market.plans.trial.converts_to", None, ["conversion_per_month above 0"]),
        ("market.plans.trial.signup_share", 0.5, ["adds up to 0.7"]),
        (
            "sources",
            {"market.price_usd_per_mtok_ouput": "x"},
            ["nearest is market.price_usd_per_mtok_output"],
        ),
    ],
)
def test_a_wrong_override_is_one_line(key: str, value: Any, parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        Scenario.load("api_startup").override({key: value})
    message = str(error.value)
    assert "\n" not in message
    for part in [*parts, key.split(".")[0]]:
        assert part in message


def test_a_wrong_file_names_its_line(tmp_path: Path) -> None:
    text = (scenarios_dir() / "api_startup.yaml").read_text(encoding="utf-8")
    line = next(n for n, s in enumerate(text.splitlines(), 1) if s.lstrip().startswith("headroom:"))
    message = refusal(re.sub(r"headroom: \S+", "headroom: -0.3", text), tmp_path)
    assert f"line {line}: deployment.headroom: found -0.3" in message
    message = refusal(text.replace("headroom:", "head_room:", 1), tmp_path)
    assert f"line {line}: deployment.head_room: unknown key, nearest is headroom" in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name: A\nmarket: {price: [1, 2\n", ["line 3, column 1", "not YAML"]),
        ("name: A\nname: B\n", ["line 2, column 1", "duplicate key"]),
        ("name: A\n\tmarket: 3\n", ["line 2, column 1"]),
        ("", ["found nothing"]),
        ("- a\n- b\n", ["no mapping"]),
        ("name: A\n", ["market", "missing"]),
        ("name: !!python/object/apply:os.system ['touch owned']\n", ["name: found a list"]),
        ("name: !secret x\n", ["tag", "!secret"]),
        ("name: &a\n  b: *a\n", ["name"]),
        ("[" * 1200, ["not YAML"]),
        ("name: A\n---\nname: B\n", ["not YAML"]),
        ("1: 2\n", ["unknown key"]),
    ],
)
def test_a_broken_file_is_one_line(text: str, parts: list[str], tmp_path: Path) -> None:
    message = refusal(text, tmp_path)
    for part in parts:
        assert part in message


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.yaml: no such file.*api_startup"):
        Scenario.load("nowhere.yaml")
    with pytest.raises(InputError, match="is a folder"):
        Scenario.load(tmp_path)
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(InputError, match="not UTF-8"):
        Scenario.load(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_bytes(b"#" * 1_100_000)
    with pytest.raises(InputError, match="bytes, allowed"):
        Scenario.load(tmp_path / "mine.yaml")


def test_exponential_yaml_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert "values" in refusal("\n".join(lines), tmp_path)


@given(st.text(max_size=60))
def test_any_text_is_a_scenario_or_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError) as error:
        Scenario.load(path)
    assert "\n" not in str(error.value)


def test_canonical_json_ignores_how_it_was_written() -> None:
    values = Scenario.load("api_startup").plain()
    reordered = dict(reversed(values.items()))
    assert Scenario.parse(reordered).content_hash == Scenario.load("api_startup").content_hash
    assert YAML(typ="safe").load(Scenario.load("api_startup").canonical_json())["horizon_months"] == 36
