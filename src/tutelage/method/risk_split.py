"""When a student beats its teacher: the SFS/TFS split of the risk, its intervals, and what is left to gain. NumPy only.

The student-favoured subdomain SFS holds the rows with l(S) < l(T), strictly; the teacher-favoured subdomain TFS the
rest, ties included. Then exactly (arXiv 2601.10114)

    R(S) - R(T) = P(TFS) E[l(S) - l(T) | TFS]  -  P(SFS) E[l(T) - l(S) | SFS]  =  deficit - advantage

so a student wins if and only if its advantage outweighs its deficit. Any loss that is lower when better will do: nats
an answer token, or 1 - score, where SFS are the rows that the student answers better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tutelage.records import Interval
from tutelage.utils.bootstrap import percentile_interval, resampled_means

SMALLEST_GAP = 0.005
"""Gaps in score below half a point are not divided by: a share of so little is mostly noise."""


@dataclass(frozen=True, slots=True)
class Split:
    """Two models on the same rows. Masses are shares of the rows; everything else has the unit of the losses."""

    rows: int
    sfs_mass: float
    """P(SFS): share of the rows with l(S) < l(T)."""
    tfs_mass: float
    """P(TFS) = 1 - P(SFS); rows with equal losses are here."""
    advantage: float
    """P(SFS) E[l(T) - l(S) | SFS], >= 0; 0 where SFS is empty."""
    deficit: float
    """P(TFS) E[l(S) - l(T) | TFS], >= 0; 0 where TFS is empty."""
    risk_student: float
    """R(S): mean loss of the student."""
    risk_teacher: float
    """R(T): mean loss of the teacher."""
    difference: float
    """R(S) - R(T) = deficit - advantage; below 0 the student wins."""


@dataclass(frozen=True, slots=True)
class SplitInterval:
    """Values of a `Split` with paired bootstrap 95 % intervals."""

    difference: Interval
    advantage: Interval
    deficit: Interval


def split_risk(student: ArrayLike, teacher: ArrayLike) -> Split:
    """The risk of a student against a teacher's, split into SFS and TFS.

    student, teacher: [rows] losses of the two models on the same rows in the same order, finite, at least one row.
    Raises ValueError for anything else.
    """
    mine, other = _paired(student=student, teacher=teacher)
    favoured = mine < other
    rows, gain = len(mine), other - mine
    # fsum rounds once, at the end, so that the identity holds to the last digits for any number of rows.
    return Split(
        rows=rows,
        sfs_mass=int(favoured.sum()) / rows,
        tfs_mass=int((~favoured).sum()) / rows,
        advantage=math.fsum(gain[favoured]) / rows,
        deficit=math.fsum(-gain[~favoured]) / rows,
        risk_student=math.fsum(mine) / rows,
        risk_teacher=math.fsum(other) / rows,
        difference=math.fsum(mine - other) / rows,
    )


def interval(student: ArrayLike, teacher: ArrayLike, resamples: int = 1000, seed: int = 0) -> SplitInterval:
    """Difference, advantage and deficit with 95 % percentile intervals of a seeded paired bootstrap.

    Rows are drawn with replacement, both models' losses together: what makes a row hard for both cancels. One row, or
    rows that are all alike, give intervals of width 0. Arguments and errors as in `split_risk`; resamples >= 1.
    """
    mine, other = _paired(student=student, teacher=teacher)
    split, gain = split_risk(mine, other), other - mine
    parts = np.stack([np.maximum(gain, 0.0), np.maximum(-gain, 0.0)], axis=1)
    advantage, deficit = resampled_means(parts, resamples, seed).T
    return SplitInterval(
        difference=percentile_interval(split.difference, deficit - advantage),
        advantage=percentile_interval(split.advantage, advantage),
        deficit=percentile_interval(split.deficit, deficit),
    )


def gap_closed(sft: float, teacher: float, student: float) -> float | None:
    """Share of the gap between plain fine-tuning and the teacher that a student closes: (student - sft) / (teacher -
    sft).

    sft, teacher, student: scores on the same rows, higher is better. 0: as good as plain fine-tuning; 1: as good as the
    teacher; above 1: better than it; below 0: distillation lost. None where the teacher is not ahead of plain
    fine-tuning by at least
    SMALLEST_GAP: then there is no gap to close. Raises ValueError for scores that are not finite.
    """
    for name, score in (("sft", sft), ("teacher", teacher), ("student", student)):
        if not math.isfinite(score):
            raise ValueError(f"the score of {name} must be a finite number; found {score}")
    gap = teacher - sft
    return None if gap < SMALLEST_GAP else (student - sft) / gap


def perfect_gate(anchor: ArrayLike, teacher: ArrayLike) -> float:
    """Mean of min(l(A), l(T)): the risk of an oracle that asks the better of anchor and teacher on every row.

    What a student could reach by following the teacher exactly where the teacher is better and keeping the anchor's
    view elsewhere; never above either risk. Arguments and errors as in `split_risk`.
    """
    mine, other = _paired(anchor=anchor, teacher=teacher)
    return math.fsum(np.minimum(mine, other)) / len(mine)


def _paired(**losses: ArrayLike) -> list[np.ndarray]:
    """Two named lists of losses as [rows] float64, checked."""
    found = {name: np.asarray(values, dtype=np.float64) for name, values in losses.items()}
    sizes = {name: values.shape for name, values in found.items()}
    if any(len(shape) != 1 for shape in sizes.values()) or len(set(sizes.values())) != 1:
        raise ValueError(f"losses must be two lists over the same rows; found shapes {sizes}")
    if 0 in next(iter(sizes.values())):
        raise ValueError("there are no rows to compare: a mean over nothing has no value")
    for name, values in found.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(
                f"losses of {name} must be finite; found {values[bad[0]]} at row {bad[0]} ({len(bad)} such rows):"
                " leave these rows out of both models, or measure them again"
            )
    return list(found.values())
