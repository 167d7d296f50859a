"""What the loop is worth: signs, cuts, and that it is nothing where nobody's text is learnt from."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from engine.errors import InputError
from sim.cli import loop
from sim.company.loop_value import loop_value
from sim.scenario.scenario import Scenario
from tests.helpers.company import closed_form_surface
from tests.helpers.profile import synthetic_profile

KNOWN = {"profile": synthetic_profile(), "surface": closed_form_surface()}


def test_users_are_worth_more_than_they_pay() -> None:
    found = loop_value(Scenario.load("chat_subscription"), seeds=3, **KNOWN)
    assert found.gross_profit_usd_per_user > 3 * found.gross_profit_usd_per_user_se > 0
    assert found.customers_end_per_user > 0
    assert found.worth_gross_profit_usd > 0
    assert found.worth_quality_end > 0
    # Text has diminishing returns, so the last user teaches less than the mean one.
    assert found.gross_profit_usd_per_user * found.users_mean < found.worth_gross_profit_usd


@pytest.mark.parametrize("change", [{"loop.cut": True}, {"data.feedback_opt_in": 0.0}])
def test_a_cut_loop_is_worth_nothing(change: dict[str, object]) -> None:
    scenario = Scenario.load("api_startup").override({"horizon_months": 12, **change})
    found = loop_value(scenario, seeds=1, **KNOWN)
    assert found.gross_profit_usd_per_user == 0
    assert found.worth_gross_profit_usd == 0


def test_the_command_says_both_values() -> None:
    app = typer.Typer()
    app.command()(loop.loop_value)
    words = ["api_startup", "--seeds", "1"]
    table = CliRunner().invoke(app, words)
    assert table.exit_code == 0, table.output
    assert "One more user" in table.output
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert told["seeds"] == 1
    assert told["worth_gross_profit_usd"] > 0
    assert told["gross_profit_usd_per_user_se"] is None


def test_bounds() -> None:
    scenario = Scenario.load("api_startup")
    with pytest.raises(InputError, match="seeds: found 0"):
        loop_value(scenario, seeds=0, **KNOWN)
    with pytest.raises(InputError, match="share: found 1"):
        loop_value(scenario, share=1.0, **KNOWN)
