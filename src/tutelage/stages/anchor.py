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
from tutelage.run.workspace import Workspace
from tutelage.training.callbacks import WHOLE, seconds_before
from tutelage.training.finetuning import best_checkpoint, spaced_steps
from tutelage.training.trainer import training_arguments
from tutelage.utils.files import write_json, write_jsonl

SPLITS = ("train", "validation")


def run(space: Workspace) -> None:
    """Do the stage."""
    recipe, own = space.recipe, space.recipe.anchor.model_name_or_path
    with space.work("anchor", stage_inputs.anchor(space)) as work:
        if work is None:
            return
        work.seconds_before = seconds_before(work.folder / "trainer")
        model = load_model(recipe.student, own) if own else _train(space, work.folder)
        save_student(model, space.tokenizer, work.folder)
        splits = [space.encoded(split) for split in SPLITS]
        with space.autocast(), space.screen.progress("anchor losses", sum(map(len, splits))) as advance:
            losses = [space.evaluator.losses(model, rows, advance) for rows in splits]
        records = itertools.chain.from_iterable(map(loss_records, splits, losses))
        write_jsonl(work.folder / "sample_loss.jsonl", records)
        shutil.rmtree(work.folder / "trainer", ignore_errors=True)


def _train(space: Workspace, folder: Path) -> nn.Module:
    recipe, plan, rows = space.recipe, space.recipe.distill, space.encoded("train")
    epochs, given = plan.num_stages * plan.epochs_per_stage, space.trainer_arguments("distill", "anchor")
    args = training_arguments(folder / "trainer", given, seed=recipe.seed, epochs=epochs)
    saves = spaced_steps(args, len(rows), plan.num_stages)
    train = partial(space.fine_tuned, "anchor", recipe.student, args, rows, seed=recipe.seed, log=folder / "log.jsonl")
    if recipe.anchor.keep == "last":
        return merged(train(save_at=saves[:-1])).eval()
    points = [folder / "trainer" / f"checkpoint-{step}" for step in saves]
    if not (points[-1] / WHOLE).exists():
        train(save_at=saves)
    return load_model(recipe.student, _best(space, folder, points))


def _best(space: Workspace, folder: Path, points: Sequence[Path]) -> Path:
    """The best of these points of the training on validation; what all of them have there goes into validation.json."""
    exam, found = space.exam("validation"), []
    for point in points:
        with space.screen.progress(f"validate {point.name}", len(exam.examples)) as advance:
            score, _, losses = space.evaluator.quick(space.load(space.recipe.student, point), exam, advance)
        found.append({"name": point.name, "score": score, "nll": float(losses.mean())})
    best = best_checkpoint(found, space.recipe.anchor.keep)
    write_json(folder / "validation.json", {"best": best, "by": space.recipe.anchor.keep, "checkpoints": found})
    seen = ", ".join(f"{c['name']} {c['score']:.3f}/{c['nll']:.3f}" for c in found)
    space.screen.say(f"anchor: validation {space.task.metric} / loss in nats: {seen}; kept is {best}")
    return folder / "trainer" / best
