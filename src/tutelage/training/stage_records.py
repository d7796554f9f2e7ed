"""What a distillation records: stages.json, validation_rows.jsonl and weights.jsonl."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from tutelage.data.encode import EncodedRow
from tutelage.method.schedule import Candidate, Choice
from tutelage.run.artifacts import ChoiceRecord, StageRecord
from tutelage.utils.files import read_json, read_jsonl, write_json, write_jsonl
from tutelage.utils.integrity import present


class ValidationRow(NamedTuple):
    """A student on one validation row."""

    id: str
    nll: float
    """Mean over the answer's tokens, nats."""
    score: float | None
    """The row's own score, in [0, 1]."""


@dataclass(frozen=True)
class Validation:
    """A student on the validation rows."""

    score: float | None
    nll: float | None
    """Mean over the rows, nats; None without validation rows."""
    rows: Sequence[ValidationRow] = ()


class WeightRecord(TypedDict):
    """One training row in one stage, a line of weights.jsonl."""

    id: str
    stage: int
    checkpoint: str
    anchor_nll: float | None
    """None for constant weights."""
    teacher_nll: float
    weight: float


def read_stages(folder: Path) -> list[StageRecord]:
    """Records of the finished stages. A stage counts as finished once it is in stages.json, which is written last."""
    path = folder / "stages.json"
    return read_json(path) if present(path) else []


def write_stages(folder: Path, records: Sequence[StageRecord]) -> None:
    """Write stages.json."""
    write_json(folder / "stages.json", records)


def choice_record(choice: Choice, candidates: Sequence[Candidate]) -> ChoiceRecord:
    """The record of a choice among these candidates."""
    return {
        "chosen": choice.chosen,
        "candidates": [{**asdict(candidate), "total": candidate.total} for candidate in candidates],
        "reason": choice.reason,
        "stall": choice.stall,
    }


def previous_candidate(records: Sequence[StageRecord]) -> Candidate | None:
    """The checkpoint followed in the stage before, with its distances at that stage's start."""
    if not records:
        return None
    last = records[-1]
    record = next(candidate for candidate in last["candidates"] if candidate["checkpoint"] == last["chosen"])
    return Candidate(record["checkpoint"], record["kl_best"], record["kl_student"])


def best_stage(records: Sequence[StageRecord], by: str) -> int:
    """The stage with the best student on validation; of equal ones the later. The last one without validation rows.

    by: `score` (ties: the smaller loss; the loss where there are no scores) or `loss`.
    """
    validations = [record["validation"] for record in records]
    if any(validation["nll"] is None for validation in validations):
        return len(records)
    by_score = by == "score" and all(validation["score"] is not None for validation in validations)
    ranks = [
        (validation["score"] if by_score else 0.0, -validation["nll"], stage)
        for stage, validation in enumerate(validations, start=1)
    ]
    return max(ranks)[2]


def write_validation_rows(folder: Path, stage: int, rows: Sequence[ValidationRow]) -> None:
    """Add a stage's rows to validation_rows.jsonl, after those of the stages before it.

    The file is rewritten completely, before the stage is in stages.json: a repeated stage replaces its rows.
    """
    if rows:
        new = ({"id": row.id, "stage": stage, "nll": row.nll, "score": row.score} for row in rows)
        _add_stage(folder / "validation_rows.jsonl", stage, new)


def validation_losses(folder: Path, stage: int) -> np.ndarray:
    """[rows] losses of the student on the validation rows after a stage, in nats."""
    lines = read_jsonl(folder / "validation_rows.jsonl")
    return np.array([line["nll"] for line in lines if line["stage"] == stage])


def write_weights(folder: Path, stage: int, records: Iterable[WeightRecord]) -> None:
    """Add a stage's rows to weights.jsonl, as `write_validation_rows` does; none for a stage without a teacher."""
    _add_stage(folder / "weights.jsonl", stage, records)


def _add_stage(path: Path, stage: int, lines: Iterable[Mapping[str, Any]]) -> None:
    before = (line for line in read_jsonl(path) if line["stage"] < stage) if path.is_file() else ()
    write_jsonl(path, itertools.chain(before, map(dict, lines)))


def weight_records(
    rows: Sequence[EncodedRow],
    stage: int,
    checkpoint: str,
    anchor_nll: np.ndarray | None,
    teacher_nll: np.ndarray,
    weight: np.ndarray,
) -> Iterator[WeightRecord]:
    """For each training row the two losses and the weight of a stage; all arrays are [rows]."""
    for index, row in enumerate(rows):
        yield {
            "id": row.id,
            "stage": stage,
            "checkpoint": checkpoint,
            "anchor_nll": None if anchor_nll is None else float(anchor_nll[index]),
            "teacher_nll": float(teacher_nll[index]),
            "weight": float(weight[index]),
        }
