"""A validation from end to end: observe the real engine under several loads, replay them, calibrate, compare, store.

Runs of the loads take turns (a run of each, then the next of each), so that a machine that slows down or speeds up
biases no load. Calibration looks at runs of its own, made before the others, which it is then judged on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from engine.batch import SchedulerConfig
from engine.errors import InputError
from engine.profile.profile import Profile
from engine.utils.files import write_atomically
from engine.utils.progress import Progress, no_progress
from sim.utils.serialise import json_ready
from sim.validation.calibrate_steps import calibrate_on_steps
from sim.validation.compare import (
    BURST,
    Lengths,
    capacity,
    compare,
    draw_requests,
    predict,
    scheduler_errors,
    step_errors,
)
from sim.validation.observe import Observation, observe, warm_up
from sim.validation.posterior import posterior_of

if TYPE_CHECKING:
    from engine.inference.llm import LLM


_CALIBRATION_LOADS = ("0.6", BURST)  # few and many requests at once
_CALIBRATION_SHARE = 0.5  # of the requests of a run
_CALIBRATION_SEED = 7919  # added to the seed: other requests than those that are judged


@dataclass
class ServingValidation:
    """Result of a validation.

    `table`: a row per load and measure, as `sim.validation.compare.compare` gives it, with scheduler_error (what
    remains when the replay has the run's own step times); after a calibration also calibrated_… columns. `steps`: by
    load, how the models do on single steps.
    """

    table: pd.DataFrame
    steps: dict[str, dict[str, float]]
    capacity_rps: float
    provenance: dict[str, Any]
    calibrated: Profile | None = None
    observations: dict[str, list[Observation]] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write comparison.csv, validation.json, calibrated.json if there is one, and every run below measured/."""
        folder = Path(folder)
        for load, runs in self.observations.items():
            for number, run in enumerate(runs, start=1):
                run.save(folder / "measured" / f"{load}-{number}")
        if self.calibrated is not None:
            self.calibrated.save(folder / "calibrated.json")
        write_atomically(folder / "comparison.csv", self.table.to_csv(index=False))
        write_atomically(folder / "validation.json", json.dumps(json_ready(self.to_json()), indent=1) + "\n")

    def to_json(self) -> dict[str, Any]:
        """Everything but the observations, for a script."""
        return {
            "capacity_rps": self.capacity_rps,
            "provenance": self.provenance,
            "steps": self.steps,
            "comparison": self.table.to_dict("records"),
        }


@dataclass(frozen=True)
class ValidationOptions:
    """Which requests a validation serves, and how.

    Raises:
        InputError: fewer than one request or run.
    """

    requests: int = 200  # in each run
    runs: int = 3  # of each load, with the same arrivals; medians are compared
    lengths: Lengths = field(default_factory=Lengths)
    calibrate: bool = False  # first calibrate the profile on runs of its own, and predict with both
    model: str | None = None  # what `engine.LLM` loads; None: the profile's model
    device: str = "cpu"  # or "cuda"
    seed: int = 0  # of the requests

    def __post_init__(self) -> None:
        if self.requests < 1 or self.runs < 1:
            raise InputError(
                f"requests, runs: found {self.requests} and {self.runs}, allowed are whole numbers ≥ 1"
            )


def validate_serving(
    profile: Profile, loads: Sequence[str], options: ValidationOptions, progress: Progress = no_progress
) -> ServingValidation:
    """Serve and replay `options.runs` × `loads`, and compare.

    Args:
        profile: what predicts; of the same model, in the same number format.
        loads: see `sim.validation.compare.parse_loads`.
        options: see `ValidationOptions`.
        progress: called with (fraction done, what is being done).

    Raises:
        InputError: the profile is of another model, a load is unknown, the requests don't fit.
    """
    from engine.profile.hardware import detect
    from engine.profiling.profiler import software_versions

    name = options.model or profile.model.name
    profile.require_model(name)
    progress(0.0, "loading the model")
    machine = detect(options.device, 0.0).name
    bench = _Bench(_loaded(profile, name, options), options)
    rate = bench.capacity_rps(profile)
    plan = _Plan(rate, loads, options, progress)
    calibrated: Profile | None = None
    if options.calibrate:
        calibrated = bench.calibrated(profile, rate, plan, machine)
        rate = bench.capacity_rps(calibrated)
    frames = {load: bench.draw(load, rate, options.requests, options.seed) for load in loads}
    observations: dict[str, list[Observation]] = {load: [] for load in loads}
    provenance = {
        "model": name,
        "profile": profile.content_hash,
        "profile_measured_on": profile.hardware.name,
        "profile_date": profile.created_at,
        "machine": machine,
        "software": software_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "scheduler": asdict(bench.llm.config),
        "lengths": asdict(options.lengths),
        "requests": options.requests,
        "runs": options.runs,
        "seed": options.seed,
    }
    for number in range(1, options.runs + 1):
        for load, frame in frames.items():
            report = plan.step(frame, f"load {load}, run {number} of {options.runs}")
            run = observe(bench.llm, frame, seed=options.seed + 100 * number, progress=report)
            run.provenance = {**provenance, "load": load, "run": number, "capacity_rps": rate}
            observations[load].append(run)
    progress(0.98, "replaying")
    table = pd.concat(
        [
            _compared(bench.llm.config, profile, calibrated, load, frames[load], observations[load])
            for load in loads
        ]
    )
    steps = {}
    for load, those in observations.items():
        steps[load] = step_errors(those, profile.coefficients)
        if calibrated is not None:
            after = step_errors(those, calibrated.coefficients)
            steps[load] |= {f"calibrated_{name}": after[name] for name in ("bias", "median_error")}
    progress(1.0, "done")
    return ServingValidation(table.reset_index(drop=True), steps, rate, provenance, calibrated, observations)


def _loaded(profile: Profile, name: str, options: ValidationOptions) -> LLM:
    """The engine with the profile's limits: it must not make larger steps than the profile measured.

    Raises:
        InputError: the mean lengths are more than half of the model's context, where drawn lengths end.
    """
    from engine.inference.llm import LLM
    from engine.profiling.profiler import fill_cache

    limits = profile.scheduler_config()
    llm = LLM(
        name,
        device=options.device,
        dtype=profile.model.dtype,
        max_running_requests=limits.max_running_requests,
        max_step_tokens=limits.max_step_tokens,
    )
    most = llm.shape.max_context_tokens // 2
    for what, mean in (("prompt", options.lengths.prompt_tokens), ("output", options.lengths.output_tokens)):
        if not mean <= llm.shape.max_context_tokens / 2:
            raise InputError(
                f"mean {what} length: found {mean:g} tokens, allowed are up to half of the model's context, {most}"
            )
    fill_cache(llm)
    warm_up(llm, options.seed)
    return llm


@dataclass(frozen=True)
class _Bench:
    """The engine under test and the requests that it gets."""

    llm: LLM
    options: ValidationOptions

    def capacity_rps(self, profile: Profile) -> float:
        llm = self.llm
        return capacity(profile.coefficients, llm.config, self.options.lengths, llm.shape.max_context_tokens)

    def draw(self, load: str, rate_rps: float, count: int, seed: int) -> pd.DataFrame:
        most = self.llm.shape.max_context_tokens
        return draw_requests(load, rate_rps, count, self.options.lengths, self.llm.config, most, seed)

    def calibrated(self, profile: Profile, rate_rps: float, plan: _Plan, machine: str) -> Profile:
        """The profile, calibrated on runs of requests that are judged nowhere."""
        count = max(10, round(_CALIBRATION_SHARE * self.options.requests))
        seed = self.options.seed
        seen: list[Observation] = []
        for load in _CALIBRATION_LOADS:
            frame = self.draw(load, rate_rps, count, seed + _CALIBRATION_SEED)
            report = plan.step(frame, "calibrating")
            seen.append(observe(self.llm, frame, seed=seed + len(seen), progress=report))
        source = f"{len(_CALIBRATION_LOADS)} runs of {count} requests on {machine}"
        return calibrate_on_steps(profile, seen, source)


class _Plan:
    """How far a validation is, by the seconds that its requests take to arrive."""

    def __init__(
        self, rate_rps: float, loads: Sequence[str], options: ValidationOptions, report: Progress
    ) -> None:
        requests = options.requests
        seconds = [requests / rate_rps / (0.5 if load == BURST else min(1.0, float(load))) for load in loads]
        self.whole_s = options.runs * sum(seconds)
        if options.calibrate:
            self.whole_s += _CALIBRATION_SHARE * requests / rate_rps * (1 / 0.6 + 1 / 0.5)
        self.report, self.passed_s = report, 0.0

    def step(self, frame: pd.DataFrame, what: str) -> Progress:
        """The report of one run within the whole."""
        began_s, takes_s = self.passed_s, float(frame["arrived_s"].max())
        self.passed_s += takes_s

        def report(fraction: float, _what: str) -> None:
            self.report(min(0.97, 0.02 + 0.95 * (began_s + fraction * takes_s) / self.whole_s), what)

        report(0.0, what)
        return report


def _compared(
    config: SchedulerConfig,
    profile: Profile,
    calibrated: Profile | None,
    load: str,
    frame: pd.DataFrame,
    runs: Sequence[Observation],
) -> pd.DataFrame:
    measured = [run.requests for run in runs]
    table = compare(measured, predict(posterior_of(profile), frame, config))
    table.insert(0, "load", load)
    own = scheduler_errors(runs, frame, config, profile.coefficients)
    table["scheduler_error"] = own[table["measure"]].to_numpy()
    if calibrated is not None:
        after = compare(measured, predict(posterior_of(calibrated), frame, config))
        for column in ("predicted", "error", "low", "high", "covered", "met"):
            table[f"calibrated_{column}"] = after[column]
    return table
