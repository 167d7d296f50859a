"""The shipped scenarios: each loads, keeps its comments, runs on the shipped profile, and shows what its story says.

Stories are told with figures of the shipped profile and the scenario's own seed; the tests hold their direction and
rough size, so that a better profile or a small change of a stage doesn't break them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from engine.profile.profile import Profile
from sim.company.simulate import Result, simulate
from sim.scenario.fields import leaves
from sim.scenario.scenario import Scenario
from sim.utils.paths import scenarios_dir, shipped_profiles_dir

SHIPPED = sorted(path.stem for path in scenarios_dir().glob("*.yaml"))
LIBRARY = {
    "api_reseller",
    "api_startup",
    "chat_subscription",
    "downturn_funding",
    "enterprise_finetune",
    "flywheel_cut",
    "gpu_shortage",
    "on_premise_licence",
    "open_weights_hosting",
    "own_model_or_api",
    "price_war",
    "three_segments",
    "vertical_agent",
}


@cache
def shipped_profile() -> Profile:
    return Profile.load(shipped_profiles_dir() / "smollm2-135m.json")


def run(name: str, changes: dict[str, Any] | None = None) -> Result:
    """A shipped scenario, perhaps changed, with its own seed."""
    scenario = Scenario.load(name)
    return simulate(scenario.override(changes) if changes else scenario, profile=shipped_profile())


@cache
def told(name: str) -> Result:
    return run(name)


def months(name: str) -> pd.DataFrame:
    return told(name).monthly


def margin(table: pd.DataFrame) -> float:
    """Gross margin of some months together."""
    return float(table["gross_profit_usd"].sum() / table["revenue_usd"].sum())


def per_year(values: pd.Series) -> float:
    """Mean growth per year from the first to the last month."""
    return float((values.iloc[-1] / values.iloc[0]) ** (12 / (len(values) - 1)) - 1)


def test_the_library_is_whole() -> None:
    assert set(SHIPPED) >= LIBRARY
    assert len(SHIPPED) >= 12


@pytest.mark.parametrize("name", SHIPPED)
def test_comments_survive_and_the_story_stands_first(name: str, tmp_path: Path) -> None:
    text = (scenarios_dir() / f"{name}.yaml").read_text(encoding="utf-8")
    scenario = Scenario.load(name)
    scenario.save(tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_text(encoding="utf-8") == text
    story = text.split("\n\n")[0]
    assert all(line.startswith("#") for line in story.splitlines())
    assert "the run shows" in " ".join(story.replace("#", " ").split())
    assert f"flywheel run {name} --set " in story
    known = {key for key, _, _ in leaves(scenario)}
    assert set(scenario.sources) <= known


@pytest.mark.parametrize("name", SHIPPED)
def test_the_command_of_the_story_works(name: str) -> None:
    text = (scenarios_dir() / f"{name}.yaml").read_text(encoding="utf-8")
    argument = text.split(f"flywheel run {name} --set ")[1].splitlines()[0].strip("'\"")
    key, value = argument.split("=")
    numbers = {"true": True, "false": False}
    scenario = Scenario.load(name)
    plain: Any = numbers.get(value, float(value) if "." in value else value)
    if isinstance(plain, str):
        plain = int(plain)
    assert scenario.override({key: plain}).content_hash != scenario.content_hash


@pytest.mark.parametrize("name", SHIPPED)
def test_a_company_is_economically_sane(name: str) -> None:
    table = months(name)
    last = table.iloc[-12:]
    assert 0.1 < margin(last) < 0.97
    assert (table["served_fraction"] > 0.95).all()
    assert (table["utilisation"] <= 1.0).all()
    assert last["churn_rate"].mean() < 0.1
    assert told(name).headline["cash_out_month"] == "never"
    assert 1e6 < table["arr_usd"].iloc[-1] < 1.5e7, "a young company, not a giant"
    assert table["net_income_usd"].iloc[0] < 0
    total = sum(
        segment.addressable_customers
        for segment in [told(name).scenario.market, *told(name).scenario.market.segments.values()]
    )
    assert table["customers"].iloc[-1] + table["customers_free"].iloc[-1] < 0.5 * total


def test_hosting_lives_between_the_price_and_its_machines() -> None:
    table = months("open_weights_hosting")
    assert per_year(table["price_usd_per_mtok"]) == pytest.approx(-0.25, abs=0.01)
    assert table["gross_margin"].iloc[18] > table["gross_margin"].iloc[17] + 0.05, "the fleet moves"
    assert table["gross_margin"].iloc[35] < table["gross_margin"].iloc[18] - 0.05, "and the gain is eaten up"
    old = run("open_weights_hosting", {"deployment.generations": {}}).monthly
    assert old["gross_margin"].iloc[35] < table["gross_margin"].iloc[35] - 0.1
    assert table["feedback_tokens"].sum() == 0


def test_an_agent_pays_people_not_machines() -> None:
    last = months("vertical_agent").iloc[-12:]
    share = {
        name: last[f"{name}_usd"].sum() / last["revenue_usd"].sum()
        for name in ("compute_serving", "support", "people")
    }
    assert share["compute_serving"] < 0.05 < share["support"] < share["people"] < 0.4
    assert margin(last) == pytest.approx(0.80, abs=0.05)
    assert last["nrr"].mean() > 1.0, "seats grow faster than offices leave"


def test_licences_are_paid_before_they_are_earned() -> None:
    table = months("on_premise_licence")
    assert (table["replicas_peak"] < 10).all()
    assert margin(table) > 0.85
    assert table["free_cash_flow_usd"].sum() > table["net_income_usd"].sum() + 5e5
    monthly = run("on_premise_licence", {"market.plans.licence.contract.prepaid_months": 1}).monthly
    assert monthly["cash_usd"].min() < table["cash_usd"].min() - 1e5
    assert table["deferred_revenue_usd"].iloc[-1] == pytest.approx(table["arr_usd"].iloc[-1] / 2, rel=0.2)


def test_a_reseller_has_no_economies_of_scale() -> None:
    table = months("api_reseller")
    assert table["revenue_usd"].iloc[-1] > 5 * table["revenue_usd"].iloc[0]
    assert table["gross_margin"].between(0.18, 0.21).all()
    assert table["compute_serving_usd"].sum() == 0
    np.testing.assert_allclose(table["partner_share_usd"], 0.77 * table["revenue_usd"], rtol=1e-6)
    assert table["net_income_usd"].iloc[-1] < 0.1 * table["revenue_usd"].iloc[-1]


def test_own_model_beats_the_api_from_a_volume_on() -> None:
    table, market = months("own_model_or_api"), told("own_model_or_api").scenario.market
    researchers = told("own_model_or_api").scenario.finance.people["researchers"]
    years = np.arange(len(table)) / 12
    price = market.reference_price_usd_per_mtok * (1 - market.reference_price_decline_per_year) ** years
    api = (table["prompt_tokens"] + table["output_tokens"]) / 1e6 * price
    own = table[["compute_serving_usd", "compute_training_usd", "data_usd"]].sum(axis=1)
    own += researchers.headcount * researchers.cost_usd_per_year / 12
    cheaper = (api > own).to_numpy()
    crossover = int(np.argmax(cheaper))
    assert not cheaper[:crossover].any()
    assert cheaper[crossover:].all(), "crossed once, for good"
    assert 12 <= crossover <= 20
    assert own.iloc[0] > 4 * api.iloc[0]
    repaid = int(np.argmax((api - own).cumsum().to_numpy() > 0))
    assert crossover + 6 < repaid < len(table)


def test_a_price_war_takes_the_margin() -> None:
    table = months("price_war")
    rivals = [f"market.competitors.{name}.price_cut_share" for name in ("incumbent", "challenger")]
    peace = run("price_war", dict.fromkeys(rivals, 0.0)).monthly
    assert per_year(table["price_usd_per_mtok"]) == pytest.approx(-0.41, abs=0.04)
    pd.testing.assert_frame_equal(table.iloc[:12], peace.iloc[:12])
    assert margin(table.iloc[9:12]) - margin(table.iloc[14:17]) > 0.15
    assert margin(table.iloc[-3:]) < margin(peace.iloc[-3:]) - 0.2
    assert (table["net_income_usd"].iloc[9:12] > 0).all()
    assert (table["net_income_usd"].iloc[12:] < 0).all()
    assert (peace["net_income_usd"].iloc[12:] > 0).all()


def test_a_shortage_outlasts_itself() -> None:
    table = months("gpu_shortage")
    plenty = run("gpu_shortage", {"deployment.shortage": None}).monthly
    scarce = table["scarce"] > 0
    assert scarce[scarce].index.tolist() == list(range(14, 23))
    lost = plenty["gross_margin"] - table["gross_margin"]
    assert (lost[:14] == 0).all()
    assert (lost[scarce] > 0.12).all()
    assert lost[18:23].min() > lost[14:18].max(), "reservations have to be renewed at the high price"
    assert lost[23] > 0.04, "and bind beyond the shortage"
    assert lost[24:].abs().max() < 0.02
    assert plenty["cash_usd"].iloc[-1] - table["cash_usd"].iloc[-1] == pytest.approx(6e5, rel=0.25)
    assert 0.85 < table["arr_usd"].iloc[-1] / plenty["arr_usd"].iloc[-1] < 0.97


def test_the_loop_is_worth_half_the_company() -> None:
    cut, whole = told("flywheel_cut"), told("chat_subscription")
    settings = [result.scenario.model_dump(exclude={"name", "loop", "sources"}) for result in (cut, whole)]
    assert settings[0] == settings[1], "the same company"
    assert cut.scenario.loop.cut
    assert not whole.scenario.loop.cut
    last = [result.monthly.iloc[-12:] for result in (cut, whole)]
    assert last[0]["churn_rate"].mean() > last[1]["churn_rate"].mean() + 0.01
    assert last[0]["model_quality"].iloc[-1] < last[1]["model_quality"].iloc[-1] - 0.04
    assert 0.35 < last[0]["arr_usd"].iloc[-1] / last[1]["arr_usd"].iloc[-1] < 0.6
    assert cut.headline["breakeven_month"] == "never" != whole.headline["breakeven_month"]
    assert cut.loop["feedback_tokens"] == 0


def test_layoffs_save_a_company_without_investors() -> None:
    table, people = months("downturn_funding"), "finance.people"
    refused = told("downturn_funding").events["what"].str.contains("finds no investors").sum()
    assert refused >= 3
    assert told("downturn_funding").headline["founders_share_end"] == 1
    assert table["headcount"].iloc[[11, 12]].tolist() == [10, 6]
    kept = run(
        "downturn_funding",
        {
            f"{people}.researchers.hiring_plan": {},
            f"{people}.engineers.hiring_plan": {"4": 1},
            f"{people}.sales.hiring_plan": {},
        },
    )
    assert kept.headline["cash_out_month"] != "never"
    assert kept.monthly["arr_usd"].iloc[-1] > table["arr_usd"].iloc[-1]
    funded = run("downturn_funding", {"finance.funding.series A.chance_per_month": 1.0})
    assert funded.headline["founders_share_end"] == pytest.approx(0.7, abs=0.01)


def test_tokens_and_money_come_from_different_customers() -> None:
    tables = told("three_segments").segments
    last = tables[tables["month"].isin(months("three_segments")["month"].iloc[-12:])]
    shares = last.groupby("segment")[["tokens", "revenue_usd"]].sum()
    shares = shares / shares.sum()
    assert shares.loc["main", "tokens"] > 0.7
    assert shares.loc["main", "revenue_usd"] < 0.2
    assert shares.loc["enterprise", "tokens"] < 0.2
    assert shares.loc["enterprise", "revenue_usd"] > 0.45
    assert 0.25 < shares.loc["consumer", "revenue_usd"] < 0.45
    first = months("three_segments").iloc[:12]
    paid = -first["net_burn_usd"].sum()
    assert paid > first["net_income_usd"].sum() + 1e5, "enterprises pay a year ahead"
