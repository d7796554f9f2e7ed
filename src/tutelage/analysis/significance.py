"""Is a difference between two methods significant: paired tests, Holm's correction, and the number of seeds needed.

Scores are tables [seeds, rows], or [seeds, rows, k] with a statistic for metrics that are not means of rows (entity F1,
macro-F1), over the same test rows; or `RunScores` made of such tables, so that a table used in several comparisons is
resampled once. `crossed_intervals` says how rows, seeds and trajectories are treated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from tutelage.analysis.crossed_intervals import (
    RESAMPLES,
    ROUNDING,
    Estimate,
    Grid,
    RunScores,
    ScalarStatistic,
    contrast,
    evaluate,
    score_runs,
)
from tutelage.utils.bootstrap import batch_sizes

ALPHA = 0.05
"""Significance level: the probability of any false difference among those that are tested together."""
MOST_SEEDS = 1000
"""Largest number of seeds that `seeds_needed` considers."""

_PERMUTATIONS = 20_000
"""Random choices of rows where the Pearson curve's tail is too light."""
_HEAVY_TAILED = 0.1
"""Excess kurtosis, as a fraction of the slice's rows, from which it is."""
_EXACT_SIGNS = 12

Scores = ArrayLike | RunScores
"""A table, or the scores made of one."""
TestName = Literal["crossed_t", "mcnemar_exact", "randomisation"]


# --- one and two methods ---


@dataclass(frozen=True, slots=True)
class Difference(Estimate):
    """First minus second, in the unit of the score."""

    p_value: float
    """Two-sided, in [0, 1]. About other seeds and other rows; with one seed about other rows alone."""
    test: TestName


