"""Test rows with every model's answers, side by side, read from a run folder; and how large its models are. No
torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.analysis.slices import Answers
from tutelage.errors import DataError
from tutelage.run import live_reader
from tutelage.run.manifest import MANIFEST
from tutelage.utils.files import read_json, read_jsonl

BASE_MODELS = ("teacher", "student", "anchor")
"""T*, the untrained student, the student after plain fine-tuning."""


@dataclass(frozen=True)
class Scored:
    """The test rows and every model's answers to them, in the same order."""

    rows: list[dict[str, Any]]
    """Lines of prepare/rows.jsonl."""
    lines: dict[str, list[dict[str, Any]]]
    """Lines of predictions.jsonl, by model."""
    answers: dict[str, Answers]
    tokens: dict[str, np.ndarray]
    """`prompts` and `answers`: [rows] lengths in tokens; empty where `prepare` did not write them."""
    notes: list[str]

    @property
    def ids(self) -> list[str]:
        """Ids of the rows."""
        return [row["id"] for row in self.rows]

    @property
    def students(self) -> dict[str, Answers]:
        """What is compared with the teacher: the anchor and the distilled students."""
        return {name: found for name, found in self.answers.items() if name not in ("teacher", "student")}

    def confidence(self, model: str) -> np.ndarray | None:
        """[rows] probability of the model's own answers; None if it was not recorded on all rows."""
        values = [line.get("confidence") for line in self.lines[model]]
        return None if any(value is None for value in values) else np.array(values, dtype=np.float64)


def check_scored(folder: Path) -> None:
    """Raises DataError where a folder holds no rows scored by the teacher and by another model."""
    root = folder / "evaluate"
    if not (folder / "prepare" / "rows.jsonl").is_file() or not any(root.glob("**/predictions.jsonl")):
        raise DataError(
            f"{folder} holds no scored rows (prepare/rows.jsonl and evaluate/MODEL/predictions.jsonl), and a diagnosis compares"
            " models on them: give the folder of a run, after `tutelage evaluate RECIPE`"
        )


def read_scored(folder: Path) -> Scored:
    """The rows that the teacher and all other models have scores and losses of. Raises DataError where there are
    none."""
    check_scored(folder)
    predictions, notes = _predictions(folder), []
    if "teacher" not in predictions or not predictions.keys() - {"teacher", "student"}:
        raise DataError(
            f"{folder}/evaluate holds answers of {', '.join(predictions) or 'no model'}, and a diagnosis compares a trained student"
            " with the teacher: run `tutelage evaluate RECIPE`"
        )
    asked = predictions["teacher"].keys()
    for name in [name for name, lines in predictions.items() if not asked <= lines.keys()]:
        notes.append(
            f"{name} was scored on other rows than the teacher and is left out: `tutelage evaluate RECIPE` scores it again"
        )
        del predictions[name]
    lines_of_rows = read_jsonl(folder / "prepare" / "rows.jsonl")
    about = {row["id"]: row for row in lines_of_rows if row["split"] == "test"}
    order = list(about)
    kept = [id for id in order if id in asked and all(_finite(lines[id]) for lines in predictions.values())]
    if not kept or not predictions.keys() - {"teacher", "student"}:
        raise DataError(
            f"{folder}: no test row has a score and a loss of all models; `tutelage evaluate RECIPE --force` scores them again"
        )
    if len(kept) < len(asked):
        notes.append(f"{len(asked) - len(kept)} rows without a finite score and loss of every model are left out")
    lines = {name: [found[id] for id in kept] for name, found in predictions.items()}
    answers = {
        name: Answers(
            np.array([line["score"] for line in found], float), np.array([line["nll"] for line in found], float)
        )
        for name, found in lines.items()
    }
    inside = np.isin(order, kept)
    tokens = {name: values[inside] for name, values in _lengths(folder).items() if len(values) == len(order)}
    return Scored([about[id] for id in kept], lines, answers, tokens, notes)


def _predictions(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Lines by model and id: of every finished evaluate/MODEL, of evaluate/predictions.jsonl what these lack."""
    root, found = folder / "evaluate", {}
    for path in sorted(root.glob("**/predictions.jsonl")):
        name = path.parent.relative_to(root).as_posix()
        if name != "." and (path.parent / MANIFEST).is_file():
            found[name] = {line["id"]: line for line in read_jsonl(path) if line["split"] == "test"}
    listed = read_json(root / "scores.json").get("models", {}) if (root / "scores.json").is_file() else {"": None}
    if (root / "predictions.jsonl").is_file() and listed.keys() - found.keys():
        others: dict[str, dict[str, dict[str, Any]]] = {}
        for line in read_jsonl(root / "predictions.jsonl"):
            if line["model"] not in found and line["split"] == "test":
                others.setdefault(line["model"], {})[line["id"]] = line
        found |= others
    order = [name for name in BASE_MODELS if name in found] + sorted(found.keys() - set(BASE_MODELS))
    return {name: found[name] for name in order}


def _finite(line: Mapping[str, Any]) -> bool:
    return all(isinstance(line[key], int | float) and math.isfinite(line[key]) for key in ("score", "nll"))


def _lengths(folder: Path) -> dict[str, np.ndarray]:
    path = folder / "prepare" / "tokens" / "test.index.safetensors"
    if not path.is_file():
        return {}
    from safetensors.numpy import load_file

    found = load_file(str(path))
    return {name: found[name].astype(np.int64) for name in ("prompts", "answers")}


def parameters(folder: Path, model: str) -> int | None:
    """Number of parameters of a model of the run (`teacher`: T*), from the headers of its files; None where they are
    not here."""
    place = _folder_of(folder, model)
    return live_reader.parameters(place if place and place.is_dir() else None) or None  # adapters alone do not tell


def _folder_of(folder: Path, model: str) -> Path | None:
    if model == "anchor":
        return folder / "anchor"
    if model != "teacher":
        return folder / "distill" / model
    path = folder / "teach" / "checkpoints.json"
    if not path.is_file():
        return None
    taught = read_json(path)
    best = next((one for one in taught["checkpoints"] if one["name"] == taught["best"]), {})
    # A run folder that was moved holds its checkpoints where it is now.
    places = [folder / "teach" / str(taught["best"]), Path(best.get("folder") or "")]
    return next((place for place in places if (place / "config.json").is_file()), None)
