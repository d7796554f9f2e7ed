"""Prepares the demo: data, models, recipes. What exists from the same version stays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tutelage.demo.clinic import TASKS, VERSION, write_clinic
from tutelage.demo.models import build_models
from tutelage.errors import ConfigError
from tutelage.run.own_files import refuse_foreign
from tutelage.utils.disk import full_disk_as_user_error
from tutelage.utils.files import read_json, read_jsonl, write_json

DEFAULT_TASKS = ("classification", "ner")
RECIPES = Path(__file__).parent / "recipes"
MARK = "ready.json"


def prepare(folder: Path, tasks: list[str]) -> None:
    """Write folder/data and folder/models unless this version of them exists. Raises ConfigError for an unknown task,
    DataError for a folder that holds other files, DiskFullError if the disk is full."""
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise ConfigError(f"--task {unknown[0]}: the demo has {', '.join(TASKS)}")
    mark = folder / MARK
    if mark.is_file() and read_json(mark) == {"version": VERSION}:
        return
    if not mark.is_file():  # it is written first, so that the folder of an interrupted command has it
        refuse_foreign(folder, lambda name: False, found="is no folder of the demo, and holds")
    with full_disk_as_user_error(folder):
        write_json(mark, {"version": None})
        folders = write_clinic(folder / "data")
        build_models(folder / "models", _texts(folders.values()))
        write_json(mark, {"version": VERSION})


def recipe_for(folder: Path, task: str) -> tuple[Path, list[str]]:
    """The packaged recipe of a task, and the overrides that move it into `folder`."""
    return RECIPES / f"{task}.yaml", [
        f"output_dir={folder / task}",
        f"data.dataset={folder / 'data' / f'clinic_{task}'}",
        f"teacher.model_name_or_path={folder / 'models' / 'teacher'}",
        f"student.model_name_or_path={folder / 'models' / 'student'}",
    ]


def _texts(folders: Iterable[Path]) -> Iterator[str]:
    """All text of the training rows, from which the tokenizer is learned."""
    for folder in folders:
        for row in read_jsonl(folder / "train.jsonl"):
            yield from (str(row[key]) for key in ("text", "context", "question") if key in row)
            yield from (f" {label}" for label in (row.get("label"), *row.get("answers", [])) if label)
            yield from (f"{entity['type']}: {entity['text']}" for entity in row.get("entities", []))
