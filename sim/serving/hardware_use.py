"""What a replay got out of the hardware: MFU, MBU, and the energy and money of a million tokens.

- MFU, model FLOP utilisation (Chowdhery et al. 2022, PaLM, appendix B; here without a backward pass): operations that
  the model needs / what the accelerators could have done while they ran steps. A token takes 2·parameters operations
  (those it activates, in a mixture of experts), and each query-key pair of attention 4·layers·heads·head_dim. A query
  sees the cached tokens and itself. Tokens computed again after a preemption count: the hardware computed them.
- MBU, model bandwidth utilisation (Databricks 2023, "LLM inference performance engineering: best practices"): bytes
  that must move / what memory could have moved while steps ran. Each step reads the weights once, and reads the keys
  and values of the contexts that it decodes and writes those of its new tokens. Of a mixture of experts a step reads
  the experts that its mean number of tokens touches, routing being even.
- Energy: idle watts for all paid seconds, and load − idle watts on top while steps ran.
- Money: the hourly price for all paid seconds, used or not.

MFU and MBU are over the time in steps; times the busy fraction they are over all time. A million output tokens carry
the whole bill, prompts included; a million total tokens are prompt and output tokens of finished requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError
from engine.models.catalog import WEIGHT_BYTES, CatalogModel, find_model
from engine.profile.model_shape import ModelShape
from engine.profile.profile import Profile
from sim.serving.stats import ReplayStats


@dataclass(frozen=True)
class HardwareUse:
    """Utilisation as fractions, energy and money per million tokens; NaN where `missing` says why."""

    mfu: float
    mbu: float
    energy_j: float
    joules_per_mtok_output: float
    joules_per_mtok: float
    cost_usd: float
    usd_per_mtok_output: float
    usd_per_mtok: float
    missing: dict[str, str] = field(default_factory=dict)  # name of the figure → reason

    def figures(self) -> dict[str, float]:
        """The figures by name, without the reasons."""
        return {name: value for name, value in vars(self).items() if name != "missing"}


def hardware_use(
    frame: pd.DataFrame, stats: ReplayStats, profiles: Profile | Sequence[Profile]
) -> HardwareUse:
    """MFU, MBU, energy and money of a replay.

    Args:
        frame: requests with prompt_tokens, output_tokens and finished_s.
        stats: what each replica did.
        profiles: of all replicas, or one for each.

    Raises:
        InputError: as many profiles as replicas are needed, and others were given.
    """
    busy_s, up_s = stats.busy_s, stats.up_s
    each = _one_each(profiles, len(busy_s))
    kinds = list({id(profile): profile for profile in each}.values())
    missing: dict[str, str] = {}

    flops, moved = np.zeros(len(each)), np.zeros(len(each))
    for profile in kinds:  # replicas of one kind share a profile
        mine = np.array([one is profile for one in each])
        flops[mine] = operations(profile.model, stats)[mine]
        moved[mine] = bytes_moved(profile.model, stats)[mine]

    def share(name: str, work: NDArray[np.float64], attribute: str) -> float:
        peaks = [getattr(profile.hardware, attribute) for profile in each]
        for profile, peak in zip(each, peaks, strict=True):
            if not peak or math.isnan(peak):
                missing[name] = f"profile of {profile.hardware.name}: {attribute} is not known"
                return math.nan
        if not busy_s.sum():
            missing[name] = "no step took any time"
            return math.nan
        return float(work.sum() / (np.array(peaks, dtype=np.float64) @ busy_s))

    mfu = share("mfu", flops, "peak_flops")
    mbu = share("mbu", moved, "memory_bandwidth_bytes_per_s")
    energy_j = _energy_j(each, busy_s, up_s, missing)
    cost_usd = float(np.array([one.hardware.price_usd_per_hour for one in each]) @ up_s) / 3600

    done = frame["finished_s"].notna()
    output = float(frame["output_tokens"].where(done, 0).sum())
    total = output + float(frame["prompt_tokens"].where(done, 0).sum())
    if not output:
        for name in ("joules_per_mtok_output", "joules_per_mtok", "usd_per_mtok_output", "usd_per_mtok"):
            missing.setdefault(name, "no request finished")
    return HardwareUse(
        mfu=mfu,
        mbu=mbu,
        energy_j=energy_j,
        joules_per_mtok_output=energy_j / (output or math.nan) * 1e6,
        joules_per_mtok=energy_j / (total or math.nan) * 1e6,
        cost_usd=cost_usd,
        usd_per_mtok_output=cost_usd / (output or math.nan) * 1e6,
        usd_per_mtok=cost_usd / (total or math.nan) * 1e6,
        missing=missing,
    )


def operations(shape: ModelShape, stats: ReplayStats) -> NDArray[np.float64]:
    """FLOP that the model needed on each replica [replicas]."""
    known = _catalog_model(shape)
    parameters = known.active_parameters if known is not None and known.experts else shape.parameters
    # The catalog also knows latent and window attention.
    pair_flops = known.pair_flops if known else 4.0 * shape.layers * shape.attention_heads * shape.head_dim
    decodes = stats.decode_tokens
    pairs = stats.attention_pairs + stats.context_tokens + decodes
    return 2.0 * parameters * (stats.prefill_tokens + decodes) + pair_flops * pairs


def bytes_moved(shape: ModelShape, stats: ReplayStats) -> NDArray[np.float64]:
    """Bytes of weights, keys and values that had to move on each replica [replicas].

    Earlier keys and values that a later chunk of a prompt reads are left out: they are few beside the weights.
    """
    steps = stats.steps
    tokens = stats.prefill_tokens + stats.decode_tokens
    weights = steps * shape.weight_bytes
    known = _catalog_model(shape)
    if known is not None and known.experts:
        per_step = tokens / np.maximum(steps, 1)
        touched = np.array([known.touched_experts(count) for count in per_step]) / known.experts
        weights = weights - steps * _expert_bytes(known, shape) * (1 - touched)
    return weights + shape.kv_bytes_per_token * (stats.context_tokens + tokens)


def _expert_bytes(model: CatalogModel, shape: ModelShape) -> float:
    """Bytes of all routed experts in the profile's number format."""
    if shape.dtype in WEIGHT_BYTES:
        return model.moe_layers * model.experts * model.expert_bytes(shape.dtype)
    return shape.weight_bytes * model.routed_parameters / model.parameters


