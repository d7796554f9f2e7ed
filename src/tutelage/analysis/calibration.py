"""Confidences of the models: whether they agree with how often answers are right, and cascades that decide by them.

A model's confidence in an answer is the probability it gave the whole of it, end-of-sequence included: the product over
its tokens. `evaluate` records it as `confidence` in predictions.jsonl.

In a cascade a student answers where it is confident and passes the other rows on to its teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

import numpy as np

from tutelage.records import Interval, IntervalRecord
from tutelage.utils.bootstrap import percentile_interval, resampled_means, wilson_interval

BINS = 15
"""Bins of equal width, as in Guo et al. 2017 (arXiv 1706.04599), so that ECE can be compared with published values."""
FRACTIONS = tuple(n / 20 for n in range(21))
"""Fractions of the rows that are passed on to the teacher: the points of a cascade, as far as a threshold does it."""
TOLERANCE = 0.01
"""A cascade is as good as the teacher if the 95 % interval of their difference lies above -TOLERANCE."""
_CHANCE_DRAWS = 200
_ROUNDING = 1e-12


# --- calibration ---


class ReliabilityBin(TypedDict):
    """Answers whose confidence lies between two values."""

    low: float
    """Lower end, included."""
    high: float
    """Upper end, excluded except for 1."""
    rows: int
    """At least 1: empty bins are left out."""
    confidence: float
    """Mean confidence."""
    accuracy: IntervalRecord
    """Fraction of right answers, with Wilson's 95 % interval."""


CalibrationSource = TypedDict("CalibrationSource", {"from": Literal["confidence"]})
"""`from`: what calibration was measured on; only recorded confidences are used."""


class Calibration(CalibrationSource):
    """Calibration of one model on the test rows."""

    rows: int
    accuracy: float
    """Fraction of right answers."""
    confidence: float
    """Mean confidence."""
    ece: float
    """Expected calibration error: mean over rows of |accuracy - confidence| of the row's bin."""
    ece_by_chance: float
    """95 % of perfectly calibrated models with these confidences have an ECE below this on as many rows."""
    brier: float
    """Brier score: mean squared difference of confidence and correctness."""
    auroc: float | None
    """Probability that a right answer has a higher confidence than a wrong one; None if all are right or all wrong."""
    bins: list[ReliabilityBin]


def reliability(confidence: np.ndarray, correct: np.ndarray, *, bins: int = BINS) -> Calibration:
    """Calibration of a model from its confidences.

    confidence: [rows] in [0, 1]. correct: [rows] booleans, whether the whole answer is right. Raises ValueError for
    other values or shapes, or without rows.
    """
    from sklearn.metrics import roc_auc_score

    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=bool)
    in_range = ((confidence >= 0) & (confidence <= 1)).all()  # False for NaN
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence) or not in_range:
        raise ValueError(
            "confidence and correct must be lists over the same rows, confidence in [0, 1];"
            f" found {confidence}, {correct}"
        )
    bin_index = np.minimum((confidence * bins).astype(int), bins - 1)
    rng = np.random.default_rng(0)
    by_chance = [
        expected_calibration_error(confidence, rng.random(len(confidence)) < confidence, bin_index)
        for _ in range(_CHANCE_DRAWS)
    ]
    occupied = [(index, bin_index == index) for index in np.unique(bin_index).tolist()]
    return {
        "from": "confidence",
        "rows": len(confidence),
        "accuracy": float(correct.mean()),
        "confidence": float(confidence.mean()),
        "ece": expected_calibration_error(confidence, correct, bin_index),
        "ece_by_chance": float(np.quantile(by_chance, 0.95)),
        "brier": float(((confidence - correct) ** 2).mean()),
        "auroc": float(roc_auc_score(correct, confidence)) if 0 < correct.sum() < len(correct) else None,
        "bins": [_bin(index, bins, confidence[inside], correct[inside]) for index, inside in occupied],
    }


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bin_index: np.ndarray) -> float:
    """ECE in [0, 1] of [rows] confidences and booleans, each row in the bin of its index."""
    return float(np.abs(np.bincount(bin_index, correct - confidence)).sum() / len(confidence))


def _bin(index: int, bins: int, confidence: np.ndarray, correct: np.ndarray) -> ReliabilityBin:
    """A bin from the values of the rows in it."""
    return {
        "low": index / bins,
        "high": (index + 1) / bins,
        "rows": len(correct),
        "confidence": float(confidence.mean()),
        "accuracy": wilson_interval(int(correct.sum()), len(correct)).as_record(),
    }


# --- cascades ---


class CascadePoint(TypedDict):
    """A cascade that passes a fraction of the rows on to the teacher."""

    share: float
    """Fraction of the rows that are passed on."""
    threshold: float | None
    """Confidence from which on the student answers, 0 where its confidence passes on none. None where no threshold does
    it: all rows are passed on, or none, not even those that always are."""
    score: float
    """Mean row score in [0, 1]."""
    against_teacher: IntervalRecord
    """Score minus the teacher's, with a 95 % interval of a paired bootstrap over rows; the order of rows is fixed."""
    cost: float | None
    """Cost of a row, in calls of the teacher; the student is always called. None if the student's is unknown."""
    perfect: float
    """Score of an oracle router that passes on at most as many rows, those on which the teacher is better."""


