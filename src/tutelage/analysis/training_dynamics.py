"""Training dynamics from a run folder: losses behind the weights, the weights, losses on validation rows by stage.

`diagnose` writes them as `training` of summary.json. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from tutelage.analysis.slices import by_value
from tutelage.method.risk_split import split_risk
from tutelage.run.manifest import MANIFEST
from tutelage.utils.files import read_json, read_jsonl
from tutelage.utils.integrity import present

CHANGED = 0.1
"""Nats a token by which a row's loss must change to count: its answer's tokens become a tenth more or less likely.
Passes in bfloat16, or in a batch with other rows, differ by a hundredth and less."""
MOST_IDS = 20
"""Most rows whose ids are given."""


class SplitRecord(TypedDict):
    """A `risk_split.Split` in a JSON file, of two models on the training rows."""

    rows: int
    sfs_mass: float
    tfs_mass: float
    advantage: float
    deficit: float
    risk_student: float
    risk_teacher: float
    difference: float


class WeightSummary(TypedDict):
    """Weights w of a stage's training rows."""

    mean: float
    p05: float
    median: float
    p95: float


class StageDynamics(TypedDict):
    """A stage of a student."""

    stage: int
    """From 1."""
    chosen: str | None
    """The checkpoint that was followed."""
    validation: dict[str, float | None] | None
    """`score` and `nll` after the stage."""
    train: NotRequired[SplitRecord]
    """Anchor against checkpoint, from the losses that the weights were computed from. Absent for constant weights."""
    weight: NotRequired[WeightSummary]
    """Absent for constant weights."""


class SliceWeights(TypedDict):
    """Mean weight of a slice of the training rows."""

    key: str
    value: str | None
    rows: int
    by_stage: dict[str, float]


class StageChange(TypedDict):
    """A student on the validation rows after a stage."""

    stage: int
    nll: float
    score: float | None
    """Means; the score is None if it is not known of all rows."""
    better: int | None
    worse: int | None
    """Rows whose loss fell or rose by more than the threshold since the stage before; None in the first."""


class ForgottenRows(TypedDict):
    """Rows whose loss after the kept stage exceeds the lowest of an earlier stage by more than the threshold."""

    stage: int
    count: int
    ids: list[str]
    """Up to 20, the greatest increase first."""


class RowsByStage(TypedDict):
    """What each stage did to the same validation rows."""

    rows: int
    threshold: float
    stages: list[StageChange]
    forgotten: ForgottenRows


class StudentDynamics(TypedDict):
    """The training of one student."""

    stages: list[StageDynamics]
    kept_stage: int | None
    weights: NotRequired[list[SliceWeights]]
    """Absent for constant weights."""
    rows_by_stage: RowsByStage | None


class TrainingDynamics(TypedDict):
    """`training` of summary.json."""

    checkpoints: dict[str, SplitRecord]
    """The anchor against each checkpoint."""
    students: dict[str, StudentDynamics]
    """By METHOD/seed-K."""


def training_dynamics(folder: Path) -> TrainingDynamics:
    """The anchor against each checkpoint on the training rows, and the stages of each student, of a run folder."""
    rows = {row["id"]: row for row in read_jsonl(folder / "prepare" / "rows.jsonl") if row["split"] == "train"}
    anchor = _losses(folder / "anchor" / "sample_loss.jsonl")
    checkpoints = {}
    for path in sorted(folder.glob("cache/*/sample_loss.jsonl")):
        checkpoint = _losses(path)
        ids = [id for id in checkpoint if id in anchor and id in rows]
        if ids:
            checkpoints[path.parent.name] = _split([anchor[id] for id in ids], [checkpoint[id] for id in ids])
    students = {}
    for path in sorted(folder.glob("distill/*/*/stages.json")):
        students[f"{path.parent.parent.name}/{path.parent.name}"] = _student(path.parent, rows)
    return {"checkpoints": checkpoints, "students": students}


def _student(folder: Path, rows: Mapping[str, Mapping[str, Any]]) -> StudentDynamics:
    """The student in distill/METHOD/seed-K. rows: training rows by id."""
    stages = [
        StageDynamics(stage=record["stage"], chosen=record.get("chosen"), validation=record.get("validation"))
        for record in read_json(folder / "stages.json")
    ]
    manifest = folder / MANIFEST
    kept_stage = read_json(manifest).get("kept_stage") if manifest.exists() else None
    weights = _weights(_lines(folder / "weights.jsonl"), rows, stages)
    by_stage = rows_by_stage(_lines(folder / "validation_rows.jsonl"), kept_stage)
    return {"stages": stages, "kept_stage": kept_stage, **weights, "rows_by_stage": by_stage}


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    return read_jsonl(path) if present(path) else ()


def _losses(path: Path) -> dict[str, float]:
    """Losses on the training rows of a sample_loss.jsonl, by id."""
    return {line["id"]: line["nll"] for line in _lines(path) if line["split"] == "train"}


