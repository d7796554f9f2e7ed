"""anchor: the student after plain fine-tuning on the same rows, with as many steps as distillation gets; then frozen.

With `anchor.keep: score` or `loss`, the best on validation of `distill.num_stages` points of that fine-tuning run.
Writes anchor/ (a whole model) and anchor/sample_loss.jsonl, its loss on every training and validation row, and its
score on the latter.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import nn

from tutelage.models.evaluation import loss_records, validation_records
from tutelage.models.load import load_model
from tutelage.run import stage_inputs
from tutelage.run.run_folder import RunFolder
from tutelage.training.callbacks import WHOLE, seconds_before
from tutelage.training.finetuning import best_checkpoint, spaced_steps
from tutelage.training.run_models import RunModels
from tutelage.training.trainer import epochs_in_budget, training_arguments
from tutelage.utils import ranks
from tutelage.utils.files import write_json, write_jsonl


def run_stage(run: RunFolder, models: RunModels) -> None:
    """Do the stage."""
    recipe, given = run.recipe, run.recipe.anchor.model_name_or_path
    with run.work("anchor", stage_inputs.anchor(run), restart_only=lambda folder: [folder / "trainer"]) as work:
        if work is None:
            return
        work.seconds_before = seconds_before(work.folder / "trainer")
        trained = load_model(recipe.student, given) if given else _train(run, models, work.folder)
        model = models.save_whole(trained, recipe.student, work.folder)
        train, validation = models.encoded("train"), models.eval_set("validation")
        total = len(train) + len(validation.examples)
        with models.autocast(), run.screen.progress("anchor losses", total) as advance:
            losses = models.evaluator.losses(model, train, advance)
            validated = models.evaluator.validate(model, validation, advance)
        records = itertools.chain(loss_records(train, losses), validation_records(validation.rows, validated))
        ranks.once(lambda: write_jsonl(work.folder / "sample_loss.jsonl", records))


def _train(run: RunFolder, models: RunModels, folder: Path) -> nn.Module:
    """Plain fine-tuning of the student; its end, or the checkpoint that `anchor.keep` asks for."""
    recipe, plan, rows = run.recipe, run.recipe.distill, models.encoded("train")
    given = run.trainer_arguments("distill", "anchor")
    epochs = epochs_in_budget(given, plan.num_stages * plan.epochs_per_stage, len(rows), run.budget_rows)
    args = training_arguments(folder / "trainer", given, seed=recipe.seed, epochs=epochs)
    steps = spaced_steps(args, len(rows), plan.num_stages)
    train = partial(models.fine_tuned, "anchor", recipe.student, args, rows, seed=recipe.seed, log=folder / "log.jsonl")
    if recipe.anchor.keep == "last" and not ranks.divides_models():
        return train(save_at=steps[:-1])
    checkpoints = [folder / "trainer" / f"checkpoint-{step}" for step in steps]
    if not (checkpoints[-1] / WHOLE).exists():
        train(save_at=steps)
    kept = checkpoints[-1] if recipe.anchor.keep == "last" else _select(models, folder, checkpoints)
    return load_model(recipe.student, kept, models.vocabulary)


def _select(models: RunModels, folder: Path, checkpoints: Sequence[Path]) -> Path:
    """The checkpoint that is best on validation; the scores of all go into validation.json."""
    student, keep = models.run.recipe.student, models.run.recipe.anchor.keep
    scores = [models.score_checkpoint(student, checkpoint)[0] for checkpoint in checkpoints]
    best = best_checkpoint(scores, keep)
    ranks.once(lambda: write_json(folder / "validation.json", {"best": best, "by": keep, "checkpoints": scores}))
    models.say_scores("anchor", scores, f"kept is {best}")
    return folder / "trainer" / best
