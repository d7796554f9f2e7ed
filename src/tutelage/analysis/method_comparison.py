"""What a comparison of methods says beyond pairs: gap closed, effects of schedule and weighting, ranks, predictions.

Scores are given as in `significance`, tables as [seeds, rows].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike

from tutelage.analysis.crossed_intervals import Estimate, Grid, contrast
from tutelage.analysis.significance import Scores, as_run_scores
from tutelage.method.risk_split import SMALLEST_GAP
from tutelage.records import Interval, IntervalRecord
from tutelage.utils.bootstrap import wilson_interval

# --- gap closed ---


@dataclass(frozen=True, slots=True)
class GapClosed:
    """Fraction of the gap from plain fine-tuning to the teacher that a student closes; above 1 it beats the teacher."""

    fraction: float | None
    """(student - sft) / (teacher - sft). None unless the teacher is ahead by at least `SMALLEST_GAP`."""
    low: float | None
    """Lower end of the 95 % interval. None: unbounded, since the gap's own interval holds 0 (or no fraction)."""
    high: float | None
    """Upper end, likewise."""
    gap: Estimate
    """teacher - sft, in the unit of the score."""


def gap_closed_interval(sft: Scores, teacher: Scores, student: Scores, *, grid: Grid | None = None) -> GapClosed:
    """Fraction of the gap from plain fine-tuning to the teacher that a student closes, with a 95 % interval.

    Arguments as in `significance.paired_difference`; the teacher may have one seed. The interval is Fieller's: all
    fractions r for which the interval of (student - sft) - r (teacher - sft) holds 0. Unlike percentiles of the ratio
    it stays right for a gap that is known badly, and it is bounded exactly where the gap's own interval excludes 0.
    """
    scores = as_run_scores(sft=sft, teacher=teacher, student=student)
    gap = contrast(scores, [-1.0, 1.0, 0.0], grid)
    if gap.interval.value < SMALLEST_GAP:
        return GapClosed(None, None, None, gap)
    sft_score, teacher_score, student_score = (part.values.mean() for part in scores)
    fraction = float((student_score - sft_score) / (teacher_score - sft_score))
    if not gap.excludes_zero:
        return GapClosed(fraction, None, None, gap)

    def remainder(ratio: float) -> Interval:
        return contrast(scores, [ratio - 1.0, -ratio, 1.0], grid).interval

    low = _root(lambda ratio: remainder(ratio).low, fraction, -1.0)
    high = _root(lambda ratio: remainder(ratio).high, fraction, 1.0)
    return GapClosed(fraction, low, high, gap)


def _root(decreasing: Callable[[float], float], start: float, side: float) -> float | None:
    """Where a decreasing function is 0, on one side (-1 or 1) of a start; None if nowhere within 1e9."""
    from scipy.optimize import brentq

    if decreasing(start) * side <= 0:
        return start
    step = 0.25
    while decreasing(start + side * step) * side > 0:
        step *= 2
        if step > 1e9:
            return None
    return float(brentq(decreasing, *sorted((start, start + side * step)), xtol=1e-9))


# --- 2 x 2 ---


@dataclass(frozen=True, slots=True)
class TwoByTwo:
    """Effects of schedule and weighting, in the unit of the score; above 0: scheduled, or adaptive, scores higher."""

    schedule: Estimate
    """Main effect: scheduled minus best checkpoint, mean over both weightings."""
    weighting: Estimate
    """Main effect: adaptive minus constant, mean over both schedules."""
    interaction: Estimate
    """(adaptive - constant) when scheduled, minus the same with the best checkpoint: above 0 each helps the other."""


def two_by_two(
    best_constant: Scores,
    best_adaptive: Scores,
    scheduled_constant: Scores,
    scheduled_adaptive: Scores,
    *,
    grid: Grid | None = None,
) -> TwoByTwo:
    """The 2 x 2 factorial of schedule by weighting from its four cells (td, td-aw, scd, scd-aw) on the same rows.

    Arguments as in `significance.paired_difference`; all three effects come from the same rows and seeds.
    """
    cells = {"best_constant": best_constant, "best_adaptive": best_adaptive}
    scores = as_run_scores(**cells, scheduled_constant=scheduled_constant, scheduled_adaptive=scheduled_adaptive)
    contrasts = ((-0.5, -0.5, 0.5, 0.5), (-0.5, 0.5, -0.5, 0.5), (1.0, -1.0, -1.0, 1.0))
    return TwoByTwo(*(contrast(scores, weights, grid) for weights in contrasts))


# --- over data sets, and from validation to test ---


def mean_ranks(scores: ArrayLike) -> np.ndarray:
    """[methods] mean rank over data sets, 1 = best, from scores [methods, data sets], higher is better; ties share
    their mean rank.

    Scores that differ by rounding alone are ties. Raises ValueError for a missing score (NaN): leave out the method or
    the data set.
    """
    from scipy.stats import rankdata

    rounded = np.round(np.asarray(scores, dtype=np.float64), 12)
    if rounded.ndim != 2 or not rounded.size or np.isnan(rounded).any():
        raise ValueError(f"ranks need a score of every method on every data set, [methods, data sets]; found {rounded}")
    return rankdata(-rounded, axis=0).mean(axis=1)


class PredictionTable(TypedDict):
    """Cells (data set x method x seed) by what validation predicts and what test shows: the student wins, or not."""

    true_wins: int
    """Predicted to win, and won."""
    false_wins: int
    """Predicted to win, and did not."""
    false_losses: int
    """Not predicted to win, but won."""
    true_losses: int
    """Not predicted to win, and did not."""
    accuracy: IntervalRecord
    """Fraction of cells predicted right, in [0, 1], with Wilson's 95 % interval."""


def prediction_table(advantage: ArrayLike, deficit: ArrayLike, won: ArrayLike) -> PredictionTable:
    """Does the sign of advantage minus deficit on validation predict whether the student wins on test?

    advantage, deficit: [cells] of `risk_split.split_risk` on validation, student against teacher, in the losses' unit;
    a win is predicted if advantage > deficit, strictly. won: [cells] booleans, whether the student beat its teacher on
    test. The interval treats cells as independent; those that share a data set or a teacher are not, and the true
    uncertainty is then larger. Raises ValueError for no cells, or lists of different lengths.
    """
    gain, loss, wins = np.asarray(advantage, float), np.asarray(deficit, float), np.asarray(won, bool)
    same_cells = gain.ndim == 1 and len(gain) > 0 and gain.shape == loss.shape == wins.shape
    if not same_cells or not np.isfinite(gain - loss).all():
        raise ValueError(
            "advantage, deficit and won must be lists over the same cells, finite, at least one;"
            f" found shapes {gain.shape}, {loss.shape}, {wins.shape}"
        )
    predicted = gain > loss
    return {
        "true_wins": int((predicted & wins).sum()),
        "false_wins": int((predicted & ~wins).sum()),
        "false_losses": int((~predicted & wins).sum()),
        "true_losses": int((~predicted & ~wins).sum()),
        "accuracy": wilson_interval(int((predicted == wins).sum()), len(gain)).as_record(),
    }
