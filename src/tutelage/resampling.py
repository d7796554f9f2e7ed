"""The hierarchical bootstrap over seeds and test rows. NumPy, and SciPy where called.

Every method answers the same test rows with several seeds: seeds and rows are crossed, not nested. A score is then about

    mean + seed effect + row effect + (seed x row and noise)

and its mean over S seeds and R rows has the variance  seed/S + row/R + noise/(S R).  Here
- rows are resampled once for all seeds and all methods: what makes a row hard for everyone cancels in differences, and the
  seeds' mean varies over resamples by row/R + noise/(S R). Rows drawn anew for each seed would give row/(S R), as if three seeds
  were three test sets;
- the seeds' part is the variance between the seeds' values over S: seed/S + noise/(S R). Seeds drawn with replacement would vary
  by (S-1)/S of that, and rescaled they still lack the tails that a variance known from three values asks for (three seeds that
  differ much: 81 % covered instead of 95). So this part is normal, and the sum of both parts gets the tails of Student's t with
  Satterthwaite's degrees of freedom: S-1 where seeds dominate, R-1 where rows do;
- noise/(S R) is in both parts, so it is taken off the rows'. It shows in how the seeds part from their mean over resamples.

Simulated scores (normal and 0/1; 3, 5 and 10 seeds; either effect absent or dominant) are covered by nominal 95 % intervals in
92 to 97 %; two seeds in 87 to 96 %. Other choices were simulated beside it: noise counted twice gave up to 99.8 %; a normal part
for rows plus a t part for seeds up to 97.7 %, at intervals up to a third wider with three seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tutelage.records import Interval

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From draws [N, rows] (how often each row was drawn, float) and those rows [rows, k] to N values; NaN where there is none."""

RESAMPLES = 2000
MAX_DRAWS = 2_000_000  # resamples x rows held at once: 16 MB an array
_LUCK = 0.1


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score, or a difference of scores, as a mean over seeds on the test rows; everything in the unit of the score."""

    interval: Interval
    """Value on all rows and seeds, with the hierarchical bootstrap's 95 % interval."""
    seeds: int
    """Number of seeds; of a difference, that of the method with more of them."""
    rows: int
    row_error: float
    """Standard error of the value due to the choice of test rows. More seeds do not lessen it."""
    seed_deviation: float | None
    """Standard deviation of one seed's value about the mean of all seeds there could be, on these rows. None with one seed."""

    @property
    def rows_only(self) -> bool:
        """One seed: the interval is about other test rows only and says nothing of training again with another seed."""
        return self.seed_deviation is None

    @property
    def settled(self) -> bool:
        """Of a difference: whether the interval leaves 0 out."""
        return self.interval.low > 0 or self.interval.high < 0


class Cell(NamedTuple):
    """One method's values with its seeds, on all rows and on every resample of them."""

    values: np.ndarray
    """[seeds]"""
    draws: np.ndarray
    """[resamples, seeds]; resample n has the same rows in every cell that was made with it."""


def checked_tables(tables: dict[str, ArrayLike], statistic: Statistic | None) -> list[np.ndarray]:
    """Named tables as float64 [seeds, rows] or, with a statistic, [seeds, rows, k], over the same rows. Raises ValueError."""
    found = {name: np.asarray(table, dtype=np.float64) for name, table in tables.items()}
    shapes = {name: table.shape for name, table in found.items()}
    form = "[seeds, rows]" if statistic is None else "[seeds, rows, k]"
    if any(len(shape) != len(form.split(",")) for shape in shapes.values()):
        raise ValueError(f"scores must be {form}, one seed included; found shapes {shapes}")
    if any(0 in shape for shape in shapes.values()):
        raise ValueError(f"there must be at least one seed and one row: a mean over nothing has no value; found shapes {shapes}")
    if len({shape[1] for shape in shapes.values()}) != 1:
        raise ValueError(f"a paired comparison needs the same rows in the same order for every method; found shapes {shapes}")
    for name, table in found.items():
        bad = np.argwhere(~np.isfinite(table))
        if len(bad):
            raise ValueError(f"{name} must be finite; found {table[tuple(bad[0])]} at seed {bad[0][0]}, row {bad[0][1]}")
    return list(found.values())


