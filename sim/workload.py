"""Requests that arrive at a serving fleet: when, how long their prompts are, how much they ask for.

Arrivals are Poisson within the hour (many independent users); the weekly shape bends the rate over the hours.
Token lengths are lognormal by class of traffic, given by median and mean: sigma = sqrt(2·ln(mean/median)).
A recorded trace (Azure 2023, or our own three columns) can be replayed instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError

HOURS_PER_WEEK = 168
COLUMNS = ("arrived_s", "prompt_tokens", "output_tokens")
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True)
class TrafficClass:
    """Token lengths of one kind of use, per request."""

    name: str
    prompt_tokens_median: float
    prompt_tokens_mean: float
    output_tokens_median: float
    output_tokens_mean: float
    source: str


_AZURE = "Azure LLM inference traces 2023 (CC-BY 4.0), medians and means"
TRAFFIC_CLASSES: dict[str, TrafficClass] = {
    kind.name: kind
    for kind in (
        TrafficClass("chat", 1020, 1155, 129, 211, f"{_AZURE}, conversation"),
        TrafficClass("code", 1469, 2048, 13, 28, f"{_AZURE}, code"),
        TrafficClass("short", 90, 120, 60, 80, "assumed: classification, extraction, one-line answers"),
        TrafficClass("rag", 2500, 3000, 150, 200, "assumed: a question with a few retrieved passages"),
        TrafficClass("agent", 2000, 3500, 100, 250, "assumed: tool calls over a growing context"),
    )
}


def generate(
    traffic: Mapping[str, float],
    rate_rps: float,
    count: int,
    seed: int,
    max_context_tokens: int | None = None,
) -> pd.DataFrame:
    """`count` requests of a mix of classes, arriving as a Poisson process.

    The same seed gives the same sequence of gaps (scaled by the rate) and of lengths, so that two rates compare
    like with like.

    Args:
        traffic: {class name: share of requests}; shares are scaled to add up to 1.
        rate_rps: mean arrivals per second; inf lets all arrive at once.
        count: number of requests.
        seed: of the named streams (gaps, classes, prompt lengths, output lengths).
        max_context_tokens: longer requests are cut to what the model can hold, prompt first.

    Returns:
        DataFrame arrived_s, prompt_tokens, output_tokens, in order of arrival.

    Raises:
        InputError: unknown class, a share that is negative, or no share at all.
    """
    names, shares = check_traffic(traffic)
    gaps, classes, prompts, outputs = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)
    )
    arrived_s = np.cumsum(gaps.exponential(1.0, count)) / rate_rps
    kind = classes.choice(len(names), size=count, p=shares)
    prompt_z, output_z = prompts.standard_normal(count), outputs.standard_normal(count)
    chosen = [TRAFFIC_CLASSES[name] for name in names]
    prompt = _lognormal([(c.prompt_tokens_median, c.prompt_tokens_mean) for c in chosen], kind, prompt_z)
    output = _lognormal([(c.output_tokens_median, c.output_tokens_mean) for c in chosen], kind, output_z)
    if max_context_tokens is not None:
        output = np.minimum(output, max_context_tokens // 2)
        prompt = np.minimum(prompt, max_context_tokens - output)
    return pd.DataFrame({"arrived_s": arrived_s, "prompt_tokens": prompt, "output_tokens": output})


def check_traffic(traffic: Mapping[str, float]) -> tuple[list[str], NDArray[np.float64]]:
    """Names and shares of a mix, the shares adding up to 1.

    Raises:
        InputError: unknown class, a share that is negative or not finite, or no share at all.
    """
    for name, share in traffic.items():
        if name not in TRAFFIC_CLASSES:
            raise InputError(f"traffic class {name!r}: allowed are {', '.join(TRAFFIC_CLASSES)}")
        if not (math.isfinite(share) and share >= 0):
            raise InputError(f"traffic class {name!r}: found share {share}, allowed is a number ≥ 0")
    shares = np.array(list(traffic.values()), dtype=np.float64)
    if not shares.sum() > 0:
        raise InputError("traffic: found no share above 0, allowed is at least one class")
    return list(traffic), shares / shares.sum()


def hourly_shape() -> NDArray[np.float64]:
    """Demand by hour of the week [168], Monday 00:00 first, mean 1.

    An assumption (public traces of whole weeks are rare): a working-day wave with its low at 04:00 and its high
    at 15:00, three times the low, and weekends at 60 %.
    """
    hour = np.arange(HOURS_PER_WEEK)
    of_day = 1 - 0.5 * np.cos((hour % 24 - 3.5) * 2 * np.pi / 24)
    shape = of_day * np.where(hour // 24 >= 5, 0.6, 1.0)
    normalised: NDArray[np.float64] = shape / shape.mean()
    return normalised


def read_trace(path: str | Path) -> pd.DataFrame:
    """Requests of a CSV file: arrived_s, prompt_tokens, output_tokens, or the columns of the Azure trace.

    Times start at 0 with the first request.

    Raises:
        InputError: no such file, no CSV, a column is missing, or a row is bad (names file, line and column).
    """
    try:
        frame = pd.read_csv(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV file: {' '.join(str(error).split())}") from None
    if set(_AZURE_COLUMNS) <= set(frame.columns):
        when = pd.to_datetime(frame["TIMESTAMP"], errors="coerce", utc=True, format="ISO8601")
        frame["TIMESTAMP"] = (when - when.min()).dt.total_seconds()
        frame = frame.rename(columns=dict(zip(_AZURE_COLUMNS, COLUMNS, strict=True)))
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise InputError(
            f"{path}: found no column {', '.join(missing)}; allowed are {', '.join(COLUMNS)} "
            f"or {', '.join(_AZURE_COLUMNS)}"
        )
    checked = check_requests(frame, str(path), first_line=2)
    checked["arrived_s"] -= checked["arrived_s"].iloc[0]
    return checked


def check_requests(frame: pd.DataFrame, where: str = "requests", first_line: int = 0) -> pd.DataFrame:
    """The frame with numbers in its three columns, times in order and at least one token of each kind.

    Args:
        frame: arrived_s, prompt_tokens, output_tokens, and whatever else.
        where: what to call it in an error.
        first_line: number of its first row in an error (2 for a CSV file with a header).

    Raises:
        InputError: a column is missing, the frame is empty, or a row is bad.
    """
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise InputError(f"{where}: found no column {', '.join(missing)}; needed are {', '.join(COLUMNS)}")
    if frame.empty:
        raise InputError(f"{where}: found no requests, allowed is at least one")
    checked = frame.copy()
    for name in COLUMNS:
        checked[name] = pd.to_numeric(frame[name], errors="coerce")
    word = "line" if first_line else "row"

    def refuse_where(bad: pd.Series, column: str, allowed: str) -> None:
        if bad.any():
            at = int(np.argmax(bad.to_numpy()))
            found = frame[column].iloc[at]
            raise InputError(
                f"{where}: {word} {at + first_line}: {column}: found {found}, allowed is {allowed}"
            )

    time = checked["arrived_s"]
    refuse_where(~np.isfinite(time) | (time < 0), "arrived_s", "a finite time ≥ 0")
    refuse_where(time.diff() < 0, "arrived_s", "a time not before the row above")
    for name in COLUMNS[1:]:
        tokens = checked[name]
        whole = np.isfinite(tokens) & (tokens == np.floor(tokens))
        refuse_where(~whole | (tokens < 1), name, "a whole number ≥ 1")
        checked[name] = tokens.astype(np.int64)
    return checked


def _lognormal(
    medians_means: list[tuple[float, float]], kind: NDArray[np.int64], z: NDArray[np.float64]
) -> NDArray[np.int64]:
    mu = np.log([median for median, _ in medians_means])
    sigma = np.sqrt([2 * math.log(mean / median) for median, mean in medians_means])
    return np.maximum(1, np.rint(np.exp(mu[kind] + sigma[kind] * z))).astype(np.int64)
