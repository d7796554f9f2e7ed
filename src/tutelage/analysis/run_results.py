"""What a run folder holds, read back: scores, predictions by model and row, checkpoints, stages, weights, manifests.

For code that reads a run without loading a model (report, doctor, list). Absent files give empty values, so that a run
can be read before it is finished; files that cannot be read raise an error. The TypedDicts name the keys of the files.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Collection, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from tutelage.analysis.calibration import Calibration, Cascade
from tutelage.analysis.method_effects import MethodEffect
from tutelage.analysis.slice_discovery import Discovery
from tutelage.analysis.slices import Measure, SlicedComparison, SliceRecord
from tutelage.analysis.training_dynamics import TrainingDynamics
from tutelage.method.risk_split import score_lead
from tutelage.recipe.renamed import translate_nested
from tutelage.records import BASE_MODELS, Interval
from tutelage.run.artifacts import Manifest, ScoresFile, StageRecord, TeacherCheckpoints
from tutelage.run.live_reader import dig, recipe_of
from tutelage.run.manifest import MANIFEST
from tutelage.utils.digests import DigestSet, as_array, digest, digests
from tutelage.utils.files import read_json, read_jsonl
from tutelage.utils.integrity import check_run, present

INPUTS = (
    "recipe.yaml",
    "prepare/rows.jsonl",
    "prepare/data.json",
    "silver/silver.json",
    "teach/checkpoints.json",
    "teach/log.jsonl",
    "anchor/log.jsonl",
    "anchor/sample_loss.jsonl",
    "evaluate/*.json*",
    "distill/*/*/stages.json",
    "distill/*/*/weights.jsonl",
    "distill/*/*/log.jsonl",
    "distill/*/*/validation_rows.jsonl",
    "distill/*/*/manifest.json",
    "diagnose/*.json*",
    "export/*/*/*.json",
    "*/manifest.json",
    "evaluate/**/manifest.json",
    "compare/index.html",
)
"""Patterns of the files of a run that report and model card are made from."""

# --- files of diagnose ---


class PartitionRecord(TypedDict):
    """A key that the rows are divided by."""

    key: str
    unit: str | None
    """Unit of the values; None for values that are names."""
    disjoint: bool
    """Whether every row is in one slice."""
    tested: bool
    """False if the slices are made from the losses that are compared."""
    slices: int


class PairRecord(SlicedComparison, Discovery):
    """A student, or the anchor, against the teacher on all rows and on every slice, given and discovered."""

    student: str
    teacher: str


class SlicesFile(TypedDict, total=False):
    """diagnose/slices.json."""

    rows: int
    split: str
    resamples: int
    partitions: list[PartitionRecord]
    pairs: list[PairRecord]


class SliceName(TypedDict):
    """Which slice."""

    key: str
    value: str | None


class PairSummary(TypedDict):
    """A pair in short."""

    whole: SliceRecord
    found: list[str]
    """Names of the discovered slices."""
    student_ahead: dict[Measure, list[SliceName]]
    teacher_ahead: dict[Measure, list[SliceName]]
    """Slices on which the student, or the teacher, is significantly better, the greatest difference first."""


class CascadeRecord(Cascade):
    """A cascade of a student and the teacher."""

    signal: Literal["confidence"]
    """What decides which rows are passed on."""
    student_cost: float | None
    """Parameters of the student over those of T*; None if unknown."""


class SummaryFile(TypedDict, total=False):
    """diagnose/summary.json."""

    rows: int
    notes: list[str]
    """What was left out, for showing."""
    calibration: dict[str, Calibration | None]
    """By model; None if its confidences were not recorded."""
    pairs: dict[str, PairSummary]
    cascades: dict[str, CascadeRecord]
    """By student; without those whose confidences were not recorded."""
    effects: list[MethodEffect]
    training: TrainingDynamics


class ModelOnRow(TypedDict, total=False):
    """A model on one test row."""

    score: float
    nll: float
    confidence: float
    """Absent if not recorded."""
    outcome: Literal["win", "loss", "tie"]
    """By score against the teacher; absent for the teacher itself, as is `side`."""
    side: Literal["sfs", "tfs"]
    """By loss against the teacher."""


class RowRecord(TypedDict):
    """A line of diagnose/rows.jsonl: one test row."""

    id: str
    half: Literal["searched", "judged"] | None
    """Half of the rows for slice discovery; None if there were too few rows."""
    slices: dict[str, str | list[str] | None]
    """Value by key; a list if the key's slices are not disjoint."""
    found: dict[str, list[str]]
    """By student: names of the discovered slices the row is in."""
    models: dict[str, ModelOnRow]


