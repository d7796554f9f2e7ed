"""The test rows of a run folder with every model's answers, side by side; and the sizes of its models. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.analysis.slices import Answers
from tutelage.errors import DataError
from tutelage.records import BASE_MODELS
from tutelage.run.live_reader import best_checkpoint, parameters
from tutelage.run.manifest import MANIFEST
from tutelage.utils.files import read_json, read_jsonl
from tutelage.utils.integrity import present, reading

PredictionLines = dict[str, dict[str, Any]]
"""Lines of predictions.jsonl of one model, by row id; keys as in `records.Prediction`."""


@dataclass(frozen=True)
class EvaluatedRows:
    """The test rows that all models have a score and a loss on, and every model's answers in the same order."""

    rows: list[dict[str, Any]]
    """Lines of prepare/rows.jsonl; keys as in `records.Example`."""
    lines: dict[str, list[dict[str, Any]]]
    """Lines of predictions.jsonl, by model; keys as in `records.Prediction`."""
    answers: dict[str, Answers]
    """By model."""
    tokens: dict[str, np.ndarray]
    """`prompts` and `answers`: [rows] lengths in tokens; empty if `prepare` did not write them."""
    notes: list[str]
    """What was left out, for showing."""

    @property
    def ids(self) -> list[str]:
        """Ids of the rows."""
        return [row["id"] for row in self.rows]

    @property
    def students(self) -> dict[str, Answers]:
        """Models that are compared with the teacher: the anchor and the distilled students."""
        return {name: answers for name, answers in self.answers.items() if name not in ("teacher", "student")}

    def confidence(self, model: str) -> np.ndarray | None:
        """[rows] probability of the model's own answers; None unless it was recorded on all rows."""
        values = [line.get("confidence") for line in self.lines[model]]
        return None if any(value is None for value in values) else np.array(values, dtype=np.float64)

    def unreadable(self, model: str) -> np.ndarray:
        """[rows] whether the model's answer could not be parsed."""
        return np.array([line["prediction"] is None for line in self.lines[model]])


def check_evaluated(folder: Path) -> None:
    """Raises DataError for a folder without rows that were evaluated."""
    root = folder / "evaluate"
    if not (folder / "prepare" / "rows.jsonl").is_file() or not any(root.glob("**/predictions.jsonl")):
        raise DataError(
            f"{folder} has no evaluated rows (prepare/rows.jsonl and evaluate/MODEL/predictions.jsonl), which diagnose"
            " compares models on: give the folder of a run, after `tutelage evaluate RECIPE`"
        )


def read_evaluated(folder: Path) -> EvaluatedRows:
    """The rows that the teacher and all other models have scores and losses on.

    Raises DataError if there are none.
    """
    check_evaluated(folder)
    predictions, notes = _predictions(folder), []
    if "teacher" not in predictions or not _trained(predictions):
        raise DataError(
            f"{folder}/evaluate has predictions of {', '.join(predictions) or 'no model'}, but diagnose compares a"
            " trained student with the teacher: run `tutelage evaluate RECIPE`"
        )
    evaluated = predictions["teacher"].keys()
    for name in [name for name, lines in predictions.items() if not evaluated <= lines.keys()]:
        why = "it was evaluated on other rows than the teacher; `tutelage evaluate RECIPE` evaluates it again"
        notes.append(f"{name} is left out: {why}")
        del predictions[name]
    rows = {row["id"]: row for row in read_jsonl(folder / "prepare" / "rows.jsonl") if row["split"] == "test"}
    kept = [id for id in rows if id in evaluated and all(_finite(lines[id]) for lines in predictions.values())]
    if not kept or not _trained(predictions):
        raise DataError(
            f"{folder}: no test row has a score and a loss of all models; `tutelage evaluate RECIPE --force` evaluates"
            " them again"
        )
    if len(kept) < len(evaluated):
        notes.append(f"{len(evaluated) - len(kept)} rows without a finite score and loss of every model are left out")
    lines = {name: [by_id[id] for id in kept] for name, by_id in predictions.items()}
    answers = {name: Answers(_column(model, "score"), _column(model, "nll")) for name, model in lines.items()}
    inside = np.isin(list(rows), kept)
    tokens = {name: values[inside] for name, values in _lengths(folder).items() if len(values) == len(rows)}
    return EvaluatedRows([rows[id] for id in kept], lines, answers, tokens, notes)


def _trained(predictions: Mapping[str, PredictionLines]) -> set[str]:
    return predictions.keys() - {"teacher", "student"}


def _column(lines: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([line[key] for line in lines], dtype=np.float64)


def _predictions(folder: Path) -> dict[str, PredictionLines]:
    """By model: from every finished evaluate/MODEL, and of other models from evaluate/predictions.jsonl."""
    root, by_model = folder / "evaluate", {}
    for path in sorted(root.glob("**/predictions.jsonl")):
        name = path.parent.relative_to(root).as_posix()
        if name != "." and (path.parent / MANIFEST).is_file():
            by_model[name] = {line["id"]: line for line in read_jsonl(path) if line["split"] == "test"}
    listed = read_json(root / "scores.json").get("models", {}) if (root / "scores.json").is_file() else {"": None}
    if (root / "predictions.jsonl").is_file() and listed.keys() - by_model.keys():
        others: dict[str, PredictionLines] = {}
        for line in read_jsonl(root / "predictions.jsonl"):
            if line["model"] not in by_model and line["split"] == "test":
                others.setdefault(line["model"], {})[line["id"]] = line
        by_model |= others
    order = [name for name in BASE_MODELS if name in by_model] + sorted(by_model.keys() - set(BASE_MODELS))
    return {name: by_model[name] for name in order}


def _finite(line: Mapping[str, Any]) -> bool:
    return all(isinstance(line[key], int | float) and math.isfinite(line[key]) for key in ("score", "nll"))


def _lengths(folder: Path) -> dict[str, np.ndarray]:
    """[test rows] numbers of tokens of `prompts` and `answers`."""
    path = folder / "prepare" / "tokens" / "test.index.safetensors"
    if not present(path):
        return {}
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    with reading(path, SafetensorError):
        index = load_file(str(path))
    return {name: index[name].astype(np.int64) for name in ("prompts", "answers")}


def parameter_count(folder: Path, model: str) -> int | None:
    """Parameters of a model of the run (`teacher`: T*), from the headers of its weight files.

    None if the files are missing, or hold adapters alone.
    """
    if model == "teacher":
        return parameters(best_checkpoint(folder)) or None
    return parameters(folder / "anchor" if model == "anchor" else folder / "distill" / model) or None
