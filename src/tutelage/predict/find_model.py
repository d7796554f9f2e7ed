"""Which model answers: a student's folder, or the teacher, the anchor or a student of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.errors import ConfigError, ModelError
from tutelage.models.load import load_model, load_tokenizer
from tutelage.predict.usage import Usage, other_answers, usage_of
from tutelage.recipe.load import load_recipe
from tutelage.recipe.schema import Model
from tutelage.report.card_facts import find_student
from tutelage.run.manifest import folder_fingerprint, is_run
from tutelage.run.run_folder import RunFolder
from tutelage.training.run_models import RunModels
from tutelage.utils.files import read_json
from tutelage.utils.integrity import present

USAGE = "tutelage.json"
OTHER_TOKENS = 2
"""Longest answer of a model with another tokenizer, in those of the student: its tokens may be shorter."""


@dataclass(frozen=True)
class FoundModel:
    """A model that can answer, not loaded yet."""

    name: str
    """`teacher`, `anchor`, METHOD/seed-K, or `student` for one outside of a run."""
    usage: Usage
    fingerprint: str
    """Changes with the model's files."""
    load: Callable[[], nn.Module]
    tokenizer: Callable[[], Any]
    folder: Path | None = None
    """Of a student: its files."""


def find_model(folder: Path, name: str | None = None) -> FoundModel:
    """The model in a student's folder; of a run folder the one of this name, by default the student it hands over.

    name: `teacher` (T*), `anchor`, METHOD or METHOD/seed-K. Raises ModelError for a folder that is neither, ConfigError
    for a name beside a student's folder, DataError for a student that the run does not have.
    """
    if present(folder / USAGE):
        if name is not None:
            raise ConfigError(
                f"{folder} is one student, and --model chooses a model of a run: leave it out, or name the run folder"
            )
        return _student(folder)
    if not (folder / "recipe.yaml").is_file() or not is_run(folder):
        raise ModelError(
            f"{folder} has no {USAGE}: name the folder of a distilled student, RUN/distill/METHOD/seed-K, or a run"
            " folder"
        )
    if name in ("teacher", "anchor"):
        return _of_run(RunFolder(load_recipe(folder).recipe), name)
    if name and "/" not in name:
        seeds = sorted(path.name for path in (folder / "distill" / name).glob("seed-*"))
        name = f"{name}/{seeds[0] if seeds else 'seed-0'}"
    return _student(find_student(folder, name).folder)


def run_of(folder: Path) -> Path | None:
    """The run folder that this is, or that a student's folder lies in; None if there is none."""
    return next((path for path in [folder, *folder.resolve().parents[:3]] if is_run(path)), None)


def teacher_beside(folder: Path) -> FoundModel | None:
    """The teacher of the run that `run_of` finds; None if there is no such run."""
    owner = run_of(folder)
    return find_model(owner, "teacher") if owner else None


def find_teacher(folder: Path, usage: Usage) -> FoundModel:
    """The model that a student's unsure rows go to: the teacher of a run, the model in a student's folder, or a plain
    model (full weights), which reads and answers rows as `usage` says.

    Raises ModelError for a folder that is none of them, and for a model that gives other answers than the student.
    """
    if present(folder / USAGE) or (folder / "recipe.yaml").is_file():
        found = find_model(folder, None if present(folder / USAGE) else "teacher")
        if why := other_answers(usage, found.usage):
            raise ModelError(
                f"{folder} cannot answer for this student: {why}. Name a run of the student's task with the student's"
                " labels, or the folder of a plain model (config.json), which reads the student's prompt"
            )
        return found
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no teacher: name a run folder, or the folder of a model (config.json)")
    section = Model(model_name_or_path=str(folder), dtype="auto")
    return FoundModel(
        "teacher",
        {**usage, "max_new_tokens": OTHER_TOKENS * usage["max_new_tokens"]},
        folder_fingerprint(str(folder)),
        lambda: load_model(section),
        lambda: load_tokenizer(section),
    )


def _student(folder: Path) -> FoundModel:
    section, parts = Model(model_name_or_path=str(folder), dtype="auto"), folder.resolve().parts
    return FoundModel(
        "/".join(parts[-2:]) if parts[-3:-2] == ("distill",) else "student",
        read_json(folder / USAGE),
        folder_fingerprint(str(folder)),
        lambda: load_model(section),
        lambda: load_tokenizer(section),
        folder,
    )


def _of_run(run: RunFolder, name: str) -> FoundModel:
    """Teacher or anchor, in the precision that `evaluate` scores them in."""
    models, usage = RunModels(run), usage_of(run)
    if name == "teacher":
        models, section, weights = models.taught, run.recipe.teacher, run.best_teacher
        usage["max_new_tokens"] = run.prepared.get("teacher", run.prepared)["max_new_tokens"]
    else:
        section, weights = run.recipe.student, run.folder / "anchor"
    return FoundModel(
        name,
        usage,
        folder_fingerprint(str(weights)),
        lambda: models.load(section, weights),
        lambda: models.tokenizer,
    )