# --- a run ---


@dataclass(frozen=True, slots=True)
class StudentRecords:
    """Records of one distilled student."""

    name: str
    """METHOD/seed-K."""
    stages: list[StageRecord]
    weights: dict[int, np.ndarray]
    """[training rows] weights by stage."""
    kept_stage: int | None

    @property
    def method(self) -> str:
        """Row of the METHODS table."""
        return self.name.split("/")[0]

    @property
    def kept(self) -> StageRecord:
        """Record of the stage whose student was kept; the last one if the manifest does not say."""
        last = self.stages[-1] if self.stages else StageRecord()
        return next((stage for stage in self.stages if stage["stage"] == self.kept_stage), last)


@dataclass(frozen=True, slots=True)
class Results:
    """Everything in a run folder that is not a model."""

    folder: Path
    recipe: dict[str, Any]
    """recipe.yaml as nested dicts; not validated, since it may come from another version."""
    scores: ScoresFile
    students: list[StudentRecords]
    manifests: dict[str, Manifest]
    """By folder, in the order in which they were finished."""
    recipe_text: str = ""
    predictions: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """model: id: line of predictions.jsonl, keys as in `records.Prediction`."""
    taught: TeacherCheckpoints | dict[str, Any] = field(default_factory=dict)
    """teach/checkpoints.json; empty before `teach` has finished."""
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Rows of the evaluated split by id, keys as in `records.Example`."""
    training_answers: Counter[str] = field(default_factory=Counter)
    """Gold answers of the training rows, in the order in which they first occur."""
    training_ids: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    """[training rows] digests of their ids, see `utils.digests`."""
    training_lines: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """[training rows] which lines of prepare/rows.jsonl they are, blank ones not counted."""
    slices: SlicesFile = field(default_factory=SlicesFile)
    summary: SummaryFile = field(default_factory=SummaryFile)

    @property
    def models(self) -> list[str]:
        """Models with scores: teacher, untrained student, anchor, then the distilled ones."""
        evaluated = self.scores.get("models", {})
        return [name for name in BASE_MODELS if name in evaluated] + self.distilled

    @property
    def distilled(self) -> list[str]:
        """Students of the stage `distill` with scores, plain fine-tuning (`sft`) among them."""
        return [name for name in self.scores.get("models", {}) if name not in BASE_MODELS]

    @property
    def main(self) -> str | None:
        """The student to show first: the best on validation, since test rows choose nothing.

        Plain fine-tuning is a baseline; it comes first only if there is no other, or if the recipe has it compete
        (`distill.select: auto`).
        """
        with_teacher = [name for name in self.distilled if not is_plain(name)]
        return self._best(self.distilled if self.selects else with_teacher or self.distilled)

    @property
    def best_with_teacher(self) -> str | None:
        """The best on validation of the students that have a teacher."""
        return self._best([name for name in self.distilled if not is_plain(name)])

    def _best(self, names: list[str]) -> str | None:
        """The best of these students on validation; the first if none was validated."""
        validation = {student.name: student.kept.get("validation") or {} for student in self.students}
        ranked = [name for name in names if is_finite(validation.get(name, {}).get("nll"))]

        def rank(name: str) -> tuple[float, float]:
            return validation[name].get("score") or 0.0, -validation[name]["nll"]

        return max(ranked, key=rank, default=None) or next(iter(names), None)

    @property
    def selects(self) -> bool:
        """Whether the recipe takes the best student on validation, plain fine-tuning included."""
        return dig(self.recipe, "distill", "select") == "auto"

    def score(self, model: str, metric: str | None = None) -> Interval | None:
        """A metric of a model on the test rows; by default the one that choices were made by."""
        return as_interval(self.scores.get("models", {}).get(model, {}).get(metric or self.scores.get("metric")))

    def paired(self, key: str, *models: str) -> tuple[list[str], list[np.ndarray]]:
        """(ids of the rows on which all models have a finite `key`, [rows] values of each model in that order).

        key: `score`, `nll` or `confidence`.
        """
        tables = [self.predictions.get(model, {}) for model in models]
        shared = [id for id in tables[0] if all(is_finite(table.get(id, {}).get(key)) for table in tables)]
        return shared, [np.array([table[id][key] for id in shared], dtype=np.float64) for table in tables]

    def training_rows(self, ids: Collection[str]) -> dict[str, dict[str, Any]]:
        """The training rows with these ids as `prepare` wrote them, keys as in `records.Example`."""
        there = DigestSet(digests(ids)).holds(self.training_ids)
        lines = set(self.training_lines[there].tolist())
        rows = each_line(self.folder / "prepare" / "rows.jsonl", lines) if lines else ()
        return {row["id"]: row for row in rows if row["id"] in ids}

    def lead(self, model: str, other: str) -> Interval | None:
        """Mean row score of a model minus another's with a paired bootstrap 95 % interval; None without shared rows."""
        ids, (scores, other_scores) = self.paired("score", model, other)
        if not ids:
            return None
        return score_lead(scores, other_scores)


