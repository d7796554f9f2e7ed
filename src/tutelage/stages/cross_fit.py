"""cross_fit: losses of student and teacher on training rows that they have not been trained on, for weights that
compare skill.

After some epochs a model has memorised its rows, and the ratio of two such losses says who memorised better. Here the
rows are cut into folds; for each fold a student, and a teacher with its checkpoints, are trained on the other rows, as
long as anchor and teacher are, and read the fold. The cost: as many more trainings of student and teacher as there are
folds, each on (folds - 1) / folds of the rows; with `cross_fit.teacher: false` of the student alone.

Writes cross_fit/sample_loss.jsonl: each training row's `fold`, the student's loss (`anchor`) and each checkpoint's
(`teacher`); and token_loss.safetensors, the same for answer tokens.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tutelage.data.encode import EncodedRow, Subset
from tutelage.data.token_store import answer_lengths
from tutelage.errors import ModelError
from tutelage.method.methods import find_method
from tutelage.recipe.schema import Model
from tutelage.run import stage_inputs
from tutelage.run.run_folder import RunFolder
from tutelage.teacher.hidden_store import HiddenStore
from tutelage.training.mixtures import row_means
from tutelage.training.run_models import RunModels
from tutelage.training.trainer import steps_of, training_arguments
from tutelage.utils.files import write_jsonl


def run_stage(run: RunFolder, models: RunModels) -> None:
    """Do the stage, if a method of the recipe weighs by losses out of sample."""
    if not any(find_method(name).needs_cross_fit for name in run.recipe.distill.methods):
        return
    with run.work("cross_fit", stage_inputs.cross_fit(run)) as work:
        if work is None:
            return
        rows, folds = models.encoded("train"), run.recipe.cross_fit.folds
        names = [checkpoint["name"] for checkpoint in run.teacher_checkpoints["checkpoints"]]
        fold_of = np.random.default_rng(run.recipe.seed).permutation(len(rows)) % folds
        lengths = answer_lengths(rows)
        in_fold = np.repeat(fold_of, lengths)
        tokens = {name: np.zeros(len(in_fold)) for name in ("anchor", *names)}
        for fold in range(folds):
            places, others = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
            for name, losses in _fold(run, models, work.folder / f"fold-{fold}", places, others, names).items():
                tokens[name][in_fold == fold] = losses
        save_file(tokens, str(work.folder / "token_loss.safetensors"))
        write_jsonl(
            work.folder / "sample_loss.jsonl",
            _lines(rows, fold_of, {n: row_means(t, lengths) for n, t in tokens.items()}),
        )
        for fold in range(folds):
            shutil.rmtree(work.folder / f"fold-{fold}")


def _lines(rows: Sequence[EncodedRow], fold_of: np.ndarray, losses: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    for place, row in enumerate(rows):
        teacher = {name: float(values[place]) for name, values in losses.items() if name != "anchor"}
        yield {"id": row.id, "fold": int(fold_of[place]), "anchor": float(losses["anchor"][place]), "teacher": teacher}


def _fold(
    run: RunFolder, models: RunModels, folder: Path, places: np.ndarray, others: np.ndarray, names: list[str]
) -> dict[str, np.ndarray]:
    """[positions] losses on the rows at `places`, row by row, of `anchor` and checkpoints trained on the rows at
    `others`.

    They are kept, so that a restart goes on with the next fold.
    """
    kept = folder / "losses.safetensors"
    if kept.is_file():
        return load_file(str(kept))
    recipe = run.recipe
    epochs = recipe.distill.num_stages * recipe.distill.epochs_per_stage
    (anchor,) = _losses(
        run,
        models,
        folder / "student",
        recipe.student,
        ("distill", "anchor"),
        recipe.seed,
        epochs,
        places,
        others,
        [1.0],
    )
    if recipe.cross_fit.teacher:
        whole = steps_of(
            training_arguments(folder, run.trainer_arguments("teach"), seed=0), len(models.encoded("train"))
        )
        shares = [int(name.removeprefix("checkpoint-")) / whole for name in names]
        teacher = _losses(
            run,
            models,
            folder / "teacher",
            recipe.teacher,
            ("teach",),
            recipe.teacher_seed,
            None,
            places,
            others,
            shares,
        )
    else:
        lengths = answer_lengths(models.encoded("train"))
        theirs = np.repeat(np.isin(np.arange(len(lengths)), places), lengths)
        teacher = [HiddenStore(run.folder / "cache" / name).token_nll()[theirs] for name in names]
    found = {"anchor": anchor, **dict(zip(names, teacher, strict=True))}
    draft = kept.with_suffix(".part")
    save_file(found, str(draft))
    draft.replace(kept)
    return found


def _losses(
    run: RunFolder,
    models: RunModels,
    folder: Path,
    section: Model,
    trainer: Any,
    seed: int,
    epochs: float | None,
    places: Any,
    others: Any,
    shares: list[float],
) -> list[np.ndarray]:
    """[positions] losses on the rows at `places` after these shares of a training on the rows at `others`."""
    rows = models.encoded("train")
    args = training_arguments(folder, run.trainer_arguments(*trainer), seed=seed, epochs=epochs)
    rest, fold = Subset(rows, others), Subset(rows, places)
    total = steps_of(args, len(rest))
    steps = [max(1, round(total * share)) for share in shares]
    if len(set(steps)) != len(shares):
        raise ModelError(f"a fold's training has {total} steps, too few for {len(shares)} checkpoints: use fewer folds")
    label = f"{folder.parent.name} {folder.name}"
    models.fine_tuned(label, section, args, rest, seed=seed, save_at=steps, log=folder / "log.jsonl")
    found = []
    for step in steps:
        model = models.load(section, folder / f"checkpoint-{step}")
        found.append(models.evaluator.losses(model, fold).tokens)
    shutil.rmtree(folder)
    return found
