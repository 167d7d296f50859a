"""The commands `flywheel fit` and `flywheel generate`: fit a request generator, draw requests from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.errors import InputError
from engine.utils.files import check_writable
from sim.cli.load_options import shares_of
from sim.cli.options import JsonFlag
from sim.cli.terminal import print_json, print_table, progress_bar

if TYPE_CHECKING:
    from sim.traces.fit import FittedWorkload


def fit(
    trace: Annotated[
        Path,
        typer.Argument(
            help="CSV or JSONL with arrived_s,prompt_tokens,output_tokens; or of Azure, BurstGPT, Mooncake, Vidur."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="File of the generator, YAML or JSON by its name.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip bad lines and count them by reason.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Fit a generator of requests to a trace, and report its goodness of fit."""
    from sim.traces import fit as trace_fit
    from sim.traces.read import read_trace_report

    if out is not None:
        check_writable(out)
    requests, report = read_trace_report(trace, skip_bad)
    with progress_bar(f"fit {trace.name}") as progress:
        fitted = trace_fit.fit(requests, trace.name, progress)
    if out is not None:
        fitted.save(out)
    if as_json:
        skipped = {
            each.reason: {"count": each.count, "first_lines": list(each.first_lines)}
            for each in report.skipped
        }
        print_json({"rows": report.rows, "skipped": skipped, "workload": fitted.model_dump(mode="json")})
        return
    print_table(trace.name, [*report.describe(), *_generator_rows(fitted)])
    print_table("Trace → generated", _quality_rows(fitted))
    if out is not None:
        print(f"Generator: {out}")


def generate(
    workload: Annotated[
        str,
        typer.Argument(
            help="Generator that `flywheel fit` wrote, or traffic classes: chat, or chat=0.7,code=0.3."
        ),
    ],
    rate: Annotated[
        float | None, typer.Option(help="Requests per second (default: the trace's, or 1).")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, max=100_000_000, help="Number of requests (default: 1000).")
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Duration in seconds, instead of a number of requests.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random streams.")] = 0,
    max_context_tokens: Annotated[
        int | None, typer.Option(help="Cut prompt and output together to this many tokens.")
    ] = None,
    out: Annotated[Path, typer.Option(help="File of the requests, CSV or JSONL by its name.")] = Path(
        "requests.csv"
    ),
    as_json: JsonFlag = False,
) -> None:
    """Draw requests from a fitted generator or from traffic classes, for `flywheel replay`."""
    from sim.traces.read import write_trace
    from sim.workload.generate import generate as draw

    check_writable(out)
    if requests is None and duration is None:
        requests = 1000
    if Path(workload).suffix in (".yaml", ".yml", ".json"):
        from sim.traces.fit import FittedWorkload

        frame = FittedWorkload.load(workload).generate(
            rate_rps=rate,
            requests=requests,
            duration_s=duration,
            rng=seed,
            max_context_tokens=max_context_tokens,
        )
    else:
        frame = draw(
            shares_of(workload),
            1.0 if rate is None else rate,
            requests=requests,
            duration_s=duration,
            rng=seed,
            max_context_tokens=max_context_tokens,
        )
    if frame.empty:
        raise InputError(f"--duration {duration}: found no arrival in this time, allowed is a longer one")
    write_trace(frame, out)
    summary = {
        "requests": len(frame),
        "last_arrival_s": float(frame["arrived_s"].iloc[-1]),
        "prompt_tokens_mean": float(frame["prompt_tokens"].mean()),
        "output_tokens_mean": float(frame["output_tokens"].mean()),
    }
    if as_json:
        print_json({"out": str(out), **summary})
        return
    print(
        f"{len(frame):,} requests in {summary['last_arrival_s']:,.1f} s, on average "
        f"{summary['prompt_tokens_mean']:,.0f} tokens in and {summary['output_tokens_mean']:,.0f} out: {out}"
    )


def _generator_rows(fitted: FittedWorkload) -> list[tuple[str, str]]:
    arrivals = fitted.arrivals
    names = {
        "poisson": "Poisson",
        "gamma": "gamma gaps",
        "gaps": "table of gaps",
        "mmpp": "Markov-modulated Poisson",
    }
    rows = [("Arrivals", f"{names[arrivals.kind]}, {arrivals.rate_rps:.4g} requests/s")]
    if arrivals.cv is not None:
        rows.append(("Coefficient of variation", f"{arrivals.cv:.3g}"))
    if arrivals.rates is not None and arrivals.dwell_s is not None:
        states = (
            f"{rate * arrivals.rate_rps:.3g}/s for {dwell_s:.3g} s"
            for rate, dwell_s in zip(arrivals.rates, arrivals.dwell_s, strict=True)
        )
        rows.append(("States", "; ".join(states)))
    if arrivals.shape is not None:
        rows.append(("Shape", "of the week" if len(arrivals.shape) > 24 else "of the day"))
    for each in fitted.classes:
        sides = (
            f"{what} {'lognormal' if side.quantiles is None else 'table'}, median {side.median:,.0f}, "
            f"mean {side.mean:,.0f}"
            for what, side in (("prompt", each.prompt), ("output", each.output))
        )
        rows.append((f"{each.name} ({each.share:.1%})", "; ".join(sides)))
    return rows


def _quality_rows(fitted: FittedWorkload) -> list[tuple[str, str]]:
    quality = fitted.quality
    assert quality is not None
    rows = []
    for each in quality.distributions:
        numbers = (f"{name} {each.trace[name]:.4g} → {each.generated[name]:.4g}" for name in each.trace)
        rows.append((each.what, f"{'; '.join(numbers)}; KS {each.ks:.3f}"))
    rows += [
        (f"Index of dispersion, {pair.at:g} s", f"{pair.trace:.3g} → {pair.generated:.3g}")
        for pair in quality.dispersion
    ]
    rows += [
        (
            f"Wait at {wait.load:.0%} load, services",
            f"mean {wait.trace_mean:.3g} (lengths shuffled {wait.shuffled_mean:.3g}) → {wait.generated_mean:.3g}; "
            f"p95 {wait.trace_p95:.3g} ({wait.shuffled_p95:.3g}) → {wait.generated_p95:.3g}",
        )
        for wait in quality.waits
    ]
    pair = quality.rank_correlation
    rows.append(("Rank correlation", f"{pair.trace:.3f} → {pair.generated:.3f}"))
    return rows
