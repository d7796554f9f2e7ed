"""anchor: the student after plain fine-tuning on the same rows, with as many steps as distillation gets; then frozen.

With `anchor.keep` the best of `distill.num_stages` points of that training on validation, as distilled students are
chosen. Writes anchor/ (a whole model) and anchor/sample_loss.jsonl: its loss on every training and validation row;
those of the answer tokens are in token_loss.safetensors. For methods that learn from teacher and anchor also
anchor_cache/, the anchor read like a checkpoint.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from safetensors.numpy import save_file
from torch import nn

from tutelage.errors import ModelError
from tutelage.method.methods import find_method
from tutelage.models.evaluation import loss_records
from tutelage.models.load import load_model, merged, save_student
from tutelage.run import stage_inputs
from tutelage.run.run_folder import RunFolder
from tutelage.training.finetuning import best_checkpoint, spaced_steps
from tutelage.training.run_models import RunModels
from tutelage.training.trainer import WHOLE, seconds_before, training_arguments
from tutelage.utils.files import write_json, write_jsonl

SPLITS = ("train", "validation")


def run_stage(run: RunFolder, models: RunModels) -> None:
    """Do the stage."""
    _anchor(run, models)
    if any(find_method(name).weighting == "gated" for name in run.recipe.distill.methods):
        _states(run, models)


def _anchor(run: RunFolder, models: RunModels) -> None:
    recipe, own = run.recipe, run.recipe.anchor.model_name_or_path
    with run.work("anchor", stage_inputs.anchor(run)) as work:
        if work is None:
            return
        work.seconds_before = seconds_before(work.folder / "trainer")
        model = load_model(recipe.student, own) if own else _train(run, models, work.folder)
        save_student(model, models.tokenizer, work.folder)
        splits = [models.encoded(split) for split in SPLITS]
        with models.autocast(), run.screen.progress("anchor losses", sum(map(len, splits))) as advance:
            losses = [models.evaluator.losses(model, rows, advance) for rows in splits]
        records = itertools.chain.from_iterable(
            loss_records(rows, found.rows) for rows, found in zip(splits, losses, strict=True)
        )
        write_jsonl(work.folder / "sample_loss.jsonl", records)
        save_file(
            {split: found.tokens for split, found in zip(SPLITS, losses, strict=True)},
            str(work.folder / "token_loss.safetensors"),
        )
        shutil.rmtree(work.folder / "trainer", ignore_errors=True)


def _states(run: RunFolder, models: RunModels) -> None:
    with run.work("anchor_cache", stage_inputs.anchor_cache(run)) as work:
        if work is None:
            return
        model = models.load(run.recipe.student, run.folder / "anchor")
        with run.screen.progress("cache anchor", len(models.encoded("train"))) as advance:
            note = models.cache_builder(work.folder).build("anchor", model, {"checkpoint": "anchor"}, advance)
        if note:
            raise ModelError(
                f"methods that learn from the anchor as well (cd-mix) need whole distributions of it: {note}"
            )


def _train(run: RunFolder, models: RunModels, folder: Path) -> nn.Module:
    recipe, plan, rows = run.recipe, run.recipe.distill, models.encoded("train")
    epochs, given = plan.num_stages * plan.epochs_per_stage, run.trainer_arguments("distill", "anchor")
    args = training_arguments(folder / "trainer", given, seed=recipe.seed, epochs=epochs)
    saves = spaced_steps(args, len(rows), plan.num_stages)
    train = partial(models.fine_tuned, "anchor", recipe.student, args, rows, seed=recipe.seed, log=folder / "log.jsonl")
    if recipe.anchor.keep == "last":
        return merged(train(save_at=saves[:-1])).eval()
    points = [folder / "trainer" / f"checkpoint-{step}" for step in saves]
    if not (points[-1] / WHOLE).exists():
        train(save_at=saves)
    return load_model(recipe.student, _best(run, models, folder, points))


def _best(run: RunFolder, models: RunModels, folder: Path, points: Sequence[Path]) -> Path:
    """The best of these points of the training on validation; what all of them have there goes into validation.json."""
    exam, found = models.exam("validation"), []
    for point in points:
        with run.screen.progress(f"validate {point.name}", len(exam.examples)) as advance:
            score, _, losses = models.evaluator.quick(models.load(run.recipe.student, point), exam, advance)
        found.append({"name": point.name, "score": score, "nll": float(losses.rows.mean())})
    best = best_checkpoint(found, run.recipe.anchor.keep)
    write_json(folder / "validation.json", {"best": best, "by": run.recipe.anchor.keep, "checkpoints": found})
    seen = ", ".join(f"{c['name']} {c['score']:.3f}/{c['nll']:.3f}" for c in found)
    run.screen.say(f"anchor: validation {run.task.metric} / loss in nats: {seen}; kept is {best}")
    return folder / "trainer" / best
