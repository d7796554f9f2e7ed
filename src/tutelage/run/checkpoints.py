"""The teacher's checkpoint folders: found, put in order and checked by their config files. No weights are loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tutelage.errors import ModelError
from tutelage.recipe.schema import Model
from tutelage.utils.files import read_json

RESUME_ONLY = ("optimizer.pt", "scheduler.pt", "rng_state*.pth", "training_args.bin", "scaler.pt", "whole")
"""Glob patterns of the files in a checkpoint folder that only an unfinished fine-tuning run needs."""


def list_checkpoints(where: str | list[str], base: Model) -> list[Path]:
    """Folders of the teacher's checkpoints, oldest first, checked without loading any weights.

    where: a folder that holds `checkpoint-STEP` folders, or a list of folders in training order. Raises ModelError if
    there are none, or if one is of another architecture or size than the teacher, or holds adapters for another base.
    """
    if isinstance(where, str):
        numbered = [p for p in Path(where).glob("checkpoint-*") if p.is_dir() and re.search(r"\d+$", p.name)]
        folders = sorted(numbered, key=lambda p: int(re.search(r"\d+$", p.name)[0]))
        if not folders:
            raise ModelError(
                f"no checkpoint-* folder in {where!r}: give a folder with some, or list them in teach.checkpoints"
            )
    else:
        folders = [Path(entry) for entry in where]
    if len({folder.name for folder in folders}) < len(folders):
        raise ModelError(f"two checkpoints have the same folder name; rename one of {[str(f) for f in folders]}")
    for folder in folders:
        _check_checkpoint(folder, base)
    return folders


def base_of(checkpoints: str | list[str]) -> str:
    """The model that was fine-tuned: the base of adapters, or the first checkpoint itself.

    checkpoints: a folder with `checkpoint-*`, or a list of folders. Raises ModelError if there are none.
    """
    if isinstance(checkpoints, str):
        folders = sorted(Path(checkpoints).glob("checkpoint-*"))
    else:
        folders = [Path(folder) for folder in checkpoints]
    if not folders:
        raise ModelError(f"no checkpoint-* folder in {checkpoints!r}: give a folder with some, or a list of folders")
    adapter = folders[0] / "adapter_config.json"
    return read_json(adapter)["base_model_name_or_path"] if adapter.is_file() else str(folders[0])


def _check_checkpoint(folder: Path, base: Model) -> None:
    """Refuse a checkpoint folder that cannot be one of this teacher's."""
    expected = _read_config(Path(base.model_name_or_path))
    if (folder / "adapter_config.json").is_file():
        adapter_base = _read_object(folder / "adapter_config.json").get("base_model_name_or_path")
        if adapter_base and not _same_model(adapter_base, base.model_name_or_path):
            missing = "" if Path(adapter_base).exists() else ", which does not exist"
            raise ModelError(
                f"{folder} holds adapters for the base model {adapter_base!r}{missing}; teacher.model_name_or_path is"
                f" {base.model_name_or_path!r}. Name the adapters' own base there"
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


def _same_model(first: str, second: str) -> bool:
    paths = Path(first), Path(second)
    return first == second or (all(path.exists() for path in paths) and paths[0].samefile(paths[1]))
