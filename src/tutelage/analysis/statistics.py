"""Statistics of a comparison, methods x seeds x test rows: intervals, paired tests, corrections, ranks, forecasts.

Everything that has an interval takes tables [seeds, rows] of scores, or [seeds, rows, k] and a statistic for metrics
that are no means of rows (entity F1, macro-F1), over the same test rows; or what `resampling.take_samples` made of
them, so that tables that are met often are resampled once. How rows, seeds and trajectories are treated is in
`resampling.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from tutelage.analysis.crossed_intervals import (
    RESAMPLES,
    ROUNDING,
    Estimate,
    Grid,
    Sample,
    ScalarStatistic,
    contrast,
    evaluate,
    take_samples,
)
from tutelage.method.risk_split import SMALLEST_GAP
from tutelage.records import Interval
from tutelage.utils.bootstrap import batch_sizes

Z95 = 1.959963984540054
"""Half width of a two-sided 95 % interval in standard errors, of a normal distribution."""

ALPHA = 0.05
"""Chance of one false difference or more among those that are tested together."""
_MOST_SEEDS = 1000

Scores = ArrayLike | Sample
"""A table, or what was made of it."""


@dataclass(frozen=True, slots=True)
class Difference(Estimate):
    """First minus second, in the unit of the score."""

    p_value: float
    """Two-sided, in [0, 1]. With several seeds about training both again and other rows; with one seed about other
    rows."""
    test: Literal["crossed_t", "mcnemar_exact", "randomisation"]


@dataclass(frozen=True, slots=True)
class GapClosed:
    """Share of the gap between plain fine-tuning and the teacher that a student closes: 0 nothing, 1 all, above 1 more
    than all."""

    share: float | None
    """(student - sft) / (teacher - sft). None where the teacher is not ahead by at least `SMALLEST_GAP`."""
    low: float | None
    """Ends of the 95 % interval. None: unbounded, since the gap's own interval holds 0 (or there is no share)."""
    high: float | None
    gap: Estimate
    """teacher - sft, in the unit of the score."""


@dataclass(frozen=True, slots=True)
class TwoByTwo:
    """Effects of schedule and weighting, in the unit of the score; above 0: scheduled, or adaptive, scores higher."""

    schedule: Estimate
    """Main effect: scheduled minus best checkpoint, mean over both weightings."""
    weighting: Estimate
    """Main effect: adaptive minus constant, mean over both schedules."""
    interaction: Estimate
    """(adaptive - constant) when scheduled, minus the same with the best checkpoint: above 0 each helps the other."""


@dataclass(frozen=True, slots=True)
class SeedsNeeded:
    """How many seeds would settle a difference, if it and its variances stay what they are."""

    verdict: Literal["settled", "more_seeds", "rows_too_few", "seed_variance_unknown"]
    """`rows_too_few`: no number of seeds up to 1,000 does on these rows, under these teacher trajectories.
    `seed_variance_unknown`: one seed tells nothing of it."""
    total: int | None
    """Smallest number of seeds in total (under every trajectory), those there are where settled; None with the other
    verdicts."""
    more: int | None
    """The same less the seeds there are; 0 where settled."""


@dataclass(frozen=True, slots=True)
class PredictionTable:
    """Cells (data set x method x seed) by what validation foretold and what test showed: the student wins, or it does
    not."""

    true_wins: int
    """Foretold to win, and won."""
    false_wins: int
    """Foretold to win, and did not."""
    false_losses: int
    """Not foretold to win, but won."""
    true_losses: int
    """Not foretold to win, and did not."""
    accuracy: Interval
    """Share of cells foretold rightly, in [0, 1], with Wilson's 95 % interval."""


