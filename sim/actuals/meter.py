"""What the meter saw in some months: sums by key and month, requests by hour, and a sample of single requests.

Models the reading of a usage database for controlling. A request belongs to the month (UTC) in which it finished, as on
the bill. Months are read one after the other, so memory holds one month of requests at a time.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import InputError
from engine.usage.database import REQUESTS, month_bounds_s, month_of, naming_the_database, open_database
from engine.usage.meter import BILLED_STATUSES, Used, usage_frame, used_by_key
from engine.utils.message import Message
from engine.utils.progress import Progress
from sim.billing.charges import month_index
from sim.company.monthly_table import month_labels

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from engine.usage.api_keys import ApiKey

MOST_MONTHS = 240
SAMPLED_PER_MONTH = 4_000  # requests kept one by one, for the distribution of lengths
_MONTHS = re.compile(r"(\d{4}-(?:0[1-9]|1[0-2]))(?:\.\.(\d{4}-(?:0[1-9]|1[0-2])))?")
_HOUR_S = 3600


@dataclass(frozen=True)
class Metered:
    """The meter's months, oldest first.

    `used`: sums by key and model, month by month, as the bill takes them. `by_key`: one row per month and key:
    month_index (0 is the first), key_id, requests, prompt_tokens, cached_tokens, output_tokens (of requests that were
    served: `BILLED_STATUSES`), cost_micro_usd (of all), first_s, last_s (unix time of arrivals). `by_day`:
    cost_micro_usd of all requests and tokens of served ones, by day. `by_hour`: served requests by hour since the first
    month's beginning [hours]. `sample`: key_id, prompt_tokens, output_tokens of up to 4,000 served requests a month.
    """

    months: list[str]
    keys: list[ApiKey]
    used: list[list[Used]]
    by_key: pd.DataFrame
    by_day: pd.DataFrame
    by_hour: NDArray[np.int64]
    sample: pd.DataFrame
    is_preliminary: bool  # the last month is still running

    @property
    def start_s(self) -> float:
        """Unix time of the first moment of the first month."""
        return month_bounds_s(self.months[0])[0]

    @property
    def end_s(self) -> float:
        """Unix time of the first moment after the last month."""
        return month_bounds_s(self.months[-1])[1]

    def month_at(self, time_s: float) -> int:
        """Index of the month that a unix time lies in: 0 is the first, below 0 before it."""
        return month_index(month_of(time_s)) - month_index(self.months[0])


def read_meter(
    url: str, months: str | None = None, *, now_s: float, progress: Progress | None = None
) -> Metered:
    """Read a usage database; writes nothing.

    Args:
        url: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE.
        months: "2026-08" or "2026-08..2026-11"; None: from the first request to the last month that is over.
        now_s: unix time [s]; a month that isn't over by then is preliminary.
        progress: called with (fraction done, what is being done).

    Raises:
        InputError: no months, a month that hasn't begun, or no request at all.
        UsageDatabaseError: the database can't be read.
    """
    from engine.usage.api_keys import ApiKeys

    engine = open_database(url, create=False)
    try:
        labels = _labels(engine, months, now_s)
        used, keys_by_month, days, hours, samples = [], [], [], [], []
        for row, label in enumerate(labels):
            if progress is not None:
                progress(row / len(labels), Message("reading the meter, {month}", month=label))
            start_s, end_s = month_bounds_s(label)
            used.append(used_by_key(engine, start_s, end_s))
            frame = usage_frame(engine, start_s, end_s)
            served = frame[frame["status"].isin(BILLED_STATUSES)]
            keys_by_month.append(_by_key(frame, served).assign(month_index=row))
            days.append(_by_day(frame, served))
            hour = ((served["finished_s"] - start_s) // _HOUR_S).astype(np.int64)
            hours.append(np.bincount(hour, minlength=round((end_s - start_s) / _HOUR_S)))
            few = served[["key_id", "prompt_tokens", "output_tokens"]]
            samples.append(few.sample(min(len(few), SAMPLED_PER_MONTH), random_state=row))
    finally:
        engine.dispose()
    keys = ApiKeys(url, create=False)
    try:
        return Metered(
            months=labels,
            keys=keys.list(),
            used=used,
            by_key=pd.concat(keys_by_month, ignore_index=True),
            by_day=pd.concat(days, ignore_index=True),
            by_hour=np.concatenate(hours).astype(np.int64),
            sample=pd.concat(samples, ignore_index=True),
            is_preliminary=month_bounds_s(labels[-1])[1] > now_s,
        )
    finally:
        keys.close()


def _labels(engine: Engine, months: str | None, now_s: float) -> list[str]:
    from sqlalchemy import func, select

    if months is not None:
        found = _MONTHS.fullmatch(months.strip())
        if found is None:
            raise InputError(f"months: found {months!r:.60}, allowed: YYYY-MM or YYYY-MM..YYYY-MM")
        first, last = month_index(found[1]), month_index(found[2] or found[1])
        if not 0 <= last - first < MOST_MONTHS:
            raise InputError(
                f"months: found {months}, allowed: the earlier month first, up to {MOST_MONTHS} of them"
            )
        if month_bounds_s(found[2] or found[1])[0] > now_s:
            raise InputError(f"months: found {months}, which has not begun, allowed: up to {month_of(now_s)}")
        return month_labels(found[1], last - first + 1)
    query = select(func.min(REQUESTS.c.finished_s), func.max(REQUESTS.c.finished_s))
    with naming_the_database(engine), engine.connect() as connection:
        first_s, last_s = connection.execute(query).one()
    if first_s is None:
        raise InputError(f"{engine.url.render_as_string()}: holds no request, allowed: a meter that was used")
    first, last = month_index(month_of(first_s)), month_index(month_of(last_s))
    running = month_index(month_of(now_s))
    last = max(first, min(last, running - 1))
    return month_labels(month_of(first_s), min(last - first + 1, MOST_MONTHS))


def _by_key(frame: pd.DataFrame, served: pd.DataFrame) -> pd.DataFrame:
    tokens = ["prompt_tokens", "cached_tokens", "output_tokens"]
    sums = served.groupby("key_id").agg(
        requests=("key_id", "size"), **{name: (name, "sum") for name in tokens}
    )
    everything = frame.groupby("key_id").agg(
        cost_micro_usd=("cost_micro_usd", "sum"), first_s=("arrived_s", "min"), last_s=("arrived_s", "max")
    )
    joined = everything.join(sums)
    joined[["requests", *tokens]] = joined[["requests", *tokens]].fillna(0).astype(np.int64)
    return joined.reset_index()


def _by_day(frame: pd.DataFrame, served: pd.DataFrame) -> pd.DataFrame:
    def day(of: pd.DataFrame) -> pd.Series:
        return (of["finished_s"] // 86400).astype(np.int64)

    cost = frame.groupby(day(frame))["cost_micro_usd"].sum()
    tokens = (served["prompt_tokens"] + served["output_tokens"]).groupby(day(served)).sum()
    return (
        pd.DataFrame({"cost_micro_usd": cost, "tokens": tokens})
        .fillna(0)
        .astype(np.int64)
        .reset_index(drop=True)
    )


def month_fraction(label: str, time_s: float) -> float:
    """How much of a month has passed at a unix time, within [0, 1]."""
    start_s, end_s = month_bounds_s(label)
    return math.nan if end_s <= start_s else min(1.0, max(0.0, (time_s - start_s) / (end_s - start_s)))
