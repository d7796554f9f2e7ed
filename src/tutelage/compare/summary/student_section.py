"""The students in summary.json: each against its teacher, and whether validation predicts which of them win."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TypedDict

from tutelage.analysis.crossed_intervals import ROUNDING
from tutelage.analysis.method_comparison import prediction_table
from tutelage.analysis.slices import MEASURES, Measure
from tutelage.compare.cells import Cell
from tutelage.compare.summary.scores import RecipeScores
from tutelage.method.risk_split import split_risk

IDENTITY_NATS = 1e-9
"""R(S) - R(T) and deficit - advantage may differ by this, which is rounding."""


class RiskSplitSummary(TypedDict):
    """A student's loss against its teacher's, see `risk_split.Split`."""

    rows: int
    sfs_mass: float
    tfs_mass: float
    advantage: float
    deficit: float
    risk_student: float
    risk_teacher: float
    difference: float


class StudentSummary(TypedDict):
    """A cell with a result."""

    recipe: str
    run: str
    method: str
    seed: int
    teacher_seed: int
    options: str
    score: float
    teacher_score: float
    beats_teacher_in_score: bool
    beats_teacher_in_nll: bool
    test: RiskSplitSummary
    validation: RiskSplitSummary | None
    """None if student and teacher have no validation row in common."""
    identity_error: float
    """Of R(S) - R(T) = deficit - advantage, on test."""


class AccuracySummary(TypedDict):
    """A fraction with Wilson's 95 % interval."""

    value: float
    low: float
    high: float


class PredictionSummary(TypedDict):
    """Students by what validation predicted and what happened on test."""

    true_wins: int
    """Predicted to win, and won."""
    false_wins: int
    """Predicted to win, and did not."""
    false_losses: int
    """Not predicted to win, but won."""
    true_losses: int
    """Not predicted to win, and did not."""
    accuracy: AccuracySummary


def summarise_student(recipe: RecipeScores, cell: Cell) -> StudentSummary:
    """The split of a student's risk against its teacher's, and whether it beat the teacher. A tie is no win."""
    student, teacher = recipe.models[cell.run, cell.student], recipe.models[cell.run, "teacher"]
    test = split_risk(student.test_losses, teacher.test_losses)
    identity_error = abs(test.difference - (test.deficit - test.advantage))
    if identity_error > IDENTITY_NATS:
        raise ArithmeticError(f"{cell}: R(S) - R(T) and deficit - advantage differ by {identity_error:.3g} nats")
    student_score, teacher_score = (model.metrics[recipe.task.metric] for model in (student, teacher))
    return {
        **asdict(cell),
        "score": student_score,
        "teacher_score": teacher_score,
        "beats_teacher_in_score": student_score > teacher_score + ROUNDING,
        "beats_teacher_in_nll": test.difference < -ROUNDING,
        "test": asdict(test),
        "validation": _validation_split(student.validation_losses, teacher.validation_losses),
        "identity_error": identity_error,
    }


def _validation_split(student: dict[str, float], teacher: dict[str, float]) -> RiskSplitSummary | None:
    """student, teacher: losses by row id."""
    shared = [id for id in student if id in teacher]
    return asdict(split_risk([student[id] for id in shared], [teacher[id] for id in shared])) if shared else None


def prediction(students: Sequence[StudentSummary]) -> dict[Measure, PredictionSummary]:
    """Whether advantage above deficit on validation predicts that a student beats its teacher on test."""
    known = [student for student in students if student["validation"]]
    if not known:
        return {}
    advantages, deficits = ([student["validation"][side] for student in known] for side in ("advantage", "deficit"))
    won: dict[Measure, list[bool]] = {
        "score": [student["beats_teacher_in_score"] for student in known],
        "nll": [student["beats_teacher_in_nll"] for student in known],
    }
    tables = {measure: prediction_table(advantages, deficits, won[measure]) for measure in MEASURES}
    return {measure: {**asdict(table), "accuracy": table.accuracy._asdict()} for measure, table in tables.items()}
