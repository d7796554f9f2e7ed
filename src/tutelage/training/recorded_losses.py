"""Losses that stages of a run wrote, read for adaptive weights: of anchor and checkpoints, in sample, out of it, on
validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tutelage.data.encode import EncodedRow
from tutelage.data.token_store import answer_lengths
from tutelage.errors import StaleArtifactError
from tutelage.method.methods import Method
from tutelage.method.weighting import AdaptiveWeighting
from tutelage.run.run_folder import RunFolder
from tutelage.teacher.sources import TeacherSource
from tutelage.training.mixtures import row_means
from tutelage.training.run_models import RunModels
from tutelage.utils.files import read_jsonl


def weighting(
    models: RunModels, parts: Method, rows: Sequence[EncodedRow], source: TeacherSource | None
) -> AdaptiveWeighting | None:
    """Adaptive weights as a method makes them on the training rows; None where its weights are constant."""
    if parts.schedule == "none" or not (parts.needs_anchor or parts.needs_cross_fit):
        return None
    how = models.run.recipe.distill.weighting
    tokens = None
    if parts.needs_cross_fit:
        lines = list(read_jsonl(models.run.folder / "cross_fit" / "sample_loss.jsonl"))
        anchor = np.array([line["anchor"] for line in lines])
        teacher = cache(lambda name: np.array([line["teacher"][name] for line in lines]))
        if how.per_token:
            found = _tokens(models.run.folder / "cross_fit" / "token_loss.safetensors", "cross-fit")
            tokens = found["anchor"], found.__getitem__
    else:
        anchor, teacher = of_anchor(models.run, "train", rows), source.nll
        if how.per_token:
            tokens = (
                _tokens(models.run.folder / "anchor" / "token_loss.safetensors", "anchor")["train"],
                source.token_nll,
            )
    return AdaptiveWeighting(
        anchor,
        teacher,
        how,
        rule=parts.weighting if callable(parts.weighting) else None,
        groups=_subdomains(models, rows) if how.smooth else None,
        held_out=_held_out(models) if how.calibrate else None,
        tokens=tokens,
    )


def of_anchor(run: RunFolder, split: str, rows: Sequence[EncodedRow]) -> np.ndarray:
    """[rows] losses of the anchor on the rows of a split, which were written in their order, training rows first."""
    lines = (line for line in read_jsonl(run.folder / "anchor" / "sample_loss.jsonl") if line["split"] == split)
    losses = np.zeros(len(rows))
    for place, row in enumerate(rows):
        line = next(lines, {"id": "none"})
        if row.id != line["id"]:
            raise StaleArtifactError(
                f"anchor/sample_loss.jsonl has row {line['id']} where {row.id} is: tutelage anchor RECIPE --force"
            )
        losses[place] = line["nll"]
    return losses


def validation_tokens(models: RunModels, checkpoint: str) -> np.ndarray:
    """[positions] losses of a checkpoint on the answer tokens of the validation rows."""
    return _tokens(models.run.folder / "teach" / "validation" / f"{checkpoint}.safetensors", "teach")["tokens"]


def validation_lengths(models: RunModels) -> np.ndarray:
    """[rows] answer tokens of the validation rows."""
    return answer_lengths(models.encoded("validation"))


def _held_out(models: RunModels) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
    rows = models.encoded("validation")
    anchor, lengths = of_anchor(models.run, "validation", rows), answer_lengths(rows)
    return lambda checkpoint: (anchor, row_means(validation_tokens(models, checkpoint), lengths))


def _tokens(path: Path, command: str) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise StaleArtifactError(
            f"{path} is missing, which an earlier version did not write: tutelage {command} RECIPE --force"
        )
    return load_file(str(path))


def _subdomains(models: RunModels, rows: Sequence[EncodedRow]) -> np.ndarray:
    """[rows] number of each row's subdomain, or of its answer where the rows have none."""
    lines = {
        line["id"]: line
        for line in read_jsonl(models.run.folder / "prepare" / "rows.jsonl")
        if line["split"] == "train"
    }
    names = [lines[row.id]["subdomain"] or lines[row.id]["answer"] for row in rows]
    return np.unique(names, return_inverse=True)[1]
