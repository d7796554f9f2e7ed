"""anchor: the student after plain fine-tuning on the same rows, with as many steps as distillation gets; then frozen.

With `anchor.keep: score` or `loss`, the best on validation of `distill.num_stages` points of that fine-tuning run.
Writes anchor/ (a whole model) and anchor/sample_loss.jsonl, its loss on every training and validation row.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import nn

from tutelage.models.evaluation import loss_records
from tutelage.models.load import load_model, merged, save_student
from tutelage.run import stage_inputs
from tutelage.run.run_folder import RunFolder
from tutelage.training.callbacks import WHOLE, seconds_before
from tutelage.training.finetuning import best_checkpoint, spaced_steps
from tutelage.training.run_models import RunModels
from tutelage.training.trainer import training_arguments
from tutelage.utils.files import write_json, write_jsonl

SPLITS = ("train", "validation")


def run_stage(run: RunFolder, models: RunModels) -> None:
    """Do the stage."""
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
        records = itertools.chain.from_iterable(map(loss_records, splits, losses))
        write_jsonl(work.folder / "sample_loss.jsonl", records)
        shutil.rmtree(work.folder / "trainer", ignore_errors=True)


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
        found.append({"name": point.name, "score": score, "nll": float(losses.mean())})
    best = best_checkpoint(found, run.recipe.anchor.keep)
    write_json(folder / "validation.json", {"best": best, "by": run.recipe.anchor.keep, "checkpoints": found})
    seen = ", ".join(f"{c['name']} {c['score']:.3f}/{c['nll']:.3f}" for c in found)
    run.screen.say(f"anchor: validation {run.task.metric} / loss in nats: {seen}; kept is {best}")
    return folder / "trainer" / best