def score_estimate(
    scores: Scores,
    statistic: ScalarStatistic | None = None,
    *,
    grid: Grid | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """One method's score, the mean over its seeds, with a 95 % interval over other seeds and other test rows.

    scores: [seeds, rows], whose mean is the score; with a statistic [seeds, rows, k], k numbers a row that hold all
    that the statistic needs (for example counts of matched, predicted and gold entities). Finite, the same rows in the
    same order for every seed. grid: teacher trajectory and seed of every line, if there are several trajectories; the
    interval is then over other trajectories too. One line: the interval is over rows alone, and the result says
    `rows_only`. Raises ValueError for other shapes, no rows, or a statistic that is undefined on all rows.
    """
    return contrast(as_run_scores(statistic, resamples, seed, scores=scores), [1.0], grid)


def paired_difference(
    first: Scores,
    second: Scores,
    statistic: ScalarStatistic | None = None,
    *,
    grid: Grid | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """First method minus second on the same rows, with a 95 % interval and a two-sided p-value.

    first, second, grid: as in `score_estimate`. Line s of both tables is the same seed, and differences are taken seed
    by seed. A table of one seed is one fixed model (a teacher), compared with every seed of the other; nothing is then
    said about training that model again.

    The p-value. Several seeds: Student's t with the error and the degrees of freedom of the interval, so that both
    agree. (A permutation over rows alone would call differences between seeds significant, and one over three seeds
    alone cannot get below 0.25. Simulated nulls with three and more seeds: 3 to 6 % rejected at 0.05.) One seed each:
    McNemar's exact test if both are 0/1 scores, else a randomisation test that swaps the two methods' answers row by
    row (of a mean, the sign-flip test); both compare these two trained models, not the methods.
    """
    scores = as_run_scores(statistic, resamples, seed, first=first, second=second)
    estimate = contrast(scores, [1.0, -1.0], grid)
    values = {field.name: getattr(estimate, field.name) for field in fields(estimate)}
    if not estimate.rows_only:
        return Difference(**values, p_value=estimate.p_value_two_sided(), test="crossed_t")
    (first_rows, second_rows), statistic = (part.table[0] for part in scores), scores[0].statistic
    if statistic is None and np.isin(first_rows, (0, 1)).all() and np.isin(second_rows, (0, 1)).all():
        p_value = mcnemar_exact(int((first_rows > second_rows).sum()), int((first_rows < second_rows).sum()))
        return Difference(**values, p_value=p_value, test="mcnemar_exact")
    p_value = randomisation_test(first_rows, second_rows, statistic, resamples=resamples, seed=seed)
    return Difference(**values, p_value=p_value, test="randomisation")


def as_run_scores(
    statistic: ScalarStatistic | None = None, resamples: int = RESAMPLES, seed: int = 0, **scores: Scores
) -> list[RunScores]:
    """Named tables as `RunScores` that share their resamples; `RunScores` are returned unchanged."""
    if all(isinstance(given, RunScores) for given in scores.values()):
        return list(scores.values())
    return score_runs(scores, statistic, resamples=resamples, seed=seed)


# --- tests ---


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Two-sided p-value of McNemar's exact test from the numbers of rows that only one of two models has right."""
    from scipy.stats import binomtest

    discordant = first_only + second_only
    return float(binomtest(first_only, discordant, 0.5).pvalue) if discordant else 1.0


def randomisation_test(
    first: np.ndarray,
    second: np.ndarray,
    statistic: ScalarStatistic | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> float:
    """Two-sided p-value that two models' answers are exchangeable row by row (approximate randomisation, Noreen 1989).

    first, second: [rows] scores, or [rows, k] with a statistic. At least 1 / (resamples + 1). Swaps on which the
    statistic is undefined are left out.
    """
    pool, rows = np.concatenate([first, second]), len(first)
    rng = np.random.default_rng(seed)

    def differences(kept: np.ndarray) -> np.ndarray:
        """[N] first minus second; first keeps its answer on the rows marked 1 in [N, rows] and swaps the others."""
        counts = np.concatenate([kept, 1 - kept], axis=1).astype(np.float64)
        return evaluate(statistic, counts, pool) - evaluate(statistic, 1 - counts, pool)

    observed = abs(differences(np.ones((1, rows)))[0])
    swapped = [differences(rng.integers(2, size=(size, rows))) for size in batch_sizes(resamples, 2 * rows)]
    values = np.abs(np.concatenate(swapped))
    values = values[np.isfinite(values)]
    # Equal up to rounding is as extreme.
    return float((1 + (values >= observed - ROUNDING).sum()) / (1 + len(values)))


def sign_flip_test(differences: np.ndarray) -> float:
    """Two-sided p-value that two models are exchangeable on rows with these differences [rows]: the sign-flip test.

    McNemar's exact test if every difference is -1, 0 or 1; all signs if at most 12 rows differ; otherwise the normal
    limit of the randomisation of signs, sum / sqrt(sum of squares), whose tails are no lighter than the exact ones
    (Efron 1969). Random signs could not give p-values as small as a correction over many slices needs.
    """
    nonzero = differences[differences != 0]
    if not len(nonzero):
        return 1.0
    if (np.abs(nonzero) == 1).all():
        return mcnemar_exact(int((nonzero > 0).sum()), int((nonzero < 0).sum()))
    total = abs(float(nonzero.sum()))
    if len(nonzero) <= _EXACT_SIGNS:
        signs = 1 - 2 * (np.arange(2 ** len(nonzero))[:, None] >> np.arange(len(nonzero)) & 1)
        return float((np.abs(signs @ nonzero) >= total - ROUNDING).mean())
    return math.erfc(total / math.sqrt(2 * float(nonzero @ nonzero)))


def membership_test(values: np.ndarray, indices: np.ndarray) -> float:
    """Two-sided p-value that the rows at `indices` are any rows: their mean of `values` [rows] against random choices.

    The permutation distribution of the sum over m of n rows has known moments; it is approximated by a Pearson curve of
    type III with the first three of them, skew included (Winkler et al. 2016), so that p-values can be as small as many
    slices need. If few rows hold most of the differences, as is common for losses, that curve's tail is too light: then
    choices are drawn at random, and p is at least 1e-4.
    """
    from scipy.stats import pearson3

    n, m = len(values), len(indices)
    centred = values - values.mean()
    variance = m * (n - m) / (n * (n - 1)) * float(centred @ centred) if n > 2 else 0.0
    if not 0 < m < n or variance <= 1e-24:
        return 1.0
    total = float(centred[indices].sum())
    third_moment = m * (n - m) * (n - 2 * m) / (n * (n - 1) * (n - 2)) * float((centred**3).sum())
    z, skew = total / math.sqrt(variance), third_moment / variance**1.5
    p_value = min(1.0, 2 * min(float(pearson3.cdf(z, skew)), float(pearson3.sf(z, skew))))
    kurtosis = n * float((centred**4).sum()) / float(centred @ centred) ** 2 - 3
    if kurtosis > _HEAVY_TAILED * min(m, n - m) and p_value < 0.3:
        return _permutation_p(centred, min(m, n - m), total if 2 * m <= n else -total)
    return p_value


def _permutation_p(centred: np.ndarray, size: int, total: float) -> float:
    """Two-sided p-value of the sum over `size` rows among random choices of as many, twice the smaller tail.

    Every run of `size` neighbours in a shuffled circle of the rows is a choice; those that do not overlap count as
    separate draws.
    """
    rng, n = np.random.default_rng(0), len(centred)
    disjoint = n // size
    rounds = -(-_PERMUTATIONS // disjoint)
    above, below = 0, 0
    for batch in batch_sizes(rounds, 4 * n):
        order = rng.permuted(np.tile(centred, (batch, 1)), axis=1)
        sums = np.cumsum(np.concatenate([np.zeros((batch, 1)), order, order[:, :size]], axis=1), axis=1)
        run_sums = sums[:, size : size + n] - sums[:, :n]
        above += int((run_sums >= total - 1e-9).sum())
        below += int((run_sums <= total + 1e-9).sum())
    draws = rounds * disjoint
    return min(1.0, 2 * (min(above, below) / n * disjoint + 1) / (draws + 1))


# --- several tests ---


def holm(p_values: ArrayLike) -> np.ndarray:
    """[tests] p-values adjusted by Holm's step-down method, in the order given: reject where they are at most alpha.

    The probability of any false rejection stays at most alpha, whatever the dependence of the tests. Raises ValueError
    outside [0, 1].
    """
    given = np.asarray(p_values, dtype=np.float64)
    if given.ndim != 1 or not ((given >= 0) & (given <= 1)).all():
        raise ValueError(f"p-values must be a list of numbers in [0, 1]; found {p_values}")
    order = np.argsort(given, kind="stable")
    stepped = np.minimum(np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1)), 1.0)
    adjusted = np.empty_like(stepped)
    adjusted[order] = stepped
    return adjusted


def holm_levels(p_values: ArrayLike) -> np.ndarray:
    """[tests] the level that Holm's method compares each p-value with, as long as all smaller ones are below theirs.

    Equal p-values have the level of the first of them: none of them is rejected before that one is.
    """
    given = np.asarray(p_values, dtype=np.float64)
    return ALPHA / (given[None] >= given[:, None]).sum(axis=1)


# --- seeds ---


class SeedsNeeded(TypedDict):
    """How many seeds would make a difference significant, if it and its variances stay the same."""

    verdict: Literal["settled", "more_seeds", "rows_too_few", "seed_variance_unknown"]
    """`settled`: it is significant. `rows_too_few`: no number of seeds up to 1,000 is enough on these rows, under these
    teacher trajectories. `seed_variance_unknown`: one seed says nothing about it."""
    total: int | None
    """Smallest number of seeds (under every trajectory) with `more_seeds`, the present one if `settled`; else None."""
    more: int | None
    """`total` less the present number of seeds; 0 if `settled`."""


def seeds_needed(difference: Estimate, significant: bool, level: float = ALPHA) -> SeedsNeeded:
    """The smallest number of seeds in total for which an interval at `level` would exclude 0.

    significant: whether the present seeds are enough, as a test says after correction. level: what the p-value must
    reach, 0.05 for a single difference; of several, Holm's level (`holm_levels`). `Estimate.with_seeds` says what more
    seeds change: if the parts of rows and teacher trajectories alone make the interval hold 0, no number of seeds is
    enough. A forecast from variances that few seeds estimate badly: a guide to what to run next, not a promise.
    """
    if significant:
        return {"verdict": "settled", "total": difference.seeds, "more": 0}
    if difference.seed_deviation is None:
        return {"verdict": "seed_variance_unknown", "total": None, "more": None}
    from scipy.special import stdtrit

    totals = np.arange(difference.seeds + 1, MOST_SEEDS + 1)
    error, freedom = difference.with_seeds(totals)
    enough = np.flatnonzero(stdtrit(freedom, 1 - level / 2) * error < abs(difference.interval.value))
    if not len(enough):
        return {"verdict": "rows_too_few", "total": None, "more": None}
    total = int(totals[enough[0]])
    return {"verdict": "more_seeds", "total": total, "more": total - difference.seeds}
