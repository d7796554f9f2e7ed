"""The teacher's checkpoint folders: found, put in order and checked by their config files. No weights are loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tutelage.errors import ModelError
from tutelage.recipe.schema import Model

RESUME_ONLY = ("optimizer.pt", "scheduler.pt", "rng_state*.pth", "training_args.bin", "scaler.pt", "whole")
"""Glob patterns of the files in a checkpoint folder that only an unfinished fine-tuning run needs."""


def list_checkpoints(where: str | list[str], base: Model) -> list[Path]:
    """Folders of the teacher's checkpoints, oldest first, checked without loading any weights.

    where: a folder that holds `checkpoint-STEP` folders, or a list of folders in training order. Raises ModelError if
    there are none, or if one is of another architecture or size than the teacher, or holds adapters for another base.
    """
    if isinstance(where, str):
        found = [p for p in Path(where).glob("checkpoint-*") if p.is_dir() and re.search(r"\d+$", p.name)]
        folders = sorted(found, key=lambda p: int(re.search(r"\d+$", p.name)[0]))
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


def _check_checkpoint(folder: Path, base: Model) -> None:
    """Refuse a checkpoint folder that cannot be one of this teacher's."""
    expected = _read_config(Path(base.model_name_or_path))
    if (folder / "adapter_config.json").is_file():
        theirs = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
        if theirs and theirs != base.model_name_or_path and not _same_folder(theirs, base.model_name_or_path):
            missing = "" if Path(theirs).exists() else ", which is not there"
            raise ModelError(
                f"{folder} holds adapters for the base model {theirs!r}{missing}; teacher.model_name_or_path is"
                f" {base.model_name_or_path!r}. Name the adapters' own base there"
            )
        return
    found = _read_config(folder)
    if found is None:
        raise ModelError(f"{folder} is no checkpoint: neither config.json nor adapter_config.json is in it")
    for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size") if expected else ():
        if found.get(key) != expected.get(key):
            raise ModelError(
                f"{folder} is of another architecture than the teacher {base.model_name_or_path!r}:"
                f" {key} is {found.get(key)!r}, not {expected.get(key)!r}"
            )


def _read_config(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _same_folder(one: str, other: str) -> bool:
    return Path(one).exists() and Path(other).exists() and Path(one).samefile(other)
