"""What is known of an endpoint before it is measured, and how it is to be measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.errors import InputError


@dataclass(frozen=True)
class Known:
    """What the operator knows of an endpoint; None: measured or assumed.

    Raises:
        InputError: a number out of its bounds, half a price per token, or a price per hour and one per token.
    """

    price_usd_per_hour: float | None = None  # of one accelerator
    accelerators: int = 1  # behind the address
    accelerator: str | None = None  # its name in engine.profile.hardware's catalog
    usd_per_mtok_prompt: float | None = None  # of a rented API
    usd_per_mtok_output: float | None = None
    precision: str | None = None  # of the weights: "bf16", "fp8", "fp4", "int4"
    parameters: int | None = None  # of a model that isn't in the catalog
    max_context_tokens: int | None = None
    max_running_requests: int | None = None
    max_step_tokens: int | None = None
    kv_cache_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("price_usd_per_hour", "usd_per_mtok_prompt", "usd_per_mtok_output"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{name} {value}: a finite number ≥ 0 is allowed")
        if self.accelerators < 1:
            raise InputError(f"accelerators {self.accelerators}: allowed is at least 1")
        for name in (
            "parameters",
            "max_context_tokens",
            "max_running_requests",
            "max_step_tokens",
            "kv_cache_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} {value}: allowed is at least 1")
        if (self.usd_per_mtok_prompt is None) != (self.usd_per_mtok_output is None):
            raise InputError("a price per token needs both, that of prompt and that of output tokens")
        if self.by_token and self.price_usd_per_hour is not None:
            raise InputError("found a price per hour and one per token, allowed is one of them")

    @property
    def by_token(self) -> bool:
        """The endpoint is billed by the token, not by the hour."""
        return self.usd_per_mtok_output is not None


@dataclass(frozen=True)
class SurveyOptions:
    """How an endpoint is measured.

    Raises:
        InputError: a budget that is not a positive number of seconds, or no stream allowed.
    """

    budget_s: float = 120.0  # exceeded by the burst under way
    max_concurrency: int = 256  # most streams at once
    timeout_s: float = 600.0  # after which a request is given up
    seed: int = 0  # of prompts and order

    def __post_init__(self) -> None:
        if not 0 < self.budget_s < math.inf:
            raise InputError(f"budget_s {self.budget_s}: a positive number of seconds is allowed")
        if self.max_concurrency < 1:
            raise InputError(f"max_concurrency {self.max_concurrency}: allowed is at least 1")
