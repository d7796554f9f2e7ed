"""cross_fit: out-of-fold losses of student and teacher on the training rows, for weights that compare skill.

After some epochs a model has memorised its training rows, and the ratio of two such losses says which model memorised
better. This stage cuts the rows into folds. For each fold it trains a student, and a teacher with its checkpoints, on
the other rows, for as long as anchor and teacher are trained, and measures their losses on the fold. The cost is one
more fine-tuning run of student and teacher per fold, each on (folds - 1) / folds of the rows; with `cross_fit.teacher:
false` of the student alone.

Writes cross_fit/sample_loss.jsonl: for each training row its `fold`, the student's loss (`anchor`) and each
checkpoint's (`teacher`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tutelage.data.encode import EncodedRow, Subset
from tutelage.data.token_store import unit_lengths
from tutelage.errors import ModelError
from tutelage.method.methods import find_method
from tutelage.recipe.schema import Model
from tutelage.run import stage_inputs
from tutelage.run.run_folder import RunFolder
from tutelage.teacher.hidden_store import HiddenStore
from tutelage.training.run_models import RunModels
from tutelage.training.trainer import epochs_in_budget, steps_of, training_arguments
from tutelage.utils import ranks
from tutelage.utils.files import discard, replacing, write_jsonl
from tutelage.utils.integrity import reading

Losses = dict[str, np.ndarray]
"""By model, `anchor` or the name of a checkpoint: [rows] losses in nats per answer token."""


@dataclass(frozen=True)
class _Fold:
    """Indices of the training rows that a fold's models are evaluated on, and of those they are trained on."""

    evaluated: np.ndarray
    trained: np.ndarray


@dataclass(frozen=True)
class _FineTuning:
    """A fine-tuning run that is repeated for every fold."""

    model: Model
    sections: tuple[Literal["teach", "anchor", "distill"], ...]
    """Sections of the recipe whose `trainer` it uses."""
    seed: int
    epochs: float | None
    """None: as many as `trainer` says."""
    saved_at: list[float]
    """Fractions of its steps after which losses are measured."""


def run_stage(run: RunFolder, models: RunModels) -> None:
    """Run the stage if a method of the recipe computes weights from out-of-fold losses."""
    if not any(find_method(name).needs_cross_fit for name in run.recipe.distill.methods):
        return
    inputs = stage_inputs.cross_fit(run)
    with run.work("cross_fit", inputs, restart_only=lambda folder: folder.glob("fold-*")) as work:
        if work is None:
            return
        rows, folds = models.encoded("train"), run.recipe.cross_fit.folds
        checkpoints = run.teacher_checkpoints["checkpoints"]
        names = [checkpoint["name"] for checkpoint in checkpoints]
        fold_of_row = np.random.default_rng(run.recipe.seed).permutation(len(rows)) % folds
        losses = {name: np.zeros(len(rows)) for name in ("anchor", *names)}
        for number in range(folds):
            fold = _Fold(np.flatnonzero(fold_of_row == number), np.flatnonzero(fold_of_row != number))
            for name, values in _fold_losses(run, models, work.folder / f"fold-{number}", fold, names).items():
                losses[name][fold.evaluated] = values
        ranks.once(lambda: write_jsonl(work.folder / "sample_loss.jsonl", _lines(rows, fold_of_row, losses)))


def _lines(rows: Sequence[EncodedRow], fold_of_row: np.ndarray, losses: Losses) -> Iterator[dict[str, Any]]:
    for index, row in enumerate(rows):
        of_row = {name: float(values[index]) for name, values in losses.items()}
        yield {"id": row.id, "fold": int(fold_of_row[index]), "anchor": of_row.pop("anchor"), "teacher": of_row}


def _fold_losses(run: RunFolder, models: RunModels, folder: Path, fold: _Fold, names: list[str]) -> Losses:
    """Losses of `anchor` and the checkpoints `names` on a fold. Saved, so that an interrupted stage continues with the
    next fold."""
    saved = folder / "row_losses.safetensors"
    if saved.is_file():
        with reading(saved, SafetensorError):
            return load_file(str(saved))
    recipe = run.recipe
    rows = len(models.encoded("train"))
    epochs = recipe.distill.num_stages * recipe.distill.epochs_per_stage
    epochs = epochs_in_budget(run.trainer_arguments("distill", "anchor"), epochs, rows, run.budget_rows)
    student = _FineTuning(recipe.student, ("distill", "anchor"), recipe.seed, epochs, [1.0])
    losses = dict(zip(["anchor"], _measured(run, models, folder / "student", student, fold), strict=True))
    if recipe.cross_fit.teacher:
        args = training_arguments(folder, run.trainer_arguments("teach"), seed=0)
        steps = steps_of(args, len(models.encoded("train")))
        saved_at = [int(name.removeprefix("checkpoint-")) / steps for name in names]
        teacher = _FineTuning(recipe.teacher, ("teach",), recipe.teacher_seed, None, saved_at)
        losses |= dict(zip(names, _measured(run, models.taught, folder / "teacher", teacher, fold), strict=True))
    else:
        units = unit_lengths(models.taught.training_rows())
        losses |= {name: HiddenStore(run.folder / "cache" / name).nll(units)[fold.evaluated] for name in names}
    ranks.once(lambda: _save(losses, saved))
    return losses


def _save(losses: Losses, path: Path) -> None:
    """Write a fold's losses; its models are not needed any more."""
    with replacing(path) as draft:
        save_file(losses, str(draft))
    for name in ("student", "teacher"):
        discard(path.with_name(name))


def _measured(run: RunFolder, models: RunModels, folder: Path, tuning: _FineTuning, fold: _Fold) -> list[np.ndarray]:
    """[rows of the fold] losses at each point of `saved_at` of a fine-tuning run on the other rows."""
    rows = models.encoded("train")
    args = training_arguments(folder, run.trainer_arguments(*tuning.sections), seed=tuning.seed, epochs=tuning.epochs)
    trained, evaluated = Subset(rows, fold.trained), Subset(rows, fold.evaluated)
    total = steps_of(args, len(trained))
    steps = [max(1, round(total * fraction)) for fraction in tuning.saved_at]
    if len(set(steps)) != len(steps):
        raise ModelError(
            f"a fold's fine-tuning run has {total} steps, too few for {len(steps)} checkpoints: use fewer folds"
        )
    label = f"{folder.parent.name} {folder.name}"
    models.fine_tuned(label, tuning.model, args, trained, seed=tuning.seed, save_at=steps, log=folder / "log.jsonl")
    losses = []
    for step in steps:
        model = models.load(tuning.model, folder / f"checkpoint-{step}")
        losses.append(models.evaluator.losses(model, evaluated))
    return losses
