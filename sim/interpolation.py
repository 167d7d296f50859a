"""Values measured at some points, read between and beyond them.

Piecewise linear in one dimension, multilinear in several: exact at the measured points, and between neighbours never
outside what they measured. Below the first point of an axis the first one counts (a GPU kernel of one tile costs the
same with half a tile); above the last one either the last counts or the line goes on. Plain lists and bisection: the
simulator asks a million times.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import product


class Line:
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
