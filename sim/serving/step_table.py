"""Step times from measured tables, so that a machine that others measured can be simulated.

A step's time is taken apart into what its work depends on:

    t = dense(tokens) + per_request(requests) + decode(n, mean context)
      + Σ prefill(chunk, context) − (chunks − 1)·smallest prefill + together(chunk, context, n, mean context)

- dense: all that multiplies weights, of the packed tokens; in steps, because a GPU computes whole tiles;
- per_request: vocabulary projection and sampling, of the requests in the step;
- decode: attention of the n decoding requests. Its work is the keys and values read, so a batch of unequal contexts
  costs what one of as many equal contexts with the same sum does (a real run's decode steps took 0.7 % longer);
- prefill: attention of each chunk. One kernel runs them all: its launch, about what the smallest chunk costs, is
  paid once;
- together: what attention of decodes and chunks in one kernel takes more (or less) than of each alone.

Two kinds of tables are read (`read_step_times`). By layers, as LLMServingSim 2 (Cho et al., ISPASS 2026) writes
them: one transformer layer was timed, and the model's number of layers multiplies it. Whole steps, over a grid of
decode batch × context × prefill chunk × its context, as they come from a sweep or from Vidur's predictor
(Agrawal et al. 2024): these are taken apart here, see `from_steps`; interpolating them as they are would mix steps
whose packed tokens lie on different stairs.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from engine.errors import InputError
from engine.models.catalog import find_model


class PiecewiseLinear:
    """A function of one number, linear between its knots, constant below the first, straight on above the last.

    Its slope above the last knot is that from half as far to there, not that of the last two knots alone, which may
    be a stair.
    """

    __slots__ = ("_slopes", "knots", "values")

    def __init__(self, knots: Sequence[float], values: Sequence[float]) -> None:
        """`knots` increase; as many `values`, one or more."""
        self.knots, self.values = list(knots), list(values)
        last = len(self.knots) - 1
        self._slopes = [
            (self.values[i + 1] - self.values[i]) / (self.knots[i + 1] - self.knots[i]) for i in range(last)
        ]
        half = min(bisect_right(self.knots, self.knots[-1] / 2), last) - 1
        if last:
            half = max(0, half)
            rise = (self.values[-1] - self.values[half]) / (self.knots[-1] - self.knots[half])
            self._slopes.append(max(0.0, rise))
        else:
            self._slopes.append(0.0)

    def __call__(self, x: float) -> float:
        """The value at `x`."""
        i = bisect_right(self.knots, x) - 1
        return self.values[i] + self._slopes[i] * (x - self.knots[i]) if i >= 0 else self.values[0]

    def sum(self, start: float, count: int) -> float:
        """The values at start, start + 1, … (`count` of them) added up, in closed form."""
        total, x, left = 0.0, start, count
        while left > 0:
            i = bisect_right(self.knots, x) - 1
            end = self.knots[i + 1] if i + 1 < len(self.knots) else math.inf
            # The whole numbers of steps that stay below the next knot.
            steps = left if end == math.inf else min(left, max(1, math.ceil(end - x)))
            slope = self._slopes[i] if i >= 0 else 0.0
            total += steps * self(x) + slope * (steps * (steps - 1) / 2)
            x += steps
            left -= steps
        return total


class Grid:
    """A function of several numbers: multilinear within a complete grid of points.

    Below an axis its first coordinate counts; above it the last, or with `extend` the line goes on.
    """

    __slots__ = ("_extend", "_strides", "_values", "axes")

    def __init__(
        self,
        axes: Sequence[Sequence[float]],
        values: Mapping[tuple[float, ...], float],
        extend: bool = False,
    ) -> None:
        """`axes`: the coordinates of each, increasing; `values`: one for each combination of them.

        Raises:
            KeyError: a combination has no value.
        """
        self.axes = [list(axis) for axis in axes]
        self._values = [values[point] for point in product(*self.axes)]
        self._strides = [math.prod(len(axis) for axis in self.axes[i + 1 :]) for i in range(len(self.axes))]
        self._extend = extend

    def __call__(self, *point: float) -> float:
        """The value at `point`, one number for each axis."""
        places, weights = [0], [1.0]
        for axis, stride, x in zip(self.axes, self._strides, point, strict=True):
            i = bisect_right(axis, x) - 1
            last = len(axis) - 1
            if i >= last and (not self._extend or not last):
                i, part = last, 0.0
            elif i < 0:
                i, part = 0, 0.0
            else:
                i = min(i, last - 1)
                part = (x - axis[i]) / (axis[i + 1] - axis[i])
            places = [place + i * stride for place in places]
            if part:
                places += [place + stride for place in places]
                weights = [weight * (1 - part) for weight in weights] + [weight * part for weight in weights]
        return sum(weight * self._values[place] for place, weight in zip(places, weights, strict=True))


DENSE_COLUMNS = ("layer", "tokens", "time_us")
ATTENTION_COLUMNS = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
SEQUENCE_COLUMNS = ("layer", "sequences", "time_us")
STEP_COLUMNS = ("decode_batch", "kv_len", "prefill_chunk", "prefill_kv", "ms")
ONCE_PER_STEP = ("embedding", "final_layernorm")  # the other dense layers are part of each transformer layer
TWICE_PER_LAYER = ("layernorm",)  # before attention and before the feed-forward part
NEEDED_LAYERS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")

# (prefill chunk, its context, decode batch, decode context) -> seconds; 0, 0 for the part that a step lacks.
Points = Mapping[tuple[float, ...], float]


class TableStepTime:
    """The step-time model that such tables give; a `StepTimeModel` with `decode_run`.

    Its parts, in seconds: `dense` by packed tokens, `per_request` by requests, `prefill` by chunk and context.
    """

    def __init__(self, dense: PiecewiseLinear, per_request: PiecewiseLinear, attention: Points) -> None:
        """All in seconds. `attention` holds points of chunks alone, of decodes alone, and maybe of both.

        Raises:
            InputError: points of chunks alone or of decodes alone are missing.
        """
        self.dense, self.per_request = dense, per_request
        prefill = _complete({(c, k): t for (c, k, n, _), t in attention.items() if not n}, "prefill alone")
        decode = _complete({(n, d): t for (c, _, n, d), t in attention.items() if not c}, "decode alone")
        self.prefill = Grid(_axes(prefill), prefill, extend=True)
        self._launch_s = max(0.0, min(prefill.values()))
        self._batches, self._contexts = _axes(decode)
        self._decode = [[decode[n, d] for d in self._contexts] for n in self._batches]
        self._decode_lines: dict[int, PiecewiseLinear] = {}
        both = {
            point: t - prefill[point[:2]] - decode[point[2:]]
            for point, t in attention.items()
            if point[0] and point[2] and point[:2] in prefill and point[2:] in decode
        }
        both = _complete(both, "together") if both else {}
        self._together = Grid(_axes(both), both) if both else None

    def step_time(self, prefill: Sequence[tuple[int, int]], decode_contexts: Sequence[int]) -> float:
        """Seconds of one step (see `StepTimeModel.step_time`); 0.0 for an empty step."""
        batch = len(decode_contexts)
        if not prefill:
            return self.decode_run_from_sums(batch, sum(decode_contexts), 1)
        chunk = sum(tokens for tokens, _ in prefill)
        time_s = self.dense(chunk + batch) + self.per_request(len(prefill) + batch)
        time_s += sum(self.prefill(*part) for part in prefill) - (len(prefill) - 1) * self._launch_s
        if batch:
            mean = sum(decode_contexts) / batch
            time_s += self._decode_line(batch)(mean)
            if self._together is not None:
                context = max(context for _, context in prefill)
                time_s += self._together(chunk, context, batch, mean)
        return time_s

    def decode_run(self, decode_contexts: Sequence[int], steps: int) -> float:
        """Seconds of `steps` decode steps of the same requests, each context growing by one per step."""
        return self.decode_run_from_sums(len(decode_contexts), sum(decode_contexts), steps)

    def decode_run_from_sums(self, batch: int, context_sum: int, steps: int) -> float:
        """`decode_run` for a caller that keeps the batch size and the sum of its contexts."""
        if not batch:
            return 0.0
        once = self.dense(batch) + self.per_request(batch)
        return steps * once + self._decode_line(batch).sum(context_sum / batch, steps)

    def _decode_line(self, batch: int) -> PiecewiseLinear:
        """Attention of a batch as a function of its mean context."""
        line = self._decode_lines.get(batch)
        if line is None:
            columns = zip(*self._decode, strict=True)
            line = PiecewiseLinear(
                self._contexts, [PiecewiseLinear(self._batches, column)(batch) for column in columns]
            )
            self._decode_lines[batch] = line
        return line


def read_step_times(path: str | Path, layers: int | None = None) -> TableStepTime:
    """Read measured step times.

    Args:
        path: a CSV of whole steps (decode_batch, kv_len, prefill_chunk, prefill_kv, ms; 0 requests or tokens in what
            a step lacks), or a folder with the tables of one layer: dense.csv (layer, tokens, time_us), attention.csv
            (prefill_chunk, kv_prefill, n_decode, kv_decode, time_us) and per_sequence.csv (layer, sequences, time_us).
        layers: transformer layers of the model, for a folder; None: of the model that its profile_meta.yaml (or
            meta.yaml) names, if the catalog has it.

    Raises:
        InputError: file missing, column missing, a bad row, or too few points; one line that says which.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if not path.is_dir():
        return from_steps(_read(path, STEP_COLUMNS))
    return from_layers(
        _read(path / "dense.csv", DENSE_COLUMNS),
        _read(path / "attention.csv", ATTENTION_COLUMNS),
        _read(path / "per_sequence.csv", SEQUENCE_COLUMNS),
        _layers_of(path) if layers is None else layers,
    )


