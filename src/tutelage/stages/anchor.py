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
from tutelage.run.workspace import Workspace
from tutelage.training.finetuning import best_checkpoint, spaced_steps
from tutelage.training.trainer import WHOLE, seconds_before, training_arguments
from tutelage.utils.files import write_json, write_jsonl

SPLITS = ("train", "validation")


def run(space: Workspace) -> None:
    """Do the stage."""
    _anchor(space)
    if any(find_method(name).weighting == "gated" for name in space.recipe.distill.methods):
        _states(space)


def _anchor(space: Workspace) -> None:
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
        records = itertools.chain.from_iterable(
            loss_records(rows, found.rows) for rows, found in zip(splits, losses, strict=True)
        )
        write_jsonl(work.folder / "sample_loss.jsonl", records)
        save_file(
            {split: found.tokens for split, found in zip(SPLITS, losses, strict=True)},
            str(work.folder / "token_loss.safetensors"),
        )
        shutil.rmtree(work.folder / "trainer", ignore_errors=True)


def _states(space: Workspace) -> None:
    with space.work("anchor_cache", stage_inputs.anchor_cache(space)) as work:
        if work is None:
            return
        model = space.load(space.recipe.student, space.folder / "anchor")
        with space.screen.progress("cache anchor", len(space.encoded("train"))) as advance:
            note = space.cache_builder(work.folder).build("anchor", model, {"checkpoint": "anchor"}, advance)
        if note:
            raise ModelError(
                f"methods that learn from the anchor as well (cd-mix) need whole distributions of it: {note}"
            )


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
        found.append({"name": point.name, "score": score, "nll": float(losses.rows.mean())})
    best = best_checkpoint(found, space.recipe.anchor.keep)
    write_json(folder / "validation.json", {"best": best, "by": space.recipe.anchor.keep, "checkpoints": found})
    seen = ", ".join(f"{c['name']} {c['score']:.3f}/{c['nll']:.3f}" for c in found)
    space.screen.say(f"anchor: validation {space.task.metric} / loss in nats: {seen}; kept is {best}")
    return folder / "trainer" / best
