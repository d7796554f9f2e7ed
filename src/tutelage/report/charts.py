"""What the charts draw: axes, points, lines and bars in their positions. No markup, no colours.

Horizontal positions are percent of the chart's width, so that a chart scales with the page while its text keeps its
size; vertical positions are pixels, counted downward. The templates draw what these functions return.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np

from tutelage.records import Interval
from tutelage.report.axes import Axis, Point, Tick, axis_around, logarithmic_ticks, polyline

# --- one line per model: value and interval ---


class IntervalPlot(TypedDict):
    """A line per model, in order, on one axis."""

    lines: list[dict[str, Any]]
    """`model`, `score`, the positions `value`, `low` and `high` (None if not finite), and `off`: whether the value lies
    so far off the scale that it is written instead of drawn (in `forest` "low", "high" or None)."""
    ticks: list[Tick]


def interval_plot(scores: Mapping[str, Interval | None], *, may_leave: str) -> IntervalPlot:
    """Value and interval of every model on one axis.

    may_leave: the model that may be left off the scale: it is, if it lies so far below all others that it would squeeze
    them together.
    """
    known = {model: score for model, score in scores.items() if score}
    ends = {model: [number for number in score if math.isfinite(number)] for model, score in known.items()}
    rest = [number for model in known if model != may_leave for number in ends[model]]
    off = bool(rest) and may_leave in known and max(ends[may_leave]) < min(rest) - (max(rest) - min(rest))
    axis = axis_around(rest if off else rest + ends.get(may_leave, []), 1, 99, floor=0.0, ceiling=1.0)
    lines = [
        {**_interval_line(model, score, axis), "off": off and model == may_leave} for model, score in known.items()
    ]
    return {"lines": lines, "ticks": axis.ticks(6)}


def forest(scores: Mapping[str, Interval], **limits: float) -> IntervalPlot:
    """Value and interval of every model on one axis; outliers are left off the scale on their side.

    limits: `floor` and `ceiling` of the metric; an interval beyond the axis is cut there (`cut_low`, `cut_high`).
    """
    axis = _axis_without_outliers([[end for end in score if math.isfinite(end)] for score in scores.values()], limits)
    lines = [
        {
            **_interval_line(model, score, axis),
            "off": "low" if score.value < axis.low else "high" if score.value > axis.high else None,
            "cut_low": score.low < axis.low,
            "cut_high": score.high > axis.high,
        }
        for model, score in scores.items()
    ]
    return {"lines": lines, "ticks": axis.ticks(5)}


def _interval_line(model: str, score: Interval, axis: Axis) -> dict[str, Any]:
    value, low, high = (axis.at(number) if math.isfinite(number) else None for number in score)
    return {"model": model, "score": score, "value": value, "low": low, "high": high}


def _axis_without_outliers(models: Sequence[Sequence[float]], limits: Mapping[str, float]) -> Axis:
    """An axis for [models] of value, low and high, except those further from the middle half than twice its range."""
    known = [ends for ends in models if ends]
    values = sorted(ends[0] for ends in known)
    quarter = len(values) // 4  # of three models none is an outlier
    inner = [ends for ends in known if values[quarter] <= ends[0] <= values[-1 - quarter]]
    low, high = min(map(min, inner), default=0.0), max(map(max, inner), default=1.0)
    distance = 2 * (high - low) or max(abs(high), 1.0) / 10
    near = [number for ends in known if low - distance <= ends[0] <= high + distance for number in ends]
    floor, ceiling = limits.get("floor", -math.inf), limits.get("ceiling", math.inf)
    return axis_around([min(max(number, floor), ceiling) for number in near], 1, 99, **limits)


# --- lines ---


class LineChart(TypedDict):
    """Points at equal distances, joined by lines, each with its value beside it where no line runs."""

    points: list[Point]
    lines: list[tuple[Point, Point]]
    labels: list[Label]


@dataclass(frozen=True, slots=True)
class Label:
    """Where the text of a point stands: pixels to the right of it and below it, and which end of the text is there."""

    dx: int
    dy: int
    anchor: Literal["start", "middle", "end"]


def line_chart(values: Sequence[float], marked: Sequence[bool], **limits: float) -> LineChart:
    """At least one value; 132 pixels high, with a foot below for names. limits: as in `axis_around`."""
    upward = axis_around(values, 110, 22, margin=0.1, **limits)
    across = Axis(0, max(len(values) - 1, 1), 12, 88)
    points = [
        Point(across.at(index), upward.at(value), f"{value:.3f}", mark)
        for index, (value, mark) in enumerate(zip(values, marked, strict=True))
    ]
    lines = list(itertools.pairwise(points))
    before, after = [None, *points[:-1]], [*points[1:], None]
    labels = [_free_side(*three) for three in zip(before, points, after, strict=True)]
    return {"points": points, "lines": lines, "labels": labels}


def _free_side(before: Point | None, point: Point, after: Point | None) -> Label:
    """Above a point that both lines leave downward, below one that they leave upward, else over the lower line."""
    up_before, up_after = (other is not None and other.y < point.y for other in (before, after))
    if (up_before or before is None) and (up_after or after is None) and (before or after):
        return Label(0, 20, "middle")
    if up_before:
        return Label(3, -9, "start")
    return Label(-3, -9, "end") if up_after else Label(0, -11, "middle")


class Staircase(TypedDict):
    """Levels by name with their height in pixels; the chosen ones joined by lines."""

    levels: dict[str, float]
    points: list[Point]
    lines: list[tuple[Point, Point]]
    height: float


def staircase(levels: Sequence[str], chosen: Sequence[str], marked: Sequence[bool]) -> Staircase:
    """The level chosen at each step: levels upward in their order, 30 pixels apart, steps across."""
    heights = {name: 18 + 30 * (len(levels) - 1 - index) for index, name in enumerate(levels)}
    across = Axis(0.5, len(chosen) + 0.5)
    points = [
        Point(across.at(step), heights[name], str(step), mark)
        for step, (name, mark) in enumerate(zip(chosen, marked, strict=True), start=1)
    ]
    lines = list(itertools.pairwise(points))
    return {"levels": heights, "points": points, "lines": lines, "height": 18 + 30 * len(levels)}


class Curves(TypedDict):
    """Curves over training steps; `lines` are points for SVG polylines in a box 100 wide."""

    lines: dict[str, str]
    ticks: list[Tick]
    steps: list[Tick]
    borders: list[float]
    middles: list[float]
    """Between the borders, where the names of the stages stand."""
    height: float
    ends: dict[str, float]
    """Last value of each curve."""


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]], borders: Sequence[float], *, height: float, most: int
) -> Curves:
    """Curves of (step, value > 0) on a logarithmic axis, at least one of at least two points.

    borders: steps marked by a vertical line. A series of more than `most` points is averaged into `most`.
    """
    thinned = {name: _thinned(np.array(points, dtype=np.float64), most) for name, points in series.items()}
    values = np.concatenate([points[:, 1] for points in thinned.values()])
    last = max(float(points[-1, 0]) for points in thinned.values())
    low = float(values.min()) / 1.15
    ends = (math.log10(low), math.log10(max(float(values.max()) * 1.15, 2 * low)))
    across, upward = Axis(0.0, last), Axis(*ends, height, 22 if borders else 4)  # names of stages stand at the top
    marks = [across.at(step) for step in borders]
    sides = itertools.pairwise([across.start, *marks, across.end])
    return {
        "lines": {name: polyline(xy[:, 0], np.log10(xy[:, 1]), across, upward) for name, xy in thinned.items()},
        "ticks": logarithmic_ticks(upward),
        "steps": across.ticks(4),
        "borders": marks,
        "middles": [(left + right) / 2 for left, right in sides],
        "height": height,
        "ends": {name: float(points[-1, 1]) for name, points in thinned.items()},
    }


def _thinned(points: np.ndarray, most: int) -> np.ndarray:
    """[n, 2] points, neighbours averaged until at most `most` are left."""
    if len(points) <= most:
        return points
    return np.stack([part.mean(axis=0) for part in np.array_split(points, most)])


# --- scatter plots and histograms ---


class Scatter(TypedDict):
    """Points between two equal axes; ticks hold `x`, `y` and `text`."""

    points: list[Point]
    ticks: list[dict[str, Any]]
    height: float
    left: float
    """Percent of the width that the numbers of the vertical axis take."""


def scatter(across: np.ndarray, upward: np.ndarray, ends: tuple[float, float], *, height: float) -> Scatter:
    """Pairs of losses on two equal logarithmic axes; values beyond the ends lie on the border. Marked: upward < across.

    across, upward: [n] losses >= 0. ends: lowest and highest value of both axes, above 0.
    """
    left = 11.0
    low, high = math.log10(ends[0]), math.log10(ends[1])
    x_axis, y_axis = Axis(low, high, left), Axis(low, high, height, 0)
    logarithms = np.log10(np.maximum(np.stack([across, upward], axis=1), ends[0]))
    points = [
        Point(round(x_axis.at(x), 1), round(y_axis.at(y), 1), marked=bool(b < a))
        for (x, y), a, b in zip(logarithms.tolist(), across, upward, strict=True)
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
) -> Scatter:
    """Pairs of numbers >= 0 with their names, on two equal linear axes from 0 to a little above `most` > 0."""
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
    """A bar of a histogram: position and width in percent, height in pixels, number of values."""

    x: float
    width: float
    height: float
    count: int


def histogram(values: np.ndarray, *, bins: int, height: float) -> list[Bar]:
    """Bars over equal bins of [0, 1], the fullest `height` pixels high. values: [n] numbers in [0, 1]."""
    counts, _ = np.histogram(values, bins=bins, range=(0.0, 1.0))
    most = max(int(counts.max()), 1)
    width = 100.0 / bins
    return [
        Bar(round(index * width, 3), round(width, 3), round(height * int(count) / most, 2), int(count))
        for index, count in enumerate(counts)
    ]


# --- confidence ---


class ReliabilityDiagram(TypedDict):
    """Points hold `x`, `y`, the ends `low` and `high` of the interval, the radius `r`, and `rows`."""

    points: list[dict[str, float]]
    across: list[Tick]
    upward: list[Tick]
    height: float
    top: float


def reliability_diagram(bins: Sequence[Mapping[str, Any]], *, height: float) -> ReliabilityDiagram:
    """Accuracy by confidence: a mark per bin, its area by its rows, with its interval. Both axes run from 0 to 1.

    bins: as in `calibration.reliability`, at least one.
    """
    across, upward = Axis(0.0, 1.0, 0.0, 98.0), Axis(0.0, 1.0, height, 6)
    most = max(one["rows"] for one in bins)
    points = [
        {
            "x": across.at(one["confidence"]),
            "y": upward.at(one["accuracy"]["value"]),
            "low": upward.at(one["accuracy"]["low"]),
            "high": upward.at(one["accuracy"]["high"]),
            "r": round(2.5 + 6.5 * math.sqrt(one["rows"] / most), 1),
            "rows": one["rows"],
        }
        for one in bins
    ]
    return {"points": points, "across": across.ticks(5), "upward": upward.ticks(5), "height": height, "top": upward.end}


class CascadeChart(TypedDict):
    """`line`, `perfect` and `band` are points for SVG polylines and polygons in a box 100 wide."""

    line: str
    perfect: str
    band: str
    teacher: float
    marks: list[dict[str, Any]]
    ends: list[Point]
    across: list[Tick]
    upward: list[Tick]
    height: float


def cascade_chart(points: Sequence[Mapping[str, Any]], marks: Sequence[float], *, height: float) -> CascadeChart:
    """Score by the fraction of rows passed on to the teacher, with the band of the difference from the teacher's score.

    points: as in `calibration.cascades`; the last one has all rows passed on, so its score is the teacher's. marks:
    fractions to point at.
    """
    teacher = points[-1]["score"]
    fractions, scores = [point["share"] for point in points], [point["score"] for point in points]
    low, high = ([teacher + point["against_teacher"][end] for point in points] for end in ("low", "high"))
    perfect = [point["perfect"] for point in points]
    across = Axis(0.0, 1.0, 1.0, 99.0)
    upward = axis_around([*low, *high, *perfect], height, 6, floor=math.inf, ceiling=1.0)
    at = {
        fraction: Point(across.at(fraction), upward.at(score), f"{score:.3f}")
        for fraction, score in zip(fractions, scores, strict=True)
    }
    return {
        "line": polyline(fractions, scores, across, upward),
        "perfect": polyline(fractions, perfect, across, upward),
        "band": polyline([*fractions, *reversed(fractions)], [*low, *reversed(high)], across, upward),
        "teacher": upward.at(teacher),
        "marks": [{"x": at[mark].x, "y": at[mark].y, "text": at[mark].text, "share": mark} for mark in marks],
        "ends": [at[fractions[0]], at[fractions[-1]]],
        "across": [Tick(across.at(n / 4), f"{25 * n}") for n in range(5)],
        "upward": upward.ticks(4),
        "height": height,
    }
