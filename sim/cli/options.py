"""Options shared by several commands, and groups of options as one object."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from engine.errors import InputError

if TYPE_CHECKING:
    from sim.scenario.scenario import Scenario

ScenarioArgument = Annotated[str, typer.Argument(help="Scenario file, or the name of a shipped scenario.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one assumption; repeatable."),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option("--profile", help="Profile to use instead of this machine's own or the shipped one."),
]
DeviceOption = Annotated[str, typer.Option(help="Device: cpu or cuda.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command for Typer in which each parameter that is a dataclass is replaced by the dataclass's fields.

    The fields are declared as options like parameters are (`name: Annotated[type, typer.Option(…)] = default`);
    when the command is called, the dataclass is built from their values.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        members = [(name, hints[name], parameter.default)]
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            kinds = get_type_hints(hints[name], include_extras=True)
            members = [(each.name, kinds[each.name], each.default) for each in fields(hints[name])]
        parameters += [
            inspect.Parameter(each, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for each, kind, default in members
        ]

    @wraps(command)
    def spread(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{each.name: values.pop(each.name) for each in fields(group)})
        command(**values)

    spread.__annotations__ = {each.name: each.annotation for each in parameters}
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return spread


def load_scenario(scenario: str, overrides: list[str] | None) -> Scenario:
    """The scenario of a file or name, with the changes of `--set`.

    Raises:
        InputError: an unreadable scenario, or as `parse_overrides`.
    """
    from sim.scenario.scenario import Scenario

    chosen = Scenario.load(scenario)
    return chosen.override(parse_overrides(overrides)) if overrides else chosen


def parse_overrides(pairs: list[str] | None) -> dict[str, Any]:
    """{dotted key: value} from `key=value` texts; values are read as YAML scalars, like in a scenario file.

    Raises:
        InputError: no `key=value`, or a value that is not YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    values: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {pair}: found no KEY=VALUE; write for example --set horizon_months=24")
        try:
            values[key.strip()] = YAML(typ="safe", pure=True).load(text)
        except YAMLError:
            raise InputError(f"--set {pair}: the value {text!r} is not a YAML value") from None
    return values
