"""A fleet in a YAML file: kinds of replicas, how they come and go, and its limits, time-outs and retries.

The keys are those of `sim.serving.fleet_config`, with `kinds` as a mapping of names. A kind says what it runs on by
`profile` (a file, or a model whose profile was measured here or is shipped) or by `step_times` (measured tables, see
`sim.serving.step_table`). Its batching policy is that of the profile or of a `preset`, changed by what stands under
`scheduler`; its price that of the profile's hardware. Every mistake is one line: file, line, key, found, allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from ruamel.yaml.comments import CommentedMap

from engine.batch import SchedulerConfig, vllm_scheduler
from engine.errors import InputError
from engine.profile.profile import Profile
from sim.scenario.fields import explain, line_of
from sim.serving.fleet_config import Fleet, ReplicaSpec
from sim.serving.step_table import read_step_times
from sim.utils import paths
from sim.utils.yaml_file import plain_values, read_mapping

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
_MEANING = {
    "max_running_requests": "requests in one step",
    "max_step_tokens": "tokens of one step, decodes and prefill chunks together",
    "block_tokens": "tokens per KV block",
    "num_blocks": "KV blocks of a replica",
    "prefix_caching": "whether equal beginnings of prompts are computed once",
    "max_waiting_requests": "in a replica's queue; more are refused; null: no limit",
    "spare_blocks_per_request": "KV blocks left free for each running request when one is admitted",
}


def _scheduler_keys() -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for each in fields(SchedulerConfig):
        if each.type == "bool":
            keys[each.name] = (bool | None, Field(default=None, description=_MEANING[each.name]))
        else:
            least = 0 if each.name == "spare_blocks_per_request" else 1
            rule = Field(default=None, ge=least, le=2**31 - 1, description=_MEANING[each.name])
            keys[each.name] = (int | None, rule)
    return keys


_Scheduler = create_model("_Scheduler", __config__=_STRICT, **_scheduler_keys())
_OWN_KEYS: dict[str, Any] = {
    "profile": (str | None, Field(default=None, description="a profile's file, or the name of its model")),
    "step_times": (
        str | None,
        Field(default=None, description="measured tables: a CSV of steps, or a folder of layer tables"),
    ),
    "layers": (int | None, Field(default=None, ge=1, description="of the model that layer tables are of")),
    "preset": (
        Literal["vllm"] | None,
        Field(default=None, description="the batching policy of another engine"),
    ),
    "scheduler": (
        _Scheduler,
        Field(default=_Scheduler(), description="limits that differ from the profile's or the preset's"),
    ),
}
_NOT_IN_FILES = {"name", "step_time", "scheduler", "profile"}


def _keys_of(settings: type[BaseModel], without: set[str]) -> dict[str, Any]:
    return {
        name: (field.annotation, field)
        for name, field in settings.model_fields.items()
        if name not in without
    }


_Kind = create_model("_Kind", __config__=_STRICT, **_OWN_KEYS, **_keys_of(ReplicaSpec, _NOT_IN_FILES))
_KINDS: dict[str, Any] = {
    "kinds": (dict[str, _Kind], Field(min_length=1, description="kinds of replicas by name"))  # type: ignore[valid-type]
}
_FleetFile = create_model("_FleetFile", __config__=_STRICT, **_KINDS, **_keys_of(Fleet, {"kinds"}))


def load_fleet(path: str | Path, profile: Profile | None = None) -> Fleet:
    """Read a fleet file, or a shipped fleet by its bare name ("chat_autoscaled").

    Args:
        path: the file. Files that it names are looked for beside it, then from the working directory.
        profile: of kinds that name neither a profile nor step times.

    Raises:
        InputError: no such file, not YAML, or a wrong key or value; names file, line and key.
    """
    file = _find(path)
    document = read_mapping(file, "the keys of a fleet (see scenarios/fleets/)")
    values = _tuples(plain_values(document, str(path)))
    try:
        checked: Any = _FleetFile.model_validate(values)
    except ValidationError as error:
        raise explain(error, _FleetFile, str(path), document) from None

    kinds = []
    for name, kind in checked.kinds.items():
        try:
            kinds.append(_kind(name, kind, file.parent, profile))
        except InputError as error:
            raise InputError(f"{path}: {_line(document, 'kinds', name)}kinds.{name}: {error}") from None
    settings = {key: getattr(checked, key) for key in checked.model_fields_set if key != "kinds"}
    try:
        return Fleet(kinds=tuple(kinds), **settings)
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(f"{path}: {_line(document, 'kinds')}{problem['ctx']['error']}") from None


def _kind(name: str, given: Any, folder: Path, fallback: Profile | None) -> ReplicaSpec:
    if given.step_times is not None and given.profile is not None:
        raise InputError("found profile and step_times, allowed is one of them")
    profile = None
    if given.step_times is not None:
        step_time: Any = read_step_times(_beside(folder, given.step_times), given.layers)
        scheduler = None
    else:
        if given.layers is not None:
            raise InputError("found layers without step_times, allowed is to leave it out")
        profile = _profile(folder, given.profile, fallback)
        step_time, scheduler = profile.step_time_model(), profile.scheduler_config()
    settings = {key: getattr(given, key) for key in given.model_fields_set if key in ReplicaSpec.model_fields}
    settings |= {"profile": profile, "scheduler": _policy(given, scheduler)}
    if "price_usd_per_hour" not in given.model_fields_set and profile is not None:
        settings["price_usd_per_hour"] = profile.hardware.price_usd_per_hour
    return ReplicaSpec(name=name, step_time=step_time, **settings)


def _policy(given: Any, of_profile: SchedulerConfig | None) -> SchedulerConfig:
    changes = {key: getattr(given.scheduler, key) for key in given.scheduler.model_fields_set}
    for key, value in changes.items():
        if value is None and key != "max_waiting_requests":
            raise InputError(f"scheduler.{key}: found nothing, allowed is a value ({_MEANING[key]})")
    if of_profile is None and "num_blocks" not in changes:
        raise InputError(
            "scheduler.num_blocks: missing beside step_times, allowed is a whole number ≥ 1 "
            "(KV blocks of a replica: tables of times don't tell its memory)"
        )
    base = of_profile or SchedulerConfig()
    if given.preset == "vllm":
        default = vllm_scheduler(1)
        # The cache stays as large, in blocks of the preset's size.
        base = replace(default, num_blocks=max(1, base.cache_tokens // default.block_tokens))
    return replace(base, **changes)


def _profile(folder: Path, named: str | None, fallback: Profile | None) -> Profile:
    if named is None:
        if fallback is None:
            raise InputError("found no profile and no step_times, allowed is one of them")
        return fallback
    path = _beside(folder, named)
    if path.is_file():
        return Profile.load(path)
    if path.suffix == ".json":
        raise InputError(f"profile: {named}: no such file")
    return Profile.load(paths.resolve_profile(named))


def _beside(folder: Path, named: str) -> Path:
    path = folder / named
    return path if path.exists() else Path(named)


def _find(path: str | Path) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    if file.is_dir():
        raise InputError(f"{path}: is a folder, allowed: a fleet file")
    shipped = {each.stem: each for each in sorted((paths.scenarios_dir() / "fleets").glob("*.yaml"))}
    if str(path) in shipped:
        return shipped[str(path)]
    raise InputError(f"{path}: no such file, and no shipped fleet of that name ({', '.join(shipped)})")


def _tuples(node: Any) -> Any:
    """Lists as tuples, which strict checks ask for."""
    if isinstance(node, Mapping):
        return {key: _tuples(value) for key, value in node.items()}
    return tuple(_tuples(value) for value in node) if isinstance(node, list) else node


def _line(document: CommentedMap, *key: str) -> str:
    number = line_of(document, key)
    return f"line {number}: " if number else ""
