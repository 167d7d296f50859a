"""The assumptions table: every number a run rests on, with unit, source, date, measured or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from engine.utils.message import Message
from sim.i18n.translate import mark
from sim.scenario.fields import leaves, source_of, unit_of

if TYPE_CHECKING:
    from engine.profile.profile import Profile
    from sim.capacity.surface import CapacitySurface
    from sim.scenario.scenario import Scenario


@dataclass(frozen=True)
class Assumption:
    """One input of a run. `kind`: measured, predicted by a fitted model, sourced (published), or assumed."""

    key: str
    value: Any
    unit: str
    source: str
    date: str
    kind: Literal["measured", "assumed", "sourced", "predicted"]


def assumptions(scenario: Scenario, profile: Profile, surface: CapacitySurface) -> list[Assumption]:
    """Assumptions of a run: the profile's numbers first, then every value of the scenario in its own order.

    A source written in the scenario's `sources` wins; the schema's source holds only while the value is its
    default.
    """
    return [*_from_profile(scenario, profile, surface), *_from_scenario(scenario)]


def _from_profile(scenario: Scenario, profile: Profile, surface: CapacitySurface) -> list[Assumption]:
    hardware = profile.hardware
    parts = {"hash": profile.content_hash[:12], "machine": hardware.name}
    origin = Message("profile {hash} on {machine}", **parts)
    simulated = Message("request-level simulation on profile {hash} on {machine}", **parts)
    fit, date = profile.fit, profile.created_at[:10]
    found = [
        Assumption(key, value, unit, origin, date, profile.kind)
        for key, value, unit in (
            ("profile.model.parameters", profile.model.parameters, mark("parameters")),
            (
                "profile.fit.median_relative_error",
                fit.median_relative_error,
                mark("fraction, held-out steps"),
            ),
            ("profile.fit.p95_relative_error", fit.p95_relative_error, mark("fraction, held-out steps")),
        )
    ]
    found += [
        Assumption(f"capacity.{key}", value, unit, simulated, date, "predicted")
        for key, value, unit in (
            (
                "capacity_rps",
                surface.capacity_rps,
                mark("requests per second and replica under the objective"),
            ),
            ("saturation_rps", surface.saturation_rps, mark("requests per second and replica at most")),
            ("prompt_tokens_mean", surface.prompt_tokens_mean, mark("tokens per request")),
            ("output_tokens_mean", surface.output_tokens_mean, mark("tokens per request")),
        )
    ]
    if scenario.deployment.replica_price_usd_per_hour is None:
        price = Assumption(
            "profile.hardware.price_usd_per_hour",
            hardware.price_usd_per_hour,
            mark("USD per replica-hour"),
            hardware.price_source,
            hardware.price_date,
            "sourced",
        )
        found.append(price)
    return found


def _from_scenario(scenario: Scenario) -> list[Assumption]:
    found = []
    for key, value, field in leaves(scenario):
        if key in ("name", "seed", "start_month"):
            continue
        source, date = source_of(field, value) or ("", "")
        if key in scenario.sources:
            # "source, date": the date is what stands after the last comma, when it looks like one.
            source = scenario.sources[key]
            head, comma, tail = source.rpartition(",")
            if comma and tail.strip()[:4].isdigit():
                source, date = head.strip(), tail.strip()
        found.append(Assumption(key, value, unit_of(field), source, date, "sourced" if source else "assumed"))
    return found
