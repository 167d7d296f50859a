"""Predicted against measured: the same arrivals served by the real engine and replayed by the simulator.

The measures are the field's: throughput, and mean, p50 and p95 of TTFT, TPOT and E2E. A load is a share of the
capacity, which a replay of a backlog finds; `burst` is a quiet stream with half of the requests in one wave at three
times the capacity. Every run of a load has the same arrivals, so what differs between runs is the engine and its
machine: that spread is the floor for any prediction.

A prediction is a replay with the step-time model as it stands; its interval comes from replays of the same requests
(common random numbers) with models drawn from what is known about the coefficients and the machine
(`sim.validation.posterior`). To separate the scheduler's errors from the step times', each measured
run is replayed with its own steps' times as well: what then remains is the scheduler's and the clock's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from engine.batch import SchedulerConfig
from engine.errors import InputError
from engine.profile.step_time import StepTimeModel
from sim.serving.metrics import latencies
from sim.serving.replay import equal_replicas, replay_fleet
from sim.validation.observe import Observation, full_prefix_hashes
from sim.validation.posterior import Posterior
from sim.workload.traffic_classes import lognormal_sigma

LEVEL = 0.9  # of the prediction intervals
DRAWS = 200
BURST = "burst"
BURST_SHARE, BURST_QUIET, BURST_PEAK = 0.5, 0.3, 3.0  # of requests, of capacity, of capacity
GOALS = {"throughput": 0.015, "ttft": 0.06, "tpot": 0.03, "e2e": 0.03}  # relative errors
_BACKLOG = 1000  # requests
_STALLED = 2.0


@dataclass(frozen=True)
class Lengths:
    """Log-normal token lengths by mean; medians relate to means as in the Azure conversation trace of 2023."""

    prompt_tokens: float = 128.0
    output_tokens: float = 40.0

    def draw(self, count: int, rng: np.random.Generator, most_tokens: int) -> dict[str, np.ndarray]:
        """`count` prompts and outputs, each at most half of `most_tokens`."""
        found = {}
        for name, mean, ratio in (
            ("prompt_tokens", self.prompt_tokens, 1155 / 1020),
            ("output_tokens", self.output_tokens, 211 / 129),
        ):
            sigma = lognormal_sigma(mean / ratio, mean)
            lengths = mean / ratio * np.exp(sigma * rng.standard_normal(count))
            found[name] = np.clip(np.rint(lengths), 1, max(1, most_tokens // 2)).astype(np.int64)
        return found


def parse_loads(text: str) -> list[str]:
    """The loads of "0.3,0.6,0.85,burst".

    Raises:
        InputError: one is neither a share of capacity above 0 and up to 2 nor "burst".
    """
    loads = [part.strip() for part in text.split(",")]
    for load in loads:
        try:
            allowed = load == BURST or 0 < float(load) <= 2
        except ValueError:
            allowed = False
        if not allowed:
            raise InputError(
                f"--loads {text}: found {load!r}, allowed are shares of capacity in (0, 2] and {BURST!r}"
            )
    return loads


def draw_requests(
    load: str,
    capacity_rps: float,
    count: int,
    lengths: Lengths,
    config: SchedulerConfig,
    most_context: int,
    seed: int,
) -> pd.DataFrame:
    """Requests of a load: Poisson arrivals at a share of capacity, or a burst."""
    rng = np.random.default_rng(seed)
    gaps = rng.standard_exponential(count)
    if load == BURST:
        wave = slice(round(count * (1 - BURST_SHARE) / 2), round(count * (1 + BURST_SHARE) / 2))
        rates = np.full(count, BURST_QUIET * capacity_rps)
        rates[wave] = BURST_PEAK * capacity_rps
    else:
        rates = np.full(count, float(load) * capacity_rps)
    most_tokens = min(most_context, config.cache_tokens)
    return pd.DataFrame({"arrived_s": (gaps / rates).cumsum(), **lengths.draw(count, rng, most_tokens)})


def capacity(
    times: StepTimeModel, config: SchedulerConfig, lengths: Lengths, most_context: int, seed: int = 0
) -> float:
    """Requests per second that a replica finishes of an endless queue, by a replay of a long one."""
    requests = draw_requests("1", 1.0, _BACKLOG, lengths, config, most_context, seed).assign(arrived_s=0.0)
    frame, _ = replay_fleet(requests, equal_replicas(times, config))
    finished = np.sort(frame["finished_s"].to_numpy())
    first, last = len(finished) // 10, len(finished) * 9 // 10  # neither filling nor draining
    return float((last - first) / (finished[last] - finished[first]))


def measures(frame: pd.DataFrame) -> dict[str, float]:
    """throughput_rps, and ttft, tpot and e2e, each as _mean_s, _p50_s and _p95_s, of a run or a replay."""
    times = latencies(frame)
    passed_s = float(frame["finished_s"].max() - frame["arrived_s"].min())
    found = {"throughput_rps": len(frame) / passed_s if passed_s > 0 else math.nan}
    for name in ("ttft", "tpot", "e2e"):
        values = times[f"{name}_s"].dropna().to_numpy()
        found[f"{name}_mean_s"] = float(values.mean()) if len(values) else math.nan
        for percent in (50, 95):
            found[f"{name}_p{percent}_s"] = float(np.percentile(values, percent)) if len(values) else math.nan
    return found


def predict(
    posterior: Posterior,
    requests: pd.DataFrame,
    config: SchedulerConfig,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
    judged: slice | None = None,
) -> pd.DataFrame:
    """What a replay gives and between which bounds a run will lie: index measure, columns predicted, low, high.

    The interval is that of one run: it holds the coefficients' uncertainty and the machine's drift, not the scatter of
    single steps, which averages out. `judged`: rows whose measures are taken; all are replayed.
    """
    requests = full_prefix_hashes(requests, config.block_tokens)

    def replayed(times: StepTimeModel) -> dict[str, float]:
        return measures(replay_fleet(requests, equal_replicas(times, config))[0].iloc[judged or slice(None)])

    point = replayed(posterior.times)
    drawn = pd.DataFrame([replayed(times) for times in posterior.draw(draws, seed)])
    bounds = drawn.quantile([(1 - level) / 2, (1 + level) / 2])
    return pd.DataFrame({"predicted": pd.Series(point), "low": bounds.iloc[0], "high": bounds.iloc[1]})


def compare(
    measured: Sequence[pd.DataFrame], prediction: pd.DataFrame, judged: slice | None = None
) -> pd.DataFrame:
    """A prediction beside the medians of several runs of the same requests (of the rows `judged`): a row per measure.

    Columns: measure, measured, predicted, error (predicted / measured − 1), low, high, covered (the share of runs in
    between), spread (largest − smallest run over the median; NaN for a single run), goal, met.
    """
    runs = pd.DataFrame([measures(frame.iloc[judged or slice(None)]) for frame in measured])
    rows = []
    for name, (predicted, low, high) in prediction[["predicted", "low", "high"]].iterrows():
        values = runs[str(name)]
        middle = float(values.median())
        goal = GOALS[str(name).split("_")[0]]
        error = predicted / middle - 1
        rows.append(
            {
                "measure": name,
                "measured": middle,
                "predicted": predicted,
                "error": error,
                "low": low,
                "high": high,
                "covered": float(((values >= low) & (values <= high)).mean()),
                "spread": float((values.max() - values.min()) / middle) if len(values) > 1 else math.nan,
                "goal": goal,
                "met": bool(abs(error) <= goal),
            }
        )
    return pd.DataFrame(rows)


def scheduler_errors(
    runs: Sequence[Observation], requests: pd.DataFrame, config: SchedulerConfig, otherwise: StepTimeModel
) -> pd.Series:
    """Relative error of each measure when a run is replayed with its own steps' times; medians over the runs."""
    requests = full_prefix_hashes(requests, config.block_tokens)
    errors = []
    for run in runs:
        frame, _ = replay_fleet(requests, equal_replicas(RecordedSteps(run, otherwise), config))
        found, measured = measures(frame), measures(run.requests)
        errors.append({name: found[name] / measured[name] - 1 for name in measured})
    return pd.DataFrame(errors).median()


