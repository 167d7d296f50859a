"""What a training run costs and how good the model gets: compute, hours, and the scaling law of the loss.

The loss of a language model in nats per token as a function of its parameters N and its training tokens D:

    L(N, D) = E + A / N^alpha + B / D^beta          (Hoffmann et al. 2022, "Training compute-optimal large
                                                    language models", arXiv:2203.15556, approach 3)

and the compute of a training run, C = 6·N·D FLOP: 2·N forward and 4·N backward per token (Kaplan et al. 2020,
arXiv:2001.08361). The default constants are those of the replication by Besiroglu et al. 2024,
arXiv:2404.10102, who found the published fit of Hoffmann et al. not to be reproducible from its own data.

A law that was measured here (`engine.training.scaling_ladder`, `flywheel scaling`) comes from a file by `load_law`,
with the draws of its bootstrap, so that what it predicts has an interval.

Nothing here imports torch: the simulator of the company uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError
from engine.utils.json_file import build, read_json_object

FloatArray = NDArray[np.float64]

FORWARD_FLOP = 2  # per parameter and token: one multiplication and one addition
TRAINING_FLOP = 6  # forward, and twice that for the gradients of activations and weights
RECOMPUTED_TRAINING_FLOP = 8  # the forward pass runs once more when activations are recomputed
CONSTANTS = ("E", "A", "B", "alpha", "beta")


@dataclass(frozen=True)
class ScalingConstants:
    """Constants of L(N, D) = E + A / N^alpha + B / D^beta, in nats per token.

    `E` is the loss that no model gets below (the entropy of the text); `source` says who fitted them to what.
    `draws` are other constants (E, A, B, alpha, beta) that the same measurements allow, each as likely as the next:
    a bootstrap sample. It is empty where only the constants were published.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    source: str = ""
    draws: tuple[tuple[float, ...], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name in CONSTANTS:
            value = getattr(self, name)
            lowest_allowed = value > 0 or (name == "E" and value == 0)
            if not (np.isfinite(value) and lowest_allowed):
                raise InputError(f"scaling law: {name} is {value!r}; allowed is a positive number")
        for e, a, b, alpha, beta in self.draws:
            ScalingConstants(e, a, b, alpha, beta)

    @property
    def covariance(self) -> FloatArray | None:
        """Covariance [5, 5] of (E, log A, log B, alpha, beta) over the draws; None with fewer than two."""
        if len(self.draws) < 2:
            return None
        columns = np.asarray(self.draws)
        columns[:, 1:3] = np.log(columns[:, 1:3])
        return np.asarray(np.cov(columns, rowvar=False))


HOFFMANN_2022 = ScalingConstants(
    E=1.69,
    A=406.4,
    B=410.7,
    alpha=0.34,
    beta=0.28,
    source="Hoffmann et al. 2022, arXiv:2203.15556, approach 3",
)
BESIROGLU_2024 = ScalingConstants(
    E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658, source="Besiroglu et al. 2024, arXiv:2404.10102"
)


@dataclass(frozen=True)
class ScalingFit:
    """Fitted constants and how well they hold on their points (errors are relative to the loss)."""

    constants: ScalingConstants
    points: int
    median_relative_error: float
    max_relative_error: float
    huber_loss: float


@overload
def loss(parameters: float, tokens: float, constants: ScalingConstants = BESIROGLU_2024) -> float: ...
@overload
def loss(
    parameters: FloatArray, tokens: float | FloatArray, constants: ScalingConstants = BESIROGLU_2024
) -> FloatArray: ...
@overload
def loss(
    parameters: float, tokens: FloatArray, constants: ScalingConstants = BESIROGLU_2024
) -> FloatArray: ...


def loss(
    parameters: float | FloatArray, tokens: float | FloatArray, constants: ScalingConstants = BESIROGLU_2024
) -> float | FloatArray:
    """Expected loss (nats per token) of a model of `parameters` weights after `tokens` training tokens.

    Numbers or arrays that broadcast; a number when both are numbers.

    Raises:
        InputError: parameters or tokens are not positive.
    """
    n, d = _positive(parameters, "parameters"), _positive(tokens, "tokens")
    value = constants.E + constants.A * n**-constants.alpha + constants.B * d**-constants.beta
    return float(value) if value.ndim == 0 else value


def loss_interval(
    parameters: float, tokens: float, constants: ScalingConstants, level: float = 0.9
) -> tuple[float, float]:
    """Between which losses the law lies at this size with probability `level`, by its draws.

    It shows how well the measurements determine the law, not whether the law holds so far from them.

    Raises:
        InputError: the law has no draws, a number is not positive, or `level` is not between 0 and 1.
    """
    if not constants.draws:
        raise InputError(
            "scaling law: no interval is known; only a measured law (`flywheel scaling`) has draws"
        )
    if not 0 < level < 1:
        raise InputError(f"level is {level!r}; allowed is between 0 and 1")
    n, d = _positive(parameters, "parameters"), _positive(tokens, "tokens")
    e, a, b, alpha, beta = np.asarray(constants.draws).T
    low, high = np.quantile(e + a * n**-alpha + b * d**-beta, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def load_law(path: str | Path) -> ScalingConstants:
    """The law in a file of `flywheel scaling`: an object with `constants` (E, A, B, alpha, beta) and maybe `draws`.

    Raises:
        InputError: no such file, or not such a law; the message names file and key.
    """
    raw = read_json_object(path)
    if not isinstance(raw.get("constants"), dict):
        raise InputError(f"{path}: constants: missing; allowed is an object with {', '.join(CONSTANTS)}")
    draws = raw.get("draws", [])
    for index, draw in enumerate(draws if isinstance(draws, list) else []):
        if not isinstance(draw, list) or len(draw) != len(CONSTANTS):
            raise InputError(f"{path}: draws[{index}]: allowed is a list of {', '.join(CONSTANTS)}")
    law = build(ScalingConstants, {**raw["constants"], "draws": draws}, str(path), "constants")
    return law if law.source else replace(law, source=f"measured: {path}")


def training_flop(parameters: float, tokens: float, *, recompute_activations: bool = False) -> float:
    """FLOP to train `parameters` (active per token, in a mixture of experts) on `tokens` tokens: 6·N·D.

    With `recompute_activations` 8·N·D: what the hardware really does when activations are not kept but
    computed again for the backward pass (Narayanan et al. 2021, arXiv:2104.04473, less its attention term).
    Throughputs reported by Megatron, those of BLOOM-176B for one, count it so.
    """
    per_parameter = RECOMPUTED_TRAINING_FLOP if recompute_activations else TRAINING_FLOP
    return float(per_parameter * _positive(parameters, "parameters") * _positive(tokens, "tokens"))


def training_hours(flop: float, accelerators: float, peak_flops: float, mfu: float) -> float:
    """Wall-clock hours of `flop` on `accelerators` devices of `peak_flops` FLOP/s each, at utilisation `mfu`.

    Accelerator-hours are this times `accelerators`. Failures and restarts are not in it.

    Raises:
        InputError: a number is not positive, or `mfu` is above 1 (it is a fraction, not percent).
    """
    _positive(flop, "flop"), _positive(accelerators, "accelerators"), _positive(peak_flops, "peak_flops")
    if not 0 < mfu <= 1:
        raise InputError(f"mfu is {mfu!r}; allowed is a fraction above 0 and at most 1")
    return flop / (accelerators * peak_flops * mfu) / 3600


def compute_optimal(flop: float, constants: ScalingConstants = BESIROGLU_2024) -> tuple[float, float]:
    """Parameters and tokens (N, D) of the lowest loss at 6·N·D = `flop` (Hoffmann et al. 2022, eq. 4).

    N = G·(C/6)^(beta/(alpha+beta)), D = (C/6)/N with G = (alpha·A / (beta·B))^(1/(alpha+beta)).
    """
    budget = float(_positive(flop, "flop")) / TRAINING_FLOP
    c = constants
    exponents = c.alpha + c.beta
    parameters = (c.alpha * c.A / (c.beta * c.B)) ** (1 / exponents) * budget ** (c.beta / exponents)
    return parameters, budget / parameters


def fit(
    points: Sequence[tuple[float, float, float]], *, huber_delta: float = 1e-3, source: str = "fitted"
) -> ScalingFit:
    """Fit E, A, B, alpha, beta to measured (parameters, tokens, loss) points.

    As in approach 3 of Hoffmann et al.: the Huber loss of the residuals of log L, from many starts, with
    log L = logsumexp(log E, log A − alpha·log N, log B − beta·log D), best of all starts. The minimiser is a
    trust-region least-squares method with the exact Jacobian rather than L-BFGS: the objective is nearly flat
    along ridges where L-BFGS stops early.

    Raises:
        InputError: fewer than five points, fewer than three sizes of either kind (the law would not be
            determined), or a value that is not positive.
    """
    if len(points) < 5:
        raise InputError(f"scaling law: {len(points)} points; five constants need at least 5")
    columns = _positive(np.asarray(points, dtype=np.float64), "a point (parameters, tokens, loss)")
    n, d, measured = columns.T
    for name, column in (("parameters", n), ("tokens", d)):
        if np.unique(column).size < 3:
            raise InputError(f"scaling law: {np.unique(column).size} different {name}; at least 3 are needed")
    best = _best_of_many_starts(np.log(n), np.log(d), np.log(measured), huber_delta)
    log_e, log_a, log_b, alpha, beta = (float(value) for value in best.x)
    constants = ScalingConstants(
        E=float(np.exp(log_e)),
        A=float(np.exp(log_a)),
        B=float(np.exp(log_b)),
        alpha=alpha,
        beta=beta,
        source=source,
    )
    errors = np.abs(loss(n, d, constants) / measured - 1)
    return ScalingFit(
        constants=constants,
        points=len(points),
        median_relative_error=float(np.median(errors)),
        max_relative_error=float(errors.max()),
        huber_loss=float(best.cost),
    )


def _best_of_many_starts(log_n: FloatArray, log_d: FloatArray, log_loss: FloatArray, delta: float) -> Any:
    """Scipy's result of the best start; x = (log E, log A, log B, alpha, beta)."""
    lowest, best = float(log_loss.min()), None
    # A start names the exponents and how much of the lowest loss is irreducible; log A and log B then follow
    # from the idea that the two reducible terms share what is left at the geometric middle of the data.
    for alpha, beta, irreducible in product((0.15, 0.35, 0.6), (0.15, 0.35, 0.6), (0.3, 0.6, 0.9)):
        log_e = lowest + np.log(irreducible)
        log_half = np.log(max(np.exp(np.median(log_loss)) - np.exp(log_e), 1e-6) / 2)
        start = [log_e, log_half + alpha * np.median(log_n), log_half + beta * np.median(log_d), alpha, beta]
        found = minimise(log_n, log_d, log_loss, delta, start)
        if best is None or found.cost < best.cost:
            best = found
    return best


def minimise(
    log_n: FloatArray,
    log_d: FloatArray,
    log_loss: FloatArray,
    delta: float,
    start: Sequence[float],
    tolerance: float = 1e-12,
) -> Any:
    """Scipy's least-squares result from one start; x = (log E, log A, log B, alpha, beta), `cost` the Huber loss."""
    from scipy.optimize import least_squares

    def terms(x: FloatArray) -> FloatArray:
        return np.stack([np.full_like(log_n, x[0]), x[1] - x[3] * log_n, x[2] - x[4] * log_d])

    def residuals(x: FloatArray) -> FloatArray:
        return np.asarray(np.logaddexp.reduce(terms(x), axis=0) - log_loss)

    def jacobian(x: FloatArray) -> FloatArray:
        exponents = terms(x)
        share = np.exp(exponents - np.logaddexp.reduce(exponents, axis=0))  # of each term in the loss
        return np.stack([*share, -share[1] * log_n, -share[2] * log_d], axis=1)

    return least_squares(
        residuals,
        start,
        jac=jacobian,
        loss="huber",
        f_scale=delta,
        x_scale="jac",
        bounds=([-20, -20, -20, 1e-3, 1e-3], [20, 60, 60, 2, 2]),
        xtol=tolerance,
        ftol=tolerance,
        gtol=tolerance,
        max_nfev=500,
    )


def _positive(value: float | FloatArray, name: str) -> FloatArray:
    array = np.asarray(value, dtype=np.float64)
    bad = ~(np.isfinite(array) & (array > 0))
    if bad.any():
        found = np.atleast_1d(array)[np.atleast_1d(bad)][0]
        raise InputError(f"{name} is {found:g}; allowed is a positive number")
    return array
