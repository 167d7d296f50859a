"""What is not known exactly: a distribution in place of a value, as it is written in a scenario.

    price_usd_per_mtok_output: ~ lognormal(median=0.8, sigma=0.25)
    churn_per_month: ~ normal(0.03, 0.01) within [0.005, 0.1]

Numbers stand by name or in this order:

    normal(mean, sd)            lognormal(median, sigma)     sigma: standard deviation of the logarithm
    uniform(low, high)          loguniform(low, high)
    triangular(low, mode, high)
    pert(low, mode, high)       beta distribution with mean (low + 4 mode + high) / 6 (Malcolm et al. 1959)
    discrete(values, weights)   lists; without weights all are equally likely
    empirical(values)           a list, or a CSV file beside the scenario: read linearly between its ordered values

Every one is a quantile function: a share u of (0, 1) gives a value, so that one u means the same quantile whatever the
distribution is. `within` cuts both ends off (the rest is scaled up). Shares are kept within 1e-12 of 0 and 1, so the
range that a distribution can reach is finite. A run without another value takes the median.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import InputError

FloatArray = NDArray[np.float64]
MARK = "~"
SHARE_MIN = 1e-12  # a draw further out than 1 in 10¹² is taken as that far out
_LEAST_MASS = 1e-6  # of a distribution that `within` leaves
_MOST_VALUES = 10_000
_PARAMETERS = {
    "normal": ("mean", "sd"),
    "lognormal": ("median", "sigma"),
    "uniform": ("low", "high"),
    "loguniform": ("low", "high"),
    "triangular": ("low", "mode", "high"),
    "pert": ("low", "mode", "high"),
    "discrete": ("values", "weights"),
    "empirical": ("values",),
}
_LISTS = ("values", "weights")
_TEXT = re.compile(
    r"~\s*(?P<kind>[a-z]+)\s*\((?P<inside>.*)\)\s*(?:within\s*\[(?P<low>[^,\]]+),(?P<high>[^,\]]+)\]\s*)?",
    re.DOTALL,
)
_ARGUMENT = re.compile(
    r"""\s*(?:(?P<name>[a-z]+)\s*=\s*)?(?P<value>\[[^\]]*\]|"[^"]*"|'[^']*'|[^,\[\]"'=]+?)\s*(?:,|$)""",
    re.DOTALL,
)