def from_layers(
    dense: pd.DataFrame, attention: pd.DataFrame, per_sequence: pd.DataFrame, layers: int
) -> TableStepTime:
    """The model of one transformer layer's tables, repeated `layers` times.

    Raises:
        InputError: no layers, one of the dense layers is missing, or too few points.
    """
    if layers < 1:
        raise InputError(f"layers: found {layers}, allowed is a whole number ≥ 1")
    for name in NEEDED_LAYERS:
        if name not in set(dense["layer"]):
            raise InputError(f"dense.csv: found no layer {name}, needed are {', '.join(NEEDED_LAYERS)}")
    times = dict.fromkeys(dense["layer"].unique(), layers)
    times |= dict.fromkeys(ONCE_PER_STEP, 1) | dict.fromkeys(TWICE_PER_LAYER, 2 * layers)
    points = {
        tuple(float(part) for part in point): layers * 1e-6 * us
        for *point, us in attention[list(ATTENTION_COLUMNS)].itertuples(index=False)
    }
    return TableStepTime(
        _added(dense, "tokens", times, "dense.csv"),
        _added(per_sequence, "sequences", {}, "per_sequence.csv"),
        _without_absent(points),
    )


def from_steps(steps: pd.DataFrame) -> TableStepTime:
    """The model of a grid of whole steps, taken apart into dense work, prefill and decode attention.

    A chunk's attention grows by the same for each context token as for each two tokens of its own (as many
    query-key pairs), a decode's in proportion to its context: that is what tells them from the dense work, which is
    then the mean over all steps of as many packed tokens. What remains of a step goes to attention, so that every
    measured step is met exactly.

    Raises:
        InputError: too few points.
    """
    columns = steps[["prefill_chunk", "prefill_kv", "decode_batch", "kv_len", "ms"]]
    points = _without_absent(
        {tuple(float(p) for p in point): ms / 1e3 for *point, ms in columns.itertuples(index=False)}
    )
    chunks = _complete({(c, k): t for (c, k, n, _), t in points.items() if not n}, "prefill alone")
    decodes = _complete({(n, d): t for (c, _, n, d), t in points.items() if not c}, "decode alone")
    attention: dict[tuple[float, float, bool], float] = {}
    for table, is_prefill in ((chunks, True), (decodes, False)):
        firsts, contexts = _axes(table)
        near, far = contexts[0], contexts[-1]
        for first in firsts:
            slope = max(0.0, (table[first, far] - table[first, near]) / ((far - near) or 1))
            own = slope * (near + first / 2 if is_prefill else near)
            for context in contexts:
                attention[first, context, is_prefill] = own + table[first, context] - table[first, near]
    by_tokens: dict[float, list[float]] = {}
    known = {
        (c, k, n, d): t
        for (c, k, n, d), t in points.items()
        if (not c or (c, k) in chunks) and (not n or (n, d) in decodes)
    }
    for (c, k, n, d), t in known.items():
        rest = t - attention.get((c, k, True), 0.0) - attention.get((n, d, False), 0.0)
        by_tokens.setdefault(c + n, []).append(rest)
    tokens = sorted(by_tokens)
    dense = PiecewiseLinear(tokens, [float(np.mean(by_tokens[count])) for count in tokens])
    rests: dict[tuple[float, ...], float] = {p: t - dense(p[0] + p[2]) for p, t in known.items()}
    return TableStepTime(dense, PiecewiseLinear([1.0], [0.0]), rests)


