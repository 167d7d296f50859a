"""Runs as they were: the same scenario, profile and seed give the same books to the micro-dollar, on every machine.

A change that is meant to move numbers writes the file anew: `python -m tests.sim.company.test_golden`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine import Profile
from sim import Scenario, simulate
from sim.utils.paths import scenarios_dir, shipped_profiles_dir

GOLDEN = Path(__file__).with_name("golden.json")
NAMES = sorted(path.stem for path in scenarios_dir().glob("*.yaml"))


def run(name: str) -> dict[str, Any]:
    """Hashes of what went in and of the books that came out, and the headline."""
    scenario = Scenario.load(scenarios_dir() / f"{name}.yaml")
    profile = Profile.load(shipped_profiles_dir() / f"{scenario.deployment.model}.json")
    result = simulate(scenario, profile=profile)
    headline = {
        key: repr(value) if isinstance(value, float) else value for key, value in result.headline.items()
    }
    return {
        "scenario_hash": scenario.content_hash,
        "profile_hash": profile.content_hash,
        "ledger_hash": result.ledger.content_hash(),
        "headline": headline,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_what_it_was(name: str) -> None:
    assert run(name) == json.loads(GOLDEN.read_text(encoding="utf-8"))[name]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: run(name) for name in NAMES}, indent=1) + "\n", encoding="utf-8")