def _catalog_model(shape: ModelShape) -> CatalogModel | None:
    """The catalog's entry for a profile's model, if it is the same model and not only of the same name."""
    try:
        model = find_model(shape.name)
    except InputError:
        return None
    return model if (model.parameters, model.layers) == (shape.parameters, shape.layers) else None


def _energy_j(
    profiles: list[Profile],
    busy_s: NDArray[np.float64],
    up_s: NDArray[np.float64],
    missing: dict[str, str],
) -> float:
    for profile in profiles:
        hardware = profile.hardware
        if hardware.idle_w is None or hardware.load_w is None:
            reason = profile.power.get("reason") or "idle_w or load_w is not known"
            for name in ("energy_j", "joules_per_mtok_output", "joules_per_mtok"):
                missing[name] = f"profile of {hardware.name}: no watts: {reason}"
            return math.nan
    idle = np.array([one.hardware.idle_w for one in profiles], dtype=np.float64)
    load = np.array([one.hardware.load_w for one in profiles], dtype=np.float64)
    return float(idle @ up_s + (load - idle) @ busy_s)


def _one_each(profiles: Profile | Sequence[Profile], replicas: int) -> list[Profile]:
    if isinstance(profiles, Profile):
        return [profiles] * replicas
    if len(profiles) != replicas:
        raise InputError(
            f"profiles: found {len(profiles)}, allowed is one, or one for each of {replicas} replicas"
        )
    return list(profiles)
