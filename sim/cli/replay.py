"""The command `flywheel replay`: a request trace through simulated replicas."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.errors import InputError
from engine.utils.files import check_writable, write_atomically
from sim.cli.load_options import objective
from sim.cli.options import JsonFlag, ProfileOption, with_options
from sim.cli.terminal import print_grid, print_json, print_table
from sim.i18n import numbers
from sim.scenario.units import Unit, in_unit
from sim.utils import paths

if TYPE_CHECKING:
    import pandas as pd

    from sim.serving.fleet_config import Fleet
    from sim.serving.stats import ReplayStats

# Metric: label, unit.
_WHOLE_RUN: dict[str, tuple[str, Unit]] = {
    "requests": ("Requests", "count"),
    "finished": ("Finished", "count"),
    "timed_out": ("Timed out", "count"),
    "rejected": ("Rejected", "count"),
    "lost": ("Lost", "count"),
    "duration_s": ("Duration", "s"),
    "requests_per_s": ("Throughput, requests", "per second"),
    "prompt_tokens_per_s": ("Throughput, prompt tokens", "per second"),
    "output_tokens_per_s": ("Throughput, output tokens", "per second"),
    "goodput_rps": ("Goodput", "per second"),
    "ttft_met": ("Requests within the TTFT objective", "fraction"),
    "tpot_met": ("Requests within the TPOT objective", "fraction"),
    "busy_fraction": ("Replicas busy", "fraction"),
    "batch_mean": ("Requests in a step", "count"),
    "kv_occupancy": ("KV cache filled", "fraction"),
    "preemptions": ("Preemptions", "count"),
    "cache_hit_rate": ("Prompt tokens found in the prefix cache", "fraction"),
    "mfu": ("MFU (of the peak FLOP/s, while busy)", "fraction"),
    "mbu": ("MBU (of the memory bandwidth, while busy)", "fraction"),
    "joules_per_mtok_output": ("Energy per million output tokens [J]", "count"),
    "cost_usd": ("Cost of the machines", "USD"),
    "usd_per_mtok_output": ("Cost per million output tokens", "USD per million tokens"),
    "usd_per_mtok": ("Cost per million tokens, prompts included", "USD per million tokens"),
}
_IF_ANY = ("timed_out", "rejected", "lost", "preemptions")
_MEASURES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E", "queue": "Queue", "itl": "ITL"}


@dataclass(frozen=True)
class ReplicaOptions:
    """The simulated replicas: those of a fleet file, or equal ones of a profile or of measured step times."""

    model: Annotated[str, typer.Option(help="Model whose profile drives the simulated clock.")] = (
        "smollm2-135m"
    )
    profile: ProfileOption = None
    step_times: Annotated[
        Path | None,
        typer.Option(
            help="Measured step times instead of a profile: a CSV of steps, or a folder of layer tables."
        ),
    ] = None
    layers: Annotated[
        int | None, typer.Option(min=1, help="Number of layers of the model, for layer tables.")
    ] = None
    fleet: Annotated[
        Path | None, typer.Option(help="Fleet file (YAML): kinds, router, autoscaler, failures, admission.")
    ] = None
    replicas: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Number of equal replicas (default: 1).")
    ] = None
    router: Annotated[
        str | None,
        typer.Option(
            help="Router: least_outstanding (the default), least_outstanding_tokens, round_robin, power_of_two or "
            "prefix_aware."
        ),
    ] = None

    def fleet_of(self) -> Fleet:
        """The fleet that the options describe.

        Raises:
            InputError: options that exclude each other, or a bad file.
        """
        from engine.batch import SchedulerConfig
        from engine.profile.profile import Profile
        from sim.serving.fleet_config import ROUTERS, Fleet, ReplicaSpec
        from sim.serving.fleet_file import load_fleet
        from sim.serving.step_table import read_step_times

        alone = {"--replicas": self.replicas, "--router": self.router, "--step-times": self.step_times}
        _refuse_together("--fleet", self.fleet, alone)
        _refuse_together("--step-times", self.step_times, {"--profile": self.profile})
        if self.layers is not None and self.step_times is None:
            raise InputError("--layers: found no --step-times, whose layer tables it is for")
        profile = None
        if self.step_times is None:
            profile = Profile.load(paths.resolve_profile(self.model, self.profile))
        if self.fleet is not None:
            return load_fleet(self.fleet, profile)
        router, count = self.router or "least_outstanding", self.replicas or 1
        if router not in ROUTERS:
            raise InputError(f"router: found {router!r}, allowed are {', '.join(ROUTERS)}")
        if profile is not None:
            kind = ReplicaSpec(
                name=profile.model.name,
                step_time=profile.step_time_model(),
                scheduler=profile.scheduler_config(),
                replicas=count,
                price_usd_per_hour=profile.hardware.price_usd_per_hour,
                profile=profile,
            )
        else:
            assert self.step_times is not None
            kind = ReplicaSpec(
                name=self.step_times.stem,
                step_time=read_step_times(self.step_times, self.layers),
                scheduler=SchedulerConfig(),
                replicas=count,
            )
        return Fleet(kinds=(kind,), router=router)  # type: ignore[arg-type]


@with_options
def replay(
    *,
    trace: Annotated[
        Path,
        typer.Argument(
            help="CSV or JSONL: arrived_s,prompt_tokens,output_tokens; or a trace of Azure, BurstGPT, Mooncake, Vidur."
        ),
    ],
    replicas: ReplicaOptions,
    ttft_p95: Annotated[
        float | None,
        typer.Option("--ttft-p95", help="Objective for goodput: time to first token, in seconds."),
    ] = None,
    tpot_p95: Annotated[
        float | None,
        typer.Option("--tpot-p95", help="Objective for goodput: time per output token, in seconds."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip bad lines and count them by reason.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="CSV file with one row per request.")] = None,
    timeline: Annotated[
        Path | None, typer.Option(help="JSON file of a time line for ui.perfetto.dev.")
    ] = None,
    timeline_replicas: Annotated[
        str | None,
        typer.Option(help="Replicas in the time line: numbers separated by commas, or all (default: 0)."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Replay a request trace on simulated replicas with the engine's own scheduler."""
    from sim.serving import metrics as serving_metrics
    from sim.serving.replay import replay_fleet
    from sim.serving.timeline import write_timeline
    from sim.traces.read import read_trace_report

    limited = ttft_p95 is not None or tpot_p95 is not None
    goal = objective(ttft_p95, tpot_p95) if limited else None
    if timeline_replicas is not None and timeline is None:
        raise InputError("--timeline-replicas: found no --timeline to show them in")
    shown = None if timeline_replicas == "all" else _numbers(timeline_replicas or "0")
    _check_targets(trace, out, timeline)
    fleet = replicas.fleet_of()
    requests, report = read_trace_report(
        trace,
        skip_bad,
        max_context_tokens=fleet.max_context_tokens,
        block_tokens=fleet.kinds[0].scheduler.block_tokens,
    )
    started = time.perf_counter()
    frame, stats = replay_fleet(requests, fleet, record_steps=timeline is not None)
    wall_s = time.perf_counter() - started
    frame["kind"] = [stats.kinds[each].name if each >= 0 else "none" for each in frame["replica"]]
    priced = {id(kind): kind.priced_profile for kind in fleet.kinds}
    profiles = [priced[id(kind)] for kind in stats.kinds]
    known = [each for each in profiles if each is not None]
    metrics = serving_metrics.summary(
        frame,
        stats,
        goal,
        steps=stats.records,
        num_blocks=[kind.scheduler.num_blocks for kind in stats.kinds],
        profiles=known if len(known) == len(profiles) else None,
    )
    spans = serving_metrics.intervals(frame)
    events = 0
    if timeline is not None and stats.records is not None:
        events = write_timeline(timeline, stats.records, frame, replicas=shown)
    if out is not None:
        write_atomically(out, frame.to_csv(index=False))
    if as_json:
        result: dict[str, Any] = {
            "requests": len(frame),
            "step_times": fleet.step_times_from,
            "wall_s": wall_s,
            "skipped": {each.reason: each.count for each in report.skipped},
            **metrics,
        }
        print_json({**result, "intervals": spans.to_dict(orient="records")})
        return
    _print(trace.name, fleet, frame, stats, metrics, spans)
    for label, value in report.describe() if report.skipped else []:
        print(f"{label}: {value}")
    for column in ("kind", "traffic_class", "tenant"):
        if column in frame and len(frame[column].unique()) > 1:
            _print_groups(frame, stats, column)
    if events:
        print(f"Time line: {timeline} ({events:,} events; open it in ui.perfetto.dev)")
    print(f"{len(frame):,} requests simulated in {wall_s:.2f} s ({len(frame) / wall_s:,.0f} per second)")


