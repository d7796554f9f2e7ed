"""What a run folder holds, read back: scores, predictions by model and row, checkpoints, stages, weights, manifests.

For stages that look at a run without a model (report). Absent files give empty values, so that a run can be looked at
before it is finished; files that are there and cannot be read are refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.errors import DataError
from tutelage.method.risk_split import interval
from tutelage.recipe.renamed import translate_nested
from tutelage.records import BASE_MODELS, Interval
from tutelage.run.manifest import MANIFEST
from tutelage.utils.files import read_json, read_jsonl


@dataclass(frozen=True, slots=True)
class Student:
    """Records of one distilled student."""

    name: str
    """METHOD/seed-K."""
    stages: list[dict[str, Any]]
    weights: dict[int, np.ndarray]
    """Weights of the training rows, by stage."""
    kept_stage: int | None

    @property
    def method(self) -> str:
        """Row of the METHODS table."""
        return self.name.split("/")[0]

    @property
    def kept(self) -> dict[str, Any]:
        """Record of the stage whose student was kept; the last one where the manifest does not say."""
        last = self.stages[-1] if self.stages else {}
        return next((s for s in self.stages if s["stage"] == self.kept_stage), last)


@dataclass(frozen=True, slots=True)
class Results:
    """Everything in a run folder that is not a model."""

    folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    scores: dict[str, Any]
    predictions: dict[str, dict[str, dict[str, Any]]]
    """model: id: line of predictions.jsonl."""
    taught: dict[str, Any]
    students: list[Student]
    rows: dict[str, dict[str, Any]]
    """Rows of the scored split by id, as `prepare` wrote them."""
    manifests: dict[str, dict[str, Any]]
    """Manifest of every finished piece of work by its folder, in the order in which they were finished."""
    slices: dict[str, Any] = field(default_factory=dict)
    """diagnose/slices.json."""
    summary: dict[str, Any] = field(default_factory=dict)
    """diagnose/summary.json."""

    @property
    def models(self) -> list[str]:
        """Models with scores: teacher, untrained student, anchor, then the distilled ones."""
        known = self.scores.get("models", {})
        return [name for name in BASE_MODELS if name in known] + self.distilled

    @property
    def distilled(self) -> list[str]:
        """Distilled students with scores."""
        return [name for name in self.scores.get("models", {}) if name not in BASE_MODELS]

    @property
    def main(self) -> str | None:
        """The distilled student to speak of first: the best on validation, since test rows choose nothing.

        A student without a teacher (`sft`) is a baseline; it comes first only where there is no other.
        """
        taught = [name for name in self.distilled if not name.startswith("sft/")] or self.distilled
        seen = {student.name: student.kept.get("validation") or {} for student in self.students}
        ranked = [name for name in taught if _finite(seen.get(name, {}).get("nll"))]
        best = max(ranked, key=lambda name: (seen[name].get("score") or 0.0, -seen[name]["nll"]), default=None)
        return best or next(iter(taught), None)

    def score(self, model: str, metric: str | None = None) -> Interval | None:
        """A metric of a model on the test rows; by default the one that choices were made by."""
        return as_interval(self.scores.get("models", {}).get(model, {}).get(metric or self.scores.get("metric")))

    def paired(self, key: str, *models: str) -> tuple[list[str], list[np.ndarray]]:
        """Ids of the rows on which all models have a finite `key` (score, nll), and each model's [rows] values in that
        order."""
        tables = [self.predictions.get(model, {}) for model in models]
        shared = [id for id in tables[0] if all(_finite(table.get(id, {}).get(key)) for table in tables)]
        return shared, [np.array([table[id][key] for id in shared], dtype=np.float64) for table in tables]

    def lead(self, model: str, other: str) -> Interval | None:
        """Mean row score of a model minus another's, with a paired bootstrap 95 % interval; None without shared
        rows."""
        ids, (mine, theirs) = self.paired("score", model, other)
        if not ids:
            return None
        lag = interval(1.0 - mine, 1.0 - theirs).difference
        return Interval(0.0 - lag.value, 0.0 - lag.high, 0.0 - lag.low)  # 0.0 - x: never a negative zero


def read_results(folder: Path) -> Results:
    """Gather the artefacts of a run folder. Raises DataError for a file that is there and cannot be read."""
    recipe, text = _recipe(folder / "recipe.yaml")
    scores = _json(folder / "evaluate" / "scores.json") or {}
    predictions: dict[str, dict[str, dict[str, Any]]] = {}
    for row in read_lines(folder / "evaluate" / "predictions.jsonl"):
        predictions.setdefault(row["model"], {})[row["id"]] = row
    rows = read_lines(folder / "prepare" / "rows.jsonl")
    return Results(
        folder=folder,
        recipe=recipe,
        recipe_text=text,
        scores=scores,
        predictions=predictions,
        taught=_json(folder / "teach" / "checkpoints.json") or {},
        students=[_student(path.parent) for path in sorted(folder.glob("distill/*/*/stages.json"))],
        rows={row["id"]: row for row in rows if row["split"] == scores.get("split", "test")},
        manifests=read_manifests(folder),
        slices=_json(folder / "diagnose" / "slices.json") or {},
        summary=_json(folder / "diagnose" / "summary.json") or {},
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none if there is no such file. Raises DataError for one that cannot be read."""
    try:
        return list(read_jsonl(path)) if path.is_file() else []
    except ValueError as error:
        raise _unreadable(path, error) from error


def as_interval(value: Any) -> Interval | None:
    """A number, or {"value", "low", "high"}, of scores.json. A bare number has no interval (NaN); anything else is
    None."""
    if _finite(value):
        return Interval(float(value), math.nan, math.nan)
    if isinstance(value, dict) and _finite(value.get("value")):
        low, high = (float(value[key]) if _finite(value.get(key)) else math.nan for key in ("low", "high"))
        return Interval(float(value["value"]), low, high)
    return None


def _student(folder: Path) -> Student:
    by_stage: dict[int, list[float]] = {}
    for row in read_lines(folder / "weights.jsonl"):
        by_stage.setdefault(row["stage"], []).append(row["weight"])
    weights = {stage: np.array(values) for stage, values in sorted(by_stage.items())}
    kept = (_json(folder / MANIFEST) or {}).get("kept_stage")
    return Student(f"{folder.parent.name}/{folder.name}", _json(folder / "stages.json") or [], weights, kept)


def read_manifests(folder: Path) -> dict[str, dict[str, Any]]:
    """Manifest of every finished piece of work by its folder, in the order in which they were finished; not the
    report's."""
    paths = [path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}/{MANIFEST}")]
    found = {path.parent.relative_to(folder).as_posix(): _json(path) for path in sorted(paths)}
    stages = {
        name: m for name, m in found.items() if isinstance(m, dict) and _finite(m.get("seconds")) and name != "report"
    }
    return dict(sorted(stages.items(), key=lambda item: str(item[1].get("finished", ""))))


def _recipe(path: Path) -> tuple[dict[str, Any], str]:
    import yaml

    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    try:
        # The C loader reads a recipe of 150 lines in 2 ms instead of 20.
        found = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not YAML ({error}): run `tutelage run RECIPE` again, which writes it") from error
    return (translate_nested(found) if isinstance(found, dict) else {}), text


def _json(path: Path) -> Any:
    """The value in a JSON file; None if there is no such file."""
    try:
        return read_json(path) if path.is_file() else None
    except ValueError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read as JSON ({error}): make its stage again with --force")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
