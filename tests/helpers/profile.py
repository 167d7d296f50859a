"""A made-up profile for unit tests of what reads profiles: deterministic, plausible, labelled predicted."""

from __future__ import annotations

from engine.batch import SchedulerConfig
from engine.profile.cost import cost_table
from engine.profile.hardware import HardwareInfo
from engine.profile.model_shape import ModelShape
from engine.profile.profile import SCHEMA_VERSION, FitReport, Profile
from engine.profile.step_time import RooflineStepTime


def synthetic_profile(
    price_usd_per_hour: float = 0.0496, model: str = "smollm2-135m", speed: float = 1.0
) -> Profile:
    """About SmolLM2-135M on two cores, `speed` times as fast: 33 tok/s alone, 1,100 tok/s of prefill."""
    times = RooflineStepTime(
        constant_s=0.022 / speed,
        token_knots=(0, 16, 64, 256),
        token_slopes_s=(0.0006 / speed, 0.0007 / speed, 0.0008 / speed, 0.0008 / speed),
        request_knots=(0,),
        request_slopes_s=(0.0004 / speed,),
        decode_context_s=2.0e-6 / speed,
        chunk_s=0.001 / speed,
        prefill_pair_s=1.2e-7 / speed,
        prefill_context_s=1.0e-6 / speed,
    )
    shape = ModelShape(
        name=model,
        architecture="LlamaForCausalLM",
        parameters=134_515_008,
        layers=30,
        hidden_size=576,
        intermediate_size=1536,
        attention_heads=9,
        kv_heads=3,
        head_dim=64,
        vocab_size=49_152,
        max_context_tokens=8192,
        dtype="float32",
        weight_bytes=538_060_032,
        kv_bytes_per_token=46_080,
    )
    return Profile(
        schema_version=SCHEMA_VERSION,
        created_at="2026-11-01T00:00:00+00:00",
        kind="predicted",
        model=shape,
        hardware=HardwareInfo(
            name="synthetic 2-core machine",
            device="cpu",
            cores=2,
            threads=2,
            memory_bytes=8 * 10**9,
            price_usd_per_hour=price_usd_per_hour,
            price_source="made up for tests",
            price_date="2026-11",
        ),
        software={"python": "3.11"},
        method={"note": "made up for unit tests, measured nowhere"},
        scheduler={
            "max_running_requests": 64,
            "max_step_tokens": 512,
            "block_tokens": 16,
            "num_blocks": 4096,
            "prefix_caching": True,
        },
        coefficients=times,
        fit=FitReport(
            train_points=0,
            held_out_points=0,
            median_relative_error=0.0,
            p95_relative_error=0.0,
            max_relative_error=0.0,
            train_median_relative_error=0.0,
            repeat_spread=0.0,
        ),
        cost=cost_table(times, price_usd_per_hour, SchedulerConfig(), 8192),
        memory={"weight_bytes": shape.weight_bytes},
        power={"mean_w": None, "reason": "made up for tests"},
    )
