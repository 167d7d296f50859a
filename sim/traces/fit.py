"""A generator of requests fitted to a trace: arrivals, lengths by class, and how well both fit.

Models a recorded past so that it can be drawn again, longer, at another rate or with another seed. Arrivals are one
of the processes of `sim.workload.arrivals`, chosen in `sim.traces.fit_arrivals`. Lengths are lognormal (by the mean
and deviation of their logarithms) where that is no further from the trace than 2 % or chance (Kolmogorov-Smirnov, 5
%), else a table of its quantiles; prompt and output are tied by their rank correlation. Each traffic class of the
trace has its own.

What is not carried over: which requests share a prefix, which follow each other in a conversation, and whether
lengths change with the hour.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from engine.errors import InputError
from engine.utils.files import write_atomically
from engine.utils.progress import Progress, no_progress
from sim.traces.fit_arrivals import ArrivalFit, fit_arrivals
from sim.traces.fit_quality import FitQuality, compare, ks_distance, rank_correlation
from sim.workload.arrivals import GammaRenewal, GapTable, MarkovModulated, Process
from sim.workload.generate import generate
from sim.workload.requests import check_requests
from sim.workload.traffic_classes import Quantiles, TrafficClass

_CLOSE_ENOUGH = 0.02  # Kolmogorov-Smirnov distance
_CHANCE = 1.36  # over √n: the distance that chance exceeds in 5 of 100 samples
_MOST_VALUES = 128  # of different lengths that a table holds one by one
_TAILS = (0.001, 0.0025)
_SAMPLES, _SAMPLED_REQUESTS = 8, 400_000  # drawn to see how well the generator fits
_LARGEST_FILE_BYTES = 2_000_000
_MOST_CLASSES = 50


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FittedLengths(_Part):
    """Token lengths of one side: lognormal, or the table of quantiles if there is one."""

    median: float = Field(ge=1)
    mean: float = Field(ge=1)
    quantiles: Quantiles | None = None


class FittedClass(_Part):
    """One class of the trace: its share of requests, lengths, and their rank correlation."""

    name: str
    share: float = Field(gt=0, le=1)
    prompt: FittedLengths
    output: FittedLengths
    rank_correlation: float = Field(ge=-1, le=1)

    def traffic_class(self, source: str) -> TrafficClass:
        """The class as `sim.workload.generate.generate` takes it."""
        return TrafficClass(
            self.name,
            self.prompt.median,
            self.prompt.mean,
            self.output.median,
            self.output.mean,
            source=source,
            prompt_quantiles=self.prompt.quantiles,
            output_quantiles=self.output.quantiles,
            rank_correlation=self.rank_correlation,
        )


class FittedArrivals(_Part):
    """When requests arrive; `bic` holds the criterion by which the process was chosen (lowest), by candidate."""

    rate_rps: float = Field(gt=0)
    kind: Literal["poisson", "gamma", "gaps", "mmpp"]
    cv: float | None = None
    gap_quantiles: tuple[tuple[float, float], ...] | None = None
    rates: tuple[float, ...] | None = None
    dwell_s: tuple[float, ...] | None = None
    jumps: tuple[tuple[float, ...], ...] | None = None
    shape: tuple[float, ...] | None = None
    bic: dict[str, float] = Field(default_factory=dict)

    @property
    def process(self) -> Process | None:
        """The process as `sim.workload.arrivals.arrival_times` takes it; None for Poisson."""
        if self.kind == "gamma":
            return GammaRenewal(math.nan if self.cv is None else self.cv)
        if self.kind == "gaps":
            return GapTable(self.gap_quantiles or ())
        if self.kind == "mmpp":
            return MarkovModulated(self.rates or (), self.dwell_s or (), self.jumps)
        return None


class FittedWorkload(_Part):
    """A generator of requests like those of a trace. Immutable; saves as YAML or JSON."""

    source: str
    requests: int = Field(ge=1)
    duration_s: float = Field(gt=0)
    arrivals: FittedArrivals
    classes: tuple[FittedClass, ...] = Field(min_length=1)
    quality: FitQuality | None = None

    @model_validator(mode="after")
    def _can_be_drawn(self) -> FittedWorkload:
        _ = self.arrivals.process, self._classes  # these check themselves
        if len(self._classes) < len(self.classes):
            raise ValueError("classes: found two of one name")
        return self

    @property
    def _classes(self) -> dict[str, TrafficClass]:
        return {each.name: each.traffic_class(self.source) for each in self.classes}

    def generate(
        self,
        *,
        requests: int | None = None,
        duration_s: float | None = None,
        rate_rps: float | None = None,
        rng: np.random.Generator | int = 0,
        max_context_tokens: int | None = None,
        stratified: bool = False,
    ) -> pd.DataFrame:
        """Draw requests, as `sim.workload.generate.generate` does; without a rate at the trace's.

        At another rate bursts come as often and last as long as in the trace, with more or fewer requests in them.
        """
        shape = self.arrivals.shape
        return generate(
            {each.name: each.share for each in self.classes},
            self.arrivals.rate_rps if rate_rps is None else rate_rps,
            requests=requests,
            duration_s=duration_s,
            rng=rng,
            max_context_tokens=max_context_tokens,
            stratified=stratified,
            shape=None if shape is None else np.array(shape, dtype=np.float64),
            process=self.arrivals.process,
            classes=self._classes,
        )

    def save(self, path: str | Path) -> None:
        """Write as JSON if the name ends so, else as YAML; whole or not at all."""
        content = self.model_dump(mode="json", exclude_none=True)
        if Path(path).suffix == ".json":
            write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
            return
        stream = io.StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = None  # rows of numbers stay on their line
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.dump(content, stream)
        write_atomically(path, stream.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> FittedWorkload:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, neither YAML nor JSON, or a wrong key or value (names file and key).
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file; make one with `flywheel fit TRACE --out {path}`")
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise InputError(
                f"{path}: {path.stat().st_size:,} bytes, allowed: at most {_LARGEST_FILE_BYTES:,}"
            )
        try:
            content = YAML(typ="safe", pure=True).load(path.read_bytes().decode("utf-8-sig"))
        except (YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: not YAML or JSON: {' '.join(str(error).split())[:200]}") from None
        if not isinstance(content, dict):
            raise InputError(f"{path}: found no mapping of keys to values, allowed is a fitted workload")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InputError(f"{path}: {_first_mistake(error)}") from None
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def fit(requests: pd.DataFrame, source: str = "requests", progress: Progress | None = None) -> FittedWorkload:
    """Fit a generator to requests (as `read_trace` gives them) and compare what it draws with them.

    Args:
        requests: arrived_s, prompt_tokens, output_tokens; traffic_class where there are several.
        source: where they come from, kept in the result.
        progress: called with (fraction done, what is being done).

    Raises:
        InputError: bad requests, fewer than two different times, rows that wait for others (their arrivals depend on
            the fleet, not on a process), or too many classes.
    """
    checked = check_requests(requests)
    if "after" in checked and (checked["after"] >= 0).any():
        row = int(np.argmax(checked["after"].to_numpy() >= 0))
        raise InputError(f"{source}: row {row}: waits for another request; only free arrivals can be fitted")
    report = progress or no_progress
    arrivals = fit_arrivals(
        checked["arrived_s"].to_numpy(), lambda part, what: report(0.8 * part, f"arrivals: {what}")
    )
    report(0.8, "lengths")
    fitted = FittedWorkload(
        source=source,
        requests=len(checked),
        duration_s=float(checked["arrived_s"].iloc[-1] - checked["arrived_s"].iloc[0]),
        arrivals=_as_fields(arrivals),
        classes=_fit_classes(checked, source),
    )
    samples = max(1, min(_SAMPLES, _SAMPLED_REQUESTS // len(checked)))
    each = max(2, min(len(checked), _SAMPLED_REQUESTS))
    report(0.9, "comparing")
    drawn = [fitted.generate(requests=each, rng=seed) for seed in range(samples)]
    return fitted.model_copy(update={"quality": compare(checked, drawn)})


def _as_fields(found: ArrivalFit) -> FittedArrivals:
    process = found.process
    common: dict[str, Any] = {"rate_rps": found.rate_rps, "shape": found.shape, "bic": found.bic}
    if isinstance(process, GammaRenewal):
        return FittedArrivals(kind="gamma", cv=process.cv, **common)
    if isinstance(process, GapTable):
        return FittedArrivals(kind="gaps", gap_quantiles=process.quantiles, **common)
    if isinstance(process, MarkovModulated):
        return FittedArrivals(
            kind="mmpp", rates=process.rates, dwell_s=process.dwell_s, jumps=process.jumps, **common
        )
    return FittedArrivals(kind="poisson", **common)


def _fit_classes(requests: pd.DataFrame, source: str) -> tuple[FittedClass, ...]:
    if "traffic_class" not in requests:
        return (_fit_class("requests", 1.0, requests),)
    names = requests["traffic_class"].astype(str)
    if names.nunique() > _MOST_CLASSES:
        raise InputError(
            f"{source}: traffic_class: found {names.nunique()} classes, allowed are {_MOST_CLASSES}"
        )
    return tuple(
        _fit_class(str(name), len(part) / len(requests), part) for name, part in requests.groupby(names)
    )


def _fit_class(name: str, share: float, requests: pd.DataFrame) -> FittedClass:
    correlation = rank_correlation(requests)
    # What chance gives of two lengths that have nothing to do with each other.
    if abs(correlation) < 2 / math.sqrt(len(requests)):
        correlation = 0.0
    return FittedClass(
        name=name,
        share=share,
        prompt=_fit_lengths(requests["prompt_tokens"].to_numpy(dtype=np.int64)),
        output=_fit_lengths(requests["output_tokens"].to_numpy(dtype=np.int64)),
        rank_correlation=correlation,
    )


def _fit_lengths(tokens: NDArray[np.int64]) -> FittedLengths:
    logs = np.log(tokens)
    middle, spread = float(logs.mean()), float(logs.std())
    # The distance of the whole numbers that are drawn, not of the curve behind them.
    grid = (np.arange(10_000) + 0.5) / 10_000
    from scipy.special import ndtri

    drawn = np.maximum(1, np.rint(np.exp(middle + spread * ndtri(grid))))
    if ks_distance(tokens, drawn) <= max(_CLOSE_ENOUGH, _CHANCE / math.sqrt(tokens.size)):
        return FittedLengths(median=math.exp(middle), mean=math.exp(middle + spread**2 / 2))
    return FittedLengths(
        median=float(np.median(tokens)), mean=float(tokens.mean()), quantiles=_quantile_table(tokens)
    )


def _quantile_table(tokens: NDArray[np.int64]) -> Quantiles:
    """Rows (share, tokens): each length by itself if there are few, else about 260 quantiles, denser in the tails."""
    values, counts = np.unique(tokens, return_counts=True)
    if values.size <= _MOST_VALUES:
        upto = np.cumsum(counts) / tokens.size
        # Two rows a hair apart make a step; a straight line would invent lengths between.
        edges = np.minimum(upto[:-1] + 1e-9, (upto[:-1] + upto[1:]) / 2)
        shares = np.concatenate([[0.0], np.column_stack([upto[:-1], edges]).ravel(), [1.0]])
        tokens_at = np.repeat(values, 2)
    else:
        shares = np.unique(np.concatenate([np.linspace(0, 1, 251), _TAILS, 1 - np.array(_TAILS)]))
        tokens_at = np.quantile(tokens, shares, method="inverted_cdf")
    return tuple(zip(map(float, shares), map(float, tokens_at), strict=True))


def _first_mistake(error: ValidationError) -> str:
    first: Any = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    found = repr(first["input"])
    found = found if len(found) <= 60 else found[:57] + "..."
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}, found {found}" if where else message
