"""Where things go in a chart: axes with round ticks, bars of a histogram, lines from point to point. No mark-up, no
colours.

Horizontal places are percent of the chart's width, so that a chart can be as wide as the page while its text keeps its
size; vertical places are pixels. The templates draw what this module places.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.records import Interval


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Axis:
    """Values from `low` to `high`, laid on places from `start` to `end` (`end` may be the smaller: pixels count
    downward)."""

    low: float
    high: float
    start: float = 0.0
    end: float = 100.0

    def at(self, value: float) -> float:
        """Place of a value; values outside land on the border."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 3)

    def ticks(self, count: int = 5) -> list[Tick]:
        """About `count` ticks at round values inside the axis."""
        step = _round_step((self.high - self.low) / max(count, 1))
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [Tick(self.at(k * step), f"{k * step:.{digits}f}".replace("-", "−")) for k in range(first, last + 1)]


def axis_around(
    values: Iterable[float], start: float = 0.0, end: float = 100.0, *, share: float = 0.08, **limits: float
) -> Axis:
    """An axis that holds all values with a margin of `share` of their range on both sides.

    limits: `floor` and `ceiling` that the margin must not cross (a score never exceeds 1). Equal values, or none, get a
    range of their own.
    """
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    margin = (high - low) * share or max(abs(high) * 0.1, 0.01)
    low, high = low - margin, high + margin
    if "floor" in limits:
        low = max(low, min(limits["floor"], min(known)))
    if "ceiling" in limits:
        high = min(high, max(limits["ceiling"], max(known)))
    return Axis(low, high if high > low else low + 1.0, start, end)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


@dataclass(frozen=True, slots=True)
class Point:
    """A place in a chart, with what it stands for."""

    x: float
    y: float
    text: str = ""
    marked: bool = False


def interval_plot(scores: Mapping[str, Interval | None], *, may_leave: str) -> dict[str, Any]:
    """One line a model: where its value and the ends of its interval lie, on an axis they share.

    may_leave: the model that is named instead of drawn if it lies far below the rest, where it would squeeze all others
    together.
    """
    known = {model: score for model, score in scores.items() if score}
    ends = {model: [number for number in score if math.isfinite(number)] for model, score in known.items()}
    rest = [number for model in known if model != may_leave for number in ends[model]]
    off = bool(rest) and may_leave in known and max(ends[may_leave]) < min(rest) - (max(rest) - min(rest))
    shown = rest if off else rest + ends.get(may_leave, [])
    axis = axis_around(shown, 1, 99, floor=0.0, ceiling=1.0)
    lines = []
    for model, score in known.items():
        value, low, high = (axis.at(number) if math.isfinite(number) else None for number in score)
        lines.append(
            {
                "model": model,
                "score": score,
                "off": off and model == may_leave,
                "value": value,
                "low": low,
                "high": high,
            }
        )
    return {"lines": lines, "ticks": axis.ticks(6)}


def forest(scores: Mapping[str, Interval], **limits: float) -> dict[str, Any]:
    """One line a model, in order, on an axis they share: where its value and the ends of its interval lie.

    limits: `floor` and `ceiling` that the metric never passes; an interval that does is cut there (`cut_low`,
    `cut_high`). A model so far from the others that it would squeeze them together is named instead of drawn: its `off`
    is "low" or "high".
    """
    axis = _axis_of_most([[number for number in score if math.isfinite(number)] for score in scores.values()], limits)
    lines = []
    for model, score in scores.items():
        value, low, high = (axis.at(number) if math.isfinite(number) else None for number in score)
        lines.append({
            "model": model, "score": score, "value": value, "low": low, "high": high,
            "off": "low" if score.value < axis.low else "high" if score.value > axis.high else None,
            "cut_low": score.low < axis.low, "cut_high": score.high > axis.high,
        })  # fmt: skip
    return {"lines": lines, "ticks": axis.ticks(5)}


def _axis_of_most(models: Sequence[Sequence[float]], limits: Mapping[str, float]) -> Axis:
    """An axis for [models] of value, low and high, without those that are further off than twice the span of the middle
    half."""
    known = [ends for ends in models if ends]
    values = sorted(ends[0] for ends in known)
    quarter = len(values) // 4  # none are left out of three
    inner = [ends for ends in known if values[quarter] <= ends[0] <= values[-1 - quarter]]
    low, high = min(map(min, inner), default=0.0), max(map(max, inner), default=1.0)
    reach = 2 * (high - low) or max(abs(high), 1.0) / 10
    near = [number for ends in known if low - reach <= ends[0] <= high + reach for number in ends]
    floor, ceiling = limits.get("floor", -math.inf), limits.get("ceiling", math.inf)
    return axis_around([min(max(number, floor), ceiling) for number in near], 1, 99, **limits)


