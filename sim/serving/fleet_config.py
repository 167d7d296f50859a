"""What a serving fleet is made of: kinds of replicas, how they come and go, and its limits, time-outs and retries.

Settings only; `sim.serving.fleet_run` plays them. Every field has its unit and its bounds here, so that a fleet file
with a mistake is refused with the key, what was found and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.batch import SchedulerConfig
from engine.errors import InputError
from engine.profile.profile import Profile
from engine.profile.step_time import StepTimeModel

ROUTERS = ("least_outstanding", "least_outstanding_tokens", "round_robin", "power_of_two", "prefix_aware")
Router = Literal[
    "least_outstanding", "least_outstanding_tokens", "round_robin", "power_of_two", "prefix_aware"
]
# Bounds that no fleet comes near, and within which every run ends.
Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
SecondsBetween = Annotated[float, Field(ge=0.1, le=1e9, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
_MOST_CHANGES = 50_000_000  # that a run may play by itself: minutes


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class ScheduledSize(_Settings):
    """A least number of replicas from a time of the period on."""

    at_s: float = Field(ge=0, le=1e9, description="time of the period, in seconds")
    replicas: int = Field(ge=0, le=100_000, description="at least so many from then on")


class Autoscaler(_Settings):
    """Keep the load per replica near a target: wanted replicas = ceil(load of all / target)."""

    metric: Literal["outstanding_requests", "waiting_requests", "busy_fraction"] = Field(
        default="outstanding_requests", description="what load is"
    )
    target: float = Field(gt=0, allow_inf_nan=False, description="of the metric, per serving replica")
    min_replicas: int = Field(default=1, ge=0, le=100_000, description="never fewer")
    max_replicas: int = Field(default=64, ge=1, le=100_000, description="never more, the emptying ones aside")
    interval_s: SecondsBetween = Field(default=15.0, description="between two decisions")
    provisioning_s: Seconds = Field(default=120.0, description="from the order until the machine is there")
    cool_down_s: Seconds = Field(default=300.0, description="after any change, before it shrinks")
    tolerance: Share = Field(default=0.1, description="load this near the target changes nothing")
    schedule: tuple[ScheduledSize, ...] = Field(default=(), description="least sizes by time of the period")
    period_s: SecondsBetween = Field(default=86_400.0, description="of the schedule")

    @model_validator(mode="after")
    def _ordered(self) -> Autoscaler:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"found max_replicas {self.max_replicas} below min_replicas {self.min_replicas}, allowed is at least "
                "that"
            )
        late = [entry.at_s for entry in self.schedule if entry.at_s >= self.period_s]
        if late:
            raise ValueError(
                f"schedule: found at_s {late[0]:g} beyond the period, allowed is below period_s {self.period_s:g}"
            )
        return self


class Failures(_Settings):
    """Failures of servers: exponential time between failures, exponential time of repair."""

    mtbf_s: SecondsBetween = Field(description="mean time in service until a failure")
    repair_s: Seconds = Field(
        default=600.0, description="mean time until the machine is back; the model then loads"
    )


class SpotInterruptions(_Settings):
    """Spot servers that the cloud takes back: exponential life, and a notice in which running requests may finish."""

    mean_life_s: SecondsBetween = Field(description="mean time from a machine's coming to the notice")
    notice_s: Seconds = Field(default=30.0, description="between the notice and the end; 0: none")
    replacement_s: Seconds = Field(
        default=180.0, description="until another machine is there; the model then loads"
    )


class ReplicaSpec(_Settings):
    """Equal replicas: what they run on, their limits, and how many there are at the start."""

    name: str = "replica"
    step_time: StepTimeModel = Field(description="seconds per step")
    scheduler: SchedulerConfig = SchedulerConfig()
    replicas: int = Field(default=1, ge=0, le=100_000, description="at the start")
    role: Literal["serve", "prefill", "decode"] = Field(
        default="serve", description="what it does of a request: all, or one half"
    )
    weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="share of load that routers give it"
    )
    draft_tokens: int = Field(default=0, ge=0, le=64, description="speculative decoding: guesses per step")
    acceptance_rate: Share = Field(
        default=0.0, description="probability that a guess is right, if those before it were"
    )
    load_s: Seconds = Field(default=0.0, description="loading the model, after the machine is there")
    price_usd_per_hour: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="of one replica"
    )
    profile: Profile | None = Field(default=None, description="for FLOPs, bytes and watts; None: not known")
    autoscaler: Autoscaler | None = Field(default=None, description="orders and releases replicas by load")
    failures: Failures | None = Field(default=None, description="how often they break down")
    spot: SpotInterruptions | None = Field(default=None, description="machines that the cloud may take back")

    @property
    def priced_profile(self) -> Profile | None:
        """The profile at this kind's own price (a spot server costs less than the profile's list price)."""
        if self.profile is None or self.price_usd_per_hour is None:
            return self.profile
        hardware = replace(self.profile.hardware, price_usd_per_hour=self.price_usd_per_hour)
        return replace(self.profile, hardware=hardware)


class RateLimit(_Settings):
    """Rate limits of a tenant: two token buckets that refill steadily and hold a minute's worth."""

    requests_per_minute: float | None = Field(default=None, gt=0, description="requests")
    tokens_per_minute: float | None = Field(default=None, gt=0, description="prompt and output tokens")


