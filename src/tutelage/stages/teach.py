"""teach: fine-tune the teacher and keep N checkpoints at equal spacing, or take the user's; then find T* on validation.

Writes teach/checkpoint-STEP/ (Hugging Face layout, or PEFT adapters) and teach/checkpoints.json: name, folder,
validation score and loss of each, and which is best; teach/validation/ holds their losses on the validation rows.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.errors import ModelError
from tutelage.models.evaluation import loss_records
from tutelage.run import stage_inputs
from tutelage.run.checkpoints import list_checkpoints
from tutelage.run.run_folder import RunFolder
from tutelage.training.callbacks import WHOLE, seconds_before
from tutelage.training.finetuning import best_checkpoint, spaced_steps
from tutelage.training.run_models import RunModels
from tutelage.training.trainer import training_arguments
from tutelage.utils.files import read_json, write_json, write_jsonl

RESTART_ONLY = ("optimizer.pt", "scheduler.pt", "rng_state*.pth", "training_args.bin", "scaler.pt", WHOLE)
"""What a saved step needs to go on training, and a finished teacher does not."""
FINER = 4
"""Times as many checkpoints as are kept, among which those are chosen that are equally far apart in loss."""


def run_stage(run: RunFolder, models: RunModels) -> None:
    """Do the stage."""
    recipe = run.recipe
    given = list_checkpoints(recipe.teach.checkpoints, recipe.teacher) if recipe.teach.checkpoints else None
    with run.work("teach", stage_inputs.teach(run)) as work:
        if work is None:
            return
        work.seconds_before = seconds_before(work.folder)
        folders = given or _train(run, models, work.folder)
        found = [_validate(run, models, work.folder, folder) for folder in folders]
        if given is None:
            kept = evenly_falling([c["nll"] for c in found], recipe.teach.num_checkpoints)
            for place in set(range(len(found))) - set(kept):
                shutil.rmtree(folders[place], ignore_errors=True)
            folders, found = [folders[place] for place in kept], [found[place] for place in kept]
        best = best_checkpoint(found, recipe.teach.best_by)
        write_json(work.folder / "checkpoints.json", {"best": best, "by": recipe.teach.best_by, "checkpoints": found})
        for folder in folders if given is None else []:
            for pattern in RESTART_ONLY:
                for path in folder.glob(pattern):
                    path.unlink()
        seen = ", ".join(f"{c['name']} {c['score']:.3f}/{c['nll']:.3f}" for c in found)
        run.screen.say(f"teach: validation {run.task.metric} / loss in nats: {seen}; best is {best}")


def evenly_falling(losses: Sequence[float], count: int) -> list[int]:
    """Places of `count` checkpoints in training order between which the loss falls about evenly; the last one is always
    kept.

    losses: of all checkpoints on the same rows, in training order. Every loss counts as the lowest up to there, so that
    a rise late in training is not mistaken for progress.
    """
    lowest = np.minimum.accumulate(losses)
    kept = [len(losses) - 1]
    for part in range(1, count):
        wanted = lowest[0] + (lowest[-1] - lowest[0]) * (part - 1) / max(1, count - 1)
        free = [place for place in range(len(losses)) if place not in kept]
        kept.append(min(free, key=lambda place: abs(lowest[place] - wanted)))
    return sorted(kept)


def _train(run: RunFolder, models: RunModels, folder: Path) -> list[Path]:
    recipe, rows = run.recipe, models.encoded("train")
    seed = recipe.teacher_seed
    args = training_arguments(folder, run.trainer_arguments("teach"), seed=seed)
    finer = FINER if recipe.teach.spacing == "loss" else 1
    steps = spaced_steps(args, len(rows), finer * recipe.teach.num_checkpoints)
    if len(steps) < recipe.teach.num_checkpoints:
        raise ModelError(
            f"the teacher's training has {steps[-1]} steps, too few for {recipe.teach.num_checkpoints} checkpoints: set"
            f" teach.num_checkpoints to {steps[-1]} or less, or teach.trainer.num_train_epochs higher"
        )
    folders = [folder / f"checkpoint-{step}" for step in steps]
    if not (folders[-1] / WHOLE).exists():
        models.fine_tuned("teach", recipe.teacher, args, rows, seed=seed, save_at=steps, log=folder / "log.jsonl")
    for path in folders:
        models.tokenizer.save_pretrained(str(path))
    return folders


def _validate(run: RunFolder, models: RunModels, folder: Path, checkpoint: Path) -> dict[str, Any]:
    """Score and loss of one checkpoint on the validation rows; kept, so that a restart does not measure it again."""
    kept = folder / "validation" / f"{checkpoint.name}.json"
    kept.parent.mkdir(exist_ok=True)
    if kept.is_file():
        return read_json(kept)
    model = models.load(run.recipe.teacher, checkpoint)
    exam = models.exam("validation")
    with run.screen.progress(f"validate {checkpoint.name}", len(exam.examples)) as advance:
        score, _, losses = models.evaluator.quick(model, exam, advance)
    found = {"name": checkpoint.name, "folder": str(checkpoint), "score": score, "nll": float(losses.mean())}
    write_jsonl(kept.with_suffix(".jsonl"), loss_records(exam.rows, losses))
    write_json(kept, found)
    return found
