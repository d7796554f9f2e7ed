"""Sections of the report on training: the teacher's checkpoints, the schedule, weights, learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.analysis.run_results import Results, StudentRecords, each_line
from tutelage.data.contents.sameness import prompt_text
from tutelage.method.methods import find_method, method_names
from tutelage.report.charts import Bar, Curves, LineChart, Staircase, curves, histogram, line_chart, staircase
from tutelage.run.artifacts import CheckpointScore, StageRecord
from tutelage.run.live_reader import read_log

MOST_POINTS = 160
"""Points of a learning curve; longer logs are averaged into as many."""
BINS, EXAMPLES = 20, 4
LOOKED_AT = 1000
"""Lines of weights that are held at a time to find the highest and the lowest."""
LOGS = {"teacher": "teach", "anchor": "anchor"}
"""Model fine-tuned before distillation: folder of its log."""


def main_first(results: Results) -> list[StudentRecords]:
    """The distilled students with records, the main one first."""
    return sorted(results.students, key=lambda student: student.name != results.main)


# --- the teacher's checkpoints ---


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The teacher's checkpoints on validation, in training order."""

    best: str
    chosen_by: str | None
    """`score` or `loss`; None where it was not recorded."""
    checkpoints: list[CheckpointScore]
    """As in teach/checkpoints.json."""
    charts: dict[str, LineChart]
    """Of `score` and `nll`, where all checkpoints have one."""
    labels: list[str]
    """Short names of the checkpoints."""


def trajectory(results: Results) -> Trajectory | None:
    """Validation score and loss of every teacher checkpoint; None before the teacher is trained."""
    checkpoints = results.taught.get("checkpoints") or []
    if not checkpoints:
        return None
    best = results.taught["best"]
    marked = [checkpoint["name"] == best for checkpoint in checkpoints]
    charts = _line_charts(checkpoints, marked)
    return Trajectory(best, results.taught.get("by"), checkpoints, charts, _labels(checkpoints))


def _labels(checkpoints: Sequence[CheckpointScore]) -> list[str]:
    """The steps, or numbers from 1 where the folders are not called `checkpoint-STEP`."""
    steps = [checkpoint["name"].removeprefix("checkpoint-") for checkpoint in checkpoints]
    return steps if all(step.isdigit() for step in steps) else [str(n) for n in range(1, len(steps) + 1)]


def _line_charts(records: Sequence[Mapping[str, Any]], marked: Sequence[bool]) -> dict[str, LineChart]:
    """Charts of `score` and `nll` of these records; those not finite everywhere are left out."""
    columns = {key: [record.get(key) for record in records] for key in ("score", "nll")}
    known = {key: values for key, values in columns.items() if values and all(map(_finite, values))}
    return {key: line_chart(values, marked, floor=0.0) for key, values in known.items()}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


# --- the schedule ---


@dataclass(frozen=True, slots=True)
class CandidateBar:
    """A checkpoint that could be followed: its divergences in nats, and as widths in percent of the stage's largest
    total."""

    checkpoint: str
    kl_best: float
    kl_student: float
    total: float
    best_width: float
    student_width: float


@dataclass(frozen=True, slots=True)
class ScheduleStage:
    """A stage: what was chosen and why."""

    number: int
    chosen: str | None
    """None: gold answers only."""
    reason: str
    stall: str | None
    seconds: float
    validation: dict[str, float | None] | None
    """`score` and `nll` of the student after the stage."""
    candidates: list[CandidateBar]


@dataclass(frozen=True, slots=True)
class StudentSchedule:
    """What a student followed, stage by stage."""

    model: str
    rule: str | None
    """Schedule of the method; None for a method that is not installed."""
    forward: bool
    """Whether the distance to the student is KL(T_k || S)."""
    advance: bool
    stages: list[ScheduleStage]
    kept: int
    """Number of the stage whose student was kept."""
    stalls: list[int]
    path: Staircase | None
    """None where the teacher's checkpoints are not known."""
    best: str | None