class Retries(_Settings):
    """What clients do when a request fails: try again, waiting longer each time."""

    attempts: int = Field(default=1, ge=1, le=100, description="in all; 1: never again")
    delay_s: Seconds = Field(default=1.0, description="before the second attempt")
    backoff: float = Field(
        default=2.0, ge=1, le=100, description="each further delay is so many times the last"
    )
    max_delay_s: float = Field(
        default=3600.0, ge=0, le=86_400, description="no delay is longer, however many attempts"
    )

    def wait_s(self, attempt: int) -> float:
        """Seconds between the failure of this attempt (from 1) and the next one."""
        return min(self.delay_s * self.backoff ** (attempt - 1), self.max_delay_s)


class Fleet(_Settings):
    """A fleet: replicas, router, limits and retries. With roles prefill and decode, each request goes through both."""

    kinds: tuple[ReplicaSpec, ...] = Field(min_length=1)
    router: Router = Field(default="least_outstanding", description="which replica a request goes to")
    timeout_s: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = Field(
        default=None, description="clients give an attempt up after that"
    )
    max_outstanding: int | None = Field(
        default=None, ge=1, description="requests in the fleet; more are refused"
    )
    retries: Retries = Field(default=Retries(), description="what clients do when a request fails")
    rate_limits: dict[str, RateLimit] = Field(default={}, description="by tenant; 'default' for all others")
    kv_transfer_s: Seconds = Field(default=0.0, description="from a prefill to a decode replica: latency")
    kv_transfer_s_per_token: Seconds = Field(default=0.0, description="and per token of the prompt")
    seed: int = Field(default=0, ge=0, description="of routing, failures and guesses")

    @model_validator(mode="after")
    def _complete(self) -> Fleet:
        roles = {kind.role for kind in self.kinds}
        if "serve" in roles and roles != {"serve"}:
            raise ValueError(
                "kinds: found role serve beside prefill or decode, allowed is all serve, or both of the others"
            )
        if roles != {"serve"} and roles != {"prefill", "decode"}:
            raise ValueError(
                f"kinds: found only role {next(iter(roles))}, allowed is a prefill and a decode kind, or all serve"
            )
        for role in sorted(roles):
            if not any(kind.replicas or kind.autoscaler for kind in self.kinds if kind.role == role):
                raise ValueError(
                    f"kinds: found 0 replicas of role {role} and no autoscaler to order any, allowed is one or the "
                    "other"
                )
        return self

    @property
    def max_context_tokens(self) -> int | None:
        """The shortest context among the models of its kinds; None if no model is known."""
        known = [kind.profile.model.max_context_tokens for kind in self.kinds if kind.profile is not None]
        return min(known, default=None)

    @property
    def step_times_from(self) -> dict[str, str]:
        """Where each kind's step times come from: a measured or a predicted profile, or a table."""
        return {kind.name: "table" if kind.profile is None else kind.profile.kind for kind in self.kinds}

    def longest_request_tokens(self, at_most: int | None = None) -> int:
        """Prompt and output tokens that every kind has context and KV cache for, and `at_most` so many."""
        limits = [self.max_context_tokens, at_most, *(kind.scheduler.cache_tokens for kind in self.kinds)]
        return min(limit for limit in limits if limit is not None)

    @property
    def is_disaggregated(self) -> bool:
        """Prompts and answers are computed by different replicas."""
        return self.kinds[0].role != "serve"


def check_span(fleet: Fleet, span_s: float) -> None:
    """Refuse a run with so many autoscaler decisions, failures or interruptions that it would take hours.

    Raises:
        InputError: names the kind of replicas, the setting and the least that is allowed.
    """
    for kind in fleet.kinds:
        most = max(kind.replicas, kind.autoscaler.max_replicas if kind.autoscaler else 0)
        for key, seconds, servers in _periods(kind, most):
            least_s = span_s / _MOST_CHANGES * servers
            if seconds < least_s:
                raise InputError(
                    f"fleet: {kind.name}.{key}: found {seconds:g} s in a run of {span_s:g} s, allowed is at least "
                    f"{least_s:.3g} s"
                )


def _periods(kind: ReplicaSpec, most: int) -> Iterator[tuple[str, float, int]]:
    """The recurring processes of a kind: its key, seconds between two events, and the number of servers it affects."""
    if kind.autoscaler is not None:
        yield "autoscaler.interval_s", kind.autoscaler.interval_s, 1
    if kind.failures is not None:
        yield "failures.mtbf_s", kind.failures.mtbf_s, most
    if kind.spot is not None:
        yield "spot.mean_life_s", kind.spot.mean_life_s, most
