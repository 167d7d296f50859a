"""Assumptions that move together: a Gaussian copula with the rank correlations that a scenario asks for.

Spearman's rank correlation ρ between two quantities is kept by any rising change of scale. Drawn from normal numbers
with correlation r through their quantile functions, ρ = 6/π · asin(r/2); so r = 2 sin(πρ/6) (Kruskal 1958). Exact
for continuous distributions; values in steps (whole numbers, discrete ones) share ranks, which weakens it a little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError

FloatArray = NDArray[np.float64]
Pair = tuple[str, str, float]  # two keys, and Spearman's ρ between them
_TOLERANCE = 1e-10


def normal_correlation(keys: Sequence[str], pairs: Iterable[Pair]) -> FloatArray:
    """Correlation matrix of the normal numbers behind some keys [keys, keys]; pairs not named are independent.

    Raises:
        InputError: ranks that contradict each other, as no quantities can have them all.
    """
    place = {key: index for index, key in enumerate(keys)}
    matrix = np.eye(len(keys))
    named = list(pairs)
    for one, other, rank in named:
        matrix[place[one], place[other]] = matrix[place[other], place[one]] = 2 * math.sin(math.pi * rank / 6)
    values, vectors = np.linalg.eigh(matrix)
    if len(keys) and values[0] < -_TOLERANCE:
        # The keys that carry the impossible direction are the ones to look at.
        guilty = {key for key, weight in zip(keys, vectors[:, 0], strict=True) if abs(weight) > 0.1}
        shown = "; ".join(f"{a} and {b} {r:g}" for a, b, r in named if a in guilty and b in guilty)
        raise InputError(
            f"found ranks that no quantities can have together ({shown}), "
            f"allowed: a positive semidefinite matrix (its smallest eigenvalue is {values[0]:.2g})"
        )
    return matrix


def factor(matrix: FloatArray) -> FloatArray:
    """Lower triangular L with L Lᵀ = matrix, also where the matrix is singular (a rank correlation of ±1).

    Triangular, so that what is drawn for the first keys doesn't depend on those that come after them.
    """
    size = len(matrix)
    lower = np.zeros((size, size))
    for column in range(size):
        rest = matrix[column:, column] - lower[column:, :column] @ lower[column, :column]
        if rest[0] > _TOLERANCE:
            lower[column:, column] = rest / math.sqrt(rest[0])
    return lower


def correlate(shares: FloatArray, matrix: FloatArray) -> FloatArray:
    """Independent shares of (0, 1) [runs, keys] with the given correlation; each column stays uniform."""
    from scipy.special import ndtr, ndtri

    if np.array_equal(matrix, np.eye(len(matrix))):
        return shares
    return np.asarray(ndtr(ndtri(shares) @ factor(matrix).T))