def schedule(results: Results, student: StudentRecords) -> StudentSchedule:
    """Every candidate and choice of a student with stages."""
    options = (results.recipe.get("distill") or {}).get("schedule") or {}
    return StudentSchedule(
        model=student.name,
        rule=_rule(student.method),
        forward=options.get("student_kl") == "forward",
        advance=bool(options.get("advance")),
        stages=[_stage(record) for record in student.stages],
        kept=student.kept["stage"],
        stalls=[record["stage"] for record in student.stages if record.get("stall")],
        path=_path(results, student),
        best=results.taught.get("best"),
    )


def _stage(record: StageRecord) -> ScheduleStage:
    scale = 100 / (max((candidate["total"] for candidate in record["candidates"]), default=0.0) or 1.0)
    candidates = [
        CandidateBar(
            *(candidate[key] for key in ("checkpoint", "kl_best", "kl_student", "total")),
            best_width=round(candidate["kl_best"] * scale, 2),
            student_width=round(candidate["kl_student"] * scale, 2),
        )
        for candidate in record["candidates"]
    ]
    values = (record["stage"], record["chosen"], record["reason"], record.get("stall"), record["seconds"])
    return ScheduleStage(*values, record.get("validation"), candidates)


def _rule(method: str) -> str | None:
    rule = find_method(method).schedule if method in method_names() else None
    return rule.__name__ if callable(rule) else rule


def _path(results: Results, student: StudentRecords) -> Staircase | None:
    """Stages across, checkpoints upward, the chosen ones joined."""
    names = [checkpoint["name"] for checkpoint in results.taught.get("checkpoints") or []]
    chosen = [record["chosen"] for record in student.stages]
    if not names or any(name not in names for name in chosen):
        return None
    return staircase(names, chosen, [bool(record.get("stall")) for record in student.stages])


# --- learning curves ---


@dataclass(frozen=True, slots=True)
class StudentCurves:
    """How a student's losses fell."""

    model: str
    losses: Curves | None
    """Cross-entropy and divergence over the steps of all stages, in nats per token."""
    validation: dict[str, LineChart]
    """`score` and `nll` after each stage."""
    stages: list[int]


@dataclass(frozen=True, slots=True)
class Learning:
    """Learning curves of the distilled students, the main one first, and of the models fine-tuned before."""

    students: list[StudentCurves]
    before: dict[str, Curves]
    """Of `teacher` and `anchor`."""


def learning(results: Results) -> Learning | None:
    """Learning curves from the training logs; None without any log."""
    students = [_student_curves(results.folder, student) for student in main_first(results)]
    before = {name: _cross_entropy(read_log(results.folder / part / "log.jsonl")) for name, part in LOGS.items()}
    drawn = Learning(
        [student for student in students if student.losses or student.validation],
        {name: chart for name, chart in before.items() if chart},
    )
    return drawn if drawn.students or drawn.before else None


def _student_curves(run: Path, student: StudentRecords) -> StudentCurves:
    losses = _losses_over_stages(read_log(run / "distill" / student.name / "log.jsonl"))
    kept = [record["stage"] == student.kept.get("stage") for record in student.stages]
    validation = _line_charts([record.get("validation") or {} for record in student.stages], kept)
    return StudentCurves(student.name, losses, validation, [record["stage"] for record in student.stages])


def _losses_over_stages(log: Sequence[Mapping[str, Any]]) -> Curves | None:
    """Cross-entropy and divergence over the steps of all stages in a row."""
    lines: dict[str, list[tuple[float, float]]] = {"ce": [], "kd": []}
    steps_before, borders, stage, step = 0, [], None, 0
    for record in log:
        if stage is not None and record.get("stage") != stage:
            steps_before += step
            borders.append(steps_before)
        stage, step = record.get("stage"), record["step"]
        for key, points in lines.items():
            if _positive(record.get(key)):
                points.append((steps_before + step, record[key]))
    return _curves(lines, borders)


def _cross_entropy(log: Sequence[Mapping[str, Any]]) -> Curves | None:
    return _curves({"ce": [(record["step"], record["ce"]) for record in log if _positive(record.get("ce"))]}, [])


def _curves(lines: Mapping[str, list[tuple[float, float]]], borders: Sequence[int]) -> Curves | None:
    drawn = {key: points for key, points in lines.items() if len(points) > 1}
    return curves(drawn, borders, height=190, most=MOST_POINTS) if drawn else None