def sample_cells(tables: Sequence[np.ndarray], statistic: Statistic | None, resamples: int, seed: int) -> list[Cell]:
    """Values of every table on all rows and on the same resamples of the rows; resamples without a value anywhere are left out."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1; found {resamples}")
    rows, rng = tables[0].shape[1], np.random.default_rng(seed)
    whole = [_by_seed(statistic, np.ones((1, rows)), table)[0] for table in tables]
    if not all(np.isfinite(values).all() for values in whole):
        raise ValueError("the statistic has no value on all rows of some seed: there is nothing to put an interval around")
    step, chunks = max(1, MAX_DRAWS // rows), []
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(rows, size=(size, rows)) + rows * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)
        chunks.append(np.concatenate([_by_seed(statistic, counts, table) for table in tables], axis=1))
    draws = np.concatenate(chunks)
    draws = draws[np.isfinite(draws).all(axis=1)]
    if not len(draws):
        draws = np.concatenate(whole)[None]
    ends = np.cumsum([len(values) for values in whole])[:-1]
    return [Cell(values, part) for values, part in zip(whole, np.split(draws, ends, axis=1), strict=True)]


def contrast(
    cells: Sequence[Cell], weights: Sequence[float], rows: int, seed: int, same_seeds: bool = True
) -> tuple[Estimate, np.ndarray]:
    """The weighted sum of the cells' means over seeds, and the [resamples] draws behind its interval (see the module)."""
    blocks = _blocks(cells, weights, same_seeds)
    value = float(sum(block.values.mean() for block in blocks))
    by_rows = sum(block.draws.mean(axis=1) for block in blocks) - value
    repeated = [(len(block.values), *_seed_variance(block)) for block in blocks if len(block.values) > 1]
    row_variance = float(by_rows.var())
    kept = max(row_variance - sum(noise for _, noise, _ in repeated), 0.0)
    deviations = by_rows * math.sqrt(kept / row_variance if row_variance else 0.0) if repeated else by_rows
    if repeated:
        parts = [variance / number for number, _, variance in repeated]
        ranks = np.random.default_rng([seed, 1]).permutation(len(by_rows))
        deviations = deviations + math.sqrt(sum(parts)) * _normal_quantiles(len(by_rows))[ranks]
        doubt = sum(part**2 / (number - 1) for part, (number, _, _) in zip(parts, repeated, strict=True))
        deviations = _stretched(deviations, freedom(kept, sum(parts), doubt, rows))
    low, high = np.quantile(value + deviations, [0.025, 0.975])
    deviation = math.sqrt(sum(variance for _, _, variance in repeated)) if repeated else None
    seeds = max(len(block.values) for block in blocks)
    return Estimate(Interval(value, float(low), float(high)), seeds, rows, math.sqrt(kept), deviation), value + deviations


def freedom(row_part: ArrayLike, seed_part: ArrayLike, doubt: ArrayLike, rows: int) -> np.ndarray:
    """Satterthwaite's degrees of freedom of a variance row_part + seed_part, elementwise, at least 1.

    doubt: sum over independent sets of S seeds of (their part of the variance)^2 / (S - 1).
    """
    row_part, total = np.asarray(row_part), np.asarray(row_part) + np.asarray(seed_part)
    below = np.asarray(doubt) + row_part**2 / max(rows - 1, 1)
    return np.maximum(np.divide(total**2, below, out=np.ones_like(below), where=below > 0), 1.0)


def _blocks(cells: Sequence[Cell], weights: Sequence[float], same_seeds: bool) -> list[Cell]:
    """Weighted cells, those with the same seeds added up seed by seed; cells of weight 0 are left out."""
    scaled = [Cell(weight * cell.values, weight * cell.draws) for cell, weight in zip(cells, weights, strict=True) if weight]
    if not same_seeds:
        return scaled
    sizes = sorted({len(cell.values) for cell in scaled})
    if len([size for size in sizes if size > 1]) > 1:
        raise ValueError(
            f"methods compared seed by seed must have the same seeds; found numbers of seeds {sizes}:"
            " keep the seeds that all have, or pass same_seeds=False"
        )
    groups = [[cell for cell in scaled if len(cell.values) == size] for size in sizes]
    return [Cell(sum(cell.values for cell in group), sum(cell.draws for cell in group)) for group in groups]


def _seed_variance(block: Cell) -> tuple[float, float]:
    """(noise/(S R) of the module, variance between the S seeds' values)."""
    from scipy.special import chdtri

    seeds = len(block.values)
    apart = block.draws - block.draws.mean(axis=1, keepdims=True)
    noise = float(apart.var(axis=0).sum()) / (seeds * (seeds - 1))
    # Seeds without any effect still differ by noise. Closer than in one of ten such cases they agree by luck: accuracies that
    # happen to be equal would otherwise make an interval of no width.
    least = noise * seeds * float(chdtri(seeds - 1, 1 - _LUCK)) / (seeds - 1)
    return noise, max(float(block.values.var(ddof=1)), least)


def _normal_quantiles(number: int) -> np.ndarray:
    """[number] evenly spaced quantiles of the standard normal: its tails without their luck."""
    from scipy.special import ndtri

    return ndtri((np.arange(number) + 0.5) / number)


def _stretched(deviations: np.ndarray, freedom: float) -> np.ndarray:
    """Each deviation times t's quantile over the normal's at its rank: the shape stays, the tails become Student's."""
    from scipy.special import stdtrit

    order, normal = np.argsort(deviations, kind="stable"), _normal_quantiles(len(deviations))
    student = stdtrit(freedom, (np.arange(len(deviations)) + 0.5) / len(deviations))
    stretched = np.empty_like(deviations)
    stretched[order] = deviations[order] * np.divide(student, normal, out=np.ones_like(normal), where=np.abs(normal) > 1e-9)
    return stretched


def _by_seed(statistic: Statistic | None, draws: np.ndarray, table: np.ndarray) -> np.ndarray:
    """[N, seeds] values of a table [seeds, rows(, k)] on draws [N, rows]."""
    if statistic is None:
        return draws @ table.T / draws.sum(axis=1, keepdims=True)
    return np.stack([evaluate(statistic, draws, rows) for rows in table], axis=1)


def evaluate(statistic: Statistic | None, draws: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[N] values on draws [N, rows] of one seed's rows: [rows] scores, or [rows, k] with a statistic."""
    return draws @ rows / draws.sum(axis=1) if statistic is None else np.asarray(statistic(draws, rows), dtype=np.float64)
