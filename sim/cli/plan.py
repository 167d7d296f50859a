"""The command `flywheel plan`: the number of accelerators a model needs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.options import JsonFlag
from sim.cli.terminal import print_grid, print_json, print_table, progress_bar
from sim.i18n import numbers

if TYPE_CHECKING:
    from sim.planner.plan import AcceleratorPlan


def plan(
    model: Annotated[str, typer.Option(help="Published model, such as bloom-560m, or its hub id.")],
    on: Annotated[
        str, typer.Option("--on", help="Accelerators of the catalog, separated by commas, or all.")
    ] = "A100 SXM,H100 SXM",
    rate: Annotated[float, typer.Option(help="Requests per second at peak load.")] = 5.0,
    traffic: Annotated[str, typer.Option(help="Class of requests: chat, code, rag, agent …")] = "chat",
    ttft_p95: Annotated[
        float, typer.Option("--ttft-p95", help="Seconds to the first token, 95th percentile.")
    ] = 2.0,
    tpot_p95: Annotated[
        float, typer.Option("--tpot-p95", help="Seconds per output token, 95th percentile.")
    ] = 0.1,
    precision: Annotated[
        str, typer.Option(help="Precision of the served weights: bf16, fp8, fp4 or int4.")
    ] = "bf16",
    engine: Annotated[str, typer.Option(help="Serving engine to predict: vllm, sglang or trtllm.")] = "vllm",
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Measured profile to scale to this hardware, instead of --engine."),
    ] = None,
    tokens: Annotated[
        float | None,
        typer.Option(help="Training tokens (default: as the published run, else 20 per parameter)."),
    ] = None,
    days: Annotated[float, typer.Option(help="Days within which training must end.")] = 100.0,
    budget_usd: Annotated[float | None, typer.Option(help="Budget for training.")] = None,
    mfu: Annotated[
        float | None, typer.Option(help="MFU in training (default: that of published runs).")
    ] = None,
    price_usd_per_hour: Annotated[
        float | None, typer.Option(help="Price of one accelerator (default: list prices where known).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compute how many accelerators a model needs to serve a load and to be trained. Serving is predicted."""
    from engine.profile.profile import Profile
    from sim.capacity.goals import Objective
    from sim.planner.plan import plan as make_plan
    from sim.planner.serving import ServingNeed

    measured = None if source is None else Profile.load(source)
    need = ServingNeed(
        rate, traffic, Objective(ttft_p95, tpot_p95), precision, None if measured else engine, measured
    )
    with progress_bar(f"plan {model}") as report:
        found = make_plan(
            model,
            on.split(","),
            serving=need,
            tokens=tokens,
            days=days,
            budget_usd=budget_usd,
            mfu=mfu,
            price_usd_per_hour=price_usd_per_hour,
            progress=report,
        )
    if as_json:
        print_json(asdict(found))
    else:
        _show(found)