def _positive(value: Any) -> bool:
    return _finite(value) and value > 0


# --- weights ---


@dataclass(frozen=True, slots=True)
class StageWeights:
    """Weights of the training rows in a stage."""

    number: int
    checkpoint: str | None
    mean: float
    above_half: float
    """Fraction of the rows with w > 0.5."""
    rows: int
    bars: list[Bar]


@dataclass(frozen=True, slots=True)
class SliceMeanWeights:
    """Mean weight of a slice of the training rows, by stage and over all stages."""

    key: str
    value: str | None
    rows: int
    by_stage: dict[str, float]
    mean: float


@dataclass(frozen=True, slots=True)
class StudentWeights:
    """How far a student followed its teacher."""

    model: str
    stages: list[StageWeights]
    mean: float
    constant: float | None
    """The weight that all rows have in all stages; None where they differ."""
    slices: list[SliceMeanWeights]


def weights(results: Results, student: StudentRecords) -> StudentWeights:
    """Histograms of w by stage, and mean weights by slice of the training rows as `diagnose` measured them."""
    values = np.concatenate(list(student.weights.values()))
    training = (results.summary.get("training") or {}).get("students", {}).get(student.name) or {}
    slices = [
        SliceMeanWeights(
            *(line[key] for key in ("key", "value", "rows", "by_stage")),
            mean=sum(line["by_stage"].values()) / len(line["by_stage"]),
        )
        for line in training.get("weights") or []
    ]
    return StudentWeights(
        model=student.name,
        stages=_stage_weights(student),
        mean=float(values.mean()),
        constant=float(values[0]) if np.ptp(values) == 0 else None,
        slices=sorted(slices, key=lambda line: -line.mean),
    )


def _stage_weights(student: StudentRecords) -> list[StageWeights]:
    chosen = {record["stage"]: record["chosen"] for record in student.stages}
    return [
        StageWeights(
            number=stage,
            checkpoint=chosen.get(stage),
            mean=float(values.mean()),
            above_half=float((values > 0.5).mean()),
            rows=len(values),
            bars=histogram(values, bins=BINS, height=84),
        )
        for stage, values in student.weights.items()
    ]


@dataclass(frozen=True, slots=True)
class WeightedRow:
    """A training row with its losses and weight in one stage."""

    follows: str
    """`teacher`: among the highest weights; `gold`: among the lowest."""
    prompt: str
    answer: str
    language: str | None
    anchor_nll: float
    teacher_nll: float
    weight: float


@dataclass(frozen=True, slots=True)
class WeightExtremes:
    """Training rows with the highest and lowest weights of a stage."""

    model: str
    stage: int
    rows: list[WeightedRow]


def weight_extremes(results: Results, student: StudentRecords) -> WeightExtremes | None:
    """Rows of the stage whose student was kept; None for constant weights."""
    stage, count, lines = student.kept.get("stage"), 0, []
    for line in each_line(results.folder / "distill" / student.name / "weights.jsonl"):
        if line["anchor_nll"] is None:
            return None
        if line["stage"] == stage:
            count += 1
            lines.append(line)
        if len(lines) > LOOKED_AT:
            lines = _ends(lines, EXAMPLES)
    highest = min(EXAMPLES, count // 2)
    lines = _ends(lines, highest)
    chosen = [("teacher", line) for line in lines[:highest]] + [("gold", line) for line in lines[highest:]]
    about = results.training_rows({line["id"] for _, line in chosen})
    rows = [
        WeightedRow(
            follows,
            prompt_text(about[line["id"]]["prompt"]),
            about[line["id"]]["answer"],
            about[line["id"]].get("language"),
            *(line[key] for key in ("anchor_nll", "teacher_nll", "weight")),
        )
        for follows, line in chosen
        if line["id"] in about
    ]
    return WeightExtremes(student.name, stage, rows) if rows else None


def _ends(lines: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The lines of the `count` highest weights and the `count` lowest, by descending weight."""
    ordered = sorted(lines, key=lambda line: (-line["weight"], line["id"]))
    return ordered[:count] + ordered[max(count, len(ordered) - count) :]
