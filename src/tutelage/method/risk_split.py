"""When a student is better than its teacher: the SFS/TFS split of the risk, with bootstrap intervals. NumPy only.

The student-favoured subdomain (SFS) holds the rows with l(S) < l(T), strictly. The teacher-favoured subdomain (TFS)
holds all others, ties included. Then exactly (arXiv 2601.10114)

    R(S) - R(T) = P(TFS) E[l(S) - l(T) | TFS]  -  P(SFS) E[l(T) - l(S) | SFS]  =  deficit - advantage

so a student wins if and only if its advantage exceeds its deficit. l may be any loss that is lower when better: nats
per answer token, or 1 - score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tutelage.records import Interval
from tutelage.utils.bootstrap import percentile_interval, resampled_means, widened

SMALLEST_GAP = 0.005
"""A smaller gap in score is not divided by: a fraction of it would be mostly noise."""


@dataclass(frozen=True, slots=True)
class Split:
    """Two models on the same rows. Masses are fractions of the rows; all other values have the unit of the losses."""

    rows: int
    sfs_mass: float
    """P(SFS): fraction of rows with l(S) < l(T)."""
    tfs_mass: float
    """P(TFS) = 1 - P(SFS); includes rows with equal losses."""
    advantage: float
    """P(SFS) E[l(T) - l(S) | SFS], >= 0; 0 if SFS is empty."""
    deficit: float
    """P(TFS) E[l(S) - l(T) | TFS], >= 0; 0 if TFS is empty."""
    risk_student: float
    """R(S): mean loss of the student."""
    risk_teacher: float
    """R(T): mean loss of the teacher."""
    difference: float
    """R(S) - R(T) = deficit - advantage; negative if the student wins."""


@dataclass(frozen=True, slots=True)
class SplitInterval:
    """Values of a `Split` with paired bootstrap 95 % intervals."""

    difference: Interval
    advantage: Interval
    deficit: Interval


def split_risk(student: ArrayLike, teacher: ArrayLike) -> Split:
    """The risk of a student relative to its teacher, split into SFS and TFS.

    student, teacher: [rows] losses of the two models on the same rows in the same order, finite, at least one row.
    Raises ValueError otherwise.
    """
    student, teacher = _paired(student=student, teacher=teacher)
    in_sfs = student < teacher
    rows, gain = len(student), teacher - student
    # fsum rounds once, at the end, so that the identity holds to the last digits for any number of rows.
    return Split(
        rows=rows,
        sfs_mass=int(in_sfs.sum()) / rows,
        tfs_mass=int((~in_sfs).sum()) / rows,
        advantage=math.fsum(gain[in_sfs]) / rows,
        deficit=math.fsum(-gain[~in_sfs]) / rows,
        risk_student=math.fsum(student) / rows,
        risk_teacher=math.fsum(teacher) / rows,
        difference=math.fsum(student - teacher) / rows,
    )


def interval(student: ArrayLike, teacher: ArrayLike, resamples: int = 1000, seed: int = 0) -> SplitInterval:
    """Difference, advantage and deficit with 95 % percentile intervals of a seeded paired bootstrap.

    Rows are drawn with replacement, with the losses of both models, so that what makes a row hard for both cancels out.
    A single row, or identical rows, give intervals of width 0. resamples >= 1. Other arguments and errors as in
    `split_risk`.
    """
    student, teacher = _paired(student=student, teacher=teacher)
    split = split_risk(student, teacher)
    gain = teacher - student
    parts = np.stack([np.maximum(gain, 0.0), np.maximum(-gain, 0.0)], axis=1)
    advantage, deficit = resampled_means(parts, resamples, seed).T
    return SplitInterval(
        difference=percentile_interval(split.difference, deficit - advantage),
        advantage=percentile_interval(split.advantage, advantage),
        deficit=percentile_interval(split.deficit, deficit),
    )


def score_lead(scores: ArrayLike, other: ArrayLike) -> Interval:
    """Mean of [rows] scores minus another model's on the same rows, with a paired bootstrap 95 % interval.

    Scores lie in [0, 1]. Rows that all differ alike (none at all, as a rule) give the interval of
    `utils.bootstrap.widened`.
    """
    scores, other = _paired(scores=scores, other=other)
    lag = interval(1.0 - scores, 1.0 - other).difference
    lead = Interval(0.0 - lag.value, 0.0 - lag.high, 0.0 - lag.low)  # 0.0 - x: never a negative zero
    return widened(lead, len(scores), low=-1.0)


def gap_closed(sft: float, teacher: float, student: float) -> float | None:
    """Fraction of the gap between plain fine-tuning and the teacher that a student closes: (student - sft) / (teacher -
    sft).

    sft, teacher, student: scores on the same rows, higher is better. 0: as good as plain fine-tuning. 1: as good as the
    teacher. Above 1: better than the teacher. Below 0: worse than plain fine-tuning. None if the teacher is ahead of
    plain fine-tuning by less than SMALLEST_GAP. Raises ValueError for scores that are not finite.
    """
    for name, score in (("sft", sft), ("teacher", teacher), ("student", student)):
        if not math.isfinite(score):
            raise ValueError(f"the score of {name} must be a finite number; found {score}")
    gap = teacher - sft
    return None if gap < SMALLEST_GAP else (student - sft) / gap


def oracle_risk(anchor: ArrayLike, teacher: ArrayLike) -> float:
    """Mean of min(l(A), l(T)): the risk of an oracle router that asks the better of anchor and teacher on every row.

    A bound for a student that matches the teacher where the teacher is better, and the anchor elsewhere. Never above
    either model's risk. Arguments and errors as in `split_risk`.
    """
    anchor, teacher = _paired(anchor=anchor, teacher=teacher)
    return math.fsum(np.minimum(anchor, teacher)) / len(anchor)


def _paired(**losses: ArrayLike) -> list[np.ndarray]:
    """Two named lists of losses as checked [rows] float64 arrays."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in losses.items()}
    shapes = {name: values.shape for name, values in arrays.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) != 1:
        raise ValueError(f"losses must be two lists over the same rows; found shapes {shapes}")
    if 0 in next(iter(shapes.values())):
        raise ValueError("there are no rows to compare")
    for name, values in arrays.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(
                f"losses of {name} must be finite; found {values[bad[0]]} at row {bad[0]} ({len(bad)} such rows):"
                " leave these rows out of both models, or measure them again"
            )
    return list(arrays.values())