def line_chart(values: Sequence[float], marked: Sequence[bool], **limits: float) -> dict[str, Any]:
    """Values at equal distances, joined by lines; 132 pixels of drawing above a foot for names. At least one value."""
    upward = axis_around(values, 124, 20, share=0.1, **limits)
    across = Axis(0, max(len(values) - 1, 1), 12, 92)
    points = [
        Point(across.at(k), upward.at(v), f"{v:.3f}", m) for k, (v, m) in enumerate(zip(values, marked, strict=True))
    ]
    return {"points": points, "lines": list(itertools.pairwise(points)), "ticks": upward.ticks(3)}


def staircase(levels: Sequence[str], chosen: Sequence[str], marked: Sequence[bool]) -> dict[str, Any]:
    """Which level was chosen at each step: levels upward in their order, 30 pixels apart, steps across, choices
    joined."""
    heights = {name: 18 + 30 * (len(levels) - 1 - place) for place, name in enumerate(levels)}
    across = Axis(0.5, len(chosen) + 0.5)
    points = [
        Point(across.at(step), heights[name], str(step), mark)
        for step, (name, mark) in enumerate(zip(chosen, marked, strict=True), start=1)
    ]
    return {
        "levels": heights,
        "points": points,
        "lines": list(itertools.pairwise(points)),
        "height": 18 + 30 * len(levels),
    }


def decades(values: np.ndarray, least: float) -> tuple[float, float]:
    """Ends of a logarithmic axis for [n] values >= 0: from the power of ten below all but 1 % of them, and no less than
    `least`."""
    low = max(least, 10.0 ** math.floor(math.log10(max(float(np.quantile(values, 0.01)), least))))
    return low, max(float(values.max()), 10 * low) * 1.2


def scatter(across: np.ndarray, upward: np.ndarray, ends: tuple[float, float], *, height: float) -> dict[str, Any]:
    """Pairs of losses on two equal logarithmic axes; values beyond the ends lie on the border. Marked: upward < across.

    across, upward: [n] losses >= 0. ends: lowest and highest value of both axes, above 0.
    """
    left = 11.0  # room for the upward axis's numbers
    low, high = math.log10(ends[0]), math.log10(ends[1])
    x_axis, y_axis = Axis(low, high, left), Axis(low, high, height, 0)
    places = np.log10(np.maximum(np.stack([across, upward], axis=1), ends[0]))
    points = [
        Point(round(x_axis.at(x), 1), round(y_axis.at(y), 1), marked=bool(b < a))
        for (x, y), a, b in zip(places.tolist(), across, upward, strict=True)
    ]
    powers = range(math.ceil(low - 1e-9), math.floor(high) + 1)
    ticks = [{"x": x_axis.at(power), "y": y_axis.at(power), "text": f"{10.0**power:g}"} for power in powers]
    return {"points": points, "ticks": ticks, "height": height, "left": left}