def _without_absent(points: Points) -> dict[tuple[float, ...], float]:
    """A step without chunks has no chunk's context, one without decodes no decode's, whatever its row says."""
    result: dict[tuple[float, ...], float] = {}
    for (c, k, n, d), t in points.items():
        result[c, k if c else 0.0, n, d if n else 0.0] = t
    return result


def _axes(points: Iterable[tuple[float, ...]]) -> list[list[float]]:
    return [sorted(set(axis)) for axis in zip(*points, strict=True)]


def _complete(points: dict[tuple[float, ...], float], what: str) -> dict[tuple[float, ...], float]:
    """The points that form a complete grid: first coordinates that were measured less often are left out."""
    counts: dict[float, int] = {}
    for point in points:
        counts[point[0]] = counts.get(point[0], 0) + 1
    most = max(counts.values(), default=0)
    kept = {point: t for point, t in points.items() if counts[point[0]] == most}
    if not kept:
        raise InputError(f"step times: found no steps of {what}, needed is a grid of them")
    for point in product(*_axes(kept)):
        if point not in kept:
            shown = ", ".join(f"{part:g}" for part in point)
            raise InputError(f"step times: {what}: found no time for ({shown}), needed is a complete grid")
    return kept


def _added(table: pd.DataFrame, amount: str, times: Mapping[str, int], name: str) -> PiecewiseLinear:
    """Seconds of all layers of a table by their tokens or sequences, each counted so many times (1 if not said)."""
    knots = sorted({float(count) for count in table[amount]})
    total = np.zeros(len(knots))
    for layer, rows in table.groupby("layer", sort=False):
        rows = rows.sort_values(amount)
        if rows[amount].tolist() != knots:
            raise InputError(f"{name}: layer {layer}: {amount} differ from those of the other layers")
        total += times.get(str(layer), 1) * rows["time_us"].to_numpy(dtype=float) * 1e-6
    return PiecewiseLinear(knots, total.tolist())


