"""The bootstrap over rows: seeded resamples of rows with replacement, and percentile intervals of a statistic on them.

Every interval that is about other rows alone is made here. Intervals that are about other seeds and teachers as well
(`analysis/crossed_intervals.py`) take their resamples of the rows from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import DTypeLike

from tutelage.records import Interval

Statistic = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
"""From counts [N, P] (how often each of P distinct rows was drawn in N resamples, float) and those rows [P, k] to named
values, each [N]; NaN where a value is undefined."""

MAX_DRAWS = 5_000_000
"""Most numbers (resamples x rows) held at once: 40 MB in float64. The resamples do not depend on it."""


def bootstrap(rows: np.ndarray, statistic: Statistic, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """Values of a statistic on all rows with 95 % percentile intervals over rows.

    rows: [n, k] numbers that hold all that the statistic needs of a row, n >= 1. Drawing n rows with replacement is one
    multinomial draw over the distinct rows, so the work depends on the number of distinct rows, and the order of rows
    does not matter. A single row has the interval [value, value]. Raises ValueError without rows.
    """
    if not len(rows):
        raise ValueError("There are no rows to score: a mean over nothing has no value. Give at least one row.")
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    values = statistic(counts[None, :].astype(np.float64), distinct)
    rng, chunks = np.random.default_rng(seed), []
    for size in batch_sizes(resamples, len(distinct)):
        drawn = rng.multinomial(len(rows), counts / len(rows), size=size)
        chunks.append(statistic(drawn.astype(np.float64), distinct))
    return {
        name: percentile_interval(float(value[0]), np.concatenate([chunk[name] for chunk in chunks]))
        for name, value in values.items()
    }


def resampled_counts(rows: int, resamples: int, seed: int = 0, dtype: DTypeLike = np.float64) -> Iterator[np.ndarray]:
    """How often each row is in a resample of as many rows: [N, rows] arrays, `resamples` lines in all.

    For statistics of several parts of the rows, or of several models, that must share their resamples: line n is the
    same for the same seed and number of rows.
    """
    rng = np.random.default_rng(seed)
    for size in batch_sizes(resamples, rows):
        drawn = rng.integers(rows, size=(size, rows)) + rows * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(dtype)


def resampled_means(table: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """[resamples, k] means of each column of a table [rows, k], float32 or float64, over the same resamples."""
    rows = len(table)
    return np.concatenate([counts @ table for counts in resampled_counts(rows, resamples, seed, table.dtype)]) / rows


def percentile_interval(value: float, draws: np.ndarray) -> Interval:
    """A value with the 2.5 % and 97.5 % quantiles of its draws [N]; [value, value] without a finite one.

    Draws on which the value is undefined (not finite) are left out.
    """
    known = draws[np.isfinite(draws)]
    if not len(known):
        return Interval(value, value, value)
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(value, 0.0 + float(low), 0.0 + float(high))  # 0.0 + x: never a negative zero


def wilson_interval(successes: int, trials: int) -> Interval:
    """Fraction of successes with Wilson's 95 % score interval, all in [0, 1]. Raises ValueError without trials."""
    from scipy.stats import binomtest

    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"successes must be from 0 to trials, and trials at least 1; found {successes} of {trials}")
    ends = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return Interval(successes / trials, float(ends.low), float(ends.high))


def unseen_share(rows: int) -> float:
    """The largest fraction of all rows, by Wilson's interval, that `rows` >= 1 rows may have none of: 0.3 for 9."""
    return wilson_interval(0, rows).high


def widened(interval: Interval, rows: int, low: float = 0.0, high: float = 1.0) -> Interval:
    """The interval of a mean of `rows` values in [low, high]; one of width 0 at a whole value is widened.

    Rows that all have the value 0 (or 1) give the bootstrap nothing to draw: its interval has no width, as if there
    could be no other row. Up to `unseen_share` of all rows may still be others, with any value of the range.
    """
    value = interval.value
    if not (interval.low == value == interval.high and math.isfinite(value) and value == round(value)):
        return interval
    unseen = unseen_share(rows)
    return Interval(value, value + unseen * (low - value), value + unseen * (high - value))


def batch_sizes(resamples: int, numbers: int) -> Iterator[int]:
    """How many resamples of so many numbers each to draw at a time, `resamples` in all, at least 1."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1; found {resamples}")
    step = max(1, MAX_DRAWS // numbers)
    for start in range(0, resamples, step):
        yield min(step, resamples - start)
