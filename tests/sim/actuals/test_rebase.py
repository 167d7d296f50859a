"""A scenario moved on: month 0 of the new one is what month N of the old one was."""

from __future__ import annotations

import pytest

from sim.actuals.rebase import rebased
from sim.company.simulate import Result, simulate
from sim.scenario.plans import segments_of
from sim.scenario.scenario import Scenario
from sim.stages.finance.people import headcounts
from sim.stages.market.competition import elsewhere
from sim.stages.training.scaling_law import first_version
from sim.utils.paths import scenarios_dir
from tests.helpers.company import closed_form_surface
from tests.helpers.profile import synthetic_profile

SHIPPED = sorted(path.stem for path in scenarios_dir().glob("*.yaml"))
QUICK = ("api_startup", "three_segments", "price_war")


def run(name: str) -> Result:
    scenario = Scenario.load(name).override({"deployment.model": "smollm2-135m", "horizon_months": 20})
    return simulate(scenario, profile=synthetic_profile(), surface=closed_form_surface())


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SHIPPED]
)
@pytest.mark.parametrize("months", [13])
def test_the_clock_starts_anew(name: str, months: int) -> None:
    result = run(name)
    before = result.scenario
    changes, _ = rebased(result, months)
    after = before.override(changes)
    for segment, settings in segments_of(before.market).items():
        there, here = elsewhere(settings, months), elsewhere(segments_of(after.market)[segment], 0)
        assert here.price_usd_per_mtok == pytest.approx(there.price_usd_per_mtok)
        assert here.quality == pytest.approx(there.quality)
    for role, people in before.finance.people.items():
        assert after.finance.people[role].headcount == headcounts(people, months + 1)[-1]
    for funding, one in after.finance.funding.items():
        assert one.month == before.finance.funding[funding].month - months
    assert all(
        one.month < months
        for name, one in before.finance.funding.items()
        if name not in after.finance.funding
    )
    # The model is as good as the plan's was.
    quality = first_version(after.training, float(result.profile.model.parameters)).loss
    reached = float(result.monthly["model_loss"].iloc[months - 1])
    start = first_version(before.training, float(result.profile.model.parameters)).loss
    assert quality == pytest.approx(min(reached, start), rel=1e-6)


def test_nothing_moves_by_no_month() -> None:
    result = run("api_startup")
    changes, left_out = rebased(result, 0)
    assert result.scenario.override(changes).content_hash == result.scenario.content_hash
    assert left_out == []