def _split(student: Sequence[float], teacher: Sequence[float]) -> SplitRecord:
    return SplitRecord(**asdict(split_risk(student, teacher)))


def _weights(
    lines: Iterable[dict[str, Any]], rows: Mapping[str, Mapping[str, Any]], stages: list[StageDynamics]
) -> dict[str, list[SliceWeights]]:
    """`weights` of the student, and in each stage of `stages` its weights and the losses they were computed from.

    Nothing for constant weights: their file repeats what other files say.
    """
    lines = iter(lines)
    first = next(lines, None)
    if first is None or first["anchor_nll"] is None:
        return {}
    by_stage: dict[int, list[dict[str, Any]]] = {}
    for line in chain([first], lines):
        by_stage.setdefault(line["stage"], []).append(line)
    for stage in stages:
        stage_lines = by_stage.get(stage["stage"], [])
        if stage_lines:
            losses = ([line[key] for line in stage_lines] for key in ("anchor_nll", "teacher_nll"))
            stage["train"] = _split(*losses)
            weights = np.array([line["weight"] for line in stage_lines])
            low, median, high = np.quantile(weights, [0.05, 0.5, 0.95]).tolist()
            stage["weight"] = {"mean": float(weights.mean()), "p05": low, "median": median, "p95": high}
    return {"weights": _weights_by_slice(by_stage, rows)}


def _weights_by_slice(
    by_stage: Mapping[int, list[dict[str, Any]]], rows: Mapping[str, Mapping[str, Any]]
) -> list[SliceWeights]:
    """Mean weights of slices by subdomain, language and label. by_stage: lines of weights.jsonl, in the same order."""
    ids = [line["id"] for line in next(iter(by_stage.values()))]
    slices = []
    for field, key in (("subdomain", "subdomain"), ("language", "language"), ("answer", "label")):
        values = [(rows.get(id) or {}).get(field) for id in ids]
        if len(set(values)) <= max(2, len(values) // 5):  # shared values, as labels are, and not texts of each row
            slices += by_value(key, values)
    weights = {str(stage): np.array([line["weight"] for line in lines]) for stage, lines in by_stage.items()}
    means = [{stage: float(table[part.indices].mean()) for stage, table in weights.items()} for part in slices]
    return [
        {"key": part.key, "value": part.value, "rows": len(part.indices), "by_stage": by_stage}
        for part, by_stage in zip(slices, means, strict=True)
    ]


# --- validation rows by stage ---


def rows_by_stage(lines: Iterable[Mapping[str, Any]], kept: int | None) -> RowsByStage | None:
    """What each stage did to the same validation rows; None without lines.

    lines: of validation_rows.jsonl. kept: the stage whose student was kept; None: the last. Rows without a finite loss
    in every stage are left out.
    """
    by_stage: dict[int, dict[str, Mapping[str, Any]]] = {}
    for line in lines:
        by_stage.setdefault(line["stage"], {})[line["id"]] = line
    numbers = sorted(by_stage)
    first_ids = by_stage[numbers[0]] if numbers else ()
    ids = [id for id in first_ids if all(_has_loss(by_stage[number].get(id)) for number in numbers)]
    if not ids:
        return None
    nll = np.array([[by_stage[number][id]["nll"] for id in ids] for number in numbers])
    scores = [[by_stage[number][id]["score"] for id in ids] for number in numbers]
    kept_index = numbers.index(kept) if kept in numbers else len(numbers) - 1
    forgotten = _forgotten(ids, nll[: kept_index + 1], numbers[kept_index])
    return {"rows": len(ids), "threshold": CHANGED, "stages": _changes(numbers, nll, scores), "forgotten": forgotten}


def _has_loss(line: Mapping[str, Any] | None) -> bool:
    return line is not None and line["nll"] is not None and math.isfinite(line["nll"])


def _changes(numbers: Sequence[int], nll: np.ndarray, scores: Sequence[Sequence[float | None]]) -> list[StageChange]:
    """nll: [stages, rows]; scores: likewise."""
    changes: list[StageChange] = []
    for index, number in enumerate(numbers):
        change = nll[index] - nll[index - 1] if index else None
        changes.append({
            "stage": number,
            "nll": float(nll[index].mean()),
            "score": None if None in scores[index] else float(np.mean(scores[index])),
            "better": None if change is None else int((change < -CHANGED).sum()),
            "worse": None if change is None else int((change > CHANGED).sum()),
        })  # fmt: skip
    return changes


def _forgotten(ids: Sequence[str], nll: np.ndarray, stage: int) -> ForgottenRows:
    """nll: [stages, rows], the kept stage last."""
    increase = nll[-1] - nll.min(axis=0)
    order = [index for index in np.argsort(-increase, kind="stable").tolist() if increase[index] > CHANGED]
    return {"stage": stage, "count": len(order), "ids": [ids[index] for index in order[:MOST_IDS]]}