def hierarchical_bootstrap(
    scores: Scores,
    statistic: ScalarStatistic | None = None,
    *,
    grid: Grid | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """One method's score, the mean over its seeds, with a 95 % interval for other seeds and other test rows.

    scores: [seeds, rows], of which the mean is taken; with a statistic [seeds, rows, k], k numbers a row that hold all
    that the statistic needs (counts of matched, predicted and gold entities, say). Finite, the same rows in the same
    order for every seed.
    grid: teacher trajectory and seed of every line, where there are several trajectories; the interval is then for
    others of both. One line: rows alone are resampled and the result says `rows_only`. Raises ValueError for other
    shapes, no rows, or a statistic without a value on all rows.
    """
    return contrast(_samples(statistic, resamples, seed, scores=scores), [1.0], grid)


def paired_difference(
    first: Scores,
    second: Scores,
    statistic: ScalarStatistic | None = None,
    *,
    grid: Grid | None = None,
    same_seeds: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """First method minus second on the same rows, with a 95 % interval and a two-sided p-value.

    first, second, grid: as in `hierarchical_bootstrap`. same_seeds: line s of both tables is the same seed, so the
    difference is taken seed by seed; False: seeds of their own, any number each. A table of one seed is taken as one
    fixed model (a teacher), compared with every seed of the other; nothing is then said about training that model
    again.

    The p-value. Several seeds: Student's t with the error and the degrees of freedom that give the interval, so that
    both agree. A permutation over rows alone would call the luck of a seed a difference, and one over three seeds alone
    cannot get below 0.25 (simulated nulls with three seeds and more: 3 to 6 % rejected at 0.05). One seed each:
    McNemar's exact test where both are 0/1 scores, else a randomisation test which swaps the two methods' answers row
    by row (of a mean, the sign-flip test); as exact as they are, they compare these two trained models, not the
    methods.
    """
    samples = _samples(statistic, resamples, seed, first=first, second=second)
    estimate = contrast(samples, [1.0, -1.0], grid, same_seeds)
    if not estimate.rows_only:
        return _difference(estimate, estimate.two_sided(), "crossed_t")
    (one, other), statistic = (sample.table[0] for sample in samples), samples[0].statistic
    if statistic is None and np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all():
        p_value = mcnemar_exact(int((one > other).sum()), int((one < other).sum()))
        return _difference(estimate, p_value, "mcnemar_exact")
    return _difference(
        estimate, randomisation_test(one, other, statistic, resamples=resamples, seed=seed), "randomisation"
    )


def gap_closed_interval(
    sft: Scores,
    teacher: Scores,
    student: Scores,
    statistic: ScalarStatistic | None = None,
    *,
    grid: Grid | None = None,
    same_seeds: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> GapClosed:
    """Share of the gap from plain fine-tuning to the teacher that a student closes, with a 95 % interval.

    Arguments as in `paired_difference`; the teacher may have one seed. The interval is Fieller's: all shares r for
    which the interval of (student - sft) - r (teacher - sft) holds 0. Unlike percentiles of the ratio it stays right
    when the gap is barely known, and it is bounded exactly where the gap's own interval leaves 0 out.
    """
    samples = _samples(statistic, resamples, seed, sft=sft, teacher=teacher, student=student)
    gap = contrast(samples, [-1.0, 1.0, 0.0], grid, same_seeds)
    if gap.interval.value < SMALLEST_GAP:
        return GapClosed(None, None, None, gap)
    low_score, high_score, mine = (sample.values.mean() for sample in samples)
    share = float((mine - low_score) / (high_score - low_score))
    if not gap.settled:
        return GapClosed(share, None, None, gap)

    def left_over(ratio: float) -> Interval:
        return contrast(samples, [ratio - 1.0, -ratio, 1.0], grid, same_seeds).interval

    low = _crossing(lambda ratio: left_over(ratio).low, share, -1.0)
    high = _crossing(lambda ratio: left_over(ratio).high, share, 1.0)
    return GapClosed(share, low, high, gap)


def two_by_two(
    best_constant: Scores,
    best_adaptive: Scores,
    scheduled_constant: Scores,
    scheduled_adaptive: Scores,
    statistic: ScalarStatistic | None = None,
    *,
    grid: Grid | None = None,
    same_seeds: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> TwoByTwo:
    """The 2 x 2 factorial of schedule by weighting, from the four cells' tables on the same rows (td, td-aw, scd,
    scd-aw).

    Arguments as in `paired_difference`; all three effects come from the same rows and seeds.
    """
    named = {"best_constant": best_constant, "best_adaptive": best_adaptive}
    named |= {"scheduled_constant": scheduled_constant, "scheduled_adaptive": scheduled_adaptive}
    samples = _samples(statistic, resamples, seed, **named)
    effects = [
        contrast(samples, weights, grid, same_seeds)
        for weights in ((-0.5, -0.5, 0.5, 0.5), (-0.5, 0.5, -0.5, 0.5), (1.0, -1.0, -1.0, 1.0))
    ]
    return TwoByTwo(*effects)


def seeds_needed(difference: Estimate, settled: bool, level: float = ALPHA) -> SeedsNeeded:
    """The smallest number of seeds in total for which an interval at `level` would leave 0 out.

    settled: whether there are enough already, which a test says after correction. level: what p must come to, 0.05 of
    one difference alone; of several, Holm's part of it (`holm_levels`). What more seeds change is in
    `Estimate.with_seeds`: where rows and teacher trajectories alone leave 0 open, no number of seeds will do. A
    forecast from variances that few seeds know badly: a guide to what to run next, not a promise.
    """
    if settled:
        return SeedsNeeded("settled", difference.seeds, 0)
    if difference.seed_deviation is None:
        return SeedsNeeded("seed_variance_unknown", None, None)
    from scipy.special import stdtrit

    totals = np.arange(difference.seeds + 1, _MOST_SEEDS + 1)
    error, freedom = difference.with_seeds(totals)
    enough = np.flatnonzero(stdtrit(freedom, 1 - level / 2) * error < abs(difference.interval.value))
    if not len(enough):
        return SeedsNeeded("rows_too_few", None, None)
    total = int(totals[enough[0]])
    return SeedsNeeded("more_seeds", total, total - difference.seeds)


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Two-sided p-value of McNemar's exact test from the numbers of rows that only one of two models has right."""
    from scipy.special import bdtr

    discordant = first_only + second_only
    return min(1.0, 2 * float(bdtr(min(first_only, second_only), discordant, 0.5))) if discordant else 1.0


def randomisation_test(
    first: np.ndarray,
    second: np.ndarray,
    statistic: ScalarStatistic | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> float:
    """Two-sided p-value that two models' answers are exchangeable row by row (approximate randomisation, Noreen 1989).

    first, second: [rows] scores, or [rows, k] with a statistic. Never below 1 / (resamples + 1). Swaps on which the
    statistic has no value are left out.
    """
    pool, rows = np.concatenate([first, second]), len(first)
    rng = np.random.default_rng(seed)

    def differences(kept: np.ndarray) -> np.ndarray:
        """[N] first minus second, where first keeps its own answer on the rows marked in [N, rows] and swaps the
        others."""
        mine = np.concatenate([kept, 1 - kept], axis=1).astype(np.float64)
        return evaluate(statistic, mine, pool) - evaluate(statistic, 1 - mine, pool)

    found = abs(differences(np.ones((1, rows)))[0])
    swapped = [differences(rng.integers(2, size=(size, rows))) for size in batch_sizes(resamples, 2 * rows)]
    values = np.abs(np.concatenate(swapped))
    values = values[np.isfinite(values)]
    # Equal up to rounding is as extreme.
    return float((1 + (values >= found - ROUNDING).sum()) / (1 + len(values)))


def holm(p_values: ArrayLike) -> np.ndarray:
    """[tests] p-values adjusted by Holm's step-down method, in the order given: reject where they are at most alpha.

    The chance of any false rejection stays at most alpha, whatever the dependence of the tests. Raises ValueError
    outside [0, 1].
    """
    found = np.asarray(p_values, dtype=np.float64)
    if found.ndim != 1 or not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"p-values must be a list of numbers in [0, 1]; found {p_values}")
    order = np.argsort(found, kind="stable")
    stepped = np.minimum(np.maximum.accumulate(found[order] * np.arange(len(found), 0, -1)), 1.0)
    adjusted = np.empty_like(stepped)
    adjusted[order] = stepped
    return adjusted


def holm_levels(p_values: ArrayLike, alpha: float = ALPHA) -> np.ndarray:
    """[tests] what each p-value is compared with by Holm's method, as long as all smaller ones are below theirs.

    Equal ones have the level of the first of them: none of them is below its own before that one is.
    """
    found = np.asarray(p_values, dtype=np.float64)
    return alpha / (found[None] >= found[:, None]).sum(axis=1)


def mean_ranks(scores: ArrayLike) -> np.ndarray:
    """[methods] mean rank over data sets, 1 = best, from scores [methods, data sets], higher is better; ties share
    their mean.

    Scores that differ by rounding alone are ties. Raises ValueError where a score is missing (NaN): a method without a
    data set has no rank to compare; leave either out.
    """
    found = np.round(np.asarray(scores, dtype=np.float64), 12)
    if found.ndim != 2 or not found.size or np.isnan(found).any():
        raise ValueError(f"ranks need a score of every method on every data set, [methods, data sets]; found {found}")
    above = (found[None] > found[:, None]).sum(axis=1)
    level = (found[None] == found[:, None]).sum(axis=1)
    return (above + (level + 1) / 2).mean(axis=1)


def prediction_table(advantage: ArrayLike, deficit: ArrayLike, won: ArrayLike) -> PredictionTable:
    """Does the sign of advantage minus deficit on validation foretell a win on test?

    advantage, deficit: [cells] of `theory.split_risk` on validation, student against teacher, in the losses' unit; a
    win is foretold where advantage > deficit, strictly. won: [cells] booleans, whether the student beat its teacher on
    test. The interval takes cells as independent; those that share a data set or a teacher are not, and tell less than
    it says. Raises ValueError for no cells, or lists that differ in length.
    """
    gain, loss, truth = np.asarray(advantage, float), np.asarray(deficit, float), np.asarray(won, bool)
    if (
        gain.ndim != 1
        or not len(gain)
        or not gain.shape == loss.shape == truth.shape
        or not np.isfinite(gain - loss).all()
    ):
        raise ValueError(
            "advantage, deficit and won must be lists over the same cells, finite, at least one;"
            f" found shapes {gain.shape}, {loss.shape}, {truth.shape}"
        )
    foretold = gain > loss
    pairs = ((foretold, truth), (foretold, ~truth), (~foretold, truth), (~foretold, ~truth))
    counts = [int((one & other).sum()) for one, other in pairs]
    return PredictionTable(*counts, wilson_interval(counts[0] + counts[3], len(gain)))


def wilson_interval(successes: int, trials: int) -> Interval:
    """Share of successes with Wilson's 95 % score interval, all in [0, 1]. Raises ValueError without trials."""
    if not 0 <= successes <= trials or not trials:
        raise ValueError(
            f"successes must lie between 0 and the number of trials, at least 1; found {successes} of {trials}"
        )
    share, z2 = successes / trials, Z95 * Z95
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def _samples(statistic: ScalarStatistic | None, resamples: int, seed: int, **scores: Scores) -> list[Sample]:
    """Of tables that were not sampled yet, all of them with the same resamples."""
    if all(isinstance(given, Sample) for given in scores.values()):
        return list(scores.values())
    return take_samples(scores, statistic, resamples=resamples, seed=seed)


def _difference(estimate: Estimate, p_value: float, test: str) -> Difference:
    return Difference(
        **{field.name: getattr(estimate, field.name) for field in fields(estimate)}, p_value=p_value, test=test
    )


def _crossing(end: Callable[[float], float], start: float, side: float) -> float | None:
    """Where a decreasing end of an interval passes 0, on one side (-1 or 1) of a start; None if nowhere in reach."""
    from scipy.optimize import brentq

    if end(start) * side <= 0:
        return start
    step = 0.25
    while end(start + side * step) * side > 0:
        step *= 2
        if step > 1e9:
            return None
    return float(brentq(end, *sorted((start, start + side * step)), xtol=1e-9))