@dataclass(frozen=True)
class Distribution:
    """A distribution of a number: its kind, its parameters in order, and where it is cut off."""

    kind: str
    parameters: tuple[float | tuple[float, ...], ...]
    low: float = -math.inf
    high: float = math.inf
    whole: bool = False  # of a whole-number key: the nearest one is taken

    def quantile(self, share: ArrayLike) -> FloatArray:
        """The value below which a share of all lies (array of any shape, of shares from 0 to 1)."""
        shares = np.clip(np.asarray(share, dtype=np.float64), SHARE_MIN, 1 - SHARE_MIN)
        if self.kind not in _STEPPED and (math.isfinite(self.low) or math.isfinite(self.high)):
            below, above = _CDF[self.kind](np.array([self.low, self.high]), *self.parameters)
            shares = below + shares * (above - below)
        values = np.clip(_QUANTILE[self.kind](shares, *self._parameters_within()), self.low, self.high)
        return np.asarray(np.rint(values) if self.whole else values)

    @property
    def median(self) -> float:
        """The median: the value of a run without another one."""
        value = float(self.quantile(0.5))
        return int(value) if self.whole else value

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value that can be drawn."""
        low, high = (float(value) for value in self.quantile([0.0, 1.0]))
        return low, high

    @property
    def text(self) -> str:
        """Text of the distribution in a scenario file, with every parameter named."""
        names = _PARAMETERS[self.kind]
        words = (
            f"{name}={list(value) if isinstance(value, tuple) else value!r}"
            for name, value in zip(names, self.parameters, strict=False)
        )
        cut = "" if (self.low, self.high) == (-math.inf, math.inf) else f" within [{self.low}, {self.high}]"
        return f"{MARK} {self.kind}({', '.join(words)}){cut}"

    def __str__(self) -> str:
        return self.text.removeprefix(f"{MARK} ")

    def _parameters_within(self) -> tuple[Any, ...]:
        """The parameters; of listed values only those inside the cut."""
        if self.kind not in _STEPPED:
            return self.parameters
        values = np.array(self.parameters[0])
        inside = (values >= self.low) & (values <= self.high)
        return tuple(np.array(parameter)[inside] for parameter in self.parameters)


def is_distribution(value: Any) -> bool:
    """Whether a value of a scenario is the text of a distribution."""
    return isinstance(value, str) and value.lstrip().startswith(MARK)


def parse_distribution(text: str, *, whole: bool = False, folder: Path | None = None) -> Distribution:
    """Read the text of a distribution.

    Args:
        text: "~ kind(…)" or "~ kind(…) within [low, high]".
        whole: the value is a whole number.
        folder: where a file that it names lies; None allows no file.

    Raises:
        InputError: not of that form, or parameters that no such distribution has (says what is allowed).
    """
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        raise InputError(
            f"found {_short(text)}, allowed: for example ~ lognormal(median=2, sigma=0.3), "
            "perhaps with within [1, 5] behind it"
        )
    kind = found["kind"]
    if kind not in _PARAMETERS:
        raise InputError(f"found the distribution {kind!r}, allowed: {', '.join(_PARAMETERS)}")
    given = _arguments(kind, found["inside"], folder)
    low, high = (
        (_number(found["low"], "within"), _number(found["high"], "within"))
        if found["low"]
        else (-math.inf, math.inf)
    )
    if not low < high:
        raise InputError(f"found within [{low:g}, {high:g}], allowed: the lower end first")
    if kind == "discrete" and "weights" not in given:
        given["weights"] = (1.0,) * len(given["values"])
    made = Distribution(kind, tuple(given[name] for name in _PARAMETERS[kind]), low, high, whole)
    _check(made)
    return made


def _arguments(kind: str, inside: str, folder: Path | None) -> dict[str, Any]:
    """{parameter: number or tuple of numbers} of the text between the brackets."""
    names = _PARAMETERS[kind]
    form = f"{kind}({', '.join(names)})"
    given: dict[str, Any] = {}
    position = 0
    while position < len(inside) and inside[position:].strip():
        found = _ARGUMENT.match(inside, position)
        if found is None:
            raise InputError(f"found {kind}({_short(inside)}), allowed: {form}")
        name = found["name"] or (names[len(given)] if len(given) < len(names) else "")
        if name not in names or name in given:
            raise InputError(f"found {kind}({_short(inside)}), allowed: {form}")
        given[name] = (
            _values(found["value"], name, folder) if name in _LISTS else _number(found["value"], name)
        )
        position = found.end()
    missing = [name for name in names if name not in given and name != "weights"]
    if missing:
        raise InputError(f"found {kind}({_short(inside)}) without {missing[0]}, allowed: {form}")
    return given


def _values(text: str, name: str, folder: Path | None) -> tuple[float, ...]:
    if text.startswith("["):
        inside = text[1:-1].strip()
        return tuple(_number(word, name) for word in inside.split(",")) if inside else ()
    if name != "values":
        raise InputError(f"{name}: found {_short(text)}, allowed: a list in square brackets")
    return _values_of_file(text.strip("\"' "), folder)


def _values_of_file(name: str, folder: Path | None) -> tuple[float, ...]:
    """The numbers of a file's only column; a head is skipped."""
    if folder is None:
        raise InputError(f"found the file {_short(name)}, allowed here: a list in square brackets")
    file = folder / name
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"found the file {_short(str(file))}, which can't be read, allowed: a CSV file"
        ) from None
    numbers = []
    for index, line in enumerate(lines):
        try:
            numbers.append(float(line))
        except ValueError:
            if index == 0 or not line:
                continue
            raise InputError(
                f"{file}: line {index + 1}: found {_short(line)}, allowed: one number in each line"
            ) from None
    return tuple(numbers)


def _check(made: Distribution) -> None:
    """Refuse parameters that no such distribution has."""
    kind, parameters = made.kind, made.parameters
    names = _PARAMETERS[kind]
    if kind in _STEPPED:
        _check_list(made)
        return
    numbers = ", ".join(f"{name}={value:g}" for name, value in zip(names, parameters, strict=True))
    for holds, allowed in _RULES[kind](*parameters):
        if not holds:
            raise InputError(f"found {kind}({numbers}), allowed: {allowed}")
    below, above = _CDF[kind](np.array([made.low, made.high]), *parameters)
    if above - below < _LEAST_MASS:
        raise InputError(
            f"found within [{made.low:g}, {made.high:g}], which leaves nothing of {kind}({numbers}), "
            "allowed: a range that it reaches"
        )


def _check_list(made: Distribution) -> None:
    values = made.parameters[0]
    assert isinstance(values, tuple)
    least = 2 if made.kind == "empirical" else 1
    if not least <= len(values) <= _MOST_VALUES:
        raise InputError(
            f"{made.kind}: values: found {len(values):,}, allowed: {least} to {_MOST_VALUES:,} numbers"
        )
    if made.kind == "discrete":
        weights = made.parameters[1]
        assert isinstance(weights, tuple)
        if len(weights) != len(values) or min(weights) < 0 or not sum(weights) > 0:
            raise InputError(
                f"discrete: weights: found {_short(str(list(weights)))}, allowed: one for each value, none below 0"
            )
    inside = made._parameters_within()
    if len(inside[0]) < least or (made.kind == "discrete" and not inside[1].sum() > 0):
        raise InputError(
            f"found within [{made.low:g}, {made.high:g}], allowed: a range with values of {made.kind}"
        )


