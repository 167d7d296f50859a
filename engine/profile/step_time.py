"""How long one step of continuous batching takes, as a sum of the roofline terms of a Transformer step.

One step runs a packed batch: each decoding request brings one token, each prefill chunk several. Its time is

    t = constant + ramp_T(packed tokens) + ramp_R(requests)
      + a·Σ decode contexts + b·chunks + c·Σ chunk·(context + (chunk+1)/2) + d·Σ prefill contexts

- constant: launching the layers and reading the weights once (what a step costs before its first token);
- ramp_T: the dense layers, 2·N operations per packed token; piecewise linear because the machine goes from
  memory bound (a token rides along on the weights already read) to compute bound (each token pays its FLOPs);
- ramp_R: what each request costs besides its tokens: the vocabulary row, block tables, attention launch;
- a: bytes of keys and values that decoding reads; c: multiply-adds of causal prefill attention, one per
  query-key pair; d: gathering the earlier keys and values of a chunk; b: overhead per chunk.

The terms are the roofline's (Williams et al. 2009) with the work counts of a Transformer (Kaplan et al. 2020,
table 1). Every coefficient is ≥ 0, so time never falls when work is added, inside the measured grid or
beyond. No torch here, and no numpy in the hot path: the simulator asks for millions of steps.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import NormalDist
from typing import Protocol, runtime_checkable


@runtime_checkable
class StepTimeModel(Protocol):
    """Seconds of a step, for the simulator: implemented by a fit, a measured table or a formula.

    Optional besides: `decode_run(decode_contexts, steps) -> float`, used to jump over unchanged decode steps.
    """

    def step_time(self, prefill: Sequence[tuple[int, int]], decode_contexts: Sequence[int]) -> float:
        """Seconds of one step.

        Args:
            prefill: (chunk_tokens, context_tokens already in the cache before the chunk) of each chunk.
            decode_contexts: tokens already in the cache of each decoding request (each adds one token).
        """
        ...


@dataclass(frozen=True)
class StepTimeUncertainty:
    """Uncertainty of a step's time: the coefficients' own errors, and what no coefficient explains.

    `active` are the places, in the order of `basis`, of the coefficients that the fit found positive; the others
    were held at zero. Correlations stand plus one (0 … 2), rows of the lower triangle below the diagonal, because
    a profile's file holds no negative number.
    """

    relative_sd: float  # standard deviation of log(measured / predicted) around the model
    active: tuple[int, ...] = ()
    standard_errors: tuple[float, ...] = ()  # seconds per unit of each active coefficient
    correlations_plus_one: tuple[tuple[float, ...], ...] = ()

    def variance(self, row: Sequence[float]) -> float:
        """Variance in s² of the mean time of a step whose `basis` is `row`."""
        scaled = [row[i] * error for i, error in zip(self.active, self.standard_errors, strict=True)]
        total = sum(part * part for part in scaled)
        for i, correlations in enumerate(self.correlations_plus_one, start=1):
            total += 2 * scaled[i] * sum((c - 1) * scaled[j] for j, c in enumerate(correlations))
        return max(0.0, total)


@dataclass(frozen=True)
class RooflineStepTime:
    """The fitted step-time model; implements `StepTimeModel` and `decode_run`.

    A ramp is given by its knots (first 0) and the slope from each knot to the next, the last one onwards.
    """

    constant_s: float  # seconds per step
    token_knots: tuple[int, ...]  # packed tokens
    token_slopes_s: tuple[float, ...]  # seconds per packed token, one per knot
    request_knots: tuple[int, ...]  # requests in the step (decodes + chunks)
    request_slopes_s: tuple[float, ...]  # seconds per request, one per knot
    decode_context_s: float  # seconds per cached token read by a decoding request
    chunk_s: float  # seconds per prefill chunk
    prefill_pair_s: float  # seconds per query-key pair of prefill attention
    prefill_context_s: float  # seconds per cached token gathered for a chunk
    uncertainty: StepTimeUncertainty | None = None  # None: not known (a profile of before)
    # Time at each knot, so that a step costs one bisection instead of a sum over segments.
    _token_base_s: tuple[float, ...] = field(init=False, repr=False, compare=False)
    _request_base_s: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("token", "request"):
            knots, slopes = getattr(self, f"{name}_knots"), getattr(self, f"{name}_slopes_s")
            if not knots or knots[0] != 0 or len(knots) != len(slopes):
                raise ValueError(f"{name}_knots must start at 0 and have one slope each: {knots}, {slopes}")
            if any(b <= a for a, b in pairwise(knots)):
                raise ValueError(f"{name}_knots must increase: {knots}")
            base = [0.0]
            for start, end, slope in zip(knots, knots[1:], slopes, strict=False):
                base.append(base[-1] + slope * (end - start))
            object.__setattr__(self, f"_{name}_base_s", tuple(base))

    def step_time(self, prefill: Sequence[tuple[int, int]], decode_contexts: Sequence[int]) -> float:
        """Seconds of one step (see `StepTimeModel.step_time`); 0.0 for an empty step."""
        decodes = len(decode_contexts)
        if not prefill:
            return self._decode_base_s(decodes) + self.decode_context_s * sum(decode_contexts)
        tokens, pairs, gathered = decodes, 0.0, 0
        for chunk, context in prefill:
            tokens += chunk
            pairs += chunk * (context + 0.5 * (chunk + 1))
            gathered += context
        return (
            self._batch_s(tokens, decodes + len(prefill))
            + self.decode_context_s * sum(decode_contexts)
            + self.chunk_s * len(prefill)
            + self.prefill_pair_s * pairs
            + self.prefill_context_s * gathered
        )

    def interval(
        self, prefill: Sequence[tuple[int, int]], decode_contexts: Sequence[int], level: float = 0.9
    ) -> tuple[float, float]:
        """(low, high) seconds that one measured step falls between with probability `level`.

        Log-normal around the model's time, so low stays positive. Without an `uncertainty` both ends are infinite
        far: (0, inf).
        """
        if not 0 < level < 1:
            raise ValueError(f"level {level}: allowed is a probability between 0 and 1")
        time_s = self.step_time(prefill, decode_contexts)
        if not time_s:
            return 0.0, 0.0
        if self.uncertainty is None:
            return 0.0, math.inf
        row = basis(prefill, decode_contexts, self.token_knots, self.request_knots)
        relative = math.sqrt(self.uncertainty.variance(row) / time_s**2 + self.uncertainty.relative_sd**2)
        factor = math.exp(NormalDist().inv_cdf((1 + level) / 2) * relative)
        return time_s / factor, time_s * factor

    def decode_run(self, decode_contexts: Sequence[int], steps: int) -> float:
        """Seconds of `steps` decode steps of the same requests, each context growing by one per step.

        Closed form of the loop over `step_time`, independent of `steps` in cost.
        """
        return self.decode_run_from_sums(len(decode_contexts), sum(decode_contexts), steps)

    def decode_run_from_sums(self, batch: int, context_sum: int, steps: int) -> float:
        """`decode_run` for a caller that keeps the batch size and the sum of its contexts: O(1), no list
        needed.

        The contexts of step i add up to context_sum + i·batch.
        """
        contexts = steps * context_sum + batch * (steps * (steps - 1) // 2)
        return steps * self._decode_base_s(batch) + self.decode_context_s * contexts

    def ramp(self, of: str) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
        """Knots, slopes and the time at each knot of the ramp over packed tokens ("token") or requests ("request")."""
        if of == "token":
            return self.token_knots, self.token_slopes_s, self._token_base_s
        return self.request_knots, self.request_slopes_s, self._request_base_s

    def _decode_base_s(self, batch: int) -> float:
        return self._batch_s(batch, batch) if batch else 0.0

    def _batch_s(self, tokens: int, requests: int) -> float:
        i = bisect_right(self.token_knots, tokens) - 1
        j = bisect_right(self.request_knots, requests) - 1
        return (
            self.constant_s
            + self._token_base_s[i]
            + self.token_slopes_s[i] * (tokens - self.token_knots[i])
            + self._request_base_s[j]
            + self.request_slopes_s[j] * (requests - self.request_knots[j])
        )


def basis(
    prefill: Sequence[tuple[int, int]],
    decode_contexts: Sequence[int],
    token_knots: tuple[int, ...],
    request_knots: tuple[int, ...],
) -> list[float]:
    """The regressors of a step: what each coefficient is multiplied with.

    In the order constant, token slopes, request slopes, decode context, chunk, pair, prefill context.
    """
    return [
        1.0,
        *_ramp(sum(chunk for chunk, _ in prefill) + len(decode_contexts), token_knots),
        *_ramp(len(prefill) + len(decode_contexts), request_knots),
        float(sum(decode_contexts)),
        float(len(prefill)),
        sum(chunk * (context + 0.5 * (chunk + 1)) for chunk, context in prefill),
        float(sum(context for _, context in prefill)),
    ]


def _ramp(amount: int, knots: tuple[int, ...]) -> list[float]:
    """How much of `amount` falls into each segment; the last segment has no end."""
    ends = [*knots[1:], amount]
    return [float(max(0, min(amount, end) - knot)) for knot, end in zip(knots, ends, strict=True)]
