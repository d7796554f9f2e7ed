"""The teacher's checkpoint folders: found, put in order and checked by their config files. No weights are loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tutelage.errors import ModelError
from tutelage.recipe.schema import Model
from tutelage.run.hub_checkpoints import downloaded, is_revision
from tutelage.run.manifest import folder_fingerprint
from tutelage.utils.files import read_json


def list_checkpoints(where: str | list[str], base: Model) -> list[Path]:
    """Folders of the teacher's checkpoints, oldest first, checked without loading any weights.

    where: a folder that holds `checkpoint-STEP` folders, or a list in training order of folders and revisions on the
    hub (`owner/name@revision`), which are downloaded. Raises ModelError if there are none, if one is of another
    architecture or size than the teacher, or holds adapters for another base, if the hub does not have it, or if
    names that differ in a number alone are not listed from the lowest to the highest.
    """
    folders = _folders(where)
    if len({folder.name for folder in folders}) < len(folders):
        raise ModelError(f"two checkpoints have the same folder name; rename one of {[str(f) for f in folders]}")
    _check_order([folder.name for folder in folders])
    for folder in folders:
        _check_checkpoint(folder, base)
    return folders


def base_of(checkpoints: str | list[str]) -> str:
    """The model that was fine-tuned: the base of adapters, or the first checkpoint itself.

    checkpoints: as in `list_checkpoints`. Raises ModelError if there are none.
    """
    first = _folders(checkpoints)[0]
    adapter = first / "adapter_config.json"
    if not adapter.is_file():
        return str(first)
    base = _base_in(adapter)
    if base is None:
        raise ModelError(f"{adapter} does not name the adapters' base: write its base_model_name_or_path there")
    return base


def _base_in(adapter: Path) -> str | None:
    """The base that an adapter_config.json names. Raises ModelError if that is no name."""
    base = _read_object(adapter).get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise ModelError(
            f"{adapter}: base_model_name_or_path is {base!r}, which is no name of a model: write a folder or a Hub id"
        )
    return base


def _folders(where: str | list[str]) -> list[Path]:
    """Raises ModelError if there are none."""
    if not isinstance(where, str):
        folders = [downloaded(entry) if is_revision(entry) else Path(entry) for entry in where]
    else:
        numbered = [p for p in Path(where).glob("checkpoint-*") if p.is_dir() and re.search(r"\d+$", p.name)]
        folders = sorted(numbered, key=lambda p: int(re.search(r"\d+$", p.name)[0]))
    if not folders:
        raise ModelError(
            f"no checkpoint-* folder in {where!r}: give a folder with some, or list them in teach.checkpoints"
        )
    return folders


def _check_order(names: list[str]) -> None:
    """Raises ModelError for `[checkpoint-1000, checkpoint-900]`, the order of a shell's pattern: a schedule would
    follow the training backwards."""
    numbers = [re.search(r"\d+$", name) for name in names]
    if None in numbers or len({name[: number.start()] for name, number in zip(names, numbers, strict=True)}) > 1:
        return
    ordered = sorted(names, key=lambda name: int(re.search(r"\d+$", name)[0]))
    if names != ordered:
        raise ModelError(
            f"checkpoints are listed in training order, which {', '.join(names)} is not. Write"
            f" [{', '.join(ordered)}], or rename a folder whose number is not that of its step"
        )


def _check_checkpoint(folder: Path, base: Model) -> None:
    """Refuse a checkpoint folder that cannot be one of this teacher's."""
    expected = _read_config(Path(base.model_name_or_path))
    if (folder / "adapter_config.json").is_file():
        adapter_base = _base_in(folder / "adapter_config.json")
        if adapter_base and not _same_model(adapter_base, base.model_name_or_path):
            missing = "" if Path(adapter_base).exists() else ", which is not a folder here"
            raise ModelError(
                f"{folder} holds adapters for the base model {adapter_base!r}{missing}; teacher.model_name_or_path is"
                f" {base.model_name_or_path!r}. Name the adapters' own base there. If it is this model under another"
                f" name, write its name as base_model_name_or_path in {folder / 'adapter_config.json'}"
            )
        return
    config = _read_config(folder)
    if config is None:
        raise ModelError(f"{folder} is not a checkpoint: it has neither config.json nor adapter_config.json")
    for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size") if expected else ():
        if config.get(key) != expected.get(key):
            raise ModelError(
                f"{folder} has another architecture than the teacher {base.model_name_or_path!r}:"
                f" {key} is {config.get(key)!r}, not {expected.get(key)!r}"
            )


def _read_config(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.json"
    return _read_object(path) if path.is_file() else None


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path} is no configuration: it must hold a JSON object")
    return value


def _same_model(recorded: str, teacher: str) -> bool:
    """Whether adapters that were trained on the model `recorded` fit the teacher's name: it is that model or a copy of
    it, or `recorded` is not here (it was moved, or comes from another machine or the hub) and has the same name."""
    paths = Path(recorded), Path(teacher)
    if recorded == teacher or (all(path.exists() for path in paths) and paths[0].samefile(paths[1])):
        return True
    if paths[0].is_dir():
        return paths[1].is_dir() and folder_fingerprint(recorded) == folder_fingerprint(teacher)
    return paths[1].is_dir() and _last_name(recorded) == _last_name(teacher)


def _last_name(model: str) -> str:
    """The name of a model without owner and folders, of other systems too: `owner/name`, `C:\\models\\name`."""
    return re.split(r"[/\\]", model.rstrip("/\\"))[-1].lower()