def _read(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """A table's columns; every row with numbers ≥ 0, none twice."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV file ({str(error).splitlines()[0]})") from None
    for column in columns:
        if column not in table:
            raise InputError(f"{path}: column {column} is missing, needed are {', '.join(columns)}")
    table = table[list(columns)]
    for column in columns:
        if column == "layer":
            continue
        numbers = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float)
        bad = ~(np.isfinite(numbers) & (numbers >= 0))
        if bad.any():
            row = int(np.argmax(bad))
            found = table[column].iloc[row]
            raise InputError(f"{path}: line {row + 2}: {column}: found {found}, allowed is a number ≥ 0")
        table = table.assign(**{column: numbers})
    twice = table.duplicated(list(columns[:-1]))
    if twice.any():
        raise InputError(f"{path}: line {int(np.argmax(twice)) + 2}: a second time for the same work")
    if table.empty:
        raise InputError(f"{path}: found no rows")
    return table


def _layers_of(folder: Path) -> int:
    """Layers of the model that a folder's meta file names."""
    for name in ("profile_meta.yaml", "meta.yaml"):
        if not (folder / name).is_file():
            continue
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            key, _, model = line.partition(":")
            if key == "model":
                return find_model(model.strip().strip("'\"")).layers
    raise InputError(f"{folder}: nothing says which model was measured; give its number of layers")