class Cascade(TypedDict):
    """One student in front of the teacher."""

    points: list[CascadePoint]
    """By share: the student alone, then one for each of FRACTIONS that is not below the rows that always go on."""
    level: float | None
    """Smallest fraction whose score is not below the teacher's; None if there is none below 1."""
    surely_level: float | None
    """Smallest fraction whose interval against the teacher lies above -TOLERANCE; None if there is none below 1."""


def cascades(
    students: Mapping[str, np.ndarray],
    teacher: np.ndarray,
    confidences: Mapping[str, np.ndarray],
    costs: Mapping[str, float | None],
    *,
    always: Mapping[str, np.ndarray] | None = None,
    resamples: int = 1000,
) -> dict[str, Cascade]:
    """The cascade of each student and the teacher, by student.

    students, teacher: [rows] scores in [0, 1]. confidences: [rows] of each student; the rows with the lowest go to the
    teacher, equal ones in the order of the rows. costs: of a student's call, in calls of the teacher; None if unknown.
    always: [rows] whether a student's row goes to the teacher whatever its confidence, since its answer cannot be used.
    """
    first = {name: always[name] if always else np.zeros(len(teacher), dtype=bool) for name in students}
    order = {name: np.lexsort((confidences[name], ~first[name])) for name in students}  # stable
    passed_on = {name: _passed_on(len(teacher), int(first[name].sum())) for name in students}
    scores = {n: _cascade_scores(student, teacher, order[n], passed_on[n]) for n, student in students.items()}
    differences = np.concatenate(list(scores.values())) - teacher
    ends = np.cumsum([len(lines) for lines in scores.values()])[:-1]
    draws = np.split(resampled_means(differences.T.astype(np.float32), resamples), ends, axis=1)
    made: dict[str, Cascade] = {}
    for (name, student), student_draws in zip(students.items(), draws, strict=True):
        against_teacher = [
            percentile_interval(float(score.mean() - teacher.mean()), draw)
            for score, draw in zip(scores[name], student_draws.T, strict=True)
        ]
        oracle = _oracle_scores(student, teacher)
        ranked = np.where(first[name], np.nan, confidences[name])[order[name]]
        means = scores[name].mean(axis=1)
        points = _points(passed_on[name], means, against_teacher, ranked, costs.get(name), oracle)
        made[name] = {
            "points": points,
            "level": _smallest(points, "value", -_ROUNDING),
            "surely_level": _smallest(points, "low", -TOLERANCE),
        }
    return made


def _passed_on(rows: int, always: int) -> list[int]:
    """Rows that go to the teacher in each point, ascending. always: those that do at any threshold."""
    return sorted({0, *(max(round(fraction * rows), always) for fraction in FRACTIONS[1:])} | {always})


def _points(
    passed_on: Sequence[int],
    scores: np.ndarray,
    against_teacher: Sequence[Interval],
    ranked: np.ndarray,
    cost: float | None,
    oracle: np.ndarray,
) -> list[CascadePoint]:
    """scores, against_teacher: of each point. ranked: [rows] confidences, ascending, after a NaN for each row that is
    passed on at any threshold. oracle: as `_oracle_scores`."""
    rows, points = len(ranked), list[CascadePoint]()
    for count, score, interval in zip(passed_on, scores.tolist(), against_teacher, strict=True):
        points.append({
            "share": count / rows,
            "threshold": _threshold(ranked, count),
            "score": score,
            "against_teacher": interval.as_record(),
            "cost": None if cost is None else cost + count / rows,
            "perfect": float(oracle[count]),
        })  # fmt: skip
    return points


def _threshold(ranked: np.ndarray, count: int) -> float | None:
    """The threshold that passes on the first rows; arguments as for `_points`."""
    always = int(np.isnan(ranked).sum())
    if count == len(ranked) or count < always:
        return None
    # The lowest confidence of these rows would pass none of them on, but a new row with a lower one.
    return float(ranked[count]) if count > always else 0.0


def _cascade_scores(
    student: np.ndarray, teacher: np.ndarray, order: np.ndarray, passed_on: Sequence[int]
) -> np.ndarray:
    """[points, rows] scores of the cascade that passes on the first rows of the order."""
    scores = np.tile(student, (len(passed_on), 1))
    for line, count in zip(scores, passed_on, strict=True):
        to_teacher = order[:count]
        line[to_teacher] = teacher[to_teacher]
    return scores


def _oracle_scores(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """[rows + 1] best mean score with at most 0, 1, ... calls of the teacher."""
    gains = np.sort(np.maximum(teacher - student, 0.0))[::-1]
    return student.mean() + np.concatenate([[0.0], np.cumsum(gains)]) / len(student)


def _smallest(points: Sequence[CascadePoint], end: Literal["value", "low"], bound: float) -> float | None:
    """Smallest fraction below 1 at which the value, or the lower end, against the teacher is at least the bound."""
    return next((point["share"] for point in points[:-1] if point["against_teacher"][end] >= bound), None)