def linear_scatter(
    across: Sequence[float],
    upward: Sequence[float],
    marked: Sequence[bool],
    names: Sequence[str],
    *,
    most: float,
    height: float,
) -> dict[str, Any]:
    """Pairs of numbers >= 0 on two equal linear axes from 0 to a little above `most` > 0, with the points' names; as
    `scatter`."""
    left = 13.0
    x_axis, y_axis = Axis(0.0, 1.12 * most, left), Axis(0.0, 1.12 * most, height, 0)
    points = [
        Point(x_axis.at(x), y_axis.at(y), name, mark)
        for x, y, mark, name in zip(across, upward, marked, names, strict=True)
    ]
    ticks = [{"x": x.at, "y": y.at, "text": x.text} for x, y in zip(x_axis.ticks(4), y_axis.ticks(4), strict=True)]
    return {"points": points, "ticks": ticks, "height": height, "left": left}


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a histogram: place and width in percent, height in pixels, the number of values in it."""

    x: float
    width: float
    height: float
    count: int


def histogram(values: np.ndarray, *, bins: int, height: float) -> list[Bar]:
    """Bars over [0, 1] in equal bins, the fullest `height` pixels high. values: [n] numbers in [0, 1]."""
    counts, _ = np.histogram(values, bins=bins, range=(0.0, 1.0))
    most = max(int(counts.max()), 1)
    width = 100.0 / bins
    return [
        Bar(round(k * width, 3), round(width, 3), round(height * int(n) / most, 2), int(n))
        for k, n in enumerate(counts)
    ]


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]], borders: Sequence[float], *, height: float, most: int
) -> dict[str, Any]:
    """Lines of (step, value > 0) on a logarithmic axis, at least one of at least two points; borders: steps marked by a
    line.

    A series of more than `most` points is averaged into as many. `lines` are points for an SVG polyline in a box 100
    wide.
    """
    thin = {name: _thinned(np.array(points, dtype=np.float64), most) for name, points in series.items()}
    values = np.concatenate([points[:, 1] for points in thin.values()])
    last = max(float(points[-1, 0]) for points in thin.values())
    low = float(values.min()) / 1.15
    ends = (math.log10(low), math.log10(max(float(values.max()) * 1.15, 2 * low)))
    across, upward = Axis(0.0, last), Axis(*ends, height, 22 if borders else 4)  # names of stages stand at the top
    lines = {name: _polyline(points[:, 0], np.log10(points[:, 1]), across, upward) for name, points in thin.items()}
    marks = [across.at(step) for step in borders]
    sides = itertools.pairwise([across.start, *marks, across.end])
    return {
        "lines": lines, "ticks": _logarithmic_ticks(upward), "steps": across.ticks(4), "borders": marks,
        "middles": [(left + right) / 2 for left, right in sides], "height": height,
        "ends": {name: float(points[-1, 1]) for name, points in thin.items()},
    }  # fmt: skip


def _thinned(points: np.ndarray, most: int) -> np.ndarray:
    """[n, 2] points, neighbours averaged until at most `most` are left."""
    if len(points) <= most:
        return points
    return np.stack([part.mean(axis=0) for part in np.array_split(points, most)])


def _logarithmic_ticks(axis: Axis) -> list[Tick]:
    """Powers of ten inside a logarithmic axis, with 2 and 5 times them where these alone would be fewer than three."""
    powers = range(math.floor(axis.low), math.ceil(axis.high) + 1)
    for factors in ((1,), (1, 2, 5)):
        values = [factor * 10.0**power for power in powers for factor in factors]
        inside = [value for value in values if axis.low <= math.log10(value) <= axis.high]
        if len(inside) > 2:
            break
    return [Tick(axis.at(math.log10(value)), f"{value:g}") for value in inside]


def _polyline(xs: Iterable[float], ys: Iterable[float], across: Axis, upward: Axis) -> str:
    """Points for an SVG polyline or polygon in a box 100 wide."""
    return " ".join(f"{across.at(x):.2f},{upward.at(y):.1f}" for x, y in zip(xs, ys, strict=True))


def reliability_diagram(bins: Sequence[Mapping[str, Any]], *, height: float) -> dict[str, Any]:
    """How often answers are right by how sure the model was: a mark a bin, its area by its rows, with its interval.

    bins: as in `calibration.reliability`, at least one. Both axes run from 0 to 1.
    """
    across, upward = Axis(0.0, 1.0, 0.0, 98.0), Axis(0.0, 1.0, height, 6)
    most = max(one["rows"] for one in bins)
    points = [
        {
            "x": across.at(one["confidence"]), "y": upward.at(one["accuracy"]["value"]),
            "low": upward.at(one["accuracy"]["low"]), "high": upward.at(one["accuracy"]["high"]),
            "r": round(2.5 + 6.5 * math.sqrt(one["rows"] / most), 1), "rows": one["rows"],
        }
        for one in bins
    ]  # fmt: skip
    return {"points": points, "across": across.ticks(5), "upward": upward.ticks(5), "height": height, "top": upward.end}


def cascade_chart(points: Sequence[Mapping[str, Any]], marks: Sequence[float], *, height: float) -> dict[str, Any]:
    """Score against the share of rows that go on to the teacher, with the band of its difference from the teacher's
    score.

    points: as in `calibration.cascades`, the last one with all rows sent on: the teacher's own score. marks: shares to
    be pointed at. `line`, `perfect` and `band` are points for SVG in a box 100 wide.
    """
    teacher = points[-1]["score"]
    shares, scores = [one["share"] for one in points], [one["score"] for one in points]
    low, high = ([teacher + one["against_teacher"][end] for one in points] for end in ("low", "high"))
    perfect = [one["perfect"] for one in points]
    across = Axis(0.0, 1.0, 1.0, 99.0)
    upward = axis_around([*low, *high, *perfect], height, 6, floor=math.inf, ceiling=1.0)
    places = [shares.index(share) for share in marks]
    near = (
        len(marks) == 2 and abs(marks[0] - marks[1]) < 0.2
    )  # then their numbers stand on either side, not on each other
    sides = [("end" if share == min(marks) else "start") if near else "middle" for share in marks]
    return {
        "line": _polyline(shares, scores, across, upward),
        "perfect": _polyline(shares, perfect, across, upward),
        "band": _polyline([*shares, *reversed(shares)], [*low, *reversed(high)], across, upward),
        "teacher": upward.at(teacher),
        "marks": [
            {
                "x": across.at(shares[place]),
                "y": upward.at(scores[place]),
                "text": f"{scores[place]:.3f}",
                "anchor": side,
            }
            for place, side in zip(places, sides, strict=True)
        ],
        "ends": [Point(across.at(shares[place]), upward.at(scores[place])) for place in (0, -1)],
        "across": [Tick(across.at(n / 4), f"{25 * n}") for n in range(5)],
        "upward": upward.ticks(4),
        "height": height,
    }
