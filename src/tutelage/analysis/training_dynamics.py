"""Training dynamics from a run folder: losses behind the weights, the weights, losses on validation rows by stage.

`diagnose` writes them as `training` of summary.json. No torch.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np

from tutelage.analysis.slices import by_value
from tutelage.method.risk_split import split_risk
from tutelage.run.manifest import MANIFEST
from tutelage.utils.digests import DigestSet, as_array, digest
from tutelage.utils.files import read_json, read_jsonl
from tutelage.utils.integrity import present

FIELDS = {"subdomain": "subdomain", "language": "language", "answer": "label"}
"""Field of a training row to the key of the slices by its values."""
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
    """The anchor against each checkpoint on the training rows, and the stages of each student, of a run folder.

    Of a training row a few numbers are held.
    """
    weights = {path.parent: _weights_in(path) for path in sorted(folder.glob("distill/*/*/weights.jsonl"))}
    known = _known_of(folder, [found.ids for found in weights.values() if found])
    anchor = training_losses(folder / "anchor" / "sample_loss.jsonl")
    checkpoints = {}
    for path in sorted(folder.glob("cache/*/sample_loss.jsonl")):
        checkpoint = training_losses(path)
        places, there = places_in(anchor.ids, checkpoint.ids)
        there &= known.training.holds(checkpoint.ids)
        if there.any():
            checkpoints[path.parent.name] = _split(anchor.nll[places[there]], checkpoint.nll[there])
    students = {}
    for path in sorted(folder.glob("distill/*/*/stages.json")):
        found = weights.get(path.parent)
        students[f"{path.parent.parent.name}/{path.parent.name}"] = _student(path.parent, found, known)
    return {"checkpoints": checkpoints, "students": students}


def _student(folder: Path, weights: _Weights | None, known: _Known) -> StudentDynamics:
    """The student in distill/METHOD/seed-K. weights: None if they are constant."""
    stages = [
        StageDynamics(stage=record["stage"], chosen=record.get("chosen"), validation=record.get("validation"))
        for record in read_json(folder / "stages.json")
    ]
    manifest = folder / MANIFEST
    kept_stage = read_json(manifest).get("kept_stage") if manifest.exists() else None
    by_slice: dict[str, list[SliceWeights]] = {}
    if weights:
        _add_weights(stages, weights)
        by_slice["weights"] = _weights_by_slice(weights, known)
    by_stage = rows_by_stage(_lines(folder / "validation_rows.jsonl"), kept_stage)
    return {"stages": stages, "kept_stage": kept_stage, **by_slice, "rows_by_stage": by_stage}


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    return read_jsonl(path) if present(path) else ()


class Losses(NamedTuple):
    """Losses on the training rows, in the order of their file."""

    ids: np.ndarray
    """[rows] digests."""
    nll: np.ndarray
    """[rows]"""


def training_losses(path: Path) -> Losses:
    """Losses on the training rows of a sample_loss.jsonl; none if it is absent."""
    ids, nll = array("Q"), array("d")
    for line in _lines(path):
        if line["split"] == "train":
            ids.append(digest(line["id"]))
            nll.append(line["nll"])
    return Losses(as_array(ids), np.asarray(nll))


def places_in(ids: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[wanted] index of each in `ids` and whether it is there. Both are digests."""
    if not len(ids):
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    order = np.argsort(ids)
    places = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
    return places, ids[places] == wanted


def _split(student: np.ndarray, teacher: np.ndarray) -> SplitRecord:
    return SplitRecord(**asdict(split_risk(student, teacher)))


# --- weights ---


class _StageWeights(NamedTuple):
    """The weights of one stage and the losses they were computed from, in the order of the file."""

    anchor: array[float]
    teacher: array[float]
    weight: array[float]


class _Weights(NamedTuple):
    """A weights.jsonl."""

    ids: np.ndarray
    """[rows] digests, of the first stage; the rows of all stages have the same order."""
    by_stage: dict[int, _StageWeights]


def _weights_in(path: Path) -> _Weights | None:
    """The weights of a file; None for constant ones, which repeat what other files say."""
    ids = array("Q")
    by_stage: dict[int, _StageWeights] = {}
    for line in _lines(path):
        if not by_stage and line["anchor_nll"] is None:
            return None
        stage = by_stage.setdefault(line["stage"], _StageWeights(array("d"), array("d"), array("d")))
        stage.anchor.append(line["anchor_nll"])
        stage.teacher.append(line["teacher_nll"])
        stage.weight.append(line["weight"])
        if len(by_stage) == 1:
            ids.append(digest(line["id"]))
    return _Weights(as_array(ids), by_stage) if by_stage else None


def _add_weights(stages: list[StageDynamics], weights: _Weights) -> None:
    """In each stage its weights and the losses they were computed from."""
    for stage in stages:
        lines = weights.by_stage.get(stage["stage"])
        if lines:
            stage["train"] = _split(np.asarray(lines.anchor), np.asarray(lines.teacher))
            values = np.asarray(lines.weight)
            low, median, high = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
            stage["weight"] = {"mean": float(values.mean()), "p05": low, "median": median, "p95": high}


class _Known(NamedTuple):
    """What is known of the training rows."""

    training: DigestSet
    """Their ids."""
    ids: np.ndarray
    """[weighted rows] digests."""
    values: dict[str, list[str | None] | None]
    """By field, [weighted rows] values; equal ones are one text. None for a field with another value in every few rows,
    as texts have, and labels have not."""


def _known_of(folder: Path, weighted: Sequence[np.ndarray]) -> _Known:
    """weighted: digests of the ids of rows that have a weight."""
    training, ids, wanted = array("Q"), array("Q"), DigestSet(*weighted)
    most = _most_values(max(map(len, weighted), default=0))
    values: dict[str, list[str | None] | None] = {field: [] for field in FIELDS}
    distinct: dict[str, dict[str | None, str | None]] = {field: {} for field in FIELDS}
    for row in _lines(folder / "prepare" / "rows.jsonl"):
        if row["split"] != "train":
            continue
        training.append(number := digest(row["id"]))
        if number not in wanted:
            continue
        ids.append(number)
        for field, column in values.items():
            if column is not None:
                column.append(distinct[field].setdefault(row.get(field), row.get(field)))
                if len(distinct[field]) > most:
                    values[field] = None
                    distinct[field].clear()
    return _Known(DigestSet(as_array(training)), as_array(ids), values)


def _most_values(rows: int) -> int:
    """Most values of a field that rows share, as they share labels."""
    return max(2, rows // 5)


def _weights_by_slice(found: _Weights, known: _Known) -> list[SliceWeights]:
    """Mean weights of slices by subdomain, language and label."""
    places, there = places_in(known.ids, found.ids)
    slices = []
    for field, key in FIELDS.items():
        column = known.values[field]
        if column is None:
            continue
        values = [column[place] if at else None for place, at in zip(places.tolist(), there.tolist(), strict=True)]
        if len(set(values)) <= _most_values(len(values)):
            slices += by_value(key, values)
    weights = {str(stage): np.asarray(lines.weight) for stage, lines in found.by_stage.items()}
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