def _print(
    name: str,
    fleet: Fleet,
    frame: pd.DataFrame,
    stats: ReplayStats,
    metrics: dict[str, float],
    spans: pd.DataFrame,
) -> None:
    kinds = ", ".join(
        f"{sum(kind is each for each in stats.kinds)} × {kind.name}"
        + (
            " (PREDICTED, not measured)"
            if kind.profile is not None and kind.profile.kind == "predicted"
            else ""
        )
        for kind in fleet.kinds
    )
    span = {(row["metric"], row["statistic"]): row for row in spans.to_dict(orient="records")}
    rows = []
    for measure, label in _MEASURES.items():
        if f"{measure}_mean_s" not in metrics:
            continue
        cells = [label]
        for statistic in ("mean", "p50", "p95", "p99"):
            found = span.get((f"{measure}_s", statistic))
            cell = numbers.seconds(metrics[f"{measure}_{statistic}_s"])
            if found is not None and found["half_width"] > 0 and found["value"] > 0:
                cell += f" ±{numbers.percent(found['half_width'] / found['value'])}{' *' if found['note'] else ''}"
            cells.append(cell)
        rows.append(cells)
    print_grid(f"{name} on {kinds}", ["", "mean", "p50", "p95", "p99"], rows)
    note = "± 95 % interval by batch means, the first tenth left out"
    if spans["note"].any():
        note += "; * too short a run to trust it"
    print(f"{note}.")
    print_table(
        "Whole run",
        [
            (label, in_unit(metrics[key], unit))
            for key, (label, unit) in _WHOLE_RUN.items()
            if not math.isnan(metrics.get(key, math.nan)) and (key not in _IF_ANY or metrics[key])
        ],
    )


