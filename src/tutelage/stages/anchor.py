"""anchor: the student after plain fine-tuning on the same rows, with as many steps as distillation gets; then frozen.

Writes anchor/ (a whole model) and anchor/sample_loss.jsonl: its loss on every training and validation row.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn

from tutelage.artifacts import folder_fingerprint
from tutelage.data import pad_id_of
from tutelage.models import load_model, merged, save_student, with_lora
from tutelage.records import write_jsonl
from tutelage.trainer import DistillTrainer, JsonLog, OnStep, SaveAt, steps_of, train, training_arguments
from tutelage.workspace import Workspace


def run(space: Workspace) -> None:
    """Do the stage."""
    recipe, own = space.recipe, space.recipe.anchor.model_name_or_path
    inputs = space.upstream("prepare") | space.settings("seed", "student", "anchor", "trainer", "distill.trainer")
    inputs |= space.settings("distill.num_stages", "distill.epochs_per_stage")
    inputs |= {"anchor model": folder_fingerprint(own)} if own else {}
    with space.work("anchor", inputs) as work:
        if work is None:
            return
        model = load_model(recipe.student, own) if own else _train(space, work.folder)
        save_student(model, space.tokenizer, work.folder)
        rows = space.encoded("train") + space.encoded("validation")
        with space.screen.progress("anchor losses", len(rows)) as advance:
            losses = space.evaluator.losses(model, rows, advance)
        write_jsonl(work.folder / "sample_loss.jsonl", losses)
        shutil.rmtree(work.folder / "trainer", ignore_errors=True)


def _train(space: Workspace, folder: Path) -> nn.Module:
    recipe, plan = space.recipe, space.recipe.distill
    rows, epochs = space.encoded("train"), plan.num_stages * plan.epochs_per_stage
    args = training_arguments(
        folder / "trainer", recipe.trainer_arguments("distill", "anchor"), seed=recipe.seed, epochs=epochs
    )
    model = load_model(recipe.student)
    if recipe.student.lora:
        model = with_lora(model, recipe.student.lora)
    total = steps_of(args, len(rows))
    every = plan.save_steps or -(-total // plan.num_stages)
    folder.mkdir(parents=True, exist_ok=True)
    with space.screen.steps("anchor") as on_step:
        callbacks = [SaveAt(range(every, total, every)), JsonLog(folder / "log.jsonl"), OnStep(on_step)]
        trainer = DistillTrainer(
            model,
            args,
            rows,
            vocabulary=space.about["vocabulary"],
            pad_id=pad_id_of(space.tokenizer),
            callbacks=callbacks,
        )
        train(trainer)
    return merged(model).eval()