def step_errors(runs: Sequence[Observation], times: StepTimeModel) -> dict[str, float]:
    """Errors of a step-time model on observed steps.

    steps; bias of their sum (predicted / measured − 1); median_error, of |predicted / measured − 1|; the share of the
    measured time between steps, and that in stalled steps, which took twice as long as predicted or longer: no model's
    fault, but other work on the same cores.
    """
    steps = pd.concat([run.steps for run in runs])
    measured = (steps["until_s"] - steps["started_s"]).to_numpy(dtype=float)
    predicted = np.array(
        [times.step_time(*step) for step in zip(steps["prefill"], steps["decode_contexts"], strict=True)]
    )
    error = predicted / measured - 1
    return {
        "steps": float(len(steps)),
        "bias": float(predicted.sum() / measured.sum() - 1),
        "median_error": float(np.median(np.abs(error))),
        "stalled_share": float(measured[measured >= _STALLED * predicted].sum() / measured.sum()),
        "between_steps_share": float((steps["until_s"] - steps["ended_s"]).sum() / measured.sum()),
    }


class RecordedSteps:
    """The steps of a run as a `StepTimeModel`, for one replay: each batch takes what it took when it ran.

    The same batch may run more than once, so a batch is known by the prefills that came before it, which a replay asks
    for once and in order. Over decodes it looks ahead, until an arrival cuts them off: of a batch that never ran,
    `otherwise` says how long it takes.
    """

    def __init__(self, run: Observation, otherwise: StepTimeModel) -> None:
        self._otherwise = otherwise
        self._prefills = 0
        self._seconds: dict[tuple[int, _Batch], float] = {}
        steps, prefills = run.steps, 0
        taken = (steps["until_s"] - steps["started_s"]).tolist()
        for prefill, contexts, seconds in zip(steps["prefill"], steps["decode_contexts"], taken, strict=True):
            prefills += bool(len(prefill))
            self._seconds[prefills, _batch(prefill, contexts)] = seconds

    def step_time(self, prefill: Sequence[tuple[int, int]], decode_contexts: Sequence[int]) -> float:
        """Seconds that this batch took."""
        self._prefills += bool(len(prefill))
        found = self._seconds.get((self._prefills, _batch(prefill, decode_contexts)))
        return self._otherwise.step_time(prefill, decode_contexts) if found is None else found


_Batch = tuple[tuple[tuple[int, int], ...], tuple[int, ...]]


def _batch(prefill: Sequence[tuple[int, int]], contexts: Sequence[int]) -> _Batch:
    return tuple((int(chunk), int(context)) for chunk, context in prefill), tuple(map(int, contexts))
