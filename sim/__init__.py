"""Simulate the company that sells a measured model: data → training → deployment → monetization → data.

Names are loaded on first use, so that the command line answers `--help` at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.company.simulate import Result, simulate
    from sim.scenario.scenario import Scenario

_HOMES = {
    "Scenario": "sim.scenario.scenario",
    "simulate": "sim.company.simulate",
    "Result": "sim.company.simulate",
}

__all__ = ["Result", "Scenario", "simulate"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sim' has no attribute {name!r}")
