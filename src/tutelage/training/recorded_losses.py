"""Losses of single rows that stages of a run recorded: of anchor and checkpoints on training and validation rows, and
out-of-fold losses. Adaptive weights are computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from tutelage.data.encode import EncodedRow
from tutelage.errors import StaleArtifactError
from tutelage.method.methods import Method
from tutelage.method.weighting import AdaptiveWeighting, weighting_function
from tutelage.run.run_folder import RunFolder
from tutelage.teacher.sources import TeacherSource
from tutelage.utils.files import read_jsonl
from tutelage.utils.integrity import present


def weighting(
    run: RunFolder, method: Method, rows: Sequence[EncodedRow], source: TeacherSource | None
) -> AdaptiveWeighting | None:
    """Adaptive weights of a method on the rows with gold; None if its weights are constant.

    rows: those with gold. source: has them first.
    """
    if method.schedule == "none" or not (method.needs_anchor or method.needs_cross_fit):
        return None
    if method.needs_cross_fit:
        lines = list(read_jsonl(run.folder / "cross_fit" / "sample_loss.jsonl"))
        anchor = np.array([line["anchor"] for line in lines])
        return AdaptiveWeighting(anchor, cache(lambda name: np.array([line["teacher"][name] for line in lines])))
    gold = len(rows)
    anchor = of_anchor(run, "train", rows)
    return AdaptiveWeighting(anchor, lambda name: source.nll(name)[:gold], weighting_function(method.weighting))


def of_anchor(run: RunFolder, split: str, rows: Sequence[EncodedRow]) -> np.ndarray:
    """[rows] losses of the anchor on the rows of a split, in nats.

    Raises StaleArtifactError if they were not measured on these rows in this order.
    """
    return _of_rows(run.folder / "anchor" / "sample_loss.jsonl", split, rows, "anchor")


def of_checkpoint(run: RunFolder, checkpoint: str, rows: Sequence[EncodedRow]) -> np.ndarray:
    """[rows] losses of a teacher checkpoint on the validation rows, in nats.

    Raises StaleArtifactError if they were not measured on these rows in this order.
    """
    return _of_rows(run.folder / "teach" / "validation" / f"{checkpoint}.jsonl", "validation", rows, "teach")


def _of_rows(path: Path, split: str, rows: Sequence[EncodedRow], command: str) -> np.ndarray:
    """[rows] losses in a file that may hold several splits. command: the one that writes the file."""
    if not present(path):
        raise StaleArtifactError(
            f"{path} is missing; versions before this one did not write it: tutelage {command} RECIPE --force"
        )
    lines = (line for line in read_jsonl(path) if line["split"] == split)
    losses = np.zeros(len(rows))
    for index, row in enumerate(rows):
        line = next(lines, {"id": "none"})
        if row.id != line["id"]:
            raise StaleArtifactError(
                f"{path} has row {line['id']} where {row.id} is expected: tutelage {command} RECIPE --force"
            )
        losses[index] = line["nll"]
    return losses