def _print_groups(frame: pd.DataFrame, stats: ReplayStats, column: str) -> None:
    """Requests and latencies by kind of replica, traffic class or tenant."""
    from sim.serving.metrics import by_group

    rows = []
    for row in by_group(frame, stats, column).reset_index().to_dict(orient="records"):
        latencies = [
            numbers.seconds(row[f"{measure}_{statistic}_s"])
            for measure in ("ttft", "tpot", "e2e")
            for statistic in ("p50", "p95")
        ]
        rows.append(
            [str(row[column]), numbers.count(row["requests"]), numbers.count(row["finished"]), *latencies]
        )
    head = [f"{label} {statistic}" for label in ("TTFT", "TPOT", "E2E") for statistic in ("p50", "p95")]
    print_grid(f"By {column.replace('_', ' ')}", ["", "requests", "finished", *head], rows)


def _refuse_together(option: str, value: object, others: Mapping[str, object]) -> None:
    for name, other in others.items():
        if value is not None and other is not None:
            raise InputError(f"found {option} and {name}, allowed is one of them")


def _check_targets(trace: Path, out: Path | None, timeline: Path | None) -> None:
    """Check that the outputs can be written, and overwrite neither the trace nor each other.

    Raises:
        InputError: one of them can't, or does.
    """
    taken = {trace.resolve(): "the trace"}
    for option, path in (("--out", out), ("--timeline", timeline)):
        if path is None:
            continue
        check_writable(path, option)
        if path.resolve() in taken:
            raise InputError(f"{option} {path}: is {taken[path.resolve()]} too, allowed: another file")
        taken[path.resolve()] = option


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--timeline-replicas: found {text!r}, allowed are numbers with commas, or all"
        ) from None
