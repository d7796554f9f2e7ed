"""Axes of the charts: from values to positions, with round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Point:
    """A position in a chart, with its label."""

    x: float
    y: float
    text: str = ""
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values from `low` to `high` to positions from `start` to `end`; `end` < `start` for vertical axes."""

    low: float
    high: float
    start: float = 0.0
    end: float = 100.0

    def at(self, value: float) -> float:
        """Position of a value; values outside the axis land on its border."""
        fraction = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + fraction * (self.end - self.start), 3)

    def ticks(self, count: int = 5) -> list[Tick]:
        """About `count` ticks at round values inside the axis."""
        step = _round_step((self.high - self.low) / max(count, 1))
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [Tick(self.at(k * step), f"{k * step:.{digits}f}".replace("-", "−")) for k in range(first, last + 1)]


def axis_around(
    values: Iterable[float], start: float = 0.0, end: float = 100.0, *, margin: float = 0.08, **limits: float
) -> Axis:
    """An axis that holds all values, with `margin` of their range on both sides.

    limits: `floor` and `ceiling` that the margin must not cross (a score never exceeds 1). Without two different
    values the range is 10 % of the value on both sides.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    extra = (high - low) * margin or max(abs(high) * 0.1, 0.01)
    low, high = low - extra, high + extra
    if "floor" in limits:
        low = max(low, min(limits["floor"], min(finite)))
    if "ceiling" in limits:
        high = min(high, max(limits["ceiling"], max(finite)))
    return Axis(low, high if high > low else low + 1.0, start, end)


def _round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def decades(values: np.ndarray, least: float) -> tuple[float, float]:
    """Ends of a logarithmic axis for [n] values >= 0, of which the lowest 1 % may lie below it.

    It starts at a power of ten, at least at `least`.
    """
    low = max(least, 10.0 ** math.floor(math.log10(max(float(np.quantile(values, 0.01)), least))))
    return low, max(float(values.max()), 10 * low) * 1.2


def logarithmic_ticks(axis: Axis) -> list[Tick]:
    """Powers of ten inside a logarithmic axis; 2 and 5 times them too if there are fewer than three."""
    powers = range(math.floor(axis.low), math.ceil(axis.high) + 1)
    inside: list[float] = []
    for factors in ((1,), (1, 2, 5)):
        values = [factor * 10.0**power for power in powers for factor in factors]
        inside = [value for value in values if axis.low <= math.log10(value) <= axis.high]
        if len(inside) > 2:
            break
    return [Tick(axis.at(math.log10(value)), f"{value:g}") for value in inside]


def polyline(xs: Iterable[float], ys: Iterable[float], across: Axis, upward: Axis) -> str:
    """Points for an SVG polyline or polygon in a box 100 wide."""
    return " ".join(f"{across.at(x):.2f},{upward.at(y):.1f}" for x, y in zip(xs, ys, strict=True))