def read_results(folder: Path) -> Results:
    """Read the artifacts of a run folder. Raises DamagedArtifactError for one that is not as it was written."""
    check_run(folder, INPUTS)
    recipe = folder / "recipe.yaml"
    scores = _json(folder / "evaluate" / "scores.json") or {}
    predictions: dict[str, dict[str, dict[str, Any]]] = {}
    for row in each_line(folder / "evaluate" / "predictions.jsonl"):
        predictions.setdefault(row["model"], {})[row["id"]] = row
    return Results(
        folder=folder,
        recipe=translate_nested(recipe_of(folder)),
        recipe_text=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
        scores=scores,
        predictions=predictions,
        taught=_json(folder / "teach" / "checkpoints.json") or {},
        students=[_student(path.parent) for path in sorted(folder.glob("distill/*/*/stages.json"))],
        **_prepared_rows(folder / "prepare" / "rows.jsonl", scores.get("split", "test")),
        manifests=read_manifests(folder),
        slices=_json(folder / "diagnose" / "slices.json") or {},
        summary=_json(folder / "diagnose" / "summary.json") or {},
    )


def _prepared_rows(path: Path, evaluated: str) -> dict[str, Any]:
    """What `Results` has of prepare/rows.jsonl: rows of the evaluated split, and of training rows a few bytes each."""
    rows: dict[str, dict[str, Any]] = {}
    answers: Counter[str] = Counter()
    ids, lines = array("Q"), array("q")
    for number, row in enumerate(each_line(path)):
        if row["split"] == evaluated:
            rows[row["id"]] = row
        if row["split"] == "train":
            answers[row["answer"]] += 1
            ids.append(digest(row["id"]))
            lines.append(number)
    about = {"training_ids": as_array(ids), "training_lines": np.asarray(lines, dtype=np.int64)}
    return {"rows": rows, "training_answers": answers, **about}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none if it is absent."""
    return list(each_line(path))


def each_line(path: Path, wanted: Container[int] | None = None) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, one at a time; none if it is absent. wanted: numbers of lines, see
    `read_jsonl`."""
    return read_jsonl(path, wanted) if present(path) else iter(())


def as_interval(value: Any) -> Interval | None:
    """A number, or an `IntervalRecord`, of scores.json. A number has no interval (NaN); anything else gives None."""
    if is_finite(value):
        return Interval(float(value), math.nan, math.nan)
    if isinstance(value, dict) and is_finite(value.get("value")):
        low, high = (float(value[key]) if is_finite(value.get(key)) else math.nan for key in ("low", "high"))
        return Interval(float(value["value"]), low, high)
    return None


def _student(folder: Path) -> StudentRecords:
    by_stage: dict[int, array[float]] = {}
    for row in each_line(folder / "weights.jsonl"):
        by_stage.setdefault(row["stage"], array("d")).append(row["weight"])
    weights = {stage: np.asarray(values) for stage, values in sorted(by_stage.items())}
    kept = (_json(folder / MANIFEST) or {}).get("kept_stage")
    return StudentRecords(f"{folder.parent.name}/{folder.name}", _json(folder / "stages.json") or [], weights, kept)


def read_manifests(folder: Path) -> dict[str, Manifest]:
    """Manifest of every finished folder of a run except the report's, in the order in which they were finished."""
    paths = sorted(path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}/{MANIFEST}"))
    by_folder = {path.parent.relative_to(folder).as_posix(): _json(path) for path in paths}
    finished = {
        name: manifest
        for name, manifest in by_folder.items()
        if isinstance(manifest, dict) and is_finite(manifest.get("seconds")) and name != "report"
    }
    return dict(sorted(finished.items(), key=lambda item: str(item[1].get("finished", ""))))


def _json(path: Path) -> Any:
    """The value in a JSON file; None if there is no such file."""
    return read_json(path) if present(path) else None


def is_plain(model: str) -> bool:
    """Whether a student of the stage `distill` has no teacher: `sft`, or a variant of it."""
    return model.partition("/")[0].partition("+")[0] == "sft"


def is_finite(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)
