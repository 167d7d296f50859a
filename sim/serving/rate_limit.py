"""Rate limits of one tenant: token buckets, as the limits of public model APIs are enforced.

A bucket holds a minute's worth, refills steadily, and is full at the start (Turner 1986, the leaky bucket as a meter).
"""

from __future__ import annotations

import math

from sim.serving.fleet_config import RateLimit

_ROUNDING = 1e-9  # of what a request takes: a steady stream at just the limit is never refused for rounding


class Bucket:
    """The two token buckets of a tenant, of requests and of tokens; a request passes both or takes from neither."""

    def __init__(self, limit: RateLimit, now_s: float) -> None:
        self._most = [
            math.inf if most is None else most
            for most in (limit.requests_per_minute, limit.tokens_per_minute)
        ]
        self._left = list(self._most)
        self._at_s = now_s

    def take(self, now_s: float, tokens: int) -> bool:
        """Whether a request of `tokens` tokens is within the limit now; if so it is counted.

        One of more than a minute's worth passes when the bucket is full.
        """
        minutes = (now_s - self._at_s) / 60
        self._at_s = now_s
        self._left = [
            most if most == math.inf else min(most, left + most * minutes)
            for left, most in zip(self._left, self._most, strict=True)
        ]
        wanted = [min(want, most) for want, most in zip((1, tokens), self._most, strict=True)]
        passes = all(left >= want * (1 - _ROUNDING) for left, want in zip(self._left, wanted, strict=True))
        if passes:
            # Without a limit there is always as much left.
            self._left = [
                left if left == math.inf else max(0.0, left - want)
                for left, want in zip(self._left, wanted, strict=True)
            ]
        return passes
