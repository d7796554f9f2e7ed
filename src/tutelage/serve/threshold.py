"""The confidence below which rows go to the teacher, chosen on validation rows.

The report shows cascades on test rows, which measure and do not choose. Here both models answer the run's validation
rows; the rule is `choose`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tutelage.analysis.calibration import cascades
from tutelage.errors import ConfigError, DataError
from tutelage.predict.predictor import AnswerRecord, is_unusable
from tutelage.records import Example
from tutelage.run.artifacts import prepared_rows
from tutelage.tasks.base import BaseTask

AnswerExamples = Callable[[Sequence[Example]], list[AnswerRecord]]


class Chosen(NamedTuple):
    """A threshold, and what it did on the validation rows."""

    below: float
    """Confidence in [0, 1]; 0 if no row has to go for its confidence."""
    rows: int
    share: float
    """Fraction of the rows that went to the teacher, those without a usable answer among them."""
    score: float
    """Of the cascade: mean of the rows' own scores, in [0, 1]."""
    student: float
    teacher: float


def validation_rows(run: Path) -> list[Example]:
    """The run's prepared validation rows. Raises DataError if there are none."""
    rows = list(prepared_rows(run, "validation"))
    if not rows:
        raise DataError(f"{run} has no validation rows to choose a threshold on: type one, --defer-below 0.8")
    return rows


def choose(rows: Sequence[Example], task: BaseTask, student: AnswerExamples, teacher: AnswerExamples) -> Chosen:
    """The threshold at which the fewest rows go to the teacher and the score is the teacher's.

    Of the fractions that `calibration.cascades` tries, that is `surely_level`, where the 95 % interval of the
    difference lies above -0.01; without one, `level`. Answers that cannot be used go to the teacher at any threshold.
    Raises ConfigError if no fraction below 1 reaches the teacher.
    """
    own, theirs = student(rows), teacher(rows)
    scores, teacher_scores = (
        np.array([task.score(answer["prediction"], row) for answer, row in zip(answers, rows, strict=True)])
        for answers in (own, theirs)
    )
    confidences = np.array([answer["confidence"] or 0.0 for answer in own])
    unusable = np.array([is_unusable(answer) for answer in own])
    cascade = cascades({"student": scores}, teacher_scores, {"student": confidences}, {}, always={"student": unusable})[
        "student"
    ]
    alone, whole = cascade["points"][0]["score"], cascade["points"][-1]["score"]
    share = cascade["surely_level"] if cascade["surely_level"] is not None else cascade["level"]
    least = max(1.0 if share is None else share, int(unusable.sum()) / len(rows))
    point = next((point for point in cascade["points"] if point["share"] >= least), None)
    if point is None or point["threshold"] is None:
        raise ConfigError(
            f"on {len(rows):,} validation rows no threshold brings the student ({alone:.3f}) to its teacher"
            f" ({whole:.3f}) before all rows go there: type the confidence that you want, --defer-below 0.8"
        )
    return Chosen(point["threshold"], len(rows), point["share"], point["score"], alone, whole)
