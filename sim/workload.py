"""Requests that arrive at a serving fleet: when, how long their prompts are, how much they ask for.

Arrivals are Poisson within the hour (many independent users); the weekly shape bends the rate over the hours.
Token lengths are lognormal by class of traffic, given by median and mean: sigma = sqrt(2·ln(mean/median)), from
median = exp(mu) and mean = exp(mu + sigma²/2).
A recorded trace (Azure 2023, or our own three columns) can be replayed instead.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

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
    shared_prefix_tokens: int = 0  # the same first tokens in each prompt (a system prompt)

    def __post_init__(self) -> None:
        for what in ("prompt_tokens", "output_tokens"):
            median, mean = getattr(self, f"{what}_median"), getattr(self, f"{what}_mean")
            if not 1 <= median <= mean < math.inf:
                raise InputError(
                    f"traffic class {self.name}: {what}: found median {median} and mean {mean}, "
                    "allowed is 1 ≤ median ≤ mean"
                )


_AZURE = "Azure LLM inference traces 2023 (CC-BY 4.0), medians and means"
TRAFFIC_CLASSES: dict[str, TrafficClass] = {
    kind.name: kind
    for kind in (
        TrafficClass("chat", 1020, 1155, 129, 211, f"{_AZURE}, conversation"),
        TrafficClass("code", 1469, 2048, 13, 28, f"{_AZURE}, code"),
        TrafficClass("short", 90, 120, 60, 80, "assumed: classification, extraction, one-line answers"),
        TrafficClass("rag", 2500, 3000, 150, 200, "assumed: a question with a few retrieved passages"),
        TrafficClass("agent", 2000, 3500, 100, 250, "assumed: tool calls over a growing context", 1024),
    )
}


def generate(
    traffic: Mapping[str, float],
    rate_rps: float,
    count: int,
    seed: int,
    max_context_tokens: int | None = None,
    *,
    stratified: bool = False,
    block_tokens: int = 16,
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
        stratified: draw classes and lengths once from each of `count` equally likely strata, in random order
            (Latin hypercube sampling, McKay et al. 1979): mean and tail of the sample hardly scatter.
        block_tokens: tokens per KV block, for the hashes of shared prefixes.

    Returns:
        DataFrame arrived_s, prompt_tokens, output_tokens, prefix_hashes (tuple: one for each full block of the
        class's shared prefix), in order of arrival.

    Raises:
        InputError: unknown class, a share that is negative, no share at all, or a rate or count not above 0.
    """
    names, shares = check_traffic(traffic)
    if not rate_rps > 0:
        raise InputError(f"rate_rps: found {rate_rps}, allowed is a number > 0")
    if count < 1:
        raise InputError(f"count: found {count}, allowed is a whole number ≥ 1")
    gaps, classes, prompts, outputs = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)
    )

    def uniform(rng: np.random.Generator) -> NDArray[np.float64]:
        drawn = rng.random(count)
        return (rng.permutation(count) + drawn) / count if stratified else drawn

    arrived_s = np.cumsum(gaps.exponential(1.0, count)) / rate_rps
    kind = np.searchsorted(np.cumsum(shares)[:-1], uniform(classes), side="right")
    chosen = [TRAFFIC_CLASSES[name] for name in names]
    prompt_z, output_z = ndtri(uniform(prompts)), ndtri(uniform(outputs))
    prompt = _lognormal([(c.prompt_tokens_median, c.prompt_tokens_mean) for c in chosen], kind, prompt_z)
    output = _lognormal([(c.output_tokens_median, c.output_tokens_mean) for c in chosen], kind, output_z)
    if max_context_tokens is not None:
        output = np.minimum(output, max_context_tokens // 2)
        prompt = np.minimum(prompt, max_context_tokens - output)
    hashes = [
        tuple(
            (chosen[k].name, block)
            for block in range(min(chosen[k].shared_prefix_tokens, tokens) // block_tokens)
        )
        for k, tokens in zip(kind.tolist(), prompt.tolist(), strict=True)
    ]
    return pd.DataFrame(
        {"arrived_s": arrived_s, "prompt_tokens": prompt, "output_tokens": output, "prefix_hashes": hashes}
    )


def check_traffic(traffic: Mapping[str, float]) -> tuple[list[str], NDArray[np.float64]]:
    """Names and shares of a mix, the shares adding up to 1.

    Raises:
        InputError: unknown class, a share that is negative or not finite, or no share at all.
    """
    for name, share in traffic.items():
        if name not in TRAFFIC_CLASSES:
            near = difflib.get_close_matches(name, TRAFFIC_CLASSES, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise InputError(f"traffic class {name!r}: allowed are {', '.join(TRAFFIC_CLASSES)}{hint}")
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
    """Requests of a CSV file: arrived_s, prompt_tokens, output_tokens; further columns are left out.

    Either these three columns (arrived_s kept as it is), or the three of the Azure trace, whose first request is
    put at 0 s.

    Raises:
        InputError: no such file, no CSV, a column is missing, or a row is bad (names file, line and column).
    """
    cells = _read_cells(path)
    if set(_AZURE_COLUMNS) <= set(cells.columns):
        when = pd.to_datetime(cells["TIMESTAMP"], errors="coerce", utc=True, format="ISO8601")
        _refuse(path, "line", cells["TIMESTAMP"], when.isna(), "a time such as 2023-11-16 18:15:46.68")
        _refuse(
            path, "line", cells["TIMESTAMP"], when.diff().dt.total_seconds() < 0, "a time not before the last"
        )
        cells["TIMESTAMP"] = (when - when.iloc[0]).dt.total_seconds()
        return check_requests(cells, path, "line", _AZURE_COLUMNS)
    missing = [name for name in COLUMNS if name not in cells.columns]
    if missing:
        raise InputError(
            f"{path}: line 1: found no column {', '.join(missing)}; needed are {', '.join(COLUMNS)} "
            f"(or, of an Azure trace, {', '.join(_AZURE_COLUMNS)})"
        )
    return check_requests(cells[list(COLUMNS)], path, "line")


def check_requests(
    frame: pd.DataFrame,
    where: str | Path = "requests",
    word: str = "row",
    named: tuple[str, str, str] = COLUMNS,
) -> pd.DataFrame:
    """The frame with numbers in its three columns, times in order and at least one token of each kind.

    Args:
        frame: arrived_s, prompt_tokens, output_tokens, and whatever else; its index is kept out of the result.
        where: what to call it in an error.
        word: what to call its rows: "row" counts from 0, "line" takes the number from the index.
        named: what the three columns are called in this frame.

    Raises:
        InputError: a column is missing, the frame is empty, or a row is bad.
    """
    missing = [name for name in named if name not in frame.columns]
    if missing:
        raise InputError(f"{where}: found no column {', '.join(missing)}; needed are {', '.join(named)}")
    if frame.empty:
        raise InputError(f"{where}: found no requests, allowed is at least one")
    checked = frame.rename(columns=dict(zip(named, COLUMNS, strict=True)))
    for name, given in zip(COLUMNS, named, strict=True):
        values = pd.to_numeric(frame[given], errors="coerce").astype(np.float64)
        if name == "arrived_s":
            _refuse(where, word, frame[given], ~np.isfinite(values) | (values < 0), "a finite time ≥ 0")
            _refuse(where, word, frame[given], values.diff() < 0, "a time not before the row above")
        else:
            whole = (values == np.floor(values)) & (values <= 2**31)
            _refuse(where, word, frame[given], values < 1, "≥ 1")
            _refuse(where, word, frame[given], ~whole, "a whole number ≥ 1")
            values = values.astype(np.int64)
        checked[name] = values
    return checked.reset_index(drop=True)


def _read_cells(path: str | Path) -> pd.DataFrame:
    """All cells as text, empty lines dropped; the index is the number of the line."""
    try:
        cells = pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            index_col=False,
            encoding="utf-8-sig",
        )
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from None
    except pd.errors.EmptyDataError:
        raise InputError(f"{path}: is empty; needed are the columns {', '.join(COLUMNS)}") from None
    except pd.errors.ParserError as error:
        raise InputError(f"{path}: not a CSV file: {' '.join(str(error).split())}") from None
    cells.columns = pd.Index([str(name).strip() for name in cells.columns])
    cells.index = pd.RangeIndex(2, len(cells) + 2)
    cells = cells.fillna("")
    return cells[(cells != "").any(axis=1)]


def _refuse(where: str | Path, word: str, given: pd.Series, bad: pd.Series, allowed: str) -> None:
    """Complain of the first bad row, showing what was given."""
    if bad.any():
        at = int(np.argmax(bad.to_numpy()))
        number = int(given.index.to_numpy()[at]) if word == "line" else at
        found = given.iloc[at]
        shown = repr(found) if found == "" else found
        raise InputError(f"{where}: {word} {number}: {given.name}: found {shown}, allowed {allowed}")


def _lognormal(
    medians_means: list[tuple[float, float]], kind: NDArray[np.int64], z: NDArray[np.float64]
) -> NDArray[np.int64]:
    mu = np.log([median for median, _ in medians_means])
    sigma = np.sqrt([2 * math.log(mean / median) for median, mean in medians_means])
    return np.maximum(1, np.rint(np.exp(mu[kind] + sigma[kind] * z))).astype(np.int64)
