"""Standard errors and 95 % intervals over test rows, student seeds and teacher trajectories. NumPy, and SciPy where
called.

Every method answers the same test rows with several seeds, and perhaps under several teacher trajectories: all three
are crossed, not nested. A score y is then about

    mean + trajectory effect + seed effect + row effect + what is left, for each of them and together

and the variance of its mean over T trajectories, S seeds and R rows is a sum of three parts:
- rows: the variance of the mean over resamples of the rows, drawn once for all seeds and all methods. What makes a row
hard for
  everyone cancels in differences. Rows drawn anew for each seed would be as if three seeds were three test sets. For a
  mean of rows this variance is the closed form that infinitely many resamples come to; another statistic is resampled;
- seeds: the variance between the seeds' means over trajectories, over S. Seeds drawn with replacement would vary by
(S-1)/S of it;
- trajectories: the same the other way round.
What differs with every seed and row is in both the rows' part and the seeds', so it is taken off the rows'; likewise
for trajectories. What differs with every seed under every trajectory is in both of theirs and taken off their sum,
which stays at least the greater of the two. The whole has Student's t with Satterthwaite's degrees of freedom, or a
little fewer (`degrees`): S-1 where seeds dominate, R-1 where rows do. With one seed under several trajectories the
interval is about other trajectories and rows alone.

Simulated scores are covered by nominal 95 % intervals in 90 to 98 %, two seeds being the low end: normal, 0/1 and
skewed losses; 2, 3, 5 and 10 seeds; 2 x 3, 3 x 3 and 5 x 3 trajectories and seeds; every effect absent or dominant. 2 x
3 in up to 99 % where nothing matters but the seed under its trajectory. Not covered (76 to 85 %): losses whose seeds
differ by factors, where a rare bad training is much of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tutelage.records import Interval
from tutelage.utils.bootstrap import resampled_counts

ScalarStatistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From draws [N, rows] (how often each row was drawn, float) and those rows [rows, k] to N values; NaN where there is
none."""
Grid = Sequence[tuple[int, int]]
"""Trajectory and seed of every line of a table."""

RESAMPLES = 2000
ROUNDING = 1e-12
"""Values nearer than this are equal: sums in another order differ in their last digits."""
_LUCK = 0.1