def _number(text: str, name: str) -> float:
    try:
        number = float(text.strip())
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name}: found {_short(text.strip())}, allowed: a number")
    return number


def _short(text: str, length: int = 60) -> str:
    """A text for a message, in one line."""
    words = " ".join(text.split())
    return repr(words if len(words) <= length else f"{words[: length - 1]}…")


def _ndtri(share: FloatArray) -> FloatArray:
    from scipy.special import ndtri

    return np.asarray(ndtri(share))


def _ndtr(z: FloatArray) -> FloatArray:
    from scipy.special import ndtr

    return np.asarray(ndtr(z))


def _triangular_quantile(share: FloatArray, low: float, mode: float, high: float) -> FloatArray:
    span = high - low
    rising = low + np.sqrt(share * span * (mode - low))
    falling = high - np.sqrt((1 - share) * span * (high - mode))
    return np.where(share * span < mode - low, rising, falling)


def _triangular_cdf(x: FloatArray, low: float, mode: float, high: float) -> FloatArray:
    inside = np.clip(x, low, high)
    span = high - low
    with np.errstate(divide="ignore", invalid="ignore"):
        rising = (inside - low) ** 2 / (span * (mode - low))
        falling = 1 - (high - inside) ** 2 / (span * (high - mode))
    return np.where(inside < mode, rising, np.where(high > mode, falling, 1.0))


def _pert_shape(low: float, mode: float, high: float) -> tuple[float, float]:
    return 1 + 4 * (mode - low) / (high - low), 1 + 4 * (high - mode) / (high - low)


def _pert_quantile(share: FloatArray, low: float, mode: float, high: float) -> FloatArray:
    from scipy.special import betaincinv

    return np.asarray(low + (high - low) * betaincinv(*_pert_shape(low, mode, high), share))


def _pert_cdf(x: FloatArray, low: float, mode: float, high: float) -> FloatArray:
    from scipy.special import betainc

    return np.asarray(betainc(*_pert_shape(low, mode, high), (np.clip(x, low, high) - low) / (high - low)))


def _discrete_quantile(share: FloatArray, values: FloatArray, weights: FloatArray) -> FloatArray:
    """The smallest value that at least this share does not exceed."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    # A share on a boundary belongs to the value below it; rounding of the sum must not move it up.
    chosen = np.searchsorted(below / below[-1], share - 1e-15, side="left")
    return values[order][np.minimum(chosen, len(values) - 1)]


def _empirical_quantile(share: FloatArray, values: FloatArray) -> FloatArray:
    return np.quantile(values, share)


_STEPPED = ("discrete", "empirical")  # given by their values
_QUANTILE: dict[str, Callable[..., FloatArray]] = {
    "normal": lambda share, mean, sd: mean + sd * _ndtri(share),
    "lognormal": lambda share, median, sigma: median * np.exp(sigma * _ndtri(share)),
    "uniform": lambda share, low, high: low + (high - low) * share,
    "loguniform": lambda share, low, high: low * (high / low) ** share,
    "triangular": _triangular_quantile,
    "pert": _pert_quantile,
    "discrete": _discrete_quantile,
    "empirical": _empirical_quantile,
}


_RULES: dict[str, Callable[..., list[tuple[bool, str]]]] = {
    "normal": lambda mean, sd: [(sd > 0, "sd > 0")],
    "lognormal": lambda median, sigma: [
        (median > 0, "median > 0"),
        (0 < sigma <= 20, "sigma > 0, at most 20"),
    ],
    "uniform": lambda low, high: [(low < high, "low < high")],
    "loguniform": lambda low, high: [(0 < low < high, "0 < low < high")],
    "triangular": lambda low, mode, high: [(low <= mode <= high and low < high, "low ≤ mode ≤ high")],
    "pert": lambda low, mode, high: [(low <= mode <= high and low < high, "low ≤ mode ≤ high")],
}


def _log(x: FloatArray) -> FloatArray:
    return np.log(np.maximum(x, np.finfo(np.float64).tiny))


_CDF: dict[str, Callable[..., FloatArray]] = {
    "normal": lambda x, mean, sd: _ndtr((x - mean) / sd),
    "lognormal": lambda x, median, sigma: _ndtr((_log(x) - math.log(median)) / sigma),
    "uniform": lambda x, low, high: np.clip((x - low) / (high - low), 0, 1),
    "loguniform": lambda x, low, high: np.clip(
        (_log(x) - math.log(low)) / (math.log(high) - math.log(low)), 0, 1
    ),
    "triangular": _triangular_cdf,
    "pert": _pert_cdf,
}
