"""How many accelerators serve a model at a load within a latency objective: predicted, with an interval.

Memory first: a replica is the fewest accelerators of a machine (1, 2, 4, 8) that hold weights and a cache. Then speed:
`engine.prediction.roofline.predict_profile` gives the replica's step times (an engine's efficiencies fitted on
published benchmarks, or a measured profile carried over), `sim.capacity.surface` what it sustains; wider replicas are
tried as long as an accelerator sustains more in them. Replicas = load / capacity, rounded up.

The interval needs no further simulation: a machine whose steps all take f times as long is the same machine with the
clock slowed, so its capacity under an objective is that of the predicted one under the objective / f, divided by f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from engine.errors import DoesNotFitError, InputError
from engine.models.catalog import CatalogModel
from engine.prediction.engine_efficiency import ENGINES, PRECISIONS, EngineDeployment
from engine.prediction.roofline import predict_profile
from engine.profile.hardware import Accelerator
from engine.profile.profile import Profile
from engine.utils.progress import Progress
from sim.capacity.goals import GoalOutOfReachError, Objective
from sim.capacity.surface import CapacitySurface, capacity_surface
from sim.workload.traffic_classes import traffic_mix

WIDTHS = (1, 2, 4, 8)  # accelerators of one replica, within one machine
LEVEL = 0.9  # of the interval
_USABLE = 0.95  # of an accelerator's memory, as engine.prediction.engine_efficiency takes it
_NO_PRICE = 0.0  # a row without a list price is predicted all the same; its cost stays unknown


@dataclass(frozen=True)
class ServingNeed:
    """The load that the fleet must serve.

    Raises:
        InputError: a rate that is not above 0, an unknown precision, engine or traffic class.
    """

    rate_rps: float  # requests per second at the busiest time
    traffic: str  # class of sim.workload.traffic_classes
    objective: Objective
    precision: str = "bf16"
    engine: str | None = "vllm"
    source: Profile | None = None  # carried over instead of the engine's efficiencies

    def __post_init__(self) -> None:
        if not 0 < self.rate_rps < math.inf:
            raise InputError(f"rate {self.rate_rps}: allowed is a number of requests per second above 0")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision {self.precision!r}: allowed are {', '.join(PRECISIONS)}")
        if self.source is None and self.engine not in ENGINES:
            raise InputError(f"engine {self.engine!r}: allowed are {', '.join(ENGINES)}")
        traffic_mix({self.traffic: 1.0})


@dataclass(frozen=True)
class ServingAnswer:
    """Accelerators of one kind that serve the load; None where nothing can be said, and `note` says why."""

    accelerator: str
    memory_accelerators: int  # fewest that hold the weights and one request of full context
    width: int | None = None  # accelerators of one replica
    replicas: int | None = None
    accelerators: int | None = None
    accelerators_low: int | None = None  # were the machine faster than predicted (90 % interval)
    accelerators_high: int | None = (
        None  # slower; None with an answer: the objective might not be kept at all
    )
    capacity_rps: float | None = None  # of one replica
    decided_by: str = ""  # "one replica" (which is enough), "latency" or "load"
    ttft_p95_s: float | None = None  # at the load
    tpot_p95_s: float | None = None
    usd_per_hour: float | None = None
    usd_per_mtok_output: float | None = None  # all of the bill over the output tokens
    note: str = ""


def serve(
    model: CatalogModel,
    row: Accelerator,
    need: ServingNeed,
    price_usd_per_hour: float | None,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> ServingAnswer:
    """How many of this accelerator serve the model (see the module).

    Args:
        model: of the catalog.
        row: of the hardware catalog.
        need: load, objective, precision and where efficiencies come from.
        price_usd_per_hour: of one accelerator; None: not known.
        cache_dir: of the capacity surfaces; None takes the user's.
        progress: called with (fraction done, what is being done).

    Raises:
        InputError: a measured profile that can't be carried over.
    """
    least = memory_accelerators(model, row, need.precision)
    blank = ServingAnswer(row.name, least)
    widths = [width for width in WIDTHS if _fits(model, row, need.precision, width)]
    if not widths:
        note = f"{least} for weights and cache alone: more than one machine of 8, which is not predicted"
        return _noted(blank, note)
    if row.peak_bf16_flops is None:
        return _noted(blank, "no data sheet in the catalog: memory only")
    best: tuple[int, CapacitySurface, Profile] | None = None
    best_total = best_rate = math.inf
    note = ""
    for number, width in enumerate(widths):
        if width >= best_total:
            break  # one such replica is already as much as the best
        if progress is not None:
            progress(number / len(widths), f"{row.name}, {width} to a replica")
        try:
            profile = predict_profile(
                need.source, row.name, model.name, need.precision, width, need.engine,
                _NO_PRICE if price_usd_per_hour is None else price_usd_per_hour,
            )  # fmt: skip
            surface = capacity_surface(profile, {need.traffic: 1.0}, need.objective, cache_dir=cache_dir)
        except (DoesNotFitError, GoalOutOfReachError) as error:
            note = str(error)
            continue
        rate = surface.capacity_rps / width
        total = width * math.ceil(need.rate_rps / surface.capacity_rps)
        if best is not None and rate <= best_rate:
            break  # wider replicas sustain ever less per accelerator from here
        if total < best_total or best is None:
            best, best_total = (width, surface, profile), total
        best_rate = rate
    if best is None:
        return _noted(blank, note)
    return _answer(blank, need, price_usd_per_hour, *best)


def memory_accelerators(model: CatalogModel, row: Accelerator, precision: str) -> int:
    """Fewest accelerators whose memory holds the weights and one request of full context."""
    context = model.kv_bytes_per_token(precision) * model.max_context_tokens
    return max(1, math.ceil((model.weight_bytes(precision) + context) / (_USABLE * row.memory_bytes)))


def capacity_if_slower(surface: CapacitySurface, objective: Objective, factor: float) -> float | None:
    """Requests per second that a replica keeps the objective at, if every step takes `factor` times as long.

    None: not even an almost idle one keeps it.
    """
    rates = surface.table["rate_rps"].to_numpy()
    found = float(rates[-1])
    for name, limit in (
        ("ttft_p95_s", objective.ttft_p95_s / factor), ("tpot_p95_s", objective.tpot_p95_s / factor)
    ):  # fmt: skip
        values = surface.table[name].to_numpy()
        above = int(np.searchsorted(values, limit, side="right"))
        if above == 0:
            return None
        if above < len(rates):
            part = (limit - values[above - 1]) / (values[above] - values[above - 1])
            found = min(found, float(rates[above - 1] + part * (rates[above] - rates[above - 1])))
    return found / factor


def _answer(
    blank: ServingAnswer,
    need: ServingNeed,
    price: float | None,
    width: int,
    surface: CapacitySurface,
    profile: Profile,
) -> ServingAnswer:
    uncertainty = profile.coefficients.uncertainty
    spread = math.exp(
        NormalDist().inv_cdf((1 + LEVEL) / 2) * (uncertainty.relative_sd if uncertainty else 0.0)
    )
    replicas = math.ceil(need.rate_rps / surface.capacity_rps)
    fast = capacity_if_slower(surface, need.objective, 1 / spread)
    slow = capacity_if_slower(surface, need.objective, spread)
    at_load = surface.at(need.rate_rps / replicas)
    decided = "latency" if surface.capacity_rps < 0.8 * surface.saturation_rps else "load"
    total = replicas * width
    cost = None if price is None else total * price
    return ServingAnswer(
        accelerator=blank.accelerator,
        memory_accelerators=blank.memory_accelerators,
        width=width,
        replicas=replicas,
        accelerators=total,
        accelerators_low=None if fast is None else min(total, width * math.ceil(need.rate_rps / fast)),
        accelerators_high=None if slow is None else max(total, width * math.ceil(need.rate_rps / slow)),
        capacity_rps=surface.capacity_rps,
        decided_by="one replica" if replicas == 1 else decided,
        ttft_p95_s=float(at_load["ttft_p95_s"]),
        tpot_p95_s=float(at_load["tpot_p95_s"]),
        usd_per_hour=cost,
        usd_per_mtok_output=None
        if cost is None
        else cost / (need.rate_rps * surface.output_tokens_mean * 3600) * 1e6,
        note="" if slow is not None else "a machine at the slow end of the interval would miss the objective",
    )


def _fits(model: CatalogModel, row: Accelerator, precision: str, width: int) -> bool:
    try:
        EngineDeployment(model, row, precision, width).cache_bytes()
    except InputError:
        return False
    return True


def _noted(answer: ServingAnswer, note: str) -> ServingAnswer:
    return ServingAnswer(answer.accelerator, answer.memory_accelerators, note=note)