class Sample(NamedTuple):
    """Trained models' values on the test rows, and how other rows would move them."""

    values: np.ndarray
    """[models]"""
    errors: np.ndarray
    """[models, n]: errors @ errors.T is the covariance of the values over other test rows."""
    table: np.ndarray
    """[models, rows] or, with a statistic, [models, rows, k]: what the values are made of."""
    statistic: ScalarStatistic | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score, or a difference of scores, as a mean over trainings on the test rows; everything in the unit of the
    score."""

    interval: Interval
    """Value on all rows and trainings, with its 95 % interval."""
    seeds: int
    """Number of seeds; of a difference, that of the method with more of them."""
    rows: int
    row_error: float
    """Standard error of the value due to the choice of test rows. More seeds do not lessen it."""
    seed_deviation: float | None
    """Standard deviation of one seed's value about the mean of all seeds there could be, on these rows. None with one
    seed."""
    seed_noise: float
    """What that deviation would be by rows alone, of seeds without any effect; 0 with one seed."""
    trajectories: int
    """Number of teacher trajectories that the seeds were repeated under."""
    trajectory_error: float
    """Standard error due to the trajectories; 0 for one."""
    both_error: float
    """What of it is in the seeds' part as well, since it differs with every seed under every trajectory."""
    error: float
    """Standard error of the value: error^2 = row_error^2 + seed_deviation^2 / seeds + trajectory_error^2 -
    both_error^2."""
    freedom: float
    """Degrees of freedom of `error`."""

    @property
    def rows_only(self) -> bool:
        """One training: the interval is about other test rows only and says nothing of training again with another
        seed."""
        return self.seeds == self.trajectories == 1

    @property
    def settled(self) -> bool:
        """Of a difference: whether the interval leaves 0 out."""
        return self.interval.low > 0 or self.interval.high < 0

    def with_seeds(self, seeds: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """(`error`, `freedom`) as they would be with other numbers of seeds, elementwise, if variances stay what they
        are.

        seeds: 2 and more. The seeds' part shrinks with their number, and so does what of the trajectories' part is in
        it; neither rows nor trajectories become more. As today, seeds may not differ much less than rows alone make
        them. With today's number these are today's. Raises ValueError where there is one seed, which tells nothing of
        others.
        """
        if self.seed_deviation is None:
            raise ValueError("one seed tells nothing of how much seeds vary")
        count = np.asarray(seeds)
        seed_part = np.maximum(self.seed_deviation**2 / count, _least(self.seed_noise**2 / count, count))
        left, both = self.trajectory_error**2 - self.both_error**2, self.both_error**2 * self.seeds / count
        parts = (seed_part, count), (left + both, self.trajectories)
        return np.sqrt(self.row_error**2 + seed_part + left), degrees(self.row_error**2, self.rows, *parts)

    def two_sided(self) -> float:
        """Of a difference: p-value of Student's t, in [0, 1]; below 0.05 where the interval leaves 0 out."""
        from scipy.special import stdtr

        if abs(self.interval.value) <= ROUNDING:
            return 1.0
        return 2 * float(stdtr(self.freedom, -abs(self.interval.value) / self.error)) if self.error else 0.0


def take_samples(
    tables: dict[str, ArrayLike], statistic: ScalarStatistic | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Sample]:
    """Named tables [models, rows] or, with a statistic, [models, rows, k] over the same rows, with the same resamples
    for all.

    Without a statistic a value is the mean of its rows. Raises ValueError for other shapes, no rows, numbers that are
    not finite, or a statistic without a value on all rows. Resamples on which it has none are left out.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1; found {resamples}")
    found = _checked(tables, statistic)
    rows = found[0].shape[1]
    whole = [_by_model(statistic, np.ones((1, rows)), table)[0] for table in found]
    if not all(np.isfinite(values).all() for values in whole):
        raise ValueError(
            "the statistic has no value on all rows of some seed: there is nothing to put an interval around"
        )
    if statistic is None:
        scale = math.sqrt(rows * max(rows - 1, 1))
        return [
            Sample(values, (table - values[:, None]) / scale, table, None)
            for values, table in zip(whole, found, strict=True)
        ]
    drawn = _resampled(found, statistic, resamples, seed)
    scale = math.sqrt(rows / max(rows - 1, 1))
    return [
        Sample(values, scale * _deviations(draws), table, statistic)
        for values, draws, table in zip(whole, drawn, found, strict=True)
    ]


def stack(samples: Sequence[Sample]) -> Sample:
    """Samples of the same rows and resamples as one, their models one after another."""
    joined = (np.concatenate([sample[place] for sample in samples]) for place in range(3))
    return Sample(*joined, samples[0].statistic)


def contrast(
    samples: Sequence[Sample], weights: Sequence[float], grid: Grid | None = None, same_seeds: bool = True
) -> Estimate:
    """The weighted sum of the samples' means over trainings (see the module).

    A sample of one model is one fixed model, paired with every training of the others. grid: of the samples with
    several models; by default their lines are seeds of one trajectory. same_seeds: line by line the same trajectory and
    seed in all samples;
    False: each sample has seeds of its own.
    """
    from scipy.special import stdtrit

    rows = samples[0].table.shape[1]
    blocks = _blocks(samples, weights, same_seeds)
    value = float(sum(values.mean() for values, _ in blocks))
    errors = sum(errors.mean(axis=0) for _, errors in blocks)
    spreads = [_Spread.of(values, errors, grid) for values, errors in blocks if len(values) > 1]
    kept = max(float(errors @ errors) - sum(spread.noise for spread in spreads), 0.0)
    freedom = float(degrees(kept, rows, *(part for spread in spreads for part in spread.parts)))
    error = math.sqrt(kept + sum(spread.seed_part + spread.trajectory_part - spread.both_part for spread in spreads))
    half = float(stdtrit(freedom, 0.975)) * error
    seeds = max((spread.seeds for spread in spreads), default=1)
    return Estimate(
        interval=Interval(value, value - half, value + half),
        seeds=seeds,
        rows=rows,
        row_error=math.sqrt(kept),
        seed_deviation=math.sqrt(sum(spread.seeds * spread.seed_part for spread in spreads)) if seeds > 1 else None,
        seed_noise=math.sqrt(sum(spread.seeds * spread.seed_noise for spread in spreads)),
        trajectories=max((spread.trajectories for spread in spreads), default=1),
        trajectory_error=math.sqrt(sum(spread.trajectory_part for spread in spreads)),
        both_error=math.sqrt(sum(spread.both_part for spread in spreads)),
        error=error,
        freedom=freedom,
    )


def degrees(row_part: ArrayLike, rows: int, *parts: tuple[ArrayLike, ArrayLike]) -> np.ndarray:
    """Degrees of freedom of a variance, elementwise, at least 1. parts: (variance, known from this many values).

    1 / degrees is the sum over the parts of share^(2 - 1 / (values - 1)) / (values - 1). Satterthwaite squares the
    shares; but few values often say by luck that they are hardly any part, and then promise too much: squared, a part
    from two values that matters much is covered in 87 % instead of 91 %, one from three in 92 % instead of 93 %.
    """
    known = [(np.asarray(part), np.maximum(np.asarray(count) - 1, 1)) for part, count in ((row_part, rows), *parts)]
    total = sum(part for part, _ in known)
    shares = [(np.divide(part, total, out=np.zeros_like(total), where=total > 0), free) for part, free in known]
    below = sum(share ** (2 - 1 / free) / free for share, free in shares)
    return np.maximum(np.divide(1.0, below, out=np.ones_like(below), where=below > 0), 1.0)


class _Spread(NamedTuple):
    """What trainings add to the variance of their mean."""

    seeds: int
    trajectories: int
    seed_part: float
    trajectory_part: float
    both_part: float
    """What is in both of them, at most the lesser."""
    seed_noise: float
    """What of the seeds' part rows alone would make."""
    noise: float
    """What of the rows' part is in the others as well."""

    @property
    def parts(self) -> tuple[tuple[float, int], tuple[float, int]]:
        """As `degrees` takes them."""
        return (self.seed_part, self.seeds), (self.trajectory_part, self.trajectories)

    @classmethod
    def of(cls, values: np.ndarray, errors: np.ndarray, grid: Grid | None) -> _Spread:
        """Of values [models] with their errors [models, n]."""
        places = grid or [(0, number) for number in range(len(values))]
        if len(places) != len(values):
            raise ValueError(
                f"a grid names trajectory and seed of every line; found {len(places)} names for {len(values)} lines"
            )
        trajectories, seeds = (_members([place[side] for place in places]) for side in (0, 1))
        seed_part, in_seeds = _between(values, errors, seeds)
        trajectory_part, in_trajectories = _between(values, errors, trajectories)
        both_part, in_both = 0.0, 0.0
        if len(trajectories) > 1:
            both_part, in_both = _within(values, errors, np.concatenate([seeds, trajectories]).T)
        return cls(
            seeds=len(seeds),
            trajectories=len(trajectories),
            seed_part=seed_part,
            trajectory_part=trajectory_part,
            both_part=min(both_part, seed_part, trajectory_part),
            seed_noise=in_seeds,
            noise=in_seeds + in_trajectories - in_both,
        )


def _members(groups: Sequence[int]) -> np.ndarray:
    """[groups, lines] 1 where a line is in a group."""
    return np.array([[group == name for group in groups] for name in sorted(set(groups))], dtype=np.float64)


def _within(values: np.ndarray, errors: np.ndarray, design: np.ndarray) -> tuple[float, float]:
    """(variance of the mean by what a sum of seed and trajectory effects leaves over, what of it rows make).

    design: [lines, effects]. Zeros where nothing can be left over.
    """
    count, free = len(values), len(values) - int(np.linalg.matrix_rank(design))
    if not free:
        return 0.0, 0.0
    apart = np.eye(count) - design @ np.linalg.pinv(design)
    return float(((apart @ values) ** 2).sum()) / (free * count), float(((apart @ errors) ** 2).sum()) / (free * count)


def _between(values: np.ndarray, errors: np.ndarray, member: np.ndarray) -> tuple[float, float]:
    """(variance of the mean of the groups' means, what of it rows make); zeros for one group. member: as of
    `_members`."""
    count = len(member)
    if count == 1:
        return 0.0, 0.0
    average = member / member.sum(axis=1, keepdims=True)
    apart = average @ errors
    noise = float(((apart - apart.mean(axis=0)) ** 2).sum()) / (count * (count - 1))
    return max(float((average @ values).var(ddof=1)) / count, float(_least(noise, count))), noise


def _least(noise: ArrayLike, count: ArrayLike) -> np.ndarray:
    """The smallest variance between groups that is believed, elementwise, from the one that rows alone would make.

    Groups without any effect still differ by noise. Closer than in one of ten such cases they agree by luck: accuracies
    that happen to be equal would otherwise make an interval of no width.
    """
    from scipy.special import chdtri

    free = np.asarray(count) - 1
    return noise * chdtri(free, 1 - _LUCK) / free


def _blocks(
    samples: Sequence[Sample], weights: Sequence[float], same_seeds: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weighted values and errors, those with the same seeds added up line by line; samples of weight 0 are left out."""
    scaled = [
        (weight * sample.values, weight * sample.errors)
        for sample, weight in zip(samples, weights, strict=True)
        if weight
    ]
    if not same_seeds:
        return scaled
    sizes = sorted({len(values) for values, _ in scaled})
    if len([size for size in sizes if size > 1]) > 1:
        raise ValueError(
            f"methods compared seed by seed must have the same seeds; found numbers of seeds {sizes}:"
            " keep the seeds that all have, or pass same_seeds=False"
        )
    return [
        (sum(values for values, _ in scaled), sum(errors for _, errors in scaled))
    ]  # one model is added to every line


def _checked(tables: dict[str, ArrayLike], statistic: ScalarStatistic | None) -> list[np.ndarray]:
    found = {name: np.asarray(table, dtype=np.float64) for name, table in tables.items()}
    shapes = {name: table.shape for name, table in found.items()}
    form = "[seeds, rows]" if statistic is None else "[seeds, rows, k]"
    if any(len(shape) != len(form.split(",")) for shape in shapes.values()):
        raise ValueError(f"scores must be {form}, one seed included; found shapes {shapes}")
    if any(0 in shape for shape in shapes.values()):
        raise ValueError(
            f"there must be at least one seed and one row: a mean over nothing has no value; found shapes {shapes}"
        )
    if len({shape[1] for shape in shapes.values()}) != 1:
        raise ValueError(
            f"a paired comparison needs the same rows in the same order for every method; found shapes {shapes}"
        )
    for name, table in found.items():
        bad = np.argwhere(~np.isfinite(table))
        if len(bad):
            raise ValueError(
                f"{name} must be finite; found {table[tuple(bad[0])]} at seed {bad[0][0]}, row {bad[0][1]}"
            )
    return list(found.values())


def _resampled(tables: Sequence[np.ndarray], statistic: ScalarStatistic, resamples: int, seed: int) -> list[np.ndarray]:
    """Of each table [resamples, models]; resample n has the same rows in all."""
    chunks = [
        [_by_model(statistic, counts, table) for table in tables]
        for counts in resampled_counts(tables[0].shape[1], resamples, seed)
    ]
    return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]


def _deviations(draws: np.ndarray) -> np.ndarray:
    """[models, resamples] about each model's mean, over the root of their number; 0 where a resample has no value."""
    known = np.isfinite(draws)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, draws, 0.0).sum(axis=0) / count
    return (np.where(known, draws - mean, 0.0) / np.sqrt(count)).T


def _by_model(statistic: ScalarStatistic | None, draws: np.ndarray, table: np.ndarray) -> np.ndarray:
    """[N, models] values of a table [models, rows(, k)] on draws [N, rows]."""
    if statistic is None:
        return draws @ table.T / draws.sum(axis=1, keepdims=True)
    return np.stack([evaluate(statistic, draws, rows) for rows in table], axis=1)


def evaluate(statistic: ScalarStatistic | None, draws: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[N] values on draws [N, rows] of one model's rows: [rows] scores, or [rows, k] with a statistic."""
    return (
        draws @ rows / draws.sum(axis=1) if statistic is None else np.asarray(statistic(draws, rows), dtype=np.float64)
    )
