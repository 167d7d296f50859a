"""A scenario: one company in one YAML file; loaded, checked, changed by dotted key, saved with its comments.

A number may be a distribution (`sim.scenario.distributions`): `uncertain` holds it, and the value is its median. Every
mistake is one line that names the file, the line, the key, what was found and what is allowed.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, ValidationError
from ruamel.yaml.comments import CommentedMap

from engine.errors import InputError
from engine.utils.files import write_atomically
from sim.scenario.checks import inconsistency
from sim.scenario.distributions import Distribution
from sim.scenario.fields import Problem, commented_yaml, explain, line_of
from sim.scenario.schema import ScenarioFields
from sim.scenario.uncertainty import distributions_in, range_problem, uncertainty_problem
from sim.utils import paths
from sim.utils.yaml_file import plain_values, read_mapping, round_trip_yaml


class Scenario(ScenarioFields):
    """All assumptions about one company. Immutable: `override` gives a changed copy."""

    _document: CommentedMap | None = PrivateAttr(default=None)  # the YAML with its comments
    _file: str = PrivateAttr(default="scenario")
    _uncertain: dict[str, Distribution] = PrivateAttr(default_factory=dict)

    @property
    def uncertain(self) -> dict[str, Distribution]:
        """{dotted key: distribution} of every value that is not known exactly, in the order of the file."""
        return dict(self._uncertain)

    @classmethod
    def load(cls, path: str | Path) -> Scenario:
        """Read a scenario file, or a shipped scenario by its bare name ("api_startup").

        Raises:
            InputError: no such file, not YAML (with line and column), or a wrong key or value (with its
            line).
        """
        file = _find(path)
        document = read_mapping(file, "the keys of a scenario (see `flywheel run --help`)")
        values = plain_values(document, str(path))
        return cls._parse(values, str(path), document, folder=file.parent)

    @classmethod
    def parse(
        cls, values: Mapping[str, Any], *, file: str = "scenario", document: CommentedMap | None = None
    ) -> Scenario:
        """Check plain values; `file` and `document` (for line numbers) only serve the error messages.

        Raises:
            InputError: a wrong key or value.
        """
        return cls._parse(values, file, document)

    @classmethod
    def _parse(
        cls,
        values: Mapping[str, Any],
        file: str,
        document: CommentedMap | None,
        *,
        folder: Path | None = None,
        known: Mapping[str, Distribution] | None = None,
    ) -> Scenario:
        """`folder`: of files that distributions name. `known`: checked before, their medians stand in the values."""

        def refuse(problem: Problem) -> InputError:
            return problem.error(f"{file}: {_line(document, problem.key)}{problem.key}")

        plain, found = distributions_in(values, cls, refuse, folder)
        scenario = cls._checked(plain, file, document)
        scenario._document = document
        scenario._file = file
        scenario._uncertain = {**(known or {}), **found}
        for key, distribution in found.items():

            def checked_with(value: float, key: str = key) -> object:
                tree = copy.deepcopy(plain)
                _set(tree, key, value, file)
                return cls._checked(tree, file, document)

            if problem := range_problem(distribution, checked_with):
                raise refuse(Problem(key, problem))
        if wrong := uncertainty_problem(scenario, scenario._uncertain):
            raise refuse(wrong)
        return scenario

    @classmethod
    def _checked(cls, values: Mapping[str, Any], file: str, document: CommentedMap | None) -> Scenario:
        try:
            scenario = cls.model_validate(dict(values))
        except ValidationError as error:
            raise explain(error, cls, file, document) from None
        problem = inconsistency(scenario)
        if problem:
            raise problem.error(f"{file}: {_line(document, problem.key)}{problem.key}")
        return scenario

    def save(self, path: str | Path) -> None:
        """Write the scenario as YAML, whole or not at all; comments of the loaded file stay."""
        write_atomically(path, self.to_yaml())

    def to_yaml(self) -> str:
        """The scenario as YAML: as loaded and overridden; made in code, with each key's meaning beside it."""
        if self._document is None:
            written = {key: distribution.text for key, distribution in self._uncertain.items()}
            return commented_yaml(self, written=written) + "\n"
        stream = io.StringIO()
        round_trip_yaml().dump(self._document, stream)
        return stream.getvalue()

    def override(self, changes: Mapping[str, Any]) -> Scenario:
        """A copy with some values changed, checked like a file: {"market.price_usd_per_mtok_output": 2.0}.

        A source documented for a changed key no longer holds and is dropped. A changed key is certain, unless its
        new value is a distribution.

        Raises:
            InputError: unknown key (names the nearest one) or wrong value.
        """
        values = self.model_dump(mode="python")
        document = copy.deepcopy(self._document)
        for key, value in changes.items():
            for tree in (values, document):
                if tree is not None:
                    _set(tree, key, copy.deepcopy(value), self._file)
            for documented in list(values["sources"]):
                if documented == key or documented.startswith(f"{key}."):
                    del values["sources"][documented]
                    if document is not None and documented in (document.get("sources") or {}):
                        del document["sources"][documented]
        known = {
            key: distribution
            for key, distribution in self._uncertain.items()
            if not any(key == change or key.startswith(f"{change}.") for change in changes)
        }
        # Lines of the file would mislead about a value that came from elsewhere.
        changed = Scenario._parse(values, self._file, None, known=known)
        changed._document = document
        return changed

    def plain(self) -> dict[str, Any]:
        """All values, defaults included, as plain JSON values; distributions as they are written."""
        values = self.model_dump(mode="json")
        for key, distribution in self._uncertain.items():
            _set(values, key, distribution.text, self._file)
        return values

    def canonical_json(self) -> str:
        """`plain` as JSON with sorted keys."""
        return json.dumps(self.plain(), sort_keys=True, separators=(",", ":"))

    @property
    def content_hash(self) -> str:
        """sha256 of the canonical JSON: equal hashes mean the same company."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()


def _find(path: str | Path) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    if file.is_dir():
        raise InputError(f"{path}: is a folder, allowed: a scenario file")
    shipped = {candidate.stem: candidate for candidate in sorted(paths.scenarios_dir().glob("*.yaml"))}
    if str(path) in shipped:
        return shipped[str(path)]
    raise InputError(f"{path}: no such file, and no shipped scenario of that name ({', '.join(shipped)})")


def _set(tree: Any, key: str, value: Any, file: str) -> None:
    *sections, last = key.split(".")
    for depth, name in enumerate(sections):
        inner = tree.get(name)
        if inner is None:
            tree[name] = inner = {}
        if not isinstance(inner, dict):
            raise InputError(
                f"{file}: {key}: unknown key; {'.'.join(sections[: depth + 1])} is a single value"
            )
        tree = inner
    tree[last] = value


def _line(document: CommentedMap | None, key: str) -> str:
    number = line_of(document, tuple(key.split(".")))
    return f"line {number}: " if number else ""
