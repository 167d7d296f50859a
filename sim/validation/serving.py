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
    """What a validation found.

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


def validate_serving(
    profile: Profile,
    loads: Sequence[str],
    *,
    requests: int = 200,
    runs: int = 3,
    lengths: Lengths | None = None,
    calibrate: bool = False,
    model: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
) -> ServingValidation:
    """Serve and replay `runs` × `loads` of `requests` requests each, and compare.

    Args:
        profile: what predicts; of the same model, in the same number format.
        loads: see `sim.validation.compare.parse_loads`.
        requests: in each run.
        runs: of each load, with the same arrivals; medians are compared.
        lengths: of the requests.
        calibrate: first calibrate the profile on runs of its own, and predict with both.
        model: what `engine.LLM` loads; None takes the profile's model.
        device: "cpu" or "cuda".
        seed: of the requests.
        progress: called with (fraction done, what is being done).

    Raises:
        InputError: the profile is of another model, a load is unknown, the requests don't fit.
    """
    from engine.inference.llm import LLM
    from engine.profile.hardware import detect
    from engine.profiling.profiler import fill_cache, software_versions

    lengths, report = lengths or Lengths(), progress or no_progress
    if requests < 1 or runs < 1:
        raise InputError(f"requests, runs: found {requests} and {runs}, allowed are whole numbers ≥ 1")
    name = model or profile.model.name
    profile.require_model(name)
    report(0.0, "loading the model")
    limits = (
        profile.scheduler_config()
    )  # an engine that makes larger steps does what the profile didn't measure
    llm = LLM(
        name,
        device=device,
        dtype=profile.model.dtype,
        max_running_requests=limits.max_running_requests,
        max_step_tokens=limits.max_step_tokens,
    )
    config, most = llm.config, llm.shape.max_context_tokens
    for what, mean in (("prompt", lengths.prompt_tokens), ("output", lengths.output_tokens)):
        if not mean <= most / 2:  # drawn lengths end there
            raise InputError(
                f"mean {what} length: found {mean:g} tokens, allowed are up to half of the model's context, {most // 2}"
            )
    fill_cache(llm)
    warm_up(llm, seed)
    rate = capacity(profile.coefficients, config, lengths, most)
    plan = _Plan(rate, loads, requests, runs, calibrate, report)
    calibrated: Profile | None = None
    if calibrate:
        count = max(10, round(_CALIBRATION_SHARE * requests))
        seen: list[Observation] = []
        for load in _CALIBRATION_LOADS:
            frame = draw_requests(load, rate, count, lengths, config, most, seed + _CALIBRATION_SEED)
            seen.append(observe(llm, frame, seed=seed + len(seen), progress=plan.step(frame, "calibrating")))
        source = f"{len(_CALIBRATION_LOADS)} runs of {count} requests on {detect(device, 0.0).name}"
        calibrated = calibrate_on_steps(profile, seen, source)
        rate = capacity(calibrated.coefficients, config, lengths, most)
    frames = {load: draw_requests(load, rate, requests, lengths, config, most, seed) for load in loads}
    observations: dict[str, list[Observation]] = {load: [] for load in loads}
    provenance = {
        "model": name,
        "profile": profile.content_hash,
        "profile_measured_on": profile.hardware.name,
        "profile_date": profile.created_at,
        "machine": detect(device, 0.0).name,
        "software": software_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "scheduler": asdict(config),
        "lengths": asdict(lengths),
        "requests": requests,
        "runs": runs,
        "seed": seed,
    }
    for number in range(runs):
        for load, frame in frames.items():
            what = f"load {load}, run {number + 1} of {runs}"
            run = observe(llm, frame, seed=seed + 100 * (number + 1), progress=plan.step(frame, what))
            run.provenance = {**provenance, "load": load, "run": number + 1, "capacity_rps": rate}
            observations[load].append(run)
    report(0.98, "replaying")
    table = pd.concat(
        [_compared(llm, profile, calibrated, load, frames[load], observations[load]) for load in loads]
    )
    steps = {}
    for load, those in observations.items():
        steps[load] = step_errors(those, profile.coefficients)
        if calibrated is not None:
            after = step_errors(those, calibrated.coefficients)
            steps[load] |= {f"calibrated_{name}": after[name] for name in ("bias", "median_error")}
    report(1.0, "done")
    return ServingValidation(table.reset_index(drop=True), steps, rate, provenance, calibrated, observations)


class _Plan:
    """How far a validation is, by the seconds that its requests take to arrive."""

    def __init__(
        self,
        rate: float,
        loads: Sequence[str],
        requests: int,
        runs: int,
        calibrate: bool,
        report: Progress,
    ) -> None:
        seconds = [requests / rate / (0.5 if load == BURST else min(1.0, float(load))) for load in loads]
        self.whole_s = runs * sum(seconds)
        if calibrate:
            self.whole_s += _CALIBRATION_SHARE * requests / rate * (1 / 0.6 + 1 / 0.5)
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
    llm: LLM,
    profile: Profile,
    calibrated: Profile | None,
    load: str,
    frame: pd.DataFrame,
    runs: Sequence[Observation],
) -> pd.DataFrame:
    measured = [run.requests for run in runs]
    table = compare(measured, predict(posterior_of(profile), frame, llm.config))
    table.insert(0, "load", load)
    own = scheduler_errors(runs, frame, llm.config, profile.coefficients)
    table["scheduler_error"] = own[table["measure"]].to_numpy()
    if calibrated is not None:
        after = compare(measured, predict(posterior_of(calibrated), frame, llm.config))
        for column in ("predicted", "error", "low", "high", "covered", "met"):
            table[f"calibrated_{column}"] = after[column]
    return table
