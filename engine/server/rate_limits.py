"""Limits of a key: requests and tokens per minute, and a budget per month.

The limits per minute are token buckets (Turner 1986, "New directions in communications"): a bucket holds a minute's
allowance and refills evenly, so a key may burst up to a minute's worth and never exceeds the rate in the long run. A
request first takes its prompt and all tokens that it may produce, and gives back those that it did not use. The budget
is compared with what the meter has written; requests in progress are not in it, so a key may exceed its budget by them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.server.errors import ApiError
from engine.usage.api_keys import ApiKey
from engine.usage.meter import Meter, TokenPrices


@dataclass
class TokenBucket:
    """Token bucket of `per_minute` units that refills at that rate."""

    per_minute: int
    level: float
    at_s: float

    def refill(self, now_s: float) -> None:
        """Add what was gained until `now_s`."""
        gained = (now_s - self.at_s) * self.per_minute / 60
        self.level, self.at_s = min(self.level + gained, float(self.per_minute)), now_s

    def wait_s(self, amount: float) -> float:
        """Seconds until the bucket holds `amount`; 0: it does."""
        return max(amount - self.level, 0.0) * 60 / self.per_minute

    @property
    def full_in_s(self) -> float:
        """Seconds until the bucket is full."""
        return self.wait_s(self.per_minute)


class Limits:
    """Rate limits and budgets of all keys; used on the event loop alone."""

    def __init__(
        self, meter: Meter | None = None, prices_of: Callable[[str | None], TokenPrices | None] | None = None
    ) -> None:
        """`prices_of`: prices of a plan, at which budgets are spent; None: the measured cost."""
        self._meter = meter
        self._prices_of = prices_of or (lambda plan: None)
        self._buckets: dict[tuple[str, str], TokenBucket] = {}

    def take(self, key: ApiKey, prompt_tokens: int, most_tokens: int) -> tuple[int, dict[str, str]]:
        """Take one request and the most tokens that it may use.

        A request that may use more than a minute's allowance needs a full bucket; tokens beyond it are owed.

        Returns:
            (tokens taken, x-ratelimit headers).

        Raises:
            ApiError: 429 with Retry-After, a limit is exceeded; without it, the prompt alone exceeds the limit.
        """
        now_s = time.monotonic()
        limit = key.tokens_per_minute
        if limit and prompt_tokens > limit:
            raise ApiError(
                429, f"Request too large: {prompt_tokens} tokens; the key's limit is {limit} per minute",
                code="rate_limit_exceeded", kind="tokens", headers=self.headers(key),
            )  # fmt: skip
        tokens = min(most_tokens, limit) if limit else 0
        asked = [("requests", key.requests_per_minute, 1), ("tokens", limit, tokens)]
        taken = []
        for what, per_minute, amount in asked:
            if not per_minute:
                continue
            bucket = self._bucket(key.key_id, what, per_minute, now_s)
            wait_s = bucket.wait_s(amount)
            if wait_s > 0:
                raise ApiError(
                    429, f"Rate limit reached: {per_minute} {what} per minute; try again in {wait_s:.1f} s",
                    code="rate_limit_exceeded", kind=what,
                    headers={**self.headers(key), "Retry-After": str(max(math.ceil(wait_s), 1))},
                )  # fmt: skip
            taken.append((bucket, amount))
        for bucket, amount in taken:
            bucket.level -= amount
        return tokens, self.headers(key)

    def give_back(self, key: ApiKey, tokens: int, requests: int = 0) -> None:
        """Return the tokens and requests that were taken and not used; negative if more were used."""
        for what, amount in (("tokens", tokens), ("requests", requests)):
            bucket = self._buckets.get((key.key_id, what))
            if bucket is not None:
                bucket.level = min(bucket.level + amount, float(bucket.per_minute))

    def headers(self, key: ApiKey) -> dict[str, str]:
        """OpenAI's x-ratelimit headers for the limits of a key."""
        now_s = time.monotonic()
        found: dict[str, str] = {}
        for what, limit in (("requests", key.requests_per_minute), ("tokens", key.tokens_per_minute)):
            if limit:
                bucket = self._bucket(key.key_id, what, limit, now_s)
                found[f"x-ratelimit-limit-{what}"] = str(limit)
                found[f"x-ratelimit-remaining-{what}"] = str(max(math.floor(bucket.level), 0))
                found[f"x-ratelimit-reset-{what}"] = f"{bucket.full_in_s:.3f}s"
        return found

    def require_budget(self, key: ApiKey) -> None:
        """Check the budget of this month; reads the database, so not to be called on the event loop.

        Raises:
            ApiError: 429, the budget is spent.
            UsageDatabaseError: the database cannot be read.
        """
        budget = key.budget_micro_usd_per_month
        if budget is None or self._meter is None:
            return
        spent = self._meter.spent_micro_usd(key.key_id, prices=self._prices_of(key.plan))
        if spent >= budget:
            raise ApiError(
                429,
                f"You exceeded your current quota: {spent / 1e6:.6f} of {budget / 1e6:.6f} USD are spent this month",
                code="insufficient_quota",
                kind="insufficient_quota",
            )

    def _bucket(self, key_id: str, what: str, limit: int, now_s: float) -> TokenBucket:
        bucket = self._buckets.get((key_id, what))
        if bucket is None or bucket.per_minute != limit:
            bucket = self._buckets[key_id, what] = TokenBucket(limit, float(limit), now_s)
        bucket.refill(now_s)
        return bucket
