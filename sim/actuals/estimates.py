"""What was measured, with how sure it is: shares, rates, and ratios of sums over customers, each with 95 % bounds.

- Share of n cases: Jeffreys' posterior Beta(e + ½, n − e + ½) (Brown, Cai and DasGupta 2001).
- Rate of a Poisson count against what was expected: Gamma(e + ½) / expected (the same prior for a rate).
- Ratio of sums Σy/Σx over groups that are unlike each other (customers, days): the linearised variance of a cluster
  sample (Cochran 1977, Sampling Techniques, 6.3), Student's t on the logarithm, because such ratios are above 0.
- Mean of groups: Student's t.

Few customers, wide bounds: none of these counts single requests of one customer as independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Quantile = Callable[[NDArray[np.float64]], NDArray[np.float64]]
LEVEL = 0.95
_TAILS = np.array([(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
_CHECKED = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
_CLOSE = 0.02  # a lognormal stands for a posterior when its quantiles are this near
_ROWS = 21  # of a table of quantiles
_SURE = 1e-9  # a relative spread below this is none


@dataclass(frozen=True)
class Belief:
    """What is known of a number: `quantile` gives the value below which a share of the belief lies."""

    quantile: Quantile

    @property
    def value(self) -> float:
        """Median of the posterior."""
        return float(self.quantile(np.array([0.5]))[0])

    @property
    def bounds(self) -> tuple[float, float]:
        """Central 95 % interval."""
        low, _, high = (float(each) for each in self.quantile(_TAILS))
        return low, high

    def through(self, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Belief:
        """Posterior of an increasing function of the number."""
        return Belief(lambda share: change(self.quantile(share)))

    def text(self, low: float = 0.0, high: float = math.inf) -> str | float:
        """Text for a scenario (`sim.scenario.distributions`), within a key's bounds; a number without uncertainty."""
        low_end, high_end = self.bounds
        if high_end - low_end <= _SURE * abs(self.value):
            return _short(min(max(self.value, low), high))
        shares = np.linspace(0, 1, _ROWS)
        shares[0], shares[-1] = 0.005, 0.995
        table = np.clip(self.quantile(shares), low, high)
        inside = low < low_end and high_end < high
        if inside and low_end > 0:
            sigma = math.log(high_end / low_end) / (2 * 1.959964)
            tried = self.value * np.exp(sigma * _normal(_CHECKED))
            if np.allclose(tried, self.quantile(_CHECKED), rtol=_CLOSE, atol=0):
                within = f" within [{low:g}, {high:g}]" if math.isfinite(high) else ""
                return f"~ lognormal(median={_short(self.value)!r}, sigma={_short(sigma)!r}){within}"
        return f"~ empirical(values={[_short(value) for value in table.tolist()]})"


def share(events: float, cases: float) -> Belief:
    """Share of cases with an event."""
    from scipy.stats import beta

    return Belief(lambda at: np.asarray(beta.ppf(at, events + 0.5, cases - events + 0.5)))


def rate(events: float, expected: float) -> Belief:
    """Events over what was expected (customers, months: any exposure above 0)."""
    from scipy.stats import gamma

    return Belief(lambda at: np.asarray(gamma.ppf(at, events + 0.5) / expected))


def ratio(above: ArrayLike, below: ArrayLike) -> Belief | None:
    """Σabove/Σbelow over groups; None with fewer than two groups, or where it isn't above 0."""
    y, x = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    kept = (x > 0) | (y != 0)
    y, x = y[kept], x[kept]
    if len(x) < 2 or x.sum() <= 0 or y.sum() <= 0:
        return None
    value = float(y.sum() / x.sum())
    count = len(x)
    spread = math.sqrt(count / (count - 1) * float(((y - value * x) ** 2).sum())) / float(x.sum())
    relative = spread / value
    return Belief(lambda at: value * np.exp(relative * _student(at, count - 1)))


def mean(values: ArrayLike) -> Belief | None:
    """Mean of groups; None with fewer than two."""
    data = np.asarray(values, dtype=np.float64)
    if len(data) < 2:
        return None
    middle, spread = float(data.mean()), float(data.std(ddof=1)) / math.sqrt(len(data))
    return Belief(lambda at: middle + spread * _student(at, len(data) - 1))


def drawn(values: ArrayLike) -> Belief:
    """Posterior from samples, such as those of a bootstrap."""
    data = np.asarray(values, dtype=np.float64)
    return Belief(lambda at: np.quantile(data, at))


def _student(share: NDArray[np.float64], freedom: int) -> NDArray[np.float64]:
    from scipy.special import stdtrit

    return np.asarray(stdtrit(freedom, share))


def _normal(share: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import ndtri

    return np.asarray(ndtri(share))


def _short(value: float) -> float:
    return float(f"{value:.5g}")
