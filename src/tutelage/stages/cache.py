"""cache: read every teacher checkpoint once over the training rows and keep what it said.

Writes cache/checkpoint-*/ (see `hidden_store.py`) with sample_loss.jsonl, and the heads beside them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from tutelage.artifacts import read_json
from tutelage.caching import CacheBuilder, each_checkpoint
from tutelage.data import EncodedRow, pad_id_of
from tutelage.errors import UserError
from tutelage.hidden_store import HiddenStore, bytes_on_disk
from tutelage.records import SampleLoss, write_jsonl
from tutelage.workspace import Workspace


def run(space: Workspace) -> None:
    """Do the stage."""
    recipe, section = space.recipe, space.recipe.cache
    inputs = space.upstream("prepare", "teach") | space.settings("cache.dtype", "cache.shard_rows", "cache.top_k", "teacher.dtype")
    with space.work("cache", inputs) as work:
        if work is None:
            return
        rows = space.encoded("train")
        checkpoints = read_json(space.folder / "teach" / "checkpoints.json")["checkpoints"]
        _foretell(space, rows, checkpoints)
        builder = CacheBuilder(
            work.folder,
            rows,
            vocabulary=space.about["vocabulary"],
            pad_id=pad_id_of(space.tokenizer),
            dtype=getattr(torch, section.dtype),
            batch_size=section.batch_size,
            shard_rows=section.shard_rows,
            top_k=section.top_k,
        )
        folders = [Path(checkpoint["folder"]) for checkpoint in checkpoints]
        pending = [folder for folder in folders if not (work.folder / folder.name / "store.json").is_file()]
        for folder, model in each_checkpoint(recipe.teacher, pending):
            with space.screen.progress(f"cache {folder.name}", len(rows)) as advance:
                note = builder.build(folder.name, model, {"checkpoint": str(folder)}, advance)
            if note:
                space.screen.warn(note)
        for folder in folders:
            store = work.folder / folder.name
            write_jsonl(store / "sample_loss.jsonl", _losses(store, rows))


def _losses(folder: Path, rows: list[EncodedRow]) -> list[SampleLoss]:
    nll = HiddenStore(folder).nll()
    return [SampleLoss(row.id, row.split, float(loss), len(row.answer)) for row, loss in zip(rows, nll, strict=True)]


def _foretell(space: Workspace, rows: list[EncodedRow], checkpoints: list[dict[str, Any]]) -> None:
    """Say what the cache will take on disk; refuse if the disk has not got it."""
    width = _hidden_size(space.recipe.teacher.model_name_or_path)
    if width is None:
        return
    each = 2 if space.recipe.cache.dtype == "bfloat16" else 4
    states = bytes_on_disk(rows, width, each) * len(checkpoints)
    heads = space.about["vocabulary"] * width * each * len(checkpoints)
    free = shutil.disk_usage(space.folder).free
    space.screen.say(
        f"cache: {len(rows):,} rows x {len(checkpoints)} checkpoints take {states / 1e6:,.1f} MB, their heads at most"
        f" {heads / 1e6:,.0f} MB; {free / 1e9:,.0f} GB are free"
    )
    if states + heads > free:
        raise UserError(
            f"the cache needs up to {(states + heads) / 1e9:,.1f} GB and {space.folder} has {free / 1e9:,.1f} GB free. Use a larger"
            " disk (output_dir=...), fewer checkpoints (teach.num_checkpoints) or cache.dtype=bfloat16"
        )


def _hidden_size(model: str) -> int | None:
    """Width of the teacher, from a local config; a hub model's is known once its files are here."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model).get_text_config().hidden_size
    except (OSError, ValueError, AttributeError, json.JSONDecodeError):
        return None
