"""The students in summary.json: each against its teacher, and whether validation predicts which of them win."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from tutelage.analysis.crossed_intervals import ROUNDING
from tutelage.analysis.method_comparison import PredictionTable, prediction_table
from tutelage.analysis.slices import MEASURES, Measure
from tutelage.analysis.training_dynamics import SplitRecord
from tutelage.compare.cells import Cell, CellFields
from tutelage.compare.summary.scores import RecipeScores
from tutelage.method.risk_split import split_risk

IDENTITY_NATS = 1e-9
"""R(S) - R(T) and deficit - advantage may differ by this, which is rounding."""


class StudentSummary(CellFields):
    """A cell with a result."""

    score: float
    teacher_score: float
    beats_teacher_in_score: bool
    beats_teacher_in_nll: bool
    test: SplitRecord
    validation: SplitRecord | None
    """None if student and teacher have no validation row in common."""
    identity_error: float
    """Of R(S) - R(T) = deficit - advantage, on test."""


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


def _validation_split(student: dict[str, float], teacher: dict[str, float]) -> SplitRecord | None:
    """Risk split on the validation rows that both have; None if there are none. student, teacher: losses by row id."""
    shared = [id for id in student if id in teacher]
    return asdict(split_risk([student[id] for id in shared], [teacher[id] for id in shared])) if shared else None


def prediction(students: Sequence[StudentSummary]) -> dict[Measure, PredictionTable]:
    """Whether advantage above deficit on validation predicts that a student beats its teacher on test."""
    known = [student for student in students if student["validation"]]
    if not known:
        return {}
    advantages, deficits = ([student["validation"][side] for student in known] for side in ("advantage", "deficit"))
    return {m: prediction_table(advantages, deficits, beats_teacher(known, m)) for m in MEASURES}


def beats_teacher(students: Sequence[StudentSummary], measure: Measure) -> list[bool]:
    """Of each student, on test."""
    return [student[f"beats_teacher_in_{measure}"] for student in students]
