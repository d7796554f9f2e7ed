"""What the model card of a finished student is made from, read from its run folder.

No row of the data gets into a card. Strings are plain text here; `model_card.py` escapes them.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.analysis.evaluated_rows import read_evaluated
from tutelage.analysis.run_results import Results, read_lines, read_results
from tutelage.analysis.slices import Slice, SliceRecord, by_value, measure_slices
from tutelage.errors import DataError
from tutelage.run.live_reader import dig, last_part, read_or_none, written
from tutelage.tasks import template_for
from tutelage.tasks.metrics import entity_counts
from tutelage.tasks.verbalizers import Verbalizers
from tutelage.utils.console import visible
from tutelage.utils.integrity import check, resized

if TYPE_CHECKING:
    from pydantic import BaseModel

PATHS = ("dataset", "train", "validation", "test")
"""Keys of the data section that hold files or folders."""


@dataclass(frozen=True)
class FinishedStudent:
    """A finished student and what its run says about it."""

    results: Results
    name: str
    """METHOD/seed-K."""

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return self.results.folder / "distill" / self.name

    @property
    def method(self) -> str:
        """Row of METHODS, or a variant of one."""
        return self.name.rpartition("/")[0]

    @property
    def card_name(self) -> str:
        """The model's name: the run's name and the method."""
        return f"{self.results.recipe.get('name', self.results.folder.resolve().name)}-{self.method}"

    @cached_property
    def usage(self) -> dict[str, Any]:
        """tutelage.json."""
        return read_or_none(self.folder / "tutelage.json") or {}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """All prepared rows."""
        return read_lines(self.results.folder / "prepare" / "rows.jsonl")

    @property
    def task(self) -> str:
        """`classification`, `ner` or `qa`."""
        recorded = dig(self.results.recipe, "task", "type") or dig(self.usage, "task", "type")
        return str(recorded or self.results.scores.get("task"))

    def hub_name(self, role: str) -> str | None:
        """Hub id of `teacher` or `student` (the model it was trained from) or `dataset`; None for local ones."""
        name = self._path_or_id(role)
        inputs = dig(self.results.manifests.get("prepare"), "inputs", default={})
        if role == "dataset":
            return name if "hub" in (inputs.get("data files") or {}) else None
        return name if name and str(inputs.get(f"{role} model", "")).startswith(f"{name}@") else None

    def short_name(self, role: str) -> str:
        """The Hub id, or the last part of a path."""
        local = self._path_or_id(role) or self.results.recipe.get("name", self.results.folder.name)
        return self.hub_name(role) or Path(str(local)).name

    def _path_or_id(self, role: str) -> Any:
        keys = ("data", "dataset") if role == "dataset" else (role, "model_name_or_path")
        return dig(self.results.recipe, *keys)


def find_student(run: Path, name: str | None) -> FinishedStudent:
    """A finished student of a run, by default the best on validation. Raises DataError if there is none."""
    manifests = sorted(run.glob("distill/*/*/manifest.json"))
    folders = [path.parent for path in manifests if any(path.parent.glob("*.safetensors")) or resized(path.parent)]
    names = [folder.relative_to(run / "distill").as_posix() for folder in folders]
    if not names:
        raise DataError(
            f"{run} has no finished student: `tutelage run RECIPE` trains one, `tutelage ls` lists runs that have one"
        )
    results = read_results(run)
    name = name or results.main or (names[0] if len(names) == 1 else "")
    if name not in names:
        problem = f"{run} has no finished student {visible(name)!r}" if name else f"{run} has several students"
        raise DataError(f"{problem}: name one of {', '.join(map(visible, names[:20]))}")
    if lost := resized(run / "distill" / name):
        check(lost)
    return FinishedStudent(results, name)


# --- slices on which the student is compared with its teacher ---


def slices_against_teacher(student: FinishedStudent) -> list[SliceRecord] | None:
    """Records of slices as in diagnose/slices.json: from that file, or measured here if it is missing or stale.

    None without answers of both models to the same rows.
    """
    results = student.results
    diagnosis, answers = results.folder / "diagnose" / "slices.json", results.folder / "evaluate" / "predictions.jsonl"
    if written(answers) <= written(diagnosis):
        untested = {part["key"] for part in results.slices.get("partitions", []) if not part["tested"]}
        for pair in results.slices.get("pairs", []):
            if (pair["student"], pair["teacher"]) == (student.name, "teacher"):
                return [*pair.get("found", []), *(line for line in pair["slices"] if line["key"] not in untested)]
    return _measured_slices(student)


def _measured_slices(student: FinishedStudent) -> list[SliceRecord] | None:
    """Slices by language, subdomain, label and entity type."""
    try:
        evaluated = read_evaluated(student.results.folder)
    except DataError:
        return None
    if student.name not in evaluated.answers:
        return None
    gold = [line["gold"] for line in evaluated.lines["teacher"]]
    values = {key: [row.get(key) for row in evaluated.rows] for key in ("language", "subdomain")}
    values |= {"label": gold} if student.task == "classification" else {}
    slices = [part for key, column in values.items() for part in by_value(key, column)]
    if student.task == "ner":
        slices += _entity_slices({name: evaluated.lines[name] for name in (student.name, "teacher")}, gold)
    answers = evaluated.answers
    return measure_slices({student.name: answers[student.name]}, answers["teacher"], slices)[student.name]["slices"]


def _entity_slices(lines: dict[str, list[dict[str, Any]]], gold: list[list[tuple[str, str]]]) -> list[Slice]:
    """Rows with gold entities of a type, scored by F1 on these entities."""
    counts = {
        name: [entity_counts(line["prediction"] or [], line["gold"]) for line in answers]
        for name, answers in lines.items()
    }
    slices = []
    for kind in sorted({kind for pairs in gold for kind, _ in pairs}):
        indices = [index for index, pairs in enumerate(gold) if any(other == kind for other, _ in pairs)]
        scores = {name: np.array([_f1(*rows[index][kind]) for index in indices]) for name, rows in counts.items()}
        slices.append(Slice("entity type", kind, np.array(indices), disjoint=False, scores=scores))
    return slices


def _f1(matched: int, predicted: int, gold: int) -> float:
    return 2 * matched / (predicted + gold)


# --- how to use the student and how to train it again ---


def prompt_expression(student: FinishedStudent) -> str:
    """The prompt as a Python expression: the template with its fields to fill in, or "..." where rows bring prompts."""
    data, section = student.usage.get("data") or {}, student.usage.get("task") or {}
    default = template_for(student.task, section.get("language"), bool(student.usage.get("choice")))
    template = data.get("template") or default
    if not data.get("template") and not _prompts_end_with(student, template.rpartition("}")[2]):
        return '"..."  # as in the training rows'
    written = Verbalizers(section.get("verbalizers") or {}).written
    labels = ", ".join(map(written, section.get("labels") or [])).replace("{", "{{").replace("}", "}}")
    template = template.replace("{labels}", labels)
    fields = dict.fromkeys(re.findall(r"(?<!{){(\w+)}(?!})", template))
    values = ", ".join(f'{name}="..."' for name in fields)
    return f"{template!r}.format({values})"


def _prompts_end_with(student: FinishedStudent, ending: str) -> bool:
    """Whether the rows were rendered with the default template, by its ending."""
    prompts = [row["prompt"] for row in student.rows[:20]]
    texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
    return bool(texts and ending.strip()) and all(text.endswith(ending) for text in texts)


def _without_removed_keys(values: dict[str, Any], schema: type[BaseModel]) -> dict[str, Any]:
    """The recipe of an earlier version without keys that this one does not have."""
    from pydantic import ValidationError

    kept = copy.deepcopy(values)
    try:
        schema(**values)
    except ValidationError as error:
        for problem in error.errors():
            *path, key = problem["loc"]
            if problem["type"] == "extra_forbidden":
                dig(kept, *path, default={}).pop(key, None)
    return kept


def recipe_text(student: FinishedStudent) -> str:
    """The recipe of this student alone as YAML, without defaults and without paths of this machine."""
    import yaml

    from tutelage.recipe.schema import Recipe

    values = json.loads(json.dumps(student.results.recipe))
    with contextlib.suppress(ValueError):  # a recipe of another version of the library stays as it is
        values = Recipe(**_without_removed_keys(values, Recipe)).model_dump(exclude_defaults=True)
    values = {key: value for key, value in values.items() if key not in ("output_dir", "tune", "compare")}
    seed = int(student.name.rpartition("-")[2])
    values["distill"] = {**values.get("distill", {}), "methods": [student.method], "seeds": [seed]}
    for role in ("teacher", "student"):
        values[role] = {**values.get(role, {}), "model_name_or_path": student.short_name(role)}
    if (data := values.get("data")) and not student.hub_name("dataset"):
        values["data"] = {key: last_part(value) if key in PATHS else value for key, value in data.items()}
    for section, key in (("teach", "checkpoints"), ("anchor", "model_name_or_path")):
        if dig(values, section, key):
            values[section] = {**values[section], key: last_part(values[section][key])}
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
