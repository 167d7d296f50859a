"""Where the numbers of a run come from: machine, versions, dates, fit error, hashes, the command to repeat it."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import InputError
from sim.company.profile_rows import profile_rows
from sim.i18n.translate import mark, tr

if TYPE_CHECKING:
    from sim.company.simulate import Result
    from sim.scenario.scenario import Scenario


def program_version() -> str:
    """Version of the installed program."""
    try:
        return version("model-flywheel")
    except PackageNotFoundError:
        return mark("a checkout that is not installed")


def provenance_rows(result: Result) -> list[tuple[str, str]]:
    """(label, words) about the profile first, then about the run, in the language of the moment."""
    profile = result.profile
    software = ", ".join(f"{name} {number}" for name, number in profile.software.items())
    method = ", ".join(f"{name}: {value}" for name, value in profile.method.items())
    return [
        *profile_rows(profile),
        (tr("Measured on") if profile.kind == "measured" else tr("Predicted on"), profile.created_at),
        (tr("Software of the profile"), software),
        (tr("Method"), method),
        (tr("Profile hash"), profile.content_hash),
        (tr("Scenario hash"), result.scenario.content_hash),
        (tr("Ledger hash"), result.ledger.content_hash()),
        (tr("Seed"), str(result.seed)),
        (tr("Program version"), tr(program_version())),
    ]


def command_line(scenario: Scenario, seed: int) -> str:
    """The `flywheel run …` command that gives this run again, with one --set for each changed assumption."""
    from sim.scenario.scenario import Scenario as ScenarioType

    file = scenario._file
    words = ["flywheel", "run", file if Path(file).suffix or "/" in file else Path(file).stem]
    try:
        loaded = ScenarioType.load(file)
    except InputError:  # made in code: the report shows its YAML, to be saved under this name
        words[-1] = "scenario.yaml"
        loaded = scenario
    for key, value in changes(loaded, scenario).items():
        words += ["--set", f"{key}={_yaml_scalar(value)}"]
    if seed != scenario.seed:
        words += ["--seed", str(seed)]
    return " ".join(shlex.quote(word) for word in words)


def changes(before: Scenario, after: Scenario) -> dict[str, Any]:
    """{dotted key: new value} of every assumption that differs."""
    from sim.scenario.fields import leaves

    old = {key: value for key, value, _ in leaves(before)}
    return {key: value for key, value, _ in leaves(after) if key not in old or old[key] != value}


def _yaml_scalar(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    # What can't be seen (a mark that turns the direction of writing, for one) would make the command lie.
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)
