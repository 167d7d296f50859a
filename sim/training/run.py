"""One training run as physics: operations, hours, failures, energy, carbon dioxide and money.

Models a synchronous run on a cluster of equal accelerators.

- compute: 6·N·D FLOP (Kaplan et al. 2020, arXiv:2001.08361), N the parameters that a token multiplies (of a mixture
  of experts the active ones); attention adds 3 × its forward operations, 4·layers·width per query-key pair
  (Chowdhery et al. 2022, "PaLM", arXiv:2204.02311, appendix B, counts every pair of a sequence; a causal model
  needs half of them); recomputed activations make it 8·N·D (Narayanan et al. 2021, arXiv:2104.04473);
- hours = FLOP / (accelerators × peak × MFU);
- stragglers: a step waits for the slowest node; the expected largest of n normal step times of relative spread c is
  1 + c·Φ⁻¹((n − 0.375)/(n + 0.25)) times the mean (Blom 1958);
- failures, checkpoints and restarts: `sim.training.checkpointing`; their number is Poisson, time / mean time between
  them;
- energy = accelerator-hours × board watts × share drawn × PUE; CO2 = energy × intensity of the grid (the method of
  Touvron et al. 2023, arXiv:2302.13971, section 6); cost = accelerator-hours × price.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from engine.errors import InputError
from engine.training.scaling_law import training_flop, training_hours
from sim.training.checkpointing import best_stretches, expected_time_s, poisson_interval, poisson_quantile

# Defaults with a source.
LLAMA3_NODE_MTBF_H = 54 * 24 * 2048 / 419  # Llama 3 report, arXiv:2407.21783, table 5: 8 H100 to a node
MEGASCALE_RESTART_S = 600.0  # Jiang et al. 2024, arXiv:2402.15627: detected and diagnosed in under 10 minutes
LLAMA_PUE = 1.1  # Touvron et al. 2023, arXiv:2302.13971, section 6
LLAMA_GRID_G_PER_KWH = 385.0  # the same: mean of the United States
# Llama 3 report, section 3.3.1: 2 TB/s for some 2,000 nodes. BLOOM's 2.3 TB in 40 s on 48 nodes say the same.
STORAGE_BYTES_PER_S_PER_NODE = 1e9


@dataclass(frozen=True)
class RunPlan:
    """Expected course of a run; hours are of the whole cluster unless they are accelerator-hours."""

    flop: float
    accelerators: int
    work_hours: float  # if nothing fails and no state is saved; stragglers included
    hours: float  # expected wall clock
    accelerator_hours: float
    failures: float  # expected
    failures_low: int  # of the 95 % Poisson interval
    failures_high: int
    job_mtbf_h: float  # mean time between failures of the whole cluster; inf: none
    checkpoint_interval_s: float  # work between two checkpoints
    checkpoints: int  # that the work passes
    checkpoint_hours: float  # standing still for them
    lost_hours: float  # failed stretches, restarts, planned stops
    effective_fraction: float  # work_hours / hours
    energy_kwh: float
    co2_kg: float
    cost_usd: float


@dataclass(frozen=True)
class RealisedRun:
    """One random course of a run."""

    failures: int
    hours: float
    accelerator_hours: float
    energy_kwh: float
    co2_kg: float
    cost_usd: float


def training_compute(
    parameters: float,
    tokens: float,
    *,
    pair_flop: float = 0.0,
    sequence_tokens: float = 0.0,
    causal: bool = True,
    recompute_activations: bool = False,
) -> float:
    """FLOP of a run: 6·N·D, and 3·pair_flop per query-key pair where that is given.

    Args:
        parameters: that a token multiplies (`CatalogModel.active_parameters`).
        tokens: trained on.
        pair_flop: forward FLOP per query-key pair, over all layers: 4·layers·width, `CatalogModel.pair_flops`.
        sequence_tokens: length of the training sequences.
        causal: count the pairs that a causal model needs, half of all.
        recompute_activations: the forward pass runs twice: 4/3 of everything.

    Raises:
        InputError: parameters or tokens are not positive.
    """
    flop = training_flop(parameters, tokens, recompute_activations=recompute_activations)
    passes = 4 if recompute_activations else 3
    pairs = tokens * sequence_tokens * (0.5 if causal else 1.0)
    return flop + passes * pair_flop * pairs


def straggler_factor(nodes: int, step_time_cv: float) -> float:
    """Time of a synchronous step, set by the slowest of `nodes`, over that of the mean node (see the module)."""
    if nodes <= 1 or step_time_cv == 0:
        return 1.0
    return 1 + step_time_cv * NormalDist().inv_cdf((nodes - 0.375) / (nodes + 0.25))


def plan_run(
    flop: float,
    *,
    accelerators: int,
    peak_flops: float,
    mfu: float,
    price_usd_per_hour: float = 0.0,
    accelerators_per_node: int = 8,
    node_mtbf_h: float = math.inf,
    checkpoint_s: float = 0.0,
    restart_s: float = 0.0,
    interval_s: float | None = None,
    planned_stops_per_day: float = 0.0,
    step_time_cv: float = 0.0,
    board_w: float = 0.0,
    power_share: float = 1.0,
    pue: float = 1.0,
    grid_g_per_kwh: float = 0.0,
) -> RunPlan:
    """Expected hours, energy and cost of a run of `flop` operations; by default without failures.

    Args:
        flop: of the whole run, counted as `mfu` counts.
        accelerators: that compute.
        peak_flops: FLOP/s of one, dense.
        mfu: fraction of the peak; one that was measured holds the stragglers of that run already.
        price_usd_per_hour: of one accelerator.
        accelerators_per_node: a node fails and lags as a whole.
        node_mtbf_h: mean hours between failures of one node.
        checkpoint_s: seconds that the cluster stands still for a checkpoint.
        restart_s: seconds from a failure until work goes on.
        interval_s: seconds of work between checkpoints; None takes the best.
        planned_stops_per_day: stops for maintenance, after a checkpoint: each costs a restart.
        step_time_cv: standard deviation over mean of a node's step time.
        board_w: watts of one accelerator's board.
        power_share: of these watts that is drawn on average.
        pue: power of the building over that of the boards.
        grid_g_per_kwh: grams of CO2 per kWh.

    Raises:
        InputError: a number outside its range, or failures that let no stretch of work end.
    """
    _check("accelerators", accelerators, 1)
    _check("accelerators_per_node", accelerators_per_node, 1)
    for name, value in (
        ("price_usd_per_hour", price_usd_per_hour), ("checkpoint_s", checkpoint_s), ("restart_s", restart_s),
        ("planned_stops_per_day", planned_stops_per_day), ("step_time_cv", step_time_cv), ("board_w", board_w),
        ("power_share", power_share), ("grid_g_per_kwh", grid_g_per_kwh),
    ):  # fmt: skip
        _check(name, value, 0)
    _check("pue", pue, 1)
    if not node_mtbf_h > 0:
        raise InputError(f"training: node_mtbf_h is {node_mtbf_h}; allowed is a time above 0")
    if interval_s is not None and not interval_s > 0:
        raise InputError(f"training: interval_s is {interval_s}; allowed is a time above 0")
    planned = planned_stops_per_day * restart_s / 86400
    if planned >= 1:
        raise InputError(
            f"training: {planned_stops_per_day:g} planned stops a day of {restart_s:g} s leave no time to work"
        )

    nodes = math.ceil(accelerators / accelerators_per_node)
    work_hours = training_hours(flop, accelerators, peak_flops, mfu) * straggler_factor(nodes, step_time_cv)
    work_s = work_hours * 3600
    job_mtbf_h = node_mtbf_h / nodes
    saves = checkpoint_s > 0 or math.isfinite(job_mtbf_h)
    if interval_s is None:
        stretches = best_stretches(work_s, checkpoint_s, job_mtbf_h * 3600) if saves else 1
        interval_s = work_s / stretches
    else:
        interval_s = min(interval_s, work_s)
        stretches = math.ceil(work_s / interval_s * (1 - 1e-12))
    running_h = work_hours
    if saves:
        running_h = expected_time_s(work_s, interval_s, checkpoint_s, job_mtbf_h * 3600, restart_s) / 3600
    hours = running_h / (1 - planned)
    failures = running_h / job_mtbf_h
    low, high = poisson_interval(failures)
    checkpoint_hours = stretches * checkpoint_s / 3600
    accelerator_hours = hours * accelerators
    energy_kwh = accelerator_hours * board_w * power_share * pue / 1000
    return RunPlan(
        flop=flop,
        accelerators=accelerators,
        work_hours=work_hours,
        hours=hours,
        accelerator_hours=accelerator_hours,
        failures=failures,
        failures_low=low,
        failures_high=high,
        job_mtbf_h=job_mtbf_h,
        checkpoint_interval_s=interval_s,
        checkpoints=stretches,
        checkpoint_hours=checkpoint_hours,
        lost_hours=max(0.0, hours - work_hours - checkpoint_hours),
        effective_fraction=work_hours / hours,
        energy_kwh=energy_kwh,
        co2_kg=energy_kwh * grid_g_per_kwh / 1000,
        cost_usd=accelerator_hours * price_usd_per_hour,
    )


def realised(plan: RunPlan, uniform: float) -> RealisedRun:
    """One run, from one number in [0, 1): failures are the Poisson quantile, each at its mean cost.

    The mean over uniform numbers is the plan's. How far into its stretch a failure strikes is averaged out; with
    more than a few failures their number is what makes one run differ from another.

    Raises:
        ValueError: `uniform` is not in [0, 1).
    """
    failures = poisson_quantile(plan.failures, uniform)
    hours = plan.hours
    if plan.failures > 0:
        undisturbed = plan.work_hours + plan.checkpoint_hours
        hours = undisturbed + (plan.hours - undisturbed) * failures / plan.failures
    share = hours / plan.hours
    return RealisedRun(
        failures=failures,
        hours=hours,
        accelerator_hours=plan.accelerator_hours * share,
        energy_kwh=plan.energy_kwh * share,
        co2_kg=plan.co2_kg * share,
        cost_usd=plan.cost_usd * share,
    )


def inferred_mfu(flop: float, accelerator_hours: float, peak_flops: float) -> float:
    """MFU of a run: FLOP / (accelerator-seconds × peak)."""
    return flop / (accelerator_hours * 3600 * peak_flops)


def _check(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise InputError(f"training: {name} is {value}; allowed is a finite number ≥ {least:g}")