def _show(plan: AcceleratorPlan) -> None:
    parameters = numbers.count(plan.parameters)
    if plan.active_parameters < 0.9 * plan.parameters:
        parameters += f" ({numbers.count(plan.active_parameters)} active)"
    print_table(
        plan.model,
        [
            ("Parameters", parameters),
            (f"Weights in {plan.precision}", _bytes(plan.weight_bytes)),
            ("Weights, gradients, optimizer state", _bytes(plan.training_state_bytes)),
            ("Checkpoint", _bytes(plan.checkpoint_bytes)),
        ],
    )
    print_grid(
        f"Serving {plan.rate_rps:g} {plan.traffic} requests/s, p95: first token ≤ {plan.ttft_p95_s:g} s, "
        f"each further ≤ {plan.tpot_p95_s:g} s (PREDICTED)",
        ["on", "accelerators", "by memory", "replicas", "decided by", "p95 first", "p95 next", "USD/h", "USD/Mtok out"],
        [
            [
                row.accelerator,
                _range(row.accelerators, row.accelerators_low, row.accelerators_high),
                f"{row.memory_accelerators:,}",
                numbers.UNKNOWN if row.replicas is None else f"{row.replicas:,} × {row.width}",
                row.decided_by or numbers.UNKNOWN,
                numbers.seconds(row.ttft_p95_s),
                numbers.seconds(row.tpot_p95_s),
                numbers.usd(row.usd_per_hour),
                numbers.usd(row.usd_per_mtok_output),
            ]
            for row in plan.serving
        ],
    )  # fmt: skip
    _notes([(row.accelerator, row.note) for row in plan.serving])
    print_grid(
        f"Training on {numbers.count(plan.tokens)} tokens ({plan.tokens_from}) in {plan.days:g} days",
        ["on", "accelerators", "by memory", "days", "failures", "checkpoint every", "useful time", "energy", "cost"],
        [
            [
                row.accelerator,
                _range(row.accelerators, row.accelerators_low, row.accelerators_high),
                numbers.UNKNOWN if row.memory_accelerators is None else f"{row.memory_accelerators:,}",
                *(
                    [numbers.UNKNOWN] * 5
                    if row.plan is None
                    else [
                        _short(row.plan.hours / 24),
                        f"{row.plan.failures_low:,}–{row.plan.failures_high:,}",
                        _duration(row.plan.checkpoint_interval_s),
                        numbers.percent(row.plan.effective_fraction, 1),
                        _energy(row.plan.energy_kwh),
                    ]
                ),
                numbers.usd(row.usd),
            ]
            for row in plan.training
        ],
    )  # fmt: skip
    _notes([(row.accelerator, row.note) for row in plan.training])
    if plan.budget_usd is not None:
        for row in plan.training:
            _show_budget(row.accelerator, row.usd, row.tokens_in_budget, plan.budget_usd)
    if plan.published:
        print_grid(
            "Published runs",
            ["run", "accelerators", "days", "accelerator-hours", "computed", "source"],
            [
                [
                    run.title,
                    f"{run.accelerators:,} × {run.accelerator}" if run.accelerators else run.accelerator,
                    numbers.UNKNOWN if run.days is None else f"{run.days:,.0f}",
                    numbers.count(run.accelerator_hours),
                    numbers.count(run.computed_accelerator_hours),
                    run.source,
                ]
                for run in plan.published
            ],
        )
    if plan.claim is not None:
        claim = plan.claim
        print_table(
            f"The article's claim: {claim.accelerators:,} {claim.accelerator}",
            [
                (
                    "They would train it in",
                    numbers.UNKNOWN
                    if claim.trains_in_days is None
                    else f"{_short(claim.trains_in_days)} days",
                ),
                (
                    f"They would serve ({plan.traffic}, PREDICTED)",
                    numbers.UNKNOWN if claim.serves_rps is None else f"{_short(claim.serves_rps)} requests/s",
                ),
            ],
        )
        for reason in claim.reasons:
            print(f"  {reason}")
    print("Assumptions")
    for line in plan.assumptions:
        print(f"  {line}")


def _range(count: int | None, low: int | None, high: int | None) -> str:
    if count is None:
        return numbers.UNKNOWN
    if low == high == count:
        return f"{count:,}"
    return f"{count:,} ({low or 1:,}–{'?' if high is None else f'{high:,}'})"


def _notes(pairs: list[tuple[str, str]]) -> None:
    for accelerator, note in pairs:
        if note:
            print(f"  {accelerator}: {note}")


def _show_budget(accelerator: str, usd: float | None, tokens: float | None, budget: float) -> None:
    if usd is None:
        print(f"  {accelerator}: no list price; give --price-usd-per-hour")
    elif usd <= budget:
        print(f"  {accelerator}: {numbers.usd(usd)} is within the budget of {numbers.usd(budget)}")
    else:
        print(
            f"  {accelerator}: {numbers.usd(usd)} is above the budget of {numbers.usd(budget)}, which buys "
            f"{numbers.count(tokens)} tokens"
        )


def _short(number: float) -> str:
    """Three significant digits, never in powers of ten: 0.657, 28.2, 1,452."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _bytes(count: float) -> str:
    return f"{_short(count / 1e12)} TB" if count >= 1e12 else f"{_short(count / 1e9)} GB"


def _energy(kwh: float) -> str:
    if not kwh:
        return numbers.UNKNOWN
    return f"{_short(kwh / 1e6)} GWh" if kwh >= 1e6 else f"{_short(kwh / 1e3)} MWh"


def _duration(seconds: float) -> str:
    if seconds >= 2 * 3600:
        return f"{_short(seconds / 3600)} h"
    return f"{_short(seconds / 60)} min" if seconds >= 120 else f"{_short(seconds)} s"
